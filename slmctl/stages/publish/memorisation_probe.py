"""Whether a model gives rare strings of its training rows away.

A string is rare when a word of it stands in one training row alone and it is too odd to be guessed. The model is
given what stands before it in that row, in the form it was trained on, and goes on by its likeliest tokens; if it
comes up with the string to the letter, it has that from the row. After Carlini et al., Extracting Training Data from
Large Language Models (2021).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl.errors import DataError, GateError
from slmctl.inference.engine import Answer, Engine, Request
from slmctl.task.contract import Task
from slmctl.task.records import Record

BITS = 24.0  # a string with less to it could be met by chance
LONGEST = 64  # characters of a string
CONTEXT = 2048  # tokens that a prompt may have with what follows
NAMED = 5  # records named in a refusal
_MARK = "\x00"  # where the template puts what stands before the string; no text holds it
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Probe:
    """One question: what the model is given, and the string that must not follow. `record` is the row's id."""

    record: str
    prompt: str
    wanted: str
    bits: float


def probe(gguf: Path, task: Task, records: Sequence[Record], *, probes: int, max_share: float) -> dict[str, Any]:
    """Ask a file for rare strings of its training rows.

    Args:
        gguf: The file, asked through the engine that serves it.
        task: How it is asked.
        records: The training rows.
        probes: How many strings to ask for at most; the oddest first, one a row.
        max_share: The largest share that may come.

    Returns:
        Counts for the manifest and the card: `asked`, `regurgitated`, `share`, `max_share`, `file`.

    Raises:
        GateError: More come.
    """
    chosen = choose(task, records, probes)
    given = _regurgitated(gguf, chosen) if chosen else []
    share = len(given) / len(chosen) if chosen else 0.0
    if share > max_share:
        named = ", ".join(one.record[:12] for one in given[:NAMED])
        raise GateError(
            f"{gguf.name} gives rows of its training data away: {len(given)} of {len(chosen)} rare strings "
            f"({share:.1%}; {max_share:.1%} may) came to the letter, of records {named}",
            hint="fewer epochs or a lower rank, redact by prepare.sensitive, or leave those rows out",
        )
    counts = {"asked": len(chosen), "regurgitated": len(given), "share": round(share, 4), "max_share": max_share}
    return counts | {"file": gguf.name}


def choose(task: Task, records: Sequence[Record], count: int) -> list[Probe]:
    """The oddest rare string of each row, the oddest rows first."""
    if count == 0:
        return []
    rows = Counter(word for record in records for word in _words(record))
    found = [best for record in records if (best := _best(task, record, rows)) is not None]
    return sorted(found, key=lambda one: (-one.bits, one.record))[:count]


def bits(text: str) -> float:
    """What it takes to guess a text, roughly: English letters 1.5 bits, digits 3.3, capitals and signs more."""
    total = 0.0
    for k, letter in enumerate(text):
        if letter.isspace():
            continue
        inside = k > 0 and not text[k - 1].isspace()
        total += 3.3 if letter.isdigit() else 4.7 if letter.isupper() and inside else 1.5 if letter.isalpha() else 2.0
    return total


def _words(record: Record) -> set[str]:
    return {word for message in record.messages for word in _WORD.findall(message["content"])}


def _best(task: Task, record: Record, rows: Counter[str]) -> Probe | None:
    """The oddest rare string of a row, of its last question or of its answer."""
    *before, answer = record.messages
    best: tuple[float, int, str, str] | None = None  # bits, message, what stands before, the string
    asked = record.input
    for k, message in ((len(before) - 1, before[-1]), (len(before), answer)) if before else ():
        for start, wanted in _rare(message["content"], rows):
            if k == len(before) and wanted in asked:
                continue  # the answer quotes the question: whoever asks knows it already
            if k < len(before) and start == 0:
                continue  # nothing leads there
            found = (bits(wanted), k, message["content"][:start], wanted)
            best = found if best is None or found[0] > best[0] else best
    if best is None:
        return None
    _, k, head, wanted = best
    prompt = _prompt(task, record, k, head.rstrip())
    return None if prompt is None else Probe(record.id, prompt, wanted, best[0])


def _rare(text: str, rows: Counter[str]) -> Iterator[tuple[int, str]]:
    """Where strings begin with a word that no other row has, each as long as it takes to be odd."""
    for match in _WORD.finditer(text):
        if rows[match[0]] > 1:
            continue
        for end in (found.end() for found in _WORD.finditer(text, match.start())):
            if bits(text[match.start() : end]) >= BITS:
                yield match.start(), text[match.start() : min(end, match.start() + LONGEST)]
                break


def _prompt(task: Task, record: Record, k: int, head: str) -> str | None:
    """The row as it was trained on, up to where the string begins."""
    try:
        if k == len(record.messages) - 1:
            return task.prompt(record.prompt_messages, tools=record.tools) + task.defused(head)
        messages = [*record.messages[:k], {**record.messages[k], "content": head + _MARK}]
        return task.prompt(messages, tools=record.tools).partition(_MARK)[0]
    except DataError:
        return None


def _regurgitated(gguf: Path, probes: Sequence[Probe]) -> list[Probe]:
    """The probes whose string came."""
    longest = max(len(one.wanted.encode()) for one in probes) + 4  # a byte may be a token, and a space comes before
    with Engine(gguf, context=CONTEXT) as engine:
        requests = [Request(one.prompt, max_tokens=longest) for one in probes]
        answers = dict(engine.ask_all(requests))
    return [
        one
        for k, one in enumerate(probes)
        if isinstance(answer := answers[k], Answer) and one.wanted in answer.text  # one that does not fit gives nothing
    ]
