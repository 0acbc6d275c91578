"""`/v1/chat/completions`: a conversation, with tools where the model calls them."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError
from slmctl.inference.events import TokenInfo
from slmctl.server.forms import tool_requests
from slmctl.server.forms.completions import (
    READ,
    CompletionForm,
    Fits,
    PromptedTurns,
    RenderedPrompt,
    Stream,
)
from slmctl.server.forms.options import flag, number
from slmctl.server.forms.request import AnswerStream, CheckedRequest, ReplyChoice, ServedModel
from slmctl.server.forms.tool_requests import Offer
from slmctl.server.request_errors import RequestError
from slmctl.task.records import Message

ALTERNATIVES = 20  # as OpenAI has them
RENDER_S = 2.0  # seconds that the chat template may take for one prompt
CACHED = 8192  # characters of a system prompt whose rendered head is kept
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ChatForm(CompletionForm):
    """Completions of conversations."""

    path, question = "/v1/chat/completions", "messages"
    reads = READ | {
        "messages",
        "max_completion_tokens",
        "top_logprobs",
        "response_format",
        "structured_outputs",
        "tools",
    }
    kinds, prefix = ("chat.completion", "chat.completion.chunk"), "chatcmpl"

    def prompted(
        self, body: JsonObject, model: ServedModel, offer: Offer | None, fits: Fits
    ) -> PromptedTurns:
        turns = _messages(body, calls=model.calls)
        sent = [_as_text(model, turn) for turn in turns]
        return PromptedTurns(turns, sent, [chat_prompt(model, sent, offer, fits)])

    def alternatives(self, body: JsonObject) -> int:
        if not flag(body, "logprobs"):
            if "top_logprobs" in body:
                raise RequestError("'top_logprobs' needs 'logprobs' to be true", "top_logprobs")
            return -1
        return int(number(body, "top_logprobs", 0, 0, ALTERNATIVES, whole=True))

    def fields(self, checked: CheckedRequest, index: int, choice: ReplyChoice) -> JsonObject:
        return {
            "message": {"role": "assistant", **_message(checked, index, choice), "refusal": None}
        }

    def logprobs(self, tokens: Sequence[TokenInfo], offset: int) -> JsonObject:
        return {"content": with_alternatives(tokens), "refusal": None}

    def stream(self, checked: CheckedRequest, build: str, name: str) -> AnswerStream:
        return ChatStream(self, checked, build, name)


class ChatStream(Stream):
    """The chunks of a streamed message or call."""

    def opening(self) -> bytes:
        if self.checked.may_call:  # or not: that is not decided yet
            parts: list[dict[str, Any]] = [{"content": None} for _ in self.functions]
        else:
            parts = [
                _message(self.checked, k, ReplyChoice(function=name))
                for k, name in enumerate(self.functions)
            ]
        return b"".join(
            self.chunk(k, {"delta": {"role": "assistant", **_indexed(part)}})
            for k, part in enumerate(parts)
        )

    def call(self, index: int, name: str) -> bytes:
        super().call(index, name)
        return self.chunk(
            index, {"delta": _indexed(_message(self.checked, index, ReplyChoice(function=name)))}
        )

    def part(self, index: int, text: str) -> dict[str, Any]:
        arguments = [{"index": 0, "function": {"arguments": text}}]
        return {"delta": {"tool_calls": arguments} if self.functions[index] else {"content": text}}

    def last_part(self) -> dict[str, Any]:
        return {"delta": {}}


def call_id(checked: CheckedRequest, index: int) -> str:
    """The id of the call that a choice makes."""
    return f"call_{checked.id}{index or ''}"


def with_alternatives(tokens: Sequence[TokenInfo]) -> list[JsonObject]:
    """Tokens with their log probabilities, in the form of a chat."""
    return [
        {k: v for k, v in token.items() if k != "top"} | {"top_logprobs": token["top"]}
        for token in tokens
    ]


def text_of(content: Any, types: Sequence[str]) -> str | None:
    """A content that is a text, or parts of these types that hold one; None for any other."""
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") in types else None
            for part in content
        ]
        content = "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    return content if isinstance(content, str) else None


def _messages(body: JsonObject, *, calls: bool) -> list[Message]:
    """The conversation; of a model that calls functions, with the calls and their results."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("'messages' must be a list that is not empty", "messages")
    roles = ROLES | ({"tool": "tool"} if calls else {})
    names: dict[str, str] = {}  # of functions, by the id of a call
    result: list[Message] = []
    for k, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in roles:
            raise RequestError(
                f"messages[{k}] needs a role: system, "
                f"user{', assistant or tool' if calls else ' or assistant'}",
                "messages",
            )
        turn: Message = {"role": roles[role], "content": ""}
        if calls and role == "assistant" and message.get("tool_calls"):
            turn["tool_calls"] = tool_requests.calls_in(message, f"messages[{k}]")
            names |= tool_requests.ids_in(message)
        elif role == "tool":
            turn["name"] = tool_requests.name_of_result(message, names, f"messages[{k}]")
        if "tool_calls" not in turn or message.get("content") is not None:
            content = text_of(message.get("content"), ("text",))
            if content is None:
                raise RequestError(f"messages[{k}] needs content: a text", "messages")
            turn["content"] = content
        result.append(turn)
    if result[-1]["role"] not in ("user", "tool"):
        raise RequestError(
            f"the last message must be the user's{' or a result' if calls else ''}", "messages"
        )
    return result


def _as_text(model: ServedModel, turn: Message) -> Message:
    """A message with its calls as the text that the model was trained with."""
    if not turn.get("tool_calls"):
        return turn
    written = model.task.with_calls_as_text((), turn, None)
    return {**written, "content": "\n".join(filter(None, (turn["content"], written["content"])))}


def _message(checked: CheckedRequest, index: int, choice: ReplyChoice) -> dict[str, Any]:
    """The content of an answer, or its call."""
    if not choice.function:
        return {"content": choice.text}
    function = {"name": choice.function, "arguments": choice.text}
    call = {"id": call_id(checked, index), "type": "function", "function": function}
    return {"content": None, "tool_calls": [call]}


def _indexed(part: dict[str, Any]) -> dict[str, Any]:
    """The same in a chunk, where calls are numbered."""
    calls = [{"index": k, **call} for k, call in enumerate(part.get("tool_calls", ()))]
    return part | ({"tool_calls": calls} if calls else {})


def chat_prompt(
    model: ServedModel, sent: Sequence[Message], offer: Offer | None, fits: Fits
) -> RenderedPrompt:
    """The prompt of a conversation.

    Raises:
        RequestError: The chat template does not take it, or its texts alone are too long.
    """
    task, turns = model.task, tuple(model.task.cleaned(sent))
    # trained with it, so no other one is of use
    has_own = not model.bare and bool(task.system or model.held)
    if has_own:
        own: list[Message] = [{"role": "system", "content": task.system}] if task.system else []
        turns = (*own, *(message for message in turns if message["role"] != "system"))
    drops_system = has_own and any(message["role"] == "system" for message in sent)
    system = turns[0]["content"] if turns[0]["role"] == "system" else None
    fits(sum(len(turn["content"]) for turn in turns))
    try:
        tools = offer.tools if offer is not None and offer.is_clients else None
        written = json.dumps(tools) if tools else ""
        find = _prefix if len(system or "") + len(written) < CACHED else _prefix.__wrapped__
        text = task.prompt(turns, tools=tools, budget_s=RENDER_S)
        return RenderedPrompt(text, find(model, system, written), turns, drops_system)
    except DataError as error:
        raise RequestError(error.message, "messages") from None


@functools.lru_cache(maxsize=64)
def _prefix(model: ServedModel, system: str | None, tools: str) -> str:
    """The opening that all prompts with this system prompt, and
    these tools of the client's, share.
    """
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": "\x00"})
    offered = json.loads(tools) if tools else None
    return model.task.prompt(turns, tools=offered, budget_s=RENDER_S).partition("\x00")[0]


CHAT = ChatForm()
