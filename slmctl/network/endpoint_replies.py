"""Reads replies of OpenAI-compatible endpoints, strictly and within bounds.

A reply that is too large, nested too deep or malformed raises `EndpointError`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

MAX_VALUES = 600_000  # commas and brackets of a JSON reply, which bound the memory of its values
MAX_TOKENS = 10**9  # largest token count that is accepted
MAX_ERROR = 1 << 16  # bytes of an error response that are read
BYTES_A_TOKEN = 256  # an answer with more on average exceeds its number of tokens


@dataclass(frozen=True)
class Reply:
    """One answer. Token counts are None if the endpoint sends none;
    `seconds` is for the successful attempt.
    """

    text: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    confidence: float | None = None  # 0 to 1; None if the endpoint sends none
    tool_calls: list[Any] | None = None  # unchanged from the reply
    # probabilities of a decisions API, likeliest first
    labels: Mapping[str, float] = field(default_factory=dict)


class TokenLogprob(TypedDict):
    """A token of an answer, or an alternative in its place, with its log probability."""

    token: str
    bytes: list[int]
    logprob: float


class AnswerToken(TokenLogprob):
    """A token of an answer; `top` holds the likeliest tokens in its place."""

    top: list[TokenLogprob]


class EndpointError(Exception):
    """An endpoint gave no answer.

    Attributes:
        message: The reason, in a sentence without the key.
        kind: `slow`, `unreachable`, `refused` (a status other than 200) or `unreadable` (not a
            valid reply).
        status: The HTTP status; 0 without a response.
        pause_s: Seconds of the endpoint's `Retry-After`.
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
        self.message = message
        self.kind = kind
        self.status = status
        self.pause_s = pause_s


@dataclass(frozen=True)
class Delta:
    """A piece of a streamed answer, and its tokens if the endpoint sends log probabilities."""

    text: str
    tokens: list[AnswerToken]


class StreamedReply:
    """The accumulated chunks of a streamed answer.

    Attributes:
        finish: The `finish_reason`; None until the answer has ended.
        labels: Label -> probability, if the endpoint is slmctl's own server and sends them.
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
        """The log probability of each token; [] if the endpoint sends none, or invalid ones."""
        return [token["logprob"] for token in self.tokens] if self._logprobs_valid else []

    @property
    def confidence(self) -> float | None:
        """The confidence sent by slmctl's own server, else the joint
        probability of the tokens, 0 to 1.
        """
        return self._confidence if self._confidence is not None else _joint(self.logprobs)

    def read(self, line: bytes, max_tokens: int) -> Delta | None:
        """Add one chunk, the JSON of a `data:` line; returns its piece of the answer, None without
        text.

        Raises:
            EndpointError: The line is not a chunk of a completion.
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
        if chunk.get("choices") in (None, []):  # a chunk with only token counts
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
    """The answer in the body of a chat completion that is not streamed.

    Raises:
        EndpointError: The body is not a chat completion, or longer than `max_tokens` tokens can be.
    """
    body = parsed(raw)
    choice, usage = _first_choice(body), mapping(body.get("usage"))
    reply_message = choice.get("message")
    if not isinstance(reply_message, dict) or not (
        "content" in reply_message or reply_message.get("tool_calls")
    ):
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
    text = "" if content is None else _text(content)  # a refusal has no content
    _require_length(text, max_tokens)
    prompt, completion = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
    tokens = _tokens(choice)
    logprobs = [token["logprob"] for token in tokens or ()]
    confidence = _probability(mapping(body.get("slmctl")).get("confidence"), _joint(logprobs))
    return Reply(text, _finish(choice) or "", prompt, completion, seconds, confidence, calls)


def unreadable(fault: str, form: str = "chat completion") -> EndpointError:
    return EndpointError(f"the reply is no {form}: {fault}", "unreadable", status=200)


def parsed(raw: bytes, form: str = "chat completion") -> dict[str, Any]:
    """The JSON object in a reply; NaN and infinities, which are not JSON, become None.

    Raises:
        EndpointError: The reply is not a JSON object, or has too many values; `form` names the
            expected reply.
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
    """True for text that can be encoded as UTF-8; JSON can hold lone surrogates, which cannot."""
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
        raise unreadable(
            f"an answer of {len(text)} characters to a request for {max_tokens} tokens"
        )


def _finish(choice: Mapping[str, Any]) -> str | None:
    """The `finish_reason`: `stop`, `length` or another short word; None without a valid one."""
    finish = choice.get("finish_reason")
    return finish if isinstance(finish, str) and re.fullmatch(r"[A-Za-z_]{1,32}", finish) else None


def count(value: object, otherwise: int | None = None) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else otherwise


def _probability(value: object, otherwise: float | None = None) -> float | None:
    valid = type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]
    return float(value) if valid else otherwise  # type: ignore[arg-type]


def probabilities(value: object) -> dict[str, float]:
    """Label -> probability; {} if any label or probability is invalid."""
    pairs = {name: _probability(share) for name, share in mapping(value).items()}
    valid = all(is_text(name) and share is not None for name, share in pairs.items())
    return {name: share for name, share in pairs.items() if share is not None} if valid else {}


def _tokens(choice: Mapping[str, Any]) -> list[AnswerToken] | None:
    """The tokens of a choice with log probabilities; [] without any, None if they are invalid."""
    logprobs = choice.get("logprobs")
    listed = logprobs.get("content") if isinstance(logprobs, dict) else logprobs
    if listed is None:
        return []
    try:
        return [
            {**_token(entry), "top": [_token(other) for other in entry.get("top_logprobs") or []]}
            for entry in listed
        ]
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _token(entry: dict[str, Any]) -> TokenLogprob:
    text, logprob = entry.get("token", ""), entry["logprob"]
    spelled = entry.get("bytes") or list(text.encode())
    # sums in float16 may be slightly above 0
    if type(logprob) not in (int, float) or not -1e9 < logprob <= 1e-3 or not is_text(text):
        raise ValueError("no log probability of a text")
    if not isinstance(spelled, list):
        raise TypeError("no list of bytes")
    return {"token": text, "bytes": list(bytes(spelled)), "logprob": min(0.0, float(logprob))}


def _joint(logprobs: Sequence[float]) -> float | None:
    """The joint probability of all tokens; None for an empty list."""
    return math.exp(sum(logprobs)) if logprobs else None


def message(raw: bytes) -> str:
    """The error message of an endpoint's response, as one
    printable line of at most 200 characters.
    """
    text = raw[:80].decode(errors="replace")
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
        error = json.loads(raw[:MAX_ERROR].decode())["error"]
        text = str(error["message"] if isinstance(error, dict) else error)[:200]
    return "".join(character if character.isprintable() else " " for character in text)
