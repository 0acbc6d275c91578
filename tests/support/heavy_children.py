"""Children of the product that import torch or transformers, forked from a process that has imported both.

`pull` checks a base in one, and llama.cpp's converter is one: the same code within the same limits, without the seconds
that imports take. The server imports when it is first asked. Tests of these processes, of kills and of traces start the
real ones.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from slmctl import child, child_environment
from slmctl.model_files import gguf_converter_child
from slmctl.network import guard
from slmctl.stages.pull import load_check

CONVERTER_VARIABLES = {"PYTHONDONTWRITEBYTECODE": "1", "TQDM_DISABLE": "1"}


class HeavyChildren:
    """A process that forks a child for each request, until it is closed; `use` sends the product's requests there."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="slmctl-heavy-"))
        self.address = str(self._folder / "socket")
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__, self.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=child_environment.bare(**guard.SWITCHES, **CONVERTER_VARIABLES),
        )  # fmt: skip
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)


CONVERTER = Path(gguf_converter_child.__file__)


def use(address: str, patch: Any = None) -> None:
    """Have this process ask the server at an address; a MonkeyPatch takes it back."""
    put = patch.setattr if patch is not None else setattr
    run = child.run

    def asking(target: str | Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        if target not in (load_check.__name__, CONVERTER):
            return run(target, *arguments, **options)
        return asked(address, "convert" if target == CONVERTER else "check", list(arguments))

    put(child, "run", asking)


def asked(address: str, task: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A child at its end, as `child.run` gives it."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(address)
        with link.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps([task, str(Path.cwd()), arguments]) + "\n")
            stream.flush()
            code, out, err = json.loads(stream.readline())
    if code != 0:
        raise child.DiedError(code, err)
    return subprocess.CompletedProcess(arguments, code, out, err)


# The server


def main() -> None:
    """Answer requests one after the other, until stdin ends."""
    with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as ready:
        server.bind(sys.argv[1])
        server.listen()
        for source in (server, sys.stdin):
            ready.register(source, selectors.EVENT_READ)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while not any(key.fileobj is sys.stdin for key, _ in ready.select()):
            link, _ = server.accept()
            with link, link.makefile("rw", encoding="utf-8") as stream:
                stream.write(json.dumps(forked(*json.loads(stream.readline()))) + "\n")


def forked(task: str, folder: str, arguments: list[str]) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a child."""
    import sentencepiece  # noqa: F401  what each child has imported already
    import torch  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401

    from slmctl.model_files import hf_folder  # noqa: F401

    with tempfile.TemporaryDirectory() as place:
        streams = [Path(place) / name for name in ("out", "err")]
        pid = os.fork()
        if pid == 0:
            be(task, folder, arguments, streams)
        _, status = os.waitpid(pid, 0)
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in streams)
    return os.waitstatus_to_exitcode(status), out, err


def be(task: str, folder: str, arguments: list[str], streams: list[Path]) -> None:
    """Be the child."""
    code = 1
    try:
        os.chdir(folder)
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = [task, *arguments]
        if task == "check":
            load_check.main()
        else:
            os.environ.pop("PYTHONPATH", None)
            for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
                del sys.modules[name]  # it takes the package beside the script
            sys.path.insert(0, "")
            gguf_converter_child.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as the interpreter shows it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
