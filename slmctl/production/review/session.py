"""A review session: gives the next row, and writes every decision to disk before the next row is shown."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from slmctl.artifacts import locks
from slmctl.artifacts.json_lines import JsonLines
from slmctl.console import timestamp
from slmctl.errors import DataError, LockedError, UsageError
from slmctl.production.review.answers import equal_answer, fault_of
from slmctl.production.review.review_rows import ReviewRow
from slmctl.sources.reviewed import Review, standing
from slmctl.sources.rows import require_file
from slmctl.task.contract import Task

MAX_NAME = 80  # characters of a reviewer's name
MODE = 0o600  # permissions of the reviewed file, which holds texts of customers

Decided = Literal["accepted", "corrected", "skipped", "unchanged"]


class DecisionRefusedError(DataError):
    """A decision that is refused: the task does not allow the answer, or the row is not in the queue."""


@dataclass(frozen=True)
class ReviewProgress:
    """The state of a session.

    Attributes:
        decided: Number of rows in the queue with a decision or a skip, of `total`.
        own: Number of decisions of this session.
        per_hour: Decisions of this session an hour; None before the first one.
    """

    decided: int
    total: int
    own: int
    per_hour: float | None


class ReviewSession:
    """The queue of one reviewer, and the file to which decisions are appended; thread-safe.

    Args:
        queue: The rows, in the order of review.
        output: The reviewed file.
        reviewer: Name of the reviewer, recorded with each decision.
        clock: Returns monotonic seconds.

    Raises:
        DataError: `output` exists and is not a regular file.
        LockedError: Another session writes the file.
        OSError: The file cannot be read or written.
        UsageError: The name is empty or too long.
    """

    def __init__(
        self,
        queue: Sequence[ReviewRow],
        *,
        task: Task,
        output: Path,
        reviewer: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue, self.task, self.output, self.reviewer = queue, task, output, reviewer.strip()
        if not self.reviewer or len(self.reviewer) > MAX_NAME or not self.reviewer.isprintable():
            raise UsageError(f"a reviewer has a name of 1 to {MAX_NAME} characters", hint="--reviewer NAME")
        self._clock = clock
        self._by_id = {candidate.id: candidate for candidate in queue}
        self._guard = threading.RLock()
        self._counts: Counter[str] = Counter()  # decisions of this session
        self._began = self._last = clock()
        if output.exists():
            require_file(output)
        self._held = contextlib.ExitStack()
        try:
            lock = output.with_name(f".{output.name}.lock")
            self._held.enter_context(locks.lock(lock, wait=False, on_wait=lambda _: None))
        except LockedError:
            raise LockedError(f"another slmctl review fills {output.name}", hint="open its page") from None
        self._open()

    def _open(self) -> None:
        self._file = JsonLines(self.output, mode=MODE)
        self._identity = self.output.stat().st_ino
        self._history: list[Review] = list(Review.read(self.output))
        self._stands = standing(self._history)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._held.close()

    def next(self) -> ReviewRow | None:
        """The first undecided row; None at the end."""
        with self._guard:
            return next(iter(self.open_rows()), None)

    def open_rows(self) -> list[ReviewRow]:
        with self._guard:
            return [candidate for candidate in self.queue if candidate.id not in self._stands]

    def decide(self, id: str, answer: str | None) -> Decided:
        """Write a decision: `answer` is the right answer; None skips the row.

        Returns:
            The kind of the decision; `unchanged` if the file already holds the same.

        Raises:
            DecisionRefusedError: The task does not allow the answer, the row is not in the queue, or it has another
                decision.
            OSError: The decision could not be written, and does not count.
        """
        with self._guard:
            candidate = self._by_id.get(id)
            if candidate is None:
                raise DecisionRefusedError(f"row '{id[:40]}' is not in the queue")
            decision, review = self._review(candidate, answer)
            before = self._stands.get(id)
            if before is not None and (before.decision, before.after) == (review.decision, review.after):
                return "unchanged"
            if before is not None:
                raise DecisionRefusedError(
                    f"row '{id[:40]}' is decided otherwise, by {before.reviewer}", hint="undo that decision first"
                )
            self._write(review)
            self._last = self._clock()
            self._counts[decision] += 1
            return decision

    def _review(self, candidate: ReviewRow, answer: str | None) -> tuple[Decided, Review]:
        review = Review(
            id=candidate.id, time=timestamp(), reviewer=self.reviewer, decision="skipped", chosen=candidate.chosen,
            probability=candidate.probability, digest=candidate.row.digest, seen=candidate.row.time,
        )  # fmt: skip
        if answer is None:
            return "skipped", review
        if fault := fault_of(self.task, answer, tools=candidate.row.tools):
            raise DecisionRefusedError(fault)
        same = equal_answer(self.task, answer, candidate.before)
        decision: Literal["accepted", "corrected"] = "accepted" if same else "corrected"
        return decision, replace(
            review,
            decision=decision,
            messages=candidate.row.messages,
            tools=candidate.row.tools,
            before=candidate.before,
            after=candidate.before if same else answer.strip(),
        )

    def undo(self) -> ReviewRow | None:
        """Undo the last decision on a row of the queue; returns the row, or None without a decision.

        Raises:
            OSError: The change could not be written, and does not count.
        """
        with self._guard:
            standing_ones = (each for each in reversed(self._history) if self._stands.get(each.id) is each)
            last = next((review for review in standing_ones if review.id in self._by_id), None)
            if last is None:
                return None
            self._write(
                Review(last.id, timestamp(), self.reviewer, "undone", chosen=last.chosen, probability=last.probability)
            )
            if self._counts[last.decision]:
                self._counts[last.decision] -= 1
            return self._by_id[last.id]

    def _write(self, review: Review) -> None:
        """Append a line, and count it once it is on disk."""
        if not self.output.exists() or self.output.stat().st_ino != self._identity:
            self._file.close()  # `trace --forget` has replaced the file
            self._open()
        self._file.append(review.to_json())
        self._history.append(review)
        self._stands.pop(review.id, None)
        self._stands |= standing(each for each in self._history if each.id == review.id)

    def progress(self) -> ReviewProgress:
        with self._guard:
            own, seconds = self._counts.total(), self._last - self._began
            return ReviewProgress(
                decided=sum(id in self._by_id for id in self._stands),
                total=len(self.queue),
                own=own,
                per_hour=3600 * own / seconds if own and seconds > 0 else None,
            )

    def summary(self) -> str:
        with self._guard:
            done = self.progress()
            accepted, corrected, skipped = (self._counts[name] for name in ("accepted", "corrected", "skipped"))
            pace = f", {done.per_hour:,.0f} rows an hour" if done.per_hour is not None else ""
            return (
                f"{done.own:,} row{'s' * (done.own != 1)} reviewed: {accepted:,} right, {corrected:,} corrected, "
                f"{skipped:,} skipped{pace}; {done.decided:,} of {done.total:,} done"
            )
