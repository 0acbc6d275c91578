"""Writes collected answers and feedback to `serve.collect.to`, in a thread that no answer waits
for.

An answer is drawn at random (`draw`) and queued (`take`). The thread searches it for personal data
and secrets, drops it or replaces them by marks, and adds a line to the file of the day. Feedback is
written before queued answers, since its client waits. A full or slow disk, or a failing detector,
costs lines, never answers; lost lines are counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import queue
import random
import secrets
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from slmctl import sensitive
from slmctl.artifacts import json_lines
from slmctl.artifacts.json_lines import JsonLines
from slmctl.config import CollectConfig
from slmctl.console import timestamp
from slmctl.errors import SlmctlError, UsageError
from slmctl.production.records import (
    FEEDBACK,
    CollectedRow,
    Feedback,
    collected_files,
    last_feedback,
)
from slmctl.sensitive import conversation_veto
from slmctl.sources.reviewed import Choice

WAITING = 1000  # queued rows, and queued feedback; further ones are lost, and counted
WAITING_CHARACTERS = 1 << 25  # characters of all queued rows together
IDS = 50_000  # most recent answers for which feedback is accepted
MOST_WORDS = 8  # most pieces of feedback on one answer; each stays in the file as a line
MOST_FEEDBACK = 1 << 28  # bytes of the feedback file
SEARCHERS = 256  # threads that search feedback, or wait until it is their client's turn
LOOK_S = 60.0  # seconds between two checks for a new day while nothing is queued
CLOSE_S = 5.0  # seconds to write queued lines when the server stops
KINDS: tuple[Choice, ...] = ("uniform", "escalated", "unsure")
# a finding; a text that cannot be searched; a detector that failed
DROPPED = ("sensitive", "doubt", "failed")
FAMILIES = {  # name: kind, help
    "slmctl_collected": ("counter", "Answers that were collected, by what chose them."),
    "slmctl_collect_dropped": (
        "counter",
        "Answers that were left out: sensitive, or not to be searched.",
    ),
    "slmctl_collect_lost": (
        "counter",
        "Lines of answers and feedback that the disk did not take, or not in time.",
    ),
    "slmctl_feedback": (
        "counter",
        "Words of clients on answers: right, wrong, or with the right answer.",
    ),
}
Samples = Sequence[tuple[Mapping[str, str], float]]  # labels, value
_RANDOM = random.SystemRandom()


@dataclass(frozen=True)
class Draw:
    """The random draw for one answer.

    Attributes:
        chosen: Reason for which the answer is collected; None if it is not.
        uniform: True if it is in the uniform share.
        probability: Probability with which an answer of its kind is collected, 0 to 1.
    """

    chosen: Choice | None
    uniform: bool
    probability: float


@dataclass
class Answered:
    """An answer of this server, for feedback on it: id of its line, model, and the last feedback
    (ok, answer).

    Attributes:
        offers: True if the client sent its own tools, which are not kept.
        words: Number of different pieces of feedback on it.
    """

    row: str
    model: str
    offers: bool = False
    collected: bool = False
    last: tuple[bool | None, str | None] | None = None
    words: int = 0


@dataclass(frozen=True)
class _Row:
    row: CollectedRow
    id: str
    also: Sequence[str] = field(default=(), repr=False)
    client: str = ""

    @property
    def characters(self) -> int:
        texts = [
            *(str(message.get("content", "")) for message in self.row.messages),
            self.row.answer,
        ]
        return sum(map(len, (*texts, *self.also))) + len(self.row.local_answer)


@dataclass(frozen=True)
class _Word:
    line: Feedback
    written: Future[bool]


class Collector:
    """The writer of one server's collected answers and feedback.

    Args:
        settings: The section `serve.collect`.
        chance: Returns a random number from 0 to 1.
        now: Returns the time in UTC.

    Raises:
        UsageError: The folder cannot be created or written to.
    """

    def __init__(
        self,
        settings: CollectConfig,
        *,
        chance: Callable[[], float] = _RANDOM.random,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self.settings = settings
        self._chance = chance
        self._now = now
        self._feedback = settings.to / FEEDBACK
        try:
            if not settings.to.exists():
                settings.to.mkdir(mode=0o700, parents=True)
                # questions must not be published
                (settings.to / ".gitignore").write_text("*\n", encoding="utf-8")
            JsonLines(self._feedback, mode=0o600).close()
        except OSError as error:
            raise UsageError(
                f"answers cannot be collected in {settings.to}: {error.strerror}",
                hint="serve.collect.to names a folder",
            ) from None
        self._collected: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._words: Counter[str] = Counter()
        self._lost = 0
        self._lock = threading.Lock()  # around the counts and the ids
        self._ids: OrderedDict[str, Answered] = OrderedDict()  # by the id that the client knows
        self._rows, self._characters = 0, 0  # queued rows, and characters of their texts
        self._numbers = itertools.count()
        # (rank, number, item): feedback first, else first in, first out
        self._queue: queue.PriorityQueue[tuple[int, int, _Row | _Word | None]] = (
            queue.PriorityQueue(2 * WAITING)
        )
        # not the threads of the router
        self._searchers = ThreadPoolExecutor(SEARCHERS, thread_name_prefix="feedback")
        self._file: JsonLines | None = None
        self._day = ""
        self._remembered = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="collector")
        self._thread.start()

    def draw(self, *, escalated: bool = False, unsure: bool = False) -> Draw:
        """Draw an answer for the uniform share, and independently for the share of its kind."""
        settings = self.settings
        kind: Choice = "escalated" if escalated else "unsure" if unsure else "uniform"
        share = settings.escalated if escalated else settings.unsure if unsure else 0.0
        uniform, picked = self._chance() < settings.kept, self._chance() < share
        chosen: Choice | None = kind if picked else "uniform" if uniform else None
        return Draw(chosen, uniform, 1 - (1 - settings.kept) * (1 - share))

    def answered(self, id: str, model: str, *, offers: bool = False) -> str:
        """Remember an answer, so that feedback on it is accepted; returns the id of its line.

        If a client uses an id again, the line gets another id, and feedback goes to the last
        answer; after a restart to the first one, as the files hold no other line with that id.
        """
        with self._lock:
            row = f"{id}-{secrets.token_hex(4)}" if id in self._ids else id
            self._remember(id, Answered(row, model, offers))
        return row

    def take(
        self, row: CollectedRow, draw: Draw, *, id: str, also: Sequence[str] = (), client: str = ""
    ) -> None:
        """Queue an answer to be written, if it was drawn.

        Args:
            row: The answer; the fields about the draw are filled in here.
            id: The id that the client knows.
            also: Texts of calls and tools; a finding in one of them drops the answer.
            client: Name of the API key of the request.
        """
        if draw.chosen is None:
            return
        chosen = dataclasses.replace(
            row,
            chosen=draw.chosen,
            probability=round(draw.probability, 6),
            uniform=draw.uniform,
            uniform_probability=self.settings.kept,
        )
        item = _Row(chosen, id, also, client)
        with self._lock:
            has_room = (
                self._rows < WAITING and self._characters + item.characters <= WAITING_CHARACTERS
            )
            if is_taken := has_room and self._thread.is_alive() and self._put(item):
                self._rows, self._characters = self._rows + 1, self._characters + item.characters
        if not is_taken:
            self._lose()

    def drop(self, reason: str) -> None:
        """Count an answer that is never collected, for one of DROPPED."""
        with self._lock:
            self._dropped[reason] += 1

    def find(self, id: str) -> Answered | None:
        """The answer with this id; None for an unknown id. Waits until
        the ids in the files have been read.
        """
        self._remembered.wait(LOOK_S)
        with self._lock:
            return self._ids.get(id)

    def cleared(self, text: str, *, client: str = "") -> Future[str | None]:
        """The text of a client with marks for findings; None if it must
        not be written. Searched like an answer.
        """
        return self._searchers.submit(self._cleared_text, text, client)

    def _cleared_text(self, text: str, client: str) -> str | None:
        messages, _ = self._search([{"role": "user", "content": text}], client=client)
        cleared = messages[0]["content"] if messages is not None else None
        return (
            None
            if cleared is not None and _is_object(text) and not _is_object(cleared)
            else cleared
        )

    def say(
        self, answered: Answered, *, ok: bool | None, answer: str | None, key: str
    ) -> Future[bool]:
        """Write feedback; repeated equal feedback is written once. Resolves to False if it could
        not be written.

        A file of MOST_FEEDBACK bytes takes no more lines until old ones are removed.
        """
        written: Future[bool] = Future()
        if answered.last == (ok, answer):
            written.set_result(True)
            return written
        answered.words += 1
        line = Feedback(answered.row, timestamp(self._now()), ok, answer, key)

        def remember(done: Future[bool]) -> None:
            if done.result():
                with self._lock:
                    answered.last = (ok, answer)
                    self._words["answer" if answer is not None else "right" if ok else "wrong"] += 1
            else:
                answered.words -= 1  # what was not written may be sent again
                self._lose()

        written.add_done_callback(remember)
        if not self._thread.is_alive() or not self._put(_Word(line, written)):
            written.set_result(False)
        return written

    def figures(self) -> dict[str, Samples]:
        """The Prometheus samples of each of FAMILIES."""
        with self._lock:
            return {
                "slmctl_collected": [
                    ({"chosen": kind}, float(self._collected[kind])) for kind in KINDS
                ],
                "slmctl_collect_dropped": [
                    ({"reason": name}, float(self._dropped[name])) for name in DROPPED
                ],
                "slmctl_collect_lost": [({}, float(self._lost))],
                "slmctl_feedback": [
                    ({"verdict": name}, float(self._words[name]))
                    for name in ("right", "wrong", "answer")
                ],
            }

    def close(self) -> None:
        """Write the queued lines, within CLOSE_S seconds."""
        self._searchers.shutdown(wait=False, cancel_futures=True)
        with contextlib.suppress(queue.Full):
            self._queue.put((2, next(self._numbers), None), timeout=1)
        self._thread.join(CLOSE_S)

    # In any thread

    def _put(self, item: _Row | _Word) -> bool:
        try:
            self._queue.put_nowait((int(isinstance(item, _Row)), next(self._numbers), item))
        except queue.Full:
            return False
        return True

    def _lose(self) -> None:
        with self._lock:
            self._lost += 1

    def _remember(self, id: str, answered: Answered) -> None:
        self._ids[id] = answered
        self._ids.move_to_end(id)
        while len(self._ids) > IDS:
            self._ids.popitem(last=False)

    def _search(
        self, messages: conversation_veto.Messages, also: Sequence[str] = (), *, client: str
    ) -> tuple[conversation_veto.Messages | None, str]:
        """Returns (messages with marks for findings, '') or (None, reason of DROPPED)."""
        redact = sensitive.KINDS if self.settings.sensitive == "redact" else ()
        try:
            cleared = conversation_veto.clear(messages, redact=redact, also=also, client=client)
        except (SlmctlError, OSError, ValueError, RuntimeError):
            return None, "failed"
        return (None, cleared.reason) if cleared.reason else (cleared.messages, "")

    # In the thread

    def _work(self) -> None:
        self._recall()
        self._remembered.set()
        self._turn_over()
        while self._write_next():
            pass
        if self._file is not None:
            self._file.close()

    def _write_next(self) -> bool:
        """Write the next queued line; False at the end."""
        try:
            _, _, item = self._queue.get(timeout=LOOK_S)
        except queue.Empty:
            self._turn_over()
            return True
        self._turn_over()
        if isinstance(item, _Word):
            item.written.set_result(self._append_word(item.line))
        elif item is not None:
            self._append_row(item)
        if self._queue.empty() and self._file is not None:
            # lines that a full disk did not take are already counted
            with contextlib.suppress(OSError):
                self._file.flush()
        return item is not None

    def _append_row(self, item: _Row) -> None:
        row, reason = self._cleared(item.row, item.also, item.client)
        with self._lock:
            self._rows, self._characters = self._rows - 1, self._characters - item.characters
        if row is None:
            self.drop(reason)
            return
        try:
            if self._file is None:
                self._file = JsonLines(
                    self.settings.to / f"{self._day}.jsonl", mode=0o600, sync=False
                )
            # to_json leaves out an empty answer
            self._file.append({**row.to_json(), "answer": row.answer})
        except OSError:
            self._lose()
            return
        with self._lock:
            self._collected[row.chosen] += 1
            if (answered := self._ids.get(item.id)) is not None and answered.row == row.id:
                answered.collected = True

    def _append_word(self, line: Feedback) -> bool:
        try:
            if self._feedback.exists() and self._feedback.stat().st_size > MOST_FEEDBACK:
                return False
            with JsonLines(self._feedback, mode=0o600) as lines:
                lines.append(line.to_json())
        except OSError:
            return False
        return True

    def _cleared(
        self, row: CollectedRow, also: Sequence[str], client: str
    ) -> tuple[CollectedRow | None, str]:
        """Returns (row with marks for findings in messages and
        answers, '') or (None, reason of DROPPED).
        """
        answers = {
            name: text
            for name in ("answer", "local_answer", "general_answer")
            if (text := getattr(row, name))
        }
        # equal texts once, else a finding could span two copies
        texts = list(dict.fromkeys(answers.values()))
        turns = [{"role": "assistant", "content": text} for text in texts]
        messages, reason = self._search([*row.messages, *turns], also, client=client)
        if messages is None:
            return None, reason
        cut = len(row.messages)
        cleared = dict(zip(texts, (message["content"] for message in messages[cut:]), strict=True))
        if any(_is_object(text) and not _is_object(cleared[text]) for text in texts):
            return None, "sensitive"  # a mark in place of a number is not JSON
        changed = {name: cleared[text] for name, text in answers.items()}
        return dataclasses.replace(row, messages=list(messages[:cut]), **changed), ""

    def _turn_over(self) -> None:
        """On a new day, begin its file, and remove files and feedback older than `days`."""
        day = self._now().date()
        if str(day) == self._day:
            return
        self._day = str(day)
        if self._file is not None:
            self._file.close()
            self._file = None
        oldest = str(day - datetime.timedelta(days=self.settings.days))
        for path in collected_files([self.settings.to]):
            if _is_day(path.stem) and path.stem < oldest:
                with contextlib.suppress(OSError):
                    path.unlink()
        with contextlib.suppress(OSError):
            json_lines.rewrite(
                self._feedback, lambda fields: str(fields.get("time", oldest)) >= oldest
            )

    def _recall(self) -> None:
        """Read the ids of the last IDS answers, and the last feedback on each, from the files."""
        ids: OrderedDict[str, Answered] = OrderedDict()
        with contextlib.suppress(OSError):
            for path in reversed(collected_files([self.settings.to])):
                if len(ids) >= IDS:
                    break
                rows = [
                    (str(line.get("id", "")), str(line.get("model", "")), "tools" in line)
                    for line in json_lines.read(path)
                ]
                for id, model, offers in reversed(rows):
                    ids.setdefault(id, Answered(id, model, offers, collected=True))
            for id, word in last_feedback([self.settings.to]).items():
                if id in ids:
                    ids[id].last = (word.ok, word.answer)
        with self._lock:
            for id, answered in list(ids.items())[:IDS]:
                if id not in self._ids:  # an id in it was answered again meanwhile
                    self._ids[id] = answered
                    self._ids.move_to_end(id, last=False)
            while len(self._ids) > IDS:
                self._ids.popitem(last=False)


def _is_day(text: str) -> bool:
    try:
        return str(datetime.date.fromisoformat(text)) == text
    except ValueError:
        return False


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
