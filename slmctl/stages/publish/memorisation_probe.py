"""Probe a GGUF file for rare strings of its training rows.

A string is rare when one of its words stands in a single training row and the string holds too much
information to be guessed. The model gets the text before the string, rendered as in training, and
continues greedily. If it produces the string to the letter, it memorised the row. After Carlini et
al., Extracting Training Data from Large Language Models (2021).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from slmctl.console import percent
from slmctl.errors import DataError, GateError
from slmctl.task.contract import Task
from slmctl.task.records import Message, Record

MIN_BITS = 24.0  # information in a string; one with less could be produced by chance
MAX_CHARACTERS = 64  # characters of a string
CONTEXT = 2048  # tokens of a prompt and its continuation
SHOWN = 5  # records named in a refusal
_MARK = "\x00"  # stands for the string while the template is rendered; no text holds it
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class MemorisationProbe:
    """One prompt and the string that must not follow it.

    Attributes:
        record: Id of the training record.
        prompt: The record rendered up to the string.
        bits: Information in it.
    """

    record: str
    prompt: str
    rare_string: str
    bits: float


def probe(
    gguf: Path, task: Task, records: Sequence[Record], *, probes: int, max_share: float
) -> dict[str, Any]:
    """Probe a file for rare strings of its training records.

    Args:
        gguf: The file, run by the engine that serves it.
        probes: Largest number of strings, those with the most bits first, one a record.
        max_share: Largest share of them that the model may produce.

    Returns:
        Counts for the manifest and the model card: `asked`, `regurgitated`, `share`, `max_share`,
        `file`.

    Raises:
        GateError: The model produced a larger share.
    """
    chosen = choose(task, records, probes)
    produced = _regurgitated(gguf, chosen) if chosen else []
    share = len(produced) / len(chosen) if chosen else 0.0
    if share > max_share:
        named = ", ".join(probe.record[:12] for probe in produced[:SHOWN])
        raise GateError(
            f"{gguf.name} reproduces training rows: {len(produced)} of {len(chosen)} rare strings "
            f"({percent(share)}, allowed {percent(max_share)}) to the letter, of records {named}",
            reason="memorised",
            hint="fewer epochs or a lower rank, redact by prepare.sensitive, or leave those rows "
            "out",
        )
    counts = {
        "asked": len(chosen),
        "regurgitated": len(produced),
        "share": round(share, 4),
        "max_share": max_share,
    }
    return counts | {"file": gguf.name}


def choose(task: Task, records: Sequence[Record], count: int) -> list[MemorisationProbe]:
    """The rare string with the most bits of each record; at most
    `count` of them, most bits first.
    """
    if count == 0:
        return []
    rows = Counter(word for record in records for word in _words(record))
    probes = [best for record in records if (best := _best(task, record, rows)) is not None]
    return sorted(probes, key=lambda probe: (-probe.bits, probe.record))[:count]


def bits(text: str) -> float:
    """Estimate of the information in a text, in bits: English letters
    1.5, digits 3.3, capitals 4.7, signs 2.
    """
    total = 0.0
    for k, letter in enumerate(text):
        if letter.isspace():
            continue
        inside = k > 0 and not text[k - 1].isspace()
        total += (
            3.3
            if letter.isdigit()
            else 4.7
            if letter.isupper() and inside
            else 1.5
            if letter.isalpha()
            else 2.0
        )
    return total


def _words(record: Record) -> set[str]:
    return {word for message in record.messages for word in _WORD.findall(message["content"])}


class _RareString(NamedTuple):
    """A rare string of a message, which is named by its index, with the text before it."""

    bits: float
    message: int
    head: str
    string: str


def _best(task: Task, record: Record, rows: Counter[str]) -> MemorisationProbe | None:
    """The rare string with the most bits in a record's last question or answer."""
    *before, answer = record.messages
    best: _RareString | None = None
    question = record.input
    places = [(len(before) - 1, before[-1]), (len(before), answer)] if before else []
    # values come from the question, spelled otherwise, so they show no memorisation
    if task.rules.structured:
        places = places[:1]
    for k, message in places:
        for start, rare_string in _rare(message["content"], rows):
            if k == len(before) and rare_string in question:
                continue  # the answer quotes the question, so the prompt holds the string
            if k < len(before) and start == 0:
                continue  # no text before it to prompt with
            head = message["content"][:start]
            candidate = _RareString(bits(rare_string), k, head, rare_string)
            best = candidate if best is None or candidate.bits > best.bits else best
    if best is None:
        return None
    prompt = _prompt(task, record, best.message, best.head.rstrip())
    if prompt is None:
        return None
    return MemorisationProbe(record.id, prompt, best.string, best.bits)


def _rare(text: str, rows: Counter[str]) -> Iterator[tuple[int, str]]:
    """(start, string) of each rare string: it begins with a word of
    this record alone and reaches MIN_BITS.
    """
    for match in _WORD.finditer(text):
        if rows[match[0]] > 1:
            continue
        for end in (word.end() for word in _WORD.finditer(text, match.start())):
            if bits(text[match.start() : end]) >= MIN_BITS:
                yield match.start(), text[match.start() : min(end, match.start() + MAX_CHARACTERS)]
                break


def _prompt(task: Task, record: Record, k: int, head: str) -> str | None:
    """The record rendered as in training, up to the string; None if the template refuses it."""
    try:
        if k == len(record.messages) - 1:
            return task.prompt(record.prompt_messages, tools=record.tools) + task.defused(head)
        cut: Message = {**record.messages[k], "content": head + _MARK}
        return task.prompt([*record.messages[:k], cut], tools=record.tools).partition(_MARK)[0]
    except DataError:
        return None


def _regurgitated(gguf: Path, probes: Sequence[MemorisationProbe]) -> list[MemorisationProbe]:
    """The probes whose string the model produced."""
    from slmctl.inference.engine import Answer, Engine, Request

    # a token may be one byte, after a space
    longest = max(len(probe.rare_string.encode()) for probe in probes) + 4
    with Engine(gguf, context=CONTEXT) as engine:
        requests = [Request(probe.prompt, max_tokens=longest) for probe in probes]
        answers = dict(engine.ask_all(requests))
    return [
        probe
        for k, probe in enumerate(probes)
        # a prompt that does not fit the context has an error for an answer
        if isinstance(answer := answers[k], Answer) and probe.rare_string in answer.text
    ]
