"""The child of `load_check`, forked from a process that has imported transformers: the same check within the same
limits, without the seconds that imports take. Tests of the command line start the real one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from slmctl import child_environment
from slmctl.network import guard
from slmctl.stages.pull import load_check


class LoadChecks:
    """A process that forks a child for each check; `ended` stands in for the function of that name."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=child_environment.bare(**guard.SWITCHES),
        )  # fmt: skip

    def ended(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(arguments) + "\n")
        self._server.stdin.flush()
        code, out, err = json.loads(self._server.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, out, err)

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()


def main() -> None:
    """Check what each line names, one after the other."""
    from slmctl.model_files import hf_folder  # noqa: F401  what each child has imported already

    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as place:
            streams = [Path(place) / name for name in ("out", "err")]
            pid = os.fork()
            if pid == 0:
                be(json.loads(line), streams)
            _, status = os.waitpid(pid, 0)
            texts = [path.read_text(encoding="utf-8", errors="replace") for path in streams]
        sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), *texts]) + "\n")
        sys.stdout.flush()


def be(arguments: list[str], streams: list[Path]) -> None:
    """Be the child."""
    code = 1
    try:
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = [load_check.__name__, *arguments]
        load_check.main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
