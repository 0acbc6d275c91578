"""The command line: parse, call, print.

The only importer of click. Everything else is imported inside the callbacks, since `slmctl --help`
must come at once: pydantic alone costs as much as click.
"""

from __future__ import annotations

import os
import signal
import sys

import click

from slmctl.cli import inspect_commands, serve_commands, stage_commands
from slmctl.cli.group import cli, terminal
from slmctl.errors import SlmctlError, StageError
from slmctl.network import guard

for commands in (stage_commands.COMMANDS, serve_commands.COMMANDS, inspect_commands.COMMANDS):
    for command in commands:
        cli.add_command(command)


def _say_what_left() -> None:
    """The receipt of a command that has used the network."""
    hosts, count = guard.summary()
    if hosts:
        terminal().say(f"  contacted {', '.join(hosts)}: {terminal().size(count)} sent")


def _fill_closed_streams() -> None:
    """Put /dev/null in place of closed descriptors 0 to 2, else the next file opened would become stdout."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number


def main() -> None:
    """The program: run a command, and turn what it raises into a sentence and an exit code."""
    _fill_closed_streams()
    guard.seal()
    # Threads that wait by spinning steal the cores of whoever else is there, and threads that sleep
    # wake up slowly between thousands of small operations. This is a short spin: on 2 idle cores
    # SmolLM2 trained at 850 tokens/s, as with an endless one, against 520 with a tenth of it; beside
    # two busy processes it was 250 against 340. libgomp reads this when it is loaded; whoever has set
    # a policy of their own keeps it.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; read when tqdm is imported
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if os.environ.get("SLMCTL_OFFLINE", "") not in ("", "0"):
        guard.forbid()
    try:
        try:
            cli.main(standalone_mode=False)
        finally:
            _say_what_left()
    except SlmctlError as error:
        terminal().complain(error.message, error.hint)
        sys.exit(error.code)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except terminal().OutputError as error:
        terminal().complain(f"the result cannot be written to stdout: {error}", "stdout is closed or full")
        sys.stdout = None  # else it is flushed once more at the end, and fails once more
        sys.exit(StageError.code)
    except BrokenPipeError:  # `slmctl show | head`: the reader has enough
        sys.stdout = None
        sys.exit(0)
