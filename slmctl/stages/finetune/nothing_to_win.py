"""The doubt whether to train: a cheap model answers so many validation
rows right that next to nothing is left.
"""

from __future__ import annotations

from typing import Any

from slmctl import console
from slmctl.metrics import baseline, linear_baseline
from slmctl.metrics.baseline import BASELINES, Baseline, TfidfLogistic
from slmctl.pipeline.graph import PREPARED, Doubt, Project

BARELY = 0.99  # share of right answers, surely, above which less than a point is left


def doubt(project: Project) -> Doubt | None:
    """Returns a doubt if a cheap model leaves next to nothing to win, else None.

    Raises:
        IntegrityError: The base or the data set has not been made.
    """
    words = BASELINES[TfidfLogistic.name]
    scores = {words: project.artifact(PREPARED).metrics.get("linear")}
    if project.config.encode is not None:
        on_encoder = baseline.of_encoder(tags=project.config.task.has("schema"))
        scores[on_encoder] = project.artifact("encoder").metrics
    for cheap, score in scores.items():
        if score and _wins_nothing(score):
            return _doubt(cheap, score)
    return None


def _wins_nothing(score: dict[str, Any]) -> bool:
    """True if a model that answers validation rows so well leaves next to nothing to win."""
    if score["rows"] < linear_baseline.FEWEST:
        return False
    return bool(score["right"] == score["rows"] or score["interval"][0] >= BARELY)


def _doubt(cheap: Baseline, score: dict[str, Any]) -> Doubt:
    low, high = map(console.percent, score["interval"])
    text = (
        f"{cheap.in_words} answers {score['right']:,} of {score['rows']:,} validation rows right "
        f"({low} to {high}), so a trained one has next to nothing to win"
    )
    return Doubt(
        text,
        "nothing_to_win",
        (f"to release it: {cheap.release}",),
        "train all the same?",
        f"{cheap.release} releases that one; to train all the same: slmctl run --yes",
    )
