"""The figures of a labelling -> `report.html`."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from slmctl.network.guard import Receipt
from slmctl.reports import html_page, svg_chart
from slmctl.reports.svg_chart import LineSeries, Point
from slmctl.stages.label import report_facts
from slmctl.stages.label.report_facts import LabelFacts


def write(out: Path, facts: LabelFacts, receipt: Receipt) -> None:
    curve, cost = _curve(facts), report_facts.cost_sentence(facts)
    html_page.write(
        out / "report.html", "label.html", facts=facts, receipt=receipt, curve=curve, cost=cost
    )


def _curve(facts: LabelFacts) -> Markup | None:
    """The share of right labels and its bound over the share that a threshold accepts."""
    curve = facts["curve"]
    if not curve:
        return None
    low = max(0.0, min(1 - bound for _, _, bound in curve) - 0.02)
    chosen = Point(
        facts["kept_gold"], 1 - (facts["error_bound"] or 0.0), "the threshold", "threshold"
    )
    return svg_chart.lines(
        [
            LineSeries("right", [Point(kept, 1 - error) for kept, error, _ in curve], "c1"),
            LineSeries(
                "bound",
                [Point(kept, max(low, 1 - bound)) for kept, _, bound in curve],
                "c5",
                dashed=True,
            ),
            LineSeries("", [chosen], "c2"),
        ],
        title="Accepted share and right labels",
        x_label="share of gold rows accepted",
        y_label="right labels",
        x_range=(0.0, 1.0),
        y_range=(low, 1.0),
        percent=True,
        width=2 * svg_chart.WIDTH,
        height=300,
    )
