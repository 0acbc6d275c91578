"""Decisions of people, and their file as two sources: uniform rows, split as always, and targeted ones, for training.

Rows that were picked since they looked difficult say nothing about all traffic, so no model may be measured on them.
The two parts are copies below `runs/.sources/`, a row a decision, in a folder named by the content of the file.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from slmctl.artifacts import atomic
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.artifacts.json_lines import Line
from slmctl.config import Source
from slmctl.errors import SlmctlError, UsageError
from slmctl.sources.rows import format_of

PREFIX = "reviewed-"  # of the folders of the parts
DECISIONS = ("accepted", "corrected", "skipped", "undone")
_HEAD = 1 << 20  # bytes at the start of a file among which its first whole line is looked for
# The reasons for which a row was looked at. A uniform one was drawn by chance from all traffic, with a probability
# that is known, and nothing else; any other one was picked since it looked difficult.
UNIFORM = "uniform"
Choice = Literal["uniform", "escalated", "unsure", "disagreement", "suspect", "novel", "duplicates", "feedback"]


@dataclass(frozen=True)
class Review(Line):
    """A decision of a person on one row.

    Attributes:
        id: Of the row: the request's, or the record's.
        time: Of the decision, in UTC.
        reviewer: The name that was given.
        decision: `accepted` the answer as it was, `corrected` it, `skipped` the row, or `undone` the decision on it.
        messages: The conversation up to the answer; empty for `skipped` and `undone`.
        before: The answer that was shown; empty where the row had none.
        after: The answer that is right.
        chosen: Why the row was looked at.
        probability: Of a uniform row, with which it was drawn from all traffic, 0 to 1.
        digest: `sha256:…` of the file that gave `before`.
        seen: When the row was collected, in UTC; empty for one that was not.
        tools: Those of the collected row.
    """

    id: str
    time: str
    reviewer: str
    decision: Literal["accepted", "corrected", "skipped", "undone"]
    messages: list[JsonObject] = field(default_factory=list)
    before: str = ""
    after: str = ""
    chosen: Choice = "uniform"
    probability: float = 1.0
    digest: str = ""
    seen: str = ""
    tools: list[JsonObject] = field(default_factory=list)

    @property
    def uniform(self) -> bool:
        """Only such a row may become a calibration or a test row."""
        return self.chosen == UNIFORM


def standing(reviews: Iterable[Review]) -> dict[str, Review]:
    """The decision that stands on each row, by its id: the last one that is not undone."""
    history: dict[str, list[Review]] = {}
    for review in reviews:
        line = history.setdefault(review.id, [])
        if review.decision == "undone":
            del line[-1:]
        else:
            line.append(review)
    return {id: line[-1] for id, line in history.items() if line}


def decided(reviews: Iterable[Review]) -> list[Review]:
    """The decisions that stand and are no skips, in the order of the rows."""
    return [review for review in standing(reviews).values() if review.decision != "skipped"]


def is_reviewed(path: Path, format: str | None = None) -> bool:
    """True for a file that `slmctl review` wrote, by its first whole line."""
    try:
        if (format or format_of(path)) != "jsonl" or path.suffix == ".gz":
            return False
        status = path.stat()
        return _begins_with_review(path, status.st_mtime_ns, status.st_size)
    except (SlmctlError, OSError):
        return False


@functools.lru_cache(maxsize=64)
def _begins_with_review(path: Path, mtime_ns: int, size: int) -> bool:
    """The same of a file as it stood at one time; kept, since a project's files are listed often."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    for line in head.split(b"\n"):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            continue  # torn, or cut
        return isinstance(fields, dict) and "reviewer" in fields and fields.get("decision") in DECISIONS
    return False


def _rows(path: Path) -> tuple[dict[str, list[JsonObject]], dict[str, int]]:
    """The decisions of a file as rows, uniform and targeted; and how many are left out, by why."""
    reviews = list(Review.read(path))
    stands = standing(reviews).values()
    kept = [review for review in stands if review.decision != "skipped"]
    rows = {
        "uniform": [_row(review) for review in kept if review.uniform],
        "targeted": [_row(review) for review in kept if not review.uniform],
    }
    undone = sum(review.decision == "undone" for review in reviews)
    return rows, {"skipped": len(stands) - len(kept), "taken back": undone}


def _row(review: Review) -> JsonObject:
    """A decision as a row: the conversation with the answer that is right."""
    answer = {"role": "assistant", "content": review.after}
    row = {"id": review.id, "time": review.seen or review.time, "messages": [*review.messages, answer]}
    return row | ({"tools": review.tools} if review.tools else {})


def parts(source: Source, path: Path, name: str | None, folder: Path) -> list[Source]:
    """The parts of a reviewed file as sources of their own; one without rows is left out where the other has some.

    Args:
        source: The source as the config has it.
        path: Its file.
        name: Its name in records; None for that of the file.
        folder: The folder of the copies, below `runs/`.

    Raises:
        OSError: The file cannot be read, or a copy not be written.
        UsageError: The source puts targeted rows into a held-out split.
    """
    place = folder_of(path, folder)
    files = {kind: place / f"{path.stem}.{kind}.jsonl" for kind in ("uniform", "targeted")}
    if not all(file.exists() for file in files.values()):
        rows, _ = _rows(path)
        place.mkdir(parents=True, exist_ok=True)
        for kind, part in rows.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
            with atomic.file(files[kind], 0o600) as draft:
                draft.write_bytes(text.encode("utf-8", "backslashreplace"))
    has_rows = {kind: file.stat().st_size > 0 for kind, file in files.items()}
    if has_rows["targeted"] and source.split not in (None, "train"):
        raise UsageError(
            f"{path.name} holds rows that were picked, not drawn by chance, and its source says split: {source.split}",
            hint="leave 'split' out: rows drawn by chance are split as always, and picked ones are for training alone",
        )
    kinds = [kind for kind in files if has_rows[kind]] or ["uniform"]
    return [_part(source, files[kind], name and f"{name} ({kind})", kind) for kind in kinds]


def _part(source: Source, file: Path, name: str | None, kind: str) -> Source:
    """One part, whose columns are known and of which nothing targeted can be held out."""
    update = {
        "sheet": None, "format": "jsonl", "encoding": None, "header_row": None, "conversation_format": "messages",
        "id": "id", "time": "time", "group": None, "weight": None, "hf": None, "file": None, "sql": None,
        "name": name,
        "split": "train" if kind == "targeted" else source.split,
    }  # fmt: skip
    return source.model_copy(update=update).at(file, whole=source.name or source.hf or str(source.path))


def folder_of(path: Path, folder: Path) -> Path:
    """The folder of the parts of a reviewed file as it stands now.

    Raises:
        OSError: The file cannot be read.
    """
    status = path.stat()
    return folder / (PREFIX + _digest(path, status.st_mtime_ns, status.st_size)[:16])


@functools.lru_cache(maxsize=64)
def _digest(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def note(path: Path) -> str:
    """The counts of a reviewed file in one line, for a person.

    Raises:
        OSError: The file cannot be read.
    """
    rows, left_out = _rows(path)
    left = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    drawn = len(rows["uniform"])
    counts = f"{drawn:,} row{'s' * (drawn != 1)} drawn by chance, {len(rows['targeted']):,} picked for training alone"
    return f"{path.name}: {counts}" + (f"; left out: {left}" if left else "")
