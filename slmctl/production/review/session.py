"""A review session: gives the next row, and writes every decision to
disk before the next row is shown.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from slmctl import console
from slmctl.artifacts import locks
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.artifacts.json_lines import JsonLines
from slmctl.console import timestamp
from slmctl.errors import DataError, LockedError, UsageError
from slmctl.production.review.answers import equal_answer, fault_of
from slmctl.production.review.review_rows import ReviewRow
from slmctl.sources.reviewed import Decided, Review, standing
from slmctl.sources.rows import require_file
from slmctl.task.contract import Task

MAX_NAME = 80  # characters of a reviewer's name
MODE = 0o600  # permissions of the reviewed file, which holds texts of customers


class DecisionRefusedError(DataError):
    """A decision that is refused: the task does not allow the
    answer, or the row is not in the queue.
    """


@dataclass(frozen=True)
class ReviewProgress:
    """The state of a session.

    Attributes:
        decided: Number of rows of the round, or of the queue, with a decision or a skip, of
            `total`.
        own: Number of decisions of this session.
        per_hour: Decisions of this session an hour; None before the first one.
    """

    decided: int
    total: int
    own: int
    per_hour: float | None


class QueuedRow(Protocol):
    """A row that waits for a decision."""

    @property
    def id(self) -> str: ...


class WrittenDecision(Decided, Protocol):
    """A line of the file of decisions; lines with one `outcome` say the same."""

    @property
    def reviewer(self) -> str: ...
    @property
    def outcome(self) -> object: ...
    def to_json(self) -> JsonObject: ...


RowT = TypeVar("RowT", bound=QueuedRow)
LineT = TypeVar("LineT", bound=WrittenDecision)


class DecisionSession(Generic[RowT, LineT]):
    """The queue of one reviewer, and the file to which decisions are appended; thread-safe.

    A kind of decision is a subclass, which reads and makes its lines.

    Args:
        queue: The rows, in the order of review.
        output: The file of decisions.
        reviewer: Name of the reviewer, recorded with each decision.
        clock: Returns monotonic seconds.

    Raises:
        DataError: `output` exists and is not a regular file.
        LockedError: Another session writes the file.
        OSError: The file cannot be read or written.
        UsageError: The name is empty or too long.
    """

    noun: ClassVar[str] = "row"  # what is decided

    def __init__(
        self,
        queue: Sequence[RowT],
        *,
        output: Path,
        reviewer: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = queue
        self.output = output
        self.reviewer = reviewer.strip()
        if not self.reviewer or len(self.reviewer) > MAX_NAME or not self.reviewer.isprintable():
            raise UsageError(
                f"a reviewer has a name of 1 to {MAX_NAME} characters", hint="--reviewer NAME"
            )
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
            raise LockedError(
                f"another slmctl review fills {output.name}", hint="open its page"
            ) from None
        self._open()

    # A kind of decision

    def _lines(self) -> Iterable[LineT]:
        """The lines of the file that count for this queue."""
        raise NotImplementedError

    def _line(self, row: RowT, answer: str | None) -> LineT:
        """A decision as a line; raises a DecisionRefusedError for an answer that is not allowed."""
        raise NotImplementedError

    def _undone(self, line: LineT) -> LineT:
        """The line that undoes a decision."""
        raise NotImplementedError

    def counted(self) -> str:
        """The numbers of this session's decisions in words."""
        raise NotImplementedError

    def _open(self) -> None:
        self._file = JsonLines(self.output, mode=MODE)
        self._identity = self.output.stat().st_ino
        self._history: list[LineT] = list(self._lines())
        self._stands = standing(self._history)

    def begin_round(self, count: int) -> None:
        """Bound the queue to a round of `count` rows: the one that was
        begun, or once all of it is decided another.
        """
        rest, done = (
            self.open_rows(),
            [candidate for candidate in self.queue if candidate.id in self._stands],
        )
        begun = len(done) % count or (0 if rest else min(count, len(done)))
        self.queue = [*done[len(done) - begun :], *rest[: count - begun]]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()
        self._held.close()

    def next(self) -> RowT | None:
        """The first undecided row; None at the end."""
        with self._guard:
            return next(iter(self.open_rows()), None)

    def open_rows(self) -> list[RowT]:
        with self._guard:
            return [candidate for candidate in self.queue if candidate.id not in self._stands]

    def decide(self, id: str, answer: str | None) -> str:
        """Write a decision on a row: `answer`, as the task or the kind of decision allows it; None
        skips the row.

        Returns:
            The kind of the decision; `unchanged` if the file already holds the same.

        Raises:
            DecisionRefusedError: The task does not allow the answer, the row is not in the queue,
                or it has another decision.
            OSError: The decision could not be written, and does not count.
        """
        with self._guard:
            candidate = self._by_id.get(id)
            if candidate is None:
                raise DecisionRefusedError(f"row '{id[:40]}' is not in the queue")
            line = self._line(candidate, answer)
            before = self._stands.get(id)
            if before is not None and before.outcome == line.outcome:
                return "unchanged"
            if before is not None:
                raise DecisionRefusedError(
                    f"row '{id[:40]}' is decided otherwise, by {before.reviewer}",
                    hint="undo that decision first",
                )
            self._write(line)
            self._last = self._clock()
            self._counts[line.decision] += 1
            return line.decision

    def undo(self) -> RowT | None:
        """Undo the last decision on a row of the queue; returns the row, or None without a
        decision.

        Raises:
            OSError: The change could not be written, and does not count.
        """
        with self._guard:
            standing_ones = (
                each for each in reversed(self._history) if self._stands.get(each.id) is each
            )
            last = next((review for review in standing_ones if review.id in self._by_id), None)
            if last is None:
                return None
            self._write(self._undone(last))
            if self._counts[last.decision]:
                self._counts[last.decision] -= 1
            return self._by_id[last.id]

    def _write(self, line: LineT) -> None:
        """Append a line, and count it once it is on disk."""
        if not self.output.exists() or self.output.stat().st_ino != self._identity:
            self._file.close()  # `trace --forget` has replaced the file
            self._open()
        self._file.append(line.to_json())
        self._history.append(line)
        self._stands.pop(line.id, None)
        self._stands |= standing(each for each in self._history if each.id == line.id)

    def progress(self) -> ReviewProgress:
        with self._guard:
            own, seconds = self._counts.total(), self._last - self._began
            return ReviewProgress(
                decided=len(self.queue) - len(self.open_rows()),
                total=len(self.queue),
                own=own,
                per_hour=3600 * own / seconds if own and seconds > 0 else None,
            )

    def summary(self) -> str:
        with self._guard:
            done = self.progress()
            pace = (
                f", {done.per_hour:,.0f} {self.noun}s an hour" if done.per_hour is not None else ""
            )
            head = f"{console.count(done.own, self.noun)} reviewed: {self.counted()}"
            return f"{head}{pace}; {done.decided:,} of {done.total:,} done"


class ReviewSession(DecisionSession[ReviewRow, Review]):
    """The queue of one reviewer of single answers, which the task must allow.

    Args and Raises: those of `DecisionSession`.
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
        self.task = task
        super().__init__(queue, output=output, reviewer=reviewer, clock=clock)

    def _lines(self) -> Iterable[Review]:
        return Review.read(self.output)

    def _line(self, row: ReviewRow, answer: str | None) -> Review:
        review = Review(
            id=row.id,
            time=timestamp(),
            reviewer=self.reviewer,
            decision="skipped",
            chosen=row.chosen,
            probability=row.probability,
            digest=row.row.digest,
            seen=row.row.time,
        )
        if answer is None:
            return review
        if fault := fault_of(self.task, answer, tools=row.row.tools):
            raise DecisionRefusedError(fault)
        same = equal_answer(self.task, answer, row.before)
        return replace(
            review,
            decision="accepted" if same else "corrected",
            messages=row.row.messages,
            tools=row.row.tools,
            before=row.before,
            after=row.before if same else answer.strip(),
        )

    def _undone(self, line: Review) -> Review:
        return Review(
            line.id,
            timestamp(),
            self.reviewer,
            "undone",
            chosen=line.chosen,
            probability=line.probability,
        )

    def counted(self) -> str:
        counts = self._counts
        right = f"{counts['accepted']:,} right, {counts['corrected']:,} corrected"
        return f"{right}, {counts['skipped']:,} skipped"
