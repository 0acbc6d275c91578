"""Processes that are forked from one which has imported everything: the program, held, traced and
broken at will.

Starting a stage costs seconds of imports; a fork costs none, so hundreds of instants can be tried.
A child may be held until strace is attached, which then ends it, or fails its calls, at the k-th
system call that writes.

Children of the product that import torch or transformers, or that read sources, are forked too,
where a test asks for it: the same code within the same limits. Tests of these processes, of kills
and of traces start the real ones.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import re
import runpy
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from slmctl import child, child_environment
from slmctl.model_files import gguf_converter_child
from slmctl.network import guard
from slmctl.stages.pull import load_check
from support import TESTS, tiny

WRITES = "write,pwrite64,writev,sendfile,copy_file_range,fsync,fdatasync,rename,renameat,renameat2"
LONG_S = 300  # what no child takes, on a machine that is busy
PROGRAM = "slmctl"
MATMUL = "slmctl.stages.finetune.matmul_benchmark"  # which imports torch
# Children of the product that are forked
HEAVY = (load_check.__name__, MATMUL, Path(gguf_converter_child.__file__))
READERS = ("slmctl.sources.row_child", "slmctl.sources.documents.document_child")


@dataclass
class Done:
    """How a child ended; a signal is a negative code."""

    code: int
    stdout: str
    stderr: str
    pid: int
    calls: list[Call] = field(default_factory=list)  # where it was traced

    @property
    def returncode(self) -> int:
        """The code under the name that `subprocess` gives it, for `tiny.ok`."""
        return self.code


@dataclass(frozen=True)
class Call:
    """A system call that strace saw: its process, its name, its arguments as
    text, and whether it was tampered with.
    """

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


class Forked(subprocess.Popen[Any]):
    """A child of a server of forks, in place of one of this
    process; `request` says what it runs.
    """

    def __init__(self, address: str, request: dict[str, Any], **options: Any) -> None:
        self._address, self._request = address, request
        super().__init__([], **options)

    def _execute_child(self, *details: Any) -> None:
        env, streams = details[6], details[10:16]
        fds = [
            fd if fd != -1 else number
            for number, fd in enumerate((streams[0], streams[3], streams[5]))
        ]
        self.pid = ask(self._address, {"do": "start", "env": env, **self._request}, fds)
        self._child_created = True
        self._close_pipe_fds(*streams)  # type: ignore[attr-defined]

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if not flags:
            ended = os.pidfd_open(self.pid)
            select.select([ended], [], [])
            os.close(ended)
        pid, status = ask(self._address, {"do": "reap", "pid": self.pid})
        return pid, status

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None:
            try:
                pid, status = self._try_wait(os.WNOHANG)
            except OSError:  # the server has ended
                self.returncode = _deadstate
            else:
                if pid == self.pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
        return self.returncode


def ask(address: str, request: dict[str, Any], fds: Sequence[int] = ()) -> Any:
    """Send a request to a server of forks; its answer."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(address)
        raw = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(link, [raw], fds)
        if sent < len(raw):  # the server may have answered a whole request by now, and closed
            link.sendall(raw[sent:])
        with link.makefile(encoding="utf-8") as lines:
            return json.loads(lines.readline())


def fork_children(address: str, patch: Any = None, targets: Sequence[str | Path] = HEAVY) -> None:
    """Have this process take some of its children from a server of
    forks; a MonkeyPatch takes that back.
    """
    start = child.start

    def forking(
        target: str | Path, *arguments: str, env: Mapping[str, str] | None = None, **options: Any
    ) -> Any:
        if target not in targets:
            return start(target, *arguments, env=env, **options)
        env = child_environment.bare() if env is None else env
        request = {"target": str(target), "arguments": arguments, "cwd": str(Path.cwd())}
        return Forked(address, request, env=env, **options)

    (patch.setattr if patch is not None else setattr)(child, "start", forking)


def convert(heavy: Forks, model: Path, target: Path, dtype: str) -> Path:
    """Write a model as GGUF by a fork, which need not import what the converter needs."""
    from slmctl.model_files import gguf_converter

    with pytest.MonkeyPatch.context() as patch:
        fork_children(heavy.address, patch)
        gguf_converter.convert(model, target, dtype=dtype, metadata={})
    return target


class Forks:
    """A server that has imported modules, and forks a child for each command."""

    def __init__(
        self, *modules: str, env: dict[str, str] | None = None, heavy: Forks | None = None
    ) -> None:
        self.heavy = heavy
        self.place = Path(tempfile.mkdtemp(prefix="slmctl-forks-"))
        self.address = str(self.place / "socket")
        self._numbers = itertools.count()
        path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env = (env or tiny.environment()) | {
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONHASHSEED": "0",
        }
        self.env |= guard.SWITCHES | {"TQDM_DISABLE": "1"}
        self.server = subprocess.Popen(
            [sys.executable, __file__, self.address, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.env,
        )
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == b"ready\n"

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.server.communicate()  # it ends with its stdin
        shutil.rmtree(self.place, ignore_errors=True)

    def popen(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        held: Path | None = None,
        heavy: Forks | None = None,
        **options: Any,
    ) -> Forked:
        """Start `slmctl arguments…` with options of Popen.

        Args:
            held: A fifo; the child waits until something is written to it.
            heavy: Forks its heavy children.
        """
        request = {
            "target": PROGRAM,
            "arguments": arguments,
            "cwd": str(cwd or "."),
            "held": str(held or ""),
            "heavy": heavy.address if heavy else "",
        }
        return Forked(self.address, request, env=self.env | {**(env or {})}, **options)

    def start(
        self, folder: Path | None, *args: str, held: bool = False, input: str = "", **options: Any
    ) -> Child:
        """Start `slmctl -C folder args…`, or `slmctl args…`; a child that is held waits for
        `Child.go`.

        `input` is its standard input; `options` are those of `popen`.
        """
        place = self.place / str(next(self._numbers))
        place.mkdir()
        (place / "stdin").write_text(input, encoding="utf-8")
        if held:
            os.mkfifo(place / "go")
            options["held"] = place / "go"
        arguments = [*(["-C", str(folder)] if folder else []), *args]
        with contextlib.ExitStack() as stack:
            for name in ("stdin", "stdout", "stderr"):
                options[name] = stack.enter_context(
                    (place / name).open("r" if name == "stdin" else "x")
                )
            child = Child(self.popen(arguments, **options), place)
        tiny.STARTED.append(child.process)
        return child

    def run(self, folder: Path | None, *args: str, **options: Any) -> Done:
        """Run a command to its end, with the options of `start`;
        its heavy children are forked too.
        """
        return self.start(folder, *args, heavy=self.heavy, **options).wait()

    def traced(
        self,
        folder: Path,
        *args: str,
        follow: bool = False,
        options: Sequence[str] = (),
        heavy: Forks | None = None,
    ) -> Done:
        """Run a command under strace, with the calls that write, and
        what else `options` ask of strace.
        """
        child = self.start(folder, *args, held=True, heavy=heavy)
        log = child.place / "trace"
        command = [
            "strace",
            *(["-f"] if follow else []),
            "-y",
            "-s",
            "0",
            "-e",
            f"trace={WRITES}",
            *options,
            "-o",
            str(log),
            "-p",
            str(child.pid),
        ]
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert strace.stderr is not None
        said = strace.stderr.readline()
        child.go()
        if "attached" not in said:
            child.kill()
            child.wait()
            strace.communicate()
            (pytest.fail if tiny.REQUIRED else pytest.skip)(f"strace cannot be used here: {said}")
        done = child.wait()
        child.kill()  # whatever it had started goes with it
        strace.communicate(timeout=LONG_S)
        done.calls = read_trace(log, child.pid)
        return done


@dataclass
class Child:
    """A forked command, which leads a process group of its own."""

    process: Forked
    place: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        """True once it has ended; `wait` is still to be called
        then. Cheaper than to ask the server.
        """
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def go(self) -> None:
        (self.place / "go").write_text("")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self) -> Done:
        code = self.process.wait()
        said = (
            (self.place / name).read_text(errors="surrogateescape") for name in ("stdout", "stderr")
        )
        return Done(code, *said, self.pid)


def read_trace(log: Path, process: int) -> list[Call]:
    """The calls in strace's file, in the order in which they
    ended; one that never did comes last.
    """
    begun: dict[int, Call] = {}
    calls = []
    for line in log.read_text(errors="replace").splitlines():
        number, _, rest = line.partition(" ") if line[:1].isdigit() else ("", "", line)
        of, rest = int(number or process), rest.strip()
        if resumed := re.match(r"<\.\.\. (\w+) resumed>(.*)", rest):
            first = begun.pop(of, None)
            calls.append(
                Call(of, resumed[1], (first.text if first else "") + resumed[2], "INJECTED" in rest)
            )
        elif found := re.match(r"(\w+)\((.*)", rest):
            call = Call(of, found[1], found[2], "INJECTED" in rest)
            if "<unfinished" in rest:
                begun[of] = call
            else:
                calls.append(call)
    return [*calls, *begun.values()]


# The server


def main(address: str, modules: Sequence[str]) -> None:
    """Fork what is asked for, until stdin ends; one request a connection.
    The first one has all modules imported.
    """
    guard.seal()  # as the program does, before any library is there
    with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as ready:
        server.bind(address)
        server.listen()
        for source in (server, sys.stdin):
            ready.register(source, selectors.EVENT_READ)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while not any(key.fileobj is sys.stdin for key, _ in ready.select()):
            link, _ = server.accept()
            with link:
                link.sendall(json.dumps(answer(link, server, modules)).encode() + b"\n")


def answer(link: socket.socket, server: socket.socket, modules: Sequence[str]) -> Any:
    """The id of a child that is forked, or the id and status of one that has ended."""
    raw, fds, _, _ = socket.recv_fds(link, 1 << 20, 3)
    while not raw.endswith(b"\n"):
        raw += link.recv(1 << 20)
    request = json.loads(raw)
    if request["do"] == "reap":
        return os.waitpid(request["pid"], os.WNOHANG)
    for name in modules:
        importlib.import_module(name)
    pid = os.fork()
    if pid == 0:
        link.close()
        server.close()
        be(request, fds)
    for fd in fds:
        os.close(fd)
    return pid


def be(request: dict[str, Any], fds: Sequence[int]) -> None:
    """Be the child, to its end."""
    code: Any = 0
    sys.dont_write_bytecode = True  # in a trace stands what the program itself writes
    os.setsid()
    try:
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        # a fresh one, as a process starts with
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = [request["target"], *request["arguments"]]
        if request["target"] == PROGRAM:
            be_the_program(request)
        else:
            be_a_child(request["target"])
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):  # which the interpreter writes there
            sys.stderr.write(f"{code}\n")
    except BaseException:  # a bug, as the interpreter shows it
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the program lets go of a stdout that failed
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def be_the_program(request: dict[str, Any]) -> None:
    from slmctl.cli.main import main

    tempfile._name_sequence = (f"tmp{number}" for number in itertools.count())  # type: ignore[attr-defined]
    if request["heavy"]:
        fork_children(request["heavy"])
    if request["held"]:
        Path(request["held"]).read_text()
    main()


def be_a_child(target: str) -> None:
    """Run a module, or a file, as the main program."""
    if target.endswith(".py"):
        for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
            del sys.modules[name]  # the converter takes the package beside its script
        sys.path.insert(0, str(Path(target).parent))
        runpy.run_path(target, run_name="__main__")
    else:
        sys.modules.pop(target, None)
        runpy.run_module(target, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
    os._exit(0)  # torch would take seconds to be torn down
