"""Answers in the form of OpenAI's Responses API: whole, or as a stream of its typed events."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference.events import Event
from slmctl.server import openai_replies
from slmctl.server.openai_replies import ReplyChoice
from slmctl.server.openai_requests import CheckedRequest


def whole(checked: CheckedRequest, choice: ReplyChoice, extra: JsonObject, name: str) -> JsonObject:
    """The body of an answer that is not streamed, by the model `name`; `extra` is what slmctl adds to it."""
    last = choice.last
    cut = last["finish"] == "length"
    return {
        **_head(checked, name, "incomplete" if cut else "completed"),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        **({} if cut else {"completed_at": int(time.time())}),
        "output": [_item(checked, choice, "incomplete" if cut else "completed")],
        "usage": usage_of(openai_replies.usage(checked, [last])),
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
        begun = self._event("response.created", response=head) + self._event("response.in_progress", response=head)
        return begun if self.checked.may_call else begun + self._begin()

    def call(self, index: int, name: str) -> bytes:
        self._choice.function = name
        return self._begin()

    def piece(self, index: int, event: Event) -> bytes:
        begun = self._begin()
        self._choice.add(event)
        delta = event.get("piece", "")
        if self._choice.function:
            return begun + self._event("response.function_call_arguments.delta", **self._item_place, delta=delta)
        tokens = openai_replies.with_alternatives(event.get("tokens", []))
        return begun + self._event("response.output_text.delta", **self._place, delta=delta, logprobs=tokens)

    def end(self, index: int, event: Event, extra: JsonObject) -> bytes:
        rest = event.get("tokens") and not self._choice.function
        part = self.piece(index, {"piece": "", "tokens": event["tokens"]}) if rest else self._begin()
        self._choice.last, self._extra = event, extra
        text, tokens = self._choice.text, openai_replies.with_alternatives(self._choice.tokens)
        item = _item(self.checked, self._choice, "incomplete" if event["finish"] == "length" else "completed")
        if self._choice.function:
            done = {"name": self._choice.function, "arguments": text}
            part += self._event("response.function_call_arguments.done", **self._item_place, **done)
        else:
            part += self._event("response.output_text.done", **self._place, text=text, logprobs=tokens)
            part += self._event("response.content_part.done", **self._place, part=item["content"][0])
        return part + self._event("response.output_item.done", output_index=0, item=item)

    def ending(self, lasts: Sequence[Event]) -> bytes:
        self._choice.last = lasts[0]
        body = whole(self.checked, self._choice, self._extra, self.name)
        return self._event(f"response.{body['status']}", response=body)

    def failed(self, error: JsonObject) -> bytes:
        """The events that say that there will be no whole answer.

        The second one makes OpenAI's client raise, so that a program which looks at pieces alone takes no part of an
        answer for the whole.
        """
        body = {
            **_head(self.checked, self.name, "failed"),
            "error": {"code": "server_error", "message": error["error"]["message"]},
            "output": [_item(self.checked, self._choice, "incomplete")] if self._choice.text else [],
        }
        fields = {name: error["error"][name] for name in ("code", "message", "param")}
        return self._event("response.failed", response=body) + self._event("error", **fields, **error)

    def _begin(self) -> bytes:
        """The events that announce the message, with the part of it that holds the text, or the call; once."""
        if self._is_begun:
            return b""
        self._is_begun = True
        item = _item(self.checked, self._choice, "in_progress")
        is_call = bool(self._choice.function)
        added = {"output_index": 0, "item": item if is_call else item | {"content": []}}
        event = self._event("response.output_item.added", **added)
        if is_call:
            return event
        return event + self._event("response.content_part.added", **self._place, part=item["content"][0])

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(body)}\n\n".encode()


def _head(checked: CheckedRequest, name: str, status: str) -> JsonObject:
    """The fields of a response that stand before its answer, the client's own options repeated among them."""
    repeated = checked.repeated
    return {
        "id": f"resp_{checked.id}", "object": "response", "created_at": checked.created, "status": status,
        "background": False, "error": None, "incomplete_details": None, "instructions": None,
        "max_output_tokens": None, "max_tool_calls": None, "model": name, "output": [], "parallel_tool_calls": True,
        "previous_response_id": None, "prompt_cache_key": None, "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None, "service_tier": "default", "store": False, "temperature": None,
        "tool_choice": "none", "tools": [], "top_logprobs": 0, "top_p": None, "truncation": "disabled", "usage": None,
        "user": None, "metadata": {},
        **({"tool_choice": "auto", "parallel_tool_calls": False} if checked.may_call else {}),
        **repeated,
        "text": {"format": {"type": "text"}, **repeated.get("text", {})},
    }  # fmt: skip


def _item(checked: CheckedRequest, choice: ReplyChoice, status: str) -> JsonObject:
    if choice.function:
        return {
            "id": _item_id(checked, choice), "type": "function_call", "status": status, "name": choice.function,
            "call_id": openai_replies.call_id(checked, 0), "arguments": choice.text,
        }  # fmt: skip
    return {
        "id": _item_id(checked, choice), "type": "message", "status": status, "role": "assistant",
        "content": [_part(checked, choice)],
    }  # fmt: skip


def _item_id(checked: CheckedRequest, choice: ReplyChoice) -> str:
    return f"{'fc' if choice.function else 'msg'}_{checked.id}"


def _part(checked: CheckedRequest, choice: ReplyChoice) -> JsonObject:
    tokens = openai_replies.with_alternatives(choice.tokens) if checked.tells_tokens else []
    return {"type": "output_text", "text": choice.text, "annotations": [], "logprobs": tokens}


def usage_of(used: dict[str, int]) -> JsonObject:
    """Tokens by the names of the Responses API."""
    return {
        "input_tokens": used["prompt_tokens"], "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": used["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["total_tokens"],
    }  # fmt: skip
