"""Scored models -> differences of every pair on the same rows: intervals,
tests, and the slices that differ most.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from slmctl.metrics.answer_metrics import SHARES
from slmctl.metrics.statistics import (
    bootstrap_p_value,
    design_effect,
    detectable,
    detectable_share,
    difference_interval,
    holm,
    mcnemar,
    percentiles,
    resamples,
)
from slmctl.reports.evaluation_report import MetricDifference, PairEntry, SliceDifference
from slmctl.stages.evaluate.scoring import Floats, Mask, Scored, distributions
from slmctl.task import tool_calls
from slmctl.task.contract import Task
from slmctl.task.documents import page_breaks
from slmctl.task.records import Record

MIN_ROWS = 10  # of a slice: fewer show nothing
MAX_GROUPS = 50  # slices by group, the largest ones
MANY_PAGES = 100_000
PAGES = ((1, 2), (3, 5), (6, 15), (16, MANY_PAGES))  # of documents, in slices
MAX_SLICES = 10  # listed for each pair; all are tested
# bounds for gates
QUANTILES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995)

Slice: TypeAlias = tuple[str, str, Mask]  # criterion, name, rows


def slices_of(task: Task, records: Sequence[Record], *, named: bool) -> list[Slice]:
    """Slices of the rows by label, source file, pages, input length (cut at the quartiles) and
    group.

    A slice with fewer than MIN_ROWS rows, or with all of them, is left out. A group may be a
    customer, so its name is its rank by size, `#1`, unless `named`.
    """
    lengths = np.array([len(record.input) for record in records])
    cuts = sorted({int(cut) for cut in np.quantile(lengths, (0.25, 0.5, 0.75), method="lower")})
    bounds = [0, *(cut + 1 for cut in cuts), int(lengths.max()) + 1]
    spans = [f"{low} to {high - 1} characters" for low, high in itertools.pairwise(bounds)]
    keys: dict[str, list[str]] = {
        "label": [record.answer if task.rules.chooses else "" for record in records],
        "tool": [_tool(record.answer) if task.rules.calls else "" for record in records],
        "source": [str(record.source["file"]) for record in records],
        "pages": [_pages(record.input) if task.document is not None else "" for record in records],
        "length": [spans[int(k)] for k in np.searchsorted(bounds, lengths, side="right") - 1],
        "group": [record.group or "" for record in records],
    }
    slices = []
    for by, values in keys.items():
        counts = Counter(value for value in values if value).most_common()
        large = [name for name, n in counts if MIN_ROWS <= n < len(records)]
        names = (
            large[:MAX_GROUPS]
            if by == "group"
            else sorted(large, key=lambda name: _place(by, name, spans))
        )
        for place, name in enumerate(names, 1):
            title = f"#{place}" if by == "group" and not named else name
            slices.append((by, title, np.array([value == name for value in values])))
    return slices


def _pages(text: str) -> str:
    count = len(page_breaks(text)) + 1
    low, high = next((low, high) for low, high in PAGES if count <= high)
    return f"{low} to {high} pages" if high < MANY_PAGES else f"{low} pages and more"


def _tool(answer: str) -> str:
    call = tool_calls.read_answer(answer)
    return tool_calls.NO_CALL if call is None else call.name


def _place(by: str, name: str, spans: Sequence[str]) -> tuple[int, str]:
    return (spans.index(name), "") if by == "length" else (0, name)


def compare(
    scored: Mapping[str, Scored],
    drawn: Mapping[bytes, Mapping[str, Mapping[str, Floats]]],
    sliced: Sequence[Slice],
    confidence: float,
) -> dict[str, PairEntry]:
    """Every pair of participants, `first|second`, on the rows sent to both; a difference is second
    less first.

    `drawn` holds `distributions` by set of rows (`mask.tobytes()`), `confidence` is the coverage of
    the intervals.
    """
    drawn = dict(drawn)
    table: dict[str, PairEntry] = {}
    for name, other in itertools.combinations(scored, 2):
        first, second = scored[name], scored[other]
        mask = first.sent & second.sent
        if not mask.any():
            continue
        key = mask.tobytes()
        if key not in drawn:
            drawn[key] = distributions(scored, mask)
        a, b = first.right & mask, second.right & mask
        only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
        both, n = int((a & b).sum()), int(mask.sum())
        tested = _test_slices(first, second, mask, sliced)
        table[f"{name}|{other}"] = {
            "n": n,
            "both": both,
            "only_first": only_first,
            "only_second": only_second,
            "neither": n - both - only_first - only_second,
            "metrics": compare_on(
                first, second, mask, (drawn[key][name], drawn[key][other]), confidence
            ),
            "slices": tested[:MAX_SLICES],
            "slices_tested": len(tested),
        }
    return table


def compare_on(
    first: Scored,
    second: Scored,
    rows: Mask,
    drawn: tuple[Mapping[str, Floats], Mapping[str, Floats]],
    confidence: float,
) -> dict[str, MetricDifference]:
    """Every metric that both have, second less first, on `rows` that were sent to both.

    `drawn` holds the `distributions` of both over these rows, `confidence` is the coverage of the
    intervals.
    """
    return {
        name: _share(first, second, name, rows, confidence)
        if name in SHARES
        else _figure(first, second, name, rows, drawn[0][name], drawn[1][name], confidence)
        for name in first.metrics
        if name in second.metrics
    }


def _share(
    first: Scored, second: Scored, name: str, mask: Mask, confidence: float
) -> MetricDifference:
    """Two shares of the same rows: exact McNemar test, Tango's interval."""
    a, b = (model.metrics[name].rows[:, 0] > 0 for model in (first, second))  # type: ignore[attr-defined] # a mean
    only_first = int((a & ~b & mask).sum())
    only_second = int((b & ~a & mask).sum())
    n = int(mask.sum())
    effect = design_effect(b[mask].astype(np.float64) - a[mask], first.groups[mask])
    difference: MetricDifference = {
        "difference": (only_second - only_first) / n,
        "interval": list(
            difference_interval(only_first / effect, only_second / effect, n / effect, confidence)
        ),
        "p": mcnemar(only_first, only_second, effect),
        "detectable": detectable_share((only_first + only_second) / effect, n / effect, confidence),
        "test": "mcnemar",
        "only_first": only_first,
        "only_second": only_second,
    }
    if effect > 1:
        difference |= {"design_effect": effect, "groups": len(np.unique(first.groups[mask]))}
    return difference


def _figure(
    first: Scored,
    second: Scored,
    name: str,
    mask: Mask,
    first_drawn: Floats,
    second_drawn: Floats,
    confidence: float,
) -> MetricDifference:
    """Two metrics of the same rows that are not shares: paired percentile bootstrap."""
    differences = second_drawn - first_drawn
    return {
        "difference": second.value(name, mask) - first.value(name, mask),
        "interval": list(percentiles(differences, confidence)),
        "p": bootstrap_p_value(differences),
        "detectable": detectable(float(differences.std(ddof=1)), confidence),
        "test": "bootstrap",
        "quantiles": {f"{q:g}": float(np.quantile(differences, q)) for q in QUANTILES},
    }


def _test_slices(
    first: Scored, second: Scored, mask: Mask, sliced: Sequence[Slice]
) -> list[SliceDifference]:
    """The slices of one pair by p-value, also after Holm's correction over all of them."""
    tests: list[SliceDifference] = []
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
        tests.append(
            {
                "by": by,
                "name": name,
                "n": int(both.sum()),
                "difference": difference,
                "p": p,
                "p_holm": 1.0,
            }
        )
    for entry, corrected in zip(tests, holm([entry["p"] for entry in tests]), strict=True):
        entry["p_holm"] = corrected
    # in nine digits, so that values that differ in the last bit keep their order on every machine
    return sorted(
        tests, key=lambda entry: (float(f"{entry['p']:.9g}"), -round(abs(entry["difference"]), 9))
    )


def _mean_test(apart: Floats) -> float:
    """Two-sided p-value of a mean row-wise difference of 0, by bootstrap."""
    if not apart.any():
        return 1.0
    means = np.concatenate(
        [weights @ apart.astype(np.float32) for weights in resamples(len(apart))]
    )
    return bootstrap_p_value(np.asarray(means, np.float64))
