"""Findings of prepare, a sentence each: the notices of the page with their
sections, and the lines of the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from slmctl.console import percent
from slmctl.deduplication.ngram_overlap import SHORT
from slmctl.metrics.confident_joint import SURE
from slmctl.metrics.label_typos import alike_labels
from slmctl.metrics.statistics import wilson
from slmctl.pipeline.row_estimate import FEW, THIN
from slmctl.reports.html_page import Notice, Tone, count, either
from slmctl.stages.prepare.facts import PrepareFacts, SplitOverlap
from slmctl.stages.prepare.fates import TOGETHER

# rules about good rows
REPEATS = ("duplicate", "conflicting duplicate", "near duplicate", "near a held-out row")
SOME = 0.01  # share of unusable rows from which a reader should know why
MANY = 0.2  # the same for all rows that were left out
RIGHT = 0.9  # share of right answers for which intervals are given
WIDE = 5.0  # points on either side of a score; from here two models can hardly be distinguished
# share of a field's values that stand in their texts, below which the field is named
STANDING = 0.95
LINES = 6  # on the terminal, besides the counts of rows and the report's path
# share of a held-out split that overlaps with training from which a score is flattered
CLOSE = 0.05


def lines(facts: PrepareFacts) -> list[str]:
    """The notices, the worst first, and the scores known before training, for the terminal."""
    sentences = [*linear_score(facts), *score_interval(facts)]
    marked = [f"! {notice.text}" for notice in notices(facts)]
    room = LINES - len(sentences)
    if len(marked) > room:
        left = len(marked) - room + 1
        marked[room - 1 :] = [f"! {count(left, 'more thing')} to look at, in the report"]
    if facts["tokens"].get("estimated"):
        sentences.append("No base is here, so lengths in tokens are estimated by characters.")
    return marked + sentences


def notices(facts: PrepareFacts) -> Iterator[Notice]:
    """The findings, the worst first, each with its section of the page."""
    for finding, tone, section in FINDINGS:
        if sentence := finding(facts):
            yield Notice(sentence, tone, section)


def linear_score(facts: PrepareFacts) -> Iterator[str]:
    if linear := facts.get("linear"):
        low, high = linear["interval"]
        part = linear["trained_on"] < linear["train"]
        trained = (
            f", trained on {linear['trained_on']:,} of the {linear['train']:,} training rows,"
            if part
            else ""
        )
        yield (
            f"A linear model (TF-IDF){trained} gets {percent(linear['accuracy'])} ({percent(low)} "
            f"to {percent(high)}) "
            f"of {count(linear['rows'], 'validation row')} right: what must be beaten."
        )


def score_interval(facts: PrepareFacts) -> Iterator[str]:
    if rows := facts["test"]:
        low, high = wilson(round(RIGHT * rows), rows)
        yield (
            f"With {count(rows, 'test row')}, a score of {percent(RIGHT, 0)} means {percent(low)} "
            f"to {percent(high)} "
            "(95 % interval)."
        )


def margin(rows: int) -> float:
    """Half the width of the 95 % interval of a score of RIGHT, in points."""
    low, high = wilson(round(RIGHT * rows), rows)
    return 50 * (high - low)


def overlap_share(overlap: SplitOverlap) -> float:
    """The share of the measured rows of a split that share a
    sequence with a training row, 0 to 1.
    """
    return overlap["overlapping"] / overlap["measured"] if overlap["measured"] else 0.0


def _swapped(facts: PrepareFacts) -> str:
    swapped = facts["swapped"]
    if not swapped:
        return ""
    inputs = swapped["inputs"]
    return (
        f"The columns look swapped: {count(inputs, 'different input')} "
        f"{either(inputs, 'has', 'have')} "
        f"{swapped['answers']:,} different answers."
    )


def _sensitive_kept(facts: PrepareFacts) -> str:
    kept = [entry for entry in facts["sensitive"] if entry["action"] == "keep" and entry["count"]]
    if not kept:
        return ""
    total, kinds = (
        sum(entry["count"] for entry in kept),
        ", ".join(sorted({entry["kind"] for entry in kept})),
    )
    return (
        f"{count(total, 'finding')} of personal data or secrets {either(total, 'stays', 'stay')} "
        "in the rows by "
        f"policy ({kinds}): a model can repeat what it was trained on."
    )


def _marked_answers(facts: PrepareFacts) -> str:
    marked = facts.get("marked_answers", {})
    if not marked:
        return ""
    named = ", ".join(f"{kind} in {count(rows, 'answer')}" for kind, rows in marked.items())
    return (
        f"A mark stands in place of a value of answers ({named}), and the model learns to write "
        "the mark. "
        f"prepare.sensitive.{next(iter(marked))}: keep leaves the values."
    )


def _label_typos(facts: PrepareFacts) -> str:
    typos = facts["label_typos"]
    if not typos:
        return ""
    named = "; ".join(
        f"{_quoted(typo['label'])} ({count(typo['count'], 'row')}) of {_quoted(typo['likely'])} "
        f"({typo['likely_count']:,})"
        for typo in typos[:3]
    )
    more = f" and {len(typos) - 3} more" if len(typos) > 3 else ""
    return (
        f"{count(len(typos), 'label')} may be "
        f"{either(len(typos), 'a misspelling', 'misspellings')}: "
        f"{named}{more}. task.labels.map renames them."
    )


def _unknown_labels(facts: PrepareFacts) -> str:
    unknown = facts.get("unknown_labels", {})
    if not unknown:
        return ""
    rows, first = facts["rejected_by_reason"]["unknown label"], next(iter(unknown))
    more = ", and others" if len(unknown) > 1 else ""
    return (
        f"{count(rows, 'row')} {either(rows, 'is', 'are')} left out for "
        f"{either(rows, 'its label', 'their labels')} "
        f"({first}{more}). Name a new label in task.labels to learn it, or rename it by "
        "task.labels.map."
    )


def _unusable(facts: PrepareFacts) -> str:
    rules = {
        rule: many for rule, many in facts["rejected_by_reason"].items() if rule not in REPEATS
    }
    total, rows = sum(rules.values()), max(facts["rows_in"], 1)
    if total > SOME * rows:
        worst = min(rules, key=lambda name: (-rules[name], name))
        rule = f", most of them as “{worst}” ({rules[worst]:,})" if len(rules) > 1 else f": {worst}"
        return (
            f"{count(total, 'row')} ({percent(total / rows)}) {either(total, 'is', 'are')} "
            f"unusable{rule}."
        )
    if facts["rejected"] > MANY * rows:
        repeats = {
            rule: many for rule, many in facts["rejected_by_reason"].items() if rule in REPEATS
        }
        worst = max(repeats, key=lambda name: (repeats[name], name), default="")
        why = f", most of them as “{worst}” ({repeats[worst]:,})" if worst else ""
        return f"{percent(facts['rejected'] / rows)} of the rows were left out{why}."
    return ""


def _conflicts(facts: PrepareFacts) -> str:
    pairs = facts["conflicts"]["pairs"]
    if not pairs:
        return ""
    return (
        f"{count(pairs, 'pair')} of nearly the same inputs {either(pairs, 'has', 'have')} "
        "different answers, so no "
        f"model can score over {percent(facts['conflicts']['cap'])}. Settling them is the cheapest "
        "way to a better "
        "model."
    )


def _suspects(facts: PrepareFacts) -> str:
    suspects = facts.get("suspects")
    if not suspects or not suspects["rows"] or suspects["agreement"] < SURE:
        return ""
    named = "; ".join(
        f"{_quoted(pair['label'])}, perhaps {_quoted(pair['proposed'])} ({pair['rows']:,})"
        for pair in suspects["pairs"][:3]
    )
    more = "; …" if len(suspects["pairs"]) > 3 else ""
    return (
        f"{count(suspects['rows'], 'label')} {either(suspects['rows'], 'looks', 'look')} wrong: "
        f"{named}{more}. "
        "slmctl review shows them, the worst first."
    )


def _overlap(facts: PrepareFacts) -> str:
    close = []
    for split, side in facts["overlap"]["sides"].items():
        if (share := overlap_share(side)) > CLOSE:
            rows = f"{side['measured']:,} {split} rows of {SHORT} words and more"
            close.append(
                f"{percent(share)} of the {rows if side['too_short'] else f'{split} rows'}"
            )
    if not close:
        return ""
    return (
        f"{' and '.join(close)} share long word sequences with training rows: a score on them "
        "partly measures memory."
    )


def _wide_interval(facts: PrepareFacts) -> str:
    rows = facts["test"]
    if not rows or margin(rows) <= WIDE:
        return ""
    return (
        f"{count(rows, 'test row')} {either(rows, 'measures', 'measure')} a score of "
        f"{percent(RIGHT, 0)} to "
        f"±{margin(rows):.1f} points: models that are closer cannot be told apart."
    )


def _thin_labels(facts: PrepareFacts) -> str:
    few, of = _labels_with_fewer(THIN, facts, "train")
    if not few:
        return ""
    lumps = {
        name: f"; {TOGETHER.format(*lump)}" for name, lump in facts.get("together", {}).items()
    }
    names = _first([f"{_quoted(name)} ({rows:,}{lumps.get(name, '')})" for name, rows in few])
    return (
        f"{of} {either(len(few), 'is', 'are')} thin, with fewer than {THIN} training rows: "
        f"{names}. More rows help "
        "most there."
    )


def _few_test_rows(facts: PrepareFacts) -> str:
    few, of = _labels_with_fewer(FEW, facts, "test")
    if not few:
        return ""
    return (
        f"{of} {either(len(few), 'has', 'have')} fewer than {FEW} test rows "
        f"({_first([_quoted(name) for name, _ in few])}): what a model scores on "
        f"{either(len(few), 'it', 'them')} "
        "alone says little."
    )


def _unused_renames(facts: PrepareFacts) -> str:
    unused = [_quoted(entry["label"]) for entry in facts["renamed_labels"] if not entry["rows"]]
    if not unused:
        return ""
    return (
        f"No row has the {either(len(unused), 'label', 'labels')} {_first(unused)} that "
        "task.labels.map renames: "
        "is it spelled as in the data?"
    )


def _odd_answers(facts: PrepareFacts) -> str:
    odd = [f"{many:,} {name}" for name, many in facts["odd_answers"].items() if many]
    return f"Some rows were kept whose answer teaches nothing: {', '.join(odd)}." if odd else ""


def _unfit_answers(facts: PrepareFacts) -> str:
    unfit = facts.get("unfit_answers")
    if not unfit or not unfit["unfit"]:
        return ""
    return (
        f"{unfit['unfit']:,} of {count(unfit['checked'], 'answer')} do not satisfy the schema, and "
        "no model may write "
        f"them: {', '.join(unfit['places'])}. Correct the schema, or `output`."
    )


def _standing(facts: PrepareFacts) -> str:
    few = {
        path: stand / values
        for path, (values, stand) in facts.get("standing", {}).items()
        if stand < STANDING * values
    }
    named = ", ".join(
        f"`{path}` {percent(share, 0)}"
        for path, share in sorted(few.items(), key=lambda pair: pair[1])
    )
    return (
        f"Few values stand in their texts, and no other can be learned from windows: {named}."
        if few
        else ""
    )


def _alike_labels(facts: PrepareFacts) -> str:
    pairs = alike_labels({label: sum(splits.values()) for label, splits in facts["labels"].items()})
    named = "; ".join(
        f"{_quoted(pair['label'])} ({count(pair['count'], 'row')}) and {_quoted(pair['likely'])} "
        f"({pair['likely_count']:,})"
        for pair in pairs[:3]
    )
    ask = "Do they mean the same? Then task.labels.map makes one of both."
    return (
        f"{count(len(pairs), 'label')} may be the same as another: {named}. {ask}" if pairs else ""
    )


def _labels_with_fewer(
    limit: int, facts: PrepareFacts, split: str
) -> tuple[list[tuple[str, int]], str]:
    """The labels with fewer rows in a split, the fewest first, and `2 of 77
    labels`; none that may be misspelled.
    """
    typos = {typo["label"] for typo in facts["label_typos"]}
    rows = {name: splits[split] for name, splits in facts["labels"].items() if name not in typos}
    few = sorted(
        ((name, many) for name, many in rows.items() if many < limit),
        key=lambda each: (each[1], each[0]),
    )
    return few, f"{len(few)} of {count(len(facts['labels']), 'label')}"


def _first(names: Sequence[str]) -> str:
    """The first three names, with an ellipsis if there are more."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _quoted(label: str) -> str:
    return f"“{label[:60]}”"


# A finding, the tone and the section of its notice, the worst first.
FINDINGS: Sequence[tuple[Callable[[PrepareFacts], str], Tone, str]] = (
    (_swapped, "bad", "Sources"),
    (_sensitive_kept, "bad", "Personal data and secrets"),
    (_marked_answers, "bad", "Personal data and secrets"),
    (_label_typos, "warn", "Labels"),
    (_alike_labels, "warn", "Labels"),
    (_unknown_labels, "warn", "Kept and rejected rows"),
    (_unusable, "warn", "Kept and rejected rows"),
    (_conflicts, "warn", "Duplicates and conflicts"),
    (_suspects, "warn", "Suspected labels"),
    (_overlap, "warn", "Held-out rows"),
    (_wide_interval, "warn", "Held-out rows"),
    (_thin_labels, "warn", "Labels"),
    (_few_test_rows, "warn", "Labels"),
    (_unused_renames, "warn", "Labels"),
    (_odd_answers, "warn", "Odd answers"),
    (_standing, "warn", "Odd answers"),
    (_unfit_answers, "warn", "Odd answers"),
)
