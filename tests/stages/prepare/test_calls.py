"""prepare reads calls: from chats and tables, into one form; what is no call
of an offered tool is rejected by rule.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import preparing
from support.call_templates import QWEN, TOOLS

from slmctl.config import Source
from slmctl.stages.prepare.record_reader import RecordBatch
from slmctl.task.contract import Task, call_form_of
from slmctl.task.records import Record

TASK = Task("call", QWEN, "<|im_end|>", tools=TOOLS)
OAK = {"arguments": {"people": 3, "room": "Oak"}, "name": "book_room"}
KEPT = json.dumps(OAK)
FLY = {"type": "function", "function": {"name": "fly", "description": "Fly.", "parameters": {}}}

FLIGHT = {"name": "fly", "arguments": {"to": "Rome"}}


def to_fly(schema: dict[str, Any]) -> dict[str, Any]:
    """A tool whose one argument has this schema."""
    parameters = {"type": "object", "properties": {"to": schema}}
    return {
        "type": "function",
        "function": {"name": "fly", "description": "Fly.", "parameters": parameters},
    }


def read(
    rows: list[dict[str, Any]], tmp_path: Path, *, tools: Any = TOOLS, **policy: Any
) -> tuple[list[Record], list[str]]:
    """The records of rows, and the rule of each row that is rejected."""
    task = Task(**{**TASK.__dict__, "call_form": call_form_of(TASK), "tools": tools})
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    columns = {"input": "text", "output": "call"} if "text" in rows[0] else {}
    batch = preparing.read(Source(path=tmp_path / "rows.jsonl", **columns), rows, task, **policy)
    return records_of(batch), [rejected.rule for rejected in batch.rejected]


def records_of(batch: RecordBatch) -> list[Record]:
    return [Record.from_json(json.loads(line)) for line in batch.lines]


def chat(*calls: dict[str, Any], content: str | None = None, **more: Any) -> dict[str, Any]:
    return (
        said(content, tool_calls=[{"type": "function", "function": call} for call in calls]) | more
    )


def said(content: str | None = None, **more: Any) -> dict[str, Any]:
    """A chat whose last message is this."""
    answer = {"role": "assistant", "content": content, **more}
    return {"messages": [{"role": "user", "content": "Oak for three"}, answer]}


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        (chat(OAK), KEPT),
        (chat({"name": "book_room", "arguments": json.dumps(OAK["arguments"])}), KEPT),
        (
            chat({"name": "book_room_list", "arguments": ""}),
            '{"arguments": {}, "name": "book_room_list"}',
        ),
        (chat(content="Which room?"), "none"),
        (chat(content=None), "none"),
        (chat({"name": "fly", "arguments": {}}, tools=[FLY]), '{"arguments": {}, "name": "fly"}'),
        (
            said(function_call={"name": "book_room", "arguments": json.dumps(OAK["arguments"])}),
            KEPT,
        ),
        (said(f"<tool_call>\n{KEPT}\n</tool_call>"), KEPT),
        (said(f"I book it.\n<tool_call>{KEPT}"), KEPT),
        (said(f"[TOOL_CALLS] [{KEPT}]"), KEPT),
        (said(json.dumps({"name": "book_room", "parameters": OAK["arguments"]})), KEPT),
        (said('{"answer": "none of them"}'), "none"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Oak"},
                    {"from": "gpt", "value": f"<tool_call>{KEPT}"},
                ]
            },
            KEPT,
        ),
        ({"prompt": "Oak for 3", "completion": f"<tool_call>{KEPT}</tool_call>"}, KEPT),
        ({"text": "Oak for 3", "call": OAK}, KEPT),
        ({"text": "Oak for 3", "call": KEPT}, KEPT),
        ({"text": "Oak for 3", "call": json.dumps({"type": "function", "function": OAK})}, KEPT),
        ({"text": "hello", "call": ""}, "none"),
        ({"text": "hello", "call": "none"}, "none"),
        ({"text": "hello", "call": None}, "none"),
    ],
)
def test_a_call_becomes_the_one_form(row: dict[str, Any], answer: str, tmp_path: Path) -> None:
    (record,), rejected = read([row], tmp_path)
    assert record.answer == answer
    assert "tool_calls" not in record.messages[-1]
    assert not rejected


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (chat(OAK, OAK), "several calls"),
        (chat({"name": "fly", "arguments": {}}), "unknown tool"),
        (chat(OAK, tools=[FLY]), "unknown tool"),
        (chat({"name": "book_room", "arguments": {"room": "Elm"}}), "wrong arguments"),
        (chat({"name": "book_room", "arguments": {}}), "wrong arguments"),
        (chat({"name": "book_room", "arguments": "not JSON"}), "not a call"),
        (chat(OAK, tools=[{"name": "a b"}]), "bad tools"),
        (chat(FLIGHT, tools=[to_fly({"$ref": "#/$defs/missing"})]), "bad tools"),
        (chat(FLIGHT, tools=[to_fly({"type": "string", "pattern": "(?=a)b"})]), "bad tools"),
        (said(f"<tool_call>{KEPT}</tool_call><tool_call>{KEPT}</tool_call>"), "several calls"),
        (said("<tool_call>book_room(Oak)</tool_call>"), "not a call"),
        (said("[TOOL_CALLS]book_room[ARGS]{}"), "not a call"),
        (said(json.dumps({**OAK, "people": 3})), "not a call"),
        ({"text": "hello", "call": "please book"}, "not a call"),
        ({"text": "hello", "call": '{"tool": "book_room"}'}, "not a call"),
    ],
)
def test_what_is_no_call_is_rejected_by_its_rule(
    row: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    assert read([row], tmp_path) == ([], [rule])


def test_a_row_without_tools_needs_those_of_the_task(tmp_path: Path) -> None:
    assert read([chat(OAK)], tmp_path, tools=()) == ([], ["bad tools"])


def test_earlier_calls_of_a_conversation_are_in_the_form_of_the_base(tmp_path: Path) -> None:
    call = {"function": {"name": "book_room_list", "arguments": {}}}
    earlier = [
        {"role": "user", "content": "rooms?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Oak"},
    ]
    (record,), _ = read([{"messages": [*earlier, *chat(OAK)["messages"]]}], tmp_path)
    assert record.messages[1]["content"].startswith('<tool_call>\n{"name": "book_room_list"')
    assert record.answer == KEPT


def test_what_redacting_makes_of_an_argument_must_still_fit(tmp_path: Path) -> None:
    note = {"arguments": {"note": "a@b.example", "room": "Oak"}, "name": "book_room"}
    (record,), rejected = read([{"text": "Oak", "call": note}], tmp_path)
    assert (record.answer, rejected) == (json.dumps(note), [])
    tools = json.loads(json.dumps(TOOLS).replace('"maxLength": 12', '"pattern": "@"'))
    assert read([{"text": "Oak", "call": note}], tmp_path, tools=tools, email="redact")[1] == [
        "wrong arguments"
    ]


def test_a_row_of_a_source_with_a_label_has_no_tools(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "fly to Rome"},
            {"role": "assistant", "content": KEPT},
        ]
    }
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    for more, tools in (({"label": KEPT}, None), ({}, (FLY,))):
        task = Task("classify", QWEN, "<|im_end|>", labels=(KEPT,))
        source = Source(path=tmp_path / "rows.jsonl", **more)
        (record,) = records_of(preparing.read(source, [{**row, "tools": [FLY]}], task))
        assert (record.answer, record.tools) == (KEPT, tools)
