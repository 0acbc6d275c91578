"""encoder + prepared -> encoder: its GGUF file and linear models on it and on hashed words, and their sum.

The encoder is not trained, so this takes seconds; a fine-tuned model has to beat it, or to gain from it (stage `sum`).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.config import EncodeConfig, Source
from slmctl.errors import DataError, UsageError
from slmctl.inference import ENCODER, SUM_FILE
from slmctl.metrics import encoder_head, label_sum, linear_baseline
from slmctl.metrics.encoder_head import Floats, Named
from slmctl.metrics.label_sum import WORDS, LabelSum
from slmctl.metrics.likelihood import Logprobs
from slmctl.metrics.statistics import hashed_position, wilson
from slmctl.model_files import encoder_source, memory
from slmctl.models import learned_rows
from slmctl.models.encoder_process import Encoder
from slmctl.models.learned_rows import LearnedRows
from slmctl.sources.rows import columns_of, read_rows
from slmctl.task import conversation_formats
from slmctl.task.contract import Task
from slmctl.task.records import SPLITS, Record, RowRejectedError, read_records

TOGETHER = 512  # texts between two updates of the progress bar
MOST = 10_000  # rows without an answer that are read, drawn by a hash: the time grows with their square
SHARES = (1 / 8, 1 / 4, 1 / 2)  # of the training rows; both cheap models are fitted on each too


class ShareScore(TypedDict):
    """Right answers to the validation rows of the sum and of the words alone, by models that learned `rows` rows."""

    rows: int
    encoder: int
    tfidf_logistic: int


class EncodeFacts(TypedDict):
    """The encoder, and the score of the sum on the validation rows, by models that had not learned them.

    The same rows chose strength and weights, and the models that are written have learned them too.

    `source` is empty without an encoder. `source_sha256` maps the name of the file of weights, as it came, to its hash;
    `interval` is the 95 % interval of the share that is right; `weights` are those of the sum;
    `unlabelled` counts the rows without an answer, `read` and `learned`.
    """

    source: str
    source_sha256: dict[str, str]
    size: int
    dimensions: int
    rows: int
    right: int
    interval: list[float]
    curve: list[ShareScore]
    weights: dict[str, float]
    unlabelled: NotRequired[dict[str, int]]


def run(config: EncodeConfig, *, prepared: Artifact, out: Path, encoders: Path) -> EncodeFacts:
    """Write `encoder.gguf`, `sum.npz`, `validation.npz` and `encoder.json`.

    Args:
        encoders: The folder of encoders that were fetched, which every data set of the project shares.

    Raises:
        DataError: The source holds no sentence encoder, or one that computes NaN, or there is nothing to learn from.
        EngineError: llama.cpp cannot run it.
        IntegrityError: Its sha256 is not the pinned one.
        NetworkError: It could not be fetched.
        UsageError: The task has no labels, or the source is not pinned.
    """
    if not (task := Task.read(prepared.path)).rules.chooses:
        raise UsageError(f"a task of kind {task.kind} has no labels for an encoder", hint="slmctl finetune")
    rows = learned_rows.read(prepared)
    train, validation = rows.train, rows.validation
    names = [(label, encoder_head.spoken(label)) for label in task.labels] + list(task.descriptions.items())
    source, digests, learned, named, others = "", dict[str, str](), None, None, None
    if config.encoder is not None:
        source = encoder_source.name(config.encoder)
        kept, digests = encoder_source.kept(config, encoders)
        atomic.link(kept, out / ENCODER)
        texts = [record.input for record in (*train, *validation)] + [text for _, text in names]
        vectors = _vectors(out / ENCODER, texts + _unlabelled(config, task, prepared))
        if not np.isfinite(vectors).all():
            raise DataError(f"{source} computes NaN: its weights are damaged",
                            hint="fetch the encoder again, or name another one: encode.encoder")  # fmt: skip
        learned, spoken, rest = np.split(vectors, (len(train) + len(validation), len(texts)))
        others = rest if len(rest) else None
        named = [label for label, _ in names], spoken
    fitted = _Fitted.on(rows, learned, named, others)
    fitted.model.write(out / SUM_FILE)
    np.savez_compressed(out / encoder_source.VALIDATION, allow_pickle=False, **fitted.members)
    facts: EncodeFacts = {
        "source": source,
        "source_sha256": digests,
        "size": sum(path.stat().st_size for path in out.iterdir()),
        "dimensions": fitted.model.size,
        "rows": len(validation),
        "right": (right := fitted.score["encoder"]),
        "interval": [round(bound, 6) for bound in wilson(right, len(validation))] if validation else [],
        "curve": [],
        "weights": dict(fitted.model.weights),
    }
    if config.unlabelled:
        facts["unlabelled"] = {"read": 0 if others is None else len(others), "learned": fitted.unlabelled}
    if len(validation) >= linear_baseline.FEWEST:
        facts["curve"] = [*_curve(train, validation, learned, named, others), fitted.score]
    memory.trim_heap()  # freed by the fits; the same process may answer with the model next
    (out / "encoder.json").write_bytes(canonical(dict(facts)))
    for line in _lines(facts):
        console.say(f"  {line}")
    return facts


def _unlabelled(config: EncodeConfig, task: Task, prepared: Artifact) -> list[str]:
    """Texts of the rows without an answer, cleaned as records are; none that is a record's, of whatever split."""
    if not config.unlabelled:
        return []
    records = {record.input for split in SPLITS for record in read_records(prepared.file(f"{split}.jsonl"))}

    def texts(source: Source) -> Iterator[str]:
        make = conversation_formats.text_maker(source, source.input, columns_of(source.local, **source.reading))
        for row in read_rows(source.local, **source.reading):
            with contextlib.suppress(RowRejectedError):
                if not row.fault and (text := task.cleaned_text(make(row.columns))[0]) and text not in records:
                    yield text

    distinct = dict.fromkeys(itertools.chain.from_iterable(map(texts, config.unlabelled)))
    return heapq.nsmallest(MOST, distinct, key=lambda text: hashed_position(f"unlabelled/{text}"))


def _vectors(gguf: Path, texts: Sequence[str]) -> Floats:
    blocks = [texts[k : k + TOGETHER] for k in range(0, len(texts), TOGETHER)]
    vectors = []
    with Encoder(gguf) as encoder, console.progress("encode", len(texts), "rows") as meter:
        for block in blocks:
            vectors.append(encoder.encode(block))
            meter.advance(len(block))
    return np.concatenate(vectors)


def _score(rows: int, members: Mapping[str, Logprobs], model: LabelSum, answers: Sequence[str]) -> ShareScore:
    """The score of members that learned `rows` rows, by their log probabilities of the validation rows' labels."""
    tables = label_sum.weighted(members, model.weights), members.get(WORDS)
    both, words = (0 if table is None else label_sum.right(model.labels, table, answers) for table in tables)
    return {"rows": rows, "encoder": both, "tfidf_logistic": words}


@dataclass(frozen=True)
class _Fitted:
    """A sum that some rows fitted.

    Attributes:
        members: Log probabilities of the validation rows' labels by each linear member, as it was without them.
        score: Of the sum and the words, by such members.
        unlabelled: Number of rows without an answer that are learned.
    """

    model: LabelSum
    members: dict[str, Logprobs]
    score: ShareScore
    unlabelled: int = 0

    @classmethod
    def on(
        cls, rows: LearnedRows, vectors: Floats | None, named: Named | None, unlabelled: Floats | None
    ) -> _Fitted:  # fmt: skip
        """Fit on some rows; vectors are those of training and validation rows, and of rows without an answer."""
        records, train = [*rows.train, *rows.validation], len(rows.train)
        texts, labels = [record.input for record in records], [record.answer for record in records]
        kept = rows.places.tolist()
        fitted = label_sum.fit(
            [texts[k] for k in kept], None if vectors is None else vectors[kept], [labels[k] for k in kept],
            fold=rows.fold, named=named, unlabelled=unlabelled,
        )  # fmt: skip
        empty = np.zeros((len(records), 0), np.float32)
        rest = np.setdiff1d(np.arange(len(records)), kept).tolist()  # not learned, so the model itself judges them
        members = fitted.model.logprobs([texts[k] for k in rest], (empty if vectors is None else vectors)[rest])
        for name, table in fitted.logprobs.items():
            whole = np.empty((len(records), table.shape[1]))
            whole[kept], whole[rest] = table, members.get(name, table[:0])
            members[name] = whole[train:]
        judged = int((rows.fold >= 0).sum() / max(rows.fold.max() + 1, 1))  # in each fold
        count = len(unlabelled) if unlabelled is not None and fitted.learns_unlabelled else 0
        return cls(fitted.model, members, _score(len(kept) - judged, members, fitted.model, labels[train:]), count)


def _curve(
    train: Sequence[Record], validation: Sequence[Record], vectors: Floats | None, named: Named | None,
    unlabelled: Floats | None,
) -> Iterator[ShareScore]:  # fmt: skip
    """Both cheap models on shares of the training rows, drawn by a hash: a smaller share is part of a larger one.

    A share of which nothing can be learned has no score.
    """
    order = sorted(range(len(train)), key=lambda k: hashed_position(f"curve/{train[k].id}"))
    for share in SHARES:
        drawn = order[: max(1, round(share * len(order)))]
        records, count = [*(train[k] for k in drawn), *validation], len(drawn)
        labels = [record.answer for record in records]
        with contextlib.suppress(DataError):
            fitted = label_sum.fit(
                [record.input for record in records],
                None if vectors is None else np.concatenate([vectors[drawn], vectors[len(train) :]]), labels,
                fold=np.repeat([-1, 0], [count, len(validation)]), named=named, unlabelled=unlabelled, whole=False,
            )  # fmt: skip
            judged = {name: table[count:] for name, table in fitted.logprobs.items()}
            yield _score(count, judged, fitted.model, labels[count:])


def _interval(right: int, rows: int) -> str:
    """The 95 % interval of a share of right answers, in words."""
    return " to ".join(map(console.percent, wilson(right, rows)))


def _lines(facts: EncodeFacts) -> list[str]:
    """Sentences on the score, and on the score by number of training rows."""
    if not facts["rows"]:
        return ["no validation rows, so nothing shows how often the linear models are right"]
    share = console.percent(facts["right"] / facts["rows"])
    scored = f"{share} ({_interval(facts['right'], facts['rows'])}) of {facts['rows']:,} validation rows"
    beside = "linear models on the encoder and on words get" if facts["source"] else "a linear model on words gets"
    lines = [f"{beside} {scored} right, before they learn these rows too; the same rows chose their settings"]
    if (rows := facts.get("unlabelled")) is not None:
        learned = "are learned too" if rows["learned"] else "make held-out rows no likelier, so none is learned"
        lines.append(f"{console.count(rows['read'], 'row')} without an answer {learned}")
    if facts["curve"]:
        points = [
            f"{point['rows']:,} rows {console.percent(point['encoder'] / facts['rows'])} "
            f"({_interval(point['encoder'], facts['rows'])}; "
            f"words alone {console.percent(point['tfidf_logistic'] / facts['rows'])})"
            for point in facts["curve"]
        ]
        lines.append(f"by rows learned: {', '.join(points)}")
    return lines
