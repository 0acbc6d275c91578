"""Ctrl-C in a training: the first one asks, the second one interrupts, and other threads are left alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmctl.stages.finetune import distributed
from slmctl.stages.finetune.interruption import STOP_FILE, FirstInterrupt


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Python's own handler, which a process that a shell started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_asks_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    asked: list[int] = []
    with pytest.raises(KeyboardInterrupt), FirstInterrupt(lambda: asked.append(1)) as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        os.kill(os.getpid(), signal.SIGINT)
    assert asked == [1]
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_sets_no_handler() -> None:
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with FirstInterrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[object] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


WORKER = """
import os, pathlib, signal, sys, time
stop, enough = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for _ in range(enough):
    os.kill(os.getppid(), signal.SIGINT)  # as the terminal does, which knows the parent alone
    while not stop.exists():
        time.sleep(0.01)
    time.sleep(0.2)
sys.exit(130)
"""


@pytest.mark.parametrize("enough", [1, 2])
def test_ctrl_c_reaches_several_processes_as_a_file(tmp_path: Path, enough: int) -> None:
    # torchrun would end its processes at a SIGINT, before they have saved anything
    command = [sys.executable, "-c", WORKER, str(tmp_path / STOP_FILE), str(enough)]
    if enough == 1:
        assert distributed._wait_for(command, dict(os.environ), tmp_path) == 130
    else:
        with pytest.raises(KeyboardInterrupt):
            distributed._wait_for(command, dict(os.environ), tmp_path)
    assert not (tmp_path / STOP_FILE).exists()
