"""`runs/sweep.html`: the page of the latest sweep, with every trial."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from slmctl import console
from slmctl.console import percent
from slmctl.reports import html_page, svg_chart
from slmctl.reports.html_page import Cell, Chart, Figure, Page, PageSection, Table, count
from slmctl.reports.svg_chart import Dot

if TYPE_CHECKING:
    from slmctl.metrics.trial_choice import TrialChoice
    from slmctl.pipeline.sweep import SweepResult, Trial

FILENAME = "sweep.html"


def write(result: SweepResult) -> Path:
    """Write the page of a sweep; returns its path."""
    from slmctl.artifacts import atomic

    path = result.request.project.runs / FILENAME
    with atomic.file(path) as draft:
        html_page.write(draft, page(result))
    return path


def page(result: SweepResult) -> Page:
    """The page: the choice, the finalists, and every trial."""
    project = result.request.project.config
    chosen = result.chosen
    sections = [_finalists(result.choice)] if result.choice else []
    sections.append(PageSection("Trials", list(_rounds(result)), lead="Lower is better; every trial is an adapter."))
    return Page(
        kicker=f"Sweep · {project.project} {project.version}",
        headline=_headline(result),
        lead="Chosen by validation loss, in nats an answer token. No test row was read.",
        tone="good" if chosen.values else "",
        figures=list(_figures(result)),
        sections=sections,
        foot="Made by slmctl sweep. slmctl ls adapter lists the trials, slmctl gc removes those that nothing needs.",
    )


def _headline(result: SweepResult) -> str:
    if result.choice is None:
        return "The budget ended before two finalists were trained; the settings stay"
    if not result.chosen.values:
        return "No candidate is better than the settings of today by more than chance"
    verdict = next(each for each in result.choice.verdicts if each.finalist is result.choice.chosen)
    share = percent(verdict.gain.mean / result.choice.incumbent.loss)
    return f"{result.chosen.name} lowers validation loss by {share}"


def _figures(result: SweepResult) -> Iterator[Figure]:
    made = result.request
    yield Figure("Candidates", count(len(made.tried)), "the settings of today among them")
    yield Figure("Trials", count(len(result.trials)), f"{count(made.rows.validation, 'row')} validate each")
    yield Figure("Time", console.duration(result.seconds), f"of {console.duration(made.budget_s)}")
    if result.choice:
        incumbent, chosen = result.choice.incumbent, result.choice.chosen
        yield Figure("Loss today", f"{incumbent.loss:.3f}", "nats a token, two seeds")
        if chosen is not incumbent:
            yield Figure("Loss chosen", f"{chosen.loss:.3f}", "nats a token, two seeds", "good")


def _finalists(choice: TrialChoice) -> PageSection:
    today = choice.incumbent.loss
    dots = [
        Dot(
            verdict.finalist.name,
            -verdict.gain.mean / today,
            -(verdict.gain.mean + min(verdict.gain.error, today)) / today,
            -(verdict.gain.mean - min(verdict.gain.error, today)) / today,
            f"{-100 * verdict.gain.mean / today:+.1f} % (± {100 * min(verdict.gain.error, today) / today:.1f})",
            "c1" if verdict.better else "c5",
        )
        for verdict in choice.verdicts
    ]
    title = "Change of validation loss from the settings of today, with one standard error"
    wide, slim = svg_chart.dots_in_two_widths(dots, title=title, reference=(0.0, "slmctl.yaml"), points=True)
    rows: list[list[str | Cell]] = [
        [
            Cell(verdict.finalist.name), f"{verdict.finalist.loss:.4f}",
            " ".join(f"{loss:.4f}" for loss in verdict.finalist.losses), f"{verdict.gain.mean:.4f}",
            f"{verdict.gain.error:.4f}", f"{verdict.bound:.4f}",
            Cell("yes" if verdict.better else "no", "good" if verdict.better else ""),
        ]
        for verdict in choice.verdicts
    ]  # fmt: skip
    own: list[str | Cell] = [
        Cell(choice.incumbent.name),
        f"{today:.4f}",
        " ".join(f"{loss:.4f}" for loss in choice.incumbent.losses),
    ]
    head = ("finalist", "loss", "by seed", "gain", "standard error", "gain at least", "better than chance")
    note = (
        "The standard error is over records and seeds. A candidate replaces the settings of today only where the gain "
        "that there is at least, with 95 % confidence over all candidates tried, is above 0; of those within one "
        "standard error of the best the cheapest is taken."
    )
    return PageSection(
        "Finalists",
        [Chart(title, wide, slim=slim), Table("Finalists", head, [[*own, "", "", "", ""], *rows], note=note)],
    )


def _rounds(result: SweepResult) -> Iterator[Table]:
    for number, trials in enumerate(result.rounds, 1):
        share = percent(trials[0].share, 0) if trials else ""
        rows = [_row(trial) for trial in sorted(trials, key=lambda trial: (trial.loss is None, trial.loss or 0.0))]
        yield Table(f"Round {number}: {share} of the rows", ("candidate", "seed", "loss", "time", "adapter"), rows)


def _row(trial: Trial) -> list[str | Cell]:
    if trial.fault:
        return [trial.candidate, str(trial.seed), Cell("failed", "bad", trial.fault), "", ""]
    spent = console.duration(trial.seconds) if trial.seconds else "kept"
    return [trial.candidate, str(trial.seed), f"{trial.loss:.4f}", spent, trial.path.rpartition("/")[2][:8]]
