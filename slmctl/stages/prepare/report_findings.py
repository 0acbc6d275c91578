"""Findings of prepare, a sentence each: the notices of the page with their
sections, and the lines of the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from slmctl.console import percent
from slmctl.deduplication.ngram_overlap import SHORT
from slmctl.metrics.confident_joint import SURE
from slmctl.metrics.label_typos import LabelTypo, alike_labels
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
    linear = facts.get("linear")
    if not linear:
        return
    model = "A linear model (TF-IDF)"
    learned, train = linear["trained_on"], linear["train"]
    if learned < train:
        model += f", trained on {learned:,} of the {train:,} training rows,"
    accuracy = percent(linear["accuracy"])
    low, high = map(percent, linear["interval"])
    rows = count(linear["rows"], "validation row")
    yield (f"{model} gets {accuracy} ({low} to {high}) of {rows} right: what must be beaten.")


def score_interval(facts: PrepareFacts) -> Iterator[str]:
    rows = facts["test"]
    if not rows:
        return
    low, high = map(percent, wilson(round(RIGHT * rows), rows))
    tested = count(rows, "test row")
    yield (f"With {tested}, a score of {percent(RIGHT, 0)} means {low} to {high} (95 % interval).")


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
    inputs = count(swapped["inputs"], "different input")
    have = either(swapped["inputs"], "has", "have")
    answers = swapped["answers"]
    return f"The columns look swapped: {inputs} {have} {answers:,} different answers."


def _sensitive_kept(facts: PrepareFacts) -> str:
    kept = [entry for entry in facts["sensitive"] if entry["action"] == "keep" and entry["count"]]
    if not kept:
        return ""
    total = sum(entry["count"] for entry in kept)
    kinds = ", ".join(sorted({entry["kind"] for entry in kept}))
    stay = either(total, "stays", "stay")
    return (
        f"{count(total, 'finding')} of personal data or secrets {stay} in the rows by policy "
        f"({kinds}): a model can repeat what it was trained on."
    )


def _marked_answers(facts: PrepareFacts) -> str:
    marked = facts.get("marked_answers", {})
    if not marked:
        return ""
    named = ", ".join(f"{kind} in {count(rows, 'answer')}" for kind, rows in marked.items())
    first = next(iter(marked))
    return (
        f"A mark stands in place of a value of answers ({named}), and the model learns to write "
        f"the mark. prepare.sensitive.{first}: keep leaves the values."
    )


def _label_typos(facts: PrepareFacts) -> str:
    typos = facts["label_typos"]
    if not typos:
        return ""
    named = _pairs_of_labels(typos, "of")
    if len(typos) > 3:
        named += f" and {len(typos) - 3} more"
    labels = count(len(typos), "label")
    what = either(len(typos), "a misspelling", "misspellings")
    return f"{labels} may be {what}: {named}. task.labels.map renames them."


def _unknown_labels(facts: PrepareFacts) -> str:
    unknown = facts.get("unknown_labels", {})
    if not unknown:
        return ""
    rows = facts["rejected_by_reason"]["unknown label"]
    left_out = f"{count(rows, 'row')} {either(rows, 'is', 'are')} left out"
    labels = either(rows, "its label", "their labels")
    named = next(iter(unknown))
    if len(unknown) > 1:
        named += ", and others"
    return (
        f"{left_out} for {labels} ({named}). Name a new label in task.labels to learn it, or "
        "rename it by task.labels.map."
    )


def _unusable(facts: PrepareFacts) -> str:
    by_rule = facts["rejected_by_reason"]
    rules = {rule: many for rule, many in by_rule.items() if rule not in REPEATS}
    total = sum(rules.values())
    rows = max(facts["rows_in"], 1)
    if total > SOME * rows:
        worst = min(rules, key=lambda name: (-rules[name], name))
        rule = f", {_most_of_them(worst, rules)}" if len(rules) > 1 else f": {worst}"
        unusable = f"{either(total, 'is', 'are')} unusable{rule}"
        return f"{count(total, 'row')} ({percent(total / rows)}) {unusable}."
    if facts["rejected"] > MANY * rows:
        repeats = {rule: many for rule, many in by_rule.items() if rule in REPEATS}
        worst = max(repeats, key=lambda name: (repeats[name], name), default="")
        why = f", {_most_of_them(worst, repeats)}" if worst else ""
        return f"{percent(facts['rejected'] / rows)} of the rows were left out{why}."
    return ""


def _most_of_them(rule: str, rows_of: Mapping[str, int]) -> str:
    return f"most of them as “{rule}” ({rows_of[rule]:,})"


def _conflicts(facts: PrepareFacts) -> str:
    pairs = facts["conflicts"]["pairs"]
    if not pairs:
        return ""
    have = either(pairs, "has", "have")
    cap = percent(facts["conflicts"]["cap"])
    return (
        f"{count(pairs, 'pair')} of nearly the same inputs {have} different answers, so no model "
        f"can score over {cap}. Settling them is the cheapest way to a better model."
    )


def _suspects(facts: PrepareFacts) -> str:
    suspects = facts.get("suspects")
    if not suspects or not suspects["rows"] or suspects["agreement"] < SURE:
        return ""
    named = []
    for pair in suspects["pairs"][:3]:
        label, proposed = _quoted(pair["label"]), _quoted(pair["proposed"])
        named.append(f"{label}, perhaps {proposed} ({pair['rows']:,})")
    if len(suspects["pairs"]) > 3:
        named.append("…")
    rows = suspects["rows"]
    labels = f"{count(rows, 'label')} {either(rows, 'looks', 'look')} wrong"
    return f"{labels}: {'; '.join(named)}. slmctl review shows them, the worst first."


def _overlap(facts: PrepareFacts) -> str:
    close = []
    for split, side in facts["overlap"]["sides"].items():
        share = overlap_share(side)
        if share <= CLOSE:
            continue
        rows = f"{split} rows"
        if side["too_short"]:
            rows = f"{side['measured']:,} {split} rows of {SHORT} words and more"
        close.append(f"{percent(share)} of the {rows}")
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
    measure = f"{count(rows, 'test row')} {either(rows, 'measures', 'measure')}"
    return (
        f"{measure} a score of {percent(RIGHT, 0)} to ±{margin(rows):.1f} points: models that are "
        "closer cannot be told apart."
    )


def _thin_labels(facts: PrepareFacts) -> str:
    few, of = _labels_with_fewer(THIN, facts, "train")
    if not few:
        return ""
    together = facts.get("together", {})
    names = []
    for name, rows in few:
        why = f"{rows:,}"
        if name in together:
            why += f"; {TOGETHER.format(*together[name])}"
        names.append(f"{_quoted(name)} ({why})")
    labels = f"{of} {either(len(few), 'is', 'are')} thin"
    return (
        f"{labels}, with fewer than {THIN} training rows: {_first(names)}. More rows help most "
        "there."
    )


def _few_test_rows(facts: PrepareFacts) -> str:
    few, of = _labels_with_fewer(FEW, facts, "test")
    if not few:
        return ""
    labels = f"{of} {either(len(few), 'has', 'have')} fewer than {FEW} test rows"
    names = _first([_quoted(name) for name, _ in few])
    them = either(len(few), "it", "them")
    return f"{labels} ({names}): what a model scores on {them} alone says little."


def _unused_renames(facts: PrepareFacts) -> str:
    unused = [_quoted(entry["label"]) for entry in facts["renamed_labels"] if not entry["rows"]]
    if not unused:
        return ""
    labels = f"{either(len(unused), 'label', 'labels')} {_first(unused)}"
    return f"No row has the {labels} that task.labels.map renames: is it spelled as in the data?"


def _odd_answers(facts: PrepareFacts) -> str:
    odd = [f"{many:,} {name}" for name, many in facts["odd_answers"].items() if many]
    return f"Some rows were kept whose answer teaches nothing: {', '.join(odd)}." if odd else ""


def _unfit_answers(facts: PrepareFacts) -> str:
    unfit = facts.get("unfit_answers")
    if not unfit or not unfit["unfit"]:
        return ""
    checked = count(unfit["checked"], "answer")
    places = ", ".join(unfit["places"])
    return (
        f"{unfit['unfit']:,} of {checked} do not satisfy the schema, and no model may write them: "
        f"{places}. Correct the schema, or `output`."
    )


def _standing(facts: PrepareFacts) -> str:
    few = []
    for path, (values, stand) in facts.get("standing", {}).items():
        if stand < STANDING * values:
            few.append((stand / values, path))
    if not few:
        return ""
    few.sort(key=lambda field: field[0])
    named = ", ".join(f"`{path}` {percent(share, 0)}" for share, path in few)
    return f"Few values stand in their texts, and no other can be learned from windows: {named}."


def _alike_labels(facts: PrepareFacts) -> str:
    pairs = alike_labels({label: sum(splits.values()) for label, splits in facts["labels"].items()})
    if not pairs:
        return ""
    labels = count(len(pairs), "label")
    named = _pairs_of_labels(pairs, "and")
    ask = "Do they mean the same? Then task.labels.map makes one of both."
    return f"{labels} may be the same as another: {named}. {ask}"


def _pairs_of_labels(pairs: Sequence[LabelTypo], between: str) -> str:
    """The first three labels with their rows, each with the label that is likely meant."""
    named = []
    for pair in pairs[:3]:
        label, likely = _quoted(pair["label"]), _quoted(pair["likely"])
        rows = count(pair["count"], "row")
        named.append(f"{label} ({rows}) {between} {likely} ({pair['likely_count']:,})")
    return "; ".join(named)


def _labels_with_fewer(
    limit: int, facts: PrepareFacts, split: str
) -> tuple[list[tuple[str, int]], str]:
    """The labels with fewer rows in a split, the fewest first, and `2 of 77
    labels`; none that may be misspelled.
    """
    typos = {typo["label"] for typo in facts["label_typos"]}
    rows = {name: splits[split] for name, splits in facts["labels"].items() if name not in typos}
    few = [(name, many) for name, many in rows.items() if many < limit]
    few.sort(key=lambda each: (each[1], each[0]))
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
