"""training records -> answers of the baselines, which cost next to
nothing and which every model should beat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from slmctl.metrics import linear_baseline
from slmctl.stages.evaluate.scoring import Answers
from slmctl.task.contract import Task
from slmctl.task.records import Record


def baselines(
    task: Task, train: Sequence[Record], validation: Sequence[Record], records: Sequence[Record]
) -> dict[str, Answers]:
    """The answers of every baseline of a task kind.

    majority: the most frequent label of the training rows, or the set of labels. tfidf_logistic:
    TF-IDF with logistic regression, trained on the same rows as the model; of several labels each
    against the rest. copy: the input as it is. empty: an empty text, or `{}` for `extract`.
    no_call: never calling a tool.
    """
    rules = task.rules
    texts = [record.input for record in records]
    labels = [record.answer for record in train]

    def linear() -> Answers:
        model = linear_baseline.fit(
            [record.input for record in train],
            labels,
            choosing=[record.input for record in validation],
            chosen=[record.answer for record in validation],
            several=() if rules.chooses else rules.labels,
        )
        return _answers(*model.answers(texts))

    made: dict[str, Callable[[], Answers]] = {
        linear_baseline.NAME: linear,
        "majority": lambda: _answers([linear_baseline.most_frequent(labels)] * len(records)),
        "copy": lambda: _answers(texts),
        "empty": lambda: _answers([rules.empty] * len(records)),
        "no_call": lambda: _answers([rules.empty] * len(records)),
    }
    return {name: made[name]() for name in rules.baselines}


def _answers(texts: Sequence[str], confidences: Sequence[float] | None = None) -> Answers:
    return Answers(texts, confidences or [None] * len(texts), np.ones(len(texts), bool))
