"""One at a time: of several processes that want one artifact, one
makes it and the rest wait and take it.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import tiny
from support.forks import Done, Forks
from support.scale import FULL

from slmctl.artifacts import artifact, locks

ROUNDS, PROCESSES = (20, 8) if FULL else (2, 4)


def unprepared(tiny_run: Path, place: Path) -> Path:
    desk = Path(shutil.copytree(tiny_run, place / "desk"))
    shutil.rmtree(desk / "runs" / "prepared")
    return desk


def made_it(done: Done) -> bool:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("prepare ")]
    return "current" not in line


def test_one_of_many_makes_it_and_the_rest_take_it(
    preparing: Forks, tiny_run: Path, tmp_path: Path
) -> None:
    desk = unprepared(tiny_run, tmp_path)
    for number in range(ROUNDS):
        shutil.rmtree(desk / "runs" / "prepared", ignore_errors=True)
        if number % 2:  # whoever finds no file of the lock makes one
            shutil.rmtree(desk / "runs" / ".locks")
        children = [preparing.start(desk, "prepare") for _ in range(PROCESSES)]
        done = [child.wait() for child in children]
        assert {one.code for one in done} == {0}, [one.stderr for one in done]
        assert len({one.stdout for one in done}) == 1
        assert sum(map(made_it, done)) == 1
        assert artifact.verify_folder(Path(done[0].stdout.strip())) == []
        assert not list(desk.glob("runs/prepared/.*"))


def test_no_wait_gives_way_or_takes_what_is_there(
    preparing: Forks, tiny_run: Path, tmp_path: Path
) -> None:
    desk = unprepared(tiny_run, tmp_path)
    for _ in range(ROUNDS):
        shutil.rmtree(desk / "runs" / "prepared", ignore_errors=True)
        children = [preparing.start(desk, "prepare", "--no-wait") for _ in range(PROCESSES)]
        done = {child.pid: child.wait() for child in children}
        assert {one.code for one in done.values()} <= {0, 8}, [one.stderr for one in done.values()]
        makers = [pid for pid, one in done.items() if one.code == 0 and made_it(one)]
        assert len(makers) == 1
        for one in done.values():
            assert one.code == 0 or f"is locked by pid {makers[0]} on " in one.stderr


HOLD = """
    import sys, time
    from pathlib import Path
    from slmctl.artifacts import locks
    with locks.lock(Path(sys.argv[1]), wait=True, on_wait=print, needs=["sha256:1234"]):
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def holder(tiny_run: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A project whose data set somebody else is at, and that process."""
    desk = unprepared(tiny_run, tmp_path)
    (name,) = [path.name for path in (tiny_run / "runs" / "prepared").glob("[!.]*")]
    lock = desk / "runs" / ".locks" / f"prepared-{name}"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(lock)],
        stdout=subprocess.PIPE,
        text=True,
        env=tiny.environment(),
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    yield desk, child, lock
    child.kill()
    child.communicate()


def test_a_killed_holder_frees_the_lock_at_once(holder, preparing: Forks) -> None:  # type: ignore[no-untyped-def]
    desk, child, lock = holder
    refused = preparing.run(desk, "prepare", "--no-wait")
    assert refused.code == 8
    assert f"{lock.name} is locked by pid {child.pid} on " in refused.stderr
    assert " since 2" in refused.stderr
    assert "hint: leave --no-wait out to wait for it" in refused.stderr
    assert locks.read_holder(lock)[1:] == ["sha256:1234"]  # type: ignore[index]
    waiting = preparing.start(desk, "prepare")
    child.send_signal(signal.SIGKILL)
    assert waiting.wait().code == 0
    assert locks.read_holder(lock) is None
    assert preparing.run(desk, "prepare", "--no-wait").code == 0


def test_a_lock_that_was_removed_is_not_held_by_two(tmp_path: Path) -> None:
    # a process that waited for a file which gc has removed would hold what nobody else sees
    path = tmp_path / "locks" / "one"
    with locks.lock(path, wait=False, on_wait=print):
        path.unlink()
        with locks.lock(path, wait=False, on_wait=print):
            assert locks.read_holder(path) is not None
    with locks.lock(path, wait=False, on_wait=print):
        assert path.exists()
