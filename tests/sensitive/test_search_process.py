"""Searches in a process of their own: the same findings, by a deadline,
and a new process after one was ended.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from slmctl import sensitive
from slmctl.child import LineChild
from slmctl.sensitive import search_process
from slmctl.sensitive.search_process import SearchError, _Pool

MAIL = "write to jane.doe@example.org"
TEXTS = [
    MAIL,
    "",
    "nothing here",
    "\ud800 card 4111 1111 1111 1111",
    "\u200b".join("jane@example.org"),
    MAIL * 2000,
]


@pytest.fixture
def pool() -> Iterator[_Pool]:
    """Processes of this test alone, which it may kill."""
    own = _Pool(os.getpid())
    yield own
    own.close()


def children(pool: _Pool) -> list[int]:
    return [process.pid for process in pool.free if process.alive]


def test_findings_are_those_of_a_search_in_this_process() -> None:
    found = search_process.find(TEXTS, timeout_s=20)
    assert found == [sensitive.find(text) for text in TEXTS]
    assert len(found[-1]) == 2000


def test_one_process_answers_many_searches(pool: _Pool) -> None:
    assert [len(pool.find([MAIL], 20)[0]) for _ in range(5)] == [1] * 5
    (pid,) = children(pool)
    assert resource.prlimit(pid, resource.RLIMIT_AS)[0] == search_process.LIMIT_BYTES
    assert resource.prlimit(pid, resource.RLIMIT_FSIZE)[0] == 0


def test_several_threads_get_their_own_findings(pool: _Pool) -> None:
    results: dict[int, int] = {}
    threads = [
        threading.Thread(
            target=lambda k=k: results.update({k: len(pool.find(["a@b.org " * k], 20)[0])})
        )
        for k in range(1, 13)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {k: k for k in range(1, 13)}
    assert len(children(pool)) <= search_process.PROCESSES


def test_search_that_is_late_is_ended_and_the_next_one_has_a_new_process(pool: _Pool) -> None:
    pool.find([MAIL], 20)
    (stopped,) = children(pool)
    os.kill(stopped, signal.SIGSTOP)  # as one that never ends
    begun = time.monotonic()
    with pytest.raises(SearchError, match=r"took longer than 0\.\d+ s"):
        pool.find([MAIL], 0.2)
    assert time.monotonic() - begun < 10
    assert not Path(f"/proc/{stopped}").exists()
    assert len(pool.find([MAIL], 20)[0]) == 1
    assert stopped not in children(pool)


def test_request_larger_than_a_pipe_does_not_wait_for_a_process_that_reads_nothing(
    pool: _Pool,
) -> None:
    pool.find([MAIL], 20)
    os.kill(children(pool)[0], signal.SIGSTOP)
    with pytest.raises(SearchError, match="took longer"):
        pool.find(["x" * 3_000_000], 0.2)


def test_process_that_dies_costs_one_search(pool: _Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.find([MAIL], 20)
    answers = LineChild.answers

    def killed(self: LineChild, *args: Any) -> Any:
        os.kill(self.pid, signal.SIGKILL)
        return answers(self, *args)

    monkeypatch.setattr(LineChild, "answers", killed)
    with pytest.raises(SearchError, match="died"):
        pool.find([MAIL], 20)
    monkeypatch.undo()
    assert len(pool.find([MAIL], 20)[0]) == 1


def test_process_that_died_between_searches_costs_none(pool: _Pool) -> None:
    pool.find([MAIL], 20)
    (pid,) = children(pool)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert len(pool.find([MAIL], 20)[0]) == 1


def test_search_that_waits_for_a_process_is_late_too(pool: _Pool) -> None:
    taken = [pool.free.pop() for _ in range(search_process.PROCESSES)]
    with pytest.raises(SearchError, match="no process was free"):
        pool.find([MAIL], 0.05)
    pool.free += taken


def test_one_client_leaves_a_process_to_the_others(pool: _Pool) -> None:
    """Long texts of one key made half of another one's questions a doubt."""
    with pool._process("crm", 20):
        with pytest.raises(SearchError, match="no process was free"):
            pool.find([MAIL], 0.05, "crm")
        assert len(pool.find([MAIL], 20, "erp")[0]) == 1
    assert len(pool.find([MAIL], 20, "crm")[0]) == 1


def test_client_that_was_served_longest_ago_comes_first(pool: _Pool) -> None:
    with ThreadPoolExecutor() as threads, pool._process("crm", 60), pool._process("erp", 60):
        for client in ("crm", "crm", "mail"):
            threads.submit(pool.find, [MAIL], 60, client)
        while len(pool._waiting) < 3:
            threading.Event().wait(0.001)
    assert pool._served == {"erp": 2, "mail": 3, "crm": 5}


def test_child_gets_no_secret(pool: _Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-value")
    pool.find([MAIL], 20)
    assert b"planted-value" not in Path(f"/proc/{children(pool)[0]}/environ").read_bytes()
