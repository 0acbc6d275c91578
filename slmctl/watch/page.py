"""`runs/watch.html`: the answer of `slmctl watch` as a page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from slmctl.console import percent
from slmctl.metrics import drift
from slmctl.reports import svg_chart
from slmctl.reports.html_page import Cell, Chart, Figure, Notice, Page, PageSection, Table, Tone, count
from slmctl.reports.svg_chart import WIDTH, Dot, LineSeries, Point
from slmctl.watch.alarms import SignalCourse
from slmctl.watch.figures import WindowFigures
from slmctl.watch.traffic import DAY_S, time_of
from slmctl.watch.watch import Watched, requests_text

COLOURS = ("c1", "c2", "c3", "c4", "c5", "good", "warn")
POINTS = 120  # of a line
FLOOR, MOST = 1e-4, 1000  # shares of an alarm's evidence that are told apart
SLIM = 2  # signals that the legend of a small screen has room for, those with the most evidence
SHOWN_WINDOWS = 12  # that the chart of accuracies shows, the latest ones


def page(watched: Watched, *, project: str) -> Page:
    """The page: the verdict, the last window beside what was measured, the windows and the evidence."""
    alarms = watched.alarms
    headline = "The traffic is as it was: no alarm stands"
    if alarms:
        more = f", and {len(alarms) - 1} more" if len(alarms) > 1 else ""
        headline = f"{alarms[0].sentence[0].upper()}{alarms[0].sentence[1:]}{more}"
    return Page(
        kicker=f"Watch · {project}",
        headline=headline,
        lead=f"{requests_text(watched, watched.requests)} from {watched.first[:10]} to {watched.last[:10]}.",
        tone="bad" if alarms else "good",
        figures=list(_figures(watched)),
        notices=[Notice(f"{alarm.sentence[0].upper()}{alarm.sentence[1:]}.", "bad", "Evidence") for alarm in alarms]
        + ([Notice(f"Review what came in since: {watched.command}", "warn")] if watched.command else []),
        sections=[_accuracy(watched), *_labels(watched), _evidence(watched)],
        foot="Made by slmctl watch from logs of decisions, collected rows and reviews. It holds no text of a request.",
    )


def _figures(watched: Watched) -> Iterator[Figure]:
    now, measured = watched.now, watched.measured
    if now.estimated is not None:
        beside = f"{percent(measured.accuracy)} of calibration rows" if measured.accuracy is not None else ""
        yield Figure("Estimated accuracy", percent(now.estimated), beside)
    if now.verified is not None and now.verified.uniform.rows:
        uniform = now.verified.uniform
        note = f"{percent(uniform.low)} to {percent(uniform.high)}, {count(uniform.rows, 'row')} drawn by chance"
        yield Figure("Verified accuracy", percent(uniform.share), note)
    else:
        yield Figure("Verified accuracy", "not known", "no row of the window that was drawn by chance is reviewed")
    if now.verified is not None and now.verified.kept_bound is not None:
        allowed = measured.max_error
        note = f"of {count(now.verified.kept_rows, 'kept answer')}; at most {percent(now.verified.kept_bound)}"
        many = allowed is not None and now.verified.kept_wrong > allowed * now.verified.kept_rows
        yield Figure("Wrong and kept", str(now.verified.kept_wrong), note, "bad" if many else "")
    if now.estimated is not None:
        beside = f"{percent(measured.kept)} of calibration rows" if measured.kept is not None else ""
        yield Figure("Kept", percent(now.kept), beside)
    yield Figure("Escalated", percent(now.escalated))
    if now.novel is not None:
        yield Figure("Novel", percent(now.novel), "no training row is like the question")
    if now.cost is not None:
        tone: Tone = "good" if now.cost.savings > 0 else "warn"
        paid = f"{now.cost.paid:,.2f} {now.cost.currency} paid"
        yield Figure("Savings", f"{now.cost.savings:,.2f} {now.cost.currency}", paid, tone)


def _accuracy(watched: Watched) -> PageSection:
    head = (
        "window", "requests", "estimated", "verified", "interval", "reviewed", "weighed", "kept", "escalated", "novel",
        "length",
    )  # fmt: skip
    table = Table("Windows", head, [_row(window) for window in reversed(watched.windows)], note=(
        "Estimated is the mean of p_correct. Verified is the share of right answers among reviewed rows that were "
        "drawn by chance alone, with the exact 95 % interval of Clopper and Pearson; weighed takes every reviewed row "
        "for those of about its p_correct, and has no interval."
    ))  # fmt: skip
    dots = list(_dots(watched.windows[-SHOWN_WINDOWS:]))
    if not dots:
        return PageSection("Accuracy", [table])
    measured = watched.measured.accuracy
    reference = (measured, "calibration") if measured is not None else None
    title = "Accuracy by window, verified with its interval"
    wide, slim = svg_chart.dots_in_two_widths(dots, title=title, reference=reference)
    return PageSection("Accuracy", [Chart(title, wide, slim=slim), table])


def _row(window: WindowFigures) -> list[str | Cell]:
    verified = window.verified
    uniform = verified.uniform if verified is not None and verified.uniform.rows else None
    return [
        _dates(window), f"{window.requests:,}", _percent(window.estimated),
        percent(uniform.share) if uniform else "",
        f"{percent(uniform.low)} to {percent(uniform.high)}" if uniform else "",
        f"{verified.rows:,}" if verified else "", _percent(verified.weighted) if verified else "",
        percent(window.kept), percent(window.escalated), _percent(window.novel),
        f"{window.length:,.0f}" if window.length is not None else "",
    ]  # fmt: skip


def _dots(windows: Sequence[WindowFigures]) -> Iterator[Dot]:
    for window in windows:
        if window.estimated is not None:
            value = window.estimated
            yield Dot(f"{_dates(window)} estimated", value, value, value, percent(value), "c3")
        if window.verified is not None and window.verified.uniform.rows:
            uniform = window.verified.uniform
            text = f"{percent(uniform.share)} ({uniform.rows:,} rows)"
            yield Dot(f"{_dates(window)} verified", uniform.share, uniform.low, uniform.high, text)


def _labels(watched: Watched) -> Iterator[PageSection]:
    now, before = watched.now.labels, watched.windows[:-1]
    if not now:
        return
    rows: list[list[str | Cell]] = []
    for label, share in now.items():
        earlier = [window.labels[label] for window in before if label in window.labels]
        rows.append([label, percent(share), percent(float(np.mean(earlier))) if earlier else ""])
    note = "By the probability with which each row was collected; earlier is the mean of the windows that list it."
    yield PageSection("Labels", [Table("Most frequent labels", ("label", "last window", "earlier"), rows, note=note)])


def _evidence(watched: Watched) -> PageSection:
    rows = [_signal_row(course) for course in watched.courses]
    head = ("signal", "values", "evidence", "began", "before", "after")
    lead = (
        f"A signal raises an alarm when its evidence reaches 1. In unchanged traffic all signals together do so in at "
        f"most {percent(drift.FALSE_ALARMS, 0)} of the months."
    )
    blocks: list[Chart | Table] = [Table("Signals", head, rows, note=(
        "Evidence is the capital of bets against unchanged traffic, as a share of the capital at which an alarm is "
        "raised. The first 500 values of a signal are what the others are compared with."
    ))]  # fmt: skip
    lines = [line for course, colour in zip(watched.courses, COLOURS, strict=False) for line in _line(course, colour)]
    if lines:
        highest = sorted(lines, key=lambda line: -max(point.y for point in line.points))[:SLIM]
        few = [line if line in highest else dataclasses.replace(line, name="") for line in lines]
        end = max(point.x for line in lines for point in line.points)
        alarm = LineSeries("alarm", [Point(0, 1), Point(end, 1)], "bad", dashed=True)
        title = "Evidence that a signal changed"
        wide, slim = (
            svg_chart.lines(
                [*drawn, alarm], title=title, x_label="days", x_range=(0, max(end, 1)), y_range=(FLOOR, MOST), log=True,
                width=width, height=340,
            )
            for drawn, width in ((lines, 2 * WIDTH), (few, WIDTH))
        )  # fmt: skip
        blocks.insert(0, Chart(title, wide, slim=slim))
    return PageSection("Evidence", blocks, lead=lead)


def _signal_row(course: SignalCourse) -> list[str | Cell]:
    number = f"{len(course.seconds):,}"
    if not course.tested:
        return [course.title, number, "too few values", "", "", ""]
    ratio = math.exp(min(20.0, float(course.evidence[-1])))
    now = f"{ratio:.2g}" if ratio < MOST else f"over {MOST:,}"
    if not course.alarms:
        return [course.title, number, now, "", "", ""]
    alarm = course.alarms[0]
    before, after = (f"{value:,.3g}" for value in (alarm.before, alarm.after))
    return [Cell(course.title, "bad", alarm.sentence), number, Cell(now, "bad"), alarm.since[:10], before, after]


def _line(course: SignalCourse, colour: str) -> Iterator[LineSeries]:
    """The largest evidence in each of some equal parts of the time."""
    if course.tested:
        days = (course.seconds - course.seconds[0]) / DAY_S
        parts = np.minimum((days / max(float(days[-1]), 1e-9) * POINTS).astype(int), POINTS - 1)
        highest = [
            Point(
                float(days[parts == part][-1]), float(np.exp(np.clip(course.evidence[parts == part].max(), -20, 6.9)))
            )
            for part in np.unique(parts)
        ]
        yield LineSeries(course.title, [Point(point.x, max(point.y, FLOOR)) for point in highest], colour)


def _dates(window: WindowFigures) -> str:
    begin, end = time_of(window.begin), time_of(window.end)
    if window.end - window.begin < DAY_S:
        return f"{begin[5:16].replace('T', ' ')} to {end[11:16]}"
    return f"{begin[5:10]} to {end[5:10]}"


def _percent(share: float | None) -> str:
    return "" if share is None or math.isnan(share) else percent(share)
