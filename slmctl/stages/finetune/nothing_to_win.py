"""The doubt whether to train: a cheap model answers so many validation
rows right that next to nothing is left.
"""

from __future__ import annotations

from typing import Any

from slmctl import console
from slmctl.inference import TAGGER
from slmctl.metrics import encoder_head, gates, linear_baseline
from slmctl.pipeline.graph import PREPARED, Doubt, Project

BARELY = 0.99  # share of right answers, surely, above which less than a point is left


def doubt(project: Project) -> Doubt | None:
    """Returns a doubt if a cheap model leaves next to nothing to win, else None.

    Raises:
        IntegrityError: The base or the data set has not been made.
    """
    words = project.artifact(PREPARED).metrics.get("linear")
    models = {linear_baseline.NAME: ("a linear model (TF-IDF)", words)}
    if project.config.encode is not None:
        titles = {
            encoder_head.NAME: "a linear model on the encoder",
            TAGGER: "an encoder that tags words",
        }
        name = TAGGER if project.config.task.has("schema") else encoder_head.NAME
        models[name] = titles[name], project.artifact("encoder").metrics
    for model, (title, score) in models.items():
        if score and _wins_nothing(score):
            return _doubt(title, score, gates.CHEAP[model])
    return None


def _wins_nothing(score: dict[str, Any]) -> bool:
    """True if a model that answers validation rows so well leaves next to nothing to win."""
    if score["rows"] < linear_baseline.FEWEST:
        return False
    return bool(score["right"] == score["rows"] or score["interval"][0] >= BARELY)


def _doubt(title: str, score: dict[str, Any], release: str) -> Doubt:
    """The doubt beside a cheap model; `release` are the options that release that one."""
    low, high = map(console.percent, score["interval"])
    text = (
        f"{title} answers {score['right']:,} of {score['rows']:,} validation rows right "
        f"({low} to {high}), so a trained one has next to nothing to win"
    )
    return Doubt(
        text,
        "nothing_to_win",
        (f"to release it: {release}",),
        "train all the same?",
        f"{release} releases that one; to train all the same: slmctl run --yes",
    )
