"""Lengths of records in the base's tokens; the text that records share is tokenized once.

Tokenizing is the most expensive step of a row. A tokenizer first splits a text at control tokens.
So the text before the last control token in front of a question is counted once for all rows, and
the text from the first control token after the question once for each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from tokenizers import Tokenizer

from slmctl.errors import DataError
from slmctl.pipeline.row_estimate import CHARACTERS_A_TOKEN, TURN_TOKENS
from slmctl.task.chat_template import TemplateRefusedError
from slmctl.task.contract import Task
from slmctl.task.records import Record, RowRejectedError

REMEMBERED = 4096  # answers whose length is cached
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
# tokens that contexts and max_length are commonly set to
LIMITS = (256, 512, 1024, 2048, 4096, 8192)
BINS = 24  # of the histogram
_MARK = "\x00"
_PROBES = ("Is it <b>so</b>?\n\nYes: 5 + 5, {x} and no less", "a", "ÄRGER über 12.5 % 🙂 …")


@dataclass(frozen=True)
class PromptFrame:
    """A prompt with one question, in parts: `head + lead + question + follow + tail`.

    Attributes:
        head_length: Tokens of the head.
        lead: The text before the question, from the last control token on.
        follow: The text behind it, up to the next control token.
        tail: The rest, which an answer continues.
        roles: The roles of a record that has this form.
    """

    head_length: int
    lead: str
    follow: str
    tail: str
    roles: list[str]


@dataclass(frozen=True)
class CountableText:
    """A text whose tokens are to be counted, and the number of tokens that stand around it."""

    text: str
    around: int


class TokenCounter:
    def __init__(self, task: Task, tokenizer: Path) -> None:
        self._task = task
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tails: dict[str, int] = {}
        self._frame = self._find_frame()

    def countable(self, record: Record) -> CountableText:
        """The text of a record to tokenize: its question alone if the frame fits, else all of it.

        Raises:
            RowRejectedError: The base's chat template refuses the conversation.
        """
        frame = self._frame
        if frame is not None and self._fits(frame, record):
            question = self._task.defused(record.messages[-2]["content"])
            around = frame.head_length + self._tail_length(frame, record.answer)
            return CountableText(frame.lead + question + frame.follow, around)
        try:
            prompt = self._task.prompt(record.prompt_messages, tools=record.tools)
        except TemplateRefusedError as error:
            raise RowRejectedError("chat template", error.message) from None
        return CountableText(prompt + self._answer_text(record.answer), 0)

    def count(self, texts: Sequence[CountableText]) -> np.ndarray:
        """The tokens of each record, `(n,)`."""
        around = np.array([text.around for text in texts], dtype=np.int32)
        own = self._token_counts([text.text for text in texts])
        return around + np.array(own, dtype=np.int32)

    def _fits(self, frame: PromptFrame, record: Record) -> bool:
        if record.tools or [message["role"] for message in record.messages] != frame.roles:
            return False
        question = record.messages[-2]["content"]
        first = record.messages[0]["content"]
        # a template may strip a question, and a system prompt of the row's own is not the task's
        return question == question.strip() and first == (self._task.system or question)

    def _tail_length(self, frame: PromptFrame, answer: str) -> int:
        if answer not in self._tails:
            if len(self._tails) == REMEMBERED:
                self._tails.clear()
            tail = frame.tail + self._answer_text(answer)
            (self._tails[answer],) = self._token_counts([tail])
        return self._tails[answer]

    def _answer_text(self, answer: str) -> str:
        """An answer as it stands behind a prompt, with the end of its turn."""
        return self._task.rules.written(answer) + self._task.end

    def _token_counts(self, texts: list[str]) -> list[int]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding) for encoding in encodings]

    def _find_frame(self) -> PromptFrame | None:
        """The frame; None if the template changes a question, or the parts do not add up."""
        task = self._task
        try:
            marked = task.prompt(task.messages(_MARK))
            whole = [task.prompt(task.messages(probe)) for probe in _PROBES]
        except DataError:  # the template needs another form of conversation, which rows may have
            return None
        parts = marked.partition(_MARK)
        before, after = parts[0], parts[2]
        cut = max((before.rfind(token) for token in task.special_tokens), default=-1)
        stops = [after.find(token) for token in task.special_tokens if token in after]
        if cut < 0 or not stops:
            return None
        stop = min(stops)
        (head_length,) = self._token_counts([before[:cut]])
        roles = ["system"] if task.system else []
        frame = PromptFrame(
            head_length=head_length,
            lead=before[cut:],
            follow=after[:stop],
            tail=after[stop:],
            roles=[*roles, "user", "assistant"],
        )
        answered = [f"{text}{probe}{task.end}" for text, probe in zip(whole, _PROBES, strict=True)]
        lengths = []
        for probe in _PROBES:
            texts = [frame.lead + probe + frame.follow, frame.tail + probe + task.end]
            lengths.append(frame.head_length + sum(self._token_counts(texts)))
        adds_up = self._token_counts(answered) == lengths
        stays = whole == [before + probe + after for probe in _PROBES]
        return frame if adds_up and stays else None


class LengthEstimate:
    """Lengths by characters, where there is no tokenizer."""

    def countable(self, record: Record) -> CountableText:
        text = "".join(message["content"] for message in record.messages)
        return CountableText(text, TURN_TOKENS)

    def count(self, texts: Sequence[CountableText]) -> np.ndarray:
        """The estimated tokens of each record, `(n,)`."""
        lengths = [text.around + round(len(text.text) / CHARACTERS_A_TOKEN) for text in texts]
        return np.array(lengths, dtype=np.int32)


# The lengths of a data set


class Histogram(TypedDict):
    """Counts of equal bins, and their edges, one more than counts."""

    edges: list[int]
    counts: list[int]


class TokenFacts(TypedDict):
    """Lengths of records in tokens; `longer_than` holds the number of records over each common
    limit.

    `histogram` is missing without records, `estimated` where a base's tokenizer counted.
    """

    median: int
    p95: int
    max: int
    total: int
    quantiles: dict[str, int]
    histogram: NotRequired[Histogram]
    longer_than: dict[str, int]
    estimated: NotRequired[bool]


def length_facts(lengths: np.ndarray) -> TokenFacts:
    """Quantiles and a histogram of `(n,)` lengths in tokens, and the numbers over common limits."""
    if not len(lengths):
        return {"median": 0, "p95": 0, "max": 0, "total": 0, "quantiles": {}, "longer_than": {}}
    values = [int(value) for value in np.quantile(lengths, QUANTILES, method="lower")]
    quantiles = {f"{share:g}": value for share, value in zip(QUANTILES, values, strict=True)}
    counts, edges = np.histogram(lengths, bins=_edges(int(lengths.max())))
    histogram: Histogram = {"edges": edges.tolist(), "counts": counts.tolist()}
    over = {str(limit): int((lengths > limit).sum()) for limit in LIMITS}
    longer = {limit: count for limit, count in over.items() if count}
    return {
        "median": quantiles["0.5"],
        "p95": quantiles["0.95"],
        "max": values[-1],
        "total": int(lengths.sum()),
        "quantiles": quantiles,
        "histogram": histogram,
        "longer_than": longer,
    }


def _edges(longest: int) -> np.ndarray:
    width = -(-(longest + 1) // BINS)
    return np.arange(0, longest + 1 + width, width)
