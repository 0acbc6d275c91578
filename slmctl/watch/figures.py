"""Requests and decided rows of a window of time -> estimated and verified accuracy, shares, length, labels and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from slmctl.config import Prices
from slmctl.metrics import answer_metrics
from slmctl.metrics.verified_accuracy import WeightedShare, post_stratified, weighted_share, wrong_bound
from slmctl.production.records import CollectedRow, Review
from slmctl.watch.traffic import KEPT, Floats, Traffic, seconds_of

LABELS = 10  # most frequent labels that a window lists
STRATA = 5  # equal parts of p_correct by which picked rows are weighed


@dataclass(frozen=True)
class Verified:
    """The decisions of people about the answers of a window.

    Attributes:
        uniform: The local model's accuracy, by the rows that were drawn by chance alone.
        rows: Number of decided rows, picked ones among them.
        weighted: The accuracy by all of them, weighed by p_correct; None where that cannot be known.
        kept_rows, kept_wrong: Of the uniform rows, those that the policy kept, and the wrong ones among them.
        kept_bound: Upper bound of the share of wrong answers among kept ones, at 95 %; None without rows.
    """

    uniform: WeightedShare
    rows: int
    weighted: float | None = None
    kept_rows: int = 0
    kept_wrong: int = 0
    kept_bound: float | None = None


@dataclass(frozen=True)
class Cost:
    """Money of a window, in the currency of the prices.

    Attributes:
        paid: For the general model's answers.
        avoided: What the general model would have cost for the answers given here.
        machine: The machine's price.
    """

    paid: float
    avoided: float
    machine: float
    currency: str

    @property
    def savings(self) -> float:
        """Below 0, the machine does not pay."""
        return self.avoided - self.machine


@dataclass(frozen=True)
class WindowFigures:
    """The figures of one window; a share is None where the requests do not say.

    Attributes:
        begin, end: Seconds since 1970, the end excluded.
        requests: Their number; of a sample, that of the sample.
        estimated: Mean p_correct: the accuracy that the policy expects.
        kept, escalated, novel: Shares of the requests.
        length: Mean length of the prompts.
        verified: None without a decided row.
        labels: Shares of the most frequent labels.
        cost: None without prices.
    """

    begin: float
    end: float
    requests: int
    estimated: float | None
    kept: float
    escalated: float
    novel: float | None
    length: float | None
    verified: Verified | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    cost: Cost | None = None


def window_figures(
    traffic: Traffic,
    collected: Sequence[CollectedRow],
    reviews: Sequence[Review],
    *,
    begin: float,
    end: float,
    prices: Prices | None = None,
) -> WindowFigures:
    """The figures of the requests from `begin` to just before `end`."""
    part = traffic.only((traffic.seconds >= begin) & (traffic.seconds < end))
    rows = {row.id: row for row in collected}
    here = [row for row in collected if begin <= seconds_of(row.time) < end]
    decided = [review for review in reviews if begin <= _seen(review, rows) < end]
    n = len(part)
    return WindowFigures(
        begin, end, n, _mean(part.p_correct), _share(part.kept), _share(part.escalated), _mean(part.novel),
        _mean(part.length), _verified(decided, rows, part.p_correct) if decided else None, label_shares(here),
        _cost(part, prices, end - begin) if prices is not None and n else None,
    )  # fmt: skip


def label_shares(rows: Sequence[CollectedRow]) -> dict[str, float]:
    """The most frequent labels and their shares of the traffic, by the inclusion probabilities of collected rows."""
    weights: dict[str, float] = {}
    for row in rows:
        if row.labels and row.probability > 0:
            label = row.local.strip()
            weights[label] = weights.get(label, 0.0) + 1 / row.probability
    total = sum(weights.values())
    ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:LABELS]
    return {label: weight / total for label, weight in ranked}


def is_right(review: Review, row: CollectedRow | None) -> bool:
    """True where the local model's answer is what the reviewer says is right."""
    answer, after = (row.local if row is not None else review.before).strip(), review.after.strip()
    if answer == after:
        return True
    if row is not None and row.labels:
        return False
    value = answer_metrics.parse(answer)
    if isinstance(value, dict):
        return answer_metrics.equal(answer_metrics.parse(after), value)
    return answer_metrics.same_text(after, answer)


def _seen(review: Review, rows: Mapping[str, CollectedRow]) -> float:
    """The time of the answer, in seconds; NaN for a row that no server collected."""
    time = rows[review.id].time if review.id in rows else review.seen
    try:
        return seconds_of(time)
    except (ValueError, OverflowError):
        return math.nan


def _verified(reviews: Sequence[Review], rows: Mapping[str, CollectedRow], p_correct: Floats) -> Verified:
    """The accuracy by the decided rows of a window."""
    uniform = [review for review in reviews if review.uniform and 0 < review.probability <= 1]
    right = [is_right(review, rows.get(review.id)) for review in uniform]
    share = weighted_share(right, [review.probability for review in uniform])
    kept = [ok for ok, review in zip(right, uniform, strict=True) if _is_kept(rows.get(review.id))]
    bound = wrong_bound(kept) if kept else None
    weighted = _weighted(reviews, rows, p_correct)
    return Verified(share, len(reviews), weighted, len(kept), len(kept) - sum(kept), bound)


def _is_kept(row: CollectedRow | None) -> bool:
    return row is not None and row.reason == KEPT


def _weighted(reviews: Sequence[Review], rows: Mapping[str, CollectedRow], p_correct: Floats) -> float | None:
    """The accuracy by all decided rows, each for those of the traffic with about its p_correct."""
    joined = [(review, rows[review.id]) for review in reviews if review.id in rows]
    sure = [(is_right(review, row), row.p_correct) for review, row in joined if row.p_correct is not None]
    expected = p_correct[~np.isnan(p_correct)]
    if not sure or not len(expected):
        return None
    edges = np.quantile(expected, np.arange(1, STRATA) / STRATA)
    strata = np.searchsorted(edges, [value for _, value in sure], "right")
    sizes = np.bincount(np.searchsorted(edges, expected, "right"), minlength=STRATA)
    return post_stratified([ok for ok, _ in sure], strata.tolist(), sizes.tolist())


def _cost(part: Traffic, prices: Prices, seconds: float) -> Cost | None:
    if np.isnan(part.prompt_tokens).any():
        return None
    price = (
        part.prompt_tokens * prices.api_per_million_input_tokens
        + part.completion_tokens * prices.api_per_million_output_tokens
    ) / 1e6
    paid, avoided = float(price[part.escalated].sum()), float(price[~part.escalated].sum())
    return Cost(paid, avoided, prices.machine_per_hour * seconds / 3600, prices.currency)


def _mean(values: Floats) -> float | None:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else None


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else 0.0
