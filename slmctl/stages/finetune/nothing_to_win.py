"""The doubt whether to train: a cheap model answers so many validation
rows right that next to nothing is left.
"""

from __future__ import annotations

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
    for model, (name, score) in models.items():
        if (
            score
            and score["rows"] >= linear_baseline.FEWEST
            and (score["right"] == score["rows"] or score["interval"][0] >= BARELY)
        ):
            low, high = map(console.percent, score["interval"])
            text = (
                f"{name} answers {score['right']:,} of {score['rows']:,} validation rows right "
                f"({low} to {high}), so a "
                "trained one has next to nothing to win"
            )
            hint = (
                f"{gates.CHEAP[model]} releases that one; to train all the same: slmctl run --yes"
            )
            return Doubt(
                text,
                "nothing_to_win",
                (f"to release it: {gates.CHEAP[model]}",),
                "train all the same?",
                hint,
            )
    return None
