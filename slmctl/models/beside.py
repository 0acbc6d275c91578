"""A language model with a model that reads texts in this process: both
are asked, or the second one first.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from slmctl.inference.engine import Answering, Request
from slmctl.inference.events import Event
from slmctl.inference.supervised_child import EngineError
from slmctl.models.batch_reader import BatchReader, Cancel, OnEvent, Reply, tell
from slmctl.models.composition import Composition

# requests under way in a first look, so that batches are full and the model is asked last
AHEAD = 512
Read = TypeVar("Read")


class Beside(Composition, Generic[Read]):
    """A language model beside a reader; a subclass says what they answer together.

    Requests that the reader knows nothing of, and requests to a LoRA adapter, go to the model
    alone. Pieces come when the answer is whole. Closing it closes all.

    Args:
        looking: The reader that looks first, if that is another one.

    Attributes:
        kept: Number of answers that were the reader's alone.
    """

    def __init__(
        self, engine: Answering, reader: BatchReader[Read], looking: BatchReader[Read] | None = None
    ) -> None:
        super().__init__(engine, reader, *filter(None, [looking]))
        self._reader, self._looking = reader, looking or reader
        self.kept = 0

    def reads(self, request: Request) -> bool:
        """True for a request that the reader can answer."""
        raise NotImplementedError

    def looks_first(self, request: Request) -> bool:
        """True if the reader may answer a request alone."""
        raise NotImplementedError

    def alone(self, read: Read, request: Request) -> Reply | None:
        """The reader's answer if it is enough; None to ask the model too."""
        raise NotImplementedError

    def together(self, read: Read, text: str, event: Event, request: Request) -> Reply:
        """The answer of both.

        Args:
            text, event: The model's answer, and the event that ends it.
        """
        raise NotImplementedError

    def with_reader(self, reader: Callable[[Answering], Answering]) -> Answering:
        self.engine = reader(self.engine)
        return self

    def submit(self, request: Request, on_event: OnEvent) -> Cancel:
        if request.adapter or not self.reads(request):
            return self.engine.submit(request, on_event)
        return (self._look if self.looks_first(request) else self._ask_both)(request, on_event)

    def _look(self, request: Request, on_event: OnEvent) -> Cancel:
        """Ask the reader, and the model too if that is not enough."""
        read, cancelled = Future[Read](), threading.Event()
        cancels: list[Cancel] = []

        def decide(done: Future[Read]) -> None:
            reply = None
            try:
                is_read = not done.cancelled() and done.exception() is None
                reply = self.alone(done.result(), request) if is_read else None
            finally:  # whatever is raised here is heard by nobody, and the model is asked
                if reply is None and not cancelled.is_set():
                    ask_model()
                elif reply is not None and not cancelled.is_set():
                    self.kept += 1
                    kept = reply
                    tell(on_event, done, lambda _: kept, alternatives=request.alternatives)

        def ask_model() -> None:
            is_whole = self._looking is self._reader and read.exception() is None
            try:  # a reader that failed is asked once more
                cancels.append(self._ask_both(request, on_event, read if is_whole else None))
            except EngineError as error:
                on_event({"error": error.message, "died": True})
                return
            if cancelled.is_set():  # meanwhile, so nobody else cancels this one
                cancels[-1]()

        def cancel() -> None:
            cancelled.set()
            read.cancel()
            for each in cancels:
                each()

        read.add_done_callback(decide)
        self._looking.read(request, read)
        return cancel

    def _ask_both(
        self, request: Request, on_event: OnEvent, earlier: Future[Read] | None = None
    ) -> Cancel:
        """Ask the model, and the reader if it has not read the text."""
        read, cancelled = earlier or Future[Read](), threading.Event()
        pieces: list[str] = []

        def relay(event: Event) -> None:
            if "finish" in event:
                read.add_done_callback(functools.partial(finish, event))
            elif "piece" in event:
                pieces.append(event["piece"])
            else:
                on_event(event)

        def finish(event: Event, done: Future[Read]) -> None:
            if not cancelled.is_set():
                text = "".join(pieces)
                reply = functools.partial(self.together, text=text, event=event, request=request)
                tell(on_event, done, reply, alternatives=request.alternatives)

        cancel = self.engine.submit(request, relay)
        if earlier is None:
            self._reader.read(request, read)

        def cancel_both() -> None:
            cancelled.set()
            cancel()
            read.cancel()

        return cancel_both
