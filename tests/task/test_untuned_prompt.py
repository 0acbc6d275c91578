"""The prompt of a model that was not trained for the task: its labels in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.call_templates import QWEN, task_of

from slmctl import config
from slmctl.errors import UsageError
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import Record

DESCRIBED = {"refund": "The customer wants money back.", "delivery": "A parcel is late."}


def test_labels_are_described_a_line_each_in_their_order() -> None:
    task = Task("classify", "", "", labels=("delivery", "other", "refund"), system="Sort.", descriptions=DESCRIBED)
    assert untuned_prompt.brief(task).split("\n") == [
        "Sort.",
        "Answer with exactly one of these labels and nothing else: delivery, other, refund",
        "delivery: A parcel is late.",
        "refund: The customer wants money back.",
    ]


def test_a_contract_carries_descriptions_and_stays_as_it_was_without(tmp_path: Path) -> None:
    plain = Task("classify", "t", "e", labels=("a",))
    plain.write(tmp_path)
    assert b"descriptions" not in (tmp_path / "task.json").read_bytes()
    described = Task("classify", "t", "e", labels=("a",), descriptions={"a": "Says a."})
    described.write(tmp_path)
    assert Task.read(tmp_path) == described
    assert described.digest != plain.digest


def test_descriptions_of_no_label_are_refused_with_the_near_one() -> None:
    text = "{project: p, base: b, task: {kind: classify, labels: [refund, delivery], descriptions: {refunds: x}}}"
    with pytest.raises(UsageError, match="describes 'refunds', which is no label; did you mean 'refund'"):
        config.parse(text)
    with pytest.raises(UsageError, match="'descriptions' belongs to classify"):
        config.parse("{project: p, base: b, task: {kind: generate, descriptions: {a: x}}}")
    plain = config.parse("{project: p, base: b, task: {kind: classify}}")
    assert "descriptions" not in config.recipe(plain.prepare)["task"]  # recipes from before the key stay current


def test_a_call_is_asked_for_and_read_leniently() -> None:
    task = task_of(QWEN, system="You book rooms.")
    kept = '{"arguments": {"room": "Oak"}, "name": "book_room"}'
    turns = {"role": "user", "content": "Oak"}, {"role": "assistant", "content": kept}
    record = Record("a", turns, {"file": "a", "row": 1})
    assert "book_room_list" in untuned_prompt.brief(task)
    assert "book_room" not in untuned_prompt.brief(task, local=True)  # the template has the tools
    assert untuned_prompt.turns(task, record)[-1]["content"] == kept
    assert untuned_prompt.turns(task, record, local=True)[-1]["content"].startswith("<tool_call>")
    said = {
        kept: kept,
        '<tool_call>\n{"name": "book_room", "arguments": {"room": "Oak"}}\n</tool_call>': kept,
        'Sure:\n```json\n{"name": "book_room", "arguments": {"room": "Oak"}}\n```': kept,
        'I call {"name": "book_room", "arguments": {"room": "Oak"}}.': kept,
        "None.": "none",
        "There is no tool for it": "There is no tool for it",
    }
    assert {text: untuned_prompt.read(task, text) for text in said} == said
