"""Calls of real models, in the forms of several bases: held to the offered
tools by llama.cpp and by transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import call_templates
from support.call_templates import task_of
from support.forks import Forks, convert

from slmctl.inference.engine import Answer, Engine
from slmctl.model_files.transformers_answerer import HfAnswerer
from slmctl.models import prompts
from slmctl.models.model import OpenModel
from slmctl.task.contract import Task
from slmctl.task.records import Record

FLY = {"type": "function", "function": {"name": "fly", "description": "Fly.", "parameters": {}}}
# the tiny vocabulary has these control tokens, so one of them is that of the form
MARKED = call_templates.ARGS.replace("[TOOL_CALLS]", "<|im_start|>").replace("[ARGS]", " with ")
TASKS = {
    "own": task_of(call_templates.CHATML),
    "qwen": task_of(call_templates.QWEN),
    "marked": task_of(MARKED, end="</s>", special_tokens=("<|im_start|>", "<|im_end|>")),
}
RECORDS = [
    Record(
        str(k),
        ({"role": "user", "content": text}, {"role": "assistant", "content": "none"}),
        {"file": "a", "row": k},
        tools=(FLY,) if k % 2 else None,
    )
    for k, text in enumerate(
        ("refund my card please", "hello", "late truck", "where is my parcel", "x", "lamp")
    )
]


@pytest.fixture(scope="module")
def gguf(tiny_base: Path, heavy_children: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(
        heavy_children, tiny_base, tmp_path_factory.mktemp("calls") / "tiny-F32.gguf", "f32"
    )


@pytest.fixture(scope="module")
def engine(gguf: Path) -> Iterator[Engine]:
    with Engine(gguf, sequences=4, context=1536, threads=1) as model:
        yield model


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_calls_an_offered_tool_or_none(
    name: str, engine: Engine, tiny_base: Path
) -> None:
    task: Task = TASKS[name]
    asked = [prompts.asked(task, record) for record in RECORDS]
    by_transformers = HfAnswerer(tiny_base, labels=task.labels, end=task.end, max_tokens=160)
    answerers = (OpenModel(engine, task, 160), OpenModel(by_transformers, task, 160))
    texts = []
    for answerer in answerers:
        answers = dict(answerer.answer(asked))
        for k, record in enumerate(RECORDS):
            answer = answers[k]
            assert isinstance(answer, Answer)
            assert answer.finish == "stop"
            assert task.accepts(answer.text, tools=record.tools), answer.text
            assert answer.confidence is not None
            assert 0 < answer.confidence <= 1
        texts.append([answers[k].text for k in range(len(RECORDS))])
    same = sum(a == b for a, b in zip(*texts, strict=True))
    assert same >= len(RECORDS) - 1  # of random weights, two tokens may be nearly as likely
    own = [text for text, record in zip(texts[0], RECORDS, strict=True) if record.tools]
    assert not any("book_room" in text for text in own)
