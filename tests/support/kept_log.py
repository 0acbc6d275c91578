"""A server's log that keeps what it is told."""

from __future__ import annotations

import io
from typing import Any

from slmctl.server.log import Log


class KeptLog(Log):
    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.lines: list[dict[str, Any]] = []

    def line(self, fields: dict[str, Any]) -> None:
        self.lines.append(fields)

    def of(self, event: str) -> list[dict[str, Any]]:
        """The lines of one kind."""
        return [line for line in self.lines if line["event"] == event]
