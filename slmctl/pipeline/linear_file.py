"""The linear model as files: `runs/linear.npz`, its weights, and `runs/linear.py`, a program that loads them.

It is the baseline of the report, for data on which a fine-tuned model has nothing to win.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.errors import IntegrityError, UsageError
from slmctl.metrics import encoder_head, gates, label_sum, linear_baseline, stored_arrays
from slmctl.pipeline.graph import PREPARED, Doubt, Project
from slmctl.task.kinds import kind_of
from slmctl.task.records import read_records

KIND = "linear"  # names it among the models that `slmctl predict` takes
WEIGHTS, PROGRAM = "linear.npz", "linear.py"
BARELY = 0.99  # share of right answers, surely, above which less than a point is left
LOADING = f'''"""Label texts by the linear model: python {PROGRAM} "a text" "another text"."""
import sys
from pathlib import Path

import numpy as np
from scipy.sparse import hstack
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

kept, parts = np.load(Path(__file__).with_name("{WEIGHTS}")), []
for name, settings in {linear_baseline.FEATURES!r}.items():
    if name + "_places" in kept:
        hashing = HashingVectorizer(n_features={linear_baseline.PLACES}, alternate_sign=False, norm=None, **settings)
        rows = hashing.transform(sys.argv[1:])[:, kept[name + "_places"]]
        rows.data = (1 + np.log(rows.data)) * kept[name + "_idf"][rows.indices]
        parts.append(normalize(rows))
sums = hstack(parts) @ kept["coef"].astype(float).T + kept["intercept"]
sums = np.hstack([-sums, sums]) if sums.shape[1] == 1 else sums
print(*kept["labels"][sums.argmax(axis=1)], sep="\\n")
'''


ANSWERS = f"slmctl predict {KIND} --input FILE --output FILE"


def nothing_to_win(project: Project) -> Doubt | None:
    """Returns a doubt if a cheap model leaves next to nothing to win, else None; writes a linear model's weights first.

    Raises:
        IntegrityError: The base or the data set has not been made.
    """
    words = linear_baseline.NAME
    models = {words: ("a linear model (TF-IDF)", project.artifact(PREPARED).metrics.get("linear"))}
    if project.config.encode is not None:
        models[encoder_head.NAME] = "a linear model on the encoder", project.artifact("encoder").metrics
    for model, (name, score) in models.items():
        if (
            score
            and score["rows"] >= linear_baseline.FEWEST
            and (score["right"] == score["rows"] or score["interval"][0] >= BARELY)
        ):
            low, high = map(console.percent, score["interval"])
            reason = (
                f"{name} answers {score['right']:,} of {score['rows']:,} validation rows right ({low} to {high}), so a "
                "trained one has next to nothing to win"
            )
            lines = (*(_weights(project) if model == words else ()), f"to release it: {gates.CHEAP[model]}")
            hint = f"{gates.CHEAP[model]} releases that one; to train all the same: slmctl run --yes"
            return Doubt(reason, lines, "train all the same?", hint)
    return None


def _weights(project: Project) -> Iterator[str]:
    path = written(project)
    yield f"its weights: {path}; {path.with_name(PROGRAM)} loads them, and {ANSWERS} answers by them"


def written(project: Project) -> Path:
    """The file of the weights that the current data set gives, written where it is not there, with its program.

    Raises:
        DataError: There is nothing to learn from.
        IntegrityError: The data set has not been made.
        UsageError: The task has no labels.
    """
    kind = project.config.task.kind
    if not kind_of(kind).chooses:
        raise UsageError(f"the linear model answers for classify, and the kind is {kind}", hint="slmctl predict gguf")
    prepared, path = project.artifact(PREPARED), project.runs / WEIGHTS
    with contextlib.suppress(FileNotFoundError, IntegrityError), stored_arrays.opened(path) as kept:
        if kept.text("made_of") == prepared.digest:
            return path
    train, validation = (read_records(prepared.file(f"{split}.jsonl")) for split in ("train", "validation"))
    model = label_sum.fit(
        [record.input for record in train], None, [record.answer for record in train],
        choosing=([record.input for record in validation], None), chosen=[record.answer for record in validation],
    )  # fmt: skip
    with atomic.file(path) as draft:
        model.write(draft, made_of=prepared.digest)
    with atomic.file(path.with_name(PROGRAM)) as draft:
        draft.write_text(LOADING, encoding="utf-8")
    return path
