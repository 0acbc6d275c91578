"""Answers of a model that is served elsewhere, by one or several OpenAI-compatible servers (vLLM, llama-server).

They serve the model that MODEL's task was made for, so they are asked as it was trained, with the labels or the
schema as a constraint where they know one; what they answer is held to the task here, since not every server does it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import httpx

from slmctl import console
from slmctl.errors import DataError, UsageError
from slmctl.inference.engine import Answer, EngineError
from slmctl.network.openai_client import Ask, Refusal, Remote, Reply, completions, held
from slmctl.stages.predict.prompts import Prompt
from slmctl.task.contract import Task
from slmctl.task.untuned_prompt import read


class Fleet(Remote):
    """Several endpoints asked as one: whoever has least to do is asked next, and each has at most `concurrency`
    requests in flight.

    An attempt that failed is made again at another one; one that refuses the key or the model is asked no more.
    """

    def __init__(self, urls: Sequence[str], model: str, key_env: str | None, concurrency: int) -> None:
        if not urls:
            raise UsageError("no endpoint is named", hint="--engine-url https://host/v1")
        self.urls = list(dict.fromkeys(completions(url) for url in urls))
        super().__init__(urls[0], model, key_env, concurrency * len(self.urls))
        self._each = concurrency
        self._running = dict.fromkeys(self.urls, 0)  # by those that are still asked, the next one first
        self._failing: set[str] = set()  # asked again only where the others have no place
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def _place(self, failed: str) -> Iterator[str]:
        with self._changed:
            self._failing |= {failed} & self._running.keys()
            while (url := self._free(failed)) is None:
                if self._stop.is_set():
                    raise httpx.PoolTimeout("no server had a free place")
                self._changed.wait(0.1)
            self._failing.discard(url)
            self._running[url] = self._running.pop(url) + 1  # of those with as little to do it is the last one now
        try:
            yield url
        finally:
            with self._changed:
                if url in self._running:
                    self._running[url] -= 1
                self._changed.notify_all()

    def _free(self, failed: str) -> str | None:
        """The server with a free place that has least to do; not the one that failed, unless it is alone."""
        others = [url for url in self._running if url != failed] or list(self._running)
        free = [url for url in others if self._running[url] < self._each]
        return min(free, key=lambda url: (url in self._failing, self._running[url]), default=None)

    def _refused(self, url: str, why: str) -> None:
        with self._changed:
            if self._running.keys() == {url}:
                super()._refused(url, why)
            if self._running.pop(url, None) is not None:
                console.say(f"  {urlsplit(url).netloc} is asked no more: {why}")

    def _hosts(self) -> set[str]:
        return super()._hosts() | {urlsplit(url).hostname or "" for url in self.urls}


class FleetAnswerer:
    """Answers through endpoints."""

    def __init__(self, fleet: Fleet, task: Task, max_tokens: int) -> None:
        self.fleet, self.task, self.max_tokens = fleet, task, max_tokens

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer | EngineError]]:
        more = {"logprobs": True, **held(self.task.labels, self.task.constraint)}
        asks = (Ask(self.task.safe(prompt.messages), self.max_tokens, optional=more) for prompt in prompts)
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
