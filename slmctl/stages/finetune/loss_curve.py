"""The loss curve of a training as SVG, the same bytes for the same training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slmctl.reports import svg_chart
from slmctl.reports.svg_chart import LineSeries, Point


def svg(history: Sequence[dict[str, Any]], best_step: int) -> str:
    """Training and validation loss over the steps, on a logarithmic scale;
    the validation that is kept is marked.
    """
    train = [Point(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    validation = [_validation(entry, best_step) for entry in history if "eval_loss" in entry]
    series = (
        LineSeries("training loss", train, "c5"),
        LineSeries("validation loss", validation, "c1"),
    )
    title = "Loss of training and validation over the steps"
    return svg_chart.standalone(
        svg_chart.lines(series, title=title, x_label="step", log=True, width=720, height=360)
    )


def _validation(entry: dict[str, Any], best_step: int) -> Point:
    step, loss = entry["step"], entry["eval_loss"]
    title = f"step {step}: {loss:.4f}"
    if step != best_step:
        return Point(step, loss, title, "")
    return Point(step, loss, f"{title} (kept)", f"kept: {loss:.3f}")
