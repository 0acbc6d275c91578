"""The figures of a labelling, for the manifest, the page, the model card and the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

from slmctl.artifacts.artifact import sha256_file
from slmctl.artifacts.lineage import SourceFile
from slmctl.config import LabelConfig
from slmctl.metrics.statistics import wilson
from slmctl.stages.label import acceptance
from slmctl.stages.label.acceptance import Bound, LabelledRow
from slmctl.stages.label.rows import LabelRows
from slmctl.stages.label.teachers import JournalTeacher
from slmctl.task.kinds import kind_of

PAIRS = 30  # pairs of labels that are shown


class TeacherFacts(TypedDict):
    """One teacher.

    Attributes:
        where: `endpoint` or `release`.
        terms: `permitted`, `private`, or '' if the config does not state it.
        gold: Gold rows that it answered; `right` of them as the people did, with the Wilson
            interval of the share.
        sent, answered, failed, doubtful: Of its journal, over all runs; see `journal.Ledger`.
        cost, doubt: The same in money; None without prices.
    """

    name: str
    where: str
    terms: str
    prompt: str
    gold: int
    right: int
    interval: tuple[float, float]
    sent: int
    answered: int
    failed: int
    doubtful: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    doubt: float | None


class LabelFacts(TypedDict):
    """All figures; shares between 0 and 1, counts of rows.

    Attributes:
        bound: The bound in words; `error_bound`, of labels accepted in this way, None without one.
        wrong_at_most: `Bound.at_most`; None without a bound.
        confusion: (gold label, label of the teachers, rows) of gold rows that differ.
        disagreements: (one label, another, rows) of rows whose teachers differ.
        never: Labels that no accepted row has.
        fields: Upper bound of the error of each key of an object.
        curve: (kept, error, error_bound) of thresholds.
    """

    task: str
    sources: list[SourceFile]
    rows: int
    gold: int
    accepted: int
    review: int
    refused: int
    not_drawn: int
    left_out: dict[str, int]
    bound: str
    error_bound: float | None
    wrong_at_most: float | None
    max_error: float
    confidence: float
    kept_gold: float
    teachers: list[TeacherFacts]
    currency: str
    labels: dict[str, int]
    never: list[str]
    confusion: list[tuple[str, str, int]]
    disagreements: list[tuple[str, str, int]]
    fields: dict[str, float]
    curve: list[tuple[float, float, float]]


def collect(
    teachers: Sequence[JournalTeacher],
    all_rows: LabelRows,
    labelled: Sequence[LabelledRow],
    gold: Sequence[LabelledRow],
    bound: Bound,
    files: Mapping[str, int],
    config: LabelConfig,
) -> LabelFacts:
    classify = kind_of(config.task.kind).chooses
    names = (
        config.task.label_names or sorted({entry.row.gold for entry in gold}) if classify else []
    )
    by_label = (
        Counter(entry.answer for entry in labelled if entry.accepted)
        if classify
        else Counter[str]()
    )
    # a sensitive row may have been shown to no teacher
    answered = [entry for entry in gold if entry.votes]
    confused = Counter(
        (entry.row.gold, entry.answer) for entry in answered if entry.answer != entry.row.gold
    )
    return {
        "task": config.task.kind,
        "sources": [
            {"file": source.title, "sha256": sha256_file(source.local).removeprefix("sha256:")}
            for source in (*config.sources, *config.gold)
        ],
        "rows": len(all_rows.rows),
        "gold": len(all_rows.gold),
        "accepted": files["accepted"],
        "review": files["review"],
        "refused": files["refused"],
        "not_drawn": all_rows.not_drawn,
        "left_out": {reason: count for reason, count in all_rows.left_out.items() if count},
        "bound": acceptance.sentence(bound),
        "error_bound": None if bound.reason else bound.error_bound,
        "wrong_at_most": None if bound.reason else bound.at_most,
        "max_error": bound.max_error,
        "confidence": bound.confidence,
        "kept_gold": bound.kept,
        "teachers": [
            _teacher(number, teacher, gold, config) for number, teacher in enumerate(teachers)
        ],
        "currency": config.currency,
        "labels": {name: by_label[name] for name in names},
        "never": [name for name in names if not by_label[name]],
        "confusion": [(a, b, count) for (a, b), count in confused.most_common(PAIRS)]
        if classify
        else [],
        "disagreements": _disagreements(labelled) if classify else [],
        "fields": dict(bound.fields),
        "curve": list(bound.curve),
    }


def _teacher(
    number: int, teacher: JournalTeacher, gold: Sequence[LabelledRow], config: LabelConfig
) -> TeacherFacts:
    own = {entry.row.id: [vote for vote in entry.votes if vote.teacher == number] for entry in gold}
    answered = [entry for entry in gold if own[entry.row.id]]
    right = sum(
        acceptance.same(acceptance.choose(config.task.kind, own[entry.row.id]), entry.row.gold)
        for entry in answered
    )
    ledger, priced = teacher.journal.ledger, teacher.journal.prices is not None
    return {
        "name": teacher.name,
        "where": teacher.where,
        "terms": config.teachers[number].terms or "",
        "prompt": teacher.prompt_hash,
        "gold": len(answered),
        "right": right,
        "interval": wilson(right, len(answered)),
        "sent": ledger.sent,
        "answered": ledger.answered,
        "failed": ledger.failed,
        "doubtful": ledger.doubtful,
        "prompt_tokens": ledger.prompt_tokens,
        "completion_tokens": ledger.completion_tokens,
        "cost": round(ledger.cost, 6) if priced else None,
        "doubt": round(ledger.doubt, 6) if priced else None,
    }


def _disagreements(labelled: Sequence[LabelledRow]) -> list[tuple[str, str, int]]:
    """(one label, another, rows) of labels that teachers, or votes of
    one teacher, give to the same row.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for entry in labelled:
        answers = sorted({vote.answer for vote in entry.votes if vote.is_valid})
        pairs.update(
            (first, second) for k, first in enumerate(answers) for second in answers[k + 1 :]
        )
    return [(first, second, count) for (first, second), count in pairs.most_common(PAIRS)]


def cost_sentence(facts: LabelFacts) -> str:
    """The cost of all answers, over all runs, as a sentence."""
    tokens = sum(entry["prompt_tokens"] + entry["completion_tokens"] for entry in facts["teachers"])
    answers = sum(entry["answered"] for entry in facts["teachers"])
    summary = f"{answers:,} answers, {tokens:,} tokens"
    priced = [entry for entry in facts["teachers"] if entry["cost"] is not None]
    if not priced:
        return summary
    cost, doubt = (
        sum(entry["cost"] or 0 for entry in priced),
        sum(entry["doubt"] or 0 for entry in priced),
    )
    more = f", and at most {doubt:,.2f} for requests of which nothing came back" if doubt else ""
    return f"{summary}: {cost:,.2f} {facts['currency']}{more}"
