"""Requests to a teacher, its answers and their cost: append-only, each line on disk before the next
step.

A first line records that a request is sent, with the most that it may cost; a second one its
outcome. After a kill, requests without an outcome are in doubt: they are sent again, and their most
counts as spent. An answer in the journal is never requested again, unless a change of the config
changes the request.
"""

from __future__ import annotations

import dataclasses
import fcntl
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slmctl.artifacts import json_lines
from slmctl.artifacts.json_lines import JsonLines
from slmctl.config import Prices
from slmctl.errors import LockedError

REFUSED = (400, 413, 422)  # statuses of requests that would be refused again
# statuses of attempts that may be charged without a count of tokens: broken off, or cut
CHARGED_UNTOLD = (0, 200)
Permission = Literal["send", "wait", "stop"]


@dataclass(frozen=True)
class TeacherAnswer:
    """One answer of a teacher.

    Attributes:
        cost: By the prices of its day; if the endpoint sent no usable token counts (not `counted`),
            the most it may be.
    """

    text: str
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    confidence: float | None = None
    cost: float = 0.0
    counted: bool = True


@dataclass
class Ledger:
    """The account of a teacher.

    Attributes:
        sent: Requests that went out, those of killed runs included.
        failed: Attempts without an answer.
        doubtful: Requests of killed runs without an outcome.
        prompt_tokens, completion_tokens: Of the answers, as the endpoint counted them.
        doubt: The most that attempts without a token count may have cost, on top of `cost`.
    """

    sent: int = 0
    answered: int = 0
    failed: int = 0
    doubtful: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    doubt: float = 0.0


def cost_of(prices: Prices | None, prompt_tokens: int, completion_tokens: int) -> float:
    return prices.of_tokens(prompt_tokens, completion_tokens) if prices is not None else 0.0


class Journal:
    """The journal of one teacher, locked against other processes.

    Raises:
        LockedError: Another process has it open.
    """

    def __init__(self, path: Path, prices: Prices | None = None) -> None:
        self.path, self.prices = path, prices
        self.ledger = Ledger()
        self.answers: dict[str, TeacherAnswer] = {}
        self.refused: set[str] = set()  # keys of requests that were
        self._out: dict[str, float] = {}  # the most that each pending request may cost
        # requests are sent in another thread than answers are read in
        self._writing = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(path)
        try:
            fcntl.flock(self._lines.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lines.close()
            raise LockedError(
                f"another process asks this teacher ({path.name})", hint="wait for it to end"
            ) from None
        self._read()

    def close(self) -> None:
        self._lines.close()

    @property
    def reserved(self) -> float:
        """The most that the pending requests may cost."""
        return sum(self._out.values())

    def found(self, keys: Iterable[str]) -> list[TeacherAnswer]:
        """The recorded answers to the requests with these keys."""
        return [self.answers[key] for key in keys if key in self.answers]

    def send(self, key: str, most: float) -> None:
        with self._writing:
            self._lines.append({"sent": key, "most": most})
            self._out[key] = most
            self.ledger.sent += 1

    def answer(self, key: str, answer: TeacherAnswer) -> None:
        """Record an answer; a second one to the same request changes the ledger only."""
        with self._writing:
            if not answer.counted:
                answer = dataclasses.replace(answer, cost=self._out.get(key, 0.0))
            self._lines.append({"answered": key, **dataclasses.asdict(answer)})
            self._out.pop(key, None)
            self._count(key, answer)

    def fail(self, key: str, status: int) -> None:
        with self._writing:
            most = self._out.pop(key, 0.0) if status in CHARGED_UNTOLD else 0.0
            self._lines.append({"failed": key, "status": status, "most": most})
            self._out.pop(key, None)
            self._count_failed(key, status, most)

    def _count(self, key: str, answer: TeacherAnswer) -> None:
        self.answers.setdefault(key, answer)
        self.ledger.answered += 1
        self.ledger.prompt_tokens += answer.prompt_tokens
        self.ledger.completion_tokens += answer.completion_tokens
        self.ledger.cost += answer.cost

    def _count_failed(self, key: str, status: int, most: float) -> None:
        self.ledger.failed += 1
        self.ledger.doubt += most
        if status in REFUSED:
            self.refused.add(key)

    def _read(self) -> None:
        out: dict[str, float] = {}
        for fields in json_lines.read(self.path):
            if "sent" in fields:
                # sent again: nothing is known of the first time
                self.ledger.doubtful += fields["sent"] in out
                self.ledger.doubt += out.get(fields["sent"], 0.0)
                self.ledger.sent += 1
                out[fields["sent"]] = fields["most"]
            elif "answered" in fields:
                key = fields.pop("answered")
                out.pop(key, None)
                self._count(key, TeacherAnswer(**fields))
            elif "failed" in fields:
                out.pop(fields["failed"], None)
                self._count_failed(fields["failed"], fields["status"], fields["most"])
        self.ledger.doubtful += len(out)
        self.ledger.doubt += sum(out.values())


class Budget:
    """A ceiling of the cost of all answers, over all journals, checked before each request."""

    def __init__(self, journals: Sequence[Journal], max_cost: float | None) -> None:
        self._journals, self._max_cost = journals, max_cost
        self._taking = threading.Lock()
        self.reached = False  # the ceiling ended the run

    @property
    def spent(self) -> float:
        """The cost of the answers, and the most that attempts in doubt may have cost."""
        return sum(journal.ledger.cost + journal.ledger.doubt for journal in self._journals)

    def take(self, journal: Journal, key: str, most: float) -> Permission:
        """Record a request as sent if its most fits the ceiling, with all that is spent and
        pending.

        `wait`: it may fit when pending requests have ended; `stop`: the ceiling is reached.
        """
        with self._taking:
            if self.reached:
                return "stop"
            if self._max_cost is not None:
                out = sum(journal.reserved for journal in self._journals)
                if self.spent + out + most > self._max_cost:
                    if out:
                        return "wait"
                    self.reached = True
                    return "stop"
            journal.send(key, most)
            return "send"
