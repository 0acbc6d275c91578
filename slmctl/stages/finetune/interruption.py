"""Ctrl-C in a training: the first one asks for a checkpoint and an
end, the second one ends at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from slmctl import console


@contextlib.contextmanager
def first_interrupt() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT in the block sets in place of interrupting; later ones
    interrupt as before.

    Outside of the main thread, where no handler can be set, nothing changes.
    """
    interrupt = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    # None: one that Python did not set
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def ask(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        interrupt.set()
        console.say("  ending after this step; Ctrl-C again ends at once")

    signal.signal(signal.SIGINT, ask)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
