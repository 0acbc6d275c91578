"""Shapes: what a row is recognised as, and the conversation that is read from it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slmctl.config import Source
from slmctl.errors import DataError
from slmctl.task import conversation_formats
from slmctl.task.records import RowRejectedError

USER, ANSWER = (
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "On its way."},
)
TURNS = [{"from": "human", "value": "Where is it?"}, {"from": "gpt", "value": "On its way."}]


def source(**fields: Any) -> Source:
    return Source.model_validate({"path": "rows.jsonl", **fields})


def read(row: dict[str, Any], **fields: Any) -> conversation_formats.Conversation:
    return conversation_formats.recognise(source(**fields), list(row)).read(row)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", {"messages": [USER, ANSWER]}),
        ("messages", {"messages": json.dumps([USER, ANSWER])}),  # a cell of a table
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Where is it?"}]},
                    ANSWER,
                ]
            },
        ),
        ("sharegpt", {"conversations": TURNS}),
        ("alpaca", {"instruction": "Where is it?", "input": "", "output": "On its way."}),
        ("prompt-completion", {"prompt": "Where is it?", "completion": "On its way."}),
        ("prompt-completion", {"prompt": [USER], "completion": [ANSWER]}),
        ("columns", {"input": "Where is it?", "output": "On its way."}),
    ],
)
def test_every_shape_gives_the_same_conversation(name: str, row: dict[str, Any]) -> None:
    shape = conversation_formats.recognise(source(), list(row))
    assert shape.name == name
    assert shape.read(row).messages == [USER, ANSWER]


def test_alpaca_joins_instruction_and_input_and_takes_history() -> None:
    row = {
        "instruction": "Sum up.",
        "input": "A long text.",
        "output": "Short.",
        "history": [["Hi", "Hello"]],
    }
    said = [message["content"] for message in read(row).messages]
    assert said == ["Hi", "Hello", "Sum up.\n\nA long text.", "Short."]


def test_columns_that_the_config_names_win_over_a_shape() -> None:
    row = {"instruction": "no", "output": "no", "body": "Where is it?", "tag": "delivery"}
    shape = conversation_formats.recognise(source(input="body", output="tag"), list(row))
    assert (shape.name, shape.reason) == ("columns", "the config names the columns")
    assert [m["content"] for m in shape.read(row).messages] == ["Where is it?", "delivery"]


def test_a_template_is_filled_from_columns() -> None:
    row = {
        "subject": " Lamp ",
        "body": 'It\'s "dark" <b>',
        "slots": {"b": 1, "a": ["x"]},
        "intent": "é",
    }
    made = read(
        row,
        input="{{ subject }}: {{ body }}{% if not slots %}!{% endif %}",
        output='{"intent": {{ intent | tojson }}, "slots": {{ slots }}}',
    )
    assert made.messages[0]["content"] == 'Lamp: It\'s "dark" <b>'
    assert json.loads(made.messages[1]["content"]) == {"intent": "é", "slots": {"a": ["x"], "b": 1}}


@pytest.mark.parametrize(
    "name", ["Art.-Nr.", "Meldung (Text)", "a b", "in", "none", 'say "x"', "a\\b", "row", "Größe"]
)
def test_a_template_names_any_column(name: str) -> None:
    # `Art.-Nr.` could not stand in a template, and the error did not say how to write it
    spec = f"{{{{ {conversation_formats.reference(name)} }}}} and {{{{ tag }}}}"
    assert (
        read({name: " 17 ", "tag": "x"}, input=spec, output="tag").messages[0]["content"]
        == "17 and x"
    )


@pytest.mark.parametrize(
    "spec", ["{{ Art.-Nr. }}", "{{ Meldung (Text) }}", "{{ Art-Nr }}", '{{ row["Art"] }}']
)
def test_an_error_names_the_way_to_write_a_column(spec: str) -> None:
    columns = ["Art.-Nr.", "Meldung (Text)", "Art-Nr", "tag"]
    with pytest.raises(DataError) as caught:
        conversation_formats.recognise(source(input=spec, output="tag"), columns)
    odd = next((name for name in columns if name in spec), "")
    assert caught.value.hint == (
        f'in a template this column is {{{{ row["{odd}"] }}}}'
        if odd
        else "its columns: Art.-Nr., Meldung (Text), Art-Nr, tag"
    )


@pytest.mark.parametrize(
    "spec",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ body.__class__.__base__.__subclasses__() }}",
    ],
)
def test_a_template_reaches_nothing_but_the_row(spec: str) -> None:
    with pytest.raises(DataError):
        read({"body": "x", "output": "y"}, input=spec, output="output")


def test_a_template_with_an_unknown_column_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no column 'subjekt'; did you mean 'subject'\?"):
        conversation_formats.recognise(
            source(input="{{ subjekt }}", output="tag"), ["subject", "tag"]
        )


@pytest.mark.parametrize(
    ("turns", "rule", "reason"),
    [
        ([USER], "no answer", "the last message is of role 'user'"),
        ([ANSWER], "empty input", "no message is of role"),
        ([{"role": "user", "content": " "}, ANSWER], "empty input", "is empty"),
        ([USER, {"role": "assistant", "content": ""}], "empty answer", "the last message is empty"),
        ([USER, {**ANSWER, "weight": 0}], "nothing to learn", "weight 0"),
        ([USER, {**ANSWER, "weight": "much"}], "bad weight", "not 0 to 100"),
        ([USER, {"role": "narrator", "content": "x"}, ANSWER], "unknown role", "'narrator'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], "not text", "image_url"),
        # was a TypeError
        ([{"role": "user", "content": [{"type": ["text"]}]}, ANSWER], "not text", "more than text"),
        (["hello", ANSWER], "not a conversation", "message 1 is not an object"),
        ("hello", "not a conversation", "'messages' is not a list"),
        (None, "not a conversation", "'messages' is not a list"),
    ],
)
def test_what_is_no_conversation_is_rejected_with_its_rule(
    turns: Any, rule: str, reason: str
) -> None:
    with pytest.raises(RowRejectedError, match=reason) as caught:
        read({"messages": turns})
    assert caught.value.rule == rule


def test_weights_tools_and_calls_are_kept() -> None:
    tool = {"type": "function", "function": {"name": "track", "parameters": {}}}
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "track", "arguments": '{"order": 7}'},
    }
    turns = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call], "weight": 1},
        {"role": "tool", "content": "in Ghent", "name": "track"},
        {"role": "assistant", "content": "It is in Ghent.", "weight": 0.5},
    ]
    made = read({"messages": turns, "tools": json.dumps([tool])})
    assert made.tools == [tool]
    assert made.messages[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "track", "arguments": {"order": 7}}}
    ]
    assert [message.get("weight") for message in made.messages] == [None, 1, None, 0.5]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER], "tools": []},
        {"messages": [USER]},
        {"messages": [USER, {"role": "assistant", "content": ""}]},
        {"prompt": USER["content"], "completion": ""},
        {"body": USER["content"]},
    ],
)
def test_a_label_of_the_source_is_the_answer_of_every_row(row: dict[str, Any]) -> None:
    fields = {"input": "body"} if "body" in row else {}
    shape = conversation_formats.recognise(source(label="parcels", **fields), list(row))
    assert shape.read(row).messages == [USER, {"role": "assistant", "content": "parcels"}]
    assert shape.mapping[-1][1] == "the label 'parcels'"


def test_a_column_beside_conversations_that_nothing_would_read_is_refused() -> None:
    with pytest.raises(DataError, match="of which 'weight' is not read"):
        conversation_formats.recognise(source(weight="share"), ["messages", "share"])


def test_the_older_form_of_a_call_is_read() -> None:
    call = {"name": "track", "arguments": '{"order": 7}'}
    made = read(
        {"messages": [USER, {"role": "assistant", "content": None, "function_call": call}, ANSWER]}
    )
    assert made.messages[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "track", "arguments": {"order": 7}}}
    ]


def test_a_source_has_a_label_or_an_output() -> None:
    with pytest.raises(
        ValueError, match="'label' is the answer of every row, so 'output' names none"
    ):
        source(label="parcels", output="tag")
