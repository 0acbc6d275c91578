"""Decides if a conversation may leave this machine; a sensitive or doubtful one stays.

A conversation stays if a detector finds something in it (`slmctl.sensitive`), if its caller marks
it as sensitive, or if it cannot be searched: it is too long, holds other content than text, or the
search is late. Findings of kinds that the config names may be replaced by marks instead; their
values never leave, and are restored in the answer here.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from slmctl.artifacts.bounded_json import MAX_DEPTH, is_deeper
from slmctl.sensitive import Finding, search_process

HEADER = "x-slmctl-sensitive"
NOT_MARKED = ("false", "0", "no", "off")  # any other value of the header marks the request
ROLES = ("system", "user", "assistant", "tool")
# Fields of a message with other parts of the conversation than its text. Only role and content are
# sent.
UNREAD = (
    "audio",
    "function_call",
    "images",
    "reasoning",
    "reasoning_content",
    "refusal",
    "tool_call_id",
    "tool_calls",
)
LONGEST = 1 << 18  # characters; a longer conversation is not searched, and stays
LETTERS = 4  # least number of one-character lines in a text that is spelled a character a line
SEARCH_S = 2.0  # deadline of a search, which usually takes a millisecond
PARSED = 32  # places of a text at which JSON may begin
GLUED = 64  # characters of a value that lies in pieces in an inner object or list of JSON
_OPENING = re.compile(r"[\[{]")
_LAST_COMMA = re.compile(r",(?=\s{0,9}+[\]}])")
_JSON = json.JSONDecoder(  # keeps a number as it is written, and the values of equal keys
    parse_float=Decimal, object_pairs_hook=lambda pairs: [value for _, value in pairs]
)
_MARK = re.compile(r"\[[a-z]{1,20}_[0-9]{1,9}\]", re.IGNORECASE)

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Cleared:
    """The part of a conversation that may leave.

    Attributes:
        messages: The messages that may leave; empty if the conversation must stay.
        reason: `sensitive`, or `doubt` if the conversation could not be searched; '' if it may
            leave.
        marks: Mark in `messages` -> the value that it replaces, to restore an answer.
    """

    messages: Messages = field(default_factory=list, repr=False)
    reason: str = ""
    marks: Mapping[str, str] = field(default_factory=dict, repr=False)


def is_marked(headers: Mapping[str, str]) -> bool:
    """True if the header marks the request as sensitive: any value except those of NOT_MARKED."""
    return any(
        name.lower() == HEADER and value.strip().lower() not in NOT_MARKED
        for name, value in headers.items()
    )


def unread_fields(message: Mapping[str, Any]) -> list[str]:
    """The non-empty fields of a message that are part of the conversation
    but not searched, such as `tool_calls`.
    """
    return [name for name in UNREAD if message.get(name) not in (None, "", [], {})]


def clear(
    messages: Sequence[Any],
    *,
    redact: Collection[str] = (),
    also: Sequence[str] = (),
    timeout_s: float = SEARCH_S,
    client: str = "",
) -> Cleared:
    """Decide on a conversation by its content. Blocks until the search ends, so call it outside of
    the event loop.

    Args:
        messages: Messages with `role` and a text `content`.
        redact: Kinds that are replaced by marks; a finding of any other kind keeps the conversation
            here.
        also: Further texts to search, of calls and tools; any finding in them keeps the
            conversation here.
        timeout_s: Seconds for each of the two searches, of the conversation and of the redacted
            one.
        client: Name of the API key of the request; clients take turns.

    Raises:
        SearchError: A search took longer, or its process died. The caller must treat any exception
            as doubt.
    """
    if not messages:
        return Cleared(reason="doubt")  # the question is elsewhere, and cannot be searched
    for message in messages:
        if (
            not isinstance(message.get("content"), str)
            or message.get("role") not in ROLES
            or unread_fields(message)
        ):
            # images are not searched, nor calls that are not passed as text
            return Cleared(reason="doubt")
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
    """An answer with values in place of its marks; with `is_json` inside of JSON strings, so that
    it stays JSON.

    Raises:
        ValueError: `is_json` is true, and the text is not JSON.
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
    """The texts to search: every message, then messages joined, texts
    reversed, lines joined, and values of JSON.
    """
    texts = [message["content"] for message in messages]
    yield from texts
    for part in (texts, [message["content"] for message in messages if message["role"] == "user"]):
        if len(part) > 1:
            yield from ("".join(part), " ".join(part))
    yield from (text[::-1] for text in texts)
    for text in texts:
        yield from _over_lines(text)
        yield from _over_values(text)


def _plain(message: Mapping[str, Any]) -> dict[str, str]:
    """The known fields of a message: role, content and, for a tool's
    result, its name, which is searched too.
    """
    plain = {"role": message["role"], "content": message["content"]}
    name = message.get("name") if message["role"] == "tool" else None
    return plain | ({"name": name} if isinstance(name, str) else {})


def _further(also: Sequence[str]) -> Iterator[str]:
    """Further texts to search: each, all joined, reversed, with
    joined lines, and values of JSON.
    """
    if also:
        yield from also
        yield " ".join(also)
        yield from (text[::-1] for text in also)
        for text in also:
            yield from _over_lines(text)
            yield from _over_values(text)


def texts_in(value: Any) -> Iterator[str]:
    """Every string of a JSON value at any depth, with keys of objects and numbers as text."""
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
    """The lines of a text joined, for a value that is broken across
    lines or spelled a character a line.
    """
    lines = text.splitlines()
    if len(lines) < 2:
        return
    bare = [line.strip() for line in lines]
    yield "".join(lines)
    if bare != lines:
        yield "".join(bare)
    if sum(len(line) == 1 for line in bare) >= LETTERS:
        yield " ".join(bare)


def _over_values(text: str) -> Iterator[str]:
    """The values of JSON or a tuple in a text joined: texts as lines, and
    all without a gap, also in an inner part.
    """
    at, text = 0, _LAST_COMMA.sub("", text.replace("(", "[").replace(")", "]"))
    for _ in range(PARSED):
        if (opening := _OPENING.search(text, at)) is None:
            return
        try:
            value, at = _JSON.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            at = opening.end()
            continue
        if not is_deeper(value, MAX_DEPTH):
            inner: dict[str, None] = {}
            values = _values(value, inner)
            yield "\n\n".join(each for each in values if isinstance(each, str) and len(each) > 2)
            yield "".join(map(str, values))
            yield " x ".join(inner)
            for each in values:
                if isinstance(each, str) and _OPENING.match(each):
                    yield from _over_values(each)


def _values(value: Any, inner: dict[str, None]) -> list[Any]:
    """The values of a JSON document in order; in `inner`, those of
    each short object and list joined.
    """
    if not isinstance(value, list):
        return [value] if value is not None and not isinstance(value, bool) else []
    values = [each for part in value for each in _values(part, inner)]
    if len(values) <= GLUED and len(joined := "".join(map(str, values))) <= GLUED:
        inner[joined] = None
    groups = [
        f"{each:.0f}"
        for each in values
        if isinstance(each, int | Decimal) and 1000 <= each < 10_000
    ]
    if len(groups) == 4:  # a card among the numbers of its expiry
        inner[" ".join(groups)] = None
    return values


def _redacted(
    messages: Messages, findings: Sequence[Sequence[Finding]], kinds: frozenset[str]
) -> tuple[Messages, dict[str, str]]:
    """Returns (messages with a mark for each value of these kinds, mark -> value).

    A mark that already occurs in the conversation is not used.
    """
    written = {mark.upper() for message in messages for mark in _MARK.findall(message["content"])}
    free = {kind: _marks(kind, written) for kind in kinds}
    by_value: dict[str, str] = {}
    result = []
    # the rest belongs to joined and reversed texts
    for message, in_message in zip(messages, findings, strict=False):
        text, done = message["content"], 0
        pieces = []
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
    """The free marks of a kind, such as `[EMAIL_1]`, without those in `taken`."""
    return (mark for k in itertools.count(1) if (mark := f"[{kind.upper()}_{k}]") not in taken)
