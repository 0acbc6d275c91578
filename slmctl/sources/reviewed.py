"""A file of review decisions -> two sources: uniform rows, split like any rows, and targeted rows,
for training only.

Targeted rows were picked because they looked difficult. They do not represent all traffic, so no
model may be measured on them. The two parts are copies below `runs/.sources/`, in a folder named by
the hash of the file's content.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import state
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.artifacts.json_lines import Line
from slmctl.config import Source
from slmctl.errors import DataError, SlmctlError, UsageError
from slmctl.sources.rows import format_of

PREFIX = "reviewed-"  # of the folders that hold the two parts
DECISIONS = ("accepted", "corrected", "skipped", "undone")
_HEAD = 1 << 20  # bytes at the start of a file in which its first whole line is looked for
# The reason why a row was reviewed. Uniform: drawn at random from all traffic with a known
# probability. All others: picked because it looked difficult.
UNIFORM = "uniform"
Choice = Literal[
    "uniform", "escalated", "unsure", "disagreement", "suspect", "novel", "duplicates", "feedback"
]


@dataclass(frozen=True)
class Review(Line):
    """A decision of a person on one row.

    Attributes:
        id: Id of the request, or of the record.
        time: Time of the decision, in UTC.
        decision: `accepted` or `corrected` the answer, `skipped` the row, or `undone` an earlier
            decision on it.
        messages: The conversation up to the answer; empty for `skipped` and `undone`.
        before: The answer that was shown; '' for a row without one.
        after: The right answer.
        chosen: Reason why the row was reviewed.
        probability: Probability with which a uniform row was drawn from all traffic, 0 to 1.
        digest: `sha256:…` of the model file that answered `before`.
        seen: Time when a server collected the row, in UTC; '' for a row that was not collected.
        tools: Tools of the collected row.
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
    def outcome(self) -> tuple[str, str]:
        """The decision with the right answer: equal for decisions that say the same."""
        return self.decision, self.after

    @property
    def uniform(self) -> bool:
        """True for a row that was drawn at random; only these may
        become calibration or test rows.
        """
        return self.chosen == UNIFORM


class Decided(Protocol):
    """A decision on a row, which a later one may undo."""

    @property
    def id(self) -> str: ...
    @property
    def decision(self) -> str: ...


DecidedT = TypeVar("DecidedT", bound=Decided)


def standing(reviews: Iterable[DecidedT]) -> dict[str, DecidedT]:
    """The valid decision on each row, by row id: the last one that was not undone."""
    history: dict[str, list[DecidedT]] = {}
    for review in reviews:
        line = history.setdefault(review.id, [])
        if review.decision == "undone":
            del line[-1:]
        else:
            line.append(review)
    return {id: line[-1] for id, line in history.items() if line}


def decided(reviews: Iterable[Review]) -> list[Review]:
    """The valid decisions without `skipped`, in the order in which the rows first occur."""
    return [review for review in standing(reviews).values() if review.decision != "skipped"]


def is_reviewed(path: Path, format: str | None = None) -> bool:
    """True for a file that `slmctl review` wrote, judged by its first whole line."""
    try:
        if (format or format_of(path)) != "jsonl" or path.suffix == ".gz":
            return False
        return _begins_with_review(path, state(path))
    except (SlmctlError, OSError):
        return False


@functools.lru_cache(maxsize=64)
def _begins_with_review(path: Path, state: tuple[tuple[int, ...], ...]) -> bool:
    """`is_reviewed` for one version of a file; cached, since a project's files are listed often."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    for line in head.split(b"\n"):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            continue  # torn, or cut
        # else a judged pair
        is_review = isinstance(fields, dict) and "reviewer" in fields and "models" not in fields
        return is_review and fields.get("decision") in DECISIONS
    return False


def _rows(path: Path) -> tuple[dict[str, list[JsonObject]], dict[str, int]]:
    """Returns (rows by part, `uniform` and `targeted`; number of decisions left out, by reason)."""
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
    """A decision as a row: the conversation with the right answer as its last message."""
    answer = {"role": "assistant", "content": review.after}
    row = {
        "id": review.id,
        "time": review.seen or review.time,
        "messages": [*review.messages, answer],
    }
    return row | ({"tools": review.tools} if review.tools else {})


def parts(source: Source, path: Path, name: str | None, folder: Path) -> list[Source]:
    """The parts of a reviewed file as two sources, or as one where the other part is empty.

    Args:
        name: Its name in records; None for the file's name.
        folder: The folder of copies, below `runs/`.

    Raises:
        DataError: The file changes while it is read.
        OSError: The file cannot be read, or a copy cannot be written.
        UsageError: The source puts targeted rows into a held-out split.
    """
    before = state(path)
    place = folder_of(path, folder)
    files = {kind: place / f"{path.stem}.{kind}.jsonl" for kind in ("uniform", "targeted")}
    if not all(file.exists() for file in files.values()):
        rows, _ = _rows(path)
        if state(path) != before:
            raise DataError(
                f"{path.name} changed while it was read", hint="run it again when nobody reviews"
            )
        for kind, part in rows.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
            atomic.write(files[kind], text.encode("utf-8", "backslashreplace"), 0o600)
    has_rows = {kind: file.stat().st_size > 0 for kind, file in files.items()}
    if has_rows["targeted"] and source.split not in (None, "train"):
        raise UsageError(
            f"{path.name} holds rows that were picked, not drawn by chance, and its source says "
            f"split: {source.split}",
            hint="leave 'split' out: rows drawn by chance are split as always, and picked ones are "
            "for training alone",
        )
    kinds = [kind for kind in files if has_rows[kind]] or ["uniform"]
    return [_part(source, files[kind], name and f"{name} ({kind})", kind) for kind in kinds]


def _part(source: Source, file: Path, name: str | None, kind: str) -> Source:
    """One part as a source with known columns; the targeted part is always for training."""
    update = {
        "sheet": None,
        "format": "jsonl",
        "encoding": None,
        "header_row": None,
        "conversation_format": "messages",
        "id": "id",
        "time": "time",
        "group": None,
        "weight": None,
        "hf": None,
        "file": None,
        "sql": None,
        "name": name,
        "split": "train" if kind == "targeted" else source.split,
    }
    return source.model_copy(update=update).at(
        file, whole=source.name or source.hf or str(source.path)
    )


def folder_of(path: Path, folder: Path) -> Path:
    """The folder for the parts of a reviewed file with its present content.

    Raises:
        OSError: The file cannot be read.
    """
    return folder / (PREFIX + _digest(path, state(path))[:16])


@functools.lru_cache(maxsize=64)
def _digest(path: Path, state: tuple[tuple[int, ...], ...]) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def note(path: Path) -> str:
    """One line for the user with the counts of a reviewed file: uniform, targeted and left out.

    Raises:
        OSError: The file cannot be read.
    """
    rows, left_out = _rows(path)
    left = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    drawn = len(rows["uniform"])
    counts = (
        f"{drawn:,} row{'s' * (drawn != 1)} drawn by chance, {len(rows['targeted']):,} "
        "picked for training alone"
    )
    return f"{path.name}: {counts}" + (f"; left out: {left}" if left else "")
