"""Answers in OpenAI's form: whole, as a stream of chunks, or an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference.events import Event, TokenInfo
from slmctl.server.openai_requests import CheckedRequest, ServedModel

LABELS = 5  # the likeliest ones that an answer tells with their probabilities


@dataclass
class ReplyChoice:
    """One answer as it grows: its text, its tokens where they were asked for, and the event that ended it.

    Attributes:
        function: The function that it calls, whose arguments its text is; empty for a message.
    """

    text: str = ""
    tokens: list[TokenInfo] = field(default_factory=list)
    last: Event = field(default_factory=Event)
    function: str = ""

    def add(self, event: Event) -> None:
        self.text += event.get("piece", "")
        self.tokens += event.get("tokens", [])
        if "finish" in event:
            self.last = event


def whole(
    checked: CheckedRequest, choices: Sequence[ReplyChoice], extras: Sequence[dict[str, Any]], build: str, name: str
) -> dict[str, Any]:
    """The body of an answer that is not streamed, by the model `name`; `extras` is what slmctl adds to each choice."""
    listed = []
    for index, choice in enumerate(choices):
        part: dict[str, Any] = {"text": choice.text}
        if checked.kind == "chat":
            part = {"message": {"role": "assistant", **_said(checked, index, choice), "refusal": None}}
        tokens = _logprobs(checked, choice.tokens, 0) if checked.tells_tokens else None
        finish = _finish(checked, choice.function, choice.last)
        listed.append({"index": index, **part, "logprobs": tokens, "finish_reason": finish})
        if len(choices) > 1:
            listed[-1]["slmctl"] = extras[index]
    return {
        **_head(checked, build, "chat.completion" if checked.kind == "chat" else "text_completion", name),
        "choices": listed,
        "usage": usage(checked, [choice.last for choice in choices]),
        "slmctl": extras[0],
    }


class Stream:
    """The chunks of a streamed answer, as server-sent events."""

    def __init__(self, checked: CheckedRequest, build: str, name: str) -> None:
        self.checked = checked
        kind = "chat.completion.chunk" if checked.kind == "chat" else "text_completion"
        self._head = json.dumps(_head(checked, build, kind, name))[:-1]
        self._length = [0] * len(checked.requests)  # characters of each choice so far
        self._functions = [checked.function] * len(checked.requests)  # that each choice calls

    def opening(self) -> bytes:
        if self.checked.kind != "chat":
            return b""
        if self.checked.may_call:  # or not: that is not decided yet
            parts = [{"content": None} for _ in self._functions]
        else:
            parts = [_said(self.checked, k, ReplyChoice(function=name)) for k, name in enumerate(self._functions)]
        return b"".join(
            self._chunk(k, {"delta": {"role": "assistant", **_indexed(part)}}) for k, part in enumerate(parts)
        )

    def call(self, index: int, name: str) -> bytes:
        self._functions[index] = name
        return self._chunk(index, {"delta": _indexed(_said(self.checked, index, ReplyChoice(function=name)))})

    def piece(self, index: int, event: Event) -> bytes:
        text = event.get("piece", "")
        part: dict[str, Any] = {"text": text}
        if self.checked.kind == "chat":
            arguments = [{"index": 0, "function": {"arguments": text}}]
            part = {"delta": {"tool_calls": arguments} if self._functions[index] else {"content": text}}
        if self.checked.tells_tokens:
            part["logprobs"] = _logprobs(self.checked, event.get("tokens", []), self._length[index])
        self._length[index] += len(text)
        return self._chunk(index, part)

    def end(self, index: int, event: Event, extra: dict[str, Any]) -> bytes:
        rest = self.piece(index, event | {"piece": ""}) if event.get("tokens") else b""
        part: dict[str, Any] = {"delta": {}} if self.checked.kind == "chat" else {"text": ""}
        return rest + self._chunk(index, part, _finish(self.checked, self._functions[index], event), slmctl=extra)

    def ending(self, lasts: Sequence[Event]) -> bytes:
        counts = self._line(choices=[], usage=usage(self.checked, lasts)) if self.checked.with_usage else b""
        return counts + b"data: [DONE]\n\n"

    def failed(self, error: JsonObject) -> bytes:
        return f"data: {json.dumps(error)}\n\n".encode()

    def _chunk(self, index: int, part: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        return self._line(choices=[{"index": index, **part, "finish_reason": finish}], **more)

    def _line(self, **fields: Any) -> bytes:
        return f"data: {self._head}, {json.dumps(fields)[1:]}\n\n".encode()


def error(message: str, kind: str, param: str = "", code: str = "", request_id: str = "") -> dict[str, Any]:
    fields = {"message": message, "type": kind, "param": param or None, "code": code or None}
    return {"error": fields | ({"request_id": request_id} if request_id else {})}


def usage(checked: CheckedRequest, lasts: Sequence[Event]) -> dict[str, int]:
    """Tokens of the prompts, each counted once, and of all answers."""
    prompts = {request.prompt: last["prompt_tokens"] for request, last in zip(checked.requests, lasts, strict=True)}
    prompt, answer = sum(prompts.values()), sum(last["completion_tokens"] for last in lasts)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def facts(checked: CheckedRequest, event: Event) -> dict[str, Any]:
    """slmctl's own fields of an answer: kind of task, confidence, likeliest labels, options without effect."""
    labels = dict(list(event.get("labels", {}).items())[:LABELS])
    return {
        "task": checked.model.task.kind,
        "confidence": event.get("confidence"),
        **({"labels": labels} if labels else {}),
        **({"ignored": list(checked.ignored)} if checked.ignored else {}),
    }


def release(model: ServedModel) -> dict[str, str]:
    """Version and file of a model, as far as they are known: its name stays the same while releases change."""
    return {key: value for key, value in (("version", model.version), ("file", model.file)) if value}


def call_id(checked: CheckedRequest, index: int) -> str:
    return f"call_{checked.id}{index or ''}"


def with_alternatives(tokens: Sequence[TokenInfo]) -> list[JsonObject]:
    """Tokens with their log probabilities, in the form of a chat."""
    return [{k: v for k, v in token.items() if k != "top"} | {"top_logprobs": token["top"]} for token in tokens]


def _said(checked: CheckedRequest, index: int, choice: ReplyChoice) -> dict[str, Any]:
    if not choice.function:
        return {"content": choice.text}
    function = {"name": choice.function, "arguments": choice.text}
    call = {"id": call_id(checked, index), "type": "function", "function": function}
    return {"content": None, "tool_calls": [call]}


def _indexed(part: dict[str, Any]) -> dict[str, Any]:
    """The same in a chunk, where calls are numbered."""
    calls = [{"index": k, **call} for k, call in enumerate(part.get("tool_calls", ()))]
    return part | ({"tool_calls": calls} if calls else {})


def _finish(checked: CheckedRequest, function: str, last: Event) -> str:
    """OpenAI's word for the end of an answer; a call that the client made a model make ends as a text does."""
    return "tool_calls" if function and checked.may_call and last["finish"] == "stop" else last["finish"]


def _head(checked: CheckedRequest, build: str, kind: str, name: str) -> dict[str, Any]:
    prefix = "chatcmpl" if checked.kind == "chat" else "cmpl"
    return {
        "id": f"{prefix}-{checked.id}", "object": kind, "created": checked.created, "model": name,
        "system_fingerprint": build,
    }  # fmt: skip


def _logprobs(checked: CheckedRequest, tokens: Sequence[TokenInfo], offset: int) -> dict[str, Any]:
    if checked.kind == "chat":
        return {"content": with_alternatives(tokens), "refusal": None}
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {alternative["token"]: alternative["logprob"] for alternative in token["top"]} for token in tokens
        ],
        "text_offset": offsets,
    }
