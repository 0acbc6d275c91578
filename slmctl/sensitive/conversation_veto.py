"""Decide whether a conversation may leave this machine, before anything else: sensitive or in doubt, it stays.

A conversation stays where a detector finds something in it (`slmctl.sensitive`), where its caller marks it, and where
it cannot be searched: it is too long, the search is late, or it holds what is not text. Findings of kinds that the
config names may be replaced by marks instead; their values never leave, and are put back into the answer here.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slmctl.sensitive import Finding, search_process

HEADER = "x-slmctl-sensitive"
NOT_MARKED = ("false", "0", "no", "off")  # any other value of the header marks the request
ROLES = ("system", "user", "assistant", "tool")
# Fields of a message that hold a part of the conversation beside its text. No other field but role and content is sent.
UNREAD = ("audio", "function_call", "images", "reasoning", "reasoning_content", "refusal", "tool_call_id", "tool_calls")
LONGEST = 1 << 18  # characters of a conversation that is searched
LETTERS = 4  # lines of one character, from which a text may be spelled a character a line
SEARCH_S = 2.0  # for the detectors, which take a millisecond
_MARK = re.compile(r"\[[a-z]{1,20}_[0-9]{1,9}\]", re.IGNORECASE)

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Cleared:
    """The part of a conversation that may leave.

    Attributes:
        messages: The messages that may leave; empty where none may.
        reason: Why none may: `sensitive`, or `doubt` where the conversation could not be searched; else empty.
        marks: Mark: the value that it stands for in `messages`, to restore an answer.
    """

    messages: Messages = field(default_factory=list, repr=False)
    reason: str = ""
    marks: Mapping[str, str] = field(default_factory=dict, repr=False)


def is_marked(headers: Mapping[str, str]) -> bool:
    """True if the caller's header marks the request as sensitive, as any value but a clear no does."""
    return any(name.lower() == HEADER and value.strip().lower() not in NOT_MARKED for name, value in headers.items())


def unread_fields(message: Mapping[str, Any]) -> list[str]:
    """The fields of a message that hold a part of the conversation and are not searched, such as `tool_calls`."""
    return [name for name in UNREAD if message.get(name) not in (None, "", [], {})]


def clear(
    messages: Sequence[Any],
    *,
    redact: Collection[str] = (),
    also: Sequence[str] = (),
    timeout_s: float = SEARCH_S,
    client: str = "",
) -> Cleared:
    """Decide on the content of a conversation. It blocks until the search ends, so call it off the event loop.

    Args:
        messages: Each with `role` and `content`, a text.
        redact: Kinds that are replaced by marks; any other kind keeps the conversation here.
        also: Further texts that are searched, of calls and tools; a finding of any kind in one keeps it here.
        timeout_s: Seconds for each of the two searches: of the conversation, and of what is left of it.
        client: The name of the key that it came with; clients take turns.

    Raises:
        SearchError: A search took longer, or its process died. The caller takes it for a doubt, as any exception.
    """
    if not messages:
        return Cleared(reason="doubt")  # the question is not among the messages, so it cannot be searched
    for message in messages:
        if not isinstance(message.get("content"), str) or message.get("role") not in ROLES or unread_fields(message):
            return Cleared(reason="doubt")  # pictures are not searched, nor are calls that nobody made a text of
    plain = [_plain(message) for message in messages]
    also = (*also, *dict.fromkeys(message["name"] for message in plain if "name" in message))
    if sum(len(message["content"]) for message in plain) + sum(map(len, also)) > LONGEST:
        return Cleared(reason="doubt")

    def search(messages: Messages) -> list[list[Finding]]:
        texts = itertools.chain(_readings(messages), _further(also))
        return search_process.find(texts, timeout_s=timeout_s, client=client)

    if not any(findings := search(plain)):
        return Cleared(plain)
    if redact:
        marked, marks = _redacted(plain, findings, frozenset(redact))
        if marks and not any(search(marked)):
            return Cleared(marked, marks=marks)
    return Cleared(reason="sensitive")


def restore(text: str, marks: Mapping[str, str], *, is_json: bool = False) -> str:
    """An answer with the values of its marks; in JSON inside its texts, so that it stays JSON.

    Raises:
        ValueError: `is_json`, and the text is not JSON.
    """
    if not marks:
        return text
    if is_json:
        return json.dumps(_in_values(json.loads(text), marks), ensure_ascii=False)
    return _MARK.sub(lambda match: marks.get(match[0].upper(), match[0]), text)


def _in_values(value: Any, marks: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _in_values(inner, marks) for key, inner in value.items()}
    if isinstance(value, list):
        return [_in_values(inner, marks) for inner in value]
    return restore(value, marks) if isinstance(value, str) else value


def _readings(messages: Messages) -> Iterator[str]:
    """Every message, and the ways to spell a value over several messages, over lines, or backwards."""
    texts = [message["content"] for message in messages]
    yield from texts
    for part in (texts, [message["content"] for message in messages if message["role"] == "user"]):
        if len(part) > 1:
            yield from ("".join(part), " ".join(part))
    yield from (text[::-1] for text in texts)
    for text in texts:
        yield from _over_lines(text)


def _plain(message: Mapping[str, Any]) -> dict[str, str]:
    """The part of a message that is known: of a tool's result its name too, which is searched as its text is."""
    plain = {"role": message["role"], "content": message["content"]}
    name = message.get("name") if message["role"] == "tool" else None
    return plain | ({"name": name} if isinstance(name, str) else {})


def _further(also: Sequence[str]) -> Iterator[str]:
    """Texts beside the messages, and the ways to spell a value over them, over their lines, or backwards."""
    if also:
        yield from also
        yield " ".join(also)
        yield from (text[::-1] for text in also)
        for text in also:
            yield from _over_lines(text)


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value, the keys of its objects and its numbers too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _over_lines(text: str) -> Iterator[str]:
    """The ways to spell a value over the lines of one text: broken anywhere, or a character a line."""
    lines = text.splitlines()
    if len(lines) < 2:
        return
    bare = [line.strip() for line in lines]
    yield "".join(lines)
    if bare != lines:
        yield "".join(bare)
    if sum(len(line) == 1 for line in bare) >= LETTERS:
        yield " ".join(bare)


def _redacted(
    messages: Messages, findings: Sequence[Sequence[Finding]], kinds: frozenset[str]
) -> tuple[Messages, dict[str, str]]:
    """The messages with a mark for each value of these kinds, and the value of each mark.

    A mark that is written in the conversation itself is not used.
    """
    written = {mark.upper() for message in messages for mark in _MARK.findall(message["content"])}
    free = {kind: _marks(kind, written) for kind in kinds}
    by_value: dict[str, str] = {}
    result = []
    for message, in_message in zip(messages, findings, strict=False):  # further findings are of other readings
        text, done, pieces = message["content"], 0, []
        for finding in in_message:
            value = text[finding.start : finding.end]
            if finding.kind in kinds:
                if value not in by_value:
                    by_value[value] = next(free[finding.kind])
                pieces += [text[done : finding.start], by_value[value]]
                done = finding.end
        result.append({**message, "content": "".join([*pieces, text[done:]])})
    return result, {mark: value for value, mark in by_value.items()}


def _marks(kind: str, taken: Collection[str]) -> Iterator[str]:
    """The marks of a kind that are not taken."""
    return (mark for k in itertools.count(1) if (mark := f"[{kind.upper()}_{k}]") not in taken)
