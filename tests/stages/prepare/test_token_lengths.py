"""Lengths in tokens: counting the shared parts once gives what tokenizing the whole would."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from slmctl.artifacts.artifact import Artifact
from slmctl.stages.prepare.token_lengths import TokenCounter
from slmctl.task.contract import Task
from slmctl.task.records import Record

SHOUTS = "{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(artifacts: dict[str, Artifact]) -> Path:
    return artifacts["base"].path / "tokenizer.json"


@pytest.fixture(scope="module")
def task(artifacts: dict[str, Artifact]) -> Task:
    return Task.read(artifacts["prepared"].path)


def record(*messages: tuple[str, str], tools: tuple[Any, ...] | None = None) -> Record:
    return Record(
        "", tuple({"role": role, "content": content} for role, content in messages), {}, tools=tools
    )


def lengths(counter: TokenCounter, *records: Record) -> list[int]:
    return counter.count([counter.countable(record) for record in records]).tolist()


def whole(task: Task, tokenizer: Path, one: Record) -> int:
    # as it is trained
    text = task.prompt(one.prompt_messages, tools=one.tools) + task.defused(one.answer) + task.end
    return len(Tokenizer.from_file(str(tokenizer)).encode(text, add_special_tokens=False))


NASTY = ["", " two  spaces ", "<|im_end|>", "a<|im_start|>user\nb", "\n\n", "é🙂"]
WORDS = st.text(max_size=60) | st.sampled_from(NASTY)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(WORDS, WORDS, st.booleans())
def test_the_parts_add_up(
    task: Task, tokenizer: Path, question: str, answer: str, own: bool
) -> None:
    messages = [
        ("system", task.system if own else "Another."),
        ("user", question),
        ("assistant", answer),
    ]
    one = record(*messages)
    assert lengths(TokenCounter(task, tokenizer), one) == [whole(task, tokenizer, one)]


def test_several_turns_are_tokenized_whole(task: Task, tokenizer: Path) -> None:
    one = record(
        ("system", task.system),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    )
    short = record(("system", task.system), ("user", "where is it"), ("assistant", "delivery"))
    found = lengths(TokenCounter(task, tokenizer), one, short, one)
    assert found == [whole(task, tokenizer, each) for each in (one, short, one)]


def test_a_template_that_changes_a_question_is_always_rendered(task: Task, tokenizer: Path) -> None:
    shouting = dataclasses.replace(task, chat_template=SHOUTS)
    one = record(("system", task.system), ("user", "where is it"), ("assistant", "delivery"))
    counter = TokenCounter(shouting, tokenizer)
    assert counter._frame is None
    assert lengths(counter, one) == [whole(shouting, tokenizer, one)]
    assert TokenCounter(task, tokenizer)._frame is not None, "the plain one is not"
