"""The program in processes that are forked from one which has imported everything, held, traced and broken at will.

Starting a stage costs seconds of imports; a fork costs none, so hundreds of instants can be tried. A child may be
held until strace is attached, which then ends it, or fails its calls, at the k-th system call that writes.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support import TESTS, tiny

WRITES = "write,pwrite64,writev,sendfile,copy_file_range,fsync,fdatasync,rename,renameat,renameat2"
LONG_S = 300  # what no child takes, on a machine that is busy


@dataclass
class Done:
    """How a child ended; a signal is a negative code."""

    code: int
    stdout: str
    stderr: str
    calls: list[Call] = field(default_factory=list)  # where it was traced

    @property
    def returncode(self) -> int:
        """The code under the name that `subprocess` gives it, for `tiny.ok`."""
        return self.code


@dataclass(frozen=True)
class Call:
    """A system call that strace saw: its process, its name, its arguments as text, and whether it was tampered with."""

    process: int
    name: str
    text: str
    injected: bool = False

    @property
    def paths(self) -> list[str]:
        """Files that it names, by descriptor or by path."""
        return re.findall(r"<(/[^>]*)>", self.text) + re.findall(r'"(/[^"]*)"', self.text)

    def touches(self, folder: Path) -> bool:
        return any(Path(path).is_relative_to(folder) for path in self.paths)


class Forks:
    """A server that has imported modules, and forks a child for each command."""

    def __init__(
        self, *modules: str, env: dict[str, str] | None = None, prefix: Sequence[str] = (), heavy_children: str = ""
    ) -> None:
        self._heavy_children = heavy_children
        self.place = Path(tempfile.mkdtemp(prefix="slmctl-forks-"))
        self._numbers = itertools.count()
        path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.server = subprocess.Popen(
            [*prefix, sys.executable, __file__, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=(env or tiny.environment()) | {"PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        assert self._read() == {"ready": True}

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def start(
        self,
        folder: Path | None,
        *args: str,
        held: bool = False,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        input: str = "",
        heavy_children: str = "",
    ) -> Child:
        """Start `slmctl -C folder args…`, or `slmctl args…`; a child that is held waits for `Child.go`.

        `input` is its standard input, `heavy_children` the address of what forks its heavy children for it.
        """
        place = self.place / str(next(self._numbers))
        place.mkdir()
        if input:
            (place / "stdin").write_text(input, encoding="utf-8")
        if held:
            os.mkfifo(place / "go")
        told = self._ask(
            do="start",
            folder=str(folder or ""),
            args=args,
            place=str(place),
            held=held,
            env=env or {},
            cwd=str(cwd or ""),
            heavy_children=heavy_children,
        )
        return Child(self, told["pid"], place)

    def run(
        self,
        folder: Path | None,
        *args: str,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        input: str = "",
    ) -> Done:
        """Run a command to its end; its heavy children are forked too, where this was made with their address."""
        heavy = self._heavy_children
        return self.start(folder, *args, env=env, cwd=cwd, input=input, heavy_children=heavy).wait()

    def traced(self, folder: Path, *args: str, follow: bool = False, options: Sequence[str] = ()) -> Done:
        """Run a command under strace, with the calls that write, and what else `options` ask of strace."""
        child = self.start(folder, *args, held=True)
        log = child.place / "trace"
        command = ["strace", *(["-f"] if follow else []), "-y", "-s", "0", "-e", f"trace={WRITES}", *options,
                   "-o", str(log), "-p", str(child.pid)]  # fmt: skip
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if "attached" not in said:
            child.go()
            child.kill()
            child.wait()
            strace.communicate()
            (pytest.fail if tiny.REQUIRED else pytest.skip)(f"strace cannot be used here: {said}")
        child.go()
        done = child.wait()
        child.kill()  # whatever it had started goes with it
        strace.communicate(timeout=LONG_S)
        done.calls = read_trace(log, child.pid)
        return done

    def _ask(self, **what: Any) -> dict[str, Any]:
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(what) + "\n")
        self.server.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        assert line, "the server of forks has died"
        found = json.loads(line)
        assert isinstance(found, dict)
        return found


@dataclass
class Child:
    """A forked command, which leads a process group of its own."""

    forks: Forks
    pid: int
    place: Path

    def go(self) -> None:
        (self.place / "go").write_text("")

    @property
    def has_ended(self) -> bool:
        """True once it has ended; `wait` is still to be called then."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self) -> Done:
        code = self.forks._ask(do="wait", pid=self.pid)["code"]
        said = ((self.place / name).read_text(errors="surrogateescape") for name in ("stdout", "stderr"))
        return Done(code, *said)


def read_trace(log: Path, process: int) -> list[Call]:
    """The calls in strace's file, in the order in which they ended; one that never did comes last."""
    begun: dict[int, Call] = {}
    calls = []
    for line in log.read_text(errors="replace").splitlines():
        number, _, rest = line.partition(" ") if line[:1].isdigit() else ("", "", line)
        of, rest = int(number or process), rest.strip()
        if resumed := re.match(r"<\.\.\. (\w+) resumed>(.*)", rest):
            first = begun.pop(of, None)
            calls.append(Call(of, resumed[1], (first.text if first else "") + resumed[2], "INJECTED" in rest))
        elif found := re.match(r"(\w+)\((.*)", rest):
            call = Call(of, found[1], found[2], "INJECTED" in rest)
            if "<unfinished" in rest:
                begun[of] = call
            else:
                calls.append(call)
    return [*calls, *begun.values()]


# The server


def main(modules: Sequence[str]) -> None:
    """Import, then fork what is asked for; one request a line."""
    from slmctl.network import guard

    guard.seal()  # as the program does, before any library is there
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in modules:
        importlib.import_module(name)
    answer(ready=True)
    for line in sys.stdin:
        told = json.loads(line)
        if told["do"] == "start":
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                be(told)
            answer(pid=pid)
        else:
            _, status = os.waitpid(told["pid"], 0)
            answer(code=os.waitstatus_to_exitcode(status))


def answer(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def be(told: dict[str, Any]) -> None:
    """Be the program."""
    os.setsid()
    place = Path(told["place"])
    read = place / "stdin" if (place / "stdin").exists() else Path("/dev/null")
    for number, path in ((0, read), (1, place / "stdout"), (2, place / "stderr")):
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)  # a fresh one, as a process starts with
    os.environ.update(told["env"])
    os.chdir(told["cwd"] or ".")
    tempfile._name_sequence = names()  # type: ignore[attr-defined]  # the same names in every run
    if told["heavy_children"]:
        from support import heavy_children

        heavy_children.use(told["heavy_children"])
    if told["held"]:
        (place / "go").read_text()
    code: Any = 0
    try:
        tiny.run_here(Path(told["folder"]) if told["folder"] else None, *told["args"])
    except SystemExit as end:
        code = end.code
    except BaseException:  # a bug, as the interpreter shows it
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the program lets go of a stdout that failed
            stream.flush()
    os._exit(code or 0)


def names() -> Iterator[str]:
    return (f"tmp{number}" for number in itertools.count())


if __name__ == "__main__":
    main(sys.argv[1:])
