"""Findings of prepare, a sentence each: the notices of the page with their sections, and the lines of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slmctl.console import percent
from slmctl.metrics.statistics import wilson
from slmctl.metrics.thin_labels import THIN, thin
from slmctl.reports.html_page import Notice, count, either
from slmctl.stages.prepare.facts import PrepareFacts, SplitOverlap

FEW = 10  # test rows of a label below which its own score says next to nothing
REPEATS = ("duplicate", "conflicting duplicate", "near duplicate", "near a held-out row")  # rules about good rows
SOME = 0.01  # share of unusable rows from which a reader should know why
MANY = 0.2  # the same of all rows that were left out
RIGHT = 0.9  # share of right answers for which intervals are given
WIDE = 5.0  # points on either side of a score from which two models can hardly be told apart
LINES = 6  # on the terminal, beside the counts of rows and the report's path
SURE = 0.8  # share of the labels that a linear model agrees with; one that knows less doubts mostly right labels
CLOSE = 0.05  # share of a held-out split that overlaps with training from which a score is flattered


def notices(facts: PrepareFacts) -> Iterator[Notice]:
    """The worst first."""
    yield from _swapped(facts)
    yield from _sensitive_kept(facts)
    yield from _slips(facts)
    yield from _unusable(facts)
    yield from _conflicts(facts)
    yield from _suspects(facts)
    yield from _overlap(facts)
    yield from _wide_interval(facts)
    yield from _thin_labels(facts)
    yield from _few_test_rows(facts)
    yield from _unused_renames(facts)
    yield from _odd_answers(facts)


def lines(facts: PrepareFacts) -> list[str]:
    """The notices and what is known before training, for the terminal: at most LINES lines, the worst first."""
    sentences = [*linear_score(facts), *score_interval(facts)]
    marked = [f"! {notice.text}" for notice in notices(facts)]
    room = LINES - len(sentences)
    if len(marked) > room:
        left = len(marked) - room + 1
        marked[room - 1 :] = [f"! {count(left, 'more thing')} to look at, in the report"]
    return marked + sentences


def linear_score(facts: PrepareFacts) -> Iterator[str]:
    """The share of the validation rows that a linear model gets right."""
    linear = facts.get("linear")
    if not linear:
        return
    low, high = linear["interval"]
    part = linear["trained_on"] < linear["train"]
    trained = f", trained on {linear['trained_on']:,} of the {linear['train']:,} training rows," if part else ""
    yield (
        f"A linear model (TF-IDF){trained} gets {percent(linear['accuracy'])} ({percent(low)} to {percent(high)}) of "
        f"{count(linear['rows'], 'validation row')} right: what must be beaten."
    )


def score_interval(facts: PrepareFacts) -> Iterator[str]:
    """The width of the interval that so many test rows leave."""
    if rows := facts.get("test", 0):
        low, high = wilson(round(RIGHT * rows), rows)
        yield (
            f"With {count(rows, 'test row')}, a score of {percent(RIGHT, 0)} means {percent(low)} to {percent(high)} "
            "(95 % interval)."
        )


def margin(rows: int) -> float:
    """Half the width of the 95 % interval of a score of 90 %, in points."""
    low, high = wilson(round(RIGHT * rows), rows)
    return 50 * (high - low)


def labels_with_few_test_rows(facts: PrepareFacts) -> list[str]:
    """Labels with too few test rows, the fewest first; those that may be slips of another are not counted."""
    slips = {slip["label"] for slip in facts.get("label_typos", [])}
    tested = {name: splits.get("test", 0) for name, splits in facts.get("labels", {}).items() if name not in slips}
    return sorted((name for name, many in tested.items() if many < FEW), key=lambda name: (tested[name], name))


def overlap_share(overlap: SplitOverlap) -> float:
    """The share of the measured rows of a split that share a sequence with a training row, 0 to 1."""
    return overlap["overlapping"] / overlap["measured"] if overlap["measured"] else 0.0


def _sensitive_kept(facts: PrepareFacts) -> Iterator[Notice]:
    kept = [entry for entry in facts.get("sensitive", []) if entry["action"] == "keep" and entry["count"]]
    if kept:
        total, kinds = sum(entry["count"] for entry in kept), ", ".join(sorted({entry["kind"] for entry in kept}))
        yield Notice(
            f"{count(total, 'finding')} of personal data or secrets {either(total, 'stays', 'stay')} in the rows by "
            f"policy ({kinds}): a model can repeat what it was trained on.",
            "bad",
            "Personal data and secrets",
        )


def _unusable(facts: PrepareFacts) -> Iterator[Notice]:
    rules = {rule: many for rule, many in facts.get("rejected_by_reason", {}).items() if rule not in REPEATS}
    total, rows = sum(rules.values()), max(facts["rows_in"], 1)
    if total > SOME * rows:
        worst = min(rules, key=lambda name: (-rules[name], name))
        sentence = f"{count(total, 'row')} ({percent(total / rows)}) {either(total, 'is', 'are')} unusable"
        rule = f", most of them as “{worst}” ({rules[worst]:,})" if len(rules) > 1 else f": {worst}"
        yield Notice(f"{sentence}{rule}.", "warn", "Kept and rejected rows")
    elif facts.get("rejected", 0) > MANY * rows:
        share = percent(facts["rejected"] / rows)
        yield Notice(f"{share} of the rows were left out, nearly all as duplicates.", "warn", "Kept and rejected rows")


def _overlap(facts: PrepareFacts) -> Iterator[Notice]:
    shares = {split: overlap_share(measure) for split, measure in facts.get("overlap", {}).get("sides", {}).items()}
    close = [f"{percent(share)} of the {split} rows" for split, share in shares.items() if share > CLOSE]
    if close:
        yield Notice(
            f"{' and '.join(close)} share long word sequences with training rows: a score on them partly "
            "measures memory.",
            "warn",
            "Held-out rows",
        )


def _conflicts(facts: PrepareFacts) -> Iterator[Notice]:
    conflicts = facts.get("conflicts", {})
    if pairs := conflicts.get("pairs"):
        cap = f", so no model can score over {percent(conflicts['cap'])}" if "cap" in conflicts else ""
        yield Notice(
            f"{count(pairs, 'pair')} of nearly the same inputs {either(pairs, 'has', 'have')} different answers{cap}. "
            "Settling them is the cheapest way to a better model.",
            "warn",
            "Duplicates and conflicts",
        )


def _suspects(facts: PrepareFacts) -> Iterator[Notice]:
    suspects = facts.get("suspects")
    if suspects and suspects["rows"] and suspects["agreement"] >= SURE:
        named = "; ".join(
            f"“{pair['label'][:60]}”, perhaps “{pair['proposed'][:60]}” ({pair['rows']:,})"
            for pair in suspects["pairs"][:3]
        )
        more = "; …" if len(suspects["pairs"]) > 3 else ""
        yield Notice(
            f"{count(suspects['rows'], 'label')} {either(suspects['rows'], 'looks', 'look')} wrong: {named}{more}. "
            "slmctl review shows them, the worst first.",
            "warn",
            "Suspected labels",
        )


def _swapped(facts: PrepareFacts) -> Iterator[Notice]:
    swapped = facts.get("swapped")
    if swapped:
        yield Notice(
            f"The columns look swapped: {count(swapped['inputs'], 'different input')} "
            f"{either(swapped['inputs'], 'has', 'have')} {swapped['answers']:,} different answers.",
            "bad",
            "Sources",
        )


def _slips(facts: PrepareFacts) -> Iterator[Notice]:
    slips = facts.get("label_typos", [])
    if slips:
        named = "; ".join(
            f"“{slip['label'][:60]}” ({count(slip['count'], 'row')}) of “{slip['likely'][:60]}” "
            f"({slip['likely_count']:,})"
            for slip in slips[:3]
        )
        more = f" and {len(slips) - 3} more" if len(slips) > 3 else ""
        yield Notice(
            f"{count(len(slips), 'label')} may be {either(len(slips), 'a misspelling', 'misspellings')}: "
            f"{named}{more}. task.labels.map renames them.",
            "warn",
            "Labels",
        )


def _unused_renames(facts: PrepareFacts) -> Iterator[Notice]:
    unused = [f"“{entry['label'][:60]}”" for entry in facts.get("renamed_labels", []) if not entry["rows"]]
    if unused:
        yield Notice(
            f"No row has the {either(len(unused), 'label', 'labels')} {', '.join(unused[:3])}"
            f"{', …' if len(unused) > 3 else ''} that task.labels.map renames: is it spelled as in the data?",
            "warn",
            "Labels",
        )


def _wide_interval(facts: PrepareFacts) -> Iterator[Notice]:
    rows = facts.get("test", 0)
    if rows and margin(rows) > WIDE:
        yield Notice(
            f"{count(rows, 'test row')} {either(rows, 'measures', 'measure')} a score of {percent(RIGHT, 0)} to "
            f"±{margin(rows):.1f} points: models that are closer cannot be told apart.",
            "warn",
            "Held-out rows",
        )


def _thin_labels(facts: PrepareFacts) -> Iterator[Notice]:
    slips = {slip["label"] for slip in facts.get("label_typos", [])}
    labels = {name: splits.get("train", 0) for name, splits in facts.get("labels", {}).items() if name not in slips}
    few = thin(labels)
    if few:
        names = _first([f"“{name[:60]}” ({labels[name]:,})" for name in few])
        yield Notice(
            f"{len(few)} of {count(len(facts['labels']), 'label')} {either(len(few), 'is', 'are')} thin, with fewer "
            f"than {THIN} training rows: {names}. More rows help most there.",
            "warn",
            "Labels",
        )


def _few_test_rows(facts: PrepareFacts) -> Iterator[Notice]:
    few = labels_with_few_test_rows(facts)
    if few:
        names = _first([f"“{name[:60]}”" for name in few])
        yield Notice(
            f"{len(few)} of {count(len(facts['labels']), 'label')} {either(len(few), 'has', 'have')} fewer than {FEW} "
            f"test rows ({names}): what a model scores on {either(len(few), 'it', 'them')} alone says little.",
            "warn",
            "Labels",
        )


def _first(names: Sequence[str]) -> str:
    """The first three names, and a sign where there are more."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _odd_answers(facts: PrepareFacts) -> Iterator[Notice]:
    odd = [f"{many:,} {name}" for name, many in facts.get("odd_answers", {}).items() if many]
    if odd:
        yield Notice(f"Some rows were kept whose answer teaches nothing: {', '.join(odd)}.", "warn", "Odd answers")
