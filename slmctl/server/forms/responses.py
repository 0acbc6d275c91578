"""`/v1/responses`, OpenAI's Responses API: a request is checked as the chat that asks the same.

Nothing is kept between requests, so a conversation comes whole, as `input`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import ServeConfig
from slmctl.inference.events import Event
from slmctl.sensitive.conversation_veto import unread_fields
from slmctl.server.forms import options
from slmctl.server.forms.chat import CHAT, call_id, text_of, with_alternatives
from slmctl.server.forms.request import (
    AnswerStream,
    CheckedRequest,
    Form,
    ReplyChoice,
    ServedModel,
    WholeReply,
)
from slmctl.server.request_errors import RequestError

ROLES = ("user", "assistant", "system", "developer")
# the value of `include` that asks for the tokens of the answer
TOKENS = "message.output_text.logprobs"
TEXTS = ("input_text", "output_text", "text")  # types of parts that hold a text
NAMES = {  # of chat options: their names here, for errors
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "include",
}
SAME = ("model", "stream", "temperature", "top_p", "top_logprobs")
# Options that an answer repeats, and those that it repeats where a function may be called.
REPEATED = (
    "instructions",
    "max_output_tokens",
    "metadata",
    "temperature",
    "top_p",
    "top_logprobs",
    "text",
    "safety_identifier",
    "prompt_cache_key",
    "user",
    "max_tool_calls",
)
REPEATED_OF_CALLS = (*REPEATED, "tools", "tool_choice")


class ResponseForm(Form):
    """Responses, whole and as typed events."""

    path = "/v1/responses"
    question = "input"
    schema_option = "text.format"
    reads = options.EVERYWHERE | {
        "input",
        "instructions",
        "max_output_tokens",
        "include",
        "text",
        "top_logprobs",
        "tools",
    }

    def read(self, body: JsonObject, model: ServedModel, settings: ServeConfig) -> CheckedRequest:
        listed = options.sort(body, self.reads, model.task, calls=self.calls)
        chat = as_chat(listed.read, calls=model.calls)
        try:
            checked = CHAT.checked(chat, listed, model, settings)
        except RequestError as error:
            raise in_own_names(error) from None
        may_call = model.calls or listed.function is not None
        names = REPEATED_OF_CALLS if may_call else REPEATED
        ignored = ("text" if name == "response_format" else name for name in checked.ignored)
        return replace(
            checked,
            form=self,
            ignored=tuple(sorted(ignored)),
            repeated={name: body[name] for name in names if name in body},
        )

    def whole(self, answer: WholeReply) -> JsonObject:
        return _whole(answer.checked, answer.choices[0], answer.extras[0], answer.name)

    def stream(self, checked: CheckedRequest, build: str, name: str) -> AnswerStream:
        return ResponseStream(checked, name)


# Requests


def as_chat(body: JsonObject, *, calls: bool = False) -> JsonObject:
    """The chat request that asks the same as the options of a response that are read.

    Args:
        calls: The model calls functions: tools, calls and their results are read.

    Raises:
        RequestError: It has no conversation of texts, or an option of another form.
    """
    chat = {name: body[name] for name in SAME if name in body}
    if "max_output_tokens" in body:
        chat["max_tokens"] = body["max_output_tokens"]
    if "stream_options" in body and not _is_within(body["stream_options"], {"include_obfuscation"}):
        raise RequestError("'stream_options' may hold include_obfuscation alone", "stream_options")
    include = body.get("include", [])
    if not isinstance(include, list) or not all(isinstance(value, str) for value in include):
        raise RequestError("'include' must be a list of texts", "include")
    if TOKENS in include or "top_logprobs" in body:
        chat["logprobs"] = True
    chat |= _form(body.get("text", {}))
    instructions = body.get("instructions", "")
    if not isinstance(instructions, str):
        raise RequestError("'instructions' must be a text", "instructions")
    system = [{"role": "system", "content": instructions}] if instructions else []
    if calls:
        chat |= {name: body[name] for name in ("parallel_tool_calls",) if name in body}
        chat |= {
            name: make(body[name])
            for name, make in (("tools", _tools), ("tool_choice", _choice))
            if name in body
        }
    return chat | {"messages": [*system, *messages_of(body.get("input"), calls=calls)]}


def _tools(tools: Any) -> Any:
    """A list of functions in the form of a chat; other tools stay
    as they are, and are refused later.
    """
    return [_nested(tool) for tool in tools] if isinstance(tools, list) else tools


def _nested(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    return {
        "type": "function",
        "function": {name: value for name, value in tool.items() if name != "type"},
    }


def _choice(choice: Any) -> Any:
    """A choice of tools in the form of a chat."""
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        part = {"mode": choice.get("mode"), "tools": _tools(choice.get("tools"))}
        return {"type": "allowed_tools", "allowed_tools": part}
    return _nested(choice)


def _form(text: Any) -> JsonObject:
    """The form of the answer, as chat requests name it."""
    if not _is_within(text, {"format", "verbosity"}):
        raise RequestError("'text' may hold format and verbosity alone", "text")
    if text.get("verbosity") not in (None, "medium"):
        raise RequestError("option 'text.verbosity' is not supported", "text.verbosity")
    form = text.get("format")
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return {} if form is None else {"response_format": form}
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def messages_of(conversation: Any, *, calls: bool = False) -> list[JsonObject]:
    """The conversation in `input`: a text of the user's, or a list of
    messages, with calls and results between them.
    """
    if isinstance(conversation, str):
        return [{"role": "user", "content": conversation}]
    if not isinstance(conversation, list) or not conversation:
        raise RequestError(
            "'input' must be a text, or a list of messages that is not empty", "input"
        )
    messages: list[JsonObject] = []
    for k, item in enumerate(conversation):
        kind = item.get("type") if calls and isinstance(item, dict) else None
        if kind == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            before = messages[-1].get("tool_calls", [])
            if not isinstance(before, list):
                raise RequestError(
                    f"the message before input[{k}] has tool_calls that are no list", "input"
                )
            messages[-1]["tool_calls"] = [*before, _call(item)]
        elif kind == "function_call_output":
            content = _content(item.get("output"), f"input[{k}]", "output")
            messages.append(
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
            )
        else:
            messages.append(_message(item, f"input[{k}]"))
    return messages


def _call(item: JsonObject) -> JsonObject:
    function = {name: item.get(name) for name in ("name", "arguments")}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _message(item: Any, where: str) -> JsonObject:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "item_reference":
        raise RequestError(
            f"{where} refers to an item, but none is kept here: send the item itself", "input"
        )
    if kind != "message":
        named = f", not '{kind[:100]}'" if isinstance(kind, str) else ""
        raise RequestError(f"{where} must be a message{named}", "input")
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{where} needs a role: user, assistant, system or developer", "input")
    content = _content(item.get("content"), where, "content")
    # the search for sensitive data must know of them
    unread = {name: item[name] for name in unread_fields(item)}
    return {**unread, "role": role, "content": content}


def _content(content: Any, where: str, name: str) -> str:
    text = text_of(content, TEXTS)
    if text is None:
        raise RequestError(
            f"{where} needs {name}: a text, or parts of type input_text or output_text", "input"
        )
    return text


def _is_within(value: Any, names: set[str]) -> bool:
    return isinstance(value, dict) and set(value) <= names


def in_own_names(error: RequestError, names: Mapping[str, str] = NAMES) -> RequestError:
    """An error about a chat option by the option's name here."""
    name = names.get(error.param, error.param)
    message = (
        error.message.replace(f"'{error.param}'", f"'{name}'") if error.param else error.message
    )
    return RequestError(message, name, status=error.status, code=error.code)


# Answers


def _whole(
    checked: CheckedRequest, choice: ReplyChoice, extra: JsonObject, name: str
) -> JsonObject:
    """Returns the JSON body of a whole answer of the model `name`;
    `extra` are slmctl's fields of it.
    """
    last = choice.last
    cut = last["finish"] == "length"
    return {
        **_head(checked, name, "incomplete" if cut else "completed"),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        **({} if cut else {"completed_at": int(time.time())}),
        "output": [_item(checked, choice, "incomplete" if cut else "completed")],
        "usage": usage_of(checked.usage([last])),
        "slmctl": extra,
    }


class ResponseStream:
    """The events of a streamed answer, as server-sent events numbered from 0."""

    def __init__(self, checked: CheckedRequest, name: str) -> None:
        self.checked, self.name = checked, name
        self._number = 0
        self._choice = ReplyChoice(function=checked.function)
        self._extra: JsonObject = {}
        self._is_begun = False  # the message or the call has been announced

    @property
    def _item_place(self) -> JsonObject:
        return {"item_id": _item_id(self.checked, self._choice), "output_index": 0}

    @property
    def _place(self) -> JsonObject:
        return {**self._item_place, "content_index": 0}

    def opening(self) -> bytes:
        head = {**_head(self.checked, self.name, "in_progress"), "output": []}
        begun = self._event("response.created", response=head) + self._event(
            "response.in_progress", response=head
        )
        return begun if self.checked.may_call else begun + self._begin()

    def call(self, index: int, name: str) -> bytes:
        self._choice.function = name
        return self._begin()

    def piece(self, index: int, event: Event) -> bytes:
        begun = self._begin()
        self._choice.add(event)
        delta = event.get("piece", "")
        if self._choice.function:
            return begun + self._event(
                "response.function_call_arguments.delta", **self._item_place, delta=delta
            )
        tokens = with_alternatives(event.get("tokens", []))
        return begun + self._event(
            "response.output_text.delta", **self._place, delta=delta, logprobs=tokens
        )

    def end(self, index: int, event: Event, extra: JsonObject) -> bytes:
        rest = event.get("tokens") and not self._choice.function
        part = (
            self.piece(index, {"piece": "", "tokens": event["tokens"]}) if rest else self._begin()
        )
        self._choice.last, self._extra = event, extra
        text, tokens = self._choice.text, with_alternatives(self._choice.tokens)
        item = _item(
            self.checked, self._choice, "incomplete" if event["finish"] == "length" else "completed"
        )
        if self._choice.function:
            done = {"name": self._choice.function, "arguments": text}
            part += self._event("response.function_call_arguments.done", **self._item_place, **done)
        else:
            part += self._event(
                "response.output_text.done", **self._place, text=text, logprobs=tokens
            )
            part += self._event(
                "response.content_part.done", **self._place, part=item["content"][0]
            )
        return part + self._event("response.output_item.done", output_index=0, item=item)

    def ending(self, lasts: Sequence[Event]) -> bytes:
        self._choice.last = lasts[0]
        body = _whole(self.checked, self._choice, self._extra, self.name)
        return self._event(f"response.{body['status']}", response=body)

    def failed(self, error: JsonObject) -> bytes:
        """The events that say that there will be no whole answer.

        The second one makes OpenAI's client raise, so that a program which looks at pieces alone
        takes no part of an answer for the whole.
        """
        body = {
            **_head(self.checked, self.name, "failed"),
            "error": {"code": "server_error", "message": error["error"]["message"]},
            "output": [_item(self.checked, self._choice, "incomplete")]
            if self._choice.text
            else [],
        }
        fields = {name: error["error"][name] for name in ("code", "message", "param")}
        return self._event("response.failed", response=body) + self._event(
            "error", **fields, **error
        )

    def _begin(self) -> bytes:
        """The events that announce the message, with the part of it
        that holds the text, or the call; once.
        """
        if self._is_begun:
            return b""
        self._is_begun = True
        item = _item(self.checked, self._choice, "in_progress")
        is_call = bool(self._choice.function)
        added = {"output_index": 0, "item": item if is_call else item | {"content": []}}
        event = self._event("response.output_item.added", **added)
        if is_call:
            return event
        return event + self._event(
            "response.content_part.added", **self._place, part=item["content"][0]
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(body)}\n\n".encode()


def _head(checked: CheckedRequest, name: str, status: str) -> JsonObject:
    """The fields of a response that stand before its answer, the
    client's own options repeated among them.
    """
    repeated = checked.repeated
    return {
        "id": f"resp_{checked.id}",
        "object": "response",
        "created_at": checked.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "model": name,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": None,
        "tool_choice": "none",
        "tools": [],
        "top_logprobs": 0,
        "top_p": None,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": {},
        **({"tool_choice": "auto", "parallel_tool_calls": False} if checked.may_call else {}),
        **repeated,
        "text": {"format": {"type": "text"}, **repeated.get("text", {})},
    }


def _item(checked: CheckedRequest, choice: ReplyChoice, status: str) -> JsonObject:
    if choice.function:
        return {
            "id": _item_id(checked, choice),
            "type": "function_call",
            "status": status,
            "name": choice.function,
            "call_id": call_id(checked, 0),
            "arguments": choice.text,
        }
    return {
        "id": _item_id(checked, choice),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [_part(checked, choice)],
    }


def _item_id(checked: CheckedRequest, choice: ReplyChoice) -> str:
    return f"{'fc' if choice.function else 'msg'}_{checked.id}"


def _part(checked: CheckedRequest, choice: ReplyChoice) -> JsonObject:
    tokens = with_alternatives(choice.tokens) if checked.tells_tokens else []
    return {"type": "output_text", "text": choice.text, "annotations": [], "logprobs": tokens}


def usage_of(used: dict[str, int]) -> JsonObject:
    """Tokens by the names of the Responses API."""
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["total_tokens"],
    }


RESPONSES = ResponseForm()
