"""People's decisions on pairs of answers -> the win rate of every
two measured models that were judged.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from slmctl.artifacts.artifact import Artifact
from slmctl.config import EvaluateConfig
from slmctl.metrics.statistics import design_effect
from slmctl.metrics.win_rate import WinRate
from slmctl.production.review.pairs import JudgedModels, PairDecision
from slmctl.production.review.verdicts import JudgeVerdict, entry_of, verdicts_of
from slmctl.reports.evaluation_report import JudgedEntry, JudgedPairs, turned_judge
from slmctl.sources.reviewed import standing
from slmctl.stages.evaluate.scoring import Answers
from slmctl.task.records import Record


def judged(
    config: EvaluateConfig,
    records: Sequence[Record],
    answers: Mapping[str, Answers],
    digests: Mapping[str, str],
    groups: npt.NDArray[np.int64],
    *,
    focus: str,
    of: tuple[Sequence[Artifact], Artifact],
) -> JudgedPairs:
    """The judged pairs of a report, those of the focus first.

    Args:
        config: The section, with the file of decisions, and that of a judge's verdicts where there
            is one.
        records: The measured rows.
        answers: The answers of each model, by its name.
        digests: The digest of each model's predictions; decisions on others do not count.
        groups: (n,) the number of each row's group.
        focus: The model to release.
        of: The predictions of all models, and the data set.

    Raises:
        OSError: The file cannot be read.
    """
    lines: dict[tuple[str, str], list[PairDecision]] = {}
    for line in PairDecision.read(config.pairs) if config.pairs is not None else ():
        lines.setdefault(line.models, []).append(line)
    places = {record.id: k for k, record in enumerate(records)}
    made = {each.digest: each for each in of[0]}
    by_judge = verdicts_of(
        JudgeVerdict.read(config.verdicts) if config.verdicts is not None else ()
    )
    people = {
        key: standing(line for line in own if line.id in places) for key, own in lines.items()
    }
    stands = {
        key: [line for line in own.values() if line.decision != "skipped"]
        for key, own in people.items()
    }
    entries = []
    for names in itertools.combinations(digests, 2):
        against, model = names if names[0] != focus else names[::-1]
        key = (min(digests[name] for name in names), max(digests[name] for name in names))
        if decisions := stands.get(key):
            better = "first" if digests[model] == key[0] else "second"
            rows = groups[[places[line.id] for line in decisions]]
            entry = _entry(decisions, better, rows, config.confidence)
            equal = _equal(answers[model], answers[against])
            entries.append(entry | {"model": model, "against": against, "equal": equal})
            if key in by_judge:
                pairs = JudgedModels.of((made[key[0]], made[key[1]]), of[1])
                figures = entry_of(pairs, people[key], by_judge[key], confidence=config.confidence)
                entries[-1]["judge"] = figures if better == "first" else turned_judge(figures)
    measured = {*itertools.product(digests.values(), repeat=2)}
    others = sum(len(own) for key, own in stands.items() if key not in measured)
    return {
        "entries": sorted(entries, key=lambda entry: entry["model"] != focus),
        "of_others": others,
    }


def _entry(
    decisions: Sequence[PairDecision], better: str, groups: npt.NDArray[np.int64], confidence: float
) -> JudgedEntry:
    """The figures of one pair of models without their names; `better` is
    the decision for the one in question.
    """
    counts = Counter("won" if line.decision == better else line.decision for line in decisions)
    same = counts["same"]
    neither = counts["neither"]
    won = counts["won"]
    lost = len(decisions) - won - same - neither
    scores = [
        1.0 if line.decision == better else -(line.decision in ("first", "second"))
        for line in decisions
    ]
    effect = design_effect(np.array(scores, np.float64), groups)
    figures = WinRate(won, lost, same + neither, effect)
    entry: JudgedEntry = {
        "model": "",
        "against": "",
        "won": won,
        "lost": lost,
        "same": same,
        "neither": neither,
        "equal": 0,
        "win_rate": figures.rate,
        "interval": list(figures.interval(confidence)),
        "p": figures.p,
        "more": figures.more(1 - confidence),
        "reviewers": len({line.reviewer for line in decisions}),
    }
    if effect > 1:
        entry |= {"design_effect": effect, "groups": len(np.unique(groups))}
    return entry


def _equal(first: Answers, second: Answers) -> int:
    """Number of rows that were sent to both and have equal answers."""
    texts = zip(first.texts, second.texts, first.sent & second.sent, strict=True)
    return sum(
        bool(sent) and (text or "").strip() == (other or "").strip() for text, other, sent in texts
    )
