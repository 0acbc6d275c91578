"""A model in this process that reads together the texts that wait, asked as an engine is."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from slmctl.inference.engine import Answering, Outcomes, Request, answer_of
from slmctl.inference.events import Event, TokenAlternative
from slmctl.inference.supervised_child import EngineDiedError, EngineError, State
from slmctl.inference.turns import Turns
from slmctl.metrics import label_sum

FLOOR = math.exp(label_sum.LEAST)  # the least probability of a label in an answer
TOGETHER, LISTED = 32, 64  # texts that are read at once: of those that wait, and of a list
# of those that wait, in all; a longer text is read alone, so that others wait for one alone
CHARACTERS = 1 << 16
SHARED = 4  # of those that wait, where several clients ask: who comes then waits for few
ENDED = "the model that reads texts has ended"
OnEvent = Callable[[Event], None]
Cancel = Callable[[], object]
Reply = tuple[str, Event]  # the text of an answer, and the event that ends it
Read = TypeVar("Read")


class BatchReader(Answering, Generic[Read]):
    """A model in this process; a subclass says what it reads in
    texts, and what it answers by that.
    """

    def __init__(self) -> None:
        self.on_death = lambda: None
        self._waiting, self._closed = Turns[tuple[str, Future[Read]]](), False
        self._change = threading.Condition()  # of both
        self._scoring = ThreadPoolExecutor(1)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def scored(self, texts: Sequence[str]) -> Sequence[Read]:
        """The reading of each text; raises an EngineError if it cannot be computed."""
        raise NotImplementedError

    def reply(self, read: Read, request: Request) -> Reply:
        """The answer to a request by what was read in its question."""
        raise NotImplementedError

    def end(self) -> None:
        """Free what it holds; nothing is read any more."""

    @property
    def alive(self) -> bool:
        return not self._closed

    @property
    def state(self) -> State:
        return "dead" if self._closed else "ready"

    def held_bytes(self) -> int:
        return 0  # no process of their own

    def revive(self) -> None:
        """Nothing dies without this process."""

    def with_reader(self, reader: object) -> BatchReader[Read]:
        return self  # a text is read as a whole, whatever its length

    def close(self) -> None:
        """End the thread; who still waits gets an error."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join(timeout=5)

    def submit(self, request: Request, on_event: OnEvent) -> Cancel:
        scores, cancelled = Future[Read](), threading.Event()

        def finish(done: Future[Read]) -> None:
            if not cancelled.is_set():
                tell(
                    on_event,
                    done,
                    lambda read: self.reply(read, request),
                    alternatives=request.alternatives,
                )

        def cancel() -> None:
            cancelled.set()
            scores.cancel()

        scores.add_done_callback(finish)
        self.read(request, scores)
        return cancel

    def read(self, request: Request, scores: Future[Read]) -> None:
        """Have a question read with those that wait; its scores,
        or the error, come into the future.
        """
        with self._change:
            if not self._closed:
                self._waiting.put(request.client, (request.question, scores))
                self._change.notify()
                return
        scores.set_exception(EngineDiedError(ENDED))

    def ask_all(self, requests: Iterable[Request], **how: object) -> Outcomes:
        listed = list(requests)
        for start in range(0, len(listed), LISTED):
            block = listed[start : start + LISTED]
            for index, (request, read) in enumerate(
                zip(block, self._listed(block), strict=True), start
            ):
                if isinstance(read, EngineError):
                    yield index, read
                else:
                    text, event = self.reply(read, request)
                    yield index, answer_of(event, text)

    def _listed(self, block: Sequence[Request]) -> Sequence[Read | EngineError]:
        """The reading for each request, or its error; those that fail
        together are read once more, each alone.
        """
        try:
            return self.scored([request.question for request in block])
        except EngineError as error:
            return (
                [error]
                if len(block) == 1
                else [each for request in block for each in self._listed([request])]
            )

    def _work(self) -> None:
        try:
            while block := self._next():
                self._answer(block)
        finally:
            with self._change:
                self._closed = True
            self._scoring.shutdown()
            self.end()
            for _, waiting in self._waiting:
                if waiting.set_running_or_notify_cancel():
                    waiting.set_exception(EngineDiedError(ENDED))

    def _next(self) -> list[tuple[str, Future[Read]]]:
        """The texts that wait, some at most, without those that were
        cancelled; none where this was closed.
        """
        block: list[tuple[str, Future[Read]]] = []
        with self._change:
            while not (block or self._closed):
                self._change.wait_for(lambda: self._waiting or self._closed)
                most = SHARED if self._waiting.is_shared else TOGETHER
                length = 0
                while (
                    (entry := self._waiting.next()) is not None
                    and len(block) < most
                    and not self._closed
                ):
                    length += len(entry[0])
                    if block and length > CHARACTERS:
                        break
                    self._waiting.take()
                    if entry[1].set_running_or_notify_cancel():
                        block.append(entry)
        return block

    def _answer(self, block: Sequence[tuple[str, Future[Read]]], *, again: bool = True) -> None:
        """Give each text what is read in it; those that fail
        together are read once more, each alone.
        """
        scoring = self._scoring.submit(self.scored, [text for text, _ in block])
        # whatever was raised, these texts are told, and the next ones are read
        if (error := scoring.exception()) is None:
            for (_, waiting), scores in zip(block, scoring.result(), strict=True):
                waiting.set_result(scores)
            return
        for entry in block:
            if again and not self._closed:
                self._answer([entry], again=False)
            else:
                entry[1].set_exception(error)


def tell(
    on_event: OnEvent, done: Future[Read], reply: Callable[[Read], Reply], *, alternatives: int
) -> None:
    """Send the events of an answer by what a future holds, or the error in place of them.

    Args:
        reply: Makes the answer.
        alternatives: As in a Request.
    """
    events: list[Event] = [{"error": "the encoder's part of the answer cannot be computed"}]
    try:
        if (error := done.exception()) is not None:
            died = isinstance(error, EngineDiedError)
            events = [
                {"error": f"the encoder failed: {str(error) or type(error).__name__}", "died": died}
            ]
        else:
            text, ending = reply(done.result())
            events = [_piece(text, ending, alternatives), ending]
    finally:  # an exception in a callback of a future is logged, and nobody hears it
        for event in events:
            on_event(event)


def _piece(text: str, answer: Event, alternatives: int) -> Event:
    """An answer as its only piece; a label is one token too where
    `Request.alternatives` asks for tokens.
    """
    if alternatives < 0:
        return {"piece": text}
    if "labels" not in answer:
        return {"piece": text, "tokens": []}
    listed = list(answer["labels"].items())
    first, *top = [_alternative(*each) for each in [listed[0], *listed[:alternatives]]]
    return {"piece": text, "tokens": [{**first, "top": top}]}


def _alternative(text: str, share: float) -> TokenAlternative:
    logprob = math.log(max(share, FLOOR))
    return TokenAlternative(token=text, bytes=list(text.encode()), logprob=logprob)
