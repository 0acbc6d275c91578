"""The order in which rows are reviewed: the most informative ones
first, mixed with a share drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from slmctl.deduplication import minhash, near_duplicates
from slmctl.production.records import CollectedRow, Feedback
from slmctl.production.review.answers import same_answer
from slmctl.production.review.review_rows import ReviewRow, is_reserved, position
from slmctl.sources.reviewed import UNIFORM, Choice
from slmctl.task.contract import Task
from slmctl.task.records import question_of

# a row with a lower certainty is unsure, even if the server did not collect it for that
UNSURE = 0.5
NOVEL = 0.2  # a text with a lower similarity to the nearest training row is novel
# The reasons for review, the most important first.
REASONS: tuple[Choice, ...] = (
    "feedback",
    "disagreement",
    "escalated",
    "unsure",
    "suspect",
    "novel",
    "duplicates",
)


def uniform_queue(
    rows: Sequence[CollectedRow], feedback: Mapping[str, Feedback]
) -> list[ReviewRow]:
    """The rows that were drawn at random and are reserved for this
    queue, in an order by a hash of their ids.
    """
    reserved = [ReviewRow(row, "uniform", feedback.get(row.id)) for row in rows if is_reserved(row)]
    return sorted(reserved, key=lambda candidate: position(candidate.id, "order"))


def targeted_queue(
    rows: Sequence[CollectedRow],
    feedback: Mapping[str, Feedback],
    *,
    task: Task,
    suspects: Sequence[ReviewRow] = (),
    similarity: Callable[[str], float] | None = None,
    held_out: frozenset[str] = frozenset(),
) -> list[ReviewRow]:
    """The other rows, the most informative first; of near-duplicates one, and the others at the
    end.

    Args:
        rows: Collected rows; those reserved for the uniform queue are skipped.
        feedback: The last feedback, by id.
        suspects: Training rows with a label that is probably wrong, the likeliest error first.
        similarity: Returns the similarity of a text to its nearest training row.
        held_out: Normalised texts of held-out rows, which are skipped: reviewed rows would move to
            training.
    """
    picked: list[ReviewRow] = list(suspects)
    for row in rows:
        if (
            not is_reserved(row)
            and minhash.normalise(question_of(task.cleaned(row.turns))) not in held_out
        ):
            heard = feedback.get(row.id)
            picked.append(ReviewRow(row, _reason(row, heard, task, similarity), heard))
    places = {candidate.id: place for place, candidate in enumerate(suspects)}
    picked.sort(
        key=lambda each: (
            REASONS.index(each.chosen),
            places.get(each.id, 0),
            each.certainty,
            position(each.id, "order"),
        )
    )
    root = near_duplicates.clusters([minhash.normalise(candidate.row.text) for candidate in picked])
    sizes = np.bincount(root, minlength=len(picked))
    heads = [k for k in range(len(picked)) if root[k] == k]
    heads.sort(
        key=lambda k: (
            REASONS.index(picked[k].chosen),
            -sizes[k] if picked[k].chosen == "duplicates" else 0,
            k,
        )
    )
    followers = [k for k in range(len(picked)) if root[k] != k]
    return [picked[k] for k in [*heads, *followers]]


def _reason(
    row: CollectedRow, heard: Feedback | None, task: Task, similarity: Callable[[str], float] | None
) -> Choice:
    """The most important reason to review a row."""
    if heard is not None and (
        heard.ok is False or (heard.answer and not same_answer(task, heard.answer, row.answer))
    ):
        return "feedback"
    if row.general_answer and not same_answer(task, row.local, row.general_answer):
        return "disagreement"
    if row.chosen in ("escalated", "unsure"):
        return row.chosen
    if ReviewRow(row, "unsure").certainty < UNSURE:
        return "unsure"
    if similarity is not None and similarity(row.question) < NOVEL:
        return "novel"
    return "duplicates"


def interleaved(
    targeted: Sequence[ReviewRow], uniform: Sequence[ReviewRow], share: float
) -> list[ReviewRow]:
    """Both queues merged: a `share` of the rows, 0 to 1, comes from
    the uniform queue while it has rows.
    """
    merged: list[ReviewRow] = []
    first, second = iter(targeted), iter(uniform)
    drawn = 0
    while len(merged) < len(targeted) + len(uniform):
        by_chance = share >= 1 or drawn < int(share * (len(merged) + 1))
        queue, other = (second, first) if by_chance else (first, second)
        candidate = next(queue, None) or next(other)
        drawn += candidate.chosen == UNIFORM
        merged.append(candidate)
    return merged
