"""Lines that production leaves: collected answers and decisions on
them, for tests of what reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slmctl.artifacts.json_lines import JsonLines
from slmctl.production.records import CollectedRow, Feedback, collected_files
from slmctl.sources.reviewed import Review

LABELS = ("account", "billing", "delivery")
TIME = "2026-11-25T09:30:00Z"


def collected(id: str, text: str = "", answer: str = "billing", **fields: Any) -> CollectedRow:
    """One collected answer; without more said, a confident one that was picked by nothing."""
    messages = [{"role": "user", "content": text or f"where is parcel {id}"}]
    return CollectedRow(
        **{"id": id, "time": TIME, "messages": messages, "answer": answer, **fields}
    )


def reviewed(id: str, after: str = "billing", reviewer: str = "ann", **fields: Any) -> Review:
    """One decision that corrects or accepts `billing`."""
    messages = fields.pop("messages", [{"role": "user", "content": f"where is parcel {id}"}])
    decision = "accepted" if after == "billing" else "corrected"
    own = {
        "id": id,
        "time": TIME,
        "reviewer": reviewer,
        "decision": decision,
        "messages": messages,
        "after": after,
    }
    return Review(**{**own, "before": "billing", "seen": TIME, **fields})


def rows(folder: Path) -> list[CollectedRow]:
    """What a folder of collected answers holds."""
    return [row for path in collected_files([folder]) for row in CollectedRow.read(path)]


def written(path: Path, lines: Iterable[CollectedRow | Feedback | Review]) -> Path:
    """A file of such lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with JsonLines(path, sync=False) as file:
        for line in lines:
            file.append(line.to_json())
    return path
