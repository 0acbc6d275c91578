"""`slmctl chat`: a conversation in the terminal, or one line after another through a pipe."""

from __future__ import annotations

from collections.abc import Iterable

from slmctl import console
from slmctl.inference.engine import Answer, Engine
from slmctl.task.contract import Task
from slmctl.task.engine_requests import engine_request
from slmctl.task.records import Message


def chat(engine: Engine, task: Task, lines: Iterable[str], *, max_tokens: int, interactive: bool) -> None:
    """Answer line by line, on stdout.

    A model for `classify`, `extract` or `call` answers each line by itself; for `generate` the prompt holds the
    whole conversation. A call is shown whole, in the form in which answers are kept.
    """
    history = task.messages("")[:-1]
    for line in lines:
        if not (text := line.strip()):
            continue
        question: Message = {"role": "user", "content": task.cleaned_text(text)[0]}
        turns = [*(history if task.kind == "generate" else task.messages("")[:-1]), question]
        for piece in engine.stream(engine_request(task, task.prompt(turns), max_tokens=max_tokens)):
            if isinstance(piece, Answer):
                if task.kind == "call":
                    console.write(console.clean(task.kept(piece.text)))
                history = [*turns, {"role": "assistant", "content": piece.text}]
                console.write(f"   (confidence {piece.confidence:.2f})\n" if task.labels and interactive else "\n")
            elif task.kind != "call":
                console.write(console.clean(piece))
