"""The command line: parse, call, print.

The only importer of click. Everything else is imported inside the callbacks, since `slmctl --help`
must come at once: pydantic alone costs as much as click.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys

import click

from slmctl.cli import (
    inspect_commands,
    predict_command,
    review_command,
    serve_commands,
    stage_commands,
    watch_command,
)
from slmctl.cli.group import cli, terminal
from slmctl.errors import GateError, PausedError, Reason, SlmctlError, StageError
from slmctl.network import guard

for commands in (
    stage_commands.COMMANDS,
    predict_command.COMMANDS,
    serve_commands.COMMANDS,
    review_command.COMMANDS,
    watch_command.COMMANDS,
    inspect_commands.COMMANDS,
):
    for command in commands:
        cli.add_command(command)


def _say_what_left() -> None:
    """The receipt of a command that has used the network."""
    hosts, count = guard.summary()
    if hosts:
        terminal().say(f"  contacted {', '.join(hosts)}: {terminal().size(count)} sent")


# An OSError of these kinds is about a name that the user gave; of any other kind the system cannot
# do the work.
_OF_NAMES = (
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENOENT,
    errno.EINVAL,
)


def prepare_streams() -> None:
    """Point closed standard streams at /dev/null, write UTF-8 and file names that are none, and
    read any bytes.

    Without it the next file that is opened takes the number of the closed stream, and output of
    this process or of a child lands in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(number, True)
    if sys.stdin is None:
        # nothing to read; a result has no stdout, which is 6
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def main() -> None:
    """Run a command; turn what it raises into a sentence and an exit code."""
    prepare_streams()
    guard.seal()
    # OpenMP threads that wait by spinning take the cores from other processes, and threads that
    # sleep wake up slowly between thousands of small operations. This spins shortly: on 2 idle
    # cores SmolLM2 trained at 850 tokens/s, as with endless spinning, against 520 with a tenth of
    # it; with two busy processes it was 250 against 340. libgomp reads the variable when it is
    # loaded; a value that the user has set stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; read when tqdm is imported
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if os.environ.get("SLMCTL_OFFLINE", "") not in ("", "0"):
        guard.forbid()
    try:
        code = _run_command()
    finally:  # what runs at the exit would only be interrupted by an exception
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # a shell may have it ignored
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def _run_command() -> int:
    """Run the command of `sys.argv`; returns its exit code."""
    try:
        try:
            return cli.main(standalone_mode=False) or 0
        finally:
            _say_what_left()
    except (
        SystemExit
    ):  # of shell completion, which is to come at once: the last clause below imports the console
        raise
    except PausedError as pause:
        terminal().say(pause.message)
        terminal().say(f"  {pause.hint}")
        return 0
    except SlmctlError as error:
        try:
            reason = error.reason if isinstance(error, GateError) else None
            return _failed(error.message, error.hint, error.code, reason=reason)
        except (MemoryError, ImportError):  # of the console, which is imported for it
            return _no_memory()
    except click.ClickException as error:
        return _failed(error.format_message(), _plan_hint(error), error.exit_code, error)
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # of a library, which click takes for Ctrl-D
            raise error.__cause__ from None
        words = ["interrupted", *(error.__cause__ or error).args]
        click.echo(f"  {' '.join(map(str, words))}", err=True)
        return 130
    except MemoryError:
        return _no_memory()
    except OSError as error:
        # click writes help itself; the rest in the buffer would fail again at exit
        sys.stdout = None
        if error.errno is None or error.strerror is None:
            raise  # raised by a library without a number: a bug
        return _system_error(error)
    except terminal().OutputError as error:
        sys.stdout = None  # else it is flushed once more at the exit, and fails once more
        return _failed(
            f"the result cannot be written to stdout: {error}",
            "stdout is closed or full",
            StageError.code,
        )


def _plan_hint(error: click.ClickException) -> str:
    """The command that does what `--dry-run` does elsewhere."""
    if not isinstance(error, click.NoSuchOption) or error.option_name != "--dry-run":
        return ""
    has_plan = error.ctx is not None and any(
        "--plan" in parameter.opts for parameter in error.ctx.command.params
    )
    return f"slmctl {cli.called if has_plan else 'run'} --plan"


def _failed(
    message: str,
    hint: str,
    code: int,
    usage: click.ClickException | None = None,
    reason: Reason | None = None,
) -> int:
    """Say why the command ends, in words or as a line of JSON; returns the exit code."""
    # an option that may not be read yet
    if os.environ.get("SLMCTL_ERRORS") == "json" or "--json" in sys.argv:
        import json

        fields = {
            "error": message,
            "hint": hint,
            "exit_code": code,
            "reason": reason,
            "command": cli.called,
        }
        with contextlib.suppress(OSError):  # stderr is closed or full
            click.echo(json.dumps(fields), err=True)
    elif usage is not None:
        usage.show()
        if hint:
            terminal().say(f" hint: {hint}")
    else:
        terminal().complain(message, hint)
    return code


def _no_memory() -> int:
    """Say without an import that memory ran out; returns 6."""
    os.write(2, b"error: slmctl ran out of memory\n hint: a higher limit: ulimit -v\n")
    return StageError.code


def _system_error(error: OSError) -> int:
    """Print an OSError in one sentence; returns the exit code: 2 for a
    bad file name from the user, else 6.
    """
    import traceback

    subject = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    terminal().detail("".join(traceback.format_exception(error)))
    code = 2 if error.errno in _OF_NAMES else StageError.code
    return _failed(
        f"{_short(subject)}{error.strerror}", "slmctl -v COMMAND shows where it happened", code
    )


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:270]} … {text[-27:]}"
