"""Traffic -> its signals, the evidence that one of them changed, and the alarms.

All signals together raise a false alarm in a month of unchanged traffic with a chance of at most
`drift.FALSE_ALARMS`: each has its part of that, by `weight`. An alarm needs a change of a size that matters, too, which
can only make false ones rarer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from slmctl.console import percent
from slmctl.metrics import drift
from slmctl.metrics.drift import Bet, Course
from slmctl.production.records import CollectedRow
from slmctl.watch.traffic import Floats, Traffic, monthly, seconds_of, time_of

LABEL_WEIGHT = 0.075  # of each of two streams of labels, which the other signals leave of the rate of false alarms
MOST_REQUESTS = 300_000  # the latest ones that are tested, which takes some seconds
MOST_LABELS = 400  # of a stream of labels, the most frequent ones that are tested
MOST_ROWS = 50_000  # of a stream of labels, the latest rows that are tested


@dataclass(frozen=True)
class Signal:
    """One property of the requests, and how it is tested.

    Attributes:
        name: `p_correct`, `kept`, `novel`, `unfamiliar`, `length` or `labels`.
        title: The name for people.
        seconds: (n,) times of the values.
        values: (n,) in the order of time.
        kinds: The bets.
        weight: Part of the rate of false alarms, 0 to 1.
        least: The change of the mean that matters: of a share in points, of a length as a share of itself.
        relative: `least` is a share of the mean.
    """

    name: str
    title: str
    seconds: Floats
    values: Floats
    kinds: Sequence[Bet]
    weight: float
    least: float
    relative: bool = False


@dataclass(frozen=True)
class Alarm:
    """A signal that changed.

    Attributes:
        signal: Its name; of a label `label LABEL`.
        sentence: The change in words.
        since: About when it began, in UTC.
        noticed: When it was sure and large enough to matter, in UTC.
        requests: Number of the signal's values from `since` to `noticed`.
        before, after: Means of the signal up to `since`, and from then on.
    """

    signal: str
    sentence: str
    since: str
    noticed: str
    requests: int
    before: float
    after: float


@dataclass(frozen=True)
class SignalCourse:
    """The evidence about one signal.

    Attributes:
        name, title: See Signal.
        seconds: (n,) times of its values.
        evidence: (n,) log of the evidence over that of an alarm; 0 and more is one.
        tested: It has values enough to be tested.
        alarms: Those that stand.
    """

    name: str
    title: str
    seconds: Floats
    evidence: Floats
    tested: bool
    alarms: Sequence[Alarm] = ()


def examine(traffic: Traffic, collected: Sequence[CollectedRow], *, standing_since: float) -> list[SignalCourse]:
    """Test every signal that there is.

    Args:
        traffic: The requests.
        collected: Collected rows in the order of time, for the labels.
        standing_since: An alarm stands that was noticed from then on, or that still has its evidence; seconds.
    """
    latest = traffic.only(np.arange(len(traffic)) >= len(traffic) - MOST_REQUESTS)
    courses = [_examined(signal, standing_since) for signal in signals(latest)]
    return [*courses, *_label_courses(collected, standing_since)]


def signals(traffic: Traffic) -> Iterator[Signal]:
    """The signals of the requests; none of those that the requests say nothing about."""
    sure, seen = ~np.isnan(traffic.p_correct), ~np.isnan(traffic.novel)
    times = traffic.seconds
    if sure.any():
        yield Signal("p_correct", "Estimated accuracy", times[sure], traffic.p_correct[sure], drift.LOWER, 0.25, 0.01)
        kept = traffic.kept[sure].astype(np.float64)
        yield Signal("kept", "Kept share", times[sure], kept, drift.LOWER, 0.1, 0.02)
    if seen.any():
        yield Signal("novel", "Novel share", times[seen], traffic.novel[seen], drift.HIGHER, 0.15, 0.02)
    both = sure & seen
    if both.any():  # a novel question of which the model is unsure is the clearest sign of a new subject
        values = traffic.p_correct[both] - traffic.novel[both]
        yield Signal("unfamiliar", "Novel and unsure", times[both], values, drift.LOWER, 0.25, 0.02)
    if not np.isnan(traffic.length).any():
        yield Signal("length", "Length", times, traffic.length, drift.EITHER, 0.1, 0.1, relative=True)


def _examined(signal: Signal, standing_since: float) -> SignalCourse:
    level = drift.FALSE_ALARMS * signal.weight
    course = drift.course(signal.values, signal.kinds, monthly=monthly(signal.seconds), level=level)
    alarm = None
    if course.change is not None and _stands(course, signal.seconds, standing_since):
        alarm = _alarm(signal, course.evidence, course.change.since)
    tested = len(signal.values) > drift.REFERENCE
    return SignalCourse(signal.name, signal.title, signal.seconds, course.evidence, tested, [alarm] if alarm else [])


def _stands(course: Course, seconds: Floats, standing_since: float) -> bool:
    return course.stands or bool((course.evidence[seconds >= standing_since] >= 0).any())


def _alarm(signal: Signal, evidence: Floats, since: int) -> Alarm | None:
    """The alarm of a change that began at `since`: the first moment at which it is sure and large enough to matter."""
    before = float(signal.values[:since].mean())
    means = np.cumsum(signal.values[since:]) / np.arange(1, len(signal.values) - since + 1)
    least = signal.least * (abs(before) if signal.relative else 1.0)
    sure = np.flatnonzero((evidence[since:] >= 0) & (np.abs(means - before) >= least))
    if not len(sure):
        return None
    after = float(means[-1])
    began, noticed = (time_of(float(signal.seconds[since + at])) for at in (0, int(sure[0])))
    sentence = f"{_worded(signal.name, signal.title, before, after)} since {began[:10]}"
    return Alarm(signal.name, sentence, began, noticed, int(sure[0]) + 1, before, after)


def _worded(name: str, title: str, before: float, after: float) -> str:
    direction = "fell" if after < before else "rose"
    if name == "length":
        return f"the length of prompts {direction} from {before:,.0f} to {after:,.0f} on average"
    if name == "unfamiliar":
        return "more questions are unlike the training rows and answered unsurely"
    subject = {"p_correct": "the estimated accuracy"}.get(name, f"the {title[0].lower()}{title[1:]}")
    return f"{subject} {direction} from {percent(before)} to {percent(after)}"


# Labels: those of rows that were drawn by chance, and those of rows that were collected as unsure


def _label_courses(collected: Sequence[CollectedRow], standing_since: float) -> Iterator[SignalCourse]:
    """The courses of the label mix: of all answers, and of the unsure ones, among which a new subject is denser."""
    rows = [row for row in collected if row.labels]  # answers of a task without labels have none
    uniform = [row for row in rows if row.uniform]
    unsure = [row for row in rows if row.chosen in ("unsure", "escalated")]
    for name, title, some in (("labels", "Labels", uniform), ("unsure labels", "Labels of unsure answers", unsure)):
        if some:
            yield _label_course(name, title, some[-MOST_ROWS:], standing_since)


def _label_course(name: str, title: str, rows: Sequence[CollectedRow], standing_since: float) -> SignalCourse:
    """The course of the labels of some rows: the mean of the evidence about each label."""
    seconds = np.array([seconds_of(row.time) for row in rows])
    if len(rows) <= drift.REFERENCE:
        return SignalCourse(name, title, seconds, np.full(len(rows), -np.inf), tested=False)
    names, places = np.unique(np.array([row.local.strip() for row in rows]), return_inverse=True)
    frequent = np.argsort(-np.bincount(places), kind="stable")[:MOST_LABELS]
    level = drift.FALSE_ALARMS * LABEL_WEIGHT
    total, best, best_label = np.full(len(rows), -np.inf), None, 0
    for label in frequent.tolist():  # those that are left out have no evidence, which is on the safe side
        course = drift.course(
            (places == label).astype(np.float64), drift.PRESENT, monthly=monthly(seconds), level=level
        )
        total = np.logaddexp(total, course.evidence)
        if course.change is not None and (best is None or course.evidence.max() > best.evidence.max()):
            best, best_label = course, label
    evidence = total - math.log(len(names))
    mean = Course(evidence, best.change if best is not None and (evidence >= 0).any() else None)
    if mean.change is None or not _stands(mean, seconds, standing_since):
        return SignalCourse(name, title, seconds, evidence, tested=True)
    bits = (places == best_label).astype(np.float64)
    label_name = str(names[best_label])
    among = " among unsure answers" if name == "unsure labels" else ""
    signal = Signal(f"label {label_name}", f"share of '{label_name}'{among}", seconds, bits, (), LABEL_WEIGHT, 0.005)
    alarm = _alarm(signal, evidence, mean.change.since)
    return SignalCourse(name, title, seconds, evidence, True, [alarm] if alarm is not None else [])
