"""A report read: who took part, what each scored, and how any two compare, whatever the report leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slmctl.reports.html_page import Tone

TRIVIAL = ("majority", "copy", "empty")  # baselines that say how hard the task is, and compete with nobody
SAID = {
    "majority": "always answering the most frequent label",
    "tfidf_logistic": "the linear baseline",
    "copy": "copying the input",
    "empty": "answering nothing",
}


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}"


def tone(difference: float, *, real: bool) -> Tone:
    """The tone of a difference: none where it may be chance."""
    return "" if not real else "good" if difference > 0 else "bad"


@dataclass(frozen=True)
class Difference:
    """How far the second of two lies above the first, in a share, with its interval."""

    value: float
    low: float
    high: float
    p: float | None
    detectable: float | None

    @property
    def real(self) -> bool:
        """Whether the interval leaves out no difference at all."""
        return self.low > 0 or self.high < 0

    @property
    def tone(self) -> Tone:
        """Good or bad where it is real."""
        return tone(self.value, real=self.real)

    @property
    def told(self) -> str:
        """`+1.9`, in points: of shares, percent would be ambiguous."""
        return points(self.value)

    @property
    def span(self) -> str:
        """The interval, in points."""
        return f"{points(self.low)} to {points(self.high)}"

    @property
    def chance(self) -> str:
        """`p=0.03`, where it is known."""
        return "" if self.p is None else f"p={self.p:.2g}"


@dataclass(frozen=True)
class Measured:
    """`report.json` with the questions that a page asks of it."""

    report: dict[str, Any]

    @property
    def metric(self) -> str:
        return str(self.report["primary_metric"])

    @property
    def confidence(self) -> float:
        """Of the intervals."""
        return float(self.report.get("confidence", 0.95))

    @cached_property
    def entries(self) -> dict[str, dict[str, Any]]:
        """Baselines and models by name, in the order of the report."""
        known = {**self.report.get("baselines", {}), **self.report["models"]}
        order = self.report.get("participants") or list(known)
        return {name: known[name] for name in order if name in known}

    @cached_property
    def models(self) -> list[str]:
        return [name for name in self.entries if name in self.report["models"]]

    @cached_property
    def competing(self) -> list[str]:
        """All but the trivial baselines; one of these where there is no better baseline."""
        return [name for name in self.entries if name not in TRIVIAL or name == self.baseline]

    @cached_property
    def focus(self) -> str:
        """The model that would ship."""
        return str(self.report.get("focus") or self.models[-1])

    @cached_property
    def best(self) -> str:
        """The best of the models; of two equals the one that would ship."""
        return max(self.models, key=lambda name: (self.score(name), name == self.focus))

    @cached_property
    def baseline(self) -> str | None:
        """The best of the baselines."""
        names = [name for name in self.entries if name not in self.report["models"]]
        return max(names, key=self.score, default=None)

    @cached_property
    def source(self) -> str | None:
        """The model that the focus was made from."""
        made = [name for name in self.models if self.entries[name].get("kind") in ("merged", "adapter")]
        return made[-1] if made and made[-1] != self.focus else None

    @property
    def endpoints(self) -> Sequence[str]:
        return [name for name in self.models if self.entries[name].get("kind") == "endpoint"]

    def score(self, name: str) -> float:
        """The primary metric."""
        return float(self.entries[name]["metrics"][self.metric])

    def interval(self, name: str) -> tuple[float, float]:
        low, high = self.entries[name]["interval"]
        return float(low), float(high)

    def pair(self, first: str, second: str) -> dict[str, Any] | None:
        """What the report says of two, whichever stands first there, as if `first` did."""
        pairs = self.report.get("pairs", {})
        forth, back = pairs.get(f"{first}|{second}"), pairs.get(f"{second}|{first}")
        if forth is not None or back is None:
            return dict(forth) if forth is not None else None
        turned = {"only_first": back.get("only_second"), "only_second": back.get("only_first")}
        metrics = {
            name: {
                **found,
                "difference": -found["difference"],
                "interval": [-found["interval"][1], -found["interval"][0]],
            }
            for name, found in back.get("metrics", {}).items()
        }
        slices = [{**one, "difference": -one["difference"]} for one in back.get("slices", [])]
        return {**back, **turned, "metrics": metrics, "slices": slices}

    def difference(self, first: str, second: str) -> Difference | None:
        """How far `second` lies above `first` in the primary metric."""
        found = ((self.pair(first, second) or {}).get("metrics") or {}).get(self.metric)
        if found is None:
            return None
        low, high = found["interval"]
        return Difference(found["difference"], low, high, found.get("p"), found.get("detectable"))
