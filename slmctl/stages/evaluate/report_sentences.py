"""A report in sentences: what its reader should see first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

FEW_ROWS = 200  # below this, an interval of a share is wider than ten points


def remarks(report: dict[str, Any]) -> list[str]:
    """Plain sentences, the most important first: a baseline that wins is always the first of them."""
    return [*_baselines(report), *_choice(report), *_focus(report), *_slices(report), *_rows(report)]


def pair(report: dict[str, Any], first: str, second: str, metric: str) -> tuple[float, float, float, float] | None:
    """Difference (second less first), its interval, and the smallest one that would have been seen."""
    forth, back = report["pairs"].get(f"{first}|{second}"), report["pairs"].get(f"{second}|{first}")
    found = (forth or back or {"metrics": {}})["metrics"].get(metric)
    if found is None:
        return None
    low, high = found["interval"]
    if forth is None:
        return -found["difference"], -high, -low, found["detectable"]
    return found["difference"], low, high, found["detectable"]


def _baselines(report: dict[str, Any]) -> Iterator[str]:
    metric = report["primary_metric"]
    tuned = {name: m for name, m in report["models"].items() if m["kind"] not in ("base", "endpoint")}
    if not tuned:
        return
    best = max(
        (name for name in report["participants"] if name in tuned), key=lambda name: tuned[name]["metrics"][metric]
    )
    ours = tuned[best]["metrics"][metric]
    doubtful = []
    for name, baseline in report["baselines"].items():
        theirs = baseline["metrics"][metric]
        if theirs >= ours:
            wins = "the cheaper and better choice" if theirs > ours else "as good, and cheaper"
            yield (
                f"The baseline {name} scores {theirs:.1%}, the best model ({best}) {ours:.1%}: "
                f"on these rows the baseline is {wins}."
            )
            continue
        found = pair(report, name, best, metric)
        if found is not None and found[1] <= 0:
            doubtful.append(
                f"The baseline {name} scores {theirs:.1%}, {best} {ours:.1%}: the difference of {_points(found[0])} "
                f"({_range(found)}) may be chance; {report['n']} rows would have shown {_points(found[3])} "
                f"with a chance of {report['power']:.0%}."
            )
    yield from doubtful


def _choice(report: dict[str, Any]) -> Iterator[str]:
    choice = report["choice"]
    if choice is None:
        return
    rule = f"within {_points(choice['smallest_within'])} {choice['metric']} of {choice['of']}"
    if choice["min_tokens_per_s"] is not None:
        rule += f" and at {choice['min_tokens_per_s']:g} tokens/s or more"
    where = f"{choice['n']} {choice['split']} rows"
    if choice["model"] is None:
        yield f"No GGUF file is {rule} on {where}: none is chosen, and none will be published."
        return
    found = next(one for one in choice["candidates"] if one["model"] == choice["model"])
    yield (
        f"Chosen: {choice['model']}, the smallest file {rule} on {where} "
        f"(loss {_points(found['loss'])}, at most {_points(found['loss_at_most'])})."
    )


def _focus(report: dict[str, Any]) -> Iterator[str]:
    """The model that would ship beside the one it was made from, and beside each general model."""
    metric, focus = report["primary_metric"], report["focus"]
    for name in report["participants"]:
        kind = report["models"].get(name, {}).get("kind")
        if name == focus or kind not in ("adapter", "merged", "endpoint"):
            continue
        found = pair(report, name, focus, metric)
        if found is None:
            continue
        difference, low, high, seen = found
        if low > 0 or high < 0:
            side = "above" if difference > 0 else "below"
            yield f"{focus} scores {_points(abs(difference))} {side} {name} ({_range(found)}): more than chance."
        else:
            yield (
                f"{focus} and {name} are not told apart: {_points(difference)} ({_range(found)}); "
                f"a true difference of {_points(seen)} would have been seen with a chance of {report['power']:.0%}."
            )


def _slices(report: dict[str, Any]) -> Iterator[str]:
    level, focus = 1 - report["confidence"], report["focus"]
    for key, found in report["pairs"].items():
        first, second = key.split("|")
        if focus not in (first, second):
            continue
        other, sign = (first, 1) if second == focus else (second, -1)
        if report["models"].get(other, {}).get("kind") == "base":
            continue
        worse = [s for s in found["slices"] if s["p_holm"] < level and sign * s["difference"] < 0]
        for one in worse[:3]:
            yield (
                f"On the rows with {one['by']} {one['name']} (n={one['n']}) {focus} scores "
                f"{_points(abs(one['difference']))} below {other}, more than chance over {found['slices_tested']} "
                f"slices (Holm, p={one['p_holm']:.2g})."
            )


def _rows(report: dict[str, Any]) -> Iterator[str]:
    for name, model in report["models"].items():
        if model["not_sent"]:
            yield (
                f"{model['not_sent']} rows are marked sensitive and were not sent to {name}: "
                "it is compared on the others."
            )
        if model["failed"]:
            yield f"{name} gave no answer to {model['failed']} rows: they count as wrong."
    if report["n"] < FEW_ROWS:
        yield f"Only {report['n']} rows were measured: the intervals are wide."


def _points(share: float) -> str:
    """`1.6 points`: differences of shares are said in points, since percent would be ambiguous."""
    return f"{100 * share:.1f} points"


def _range(found: tuple[float, float, float, float]) -> str:
    return f"{100 * found[1]:+.1f} to {100 * found[2]:+.1f}"
