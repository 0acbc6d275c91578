"""A server under test, as its user starts it: a process of its
own on a free port of the loopback.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from slmctl.task.contract import Task
from support import endpoint, tiny
from support.endpoint import streams

# of a model that was never taught to stop
ENDLESS = {"max_tokens": 3500, "temperature": 1.8, "seed": 3}
# of httpx: certificates take longer to load than most answers to come
LOCAL: Any = {"timeout": 60, "verify": False}
ROOM = ("--set=serve.context_length=4096", "--set=serve.max_tokens=4000")  # for such an answer


def begin(
    folder: Path, *args: str, log: IO[str] | None = None
) -> tuple[subprocess.Popen[str], str]:
    """The process and its address, when it is ready; its log goes to a file, or else to a pipe."""
    child = tiny.start(folder, "serve", "--port", "0", *args, **({"stderr": log} if log else {}))
    assert child.stdout is not None
    url = child.stdout.readline().strip()
    assert url.startswith("http://"), child.communicate()
    return child, url


GENERATE = Task(
    "generate", tiny.TEMPLATE, "<|im_end|>", special_tokens=("<|im_start|>", "<|im_end|>")
)


@dataclass(frozen=True)
class Gateway:
    """A server whose engine is another one, so that it starts in seconds and needs no model."""

    child: subprocess.Popen[str]
    url: str
    fake: endpoint.Fake

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def healthy_s(self) -> float:
        """Seconds that /healthz takes."""
        begun = time.monotonic()
        assert httpx.get(f"{self.url}/healthz", **LOCAL).status_code == 200
        return time.monotonic() - begun


@contextmanager
def gateway(
    folder: Path,
    *args: str,
    task: Task = GENERATE,
    manners: endpoint.Manners = lambda body, before: streams("hello"),
) -> Iterator[Gateway]:
    """A gateway in front of an endpoint; at the end its log must hold no traceback."""
    task.write(folder)
    with endpoint.serving(manners) as fake:
        child, url = begin(
            folder, str(folder), "--engine-url", fake.url, "--engine-model", "large", *args
        )
        try:
            yield Gateway(child, url, fake)
        except BaseException:
            child.kill()
            child.communicate()
            raise
        # a test may have ended it, and read its log
        if child.stderr is not None and not child.stderr.closed:
            end(child)


def end(child: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Stop a server; the lines of its log."""
    child.send_signal(signal.SIGTERM)
    return ended(child)


def ended(child: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The log of a server that has been told to stop."""
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 0, stderr
    assert "Traceback" not in stderr
    return [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]


def chat(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def post(url: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, **LOCAL)


def ask(url: str, text: str, **more: Any) -> httpx.Response:
    return post(url, {"messages": chat(text), **more})


def lines_of(response: httpx.Response) -> list[str]:
    """The data of a stream's events."""
    return [line.removeprefix("data: ") for line in response.text.splitlines() if line]


def engine_of(
    server: subprocess.Popen[str], module: bytes = b"slmctl.inference.llama_child"
) -> int:
    """The process id of a server's engine, or of its child of another module."""
    (found,) = [int(pid) for pid in _children(server.pid) if module in _command(pid)]
    return found


def _children(pid: int) -> list[str]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += (task / "children").read_text().split()
    return found


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def memory(pid: int) -> int:
    """Bytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def figure(url: str, name: str) -> float:
    """One figure of /metrics."""
    lines = httpx.get(f"{url}/metrics", **LOCAL).text.splitlines()
    return float(next(line for line in lines if line.startswith(name + " ")).rpartition(" ")[2])
