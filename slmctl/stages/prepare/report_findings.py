"""What to look at first of all that `prepare` found: one sentence each, and the part of the page that says more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slmctl.reports.html_page import Notice, count, either, percent

Facts = dict[str, Any]

FEW = 10  # test rows of a label under which its own score says next to nothing
REPEATS = ("duplicate", "conflicting duplicate", "near duplicate", "near a held-out row")  # rules about good rows
SOME = 0.01  # share of unusable rows from which a reader should know why
MANY = 0.2  # the same of all rows that were left out
CLOSE = 0.05  # share of a held-out side that has sequences in common with training from which a score is flattered


def notices(facts: Facts) -> Iterator[Notice]:
    """The worst first."""
    yield from _sensitive_kept(facts)
    yield from _unusable(facts)
    yield from _overlap(facts)
    yield from _conflicts(facts)
    yield from _slips(facts)
    yield from _few_test_rows(facts)
    yield from _odd_answers(facts)
    yield from _too_long(facts)


def labels_with_few_test_rows(facts: Facts) -> list[str]:
    """Labels with too few test rows, the fewest first; those that may be slips of another are not counted."""
    slips = {slip["label"] for slip in facts.get("label_typos", [])}
    found = {name: sides.get("test", 0) for name, sides in facts.get("labels", {}).items() if name not in slips}
    return sorted((name for name, many in found.items() if many < FEW), key=lambda name: (found[name], name))


def overlapping(side: dict[str, int]) -> float:
    """Share of the rows of a side, of those long enough to tell, that share a sequence with a training row."""
    return side["overlapping"] / side["measured"] if side["measured"] else 0.0


def _sensitive_kept(facts: Facts) -> Iterator[Notice]:
    kept = [entry for entry in facts.get("sensitive", []) if entry["action"] == "keep" and entry["count"]]
    if kept:
        total, kinds = sum(entry["count"] for entry in kept), ", ".join(sorted({entry["kind"] for entry in kept}))
        yield Notice(
            f"{count(total, 'finding')} of personal data or secrets {either(total, 'stays', 'stay')} in the rows by "
            f"policy ({kinds}): a model can repeat what it was trained on.",
            "bad",
            "Personal data and secrets",
        )


def _unusable(facts: Facts) -> Iterator[Notice]:
    rules = {rule: many for rule, many in facts.get("rejected_by_reason", {}).items() if rule not in REPEATS}
    total, rows = sum(rules.values()), max(facts["rows_in"], 1)
    if total > SOME * rows:
        worst = min(rules, key=lambda name: (-rules[name], name))
        told = f"{count(total, 'row')} ({percent(total / rows)}) {either(total, 'is', 'are')} unusable"
        more = f", most of them as “{worst}” ({rules[worst]:,})" if len(rules) > 1 else f": {worst}"
        yield Notice(f"{told}{more}.", "warn", "Where the rows went")
    elif facts.get("rejected", 0) > MANY * rows:
        told = f"{percent(facts['rejected'] / rows)} of the rows were left out, nearly all because others say the same."
        yield Notice(told, "warn", "Where the rows went")


def _overlap(facts: Facts) -> Iterator[Notice]:
    sides = {side: overlapping(found) for side, found in facts.get("overlap", {}).get("sides", {}).items()}
    close = [f"{percent(share)} of the {side} rows" for side, share in sides.items() if share > CLOSE]
    if close:
        yield Notice(
            f"{' and '.join(close)} share long word sequences with training rows: a score on them partly "
            "measures memory.",
            "warn",
            "Held-out rows",
        )


def _conflicts(facts: Facts) -> Iterator[Notice]:
    conflicts = facts.get("conflicts", {})
    if pairs := conflicts.get("pairs"):
        cap = f", so no model can score over {percent(conflicts['cap'])}" if "cap" in conflicts else ""
        yield Notice(
            f"{count(pairs, 'pair')} of nearly the same inputs {either(pairs, 'has', 'have')} different answers{cap}. "
            "Settling them is the cheapest way to a better model.",
            "warn",
            "Duplicates and conflicts",
        )


def _slips(facts: Facts) -> Iterator[Notice]:
    slips = facts.get("label_typos", [])
    if slips:
        first = slips[0]
        more = f", and {count(len(slips) - 1, 'more pair')} like it" if len(slips) > 1 else ""
        yield Notice(
            f"The label “{first['label']}” ({count(first['count'], 'row')}) may be a slip for “{first['likely']}”"
            f" ({first['likely_count']:,}){more}.",
            "warn",
            "Labels",
        )


def _few_test_rows(facts: Facts) -> Iterator[Notice]:
    few = labels_with_few_test_rows(facts)
    if few:
        names = ", ".join(f"“{name[:60]}”" for name in few[:3]) + (", …" if len(few) > 3 else "")
        yield Notice(
            f"{len(few)} of {count(len(facts['labels']), 'label')} {either(len(few), 'has', 'have')} fewer than {FEW} "
            f"test rows ({names}): what a model scores on {either(len(few), 'it', 'them')} alone says little.",
            "warn",
            "Labels",
        )


def _odd_answers(facts: Facts) -> Iterator[Notice]:
    odd = [f"{many:,} {name}" for name, many in facts.get("odd_answers", {}).items() if many]
    if odd:
        yield Notice(f"Some rows were kept whose answer teaches nothing: {', '.join(odd)}.", "warn", "Odd answers")


def _too_long(facts: Facts) -> Iterator[Notice]:
    tokens = facts.get("tokens", {})
    if over := tokens.get("over_length"):
        yield Notice(
            f"{count(over, 'training row')} {either(over, 'is', 'are')} longer than the {tokens['max_length']:,} "
            "tokens of finetune.max_length: finetune.too_long decides what becomes of them.",
            "warn",
            "Lengths",
        )
