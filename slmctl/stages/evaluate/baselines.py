"""training records -> answers of the baselines, which cost next to nothing and which every model should beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slmctl.metrics import linear_baseline
from slmctl.stages.evaluate.scoring import Answers
from slmctl.task import tool_calls
from slmctl.task.contract import Task
from slmctl.task.records import Record


def baselines(
    task: Task, train: Sequence[Record], validation: Sequence[Record], records: Sequence[Record]
) -> dict[str, Answers]:
    """The answers of every baseline of a task kind.

    majority: the most frequent label of the training rows, or the set of labels. tfidf_logistic: TF-IDF with logistic
    regression, trained on the same rows as the model; of several labels each against the rest. copy: the input as it
    is. empty: an empty text, or `{}` for `extract`. no_call: never calling a tool.
    """
    if task.kind in ("classify", "tag"):
        labels = [record.answer for record in train]
        linear = linear_baseline.fit(
            [record.input for record in train],
            labels,
            choosing=[record.input for record in validation],
            chosen=[record.answer for record in validation],
            several=task.label_set,
        )
        majority = _answers([linear_baseline.most_frequent(labels)] * len(records))
        answers = majority, _answers(*linear.answers([record.input for record in records]))
    elif task.kind == "call":
        return {"no_call": _answers([tool_calls.NO_CALL] * len(records))}
    else:
        empty = "{}" if task.kind == "extract" else ""
        answers = _answers([record.input for record in records]), _answers([empty] * len(records))
    return dict(zip(linear_baseline.BASELINES[task.kind], answers, strict=True))


def _answers(texts: Sequence[str], confidences: Sequence[float] | None = None) -> Answers:
    return Answers(texts, confidences or [None] * len(texts), np.ones(len(texts), bool))
