"""OpenAI's Responses API, asked with OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel
from support import here
from support.serving import chat, post

from slmctl.server.forms.responses import messages_of


class Category(Enum):
    billing = "billing"
    delivery = "delivery"
    account = "account"


class Ticket(BaseModel, extra="forbid"):
    category: Category


class Kind(BaseModel):
    kind: str


@pytest.fixture(scope="module")
def desk(desk_url: str) -> Iterator[openai.OpenAI]:
    """The client of a classifier."""
    with openai.OpenAI(base_url=f"{desk_url}/v1", api_key="none", max_retries=0) as ask:
        yield ask


@pytest.fixture(scope="module")
def free(free_url: str) -> Iterator[openai.OpenAI]:
    """The client of a bare .gguf file, which has no task: free text."""
    with openai.OpenAI(base_url=f"{free_url}/v1", api_key="none", max_retries=0) as ask:
        yield ask


def label_of(ask: openai.OpenAI, text: str) -> str:
    said = ask.chat.completions.create(model="default", messages=chat(text))
    return said.choices[0].message.content or ""


def test_a_response_is_the_answer_of_a_chat(desk: openai.OpenAI) -> None:
    raw = desk.responses.with_raw_response.create(
        model="tiny-desk",
        input="refund my card",
        instructions="Say x.",
        store=True,
        max_output_tokens=3,
        metadata={"desk": "7"},
        temperature=0.5,
        reasoning={"effort": "low"},
    )
    assert raw.headers["x-slmctl-route"] == "local; reason=no-policy"
    said = raw.parse()
    assert said.output_text == label_of(desk, "refund my card")
    assert (said.status, said.object, said.model, said.store) == (
        "completed",
        "response",
        "tiny-desk",
        False,
    )
    assert (said.instructions, said.metadata, said.max_output_tokens) == (
        "Say x.",
        {"desk": "7"},
        3,
    )
    assert (
        said.usage is not None
        and said.usage.total_tokens == said.usage.input_tokens + said.usage.output_tokens
    )
    own = (said.model_extra or {})["slmctl"]
    assert (own["task"], own["route"], own["model"]) == ("classify", "local", "tiny-desk")
    assert own["ignored"] == [
        "max_output_tokens",
        "metadata",
        "reasoning",
        "store",
        "system",
        "temperature",
    ]
    assert own["labels"][said.output_text] == own["confidence"]


def test_a_conversation_comes_as_messages_with_parts(
    desk: openai.OpenAI, free: openai.OpenAI
) -> None:
    first = free.responses.create(model="default", input="hello", max_output_tokens=3)
    told: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "hel"},
                {"type": "input_text", "text": "lo"},
            ],
        },
        *(item.model_dump() for item in first.output),
        {"type": "message", "role": "user", "content": "parcel"},
    ]
    said = free.responses.create(model="default", input=told, max_output_tokens=3)
    as_chat = [
        {"role": "system", "content": "Be brief."},
        *chat("hello"),
        {"role": "assistant", "content": first.output_text},
        *chat("parcel"),
    ]
    body = {"messages": as_chat, "max_tokens": 3}
    same = post(str(free.base_url).removesuffix("/v1/"), body).json()
    assert said.output_text == same["choices"][0]["message"]["content"]
    assert said.usage is not None and said.usage.input_tokens == same["usage"]["prompt_tokens"]


def test_the_events_of_a_stream_come_in_order(free: openai.OpenAI) -> None:
    options: Any = {
        "model": "default",
        "input": "hello",
        "max_output_tokens": 6,
        "temperature": 0,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    events = list(free.responses.create(**options, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    deltas = kinds[4:-4]
    assert set(deltas) == {"response.output_text.delta"}
    last: Any = events[-1]
    assert kinds[-4:-1] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert kinds[-1] == f"response.{last.response.status}"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    pieces: Any = events[4:-4]
    (part,) = last.response.output[0].content
    assert "".join(event.delta for event in pieces) == part.text == last.response.output_text
    assert sum(len(event.logprobs) for event in pieces) == len(part.logprobs) > 0
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)


def test_a_cut_answer_is_incomplete(free: openai.OpenAI) -> None:
    said = free.responses.create(model="default", input="hello", max_output_tokens=1, temperature=0)
    whole = post(
        str(free.base_url).removesuffix("/v1/"), {"messages": chat("hello"), "max_tokens": 1}
    ).json()
    assert whole["choices"][0]["finish_reason"] == "length"
    assert (said.status, said.incomplete_details and said.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    *_, last = free.responses.create(
        model="default", input="hello", max_output_tokens=1, temperature=0, stream=True
    )
    assert last.type == "response.incomplete"


def test_a_schema_of_the_client_is_kept_to(free: openai.OpenAI) -> None:
    form: Any = {
        "format": {
            "type": "json_schema",
            "name": "x",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"kind": {"enum": ["a", "b"]}},
                "required": ["kind"],
                "additionalProperties": False,
            },
        }
    }
    said = free.responses.create(model="default", input="hello", text=form, max_output_tokens=40)
    assert json.loads(said.output_text)["kind"] in ("a", "b")
    form["format"]["schema"]["properties"]["kind"] = {"type": "array", "uniqueItems": True}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        free.responses.create(model="default", input="hello", text=form)
    assert caught.value.param == "text.format"


def test_a_label_comes_in_the_property_that_a_client_asks_for(desk: openai.OpenAI) -> None:
    wanted = label_of(desk, "refund my card")
    said = desk.responses.parse(model="default", input="refund my card", text_format=Ticket)
    assert said.output_parsed == Ticket(category=Category(wanted))
    assert (said.model_extra or {})["slmctl"]["labels"]
    with desk.responses.stream(
        model="default", input="refund my card", text_format=Ticket
    ) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_parsed == Ticket(category=Category(wanted))
    assert texts == [json.dumps({"category": wanted})]
    asked: Any = {"model": "default", "messages": chat("refund my card"), "response_format": Kind}
    assert desk.chat.completions.parse(**asked).choices[0].message.parsed == Kind(kind=wanted)
    with desk.chat.completions.stream(**asked) as chunks:
        assert chunks.get_final_completion().choices[0].message.parsed == Kind(kind=wanted)


FUNCTION = {"name": "file", "parameters": Ticket.model_json_schema()}


def test_a_function_that_has_to_be_called_is_a_form_of_the_answer(
    desk: openai.OpenAI, free: openai.OpenAI
) -> None:
    wanted = json.dumps({"category": label_of(desk, "refund my card")})
    chosen: Any = {"type": "function", "function": {"name": "file"}}
    asked: Any = {
        "model": "default",
        "messages": chat("refund my card"),
        "tool_choice": chosen,
        "tools": [{"type": "function", "function": FUNCTION}],
    }
    (choice,) = desk.chat.completions.create(**asked).choices
    (call,) = choice.message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, call.function.arguments, choice.message.content) == (
        "file",
        wanted,
        None,
    )
    with desk.chat.completions.stream(**asked) as chunks:
        (choice,) = chunks.get_final_completion().choices
        (call,) = choice.message.tool_calls or ()
        assert call.type == "function"
        assert (call.function.name, call.function.arguments) == ("file", wanted)
    again: Any = {
        "model": "default",
        "input": "refund my card",
        "tool_choice": "required",
        "tools": [{"type": "function", **FUNCTION}],
    }
    (item,) = desk.responses.create(**again).output
    assert item.type == "function_call"
    assert (item.name, item.arguments, item.status) == ("file", wanted, "completed")
    with desk.responses.stream(**again) as events:
        kinds = [event.type for event in events]
        (item,) = events.get_final_response().output
    assert item.type == "function_call" and item.arguments == wanted
    assert kinds[3:-2] == [
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
    ]
    # of a text the arguments are held to the schema
    (choice,) = free.chat.completions.create(**asked, max_tokens=40).choices
    (call,) = choice.message.tool_calls or ()
    assert call.type == "function" and Ticket.model_validate_json(call.function.arguments)


def test_a_prompt_that_is_too_long_is_refused(free: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="does not fit the context") as caught:
        free.responses.create(model="default", input="hello " * 3000)
    assert caught.value.param == "input"


def test_a_stream_that_fails_says_so_and_raises() -> None:
    cut = (
        200,
        {"content-type": "text/event-stream"},
        b'data: {"choices": [{"delta": {"content": "hel"}}]}\n\n',
    )
    with here.in_front(lambda body, before: cut) as server:
        body = {"input": "hello", "stream": True}
        lines = httpx.post(f"{server.url}/v1/responses", json=body, timeout=60).text.splitlines()
        events = [
            json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")
        ]
        failed, error = events[-2:]
        assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
        assert "cut off" in failed["response"]["error"]["message"]
        assert failed["response"]["output"][0]["content"][0]["text"] == "hel"
        assert (error["type"], error["code"]) == ("error", "engine_failed")
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as ask,
            pytest.raises(openai.APIError, match="cut off"),
        ):
            list(ask.responses.create(model="default", input="hello", stream=True))


def test_figures_know_the_path(desk: openai.OpenAI) -> None:
    desk.responses.create(model="default", input="hello")
    figures = httpx.get(str(desk.base_url).removesuffix("/v1/") + "/metrics").text
    assert 'slmctl_requests_total{path="/v1/responses",status="200"}' in figures
    assert 'slmctl_answers_total{model="tiny-desk",reason="no-policy",route="local"}' in figures


def test_calls_of_one_turn_are_one_message_after_the_user_s() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "track", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "1", "output": "late"}
    messages = messages_of(
        [{"role": "user", "content": "where is it?"}, call, call, result, call], calls=True
    )
    assert [(m["role"], len(m.get("tool_calls", []))) for m in messages] == [
        ("user", 0),
        ("assistant", 2),
        ("tool", 0),
        ("assistant", 1),
    ]
