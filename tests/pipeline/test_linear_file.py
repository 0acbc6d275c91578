"""The linear model in place of a training that has nothing to win: the run stops, and the model can be taken."""

from __future__ import annotations

import copy
import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import tiny
from support.forks import Forks
from support.handmade import opened

from slmctl.pipeline import linear_file
from slmctl.reports.evaluation_report import parse_report
from slmctl.stages.evaluate import report_view

MANY = ("--set", "prepare.splits.validation=0.2")  # some 60 rows, each with two words that tell its label


def test_a_run_stops_before_a_training_that_has_nothing_to_win(stages: Forks, desk: Path) -> None:
    done = stages.run(desk, "run", "--until", "finetune", *MANY)
    assert done.returncode == 5, done.stderr
    assert re.search(r"a linear model \(TF-IDF\) answers (\d+) of \1 validation rows right", done.stderr)
    release = "slmctl run --set publish.model=linear --set encode.encoder=none"
    assert f"to release it: {release}" in done.stderr and f"hint: {release} releases that one" in done.stderr
    assert "slmctl predict linear --input FILE --output FILE answers by them" in done.stderr
    assert (desk / "runs" / "linear.npz").exists()
    assert len(list(desk.glob("runs/adapter/*"))) == 1  # the one of the other data set
    assert "will run: prepare, finetune" in done.stderr
    yes = ("finetune.max_steps=1", "finetune.epochs=1")
    done = stages.run(desk, "run", "--until", "finetune", "--yes", *MANY, *(x for each in yes for x in ("--set", each)))
    assert done.returncode == 0, done.stderr
    assert len(list(desk.glob("runs/adapter/*"))) == 2


def test_the_linear_model_answers_a_file_and_its_program_loads_the_weights(stages: Forks, desk: Path) -> None:
    done = stages.run(desk, "predict", "linear")
    assert (done.returncode, "linear answers a file" in done.stderr) == (2, True)
    answers = desk / "answers.csv"
    tiny.ok(stages.run(desk, "predict", "linear", "--input", str(desk / "tickets.csv"), "--output", str(answers)))
    rows = list(csv.DictReader(answers.read_text(encoding="utf-8").splitlines()))
    assert sum(row["answer"] == row["category"] for row in rows) >= 0.98 * len(rows) == 0.98 * 300
    assert all(0 < float(row["confidence"]) <= 1 for row in rows)
    program = [sys.executable, str(desk / "runs" / linear_file.PROGRAM), *(row["text"] for row in rows)]
    loaded = subprocess.run(program, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == [row["answer"] for row in rows]


def test_the_page_says_how_to_take_it_where_it_wins(desk: Path) -> None:
    project = opened(desk)
    report = project.artifact("report")
    figures: Any = parse_report(json.loads(json.dumps(report.metrics)), where="")
    for entry in figures["models"].values():
        entry["metrics"]["accuracy"] = 0.5
    for score, wins in ((0.4, False), (0.5, True)):
        figures["baselines"]["tfidf_logistic"]["metrics"]["accuracy"] = score
        assert report_view.linear(project, figures).startswith("To release the linear model: slmctl run ") == wins
    assert (desk / "runs" / "linear.py").exists()
    figures["participants"].append("encoder_logistic")
    figures["baselines"]["encoder_logistic"] = copy.deepcopy(figures["baselines"]["tfidf_logistic"])
    figures["baselines"]["encoder_logistic"]["metrics"]["accuracy"] = 0.6
    assert "encoder: slmctl run --set publish.model=linear, which" in report_view.linear(project, figures)


def test_the_weights_are_written_anew_for_other_data_alone(desk: Path) -> None:
    path = linear_file.written(opened(desk))
    before = path.stat().st_mtime_ns
    assert linear_file.written(opened(desk)) == path == desk / "runs" / "linear.npz"
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"PK")
    assert linear_file.written(opened(desk)).stat().st_size > 1000
    assert linear_file.nothing_to_win(opened(desk)) is None  # it was trained
    assert opened(desk).artifact("prepared").metrics.get("linear") is None  # too few validation rows to say
