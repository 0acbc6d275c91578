"""Tools of clients: read within bounds, chosen from, and named where they are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from slmctl.server.forms import responses, tool_requests
from slmctl.server.request_errors import RequestError
from slmctl.task.contract import Task
from slmctl.task.tool_calls import NO_CALL


def tool(name: str = "find", **more: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {}}, **more},
    }


OWN = Task("call", "", "", tools=(tool("own"),))
TWO = [tool("find"), tool("file")]


def test_the_tools_of_a_request_go_before_those_of_the_task() -> None:
    offered = tool_requests.offer({"tools": TWO}, OWN)
    assert (offered.names, offered.must_call, offered.is_clients) == (("find", "file"), False, True)
    offered = tool_requests.offer({}, OWN)
    assert (offered.names, offered.is_clients, offered.checked_rules) == (("own",), False, "")


def test_a_tool_is_offered_by_name_description_and_parameters_alone() -> None:
    sent = {
        "type": "function",
        "function": {"strict": True, "name": "find", "description": "Finds."},
        "x": 1,
    }
    (found,) = tool_requests.offer({"tools": [sent]}, OWN).tools
    assert found["function"] == {
        "name": "find",
        "description": "Finds.",
        "parameters": {"type": "object", "properties": {}},
    }


@pytest.mark.parametrize(
    ("choice", "names", "must_call"),
    [
        ("auto", ("find", "file"), False),
        ("none", (), False),
        ("required", ("find", "file"), True),
        ({"type": "function", "function": {"name": "file"}}, ("file",), True),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("find")]}},
            ("find",),
            False,
        ),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [tool("file")]},
            },
            ("file",),
            True,
        ),
    ],
)
def test_a_choice_leaves_some_of_the_tools(
    choice: Any, names: tuple[str, ...], must_call: bool
) -> None:
    offered = tool_requests.offer({"tools": TWO, "tool_choice": choice}, OWN)
    assert (offered.names, offered.must_call, len(offered.tools)) == (names, must_call, 2)
    assert [one.name for one in offered.callable] == list(names)
    assert offered.is_chosen == (choice != "auto")


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("find", "must be a list"),
        ([tool(f"f{k}") for k in range(5000)], "at most 128 functions"),
        (
            [tool(parameters={"type": "object", "description": "x" * 70_000})],
            "more than 65536 bytes",
        ),
        ([tool(parameters=deep(200))], "nested more than 64 deep"),
        ([tool(), tool()], "two tools have the name 'find'"),
        ([{"type": "web_search"}], "a tool of type 'web_search' is not supported"),
        ([{"type": "custom", "custom": {"name": "x"}}], "a tool of type 'custom' is not supported"),
        ([{"function": 7}], "tool 1 is not a function"),
        ([7], "tool 1 is not a function"),
        ([tool(), tool("<|im_end|>")], "tool 2 has the name '<|im_end|>'"),
        ([tool("a" * 65)], "tool 1 has the name"),
        ([tool(NO_CALL)], "tool 1 has the name 'none'"),
        ([tool(description=["x"])], "the description of the tool 'find' is not a text"),
        ([tool(parameters=["x"])], "the parameters of the tool 'find' are not a JSON Schema"),
        ([tool(parameters={"type": "string"})], "are of type 'string', not 'object'"),
        ([tool(parameters={"type": "object", "properties": 7})], "are no JSON Schema"),
    ],
)
def test_a_tool_that_cannot_be_offered_is_refused(tools: Any, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)) as refused:
        tool_requests.offer({"tools": tools}, OWN)
    assert refused.value.param == "tools"


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("often", "must be auto, none, required"),
        (7, "must be auto, none, required"),
        ({"type": "web_search"}, "must be auto, none, required"),
        ({"type": "allowed_tools"}, "must be auto, none, required"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [7]}},
            "names 'None'",
        ),
        (
            {"type": "function", "function": {"name": "other"}},
            "names 'other', which is none of the tools",
        ),
        ({"type": "function", "function": {"name": ["find"]}}, "which is none of the tools"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}},
            "there are no tools",
        ),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(choice: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        tool_requests.offer({"tools": TWO, "tool_choice": choice}, OWN)
    assert refused.value.param == "tool_choice"


def test_tool_calls_that_are_no_list_before_an_item_that_is_a_call_are_refused() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "find", "arguments": "{}"}
    for calls in ("abc", 0, {"a": 1}):
        turns = [{"role": "assistant", "content": "x", "tool_calls": calls}, call]
        with pytest.raises(
            RequestError, match=r"before input\[1\] has tool_calls that are no list"
        ):
            responses.as_chat({"input": turns}, calls=True)


def test_calls_of_the_history_are_read_with_their_results() -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "find", "arguments": '{"a": [1]}'},
    }
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    (read,) = tool_requests.calls_in(message, "messages[1]")
    assert read == {"type": "function", "function": {"name": "find", "arguments": {"a": [1]}}}
    names = tool_requests.ids_in(message)
    assert tool_requests.name_of_result({"tool_call_id": "call_1"}, names, "messages[2]") == "find"
    for id in ("call_2", None, ["call_1"]):
        with pytest.raises(
            RequestError, match=r"messages\[2\] needs a tool_call_id: that of a call before it"
        ):
            tool_requests.name_of_result({"tool_call_id": id}, names, "messages[2]")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ({"name": "find", "arguments": "{"}, "'{' is not JSON"),
        ({"name": "find", "arguments": "[]"}, "arguments that are an object"),
        ({"name": "find", "arguments": "[" * 5000}, "is not JSON"),
        ({"name": "find", "arguments": deep(200)}, "nested more than 32 deep"),
        ({"name": "</tool_call>", "arguments": "{}"}, "needs the name of a function"),
        ({"arguments": "{}"}, "needs the name of a function"),
        (7, "needs the name of a function"),
    ],
)
def test_a_call_of_the_history_that_is_none_is_refused(function: Any, said: str) -> None:
    with pytest.raises(
        RequestError, match=rf"^messages\[1\].tool_calls\[0\]: .*{re.escape(said)}"
    ) as refused:
        tool_requests.calls_in(
            {"tool_calls": [{"id": "c", "type": "function", "function": function}]}, "messages[1]"
        )
    assert refused.value.param == "messages"
