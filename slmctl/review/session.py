"""A session of review: who gets which row, and every decision on the disk before the next row is shown."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from slmctl.artifacts import locks
from slmctl.artifacts.json_lines import JsonLines
from slmctl.errors import DataError, LockedError
from slmctl.metrics import statistics
from slmctl.metrics.statistics import SignTest
from slmctl.production.records import Review, agreed, standing
from slmctl.review.answers import equal_answer, fault_of, same_answer
from slmctl.review.review_rows import ReviewRow, position
from slmctl.sources.rows import require_file
from slmctl.task.contract import Task

LEASE_S = 300.0  # that a row is held for the reviewer who has it on the screen
MAX_NAME = 80  # characters of a reviewer's name
MODE = 0o600  # of the reviewed file: it holds texts of customers

Decided = Literal["accepted", "corrected", "skipped", "unchanged"]


class DecisionRefusedError(DataError):
    """A decision that is not taken: an answer that the task does not allow, or a row that is not there."""


@dataclass(frozen=True)
class ShadowComparison:
    """The verdict of decisions on the served model and the shadow, on rows where they differ.

    Attributes:
        first, second: Rows on which only the served model, only the shadow was right.
        neither: Rows on which both were wrong.
        test: The sign test over them.
    """

    first: int
    second: int
    neither: int
    test: SignTest

    @property
    def sentence(self) -> str:
        """The verdict for people."""
        counts = (
            f"the served model alone is right in {self.first}, the shadow alone in {self.second}, neither in "
            f"{self.neither}"
        )
        if self.test.better:
            name = "served model" if self.test.better == "first" else "shadow"
            return f"The {name} is better (p at most {self.test.p_value:.3g}): {counts}."
        if self.first + self.second + self.neither == 0:
            return "No row is decided yet."
        more = (
            f"about {self.test.more:,} more decisions" if self.test.more is not None else "no number that can be named"
        )
        return f"Not decided yet: {counts}; at this share it takes {more}."


@dataclass(frozen=True)
class ReviewProgress:
    """The state of a session.

    Attributes:
        decided: Rows of the queue with a decision or a skip.
        total: Rows of the queue.
        own: Decisions of one reviewer in this session.
        per_hour: Their pace; None before there is one.
        overlap: Rows that two people decided.
        kappa: Cohen's kappa on them; NaN where nothing follows from them.
        comparison: Of the served model and the shadow; None where the queue has another purpose.
    """

    decided: int
    total: int
    own: int
    per_hour: float | None
    overlap: int
    kappa: float
    comparison: ShadowComparison | None = None


@dataclass
class _Pace:
    """The decisions of a reviewer in this session, and when the first row was shown."""

    since: float
    last: float
    accepted: int = 0
    corrected: int = 0
    skipped: int = 0

    @property
    def count(self) -> int:
        return self.accepted + self.corrected + self.skipped

    def add(self, decision: str, number: int) -> None:
        setattr(self, decision, max(0, getattr(self, decision) + number))


class ReviewSession:
    """The queue, its reviewers, and the file that they fill; threads may call it at once.

    Args:
        queue: The rows, in the order in which they are looked at.
        task: The contract that answers must meet.
        output: The reviewed file, which is added to.
        overlap: Share of the rows, 0 to 1, that two people look at.
        clock: Seconds that never go back.

    Raises:
        DataError: Something else than a file is there.
        LockedError: Another session fills the file.
        OSError: The file cannot be read or written.
    """

    def __init__(
        self,
        queue: Sequence[ReviewRow],
        *,
        task: Task,
        output: Path,
        overlap: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue, self.task, self.output = queue, task, output
        self._overlap, self._clock = overlap, clock
        self._by_id = {candidate.id: candidate for candidate in queue}
        self._guard = threading.RLock()
        self._leases: dict[str, dict[str, float]] = {}  # by id and reviewer, when it ends
        self._paces: dict[str, _Pace] = {}
        if output.exists():
            require_file(output)
        self._held = contextlib.ExitStack()
        try:
            lock = output.with_name(f".{output.name}.lock")
            self._held.enter_context(locks.lock(lock, wait=False, on_wait=lambda _: None))
        except LockedError:
            raise LockedError(
                f"another slmctl review fills {output.name}", hint="open its page, which many people may use at once"
            ) from None
        self._open()

    def _open(self) -> None:
        """Open the file, and read the decisions in it."""
        self._file = JsonLines(self.output, mode=MODE)
        self._identity = self.output.stat().st_ino
        self._history: list[Review] = list(Review.read(self.output))
        self._stands = standing(self._history)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._held.close()

    # Rows

    def next(self, reviewer: str) -> ReviewRow | None:
        """The next row for a reviewer, held for some minutes; the same one until it is decided. None at the end.

        Raises:
            DecisionRefusedError: The name is empty or too long.
        """
        name = _checked_name(reviewer)
        with self._guard:
            now = self._clock()
            self._paces.setdefault(name, _Pace(now, now))
            held = [id for id, holders in self._leases.items() if holders.get(name, 0.0) > now]
            candidates = itertools.chain((self._by_id[id] for id in held), self.queue)
            candidate = next((each for each in candidates if self._is_open(each, name, now)), None)
            if candidate is not None:
                self._leases.setdefault(candidate.id, {})[name] = now + LEASE_S
            return candidate

    def _is_open(self, candidate: ReviewRow, name: str, now: float) -> bool:
        """True for a row that this reviewer may decide: not yet his, and with fewer people on it than it needs."""
        decisions = self._stands.get(candidate.id, {})
        if name in decisions:
            return False
        others = {holder for holder, end in self._leases.get(candidate.id, {}).items() if end > now and holder != name}
        people = {reviewer for reviewer, review in decisions.items() if review.decision != "skipped"}
        return len(people | others) < self._needed(candidate, decisions)

    def _needed(self, candidate: ReviewRow, decisions: Mapping[str, Review]) -> int:
        """The number of people that a row needs: one, or two; one more where they differ."""
        least = 2 if position(candidate.id, "overlap") < self._overlap else 1
        decided = [review for review in decisions.values() if review.decision != "skipped"]
        if len(decided) >= 2 and not agreed({candidate.id: decisions}):
            return max(least, len(decided) + 1)
        return least

    def open_rows(self) -> list[ReviewRow]:
        """The rows of the queue that nobody has decided or skipped."""
        with self._guard:
            return [candidate for candidate in self.queue if candidate.id not in self._stands]

    # Decisions

    def decide(self, reviewer: str, id: str, answer: str | None) -> Decided:
        """Write a decision: that `answer` is right; None skips the row.

        Returns:
            What it was; `unchanged` where the same reviewer has said the same before.

        Raises:
            DecisionRefusedError: The task does not allow the answer, the row is not in the queue, or the reviewer has
                decided otherwise before.
            OSError: It could not be written, and does not count.
        """
        name = _checked_name(reviewer)
        with self._guard:
            candidate = self._by_id.get(id)
            if candidate is None:
                raise DecisionRefusedError(f"row '{id[:40]}' is not in the queue")
            review = self._review(candidate, name, answer)
            before = self._stands.get(id, {}).get(name)
            if before is not None and (before.decision, before.after) == (review.decision, review.after):
                return "unchanged"
            if before is not None:
                raise DecisionRefusedError(
                    f"{name} has decided row '{id[:40]}' before", hint="undo that decision first"
                )
            self._write(review)
            now = self._clock()
            pace = self._paces.setdefault(name, _Pace(now, now))
            pace.last = now
            pace.add(review.decision, 1)
            assert review.decision != "undone"
            return review.decision

    def _review(self, candidate: ReviewRow, name: str, answer: str | None) -> Review:
        """The line of a decision."""
        review = Review(
            id=candidate.id, time=_now(), reviewer=name, decision="skipped", before=candidate.before,
            chosen=candidate.chosen, probability=candidate.probability, digest=candidate.row.digest,
            seen=candidate.row.time, shadow=candidate.row.shadow,
        )  # fmt: skip
        if answer is None:
            return replace(review, before="")
        if fault := fault_of(self.task, answer, tools=candidate.row.tools):
            raise DecisionRefusedError(fault)
        same = equal_answer(self.task, answer, candidate.before)
        return replace(
            review,
            decision="accepted" if same else "corrected",
            messages=candidate.row.messages,
            tools=candidate.row.tools,
            after=candidate.before if same else answer.strip(),
        )

    def undo(self, reviewer: str) -> ReviewRow | None:
        """Take back a reviewer's last decision on a row of the queue; that row is next. None where there is none.

        Raises:
            DecisionRefusedError: The name is empty or too long.
            OSError: It could not be written, and does not count.
        """
        name = _checked_name(reviewer)
        with self._guard:
            last = next(
                (
                    review
                    for review in reversed(self._history)
                    if review.reviewer == name and review.id in self._by_id and self._stands_as_it_is(review)
                ),
                None,
            )
            if last is None:
                return None
            self._write(Review(last.id, _now(), name, "undone", chosen=last.chosen, probability=last.probability))
            if name in self._paces:
                self._paces[name].add(last.decision, -1)
            now = self._clock()
            for holders in self._leases.values():
                holders.pop(name, None)  # what was on the screen goes back into the queue
            self._leases.setdefault(last.id, {})[name] = now + LEASE_S
            return self._by_id[last.id]

    def _stands_as_it_is(self, review: Review) -> bool:
        return self._stands.get(review.id, {}).get(review.reviewer) is review

    def _write(self, review: Review) -> None:
        """Add a line, and count it once it is on the disk."""
        if not self.output.exists() or self.output.stat().st_ino != self._identity:
            self._file.close()  # `trace --forget` has put another file in its place
            self._open()
        self._file.append(review.to_json())
        self._history.append(review)
        stands = standing(each for each in self._history if each.id == review.id)
        self._stands.pop(review.id, None)
        self._stands |= stands
        self._leases.get(review.id, {}).pop(review.reviewer, None)

    # Figures

    def progress(self, reviewer: str = "") -> ReviewProgress:
        """The state of the session, and of one reviewer in it."""
        with self._guard:
            pairs = self._pairs()
            pace = self._paces.get(reviewer.strip())
            seconds = pace.last - pace.since if pace is not None else 0.0
            return ReviewProgress(
                decided=sum(id in self._by_id for id in self._stands),
                total=len(self.queue),
                own=pace.count if pace is not None else 0,
                per_hour=3600 * pace.count / seconds if pace is not None and pace.count and seconds > 0 else None,
                overlap=len(pairs),
                kappa=statistics.cohen_kappa(pairs),
                comparison=self.comparison(),
            )

    def _pairs(self) -> list[tuple[str, str]]:
        """The answers of two people to each row that two decided: of more, those of the first two by name."""
        pairs = []
        for id, by_name in self._stands.items():
            decided = [by_name[name].after for name in sorted(by_name) if by_name[name].decision != "skipped"]
            if id in self._by_id and len(decided) >= 2:
                pairs.append((decided[0], decided[1]))
        return pairs

    def comparison(self) -> ShadowComparison | None:
        """The sign test of the served model and the shadow, over the rows of the queue that were looked at so far.

        The queue has an order drawn by chance. Rows further down that somebody has decided for another reason, such as
        low certainty, do not count before the queue reaches them: they would speak against the served model.
        """
        if not self.queue or self.queue[0].chosen != "shadow":
            return None
        looked_at = [
            place
            for place, candidate in enumerate(self.queue)
            if any(review.chosen == "shadow" for review in self._stands.get(candidate.id, {}).values())
        ]
        seen = {candidate.id for candidate in self.queue[: max(looked_at, default=-1) + 1]}
        counts = {"first": 0, "second": 0, "neither": 0}
        for review in agreed({id: by_name for id, by_name in self._stands.items() if id in seen}):
            row = self._by_id[review.id].row
            if same_answer(self.task, review.after, row.local):
                counts["first"] += 1
            elif same_answer(self.task, review.after, row.shadow or ""):
                counts["second"] += 1
            else:
                counts["neither"] += 1
        test = statistics.sign_test_decision(counts["first"], counts["second"], counts["neither"])
        return ShadowComparison(**counts, test=test)

    def summary(self) -> list[str]:
        """The session in lines for the terminal."""
        with self._guard:
            accepted, corrected, skipped = (
                sum(getattr(pace, name) for pace in self._paces.values())
                for name in ("accepted", "corrected", "skipped")
            )
            seconds = sum(pace.last - pace.since for pace in self._paces.values())
            count = accepted + corrected + skipped
            pace = f", {3600 * count / seconds:,.0f} rows an hour" if count and seconds > 0 else ""
            done = self.progress()
            lines = [
                f"{count:,} row{'s' * (count != 1)} reviewed: {accepted:,} right, {corrected:,} corrected, "
                f"{skipped:,} skipped{pace}; {done.decided:,} of {done.total:,} done"
            ]
            if done.overlap:
                kappa = (
                    "no kappa: all have one answer" if done.kappa != done.kappa else f"Cohen's kappa {done.kappa:.2f}"
                )
                lines.append(f"two people looked at {done.overlap:,} rows: {kappa}")
            if done.comparison is not None:
                lines.append(done.comparison.sentence)
            return lines


def _checked_name(reviewer: str) -> str:
    name = reviewer.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise DecisionRefusedError(f"a reviewer has a name of 1 to {MAX_NAME} characters")
    return name


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
