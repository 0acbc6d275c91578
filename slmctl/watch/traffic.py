"""Decision lines, collected rows and reviews -> the traffic of a served model, in the order of time."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from slmctl.artifacts import json_lines
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError, UsageError
from slmctl.production import records
from slmctl.production.records import CollectedRow, Review

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
KEPT = "confident"  # the reason of an answer that the policy keeps
DAY_S = 86_400.0
MOST_TOKENS = 1 << 32  # of a request; a line with more is damaged


@dataclass(frozen=True)
class DecisionLine:
    """A line of the log of decisions, as `server/router.py` writes it; further fields are not read."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "ignore", "allow_inf_nan": False}

    time: str
    route: str
    reason: str
    p_correct: Annotated[float, Field(ge=0, le=1)] | None = None
    novel: bool | None = None
    prompt_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 0
    completion_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 0


@dataclass(frozen=True)
class Traffic:
    """Requests in the order of time.

    Attributes:
        seconds: (n,) of each, since 1970 in UTC.
        p_correct: (n,) how likely the local answer is right; NaN where nobody said.
        kept: (n,) answers that the policy keeps.
        escalated: (n,) answers of the general model.
        novel: (n,) 1 where no training row is like the question, 0 where one is; NaN where nobody looked.
        length: (n,) of the prompts, in `unit`.
        prompt_tokens, completion_tokens: (n,) of the answers given.
        unit: `tokens` or `characters`.
    """

    seconds: Floats
    p_correct: Floats
    kept: Flags
    escalated: Flags
    novel: Floats
    length: Floats
    prompt_tokens: Floats
    completion_tokens: Floats
    unit: str = "tokens"

    def __len__(self) -> int:
        return len(self.seconds)

    def only(self, mask: Flags | npt.NDArray[np.int64]) -> Traffic:
        """The requests of a mask, or at some places."""
        return Traffic(
            self.seconds[mask], self.p_correct[mask], self.kept[mask], self.escalated[mask], self.novel[mask],
            self.length[mask], self.prompt_tokens[mask], self.completion_tokens[mask], self.unit,
        )  # fmt: skip


@dataclass(frozen=True)
class Material:
    """The lines of all files.

    Attributes:
        traffic: Every request, from the log of decisions; without one, the uniform share of the collected rows.
        sampled: `traffic` is that share.
        collected: Collected rows in the order of time, one of each id.
        reviews: The decisions of people that stand, one a row.
        files: Files of collected rows, oldest first.
    """

    traffic: Traffic
    sampled: bool = False
    collected: Sequence[CollectedRow] = ()
    reviews: Sequence[Review] = ()
    files: Sequence[Path] = field(default_factory=list)


def read(paths: Sequence[Path], *, since: float = -math.inf) -> Material:
    """Read files, each for what its lines say it is.

    Args:
        paths: Logs of decisions, files or folders of collected rows, files of reviews.
        since: Older lines are left out; seconds since 1970.

    Raises:
        DataError: A file holds none of the three, or no file holds a request.
        UsageError: A file does not exist.
    """
    decisions: list[DecisionLine] = []
    rows: dict[str, CollectedRow] = {}
    reviews: list[Review] = []
    files: list[Path] = []
    for path in records.collected_files(_existing(paths)):
        kind = _kind(path)
        if kind == "reviews":
            reviews += Review.read(path)
        elif kind == "collected":
            files.append(path)
            rows |= {row.id: row for row in CollectedRow.read(path) if _time(row.time) >= since}
        elif kind == "decisions":
            decisions += (line for line in _decisions(path) if _time(line.time) >= since)
    collected = sorted(rows.values(), key=lambda row: (_time(row.time), row.id))
    uniform = [row for row in collected if row.uniform]
    traffic = _of_decisions(decisions) if decisions else _of_rows(uniform)
    if not len(traffic):
        raise DataError(
            "there is no request to look at: the files hold no decision and no row of the uniform share",
            hint="serve.decision_log writes decisions, serve.collect collects rows",
        )
    return Material(traffic, not decisions, collected, records.agreed(records.standing(reviews)), files)


def seconds_of(time: str) -> float:
    """A time in UTC, `2026-11-25T09:30:00Z` or a day alone, as seconds since 1970.

    Raises:
        ValueError: It is no time.
    """
    moment = datetime.datetime.fromisoformat(time)
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def time_of(seconds: float) -> str:
    """`2026-11-25T09:30:00Z`."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def monthly(seconds: Floats) -> float:
    """Number of values in 30 days, about; `seconds` are their times in order."""
    return len(seconds) * 30 * DAY_S / max(float(seconds[-1] - seconds[0]), DAY_S)


def _existing(paths: Iterable[Path]) -> list[Path]:
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist", hint="slmctl watch decisions.jsonl collected/ reviewed.jsonl")
    return list(paths)


def _kind(path: Path) -> str:
    """The kind of a file's lines, by the first that is of one; empty for a file without lines.

    Raises:
        DataError: No line is of any.
    """
    empty = True
    for fields in json_lines.read(path):
        if fields.get("event") not in (None, "decision"):
            empty = False
            continue  # the server's own log has other lines, too
        if "reviewer" in fields:
            return "reviews"
        if "messages" in fields and "answer" in fields:
            return "collected"
        if "route" in fields and "reason" in fields:
            return "decisions"
        empty = False
    if empty:
        return ""
    raise DataError(
        f"{path} holds neither decisions nor collected rows nor reviews",
        hint="slmctl watch decisions.jsonl collected/ reviewed.jsonl",
    )


def _decisions(path: Path) -> Iterator[DecisionLine]:
    adapter = TypeAdapter(DecisionLine)
    for fields in json_lines.read(path):
        if fields.get("event") in (None, "decision"):
            line = _valid(adapter, fields)
            if line is not None:
                yield line


Line = TypeVar("Line")


def _valid(adapter: TypeAdapter[Line], fields: JsonObject) -> Line | None:
    try:
        return adapter.validate_python(fields)
    except ValidationError:
        return None


def _time(time: str) -> float:
    """Seconds since 1970; NaN for what is no time of a server, so that the line is left out."""
    try:
        return seconds_of(time) if "2000" <= time[:4] < "2200" else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _of_decisions(lines: Sequence[DecisionLine]) -> Traffic:
    prompt = _floats(line.prompt_tokens for line in lines)
    traffic = Traffic(
        _floats(_time(line.time) for line in lines),
        _floats(_known(line.p_correct) for line in lines),
        np.array([line.reason == KEPT for line in lines], dtype=bool),
        np.array([line.route == "generalist" for line in lines], dtype=bool),
        _floats(_known(line.novel) for line in lines),
        prompt, prompt, _floats(line.completion_tokens for line in lines),
    )  # fmt: skip
    return _in_order(traffic)


def _of_rows(rows: Sequence[CollectedRow]) -> Traffic:
    nothing = np.full(len(rows), math.nan)
    traffic = Traffic(
        _floats(_time(row.time) for row in rows),
        _floats(_known(row.p_correct) for row in rows),
        np.array([row.reason == KEPT for row in rows], dtype=bool),
        np.array([row.route == "generalist" for row in rows], dtype=bool),
        _floats(_known(row.novel) for row in rows),
        _floats(len(row.text) for row in rows),
        nothing, nothing, "characters",
    )  # fmt: skip
    return _in_order(traffic)


def _in_order(traffic: Traffic) -> Traffic:
    return traffic.only(np.argsort(traffic.seconds, kind="stable"))


def _floats(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)


def _known(value: float | None) -> float:
    return math.nan if value is None else float(value)
