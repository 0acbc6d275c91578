"""Two models on the same rows: how far apart they are, whether that is chance, and where it comes from."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slmctl.metrics.statistics import (
    detectable,
    detectable_share,
    difference_interval,
    holm,
    mcnemar,
    no_difference,
    percentiles,
    resamples,
)
from slmctl.stages.evaluate.scoring import SHARES, Floats, Mask, Scored, distributions
from slmctl.task.contract import Task
from slmctl.task.records import Record

MIN_ROWS = 10  # of a slice: fewer tell nothing
MAX_GROUPS = 50  # slices by group, the largest ones
MAX_SLICES = 10  # listed for each pair; all are tested
QUANTILES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995)  # for gates, see `gates`

Slice = tuple[str, str, Mask]  # by what, its name, its rows


def slices_of(task: Task, records: Sequence[Record], *, named: bool = False) -> list[Slice]:
    """The parts of the rows that are looked at on their own: by label, source file, input length and group.

    The lengths are cut at the quartiles. A part with fewer than MIN_ROWS rows, or with all of them, is left out.
    A group may be a customer, so unless `named` it goes by its place among the largest: `#1`.
    """
    lengths = np.array([len(record.input) for record in records])
    cuts = sorted({int(cut) for cut in np.quantile(lengths, (0.25, 0.5, 0.75), method="lower")})
    bounds = [0, *(cut + 1 for cut in cuts), int(lengths.max()) + 1]
    spans = [f"{low} to {high - 1} characters" for low, high in itertools.pairwise(bounds)]
    keys: dict[str, list[str]] = {
        "label": [record.answer if task.kind == "classify" else "" for record in records],
        "source": [str(record.source["file"]) for record in records],
        "length": [spans[int(k)] for k in np.searchsorted(bounds, lengths, side="right") - 1],
        "group": [record.group or "" for record in records],
    }
    found = []
    for by, values in keys.items():
        counts = Counter(value for value in values if value).most_common()
        large = [name for name, n in counts if MIN_ROWS <= n < len(records)]
        names = large[:MAX_GROUPS] if by == "group" else sorted(large, key=lambda name: _place(by, name, spans))
        for place, name in enumerate(names, 1):
            shown = f"#{place}" if by == "group" and not named else name
            found.append((by, shown, np.array([value == name for value in values])))
    return found


def _place(by: str, name: str, spans: Sequence[str]) -> tuple[int, str]:
    return (spans.index(name), "") if by == "length" else (0, name)


def compare(
    scored: Mapping[str, Scored],
    drawn: Mapping[bytes, Mapping[str, Mapping[str, Floats]]],
    sliced: Sequence[Slice],
    confidence: float,
) -> dict[str, dict[str, Any]]:
    """Every pair of participants, `first|second`, on the rows that both answered; a difference is second less first.

    Args:
        scored: The participants, in order.
        drawn: By set of rows (`mask.tobytes()`) the bootstrap values of everyone there, see `distributions`.
        sliced: The parts of the rows to look at.
        confidence: Of the intervals; tests are at 1 less it.
    """
    drawn = dict(drawn)
    table = {}
    for one, two in itertools.combinations(scored, 2):
        first, second = scored[one], scored[two]
        mask = first.asked & second.asked
        if not mask.any():
            continue
        key = mask.tobytes()
        if key not in drawn:
            drawn[key] = distributions(dict(scored), mask)
        a, b = first.right & mask, second.right & mask
        only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
        both, n = int((a & b).sum()), int(mask.sum())
        counts = {"both": both, "only_first": only_first, "only_second": only_second}
        tested = _test_slices(first, second, mask, sliced)
        table[f"{one}|{two}"] = {
            "n": n,
            **counts,
            "neither": n - sum(counts.values()),
            "metrics": {
                name: _share(first, second, name, mask, confidence)
                if name in SHARES
                else _figure(first, second, name, mask, drawn[key][one][name], drawn[key][two][name], confidence)
                for name in first.metrics
                if name in second.metrics
            },
            "slices": tested[:MAX_SLICES],
            "slices_tested": len(tested),
        }
    return table


def _share(first: Scored, second: Scored, name: str, mask: Mask, confidence: float) -> dict[str, Any]:
    """Two shares of the same rows: exact McNemar, Tango's interval."""
    a, b = (one.metrics[name].rows[:, 0] > 0 for one in (first, second))  # type: ignore[attr-defined] # a mean
    only_first, only_second, n = int((a & ~b & mask).sum()), int((b & ~a & mask).sum()), int(mask.sum())
    return {
        "difference": (only_second - only_first) / n,
        "interval": list(difference_interval(only_first, only_second, n, confidence)),
        "p": mcnemar(only_first, only_second),
        "detectable": detectable_share(only_first + only_second, n, confidence),
        "test": "mcnemar",
        "only_first": only_first,
        "only_second": only_second,
    }


def _figure(
    first: Scored, second: Scored, name: str, mask: Mask, one: Floats, two: Floats, confidence: float
) -> dict[str, Any]:
    """Two figures of the same rows that are no shares: the paired percentile bootstrap."""
    differences = two - one
    return {
        "difference": second.value(name, mask) - first.value(name, mask),
        "interval": list(percentiles(differences, confidence)),
        "p": no_difference(differences),
        "detectable": detectable(float(differences.std(ddof=1)), confidence),
        "test": "bootstrap",
        "quantiles": {f"{q:g}": float(np.quantile(differences, q)) for q in QUANTILES},
    }


def _test_slices(first: Scored, second: Scored, mask: Mask, sliced: Sequence[Slice]) -> list[dict[str, Any]]:
    """The slices of one pair, the likeliest real difference first; p-values also after Holm over all of them."""
    found: list[dict[str, Any]] = []
    primary = next(iter(first.metrics))
    for by, name, rows in sliced:
        both = mask & rows
        if both.sum() < MIN_ROWS:
            continue
        if primary in SHARES:
            a, b = first.right & both, second.right & both
            p = mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))
            difference = float(b.sum() - a.sum()) / float(both.sum())
        else:
            apart = (second.score - first.score)[both]
            difference, p = float(apart.mean()), _mean_test(apart)
        found.append({"by": by, "name": name, "n": int(both.sum()), "difference": difference, "p": p})
    for entry, raised in zip(found, holm([entry["p"] for entry in found]), strict=True):
        entry["p_holm"] = raised
    # in nine digits: what is equal but for the last bit keeps its order on every machine
    return sorted(found, key=lambda entry: (float(f"{entry['p']:.9g}"), -round(abs(entry["difference"]), 9)))


def _mean_test(apart: Floats) -> float:
    if not apart.any():
        return 1.0
    means = np.concatenate([weights @ apart.astype(np.float32) for weights in resamples(len(apart))])
    return no_difference(np.asarray(means, np.float64))
