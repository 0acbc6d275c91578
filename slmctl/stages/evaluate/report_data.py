"""A view of `report.json` for its page: participants, their
scores, and the difference of any two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from slmctl.console import percent
from slmctl.metrics.baseline import BASELINES
from slmctl.models import class_of
from slmctl.reports.evaluation_report import (
    CHECKS,
    CalibrationFigures,
    ClassFigures,
    EvaluationReport,
    MetricDifference,
    PairEntry,
    ParticipantEntry,
    SliceDifference,
    SliceEntry,
    entries_of,
    file_of,
    pair_of,
    released,
)
from slmctl.reports.html_page import Tone, points

if TYPE_CHECKING:
    from slmctl.models.model import Model

SLICES = 30  # slices with a difference that are listed


def _is_trivial(name: str) -> bool:
    return name in BASELINES and BASELINES[name].is_trivial


def tone(difference: float, *, real: bool) -> Tone:
    """The tone of a difference: neutral where it is not significant."""
    return "" if not real else "good" if difference > 0 else "bad"


def p_text(p: float) -> str:
    """A p-value for a table."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def p_equation(p: float) -> str:
    """A p-value for a sentence."""
    return f"p {p_text(p)}" if p < 0.001 else f"p={p_text(p)}"


@dataclass(frozen=True)
class Difference:
    """The difference of two participants in the primary metric,
    second less first, with its interval.
    """

    value: float
    low: float
    high: float
    p: float | None
    detectable: float | None

    @property
    def real(self) -> bool:
        """True where the interval does not contain 0: the difference is significant."""
        return self.low > 0 or self.high < 0

    @property
    def tone(self) -> Tone:
        return tone(self.value, real=self.real)

    @property
    def text(self) -> str:
        return points(self.value)

    @property
    def span(self) -> str:
        return f"{points(self.low)} to {points(self.high)}"

    @property
    def p_text(self) -> str:
        return "" if self.p is None else p_text(self.p)

    @property
    def chance(self) -> str:
        """The p-value with what it says, such as `p < 0.001: not chance`; empty without one."""
        return (
            ""
            if self.p is None
            else f"{p_equation(self.p)}: {'not' if self.real else 'may be'} chance"
        )

    @classmethod
    def read(cls, entry: MetricDifference) -> Difference:
        low, high = entry["interval"]
        return cls(entry["difference"], low, high, entry.get("p"), entry.get("detectable"))


@dataclass(frozen=True)
class ReportView:
    report: EvaluationReport

    @property
    def metric(self) -> str:
        return str(self.report["primary_metric"])

    @property
    def confidence(self) -> float:
        return self.report["confidence"]

    @cached_property
    def entries(self) -> dict[str, ParticipantEntry]:
        return entries_of(self.report)

    @cached_property
    def models(self) -> list[str]:
        return [name for name in self.entries if name in self.report["models"]]

    @cached_property
    def competing(self) -> list[str]:
        """All participants but the trivial baselines; the best of these
        stays if there is no other baseline.
        """
        return [name for name in self.entries if not _is_trivial(name) or name == self.baseline]

    @property
    def focus(self) -> str:
        """The model to release."""
        return released(self.report)

    @property
    def file(self) -> str:
        """The GGUF file of the model to release, alone; a model
        without linear models added is its own.
        """
        return file_of(self.report, self.focus)

    @cached_property
    def best(self) -> str:
        """The model with the highest score; of equal ones the focus."""
        return max(self.models, key=lambda name: (self.score(name), name == self.focus))

    @cached_property
    def baseline(self) -> str | None:
        """The baseline with the highest score."""
        names = [name for name in self.entries if name not in self.report["models"]]
        return max(names, key=self.score, default=None)

    @cached_property
    def source(self) -> str | None:
        """The merged model, or the adapter, that the focus was made from."""
        made = [name for name in self.models if self.kind(name).is_source]
        return made[-1] if made and made[-1] != self.focus else None

    @cached_property
    def top(self) -> float:
        return max(map(self.score, self.entries))

    @property
    def winning_baselines(self) -> int:
        """The number of baselines that are no worse than the best
        trained model; their remarks come first.
        """
        trained = [self.score(name) for name in self.models if self.kind(name).is_trained_here()]
        return (
            sum(self.score(name) >= max(trained) for name in self.report["baselines"])
            if trained
            else 0
        )

    @property
    def other_metrics(self) -> list[str]:
        names = dict.fromkeys(name for entry in self.entries.values() for name in entry["metrics"])
        return [name for name in names if name != self.metric]

    @property
    def checks(self) -> list[str]:
        """The checks of drafts that the report has; empty for other
        tasks, and for reports without them.
        """
        return [check for check in CHECKS if check in self.entries[self.focus]["metrics"]]

    @property
    def endpoint(self) -> str | None:
        return next((name for name in self.models if self.kind(name).is_remote), None)

    def kind(self, name: str) -> type[Model]:
        """The kind of a participant; of a baseline the class that says nothing special."""
        return class_of(self.entries[name]["kind"])

    def score(self, name: str) -> float:
        return float(self.entries[name]["metrics"][self.metric])

    def interval(self, name: str) -> tuple[float, float]:
        low, high = self.entries[name]["interval"]
        return float(low), float(high)

    def span(self, name: str) -> str:
        """The interval in words: `83.0 % to 92.0 %`."""
        low, high = self.interval(name)
        return f"{percent(low)} to {percent(high)}"

    def pair(self, first: str, second: str) -> PairEntry | None:
        return pair_of(self.report, first, second)

    def difference(self, first: str, second: str) -> Difference | None:
        """The difference in the primary metric, `second` less `first`;
        None for a pair without rows in common.
        """
        pair = self.pair(first, second)
        if pair is None or self.metric not in pair["metrics"]:
            return None
        return Difference.read(pair["metrics"][self.metric])

    @cached_property
    def compared(self) -> list[tuple[str, str, Difference, PairEntry]]:
        """(second, first, their difference, their entry) of
        every pair of competing participants.
        """
        return [
            (second, first, difference, pair)
            for number, second in enumerate(self.competing)
            for first in self.competing[:number]
            if (difference := self.difference(first, second)) and (pair := self.pair(first, second))
        ]

    @cached_property
    def slice_differences(self) -> list[tuple[str, SliceDifference]]:
        """Slices on which the focus differs from another model, the smallest p-value first."""
        entries = [
            (entry["p_holm"], entry["p"], name, entry)
            for name in self.competing
            if not self.kind(name).untuned and (pair := self.pair(name, self.focus))
            for entry in pair["slices"]
        ]
        return [
            (name, entry)
            for _, _, name, entry in sorted(entries, key=lambda each: each[:3])[:SLICES]
        ]

    @cached_property
    def beside_release(self) -> list[tuple[str, int, float, float, Difference]]:
        """(rows, their number, score of the focus, score of the release,
        difference), for all, old and new rows.
        """
        release = self.report["release"]
        focus = self.focus
        metric = self.metric
        lines = []
        pair = self.pair(release["name"], focus)
        name = release["name"]
        if pair is not None and metric in pair["metrics"]:
            lines.append(
                (
                    "all",
                    pair["n"],
                    self.score(focus),
                    self.score(name),
                    Difference.read(pair["metrics"][metric]),
                )
            )
        for title, part in release["rows"].items():
            if focus in part["differences"]:
                values, difference = (
                    part["values"],
                    Difference.read(part["differences"][focus][metric]),
                )
                lines.append(
                    (title, part["n"], values[focus][metric], values[name][metric], difference)
                )
        return lines

    @cached_property
    def slices(self) -> list[SliceEntry]:
        """The slices that the focus answered, the weakest first."""
        focus = self.focus
        slices = [entry for entry in self.report["slices"] if focus in entry["values"]]
        return sorted(
            slices, key=lambda entry: (entry["values"][focus], -entry["n"], entry["name"])
        )

    def parts(self, key: Literal["per_class", "fields"]) -> list[tuple[str, ClassFigures]]:
        parts = self.entries[self.focus].get(key) or {}
        return sorted(parts.items(), key=lambda part: (part[1]["f1"], -part[1]["support"], part[0]))

    def parts_of_baseline(self, key: Literal["per_class", "fields"]) -> dict[str, ClassFigures]:
        """The figures of `parts` for the best baseline; empty for a trivial one."""
        name = self.baseline
        return self.entries[name].get(key) or {} if name and not _is_trivial(name) else {}

    @property
    def calibrations(self) -> list[tuple[str, CalibrationFigures]]:
        entries = ((name, self.entries[name].get("calibration")) for name in self.competing)
        return [(name, calibration) for name, calibration in entries if calibration]
