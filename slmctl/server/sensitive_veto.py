"""Whether a conversation may leave this machine, decided before anything else: sensitive or in doubt, it stays.

What the detectors find (`slmctl.sensitive`) stays, and what the caller marks stays. Kinds that the config names may
be replaced by marks instead; what they stand for never leaves, and comes back into the answer here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slmctl import sensitive

HEADER = "x-slmctl-sensitive"
NOT_MARKED = ("false", "0", "no", "off")  # any other value of the header marks the request
ROLES = ("system", "user", "assistant")

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Cleared:
    """What may leave of a conversation.

    Attributes:
        messages: What may leave; empty where nothing may.
        reason: Why nothing may: `sensitive`, or `doubt` where that could not be told; else empty.
        marks: What stands for what in `messages`, to restore an answer.
    """

    messages: Messages = field(default_factory=list, repr=False)
    reason: str = ""
    marks: Mapping[str, str] = field(default_factory=dict, repr=False)


def is_marked(headers: Mapping[str, str]) -> bool:
    """Whether the caller's header says that the request is sensitive; anything but a clear no does."""
    return any(name.lower() == HEADER and value.strip().lower() not in NOT_MARKED for name, value in headers.items())


def clear(messages: Sequence[Any], *, engine: sensitive.Engine = "rules", redact: Collection[str] = ()) -> Cleared:
    """Decide on the content of a conversation; what is raised here is a doubt to the caller.

    Args:
        messages: Each with `role` and `content`, a text.
        engine: Who looks.
        redact: Kinds that are replaced by marks; any other kind keeps the conversation here.
    """
    if not messages:
        return Cleared(reason="doubt")  # whatever was asked, it is not here to be looked at
    for message in messages:
        if not isinstance(message.get("content"), str) or message.get("role") not in ROLES:
            return Cleared(reason="doubt")  # pictures, tool calls: what is in them is not looked at
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    if not _anything(plain, engine):
        return Cleared(plain)
    if redact:
        marked, marks = _redacted(plain, engine, frozenset(redact))
        if marks and not _anything(marked, engine):
            return Cleared(marked, marks=marks)
    return Cleared(reason="sensitive")


def restore(text: str, marks: Mapping[str, str], *, is_json: bool = False) -> str:
    """An answer with what its marks stand for; in JSON inside its texts, so that it stays JSON.

    Raises:
        ValueError: It should be JSON and is not.
    """
    if not marks:
        return text
    if is_json:
        return json.dumps(_in_values(json.loads(text), marks), ensure_ascii=False)
    pattern = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
    return re.sub(pattern, lambda found: marks[found[0].upper()], text, flags=re.IGNORECASE)


def _in_values(value: Any, marks: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _in_values(inner, marks) for key, inner in value.items()}
    if isinstance(value, list):
        return [_in_values(inner, marks) for inner in value]
    return restore(value, marks) if isinstance(value, str) else value


def _anything(messages: Messages, engine: sensitive.Engine) -> bool:
    return any(sensitive.find(text, engine=engine) for text in _readings(messages))


def _readings(messages: Messages) -> Iterator[str]:
    """The ways in which a conversation could say a value: in a message, over several, over lines, or backwards."""
    texts = [message["content"] for message in messages]
    yield from texts
    for some in (texts, [message["content"] for message in messages if message["role"] == "user"]):
        if len(some) > 1:
            yield from ("".join(some), " ".join(some))
    yield from (text[::-1] for text in texts)
    yield from ("".join(lines) for lines in (text.splitlines() for text in texts) if len(lines) > 1)


def _redacted(messages: Messages, engine: sensitive.Engine, kinds: frozenset[str]) -> tuple[Messages, dict[str, str]]:
    """The messages with a mark for each value of these kinds, the same for the same value; none found, no marks."""
    every = "\n".join(message["content"] for message in messages).upper()
    by_value: dict[str, str] = {}
    result = []
    for message in messages:
        text, done, pieces = message["content"], 0, []
        for finding in sensitive.find(text, engine=engine):
            value = text[finding.start : finding.end]
            if finding.kind in kinds:
                mark = by_value.get(value) or _new_mark(finding.kind, by_value.values(), every)
                by_value[value] = mark
                pieces += [text[done : finding.start], mark]
                done = finding.end
        result.append({**message, "content": "".join([*pieces, text[done:]])})
    return result, {mark: value for value, mark in by_value.items()}


def _new_mark(kind: str, taken: Iterable[str], text: str) -> str:
    """A mark that is neither taken nor written in the conversation itself."""
    number = 1
    while (mark := f"[{kind.upper()}_{number}]") in taken or mark in text:
        number += 1
    return mark
