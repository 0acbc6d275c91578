"""`report.json` -> the questions of a page: participants, their scores, and the difference of any two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from slmctl.reports.evaluation_report import EvaluationReport, MetricDifference, PairEntry, ParticipantEntry, entries_of
from slmctl.reports.html_page import Tone

TRIVIAL = ("majority", "copy", "empty", "no_call")  # baselines that show how hard the task is; shown where no other is
IN_WORDS = {
    "majority": "always answering the most frequent label",
    "tfidf_logistic": "the linear baseline",
    "copy": "copying the input",
    "no_call": "never calling a tool",
    "empty": "answering nothing",
}


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}"


def tone(difference: float, *, real: bool) -> Tone:
    """The tone of a difference: neutral where it is not significant."""
    return "" if not real else "good" if difference > 0 else "bad"


@dataclass(frozen=True)
class Difference:
    """The primary metric of the second of two participants less that of the first, with its interval."""

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
        """Good or bad where it is significant."""
        return tone(self.value, real=self.real)

    @property
    def text(self) -> str:
        """`+1.9`, in percentage points."""
        return points(self.value)

    @property
    def span(self) -> str:
        """The interval, in percentage points."""
        return f"{points(self.low)} to {points(self.high)}"

    @property
    def long_text(self) -> str:
        """The difference with its interval and p-value."""
        return f"{self.text} ({self.span}) {self.chance}"

    @property
    def chance(self) -> str:
        """`p=0.03`; empty where the report holds no p-value."""
        return "" if self.p is None else f"p={self.p:.2g}"


@dataclass(frozen=True)
class ReportView:
    """A report with derived values: names in order, scores, differences in either direction."""

    report: EvaluationReport

    @property
    def metric(self) -> str:
        return str(self.report["primary_metric"])

    @property
    def confidence(self) -> float:
        """The coverage of the intervals."""
        return self.report["confidence"]

    @cached_property
    def entries(self) -> dict[str, ParticipantEntry]:
        """Baselines and models by name, in the order of the report."""
        return entries_of(self.report)

    @cached_property
    def models(self) -> list[str]:
        return [name for name in self.entries if name in self.report["models"]]

    @cached_property
    def competing(self) -> list[str]:
        """All but the trivial baselines; the best of these where there is no other baseline."""
        return [name for name in self.entries if name not in TRIVIAL or name == self.baseline]

    @cached_property
    def focus(self) -> str:
        """The model to release."""
        return self.report["focus"]

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
        made = [name for name in self.models if self.entries[name]["kind"] in ("merged", "adapter")]
        return made[-1] if made and made[-1] != self.focus else None

    @property
    def endpoints(self) -> Sequence[str]:
        return [name for name in self.models if self.entries[name]["kind"] == "endpoint"]

    def score(self, name: str) -> float:
        """The primary metric."""
        return float(self.entries[name]["metrics"][self.metric])

    def interval(self, name: str) -> tuple[float, float]:
        low, high = self.entries[name]["interval"]
        return float(low), float(high)

    def pair(self, first: str, second: str) -> PairEntry | None:
        """The entry of a pair, `second` less `first`, in whichever order the report holds it."""
        pairs = self.report["pairs"]
        entry, reverse = pairs.get(f"{first}|{second}"), pairs.get(f"{second}|{first}")
        if entry is not None or reverse is None:
            return entry
        return {
            **reverse,
            "only_first": reverse["only_second"],
            "only_second": reverse["only_first"],
            "metrics": {name: _reversed(metric) for name, metric in reverse["metrics"].items()},
            "slices": [{**entry, "difference": -entry["difference"]} for entry in reverse["slices"]],
        }

    def difference(self, first: str, second: str) -> Difference | None:
        """The primary metric of `second` less that of `first`; None for a pair without rows in common."""
        pair = self.pair(first, second)
        if pair is None or self.metric not in pair["metrics"]:
            return None
        entry = pair["metrics"][self.metric]
        low, high = entry["interval"]
        return Difference(entry["difference"], low, high, entry.get("p"), entry.get("detectable"))


def _reversed(metric: MetricDifference) -> MetricDifference:
    low, high = metric["interval"]
    return {**metric, "difference": -metric["difference"], "interval": [-high, -low]}
