"""The expected failures, and the exit code of each.

SlmctlError
├── UsageError         2   a flag, a name or the config is wrong
├── DataError          3   the input data cannot be used
├── MissingError       4   a package or tool is not installed
├── GateError          5   a gate or another check that the user set failed
├── StageError         6   a stage failed, such as a training that diverged
│   └── FullError          the memory or the disk of this machine is full
├── IntegrityError     7   an artifact is missing, unfinished or changed
├── LockedError        8   another process holds the lock
├── NetworkError       9   the network was refused or failed
└── DifferentError   104   an artifact was rebuilt, and is not the same

Each carries one sentence (subject, expected, found) and a hint (the command to type next); a
GateError has a Reason too, which docs/commands.md explains. Any other exception is a bug: it keeps
its traceback and exits with 1.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

OfGates: TypeAlias = Literal[
    "gate_failed", "gate_out_of_reach", "gates_unknown", "none_chosen", "not_measured"
]
OfRows: TypeAlias = Literal["max_error", "min_rows", "out_of_scope", "overlap"]
OfLeaving: TypeAlias = Literal["leak", "license", "memorised", "teacher_terms", "visibility"]
Reason: TypeAlias = Literal[OfGates, OfRows, OfLeaving, "beaten", "declined", "nothing_to_win"]


class SlmctlError(Exception):
    """An expected failure.

    Args:
        message: One sentence with the subject, the expected and the actual state.
        hint: The next command or change for the user; empty if there is none.

    Attributes:
        evidence: Names of files in the stage's draft that show the reason and are kept; the first
            is for people.
    """

    code: ClassVar[int] = 1
    evidence: tuple[str, ...] = ()

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class UsageError(SlmctlError):
    """A flag, a name or the config is wrong."""

    code = 2


class DataError(SlmctlError):
    """The input data cannot be used."""

    code = 3


class MissingError(SlmctlError):
    """A package or a tool is missing; the hint is the one command that installs it."""

    code = 4


class GateError(SlmctlError):
    """A gate or another check that the user set failed."""

    code = 5

    def __init__(self, message: str, *, reason: Reason = "gate_failed", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class StageError(SlmctlError):
    """A stage failed while it ran."""

    code = 6


class FullError(StageError):
    """The memory or the disk of this machine is full, or too small for the work."""


class IntegrityError(SlmctlError):
    """An artifact is missing, unfinished or changed."""

    code = 7


class LockedError(SlmctlError):
    """Another process holds the lock."""

    code = 8


class NetworkError(SlmctlError):
    """The network was refused or failed."""

    code = 9


class DifferentError(SlmctlError):
    """A rebuilt artifact differs from the recorded one."""

    code = 104


class PausedError(Exception):
    """A stage stopped at a limit that the user set: not a failure (exit code 0), but later stages
    do not run.

    Args:
        message: One sentence about the remaining work.
        hint: The command or change to continue.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint
