"""Records -> token ids with a loss mask on the answers, and a preview of them."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from slmctl import console
from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.config import FinetuneConfig
from slmctl.errors import DataError
from slmctl.model_files import hf_folder
from slmctl.stages.finetune.packing import IGNORED, EncodedRecord
from slmctl.task.contract import Task
from slmctl.task.documents import SMALLER, training
from slmctl.task.records import Message, Record, read_records, without_weight

TOGETHER = 256  # records whose prompts are rendered in one request


def preview(config: FinetuneConfig, *, base: Artifact, prepared: Artifact, count: int) -> str:
    """The first `count` training records token by token, `*`
    before every token that the loss is on.
    """
    task = Task.read(prepared.path)
    tokenizer = hf_folder.load_tokenizer(base.path)
    limit = config.max_length
    unlimited = config.model_copy(update={"max_length": sys.maxsize, "too_long": "error"})
    first = read_records(prepared.file("train.jsonl"))[:count]
    lines = []
    for record in training(first, task)[:count]:
        (row,), _ = encode([record], task, tokenizer, unlimited)
        size = len(row["input_ids"])
        fate = ""
        if size > limit and config.too_long == "truncate":
            (row,), _ = encode([record], task, tokenizer, config)
            fate = f"; cut from {size} to fit max_length {limit}"
        elif size > limit:
            outcome = "which finetune refuses" if config.too_long == "error" else "so it is dropped"
            fate = f"; longer than max_length {limit}, {outcome}"
        tokens = len(row["input_ids"])
        learned = sum(label != IGNORED for label in row["labels"])
        lines.append(f"{_place(record)}: {tokens} tokens, {learned} to learn{fate}")
        lines += _token_lines(row, tokenizer)
    return "\n".join(lines)


def _place(record: Record) -> str:
    return f"{record.id} ({console.place(record.source['file'], record.source['row'])})"


def _token_lines(row: EncodedRecord, tokenizer: Any) -> list[str]:
    """A line a token: `*` if the loss is on it, its id, its text, its weight unless that is 1."""
    lines = []
    for token, label, weight in zip(row["input_ids"], row["labels"], row["weights"], strict=True):
        mark = " " if label == IGNORED else "*"
        suffix = f"  weight {weight:g}" if mark == "*" and weight != 1 else ""
        text = tokenizer.decode([token])
        lines.append(f"{mark} {token:>7}  {text!r}{suffix}")
    return lines


def encode(
    records: Sequence[Record], task: Task, tokenizer: Any, config: FinetuneConfig
) -> tuple[list[EncodedRecord], dict[str, int]]:
    """Tokenize records; labels are IGNORED except for the tokens of answers.

    Returns:
        The encoded records, and how many of those over `max_length` were `dropped` and `truncated`.

    Raises:
        DataError: A record is longer than `max_length` with `too_long: error`, or even with its
            longest question cut to nothing; a record has no answer to learn; or no record is left.
    """
    rows: list[EncodedRecord] = []
    empty: list[str] = []
    cut = {"dropped": 0, "truncated": 0}
    limit = config.max_length
    for record, prompts in zip(records, _prompts(records, task), strict=True):
        row = _encode(record.messages, prompts, task, tokenizer)
        size = len(row["input_ids"])
        if size > limit and config.too_long == "drop":
            cut["dropped"] += 1
            continue
        if size > limit:
            where = f"record {_place(record)}"
            if config.too_long == "error":
                raise _too_long(where, size, limit, task)
            row = _truncated(record, task, tokenizer, limit, where)
            cut["truncated"] += 1
        if all(label == IGNORED for label in row["labels"]):
            empty.append(console.place(record.source["file"], record.source["row"]))
        rows.append(row)
    if empty:
        raise _nothing_to_learn(empty)
    if not rows:
        raise DataError(f"no record is left: all {len(records)} are longer than max_length {limit}")
    return rows, cut


def _too_long(where: str, size: int, limit: int, task: Task) -> DataError:
    other = "finetune.too_long=drop or truncate" if task.document is None else SMALLER
    return DataError(
        f"{where} has {size} tokens, max_length is {limit}",
        hint=f"--set finetune.max_length=N, or {other}",
    )


def _nothing_to_learn(places: Sequence[str]) -> DataError:
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return DataError(
        f"nothing to learn in {', '.join(places[:3])}{more}: no assistant message with a weight "
        "above 0",
        hint="leave these rows out, or give their answers a weight",
    )


def share_of(records: Sequence[Record], share: float) -> list[Record]:
    """Records whose hash, between 0 and 1, is at most `share`; at least one.
    Smaller shares are part of larger ones.
    """
    if share >= 1:
        return list(records)
    points = [_point(record) for record in records]
    limit = max(share, min(points))
    return [record for record, point in zip(records, points, strict=True) if point <= limit]


def _point(record: Record) -> float:
    """A number between 0 and 1 that follows from a record's messages alone."""
    raw = hashlib.sha256(canonical(["train_share", record.messages])).digest()
    return float(int.from_bytes(raw[:8]) / 2**64)


def _conversations(messages: Sequence[Message]) -> list[list[Message]]:
    """The messages before each answer, without their weights."""
    bare = [without_weight(message) for message in messages]
    return [bare[:at] for at, message in enumerate(messages) if message["role"] == "assistant"]


def _prompts(records: Sequence[Record], task: Task) -> Iterator[list[str]]:
    """The prompt of each answer of each record; rendered
    together, which is several times faster.
    """
    for start in range(0, len(records), TOGETHER):
        heads = []
        counts = []
        for record in records[start : start + TOGETHER]:
            conversations = _conversations(record.messages)
            heads += [(messages, record.tools) for messages in conversations]
            counts.append(len(conversations))
        prompts = iter(task.prompts(heads))
        for count in counts:
            yield list(itertools.islice(prompts, count))


def _encode(
    messages: Sequence[Message], prompts: Sequence[str], task: Task, tokenizer: Any
) -> EncodedRecord:
    """Tokenize one conversation, prompts and answers separately, as predict and serve tokenize a
    prompt alone.

    `prompts` are rendered as for them. Each assistant message is an answer to learn, unless its
    weight is 0.
    """
    ids: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    written = ""
    answers = [message for message in messages if message["role"] == "assistant"]
    for head, message in zip(prompts, answers, strict=True):
        if not head.startswith(written):
            raise DataError(
                "the chat template changes earlier turns when later ones follow, so they cannot be "
                "learned together",
                hint="split such conversations into one record a turn",
            )
        prompt = tokenizer(head[len(written) :], add_special_tokens=False).input_ids
        reply = task.rules.written(message["content"]) + task.end  # as later turns will show it
        answer = tokenizer(reply, add_special_tokens=False).input_ids
        weight = float(message.get("weight", 1))
        written = head + reply
        ids += prompt + answer
        labels += [IGNORED] * len(prompt)
        labels += answer if weight else [IGNORED] * len(answer)
        weights += [0.0] * len(prompt)
        weights += [weight] * len(answer)
    return EncodedRecord(input_ids=ids, labels=labels, weights=weights)


def _truncated(record: Record, task: Task, tokenizer: Any, limit: int, where: str) -> EncodedRecord:
    """Encode a record with the end of its longest question cut off, at most `limit` tokens; answers
    stay whole.

    Raises:
        DataError: It does not fit even with that question empty.
    """
    messages = [message.copy() for message in record.messages]
    questions = [message for message in messages if message["role"] not in ("assistant", "system")]
    longest = max(questions, key=lambda message: len(message["content"]))

    def encoded() -> EncodedRecord:
        prompts = task.prompts((turns, record.tools) for turns in _conversations(messages))
        return _encode(messages, prompts, task, tokenizer)

    row = encoded()
    while len(row["input_ids"]) > limit:
        text = longest["content"]
        tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places = tokens.offset_mapping
        if not places:
            raise DataError(
                f"{where} is longer than max_length {limit} whatever is cut",
                hint="--set finetune.too_long=drop",
            )
        excess = len(row["input_ids"]) - limit
        # cut the text where the first surplus token begins: decoding the other tokens could split a
        # character
        begin = places[-excess][0] if excess < len(places) else 0
        longest["content"] = text[: min(begin, len(text) - 1)]
        row = encoded()
    return row
