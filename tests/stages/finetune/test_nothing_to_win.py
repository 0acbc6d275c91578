"""A training that has nothing to win over a linear model: the run stops,
and the linear model can be released.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

from support.forks import Forks
from support.handmade import opened

from slmctl.reports.evaluation_report import parse_report
from slmctl.stages.evaluate import report_view
from slmctl.stages.finetune import nothing_to_win

# some 60 rows, each with two words that tell its label
MANY = ("--set", "prepare.splits.validation=0.2")


def test_a_run_stops_before_a_training_that_has_nothing_to_win(stages: Forks, desk: Path) -> None:
    done = stages.run(desk, "run", "--until", "finetune", *MANY)
    assert done.returncode == 5, done.stderr
    assert re.search(r"the linear baseline answers (\d+) of \1 validation rows right", done.stderr)
    release = "slmctl run --set publish.model=linear --set encode.encoder=none"
    assert (
        f"to release it: {release}" in done.stderr
        and f"hint: {release} releases that one" in done.stderr
    )
    assert len(list(desk.glob("runs/adapter/*"))) == 1  # the one of the other data set
    assert "will run: prepare, finetune" in done.stderr
    yes = ("finetune.max_steps=1", "finetune.epochs=1")
    done = stages.run(
        desk,
        "run",
        "--until",
        "finetune",
        "--yes",
        *MANY,
        *(x for each in yes for x in ("--set", each)),
    )
    assert done.returncode == 0, done.stderr
    assert len(list(desk.glob("runs/adapter/*"))) == 2


def test_the_page_says_how_to_take_it_where_it_wins(desk: Path) -> None:
    project = opened(desk)
    report = project.artifact("report")
    figures: Any = parse_report(json.loads(json.dumps(report.metrics)), where="")
    for entry in figures["models"].values():
        entry["metrics"]["accuracy"] = 0.5
    for score, wins in ((0.4, False), (0.5, True)):
        figures["baselines"]["tfidf_logistic"]["metrics"]["accuracy"] = score
        assert (
            report_view.linear(project, figures).startswith(
                "To release the linear baseline: slmctl run "
            )
            == wins
        )
    figures["participants"].append("encoder_logistic")
    figures["baselines"]["encoder_logistic"] = copy.deepcopy(figures["baselines"]["tfidf_logistic"])
    figures["baselines"]["encoder_logistic"]["metrics"]["accuracy"] = 0.6
    assert "words: slmctl run --set publish.model=linear, which" in report_view.linear(
        project, figures
    )


def test_there_is_no_doubt_where_too_few_rows_say(desk: Path) -> None:
    assert nothing_to_win.doubt(opened(desk)) is None
    # too few validation rows to say
    assert opened(desk).artifact("prepared").metrics.get("linear") is None
