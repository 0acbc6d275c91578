"""Planted faults: every one must be caught by a test. `python
tests/support/mutations/run.py` plants and runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

FAULTS = Path(__file__).with_name("faults.yaml")


@dataclass(frozen=True)
class Fault:
    """A change of a file that breaks a promise, a bound, a statistic, a parity or a message.

    Attributes:
        find: Text that stands once in the file.
        replace: The wrong text in its place.
        tests: Files of tests, one of which fails then.
    """

    name: str
    kind: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    def plant(self, root: Path) -> None:
        path = root / self.file
        path.write_text(
            path.read_text(encoding="utf-8").replace(self.find, self.replace), encoding="utf-8"
        )


def read() -> list[Fault]:
    entries = yaml.safe_load(FAULTS.read_text(encoding="utf-8"))
    return [Fault(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]
