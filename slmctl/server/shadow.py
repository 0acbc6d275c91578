"""The shadow: a second release that answers a question after its client has an answer, so that the two can be compared.

It is never escalated, its engine runs where nobody else wants the processor, and a question is dropped where requests
wait or it is too far behind. Whatever becomes of it, its client has been answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from slmctl.errors import UsageError
from slmctl.server import openai_requests
from slmctl.server.backends import Backend
from slmctl.server.bad_requests import BadRequestError
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics, Samples
from slmctl.server.openai_requests import Ceilings, CheckedRequest, ServedModel
from slmctl.server.request_run import Exchange, RequestFailedError

BEHIND = 16  # questions that wait for it; more are dropped
LIMIT_S = 300.0  # for an answer on a busy machine
HANG_S = 120.0  # without a sign of life until its engine is started again: it may not get the processor for long
FATES = ("same", "other", "dropped", "failed")
FAMILIES = {
    "slmctl_shadow": ("counter", "Questions for the shadow: answered alike or otherwise, dropped, or failed."),
}
Then = Callable[[str | None], None]  # gets the shadow's answer, or None


@dataclass(frozen=True)
class _Question:
    checked: CheckedRequest
    answer: str = field(repr=False)
    then: Then


class Shadow:
    """A release beside the one that answers.

    Args:
        backend: Its engine.
        model: Its name, version, file and task.
        close: Ends the engine.
    """

    def __init__(self, backend: Backend, model: ServedModel, close: Callable[[], None] = lambda: None) -> None:
        self.backend, self.model, self.close_engine = backend, model, close
        self._waiting: asyncio.Queue[_Question] = asyncio.Queue(BEHIND)
        self._work: asyncio.Task[None] | None = None
        self._asked: _Question | None = None
        self._fates: Counter[str] = Counter()

    def start(self, log: Log, metrics: Metrics, ceilings: Ceilings, busy: Callable[[], bool]) -> None:
        """Answer from now on, in the running loop.

        Args:
            log: Gets what happens to its engine.
            metrics: Gets FAMILIES.
            ceilings: The server's.
            busy: True while requests of clients wait.
        """
        self._ceilings, self._busy = ceilings, busy
        self.backend.start(log, metrics)
        metrics.include(FAMILIES, self.figures)
        self._work = asyncio.create_task(self._answer_all())

    def ask(self, checked: CheckedRequest, answer: str, then: Then) -> None:
        """Have a request answered once more, later; `then` is called in any case, at once where it is dropped.

        Args:
            checked: A request of one choice, for a model of the same answers.
            answer: The local model's answer.
            then: Gets the shadow's answer; None where there is none.
        """
        if self._work is not None and not self._work.done() and not self._busy():
            with contextlib.suppress(asyncio.QueueFull):
                self._waiting.put_nowait(_Question(checked, answer, then))
                return
        self._drop(then)

    def figures(self) -> dict[str, Samples]:
        """Every figure of FAMILIES."""
        return {"slmctl_shadow": [({"fate": fate}, float(self._fates[fate])) for fate in FATES]}

    async def close(self) -> None:
        """Let go of the questions that are left, and of the engine's requests."""
        if self._work is not None:
            self._work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._work
        left = [self._asked] if self._asked is not None else []
        while not self._waiting.empty():
            left.append(self._waiting.get_nowait())
        for question in left:
            self._drop(question.then)
        await self.backend.close()

    async def _answer_all(self) -> None:
        while True:
            question = self._asked = await self._waiting.get()
            if self._busy():
                self._drop(question.then)
            else:
                text = await self._answer(question.checked)
                self._fates["failed" if text is None else "same" if text == question.answer else "other"] += 1
                question.then(text)
            self._asked = None

    async def _answer(self, checked: CheckedRequest) -> str | None:
        """The shadow's whole answer; None where it cannot give one."""
        try:
            own = await asyncio.to_thread(openai_requests.for_other, checked, self.model, self._ceilings)
        except BadRequestError:  # its template refuses the conversation
            return None
        exchange = Exchange(own, self.backend, LIMIT_S)
        try:
            exchange.begin()
            await exchange.whole()
        except RequestFailedError:
            return None
        finally:
            exchange.close()
        return own.kept(exchange.choices[0].text)

    def _drop(self, then: Then) -> None:
        self._fates["dropped"] += 1
        then(None)


def require_comparable(shadow: ServedModel, served: ServedModel) -> None:
    """Check that two models give answers that can be compared.

    Raises:
        UsageError: They are of another kind, or have other labels or another schema.
    """
    if what := shadow.task.difference(served.task):
        raise UsageError(
            f"the shadow {shadow.name} {shadow.version} has {what} than {served.name} {served.version}, so their "
            "answers cannot be compared",
            hint="name a release of the same task, or leave --shadow out",
        )
