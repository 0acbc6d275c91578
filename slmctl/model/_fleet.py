"""Answers of a model that is served elsewhere, by one or several OpenAI-compatible servers (vLLM, llama-server).

They serve the model that MODEL's task was made for, so they are asked as it was trained; what they
answer is held to the task here, since not every server can do it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from slmctl.briefing import read
from slmctl.engine import Answer, EngineError
from slmctl.errors import DataError, UsageError
from slmctl.model.predict import Prompt
from slmctl.remote import Ask, Refusal, Remote, Reply, completions
from slmctl.task import Task


class Fleet(Remote):
    """Several endpoints asked in turn, as one: an attempt that failed is made again at the next one."""

    def __init__(self, urls: Sequence[str], model: str, key_env: str | None, concurrency: int) -> None:
        if not urls:
            raise UsageError("no endpoint is named", hint="--engine-url https://host/v1")
        super().__init__(urls[0], model, key_env, concurrency * len(urls))
        self.urls = [completions(url) for url in urls]
        self._turns = itertools.cycle(self.urls)
        self._turn = threading.Lock()

    def _address(self) -> str:
        with self._turn:
            return next(self._turns)

    def _hosts(self) -> set[str]:
        return super()._hosts() | {urlsplit(url).hostname or "" for url in self.urls}


class FleetAnswerer:
    """Answers through endpoints."""

    def __init__(self, fleet: Fleet, task: Task, max_tokens: int) -> None:
        self.fleet, self.task, self.max_tokens = fleet, task, max_tokens

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer | EngineError]]:
        asks = (Ask(prompt.messages, self.max_tokens) for prompt in prompts)
        for index, reply in self.fleet.ask_all(asks):
            yield index, self._answer(reply)

    def _answer(self, reply: Reply | Refusal) -> Answer | EngineError:
        if isinstance(reply, Refusal):
            return EngineError(reply.message)
        text = read(self.task, reply.text)
        if self.task.kind == "classify":
            try:
                self.task.read_answer(text)
            except DataError as error:
                return EngineError(f"the endpoint's answer does not fit: {error.message}")
        return Answer(text, reply.finish, reply.confidence, reply.prompt_tokens or 0, reply.completion_tokens or 0)
