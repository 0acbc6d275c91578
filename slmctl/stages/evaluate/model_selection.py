"""GGUF files on validation rows -> the file to release; models and
prices -> the break-even with an API.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from slmctl.config import Choose, MachinePrices
from slmctl.metrics.answer_metrics import SHARES
from slmctl.metrics.statistics import design_effect, drop_bound, percentiles
from slmctl.models import class_of
from slmctl.reports.evaluation_report import (
    BreakEven,
    CandidateEntry,
    ChoiceEntry,
    CostEntry,
    ModelFacts,
    ParticipantEntry,
)
from slmctl.stages.evaluate.scoring import Scored, distributions

CONFIDENCE = 0.95  # of the one-sided upper bound of each loss


def choose(
    rule: Choose, metric: str, scored: Mapping[str, Scored], facts: Mapping[str, ModelFacts]
) -> ChoiceEntry:
    """The smallest GGUF file whose loss on validation rows is within the rule, and that is fast
    enough.

    The observed loss decides. A gate on test rows then bounds the loss of the chosen file.

    `scored` and `facts` are by name of the file; each file is compared with the largest.
    """
    of = max(scored, key=lambda name: (_size(facts[name]), name))
    candidates = [
        _candidate(name, scored[of], file, metric, facts[name], rule)
        for name, file in sorted(scored.items(), key=lambda item: (_size(facts[item[0]]), item[0]))
    ]
    fitting = [candidate for candidate in candidates if candidate["within"] and candidate["fast"]]
    return {
        "model": fitting[0]["model"] if fitting else None,
        "of": of,
        "metric": metric,
        "smallest_within": rule.smallest_within,
        "min_tokens_per_s": rule.min_tokens_per_s,
        "split": "validation",
        "n": len(scored[of].right),
        "candidates": candidates,
    }


def _size(facts: ModelFacts) -> int:
    return facts.get("size") or 0


def _candidate(
    name: str, reference: Scored, file: Scored, metric: str, facts: ModelFacts, rule: Choose
) -> CandidateEntry:
    value = file.value(metric)
    loss = reference.value(metric) - value
    least = rule.min_tokens_per_s
    speed = facts.get("tokens_per_s")
    return {
        "model": name,
        "size": _size(facts),
        "value": value,
        "loss": loss,
        "loss_at_most": _bound(reference, file, metric),
        "tokens_per_s": speed,
        "within": loss <= rule.smallest_within + 1e-12,
        "fast": least is None or (speed is not None and speed >= least),
    }


def _bound(reference: Scored, file: Scored, metric: str) -> float:
    if file is reference:
        return 0.0
    if metric in SHARES:
        a, b = (model.metrics[metric].rows[:, 0] > 0 for model in (reference, file))  # type: ignore[attr-defined] # a mean
        effect = design_effect(b.astype(np.float64) - a, reference.groups)
        only_first, only_second = (
            int((one & ~other).sum()) / effect for one, other in ((a, b), (b, a))
        )
        return drop_bound(only_first, only_second, len(a) / effect, CONFIDENCE)
    drawn = distributions({"reference": reference, "file": file}, reference.sent & file.sent)
    return percentiles(drawn["reference"][metric] - drawn["file"][metric], 2 * CONFIDENCE - 1)[1]


def break_even(
    prices: MachinePrices | None, models: Mapping[str, ParticipantEntry]
) -> BreakEven | None:
    """Price of 1,000 rows on your own machine at full load, and at an API's price for the same
    tokens.

    Above `break_even_rows_per_hour` the machine, which costs the same at any load, is the cheaper
    one; `share_of_capacity` is that rate over the machine's rate. An endpoint has only the price of
    its tokens.
    """
    if prices is None:
        return None
    costs: dict[str, CostEntry] = {}
    for name, model in models.items():
        tokens = model.get("tokens")
        rate = model.get("rows_per_s")
        n = model["n"]
        if not tokens or not n:
            continue
        api = prices.of_tokens(tokens["prompt"], tokens["completion"]) / n
        entry: CostEntry = {"api_per_1000_rows": 1000 * api}
        if not class_of(model["kind"]).is_remote and rate:
            hourly = rate * 3600
            entry["rows_per_hour"] = hourly
            entry["machine_per_1000_rows"] = 1000 * prices.machine_per_hour / hourly
            if api > 0:
                even = prices.machine_per_hour / api
                entry["break_even_rows_per_hour"], entry["share_of_capacity"] = even, even / hourly
        costs[name] = entry
    return {
        "machine_per_hour": prices.machine_per_hour,
        "api_per_million_input_tokens": prices.input,
        "api_per_million_output_tokens": prices.output,
        "currency": prices.currency,
        "models": costs,
    }
