"""Traffic of a served model, drawn from recorded answers to CLINC150 (Larson et al. 2019).

The model is TF-IDF with logistic regression (`metrics/linear_baseline`), its P(correct) is fitted by the code of
`calibrate` on the validation rows, and a question is novel by the hashes of its training rows. Five intents are kept
from it; their rows are the new subjects that arrive later.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmctl.config import CalibrateConfig
from slmctl.deduplication import minhash
from slmctl.inference.escalation_policy import Policy
from slmctl.metrics import error_threshold, linear_baseline
from slmctl.metrics.linear_baseline import LinearModel
from slmctl.stages.calibrate import calibrate
from slmctl.task.contract import Task

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Rows = Sequence[tuple[str, str]]  # text, label

MONTH = 3000  # requests
NEW_INTENTS, NEW_SHARE = 5, 0.05
NOVEL = 0.05  # of the held-out rows, as `server/novelty.py` sets its bound
TASK = Task("classify", "{{ messages }}", "")
SETTINGS = CalibrateConfig(max_error=0.05)


@dataclass(frozen=True)
class Answers:
    """Recorded answers of one model.

    Attributes:
        p_correct: (n,) by the policy.
        kept: (n,) by the policy.
        novel: (n,) no training row is like the question.
        length: (n,) words of the question.
        right: (n,) the answer is the reference label.
        labels: (n,) the answers.
    """

    p_correct: Floats
    kept: Flags
    novel: Flags
    length: Floats
    right: Flags
    labels: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.right)


@dataclass(frozen=True)
class Served:
    """A model and what it answers to questions of its own subjects and of new ones; `accuracy` is on the former."""

    usual: Answers
    new: Answers

    @property
    def accuracy(self) -> float:
        return float(self.usual.right.mean())


@functools.cache
def clinc(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """The in-scope rows by split: train, val, test."""
    data = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
    return {split: [(text, label) for text, label in data[split]] for split in ("train", "val", "test")}


def served(folder: Path, seed: int) -> Served:
    """A model that was trained on all intents but five, which the seed draws."""
    data = clinc(folder)
    labels = sorted({label for _, label in data["train"]})
    new = set(np.random.default_rng(seed).choice(labels, NEW_INTENTS, replace=False).tolist())
    known = {split: [row for row in rows if row[1] not in new] for split, rows in data.items()}
    unknown = [row for rows in data.values() for row in rows if row[1] in new]
    model, policy = fitted(known["train"], known["val"])
    training, bound = sketches(known["train"]), 0.0
    bound = float(np.quantile(similarities(training, known["val"][::7]), NOVEL))
    usual, later = (answered(model, policy, rows, training, bound) for rows in (known["test"], unknown))
    return Served(usual, later)


def fitted(train: Rows, val: Rows) -> tuple[LinearModel, Policy]:
    """The model, and the policy of its answers to the validation rows, which choose its strength, too."""
    model = linear_baseline.fit(*_columns(train), choosing=_columns(val)[0], chosen=_columns(val)[1])
    rows = calibrate.read(lines(model, val), TASK, SETTINGS)
    made = error_threshold.fit(rows, SETTINGS)
    return model, Policy(gguf="", task="", kind="classify", correct="", out_of_scope="", **made)


def lines(model: LinearModel, rows: Rows) -> list[Any]:
    """The model's answers in the form of predictions."""
    chances = model.classifier.predict_proba(model.vectorizer.transform(_columns(rows)[0]))  # (n, labels)
    names = [str(name) for name in model.classifier.classes_]
    made = []
    for number, ((_, label), chance) in enumerate(zip(rows, chances, strict=True)):
        best = np.argsort(-chance)[:5]
        sure = float(chance[best[0]])
        made.append({
            "id": f"{number}", "answer": names[best[0]], "expected": label, "confidence": sure,
            "labels": {names[k]: float(chance[k]) for k in best}, "logprobs": [float(np.log(sure))],
            "raw_logprobs": [float(np.log(sure))], "completion_tokens": 1,
        })  # fmt: skip
    return made


def answered(model: LinearModel, policy: Policy, rows: Rows, training: minhash.U64, bound: float) -> Answers:
    """The answers to some rows."""
    given = lines(model, rows)
    decisions = [policy.judge(line, line["answer"]) for line in given]
    return Answers(
        np.array([decision.p_correct for decision in decisions]),
        np.array([decision.keep for decision in decisions]),
        similarities(training, rows) < bound,
        np.array([len(text.split()) for text, _ in rows], dtype=np.float64),
        np.array([line["answer"] == line["expected"] for line in given]),
        np.array([line["answer"] for line in given]),
    )


def sketches(rows: Rows) -> minhash.U64:
    """The compact sketches of the texts."""
    return minhash.compact(minhash.sketch([minhash.normalise(text) for text, _ in rows]))


def similarities(training: minhash.U64, rows: Rows) -> Floats:
    """Of each text the similarity of the training row that is likest, by its hashes."""
    return np.array([minhash.estimate(training, sketch).max() for sketch in sketches(rows)], dtype=np.float64)


def _columns(rows: Rows) -> tuple[list[str], list[str]]:
    return [text for text, _ in rows], [label for _, label in rows]
