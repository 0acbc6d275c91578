"""The program in this process: its exit code and what it writes, without
the second that a process takes to start.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from slmctl import console
from slmctl.cli import main


def printed(code: str, **env: str) -> str:
    """What an example prints, with more in the environment, in this
    process, which has imported what it needs.
    """
    out = io.StringIO()
    with mock.patch.dict(os.environ, env), contextlib.redirect_stdout(out):
        exec(compile(code, "example.py", "exec", dont_inherit=True), {"__name__": "__main__"})
    return out.getvalue()


def slmctl(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, on a page of 200 columns without colours."""
    words, out, err = [*map(str, arguments)], io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.object(sys, "argv", ["slmctl", *words]),
        mock.patch.dict(os.environ, {"NO_COLOR": "1", "COLUMNS": "200"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        console.set_level(0)
        try:
            code = main._run_command()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
