"""Answers -> figures: what each row's answer is worth, and every metric of a task over any weights of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slmctl.errors import DataError
from slmctl.metrics import answer_metrics
from slmctl.metrics.statistics import resamples
from slmctl.task.contract import Task
from slmctl.task.records import Record

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]  # (n,)
Weights = npt.NDArray[np.floating]  # (b, n): how often each row counts, b times over

PRIMARY = {"classify": "accuracy", "extract": "exact_match", "generate": "token_f1"}
SHARES = ("accuracy", "exact_match", "valid_json", "valid_schema")  # means of something that a row has or has not
LOWER_IS_BETTER = ("ece", "brier")


@dataclass(frozen=True)
class Answers:
    """What one model said, in the order of the records; None where it was asked and gave nothing."""

    texts: Sequence[str | None]
    confidences: Sequence[float | None]
    asked: Mask  # (n,): False where a row was never sent


class Metric(Protocol):
    """A figure of many rows."""

    def over(self, weights: Weights) -> Floats:
        """The figure for each row of weights: (b, n) -> (b,)."""
        ...


@dataclass(frozen=True)
class Summed:
    """A figure that follows from sums over rows."""

    rows: Floats  # (n, k)
    fold: Callable[[Floats], Floats]  # (b, k) -> (b,)

    def over(self, weights: Weights) -> Floats:
        return self.fold((weights @ self.rows.astype(weights.dtype)).astype(np.float64))


@dataclass(frozen=True)
class MacroF1:
    """The mean F1 of the labels that were wanted or given."""

    wanted: npt.NDArray[np.int64]  # (n,): index of the label
    given: npt.NDArray[np.int64]  # (n,): the same; `labels` where the answer is none of them
    labels: int

    def over(self, weights: Weights) -> Floats:
        wanted, given = self._count(weights, self.wanted), self._count(weights, self.given)
        hits = self._count(np.where(self.wanted == self.given, weights, 0), self.wanted)
        both = wanted + given
        f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
        mean: Floats = f1.sum(axis=1) / np.maximum((both > 0).sum(axis=1), 1)
        return mean

    def _count(self, weights: Weights, index: npt.NDArray[np.int64]) -> Floats:
        """(b, n) weights added up by label: (b, labels)."""
        width, b = self.labels + 1, len(weights)
        places = (index + np.arange(b)[:, None] * width).ravel()
        counts: Floats = np.bincount(places, weights=weights.ravel(), minlength=b * width).astype(np.float64)
        return counts.reshape(b, width)[:, :-1]


@dataclass(frozen=True)
class Scored:
    """One model's answers, measured.

    Attributes:
        asked: (n,) rows that count.
        right: (n,) label right, whole record right, or normalised match.
        score: (n,) the row's own figure: accuracy, F1 of its fields, or token F1.
        metrics: Every metric of the task, the primary one first.
        facts: What the report says beside them.
        codes: (n,) index of the label that was given, -1 for none; empty unless classify.
        invalid: Rows whose answer is no label, no JSON, or empty.
    """

    asked: Mask
    right: Mask
    score: Floats
    metrics: dict[str, Metric]
    facts: dict[str, Any]
    invalid: int
    codes: list[int] = field(default_factory=list)

    def value(self, name: str, mask: Mask | None = None) -> float:
        """A metric over the rows asked, or over those of a mask too."""
        rows = self.asked if mask is None else self.asked & mask
        return float(self.metrics[name].over(rows[None, :].astype(np.float64))[0])


def score(task: Task, records: Sequence[Record], answers: Answers) -> Scored:
    """Measure one model's answers.

    Raises:
        DataError: The answer wanted of a row is not what the task asks for.
    """
    ways = {"classify": _classify, "extract": _extract, "generate": _generate}
    return ways[task.kind](task, records, answers)


def distributions(scored: dict[str, Scored], mask: Mask) -> dict[str, dict[str, Floats]]:
    """By model and metric the figure in each bootstrap resample of the rows in a mask: the same for every model."""
    places = np.flatnonzero(mask)
    parts: dict[str, dict[str, list[Floats]]] = {name: {m: [] for m in one.metrics} for name, one in scored.items()}
    for some in resamples(len(places)):
        weights = np.zeros((len(some), len(mask)), np.float32)
        weights[:, places] = some
        for name, one in scored.items():
            for metric, figure in one.metrics.items():
                parts[name][metric].append(figure.over(weights))
    return {name: {metric: np.concatenate(found) for metric, found in one.items()} for name, one in parts.items()}


def _mean(values: Sequence[float] | Floats | Mask) -> Summed:
    rows = np.asarray(values, np.float64)
    return Summed(np.stack([rows, np.ones_like(rows)], axis=1), lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1e-12))


def _classify(task: Task, records: Sequence[Record], answers: Answers) -> Scored:
    index = {label: k for k, label in enumerate(task.labels)}
    for record in records:
        if record.answer not in index:
            raise DataError(_where(record) + f"'{record.answer[:60]}' is not one of the labels")
    texts = [(text or "").strip() for text in answers.texts]
    wanted = np.array([index[record.answer] for record in records])
    given = np.array([index.get(text, len(index)) for text in texts])
    right = wanted == given
    rows = np.flatnonzero(answers.asked).tolist()
    pairs = [(records[k].answer, texts[k] if texts[k] in index else "") for k in rows]
    table = Counter(pairs)
    reliability, calibrated = _calibration(answers, right)
    return Scored(
        asked=answers.asked,
        right=right,
        score=right.astype(np.float64),
        metrics={"accuracy": _mean(right), "macro_f1": MacroF1(wanted, given, len(index)), **calibrated},
        facts={
            "per_class": answer_metrics.per_class(task.labels, [a for a, _ in pairs], [b for _, b in pairs]),
            "confusion": [[a, b, count] for (a, b), count in sorted(table.items())],
            "calibration": reliability,
        },
        invalid=sum(not b for _, b in pairs),
        codes=[int(code) if code < len(index) else -1 for code in given],
    )


def _calibration(answers: Answers, right: Mask) -> tuple[dict[str, Any] | None, dict[str, Metric]]:
    """The reliability table with its error, and as metrics: of the answers given, how right against how sure."""
    known = np.array([value is not None for value in answers.confidences]) & answers.asked
    if not known.any() or (answers.asked & ~known).any():
        return None, {}
    confidence = np.array([value or 0.0 for value in answers.confidences])
    bins = answer_metrics.bin_of(confidence)
    table = np.zeros((len(right), 3, answer_metrics.BINS))
    at = np.arange(len(right))
    table[at, 0, bins], table[at, 1, bins], table[at, 2, bins] = 1, confidence, right
    rows = table.reshape(len(right), -1)
    error = Summed(rows, answer_metrics.calibration_error)
    brier = _mean((confidence - right) ** 2)
    sums = (answers.asked.astype(np.float64) @ rows).reshape(3, answer_metrics.BINS)
    figures: dict[str, Metric] = {"ece": error, "brier": brier}
    mask = answers.asked[None, :].astype(np.float64)
    listed = [
        {
            "low": k / answer_metrics.BINS,
            "high": (k + 1) / answer_metrics.BINS,
            "n": int(sums[0, k]),
            "confidence": sums[1, k] / sums[0, k],
            "accuracy": sums[2, k] / sums[0, k],
        }
        for k in range(answer_metrics.BINS)
        if sums[0, k]
    ]
    whole = {name: float(figure.over(mask)[0]) for name, figure in figures.items()}
    return {"n": int(known.sum()), **whole, "bins": listed}, figures


def _extract(task: Task, records: Sequence[Record], answers: Answers) -> Scored:
    wanted = [answer_metrics.parse(record.answer) for record in records]
    for record, value in zip(records, wanted, strict=True):
        if value is answer_metrics.INVALID:
            raise DataError(_where(record) + "the answer wanted is not JSON")
    given = [answer_metrics.parse((text or "").strip()) for text in answers.texts]
    valid = np.array([value is not answer_metrics.INVALID for value in given])
    fits = np.array([value is not answer_metrics.INVALID and task.fits_schema(value) for value in given])
    right = np.array([answer_metrics.equal(a, b) for a, b in zip(wanted, given, strict=True)])
    counts = np.array(
        [answer_metrics.field_counts(a, b) for a, b in zip(wanted, given, strict=True)], np.float64
    )  # (n, 3)
    return Scored(
        asked=answers.asked,
        right=right,
        score=_f1(counts),
        metrics={
            "exact_match": _mean(right),
            "valid_json": _mean(valid),
            "valid_schema": _mean(fits),
            "field_precision": Summed(counts, lambda sums: _share(sums[:, 0], sums[:, 1])),
            "field_recall": Summed(counts, lambda sums: _share(sums[:, 0], sums[:, 2])),
            "field_f1": Summed(counts, _f1),
        },
        facts={
            "fields": answer_metrics.per_field((wanted[k], given[k]) for k in np.flatnonzero(answers.asked).tolist())
        },
        invalid=int((answers.asked & ~valid).sum()),
    )


def _f1(counts: Floats) -> Floats:
    return _share(2 * counts[:, 0], counts[:, 1] + counts[:, 2])


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _generate(task: Task, records: Sequence[Record], answers: Answers) -> Scored:
    texts = [text or "" for text in answers.texts]
    wanted = [answer_metrics.words(record.answer) for record in records]
    given = [answer_metrics.words(text) for text in texts]
    pairs = list(zip(wanted, given, strict=True))
    right = np.array([a == b for a, b in pairs])
    f1 = np.array([answer_metrics.token_f1(a, b) for a, b in pairs])
    grams = [answer_metrics.chrf_counts(record.answer, text) for record, text in zip(records, texts, strict=True)]
    return Scored(
        asked=answers.asked,
        right=right,
        score=f1,
        metrics={
            "token_f1": _mean(f1),
            "exact_match": _mean(right),
            "rouge_l": _mean([answer_metrics.rouge_l(a, b) for a, b in pairs]),
            "chrf": Summed(np.array(grams, np.float64), answer_metrics.chrf),
        },
        facts={},
        invalid=sum(bool(answers.asked[k]) and not texts[k].strip() for k in range(len(texts))),
    )


def _where(record: Record) -> str:
    return f"{record.source['file']} row {record.source['row']}: "
