"""Traffic and decisions of people -> figures of each window beside the measured ones, and alarms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import Prices
from slmctl.console import percent
from slmctl.metrics import drift
from slmctl.watch import alarms
from slmctl.watch.alarms import Alarm, SignalCourse
from slmctl.watch.figures import WindowFigures, window_figures
from slmctl.watch.measured import MeasuredFigures
from slmctl.watch.traffic import DAY_S, Material, seconds_of, time_of

MOST_FILES = 4  # that the command for the review names one by one
MOST_ROWS = 50  # ids of rows to review that --json lists
MOST_WINDOWS = 200


@dataclass(frozen=True)
class Watched:
    """The answer of `slmctl watch`.

    Attributes:
        windows: Oldest first; the last one ends with the last request.
        measured: What to compare with.
        courses: The evidence about each signal.
        sampled: The requests are the uniform share of the collected rows.
        requests: Number of all requests, those before the first window among them.
        first, last: Times of the first and the last request, in UTC.
        to_review: Ids of collected rows since the first alarm, the least sure first.
        command: The command that reviews them; empty where no row was collected.
    """

    windows: Sequence[WindowFigures]
    measured: MeasuredFigures
    courses: Sequence[SignalCourse]
    sampled: bool
    requests: int
    first: str
    last: str
    to_review: Sequence[str] = ()
    command: str = ""

    @property
    def alarms(self) -> list[Alarm]:
        """Those that stand, the earliest first."""
        return sorted((alarm for course in self.courses for alarm in course.alarms), key=lambda alarm: alarm.since)

    @property
    def now(self) -> WindowFigures:
        """The last window."""
        return self.windows[-1]

    def to_json(self) -> JsonObject:
        """The answer as JSON values; of each course the evidence at the end."""
        return {
            "alarm": bool(self.alarms),
            "alarms": [dataclasses.asdict(alarm) for alarm in self.alarms],
            "review": self.command,
            "review_ids": list(self.to_review),
            "requests": self.requests,
            "sampled": self.sampled,
            "first": self.first,
            "last": self.last,
            "measured": dataclasses.asdict(self.measured),
            "windows": [_window_json(window) for window in self.windows],
            "signals": [
                {"name": course.name, "values": len(course.seconds), "tested": course.tested,
                 "evidence": _share_of_alarm(course)}
                for course in self.courses
            ],
            "false_alarms_a_month": drift.FALSE_ALARMS,
        }  # fmt: skip


def watch(
    material: Material,
    measured: MeasuredFigures,
    *,
    window_s: float = 7 * DAY_S,
    last_s: float = 30 * DAY_S,
    prices: Prices | None = None,
) -> Watched:
    """Look at the traffic of a served model.

    Args:
        material: The lines of all files.
        measured: What was measured before.
        window_s: Seconds of a window.
        last_s: Seconds before the last request that the windows cover, and of which alarms stand.
        prices: For cost and savings.
    """
    traffic = material.traffic
    end = float(traffic.seconds[-1]) + 1
    begin = max(float(traffic.seconds[0]), end - last_s)
    number = min(MOST_WINDOWS, max(1, math.ceil((end - begin) / window_s - 1e-9)))
    windows = [
        window_figures(
            traffic, material.collected, material.reviews,
            begin=end - (k + 1) * window_s, end=end - k * window_s, prices=prices,
        )
        for k in reversed(range(number))
    ]  # fmt: skip
    courses = alarms.examine(traffic, material.collected, standing_since=end - last_s)
    since = min((alarm.since for course in courses for alarm in course.alarms), default="")
    ids, command = _to_review(material, since) if since else ((), "")
    return Watched(
        windows, measured, courses, material.sampled, len(traffic), time_of(float(traffic.seconds[0])),
        time_of(float(traffic.seconds[-1])), ids, command,
    )  # fmt: skip


def lines(watched: Watched) -> Iterator[str]:
    """The answer for the terminal: the last window beside what was measured, then the alarms."""
    now, measured = watched.now, watched.measured
    yield f"{time_of(now.begin)[:10]} to {time_of(now.end)[:10]}: {requests_text(watched, now.requests)}"
    yield from (f"  {name:<20} {value}" for name, value in rows_of(now, measured))
    untested = [course for course in watched.courses if not course.tested]
    if untested:
        named = ", ".join(course.title.lower() for course in untested)
        most = max(len(course.seconds) for course in untested)
        yield f"not tested yet: {named}; {most:,} of the {drift.REFERENCE} values that the others are compared with"
    for alarm in watched.alarms:
        yield f"ALARM  {alarm.sentence} ({alarm.requests:,} requests until it was sure)"
    if not watched.alarms:
        yield f"no alarm: of unchanged traffic at most {percent(drift.FALSE_ALARMS, 0)} of the months give one"


def rows_of(now: WindowFigures, measured: MeasuredFigures) -> Iterator[tuple[str, str]]:
    """The figures of a window, each with what was measured before."""
    if now.estimated is not None:
        beside = f", calibration {percent(measured.accuracy)}" if measured.accuracy is not None else ""
        yield "estimated accuracy", f"{percent(now.estimated)}{beside}"
    yield "verified accuracy", verified_text(now, measured)
    if now.estimated is not None:
        beside = f", calibration {percent(measured.kept)}" if measured.kept is not None else ""
        yield "kept", f"{percent(now.kept)}{beside}"
    yield "escalated", percent(now.escalated)
    if now.novel is not None:
        yield "novel", percent(now.novel)
    if now.length is not None:
        yield "length", f"{now.length:,.0f} on average"
    if now.labels:
        yield "labels", ", ".join(f"{label} {percent(share)}" for label, share in list(now.labels.items())[:5])
    if now.cost is not None:
        cost = now.cost
        yield "cost", f"{cost.paid:,.2f} {cost.currency} paid, {cost.savings:,.2f} {cost.currency} saved"


def verified_text(now: WindowFigures, measured: MeasuredFigures) -> str:
    """`93.1 % (90.2 % to 95.4 %) on 412 rows drawn by chance, test rows 94.0 %`."""
    verified = now.verified
    if verified is None:
        return "no row of it was reviewed: slmctl review"
    uniform = verified.uniform
    if not uniform.rows:
        return f"{verified.rows:,} rows were reviewed, and none was drawn by chance alone"
    beside = f", test rows {percent(measured.report)}" if measured.report is not None else ""
    return (
        f"{percent(uniform.share)} ({percent(uniform.low)} to {percent(uniform.high)}) on {uniform.rows:,} "
        f"rows drawn by chance{beside}"
    )


def requests_text(watched: Watched, number: int) -> str:
    """`3,012 requests`, or that they are a sample."""
    return f"{number:,} requests" + (", the uniform share of the collected rows" if watched.sampled else "")


def _to_review(material: Material, since: str) -> tuple[list[str], str]:
    """The ids of rows that were collected since a time, the least sure first, and the command that reviews them."""
    begin = seconds_of(since)
    decided = {review.id for review in material.reviews}
    rows = [row for row in material.collected if seconds_of(row.time) >= begin and row.id not in decided]
    rows.sort(key=lambda row: (row.p_correct if row.p_correct is not None else 1.0, row.id))
    if not rows:
        return [], ""
    days = {row.time[:10] for row in rows}
    files = [path for path in material.files if path.stem in days] or list(material.files)
    folders: list[Path] = list(dict.fromkeys(path.parent for path in files))
    named = files if len(files) <= MOST_FILES else folders
    return [row.id for row in rows[:MOST_ROWS]], f"slmctl review {' '.join(str(path) for path in named)}"


def _share_of_alarm(course: SignalCourse) -> float | None:
    """The evidence at the end over that of an alarm; None where nothing was tested."""
    if not course.tested:
        return None
    return float(f"{math.exp(min(50.0, float(course.evidence[-1]))):.4g}")


def _window_json(window: WindowFigures) -> JsonObject:
    fields = dataclasses.asdict(window)
    fields |= {"begin": time_of(window.begin), "end": time_of(window.end)}
    if window.verified is not None and not window.verified.uniform.rows:
        fields["verified"]["uniform"]["share"] = None
    if window.cost is not None:
        fields["cost"]["savings"] = window.cost.savings
    return fields
