"""Which file is good enough, and from how many rows on a machine of one's own is the cheaper one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmctl.config import Choose, Prices
from slmctl.errors import UsageError
from slmctl.metrics.statistics import drop_bound, percentiles
from slmctl.stages.evaluate.scoring import SHARES, Scored, distributions

CONFIDENCE = 0.95  # one-sided, of the bound that is shown beside each loss


def choose(
    wanted: Choose, primary: str, scored: Mapping[str, Scored], facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The smallest GGUF file whose loss on validation rows is within what is allowed, and fast enough.

    The loss that was seen decides; a gate on test rows then says what is proven of the file chosen.

    Args:
        wanted: What is allowed.
        primary: The metric, when the config names none.
        scored: The files by name, measured on the validation rows.
        facts: Their sizes and speeds.

    Raises:
        UsageError: The file to compare with, or the metric, was not measured.
    """
    metric = wanted.metric or primary
    of = wanted.reference or max(scored, key=lambda name: (facts[name]["size"], name))
    if of not in scored:
        raise UsageError(
            f"evaluate.choose compares with '{of}', which is not among the GGUF files",
            hint=f"quantize.types holds: {', '.join(scored) or 'none'}",
        )
    if metric not in scored[of].metrics or metric in ("ece", "brier"):
        known = ", ".join(name for name in scored[of].metrics if name not in ("ece", "brier"))
        raise UsageError(f"evaluate.choose cannot go by the metric '{metric}'", hint=f"measured: {known}")
    candidates = [
        _candidate(name, scored[of], one, metric, facts[name], wanted)
        for name, one in sorted(scored.items(), key=lambda item: (facts[item[0]]["size"], item[0]))
    ]
    fit = [candidate for candidate in candidates if candidate["within"] and candidate["fast"]]
    return {
        "model": fit[0]["model"] if fit else None,
        "of": of,
        "metric": metric,
        "smallest_within": wanted.smallest_within,
        "min_tokens_per_s": wanted.min_tokens_per_s,
        "split": "validation",
        "n": len(scored[of].right),
        "candidates": candidates,
    }


def _candidate(
    name: str, reference: Scored, one: Scored, metric: str, facts: Mapping[str, Any], wanted: Choose
) -> dict[str, Any]:
    value = one.value(metric)
    loss = reference.value(metric) - value
    least = wanted.min_tokens_per_s
    speed = facts["tokens_per_s"]
    return {
        "model": name,
        "size": facts["size"],
        "value": value,
        "loss": loss,
        "loss_at_most": _bound(reference, one, metric),
        "tokens_per_s": speed,
        "within": loss <= wanted.smallest_within + 1e-12,
        "fast": least is None or (speed is not None and speed >= least),
    }


def _bound(reference: Scored, one: Scored, metric: str) -> float:
    """One-sided upper bound of the loss."""
    if one is reference:
        return 0.0
    if metric in SHARES:
        a, b = (each.metrics[metric].rows[:, 0] > 0 for each in (reference, one))  # type: ignore[attr-defined] # a mean
        return drop_bound(int((a & ~b).sum()), int((b & ~a).sum()), len(a), CONFIDENCE)
    drawn = distributions({"reference": reference, "one": one}, reference.asked & one.asked)
    return percentiles(drawn["reference"][metric] - drawn["one"][metric], 2 * CONFIDENCE - 1)[1]


def break_even(prices: Prices | None, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a row costs on a machine of one's own that is busy, and at an API's price for the same tokens.

    Above `break_even_rows_per_hour` the machine, which costs the same whether it works or not, is the
    cheaper one; `share_of_capacity` says how much of what it can do that is. An endpoint has no machine
    of ours, so only the price of its own tokens is given.
    """
    if prices is None:
        return None
    table = {}
    for name, model in models.items():
        tokens, rate, n = model["tokens"], model["rows_per_s"], model["n"]
        if not tokens or not n:
            continue
        api = (
            tokens["prompt"] * prices.api_per_million_input_tokens
            + tokens["completion"] * prices.api_per_million_output_tokens
        ) / (1e6 * n)
        entry: dict[str, Any] = {"api_per_1000_rows": 1000 * api}
        if model["kind"] != "endpoint" and rate:
            hourly = rate * 3600
            entry |= {"rows_per_hour": hourly, "machine_per_1000_rows": 1000 * prices.machine_per_hour / hourly}
            if api > 0:
                even = prices.machine_per_hour / api
                entry |= {"break_even_rows_per_hour": even, "share_of_capacity": even / hourly}
        table[name] = entry
    return prices.model_dump() | {"models": table}
