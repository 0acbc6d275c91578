"""A report and the project around it -> the opening of its page: where it comes from, and what it means in a day.

A report follows from predictions and data alone. What lies around it (gates, training, policy) changes without a new
measurement, so the page inside the artifact lacks it, and `slmctl evaluate` writes a second one with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from slmctl import console
from slmctl.metrics.answer_metrics import SHARES
from slmctl.reports import svg_chart
from slmctl.reports.html_page import Block, Chart, Figure, Notice, PageSection, Tone, count, either
from slmctl.reports.svg_chart import Bar, LineSeries, Point
from slmctl.stages.evaluate.report_data import ReportView

REQUESTS = 100  # a day, of the example
POINTS = 400  # of the curve of the training loss


@dataclass(frozen=True)
class Training:
    """The training of the model to release; losses are (step, loss), `seconds` those of the whole stage."""

    steps: int
    best_step: int
    seconds: float
    loss_before: float | None
    loss: float | None
    train_losses: Sequence[tuple[int, float]] = ()
    validation_losses: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class PolicyShares:
    """Share of answers that the policy keeps, and share of these that are wrong, on the rows that tested it."""

    kept: float
    error: float
    rows: int


@dataclass(frozen=True)
class Opening:
    """The project around a report; `gates` are the results of today's gates, a sentence each with its verdict."""

    project: str
    base: str
    data: str
    date: str
    gates: Sequence[tuple[bool, str]] = ()
    training: Training | None = None
    policy: PolicyShares | None = None

    @property
    def failed(self) -> int:
        return sum(not passed for passed, _ in self.gates)


def facts(opening: Opening) -> Iterator[Figure]:
    """One line each: project, base, data, date, training, gates."""
    yield Figure("Project", opening.project)
    if opening.base:
        yield Figure("Base", opening.base)
    if opening.data:
        yield Figure("Data", opening.data)
    yield Figure("Measured", opening.date)
    if training := opening.training:
        losses = (
            f", validation loss {training.loss_before:.3f} to {training.loss:.3f}"
            if training.loss is not None and training.loss_before is not None
            else ""
        )
        yield Figure("Training", f"{count(training.steps, 'step')} in {console.duration(training.seconds)}{losses}")
    yield Figure("Gates", _verdict(opening), tone=_tone(opening))


def notices(opening: Opening) -> Iterator[Notice]:
    """The result of each gate, those that failed first."""
    for passed, text in sorted(opening.gates):
        yield Notice(f"Gate {'passed' if passed else 'failed'}: {text}.", "good" if passed else "bad")


def section(view: ReportView, opening: Opening | None) -> PageSection:
    """The work of a day, and the curve of the training."""
    return PageSection("At a glance", [*_day(view, opening), *_curve(opening)])


def _verdict(opening: Opening) -> str:
    if not opening.gates:
        return "none is set: gates in slmctl.yaml stop a release that is not good enough"
    if opening.failed:
        return f"{opening.failed} of {len(opening.gates)} failed: it is not published"
    return f"{either(len(opening.gates), 'the one there is', f'all {len(opening.gates)}')} passed"


def _tone(opening: Opening) -> Tone:
    return "" if not opening.gates else "bad" if opening.failed else "good"


def _day(view: ReportView, opening: Opening | None) -> Iterator[Block]:
    """Of 100 requests a day: how many the model to release answers right, and what they cost."""
    if view.metric not in SHARES:
        return
    policy = opening.policy if opening is not None else None
    if policy is not None:
        wrong, away = round(REQUESTS * policy.kept * policy.error), round(REQUESTS * (1 - policy.kept))
        right = REQUESTS - wrong - away
        how = f"As the policy decides, by {count(policy.rows, 'calibration row')}; escalated is what it does not keep."
    else:
        right, away = round(REQUESTS * view.score(view.focus)), 0
        wrong = REQUESTS - right
        how = "Without a policy every answer is kept; slmctl calibrate fits one that escalates what may be wrong."
    bars = [Bar("right", right, colour="good"), Bar("wrong", wrong, colour="bad"), Bar("escalated", away, colour="c4")]
    title = f"Of {REQUESTS} requests a day, with {view.focus}"
    svg = svg_chart.stack([bar for bar in bars if bar.value or bar.label != "escalated"], title=title)
    yield Chart(title, svg, f"{how} {_cost(view)}")


def _cost(view: ReportView) -> str:
    prices = view.report["break_even"]
    entry = prices["models"].get(view.focus) if prices else None
    if prices is None or entry is None:
        return "With evaluate.prices the page states their cost too."
    currency = prices["currency"]
    api = entry["api_per_1000_rows"] * REQUESTS / 1000
    text = f"Through an API they cost {api:.4f} {currency} a day"
    if even := entry.get("break_even_rows_per_hour"):
        text += (
            f", on a machine that runs day and night {24 * prices['machine_per_hour']:.2f} {currency}: it is the "
            f"cheaper one from {count(round(24 * even), 'request')} a day on"
        )
    return f"{text}."


def _curve(opening: Opening | None) -> Iterator[Block]:
    training = opening.training if opening is not None else None
    if training is None or len(training.train_losses) + len(training.validation_losses) < 2:
        return
    every = max(1, len(training.train_losses) // POINTS)
    train = [Point(step, loss) for step, loss in training.train_losses[::every]]
    validation = [
        Point(step, loss, f"step {step}: {loss:.4f}", f"kept: {loss:.3f}" if step == training.best_step else "")
        for step, loss in training.validation_losses
    ]
    series = (LineSeries("training loss", train, "c5"), LineSeries("validation loss", validation, "c1"))
    title = "Loss of training and validation"
    svg = svg_chart.lines([each for each in series if each.points], title=title, x_label="step", log=True)
    kept = f"The adapter of step {training.best_step} is kept: the last one, unless an earlier one was surely better."
    yield Chart(title, svg, kept)
