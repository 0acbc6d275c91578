"""The prompt of a model that was not trained for the task, its
examples, and the reading of its answers.
"""

from __future__ import annotations

import json

import pytest
from support import tiny
from support.call_templates import QWEN, task_of

from slmctl import config
from slmctl.errors import UsageError
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import Record
from slmctl.task.untuned_prompt import SHOTS, opening, read, shots

DESCRIBED = {"refund": "The customer wants money back.", "delivery": "A parcel is late."}


def test_labels_are_described_a_line_each_in_their_order() -> None:
    task = Task(
        "classify",
        "",
        "",
        labels=("delivery", "other", "refund"),
        system="Sort.",
        descriptions=DESCRIBED,
    )
    assert untuned_prompt.brief(task).split("\n") == [
        "Sort.",
        "Answer with exactly one of these labels and nothing else: delivery, other, refund",
        "delivery: A parcel is late.",
        "refund: The customer wants money back.",
    ]


def test_descriptions_of_no_label_are_refused_with_the_near_one() -> None:
    text = (
        "{project: p, base: b, task: {kind: classify, labels: [refund, delivery], "
        "descriptions: {refunds: x}}}"
    )
    with pytest.raises(
        UsageError, match="describes 'refunds', which is no label; did you mean 'refund'"
    ):
        config.parse(text)
    with pytest.raises(UsageError, match="'descriptions' belongs to classify"):
        config.parse("{project: p, base: b, task: {kind: generate, descriptions: {a: x}}}")
    plain = config.parse("{project: p, base: b, task: {kind: classify}}")
    # recipes from before the key stay current
    assert "descriptions" not in config.recipe(plain.prepare)["task"]


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


# Reading and examples

LABELS = ("card_arrival", "card_lost", "card", "top up", "Refund")
CLASSIFY = Task("classify", "", "", labels=LABELS, system="Name the category.")
EXTRACT = Task("extract", "", "", schema=tiny.SCHEMA, system="Read it.")
GENERATE = Task("generate", "", "")


def record(id: str, text: str, answer: str, *, sensitive: bool = False) -> Record:
    turns = ({"role": "user", "content": text}, {"role": "assistant", "content": answer})
    return Record(id, turns, {"file": "x.csv", "row": 1}, sensitive=sensitive)


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("card_arrival", "card_arrival"),
        (" Card arrival.\n", "card_arrival"),
        ("**refund**", "Refund"),
        ("The category is `top up`.", "top up"),
        ("Category: card_lost", "card_lost"),  # and not `card`, which stands inside it
        ("card", "card"),
        ("card_lost or card_arrival", None),
        ("none of them", None),
        ("discard", None),
        ("", None),
    ],
)
def test_a_label_is_read_kindly(said: str, label: str | None) -> None:
    assert read(CLASSIFY, said) == (label if label is not None else said.strip())


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ('{"topic": "a"}', '{"topic": "a"}'),
        ('Here it is:\n```json\n{"topic": "a"}\n```\nAnything else?', '{"topic": "a"}'),
        ('Sure: {"topic": "a", "items": [{}]} is the answer', '{"topic": "a", "items": [{}]}'),
        ("no braces", "no braces"),
        ("{broken", "{broken"),
        ("3", "3"),
    ],
)
def test_json_is_read_kindly(said: str, value: str) -> None:
    assert read(EXTRACT, said) == value


def test_a_text_is_read_as_it_is() -> None:
    assert read(GENERATE, " Dear Ann,\nyes. ") == "Dear Ann,\nyes."


def train(count: int = 40) -> list[Record]:
    return [record(f"r{k}", f"text {k}", LABELS[k % 5], sensitive=k % 4 == 0) for k in range(count)]


def test_examples_cover_the_labels_before_any_comes_twice() -> None:
    assert {example.answer for example in shots(CLASSIFY, train(), None)} == set(LABELS)
    assert len(shots(CLASSIFY, train(), None)) == 5
    assert len({example.answer for example in shots(CLASSIFY, train(), 3)}) == 3
    counts = [example.answer for example in shots(CLASSIFY, train(), 11)]
    assert sorted(counts.count(label) for label in LABELS) == [2, 2, 2, 2, 3]
    assert shots(CLASSIFY, train(), 0) == []


def test_examples_do_not_hang_on_the_order_of_the_rows() -> None:
    assert shots(CLASSIFY, train(), 7) == shots(CLASSIFY, train()[::-1], 7)
    assert shots(GENERATE, train(), None) == shots(GENERATE, train()[::-1], None)
    assert len(shots(GENERATE, train(), None)) == SHOTS


def test_a_sensitive_record_is_no_example() -> None:
    for task in (CLASSIFY, GENERATE):
        assert not any(example.sensitive for example in shots(task, train(), 30))


def test_the_prompt_says_what_is_wanted() -> None:
    head = opening(CLASSIFY, [record("a", "where is it", "card_arrival")])
    assert [turn["role"] for turn in head] == ["system", "user", "assistant"]
    assert head[0]["content"].startswith(
        "Name the category.\nAnswer with exactly one of these labels"
    )
    assert all(label in head[0]["content"] for label in LABELS)
    assert [turn["content"] for turn in head[1:]] == ["where is it", "card_arrival"]
    assert json.dumps(tiny.SCHEMA) in opening(EXTRACT, [])[0]["content"]


def test_a_conversation_is_shown_as_a_whole() -> None:
    roles = ("system", "user", "assistant", "user", "assistant")
    turns = tuple({"role": role, "content": f"{k}", "weight": "0"} for k, role in enumerate(roles))
    head = opening(GENERATE, [Record("c", turns, {"file": "x", "row": 1})])
    assert [turn["content"] for turn in head[1:]] == ["1", "2", "3", "4"]
    assert all(set(turn) == {"role", "content"} for turn in head)
