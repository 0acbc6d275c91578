"""Replies of OpenAI-compatible endpoints, read strictly and within bounds.

One that is too large, nested or malformed is an `EndpointError` and no answer.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

MAX_VALUES = 600_000  # commas and brackets of one JSON reply: what its values may cost in memory
MAX_TOKENS = 10**9  # that a reply may count
MAX_ERROR = 1 << 16  # bytes of a refusal that are read
BYTES_A_TOKEN = 256  # an answer with more of them, on the average, is not one of so many tokens


@dataclass(frozen=True)
class Reply:
    """One answer. Counts are in tokens, None where the endpoint gives none; `seconds` is of the attempt that worked."""

    text: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    confidence: float | None = None  # in 0..1, where the endpoint gives it
    tool_calls: list[Any] | None = None  # as the endpoint wrote them
    labels: Mapping[str, float] = field(default_factory=dict)  # probability of each, likeliest first, where it decides


class TokenLogprob(TypedDict):
    """One token of an answer, or one that was as likely in its place."""

    token: str
    bytes: list[int]
    logprob: float


class AnswerToken(TokenLogprob):
    """One token of an answer with the likeliest ones in its place."""

    top: list[TokenLogprob]


class EndpointError(Exception):
    """An endpoint gave no answer.

    Attributes:
        message: The reason, in a sentence without the key.
        kind: `slow`, `unreachable`, `refused` (a status other than 200) or `unreadable` (no strict reply).
        status: The HTTP status; 0 where there was none.
        pause_s: Seconds that the endpoint asks to be left alone.
    """

    def __init__(
        self,
        message: str,
        kind: Literal["slow", "unreachable", "refused", "unreadable"],
        *,
        status: int = 0,
        pause_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.message, self.kind, self.status, self.pause_s = message, kind, status, pause_s


@dataclass(frozen=True)
class Delta:
    """One piece of a streamed answer, and its tokens where the endpoint tells them."""

    text: str
    tokens: list[AnswerToken]


class StreamedReply:
    """The chunks of a streamed answer, added up.

    Attributes:
        finish: Why the answer ended; None until it has.
        labels: Probability of each label, where the endpoint is slmctl's own server and tells them.
    """

    def __init__(self) -> None:
        self.text = ""
        self.finish: str | None = None
        self.tokens: list[AnswerToken] = []
        self.labels: dict[str, float] = {}
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self._confidence: float | None = None
        self._logprobs_valid = True

    @property
    def logprobs(self) -> list[float]:
        """The log probability of each token; empty where the endpoint gives none that can be used."""
        return [token["logprob"] for token in self.tokens] if self._logprobs_valid else []

    @property
    def confidence(self) -> float | None:
        """In 0..1, as slmctl's own server says it, else the probability of the tokens."""
        return self._confidence if self._confidence is not None else _joint(self.logprobs)

    def read(self, line: bytes, max_tokens: int) -> Delta | None:
        """Take one chunk, the JSON of a `data:` line; the piece of the answer in it.

        Raises:
            EndpointError: It is no chunk of a completion.
        """
        if line == b"[DONE]":
            return None
        chunk = parsed(line)
        if isinstance(chunk.get("error"), dict | str):
            raise EndpointError(f"the answer was broken off: {message(line)}", "refused")
        usage, own = mapping(chunk.get("usage")), mapping(chunk.get("slmctl"))
        self.prompt_tokens = count(usage.get("prompt_tokens"), self.prompt_tokens)
        self.completion_tokens = count(usage.get("completion_tokens"), self.completion_tokens)
        self._confidence = _probability(own.get("confidence"), self._confidence)
        self.labels = probabilities(own.get("labels")) or self.labels
        if chunk.get("choices") in (None, []):  # a chunk of counts alone
            return None
        choice = _first_choice(chunk)
        self.finish = _finish(choice) or self.finish
        piece = choice["text"] if "text" in choice else mapping(choice.get("delta")).get("content")
        text = "" if piece is None else _text(piece)
        tokens = _tokens(choice)
        self._logprobs_valid &= tokens is not None
        self.tokens += tokens or []
        self.text += text
        _require_length(self.text, max_tokens)
        return Delta(text, tokens or []) if text else None


def read_reply(raw: bytes, seconds: float, max_tokens: int) -> Reply:
    """The answer in a body that is not streamed.

    Raises:
        EndpointError: It is no chat completion, or larger than an answer of so many tokens is.
    """
    body = parsed(raw)
    choice, usage = _first_choice(body), mapping(body.get("usage"))
    reply_message = choice.get("message")
    if not isinstance(reply_message, dict) or not ("content" in reply_message or reply_message.get("tool_calls")):
        raise unreadable("without a message")
    calls = reply_message.get("tool_calls") or None
    if calls is not None:
        if not isinstance(calls, list):
            raise unreadable("with tool calls that are no list")
        try:
            json.dumps(calls, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise unreadable("with a tool call that is no text") from None
    content = reply_message.get("content")
    text = "" if content is None else _text(content)  # a refusal to answer is an answer without words
    _require_length(text, max_tokens)
    prompt, completion = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
    tokens = _tokens(choice)
    logprobs = [token["logprob"] for token in tokens or ()]
    confidence = _probability(mapping(body.get("slmctl")).get("confidence"), _joint(logprobs))
    return Reply(text, _finish(choice) or "", prompt, completion, seconds, confidence, calls)


def unreadable(fault: str, form: str = "chat completion") -> EndpointError:
    return EndpointError(f"the reply is no {form}: {fault}", "unreadable", status=200)


def parsed(raw: bytes, form: str = "chat completion") -> dict[str, Any]:
    """The JSON object in a reply; NaN and infinities, which JSON has not, are null.

    Raises:
        EndpointError: It is none, or has too many values; `form` says what it should be.
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
        raise unreadable(f"more than {MAX_VALUES} values", form)
    try:
        body = json.loads(raw.decode(), parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        raise unreadable("no JSON in UTF-8", form) from None
    if not isinstance(body, dict):
        raise unreadable("no JSON object", form)
    return body


def _first_choice(body: Mapping[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise unreadable("without a choice")
    return choices[0]


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def is_text(value: object) -> bool:
    """True for text that can be encoded: JSON can spell half of a surrogate pair, which UTF-8 has not."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _text(value: object) -> str:
    if not isinstance(value, str) or not is_text(value):
        raise unreadable("an answer that is no text")
    return value


def _require_length(text: str, max_tokens: int) -> None:
    if len(text) > BYTES_A_TOKEN * max_tokens + BYTES_A_TOKEN:
        raise unreadable(f"an answer of {len(text)} characters to a request for {max_tokens} tokens")


def _finish(choice: Mapping[str, Any]) -> str | None:
    """`stop`, `length` or another short word."""
    finish = choice.get("finish_reason")
    return finish if isinstance(finish, str) and re.fullmatch(r"[A-Za-z_]{1,32}", finish) else None


def count(value: object, otherwise: int | None = None) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else otherwise


def _probability(value: object, otherwise: float | None = None) -> float | None:
    valid = type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]
    return float(value) if valid else otherwise  # type: ignore[arg-type]


def probabilities(value: object) -> dict[str, float]:
    """Label -> probability; empty where any of it is neither."""
    pairs = {name: _probability(share) for name, share in mapping(value).items()}
    valid = all(is_text(name) and share is not None for name, share in pairs.items())
    return {name: share for name, share in pairs.items() if share is not None} if valid else {}


def _tokens(choice: Mapping[str, Any]) -> list[AnswerToken] | None:
    """The tokens of a choice with log probabilities; empty where it has none, None where they cannot be used."""
    logprobs = choice.get("logprobs")
    listed = logprobs.get("content") if isinstance(logprobs, dict) else logprobs
    if listed is None:
        return []
    try:
        return [
            {**_token(entry), "top": [_token(other) for other in entry.get("top_logprobs") or []]} for entry in listed
        ]
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _token(entry: dict[str, Any]) -> TokenLogprob:
    text, logprob = entry.get("token", ""), entry["logprob"]
    spelled = entry.get("bytes") or list(text.encode())
    # float16 sums may end a little above 0
    if type(logprob) not in (int, float) or not -1e9 < logprob <= 1e-3 or not is_text(text):
        raise ValueError("no log probability of a text")
    if not isinstance(spelled, list):
        raise TypeError("no list of bytes")
    return {"token": text, "bytes": list(bytes(spelled)), "logprob": min(0.0, float(logprob))}


def _joint(logprobs: Sequence[float]) -> float | None:
    """The probability of all tokens; None where there is none."""
    return math.exp(sum(logprobs)) if logprobs else None


def message(raw: bytes) -> str:
    """An endpoint's own words for what is wrong, on one printable line of at most 200 characters."""
    text = raw[:80].decode(errors="replace")
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
        error = json.loads(raw[:MAX_ERROR].decode())["error"]
        text = str(error["message"] if isinstance(error, dict) else error)[:200]
    return "".join(character if character.isprintable() else " " for character in text)
