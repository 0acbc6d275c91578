"""How long records are in the base's tokens, without tokenizing again what they all share.

Tokenizing costs more than anything else that is done to a row. A tokenizer cuts a text at control tokens
before it does anything else, so what a chat template puts before the last one in front of a question, and
what follows the first one after it, are counted apart: once for all rows, and once an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from slmctl.errors import DataError
from slmctl.task.contract import Task
from slmctl.task.records import Record

REMEMBERED = 4096  # answers whose length is kept
_MARK = "\x00"
_PROBES = ("Is it <b>so</b>?\n\nYes: 5 + 5, {x} and no less", "a", "ÄRGER über 12.5 % 🙂 …")


@dataclass(frozen=True)
class PromptFrame:
    """A prompt with one question, in parts: `head + lead + question + follow + tail`.

    Attributes:
        head_length: Tokens of the head.
        lead: What stands before the question from the last control token on.
        follow: What stands behind it up to the next control token.
        tail: The rest, which an answer continues.
        roles: Of a record that has this form.
    """

    head_length: int
    lead: str
    follow: str
    tail: str
    roles: list[str]


class TokenCounter:
    """Counts the tokens of records: of prompt, answer and end of turn."""

    def __init__(self, task: Task, tokenizer: Path) -> None:
        self._task = task
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tails: dict[str, int] = {}
        self._frame = self._framed()

    def of(self, records: Sequence[Record]) -> np.ndarray:
        """The tokens of each record, `(n,)`."""
        texts, ends = [], np.zeros(len(records), dtype=np.int32)
        for k, record in enumerate(records):
            frame = self._frame if self._fits(record) else None
            if frame is None:
                prompt = self._task.prompt(record.prompt_messages, tools=record.tools)
                texts.append(prompt + self._task.defused(record.answer) + self._task.end)
            else:
                texts.append(frame.lead + self._task.defused(record.messages[-2]["content"]) + frame.follow)
                ends[k] = frame.head_length + self._tail(frame, record.answer)
        return ends + np.array(self._count(texts), dtype=np.int32)

    def _fits(self, record: Record) -> bool:
        if self._frame is None or record.tools or [m["role"] for m in record.messages] != self._frame.roles:
            return False
        question = record.messages[-2]["content"]
        # a template may strip a question, and a system prompt that a row brought is not the task's
        return question == question.strip() and record.messages[0]["content"] == (self._task.system or question)

    def _tail(self, frame: PromptFrame, answer: str) -> int:
        if answer not in self._tails:
            if len(self._tails) == REMEMBERED:
                self._tails.clear()
            (self._tails[answer],) = self._count([frame.tail + self._task.defused(answer) + self._task.end])
        return self._tails[answer]

    def _count(self, texts: list[str]) -> list[int]:
        return [len(one) for one in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _framed(self) -> PromptFrame | None:
        """None where the template does more than put a question into its place, or the parts do not add up."""
        task = self._task
        try:
            before, _, after = task.prompt(task.messages(_MARK)).partition(_MARK)
            whole = [task.prompt(task.messages(probe)) for probe in _PROBES]
        except DataError:  # it wants another conversation, as a row may have
            return None
        cut = max((before.rfind(token) for token in task.special_tokens), default=-1)
        found = [place for token in task.special_tokens if (place := after.find(token)) >= 0]
        if cut < 0 or not found:
            return None
        frame = PromptFrame(
            head_length=self._count([before[:cut]])[0],
            lead=before[cut:],
            follow=after[: min(found)],
            tail=after[min(found) :],
            roles=[*(["system"] if task.system else []), "user", "assistant"],
        )
        answered = [f"{text}{probe}{task.end}" for text, probe in zip(whole, _PROBES, strict=True)]
        parts = [[frame.lead + probe + frame.follow, frame.tail + probe + task.end] for probe in _PROBES]
        adds_up = self._count(answered) == [frame.head_length + sum(self._count(part)) for part in parts]
        return frame if adds_up and all(w == before + p + after for w, p in zip(whole, _PROBES, strict=True)) else None
