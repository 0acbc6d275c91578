"""Ctrl-C in a training: the first one asks for a checkpoint and an end, the second one ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any

from slmctl import console


class FirstInterrupt(contextlib.AbstractContextManager["FirstInterrupt"]):
    """Have the first SIGINT inside the block set `asked` and say that the training ends, where it would interrupt.

    Outside of the main thread, where no handler can be set, nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._set = False

    def __enter__(self) -> FirstInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._before, self._set = signal.signal(signal.SIGINT, self._handle), True
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: object) -> None:
        self._restore()
        self.asked = True
        console.say("  ending after this step; Ctrl-C again ends at once")

    def _restore(self) -> None:
        if self._set:
            signal.signal(signal.SIGINT, self._before if self._before is not None else signal.default_int_handler)
            self._set = False
