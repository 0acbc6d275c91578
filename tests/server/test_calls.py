"""A model that calls functions, asked with OpenAI's own client: chats, streams and responses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from support import ROOT, fleets, here, tiny
from support.fleets import KEPT, TASKS, TOOLS, published
from support.program import printed
from support.serving import chat

from slmctl.artifacts import artifact
from slmctl.config import ServeConfig
from slmctl.errors import UsageError
from slmctl.inference.engine import Engine
from slmctl.production.records import CollectedRow, Feedback
from slmctl.server.forms.call_reader import CallReader
from slmctl.server.forms.chat import CHAT
from slmctl.server.forms.request import ServedModel
from slmctl.task.tool_calls import NO_CALL, CallForm, ToolCall, read_answer

ROOM: dict[str, Any] = {
    "name": "book_room",
    "description": "Book a room.",
    "parameters": {
        "type": "object",
        "properties": {"room": {"enum": ["Birch", "Oak"]}},
        "required": ["room"],
    },
}
BOOKS = {"type": "function", "function": ROOM}
CLIENTS: list[Any] = [BOOKS, TOOLS[1]]
NAMED: Any = {"type": "function", "function": {"name": "track_order"}}
ASK: dict[str, Any] = {"model": "default", "messages": chat("where is my parcel A-1")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calls")
    for name in ("errands", "tickets"):
        published(folder / "registry", name)
    return folder


@pytest.fixture(scope="module")
def ask(folder: Path) -> Iterator[openai.OpenAI]:
    """The client of a server of two releases that collects every
    answer; `default` is the one that calls.
    """
    sets = (
        "serve.context_length=1024",
        "serve.sequences=2",
        f"serve.collect={{to: {folder / 'collected'}, kept: 100%}}",
    )
    with (
        here.opened(folder, *sets, model="dir:registry") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def called(ask: openai.OpenAI, **more: Any) -> tuple[str, str]:
    """The function that a chat calls, with its arguments; or nothing, and the content."""
    (choice,) = ask.chat.completions.create(**{**ASK, **more}).choices
    if not choice.message.tool_calls:
        assert choice.finish_reason == "stop"
        return "", str(choice.message.content)
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (choice.finish_reason, choice.message.content, call.id[:5]) == (
        "tool_calls",
        None,
        "call_",
    )
    return call.function.name, call.function.arguments


def test_an_answer_is_a_call_of_a_tool_of_the_task_or_none(ask: openai.OpenAI) -> None:
    name, arguments = called(ask, tool_choice="required")
    tools = {tool.name: tool for tool in TASKS["errands"].rules.offered()}
    jsonschema.validate(json.loads(arguments), tools[name].schema)
    name, arguments = called(ask, tool_choice=NAMED)
    assert name == "track_order" and json.loads(arguments)["order"] in ("A-1", "A-2")
    assert called(ask, tool_choice="none") == ("", NO_CALL)
    name, content = called(ask)
    assert name in tools or content == NO_CALL


def test_models_of_other_kinds_behind_the_same_address_call_nothing(ask: openai.OpenAI) -> None:
    tickets = {**ASK, "model": "tickets"}
    (choice,) = ask.chat.completions.create(**tickets).choices
    assert choice.message.content in TASKS["tickets"].labels
    with pytest.raises(
        openai.BadRequestError,
        match="option 'tools' is not supported: this model calls none unless",
    ):
        ask.chat.completions.create(**tickets, tools=CLIENTS)
    listed = {model.id: (model.model_extra or {})["slmctl"] for model in ask.models.list()}
    assert listed["errands"]["tools"] == ["track_order", "close_account"]
    assert "tools" not in listed["tickets"]


def test_the_tools_of_a_client_are_offered_in_place_of_the_tasks(ask: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "book_room"}}
    name, arguments = called(ask, tools=CLIENTS, tool_choice=choice)
    assert (name, json.loads(arguments).keys()) == ("book_room", {"room"})
    offers: list[dict[str, Any]] = [{}, {"tools": CLIENTS}, {"tools": [*CLIENTS, *TOOLS[:1]]}]
    counts = [ask.chat.completions.create(**ASK, **more).usage for more in offers]
    own, clients, both = (count.prompt_tokens for count in counts if count is not None)
    assert own != clients < both  # the prompt lists them
    only = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOLS[1]]}}
    assert called(ask, tools=CLIENTS, tool_choice=only) == ("close_account", "{}")


def test_a_stream_adds_up_to_the_same_call(ask: openai.OpenAI) -> None:
    asked = {**ASK, "tool_choice": NAMED}
    with ask.chat.completions.stream(**asked) as stream:
        (choice,) = stream.get_final_completion().choices
    (call,) = choice.message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == called(ask, tool_choice=NAMED)
    chunks = [
        part
        for chunk in ask.chat.completions.create(**asked, stream=True)
        for part in chunk.choices
    ]
    assert (chunks[0].delta.role, chunks[0].delta.content, chunks[0].delta.tool_calls) == (
        "assistant",
        None,
        None,
    )
    (first,), *rest = [chunk.delta.tool_calls for chunk in chunks if chunk.delta.tool_calls]
    assert first.function is not None
    assert (first.index, first.type, first.function.name, first.function.arguments) == (
        0,
        "function",
        "track_order",
        "",
    )
    assert all(part.index == 0 and part.id is None for (part,) in rest)
    assert (
        "".join(str(part.function.arguments) for (part,) in rest if part.function)
        == call.function.arguments
    )
    assert chunks[-1].finish_reason == "tool_calls"
    none = list(ask.chat.completions.create(**ASK, tool_choice="none", stream=True))
    said = [part.delta.content for chunk in none for part in chunk.choices if part.delta.content]
    assert ("".join(said), none[-1].choices[0].finish_reason) == (NO_CALL, "stop")


def test_a_response_is_a_function_call(ask: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "default",
        "input": ASK["messages"],
        "tools": [{"type": "function", **ROOM}],
        "tool_choice": {"type": "function", "name": "book_room"},
        "parallel_tool_calls": True,
    }
    said = ask.responses.create(**asked)
    (item,) = said.output
    assert item.type == "function_call"
    assert (item.name, json.loads(item.arguments).keys(), item.call_id[:5]) == (
        "book_room",
        {"room"},
        "call_",
    )
    assert said.tool_choice == openai.types.responses.ToolChoiceFunction(
        type="function", name="book_room"
    )
    assert (said.parallel_tool_calls, said.tools[0].type) == (False, "function")
    assert (said.model_extra or {})["slmctl"]["ignored"] == ["parallel_tool_calls"]
    with ask.responses.stream(**asked) as stream:
        events = list(stream)
        (final,) = stream.get_final_response().output
    assert final.type == "function_call" and (final.name, final.arguments) == (
        item.name,
        item.arguments,
    )
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert set(kinds[3:-3]) == {"response.function_call_arguments.delta"}
    assert kinds[-3:] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    none = ask.responses.create(model="default", input="hello", tool_choice="none")
    assert (none.output_text, none.tool_choice, none.output[0].type) == (NO_CALL, "none", "message")
    (only,) = ask.responses.create(model="default", input="hello", tool_choice="required").output
    assert only.type == "function_call"


def test_the_example_of_the_page_runs(ask: openai.OpenAI) -> None:
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8").partition("\n## Tools\n")[2]
    lines = itertools.takewhile(lambda line: not line.startswith("|"), text.splitlines())
    code = "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)
    call, ending = printed(code, BASE_URL=str(ask.base_url).removesuffix("/")).splitlines()
    assert call.startswith("track_order {'order': 'A-") and ending in ("stop", "tool_calls")


LANGCHAIN = """
import os
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

@tool
def track_order(order: Literal["A-1", "A-2"]) -> str:
    'Tell where an order is.'
    return "shipped"

model = ChatOpenAI(model="default", base_url=os.environ["BASE_URL"], api_key="none")
bound, asked = model.bind_tools([track_order], tool_choice="required"), HumanMessage("where is my parcel A-1")
said = bound.invoke([asked])
(call,) = said.tool_calls
whole, *chunks = bound.stream([asked])
for chunk in chunks:
    whole += chunk
result = ToolMessage(track_order.invoke(call["args"]), tool_call_id=call["id"])
again = bound.invoke([asked, said, result])
print(call["name"], call["args"] == whole.tool_calls[0]["args"], again.tool_calls[0]["name"])
"""
LITELLM = """
import os

import litellm

tool = {"name": "track_order", "parameters": {
    "type": "object", "properties": {"order": {"enum": ["A-1", "A-2"]}}, "required": ["order"]}}
asked = {
    "model": "openai/default", "api_base": os.environ["BASE_URL"], "api_key": "none", "tool_choice": "required",
    "messages": [{"role": "user", "content": "where is my parcel A-1"}],
    "tools": [{"type": "function", "function": tool}],
}
(call,) = litellm.completion(**asked).choices[0].message.tool_calls
chunks = list(litellm.completion(**asked, stream=True))
(same,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
print(call.function.name, call.function.arguments == same.function.arguments, same.function.name)
"""


@pytest.mark.clients
@pytest.mark.parametrize("program", [LANGCHAIN, LITELLM], ids=["langchain", "litellm"])
def test_a_client_as_it_comes_binds_tools(ask: openai.OpenAI, program: str, tmp_path: Path) -> None:
    python = os.environ.get("SLMCTL_CLIENTS", "")
    if not python:
        pytest.skip("make test-clients")
    url = str(ask.base_url).removesuffix("/")
    environment = tiny.environment(
        BASE_URL=url, HOME=str(tmp_path), LITELLM_LOCAL_MODEL_COST_MAP="True"
    )
    command = [python, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment
    )
    # litellm prints hints, too
    assert tiny.ok(done).splitlines()[-1].strip() == "track_order True track_order"


def test_calls_and_results_of_the_history_are_read(ask: openai.OpenAI) -> None:
    (choice,) = ask.chat.completions.create(**ASK, tool_choice=NAMED).choices
    (call,) = choice.message.tool_calls or ()
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"state": "shipped"}'}
    history: list[Any] = [*ASK["messages"], choice.message.model_dump(exclude_none=True), result]
    said = ask.chat.completions.create(model="default", messages=history)
    outputs = ask.responses.create(
        model="default", input="where is my parcel A-1", tool_choice="required"
    ).output
    (item,) = outputs
    assert item.type == "function_call"
    told: list[Any] = [
        {"role": "user", "content": "where is my parcel A-1"},
        {
            "type": "function_call",
            "call_id": "call_1",
            "name": "track_order",
            "arguments": call.function.arguments,
        },
        {"type": "function_call_output", "call_id": "call_1", "output": '{"state": "shipped"}'},
    ]
    again = ask.responses.create(model="default", input=told)
    assert said.usage is not None and again.usage is not None
    assert said.usage.prompt_tokens == again.usage.input_tokens


def parameters(**properties: Any) -> list[Any]:
    function = {"name": "f", "parameters": {"type": "object", "properties": properties}}
    return [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "https://elsewhere/x.json"},
    ],
)
def test_parameters_that_no_grammar_holds_are_refused_in_bounded_time(
    ask: openai.OpenAI, part: Any
) -> None:
    with pytest.raises(openai.BadRequestError, match="no grammar can be made") as caught:
        ask.chat.completions.create(**ASK, tools=parameters(a=part))
    assert caught.value.param == "tools"


def test_a_schema_that_refers_to_itself_is_one(ask: openai.OpenAI) -> None:
    tree: list[Any] = parameters(a={"$ref": "#/$defs/t"})
    tree[0]["function"]["parameters"]["$defs"] = {
        "t": {"type": "object", "properties": {"t": {"$ref": "#/$defs/t"}}}
    }
    assert called(ask, tools=tree, tool_choice="none") == ("", NO_CALL)


def test_what_is_collected_holds_a_call_in_one_form(ask: openai.OpenAI, folder: Path) -> None:
    raw = ask.chat.completions.with_raw_response.create(
        **ASK, tools=CLIENTS, tool_choice="required"
    )
    id, (choice,) = raw.headers["x-request-id"], raw.parse().choices
    (call,) = choice.message.tool_calls or ()
    answer = ToolCall(call.function.name, json.loads(call.function.arguments)).answer
    for body, status in (
        ({"answer": {"name": "book_room", "arguments": {"room": "Oak"}}}, 200),
        ({"answer": NO_CALL}, 200),
        ({"answer": "book_room"}, 400),
    ):
        url = str(ask.base_url) + "feedback"
        assert httpx.post(url, json={"request_id": id, **body}, timeout=60).status_code == status
    (day,) = [
        path for path in (folder / "collected").glob("*.jsonl") if path.name != "feedback.jsonl"
    ]
    row = next(row for row in CollectedRow.read(day) if row.id == id)
    assert (row.answer, [tool["function"]["name"] for tool in row.tools]) == (
        answer,
        ["book_room", "close_account"],
    )
    words = [word.answer for word in Feedback.read(folder / "collected" / "feedback.jsonl")]
    assert words == ['{"arguments": {"room": "Oak"}, "name": "book_room"}', NO_CALL]
    first = called(ask)
    rows = list(CollectedRow.read(day))
    assert read_answer(rows[0].answer) is None or first


def test_a_form_with_control_tokens_is_shown_without_them() -> None:
    """Control tokens are not part of a decoded answer, so the form is read without them."""
    form = CallForm("<|im_start|> ", " <s>", "<|im_start|>", control=("<|im_start|>", "<s>"))
    model = ServedModel("errands", dataclasses.replace(TASKS["errands"], call_form=form))
    body = {**ASK, "model": "errands", "tool_choice": NAMED}
    checked = CHAT.read(body, model, ServeConfig(max_tokens=64))
    with Engine(KEPT, sequences=1, context=1024, threads=1) as engine:
        answer = engine.ask(checked.requests[0])
    parts = [*(reader := CallReader(checked.model.task.form)).feed(answer.text), *reader.close()]
    assert parts[0].text == "track_order"
    call = read_answer(model.task.rules.kept(answer.text))
    assert (
        call is not None and json.loads("".join(part.text for part in parts[1:])) == call.arguments
    )
    assert fleets.CONTROL[-1] not in answer.text


def test_no_other_engine_answers_calls(folder: Path) -> None:
    release = artifact.load(folder / "registry" / "errands" / "1.0")
    engine = ("serve.engine.url=http://127.0.0.1:9/v1", "serve.engine.model=large")
    with (
        pytest.raises(UsageError, match="so no server elsewhere answers them"),
        here.opened(folder, *engine, model=str(release.path)),
    ):
        pass
