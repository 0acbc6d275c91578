"""Answers -> metrics: a score of every row, and every metric of the
task over any weights of the rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slmctl import console
from slmctl.errors import DataError
from slmctl.metrics import answer_metrics
from slmctl.metrics.answer_metrics import BINS
from slmctl.metrics.statistics import resamples
from slmctl.reports.evaluation_report import CalibrationFigures, ReliabilityBin, TaskFigures
from slmctl.task.contract import Task
from slmctl.task.draft_checks import Faults
from slmctl.task.records import Record
from slmctl.task.tool_calls import NO_CALL

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]  # (n,)
Weights = npt.NDArray[np.floating]  # (b, n): how often each row counts, b times over

LOWER_IS_BETTER = ("ece", "brier")
LEVEL_ERROR = "mean_absolute_error"  # of ordered labels; lower is better too


@dataclass(frozen=True)
class Answers:
    """A model's answers in the order of the records; a text is None if there is no answer."""

    texts: Sequence[str | None]
    confidences: Sequence[float | None]
    sent: Mask  # (n,): False where the row was not sent
    finishes: Sequence[str | None] = ()  # `length` for an answer that was cut; empty for a baseline


class Metric(Protocol):
    def over(self, weights: Weights) -> Floats: ...  # (b, n) -> (b,)


@dataclass(frozen=True)
class Summed:
    """A metric that is a function of sums over rows."""

    rows: Floats  # (n, k)
    fold: Callable[[Floats], Floats]  # (b, k) -> (b,)

    def over(self, weights: Weights) -> Floats:
        return self.fold((weights @ self.rows.astype(weights.dtype)).astype(np.float64))


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, less the part that chance alone would show."""

    confidence: Floats  # (n,)
    right: Mask

    def over(self, weights: Weights) -> Floats:
        return answer_metrics.calibration_error(
            weights, self.confidence, self.right.astype(np.float64)
        ).error


@dataclass(frozen=True)
class MacroF1:
    """Mean F1 over the labels that occur among the reference answers or the predictions."""

    expected: npt.NDArray[np.int64]  # (n,): index of the reference label
    # (n,): index of the predicted label; `labels` for any other answer
    predicted: npt.NDArray[np.int64]
    labels: int

    def over(self, weights: Weights) -> Floats:
        expected, predicted = (
            self._count(weights, self.expected),
            self._count(weights, self.predicted),
        )
        hits = self._count(np.where(self.expected == self.predicted, weights, 0), self.expected)
        both = expected + predicted
        f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
        mean: Floats = f1.sum(axis=1) / np.maximum((both > 0).sum(axis=1), 1)
        return mean

    def _count(self, weights: Weights, index: npt.NDArray[np.int64]) -> Floats:
        """(b, n) weights added up by label: (b, labels)."""
        width, b = self.labels + 1, len(weights)
        places = (index + np.arange(b)[:, None] * width).ravel()
        counts: Floats = np.bincount(places, weights=weights.ravel(), minlength=b * width).astype(
            np.float64
        )
        return counts.reshape(b, width)[:, :-1]


@dataclass(frozen=True)
class Scored:
    """A model's answers, scored.

    Attributes:
        sent: (n,) rows that count, which were sent to the model.
        groups: (n,) the number of each row's group; a row without one forms a group.
        faults: (n,) the faults of each draft, by check; empty for other tasks.
        right: (n,) rows whose label is right, whose labels or object are right as a whole, or whose
            text matches normalised.
        score: (n,) accuracy, F1 of the labels or the fields, or token F1 of each row.
        metrics: Every metric of the task, the primary one first.
        facts: The other figures of the task.
        invalid: Number of rows whose answer is not a label, not JSON, or empty.
    """

    sent: Mask
    right: Mask
    score: Floats
    metrics: dict[str, Metric]
    facts: TaskFigures
    invalid: int
    groups: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    faults: Sequence[Faults] = ()

    def value(self, name: str, mask: Mask | None = None) -> float:
        """A metric over the rows that were sent, and are in `mask` if one is given."""
        rows = self.sent if mask is None else self.sent & mask
        return float(self.metrics[name].over(rows[None, :].astype(np.float64))[0])


def score(
    task: Task, records: Sequence[Record], answers: Answers, *, confidence: float = 0.95
) -> Scored:
    """Score one model's answers against the reference answers; `confidence` is the coverage of the
    labels' intervals.

    Raises:
        DataError: A reference answer is not one that the task allows.
    """
    scorers: dict[str, Callable[[Task, Sequence[Record], Answers], Scored]] = {
        "classify": _classify,
        "tag": functools.partial(_tag, confidence=confidence),
        "extract": _extract,
        "generate": _generate,
        "call": _call,
    }
    numbers: dict[str, int] = {}
    groups = [
        numbers.setdefault(record.group or f"\0{k}", len(numbers))
        for k, record in enumerate(records)
    ]
    return dataclasses.replace(
        scorers[task.kind](task, records, answers), groups=np.array(groups, np.int64)
    )


def distributions(scored: Mapping[str, Scored], mask: Mask) -> dict[str, dict[str, Floats]]:
    """Bootstrap distributions by model and metric, each (resamples,), over the rows of a mask.

    Whole groups are drawn. The resamples are the same for every model, so that differences are
    paired.
    """
    places = np.flatnonzero(mask)
    names, own = np.unique(next(iter(scored.values())).groups[places], return_inverse=True)
    parts: dict[str, dict[str, list[Floats]]] = {
        name: {metric: [] for metric in model.metrics} for name, model in scored.items()
    }
    for counts in resamples(len(names)):
        weights = np.zeros((len(counts), len(mask)), np.float32)
        weights[:, places] = counts[:, own]
        for name, model in scored.items():
            for metric, figure in model.metrics.items():
                parts[name][metric].append(figure.over(weights))
    return {
        name: {metric: np.concatenate(values) for metric, values in by.items()}
        for name, by in parts.items()
    }


def _mean(values: Sequence[float] | Floats | Mask) -> Summed:
    rows = np.asarray(values, np.float64)
    return Summed(
        np.stack([rows, np.ones_like(rows)], axis=1),
        lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1e-12),
    )


def _classify(task: Task, records: Sequence[Record], answers: Answers) -> Scored:
    index = {label: k for k, label in enumerate(task.labels)}
    for record in records:
        if record.answer not in index:
            raise DataError(
                _where(record)
                + f"the reference answer '{record.answer[:60]}' is not one of the labels"
            )
    texts = [(text or "").strip() for text in answers.texts]
    expected = np.array([index[record.answer] for record in records])
    predicted = np.array([index.get(text, len(index)) for text in texts])
    right = expected == predicted
    pairs = [
        (records[k].answer, texts[k] if texts[k] in index else "")
        for k in np.flatnonzero(answers.sent).tolist()
    ]
    reliability, calibrated = _calibration(answers, right)
    levels = _levels(expected, predicted, len(index)) if task.ordered else {}
    return Scored(
        sent=answers.sent,
        right=right,
        score=right.astype(np.float64),
        metrics={
            "accuracy": _mean(right),
            "macro_f1": MacroF1(expected, predicted, len(index)),
            **levels,
            **calibrated,
        },
        facts={
            "per_class": answer_metrics.per_class(
                task.labels, [a for a, _ in pairs], [b for _, b in pairs]
            ),
            "confusion": _confusion(pairs),
            "calibration": reliability,
        },
        invalid=sum(not predicted_label for _, predicted_label in pairs),
    )


def _levels(
    expected: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], labels: int
) -> dict[str, Metric]:
    """The metrics of labels that are levels; any other answer counts as
    the level farthest from the reference.
    """
    farthest = np.where(2 * expected < labels - 1, labels - 1, 0)
    answered = np.where(predicted < labels, predicted, farthest)
    # so that sums of squares stay small: resamples are added up in float32
    middle = (labels - 1) / 2
    sums = answer_metrics.level_sums(
        *(np.asarray(side - middle, np.float64) for side in (expected, answered))
    )
    return {
        LEVEL_ERROR: Summed(sums, answer_metrics.level_error),
        "quadratic_kappa": Summed(sums, answer_metrics.quadratic_kappa),
    }


def _confusion(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str, int]]:
    return [(a, b, count) for (a, b), count in sorted(Counter(pairs).items())]


def _calibration(
    answers: Answers, right: Mask
) -> tuple[CalibrationFigures | None, dict[str, Metric]]:
    """Returns (reliability table, {metric: error}), or (None, {})
    unless every answer has a confidence.
    """
    confident = np.array([value is not None for value in answers.confidences]) & answers.sent
    if not confident.any() or (answers.sent & ~confident).any():
        return None, {}
    confidence = np.array([value or 0.0 for value in answers.confidences])
    figures: dict[str, Metric] = {
        "ece": Calibration(confidence, right),
        "brier": _mean((confidence - right) ** 2),
    }
    bins_used: list[ReliabilityBin] = []
    for k in range(BINS):
        inside = answers.sent & (answer_metrics.bin_of(confidence) == k)
        if n := int(inside.sum()):
            sure, hits = float(confidence[inside].mean()), float(right[inside].mean())
            bins_used.append(
                {
                    "low": k / BINS,
                    "high": (k + 1) / BINS,
                    "n": n,
                    "confidence": sure,
                    "accuracy": hits,
                }
            )
    mask = answers.sent[None, :].astype(np.float64)
    gap = answer_metrics.calibration_error(mask, confidence, right.astype(np.float64))
    return {
        "n": int(confident.sum()),
        "confidence": float(confidence[answers.sent].mean()),
        "accuracy": float(right[answers.sent].mean()),
        "ece": float(gap.error[0]),
        "observed": float(gap.observed[0]),
        "by_chance": float(gap.by_chance[0]),
        "brier": float(figures["brier"].over(mask)[0]),
        "bins": bins_used,
    }, figures


def _tag(task: Task, records: Sequence[Record], answers: Answers, *, confidence: float) -> Scored:
    expected = [_labels(task, record.answer) for record in records]
    for record, labels in zip(records, expected, strict=True):
        if labels is None:
            raise DataError(
                _where(record)
                + f"the reference answer '{record.answer[:60]}' is no list of the labels"
            )
    predicted = [_labels(task, (text or "").strip()) for text in answers.texts]
    valid = np.array([labels is not None for labels in predicted])
    a, b = (
        np.array([[label in (labels or ()) for label in task.rules.labels] for labels in side])
        for side in (expected, predicted)
    )  # (n, labels)
    counts = np.stack([a & b, b, a], axis=2).astype(np.float64)  # (n, labels, 3)
    right = valid & (a == b).all(axis=1)
    reliability, calibrated = _calibration(answers, right)
    return Scored(
        sent=answers.sent,
        right=right,
        score=np.where(right, 1.0, _f1(counts.sum(axis=1))),
        metrics={
            "exact_match": _mean(right),
            "micro_f1": Summed(counts.sum(axis=1), _f1),
            "macro_f1": Summed(counts.reshape(len(records), -1), answer_metrics.macro_f1),
            **calibrated,
        },
        facts={
            "per_class": answer_metrics.per_label(
                task.rules.labels, counts[answers.sent].sum(axis=0), confidence
            ),
            "calibration": reliability,
        },
        invalid=int((answers.sent & ~valid).sum()),
    )


def _labels(task: Task, text: str) -> frozenset[str] | None:
    """The labels of an answer; None for an answer that the task does not allow."""
    return frozenset(task.read_answer(text)) if task.accepts(text) else None


def _extract(task: Task, records: Sequence[Record], answers: Answers) -> Scored:
    expected = [answer_metrics.parse(record.answer) for record in records]
    for record, value in zip(records, expected, strict=True):
        if value is answer_metrics.INVALID:
            raise DataError(_where(record) + "the reference answer is not JSON")
    predicted = [answer_metrics.parse((text or "").strip()) for text in answers.texts]
    valid = np.array([value is not answer_metrics.INVALID for value in predicted])
    rows = np.flatnonzero(answers.sent).tolist()
    fits = np.array(
        [value is not answer_metrics.INVALID and task.rules.allows(value) for value in predicted]
    )
    right = np.array([answer_metrics.equal(a, b) for a, b in zip(expected, predicted, strict=True)])
    counts = np.array(
        [answer_metrics.field_counts(a, b) for a, b in zip(expected, predicted, strict=True)],
        np.float64,
    )  # (n, 3)
    return Scored(
        sent=answers.sent,
        right=right,
        score=_f1(counts),
        metrics={
            "exact_match": _mean(right),
            "valid_json": _mean(valid),
            "valid_schema": _mean(fits),
            **_field_metrics(counts),
        },
        facts={"fields": answer_metrics.per_field((expected[k], predicted[k]) for k in rows)},
        invalid=int((answers.sent & ~valid).sum()),
    )


@dataclass(frozen=True)
class _Called:
    """An answer of a `call` task, read."""

    name: str  # the tool, or NO_CALL; empty if the answer cannot be read
    fields: Any  # {tool: arguments}; INVALID without a call
    valid: bool  # the task allows it


def _call(task: Task, records: Sequence[Record], answers: Answers) -> Scored:
    expected = [_called(task, record, record.answer) for record in records]
    for record, call in zip(records, expected, strict=True):
        if not call.name:
            raise DataError(_where(record) + "the reference answer is neither a call nor none")
    predicted = [
        _called(task, record, text or "")
        for record, text in zip(records, answers.texts, strict=True)
    ]
    pairs = list(zip(expected, predicted, strict=True))
    rows = np.flatnonzero(answers.sent).tolist()
    names = [(a.name, b.name) for a, b in pairs]
    right = np.array(
        [a.name == b.name and answer_metrics.equal(a.fields, b.fields) for a, b in pairs]
    )
    # (n, 3)
    counts = np.array(
        [answer_metrics.field_counts(a.fields, b.fields) for a, b in pairs], np.float64
    )
    # (n, 3)
    refusals = np.array(
        [[a == b == NO_CALL, b == NO_CALL, a == NO_CALL] for a, b in names], np.float64
    )
    tools = sorted({name for pair in names for name in pair if name})
    seen = [names[k] for k in rows]
    return Scored(
        sent=answers.sent,
        right=right,
        score=np.where(right, 1.0, _f1(counts)),
        metrics={
            "exact_match": _mean(right),
            "tool_accuracy": _mean([a == b for a, b in names]),
            "valid_call": _mean([call.valid for call in predicted]),
            **_field_metrics(counts),
            "no_call_precision": Summed(refusals, _precision),
            "no_call_recall": Summed(refusals, _recall),
        },
        facts={
            "per_class": answer_metrics.per_class(
                tools, [a for a, _ in seen], [b for _, b in seen]
            ),
            "confusion": _confusion(seen),
            "fields": answer_metrics.per_field(
                (expected[k].fields, predicted[k].fields) for k in rows
            ),
        },
        invalid=sum(not b for _, b in seen),
    )


def _called(task: Task, record: Record, text: str) -> _Called:
    try:
        call = task.read_answer(text)
    except DataError:
        return _Called("", answer_metrics.INVALID, valid=False)
    if call is None:
        return _Called(NO_CALL, answer_metrics.INVALID, valid=True)
    return _Called(
        call.name, {call.name: call.arguments}, valid=task.accepts(text, tools=record.tools)
    )


def _field_metrics(counts: Floats) -> dict[str, Metric]:
    """Precision, recall and F1 from counts (n, 3): leaves that agree,
    predicted leaves, reference leaves.
    """
    return {
        "field_precision": Summed(counts, _precision),
        "field_recall": Summed(counts, _recall),
        "field_f1": Summed(counts, _f1),
    }


def _precision(counts: Floats) -> Floats:
    return _share(counts[:, 0], counts[:, 1])


def _recall(counts: Floats) -> Floats:
    return _share(counts[:, 0], counts[:, 2])


def _f1(counts: Floats) -> Floats:
    return _share(2 * counts[:, 0], counts[:, 1] + counts[:, 2])


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _generate(task: Task, records: Sequence[Record], answers: Answers) -> Scored:
    texts = [text or "" for text in answers.texts]
    expected = [answer_metrics.words(record.answer) for record in records]
    predicted = [answer_metrics.words(text) for text in texts]
    pairs = list(zip(expected, predicted, strict=True))
    right = np.array([a == b for a, b in pairs])
    f1 = np.array([answer_metrics.token_f1(a, b) for a, b in pairs])
    grams = [
        answer_metrics.chrf_counts(record.answer, text)
        for record, text in zip(records, texts, strict=True)
    ]
    rules, finishes = task.rules, answers.finishes or [None] * len(texts)
    faults = [
        rules.faults(text, record.prompt_messages, finish=finish)
        for record, text, finish in zip(records, texts, finishes, strict=True)
    ]
    lengths = np.array([(len(b), len(a)) for a, b in pairs], np.float64)
    return Scored(
        sent=answers.sent,
        right=right,
        score=f1,
        metrics={
            "token_f1": _mean(f1),
            "exact_match": _mean(right),
            "rouge_l": _mean([answer_metrics.rouge_l(a, b) for a, b in pairs]),
            "chrf": Summed(np.array(grams, np.float64), answer_metrics.chrf),
            "length_ratio": Summed(lengths, lambda sums: _share(sums[:, 0], sums[:, 1])),
            **{check: _mean([check in each for each in faults]) for check in rules.checks},
        },
        facts={},
        faults=faults,
        invalid=sum(bool(answers.sent[k]) and not texts[k].strip() for k in range(len(texts))),
    )


def _where(record: Record) -> str:
    return f"{console.place(record.source['file'], record.source['row'])}: "
