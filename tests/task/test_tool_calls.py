"""Calls of tools: what is offered, one form of an answer for every base, and
the text that each base writes for it.
"""

from __future__ import annotations

import dataclasses
import functools
import urllib.request
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import call_templates
from support.call_templates import task_of

from slmctl.errors import DataError
from slmctl.production.review import answers
from slmctl.task import tool_calls
from slmctl.task.contract import Task
from slmctl.task.records import FunctionCall, Message, RowRejectedError
from slmctl.task.tool_calls import NO_CALL, OWN, ToolCall

CALL = ToolCall("book_room", {"room": "Oak", "people": 3, "note": 'ä "x"'})
ARGUMENTS = '{"note": "ä \\"x\\"", "people": 3, "room": "Oak"}'
TEXTS = {
    "chatml": '{"name": "book_room", "arguments": ' + ARGUMENTS + "}",
    "qwen": '<tool_call>\n{"name": "book_room", "arguments": ' + ARGUMENTS + "}\n</tool_call>",
    "llama": '{"name": "book_room", "parameters": ' + ARGUMENTS + "}",
    "mistral": '[TOOL_CALLS] [{"name": "book_room", "arguments": '
    + ARGUMENTS
    + ', "id": "call00000"}]',
    "args": "[TOOL_CALLS]book_room[ARGS]" + ARGUMENTS,
    "text": "<call>book_room\n```json\n" + ARGUMENTS + "\n```</call>",
    "xml": '{"name": "book_room", "arguments": ' + ARGUMENTS + "}",
}
ENDS = {"llama": "<|eot_id|>", "mistral": "</s>", "args": "</s>", "text": "</s>", "xml": "<|end|>"}
CONTROL = {"mistral": ("[TOOL_CALLS]", "[INST]"), "args": ("[TOOL_CALLS]", "[ARGS]")}


@functools.cache
def family(name: str) -> Task:
    template = getattr(call_templates, name.upper())
    return task_of(template, end=ENDS.get(name, "<|im_end|>"), special_tokens=CONTROL.get(name, ()))


@pytest.mark.parametrize("name", TEXTS)
def test_a_call_is_written_as_the_template_writes_it_and_read_again(name: str) -> None:
    task, text = family(name), TEXTS[name]
    assert task.form.own == (name in ("chatml", "xml"))
    assert task.rules.written(CALL.answer) == text
    assert task.rules.kept(text) == CALL.answer
    assert task.read_answer(task.rules.kept(text)) == CALL
    # decoded without its control tokens
    shown = text.replace("[TOOL_CALLS]", "").replace("[ARGS]", "")
    assert task.rules.kept(shown) == CALL.answer
    assert task.rules.written(NO_CALL) == NO_CALL
    assert task.read_answer(task.rules.kept(f" {NO_CALL}\n")) is None


@pytest.mark.parametrize("name", TEXTS)
def test_a_prompt_offers_the_tools_of_the_task_or_of_its_conversation(name: str) -> None:
    task = dataclasses.replace(family(name), system="Be brief.")
    own = [
        {
            "type": "function",
            "function": {"name": "fly", "description": "Fly away.", "parameters": {}},
        }
    ]
    messages = task.messages("Is Oak free?")
    text, other = task.prompt(messages), task.prompt(messages, tools=own)
    for part in ("book_room_list", "List the rooms.", "people", "Be brief.", "Is Oak free?"):
        assert part in text
    assert "Fly away." in other
    assert "book_room" not in other


@pytest.mark.parametrize("name", TEXTS)
def test_control_tokens_in_arguments_are_broken_up_and_those_of_the_form_are_not(name: str) -> None:
    task = family(name)
    task = dataclasses.replace(
        task, special_tokens=(*task.special_tokens, "<|im_end|>", "[TOOL_CALLS]")
    )
    text = task.rules.written(
        ToolCall("book_room", {"note": "a<|im_end|>[TOOL_CALLS]", "room": "Oak"}).answer
    )
    assert "<|im_end|>" not in text
    assert text.count("[TOOL_CALLS]") == task.form.before.count("[TOOL_CALLS]")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "None",
        "none.",
        "{}",
        '{"name": "a"}',
        '{"arguments": {}, "name": "a", "more": 1}',
        '{"arguments": 1, "name": "a"}',
        '{"arguments": {}, "name": 1}',
        '{"arguments": {"a": 1, "a": 2}, "name": "b"}',
        '{"arguments": {"a": NaN}, "name": "b"}',
        '[{"arguments": {}, "name": "a"}]',
        "[" * 9000,
    ],
)
def test_what_is_neither_a_call_nor_none_is_no_answer(text: str) -> None:
    with pytest.raises(DataError):
        tool_calls.read_answer(text)


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_whole_call_is_kept_as_it_is(name: str) -> None:
    task, text = family(name), TEXTS[name]
    for part in (
        text[:-1],
        text + " and more",
        text.replace("book_room", ""),
        text.replace(": 3", ": x"),
        text * 2,
    ):
        assert task.rules.kept(part) == part
        assert not task.accepts(task.rules.kept(part))


def test_arguments_are_held_to_the_schema_of_an_offered_tool() -> None:
    task = family("qwen")
    assert task.accepts(CALL.answer)
    assert task.accepts(NO_CALL)
    for call, rule in (
        (ToolCall("fly", {}), "unknown tool"),
        (ToolCall("book_room", {}), "wrong arguments"),
        (ToolCall("book_room", {"room": "Elm"}), "wrong arguments"),
        (ToolCall("book_room", {"room": "Oak", "floor": 1}), "wrong arguments"),
        (ToolCall("book_room_list", {"room": "Oak"}), "wrong arguments"),
    ):
        with pytest.raises(RowRejectedError) as caught:
            tool_calls.require_offered(call, task.rules.offered())
        assert caught.value.rule == rule
        assert not task.accepts(call.answer)


@pytest.mark.parametrize("reference", ["#/$defs/missing", "#", "http://127.0.0.1:9/schema.json"])
def test_a_reference_that_leads_nowhere_is_refused_and_none_is_fetched(
    reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **_: asked.append(args))
    parameters = {
        "properties": {"to": {"$ref": reference}},
        "type": "object",
        "allOf": [{"$ref": reference}],
    }
    (tool,) = tool_calls.read_tools([{"name": "fly", "parameters": parameters}])
    with pytest.raises(RowRejectedError) as caught:
        tool_calls.require_offered(ToolCall("fly", {"to": "Rome"}), [tool])
    assert caught.value.rule == "bad tools"
    assert not asked


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ([], "at least one"),
        ({"a": 1}, "not a list"),
        ([7], "tool 1 is not a function"),
        ([{"type": "web_search"}], "tool 1 is not a function"),
        ([{"name": "a b"}], "has the name 'a b'"),
        ([{"name": NO_CALL}], "has the name 'none'"),
        ([{"name": "a"}, {"name": "a"}], "two tools have the name 'a'"),
        ([{"name": "a", "parameters": {"type": "array"}}], "of type 'array'"),
        ([{"name": "a", "parameters": {"properties": {"b": {"type": 5}}}}], "no JSON Schema"),
        ([{"name": "a", "description": 5}], "description"),
        ([{"name": "a"}] * 200, "200 tools"),
    ],
)
def test_tools_that_are_none_are_refused_by_name(values: Any, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        tool_calls.read_tools(values)


def test_an_object_that_lists_its_properties_has_no_others_unless_it_says_so() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "integer"}}}
    tool = {
        "name": "a",
        "parameters": {"properties": {"x": inner, "y": {**inner, "additionalProperties": True}}},
    }
    (read,) = tool_calls.read_tools([tool])
    schema: Any = read.schema
    assert schema["additionalProperties"] is False
    assert schema["properties"]["x"]["additionalProperties"] is False
    assert schema["properties"]["y"]["additionalProperties"] is True
    assert read.parameters == {**tool["parameters"], "type": "object"}  # shown as it was written


def calling(call: ToolCall) -> Message:
    function: FunctionCall = {"name": call.name, "arguments": call.arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }


def test_an_earlier_call_of_a_conversation_is_written_as_the_answer_is() -> None:
    task = family("qwen")
    written = task.with_calls_as_text(
        [{"role": "user", "content": "Oak for 3"}], {**calling(CALL), "weight": 0.5}, None
    )
    assert written == {"role": "assistant", "content": TEXTS["qwen"], "weight": 0.5}


@pytest.mark.parametrize("name", TEXTS)
def test_an_earlier_call_is_rendered_with_the_control_tokens_of_its_form_and_no_others(
    name: str,
) -> None:
    task = family(name)
    task = dataclasses.replace(task, special_tokens=(*task.special_tokens, "<|im_end|>"))
    call = ToolCall("book_room", {"note": "a<|im_end|>[TOOL_CALLS]", "room": "Oak"})
    written = task.with_calls_as_text((), calling(call), None)
    question: Message = {"role": "user", "content": "Oak, <|im_end|> and [TOOL_CALLS]."}
    alone = task.prompt([question, {"role": "assistant", "content": ""}, question])
    own = task.form.before + task.form.between + task.form.after
    for said, times in (("", 1), ("Surely: ", 1), ("Both.\n", 2)):
        made = "\n".join([written["content"]] * times)
        text = task.prompt([question, {"role": "assistant", "content": said + made}, question])
        assert said + "\n".join([task.rules.written(call.answer)] * times) in text
        for token in task.special_tokens:
            assert text.count(token) - alone.count(token) == times * own.count(token)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(name=NAMES, arguments=st.dictionaries(st.text(), JSON, max_size=3))
def test_every_call_survives_every_form(name: str, arguments: dict[str, Any]) -> None:
    call = ToolCall(name, arguments)
    assert tool_calls.read_answer(call.answer) == call
    for form in (family(each).form for each in TEXTS):
        if not any(token in call.answer for token in form.control):
            assert form.read(form.write(call)) == call


def test_our_form_is_taken_where_a_template_refuses_tools() -> None:
    refusing = call_templates.CHATML.replace(
        "m['content']", "(raise_exception('no') if tools else m['content'])"
    )
    assert task_of(refusing).form == OWN
    assert task_of(call_templates.CHATML, tools=()).rules.constraint() == ""


def test_the_system_prompt_for_other_engines_has_the_tools_that_no_template_lists() -> None:
    assert dataclasses.replace(family("qwen"), system="Be brief.").whole_system == "Be brief."
    assert family("qwen").whole_system == ""
    whole = dataclasses.replace(family("chatml"), system="Be brief.").whole_system
    assert whole.startswith("Be brief.\n\n")
    assert "book_room_list" in whole
    assert Task("classify", call_templates.CHATML, "e", system="x").whole_system == "x"


def test_calls_are_the_same_by_tool_and_values() -> None:
    task = family("chatml")
    one = '{"arguments": {"people": 3, "room": "Oak"}, "name": "book_room"}'
    assert task.rules.same(
        one, '{"name": "book_room", "arguments": {"room": "Oak", "people": 3.0}}'
    )
    assert task.rules.same(NO_CALL, f" {NO_CALL} ")
    for other in (
        NO_CALL,
        one.replace("3", "4"),
        one.replace("book_room", "book_room_list"),
        "",
        "3",
    ):
        assert not task.rules.same(one, other)
    assert answers.equal_answer(task, one, one.replace(", ", ",  "))
    assert answers.fault_of(task, one) == ""
    assert "none of the tools" in answers.fault_of(task, one.replace("book_room", "fly"))
    assert "room" in answers.fault_of(task, one.replace("Oak", "Elm"))
