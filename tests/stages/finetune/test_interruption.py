"""Ctrl-C in a training: the first one asks, the second one
interrupts, and other threads are left alone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from slmctl.stages.finetune.interruption import first_interrupt


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Python's own handler, which a process that a shell started
    in the background does not have.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_asks_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), first_interrupt() as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.is_set()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_sets_no_handler() -> None:
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with first_interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[object] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
