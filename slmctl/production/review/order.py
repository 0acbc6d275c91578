"""The order in which rows are looked at: the most telling ones first, and among them a share drawn by chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from slmctl.deduplication import minhash, near_duplicates
from slmctl.production.records import CollectedRow, Feedback
from slmctl.production.review.answers import same_answer
from slmctl.production.review.review_rows import ReviewRow, is_reserved, position
from slmctl.sources.reviewed import UNIFORM, Choice
from slmctl.task.contract import Task

UNSURE = 0.5  # certainty below which a row is looked at although nobody marked it
NOVEL = 0.2  # similarity to the nearest training row below which a text is new
# The reasons in the order in which their rows come.
REASONS: tuple[Choice, ...] = (
    "feedback", "disagreement", "escalated", "unsure", "suspect", "novel", "duplicates",
)  # fmt: skip


def uniform_queue(rows: Sequence[CollectedRow], feedback: Mapping[str, Feedback]) -> list[ReviewRow]:
    """The rows that were drawn by chance and are held for this queue, in an order drawn by their ids."""
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
    """The other rows, the most telling first, of near-duplicates one; the rest of each cluster at the end.

    Args:
        rows: Collected rows; those held for the uniform queue are left out.
        feedback: The last feedback, by id.
        suspects: Training rows whose labels look wrong, the likeliest error first.
        similarity: The similarity of a text to its nearest training row.
        held_out: Normalised texts of held-out rows: picked for training, they would leave their split.
    """
    picked: list[ReviewRow] = list(suspects)
    for row in rows:
        if not is_reserved(row) and minhash.normalise(task.cleaned_text(row.text)[0]) not in held_out:
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
    heads.sort(key=lambda k: (REASONS.index(picked[k].chosen), -sizes[k] if picked[k].chosen == "duplicates" else 0, k))
    followers = [k for k in range(len(picked)) if root[k] != k]
    return [picked[k] for k in [*heads, *followers]]


def _reason(row: CollectedRow, heard: Feedback | None, task: Task, similarity: Callable[[str], float] | None) -> Choice:
    """The most telling reason for which a row is worth a look."""
    if heard is not None and (heard.ok is False or (heard.answer and not same_answer(task, heard.answer, row.answer))):
        return "feedback"
    if row.general_answer and not same_answer(task, row.local, row.general_answer):
        return "disagreement"
    if row.chosen in ("escalated", "unsure"):
        return row.chosen
    if ReviewRow(row, "unsure").certainty < UNSURE:
        return "unsure"
    if similarity is not None and similarity(row.text) < NOVEL:
        return "novel"
    return "duplicates"


def interleaved(targeted: Sequence[ReviewRow], uniform: Sequence[ReviewRow], share: float) -> list[ReviewRow]:
    """Both queues as one: a `share` of the rows, 0 to 1, from the uniform one, as long as it has some."""
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
