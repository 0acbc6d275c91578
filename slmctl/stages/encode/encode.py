"""encoder + prepared -> encoder: its GGUF file with linear models on it and on TF-IDF, fitted on training records.

The encoder is not trained, so this takes seconds; a fine-tuned model has to beat it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from slmctl import console
from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.config import EncodeConfig
from slmctl.errors import DataError, UsageError
from slmctl.metrics import encoder_head, linear_baseline
from slmctl.metrics.encoder_head import EncoderModel, Floats, Named
from slmctl.metrics.statistics import hashed_position, wilson
from slmctl.model_files import encoder_source, memory
from slmctl.models.encoder_process import Encoder
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records, require_records

TOGETHER = 512  # texts between two updates of the progress bar
SHARES = (1 / 8, 1 / 4, 1 / 2)  # of the training rows; both cheap models are fitted on each too


class ShareScore(TypedDict):
    """Right answers to the validation rows of both cheap models, fitted on `rows` training rows."""

    rows: int
    encoder: int
    tfidf_logistic: int


class EncodeFacts(TypedDict):
    """The encoder, and its score on the validation rows, which choose the regularisation too.

    `source_sha256` maps the name of the file of weights, as it came, to its hash; `interval` is the 95 % interval of
    the share that is right.
    """

    source: str
    source_sha256: dict[str, str]
    size: int
    dimensions: int
    rows: int
    right: int
    interval: list[float]
    curve: list[ShareScore]


def run(config: EncodeConfig, *, prepared: Artifact, out: Path, encoders: Path) -> EncodeFacts:
    """Write `encoder.gguf`, `head.npz`, `tfidf.npz` where TF-IDF helps, `second_opinion.npz`, and `encoder.json`.

    Args:
        encoders: The folder of encoders that were fetched, which every data set of the project shares.

    Raises:
        DataError: The source holds no sentence encoder, or one that computes NaN, or there are no training records.
        EngineError: llama.cpp cannot run it.
        IntegrityError: Its sha256 is not the pinned one.
        NetworkError: It could not be fetched.
        UsageError: The task has no labels, or the source is not pinned.
    """
    if not (task := Task.read(prepared.path)).rules.chooses:
        raise UsageError(f"a task of kind {task.kind} has no labels for an encoder", hint="slmctl finetune")
    kept, source = encoder_source.kept(config, encoders)
    _link(kept, out / encoder_source.GGUF)
    train, validation = require_records(prepared.file("train.jsonl")), read_records(prepared.file("validation.jsonl"))
    names = [(label, encoder_head.spoken(label)) for label in task.labels] + list(task.descriptions.items())
    texts = [text for _, text in names]
    with Encoder(out / encoder_source.GGUF) as encoder:
        vectors = _vectors(encoder, [record.input for record in (*train, *validation)] + texts)
        dimensions = encoder.size
    if not np.isfinite(vectors).all():
        raise DataError(f"{encoder_source.name(config.encoder)} computes NaN: its weights are damaged",
                        hint="fetch the encoder again, or name another one: encode.encoder")  # fmt: skip
    learned, choosing, spoken = np.split(vectors, [len(train), len(train) + len(validation)])
    named = [label for label, _ in names], spoken
    model, right, tfidf = _fitted(train, learned, validation, choosing, named)
    model.write(out, made_of=prepared.digest)
    encoder_head.opinion(model.head, choosing, [record.answer for record in validation]).write(out)
    facts: EncodeFacts = {
        "source": encoder_source.name(config.encoder),
        "source_sha256": source,
        "size": kept.stat().st_size,
        "dimensions": dimensions,
        "rows": len(validation),
        "right": right,
        "interval": [round(bound, 6) for bound in wilson(right, len(validation))] if validation else [],
        "curve": [],
    }
    if len(validation) >= linear_baseline.FEWEST:
        whole: ShareScore = {"rows": len(train), "encoder": right, "tfidf_logistic": tfidf}
        facts["curve"] = [*_curve(train, validation, learned, choosing, named), whole]
    memory.trim_heap()  # freed by the fits; the same process may answer with the model next
    (out / "encoder.json").write_bytes(canonical(dict(facts)))
    for line in _lines(facts):
        console.say(f"  {line}")
    return facts


def _link(kept: Path, target: Path) -> None:
    """Hard-link a file, or copy it on a file system without hard links."""
    try:
        os.link(kept, target)
    except OSError:
        shutil.copyfile(kept, target)


def _vectors(encoder: Encoder, texts: Sequence[str]) -> Floats:
    blocks = [texts[k : k + TOGETHER] for k in range(0, len(texts), TOGETHER)]
    vectors = []
    with console.progress("encode", len(texts), "rows") as meter:
        for block in blocks:
            vectors.append(encoder.encode(block))
            meter.advance(len(block))
    return np.concatenate(vectors)


def _fitted(
    train: Sequence[Record], vectors: Floats, validation: Sequence[Record], choosing: Floats, named: Named
) -> tuple[EncoderModel, int, int]:
    """Returns (model fitted on `train`, its right answers to the validation rows, those of TF-IDF alone)."""
    texts, chosen = [record.input for record in validation], [record.answer for record in validation]
    model, tfidf = encoder_head.fit(
        [record.input for record in train], vectors, [record.answer for record in train],
        choosing=(texts, choosing), chosen=chosen, named=named,
    )  # fmt: skip
    best = model.scored(texts, choosing)[0].argmax(axis=1) if texts else []
    alone, _ = tfidf.answers(texts) if texts else ([], None)
    right = sum(model.labels[k] == label for k, label in zip(best, chosen, strict=True))
    return model, right, sum(a == b for a, b in zip(alone, chosen, strict=True))


def _curve(
    train: Sequence[Record], validation: Sequence[Record], vectors: Floats, choosing: Floats, named: Named
) -> list[ShareScore]:
    """Both cheap models on shares of the training rows, drawn by a hash: a smaller share is part of a larger one."""
    order = sorted(range(len(train)), key=lambda k: hashed_position(f"curve/{train[k].id}"))
    points: list[ShareScore] = []
    for share in SHARES:
        drawn = order[: max(1, round(share * len(order)))]
        _, right, tfidf = _fitted([train[k] for k in drawn], vectors[drawn], validation, choosing, named)
        points.append({"rows": len(drawn), "encoder": right, "tfidf_logistic": tfidf})
    return points


def _interval(right: int, rows: int) -> str:
    """The 95 % interval of a share of right answers, in words."""
    return " to ".join(map(console.percent, wilson(right, rows)))


def _lines(facts: EncodeFacts) -> list[str]:
    """Sentences on the score, and on the score by number of training rows."""
    if not facts["rows"]:
        return ["no validation rows, so the linear model's regularisation is the strongest"]
    share = console.percent(facts["right"] / facts["rows"])
    scored = f"{share} ({_interval(facts['right'], facts['rows'])}) of {facts['rows']:,} validation rows"
    lines = [f"linear models on the encoder and on TF-IDF get {scored} right, which chose their settings"]
    if facts["curve"]:
        points = [
            f"{point['rows']:,} rows {console.percent(point['encoder'] / facts['rows'])} "
            f"({_interval(point['encoder'], facts['rows'])}; "
            f"TF-IDF alone {console.percent(point['tfidf_logistic'] / facts['rows'])})"
            for point in facts["curve"]
        ]
        lines.append(f"by training rows: {', '.join(points)}")
    return lines
