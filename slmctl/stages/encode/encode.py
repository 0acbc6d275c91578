"""encoder + prepared -> encoder: its GGUF file and linear models on it and on hashed words, and their sum.

With the encoder as it came this takes seconds. Tuned (`tuning.py`, minutes), it takes the frozen one's place where
validation rows are likelier by it. A fine-tuned model has to beat the sum, or to gain from it (stage `sum`).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.config import EncodeConfig, Source
from slmctl.errors import DataError, StageError, UsageError
from slmctl.inference import ENCODER, SUM_FILE
from slmctl.metrics import encoder_head, label_sum, linear_baseline
from slmctl.metrics.encoder_head import EncoderHead, Floats, Named
from slmctl.metrics.label_sum import WORDS, LabelSum
from slmctl.metrics.likelihood import LEAST_GAIN, Logprobs, normalised, sharpest
from slmctl.metrics.statistics import hashed_position, wilson
from slmctl.model_files import encoder_source, gguf_converter, memory
from slmctl.models import learned_rows
from slmctl.models.encoder_process import Encoder
from slmctl.models.learned_rows import LearnedRows
from slmctl.sources.rows import columns_of, read_rows
from slmctl.stages.encode import tuning_bounds
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


class TunedFacts(TypedDict):
    """A tuned encoder: right answers to the validation rows by the sum with it and with the frozen one, which stays
    unless it is `kept`."""

    right: int
    frozen: int
    kept: bool


class EncodeFacts(TypedDict):
    """The encoder, and the score of the sum on the validation rows, by models that had not learned them.

    The same rows chose strength and weights, and the models that are written have learned them too.

    `source` is empty without an encoder. `source_sha256` maps the name of the file of weights, as it came, to its hash;
    `interval` is the 95 % interval of the share that is right; `weights` are those of the sum; `curve` is of the frozen
    encoder; `unlabelled` counts the rows without an answer, `read` and `learned`.
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
    tuned: NotRequired[TunedFacts]
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
        file, digests = encoder_source.kept(config, encoders)
        atomic.link(file, out / ENCODER)
        texts = [record.input for record in (*train, *validation)] + [text for _, text in names]
        vectors = _vectors(out / ENCODER, texts + _unlabelled(config, task, prepared))
        if not np.isfinite(vectors).all():
            raise DataError(f"{source} computes NaN: its weights are damaged",
                            hint="fetch the encoder again, or name another one: encode.encoder")  # fmt: skip
        learned, spoken, rest = np.split(vectors, (len(train) + len(validation), len(texts)))
        others = rest if len(rest) else None
        named = [label for label, _ in names], spoken
    fitted = frozen = Fitted.on(rows, learned, named, others)
    tuned: TunedFacts | None = None
    if learned is not None and config.tune:
        folder = encoder_source.folder_of(config, encoders) / encoder_source.MODEL
        fitted, tuned = _better(folder, source, rows, learned[: len(train)], named, frozen, out / ENCODER)
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
    if tuned is not None:
        facts["tuned"] = tuned
    if config.unlabelled:
        facts["unlabelled"] = {"read": 0 if others is None else len(others), "learned": fitted.unlabelled}
    if len(validation) >= linear_baseline.FEWEST:
        facts["curve"] = [*_curve(train, validation, learned, named, others), frozen.score]
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
class Fitted:
    """A sum that some rows fitted.

    Attributes:
        members: Log probabilities of the validation rows' labels by each linear member, as it was without them.
        score: Of the sum and the words, by such members.
        unlabelled: Number of rows without an answer that are learned.
        strength: Of the encoder's head, see `HeadFit`.
    """

    model: LabelSum
    members: dict[str, Logprobs]
    score: ShareScore
    unlabelled: int = 0
    strength: float = 0.0

    @classmethod
    def on(
        cls, rows: LearnedRows, vectors: Floats | None, named: Named | None, unlabelled: Floats | None
    ) -> Fitted:  # fmt: skip
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
        score = _score(len(kept) - judged, members, fitted.model, labels[train:])
        if (head := fitted.head) is None:
            return cls(fitted.model, members, score)
        count = len(unlabelled) if unlabelled is not None and head.learns_unlabelled else 0
        return cls(fitted.model, members, score, count, head.strength)


def tuned_sum(
    model: Path, source: str, rows: LearnedRows, vectors: Floats, named: Named | None, frozen: Fitted, out: Path
) -> Fitted:  # fmt: skip
    """The sum with the encoder tuned on the training rows in place of the frozen one, which the validation rows judge.

    Args:
        model: The folder of the encoder.
        vectors: (n, size) of the training rows, by the frozen encoder.
        out: Gets the tuned encoder as a GGUF file, `ENCODER`, and as a folder, `encoder_source.MODEL`.

    Raises:
        DataError: transformers cannot load the encoder.
    """
    labels, answers = [record.answer for record in rows.train], [record.answer for record in rows.validation]
    apart = np.full(len(labels), -1)  # no fold: the validation rows judge
    head = encoder_head.cross_fit(vectors, labels, fold=apart, named=named, strengths=[frozen.strength]).head
    head = _tuned(model, source, rows.train, head, out, tuning_bounds.PASSES)
    table = normalised(head.evidence(_vectors(out / ENCODER, [record.input for record in rows.validation])))
    members = frozen.members | {label_sum.ENCODER: table}
    weights = label_sum.choose(members, frozen.model.labels, answers).weights
    both = LabelSum(frozen.model.labels, weights, head, frozen.model.words)
    return Fitted(both, members, _score(len(labels), members, both, answers))


def whole_sum(source: str, rows: LearnedRows, tuned: Fitted, first: Path, out: Path) -> Fitted:
    """A tuned sum after its encoder has learned all rows that may be learned; its weights stay.

    Args:
        first, out: Folders that `tuned_sum` has written, and that this writes alike.
    """
    records = [*rows.train, *rows.validation]
    assert tuned.model.head is not None
    learned, passes = [records[k] for k in rows.places.tolist()], tuning_bounds.PASSES_WHOLE
    head = _tuned(first / encoder_source.MODEL, source, learned, tuned.model.head, out, passes)
    return replace(tuned, model=replace(tuned.model, head=head))


def _tuned(
    model: Path, source: str, rows: Sequence[Record], head: EncoderHead, out: Path, passes: int
) -> EncoderHead:  # fmt: skip
    """Tune an encoder and its head on some rows, and write both its forms, see `tuned_sum`; returns the head."""
    from slmctl.stages.encode import tuning  # imports torch

    folder = out / encoder_source.MODEL
    head = tuning.tune(model, [row.input for row in rows], [row.answer for row in rows], head, folder, passes)
    gguf_converter.convert(folder, out / ENCODER, dtype="f16", metadata={"general.name": f"{source}, tuned"})
    return head


def _better(
    model: Path, source: str, rows: LearnedRows, vectors: Floats, named: Named | None, frozen: Fitted, gguf: Path
) -> tuple[Fitted, TunedFacts | None]:  # fmt: skip
    """The sum with the tuned encoder, whose file replaces `gguf`, where that is likelier; else the frozen one.

    Where the encoder cannot be tuned, the reason is told.
    """
    try:
        _require_tunable(model, rows, frozen)
        with tempfile.TemporaryDirectory(dir=gguf.parent) as scratch:
            first, whole = Path(scratch, "first"), Path(scratch, "whole")
            tuned = tuned_sum(model, source, rows, vectors, named, frozen, first)
            if kept := likelier(tuned, frozen, [record.answer for record in rows.validation]):
                console.say("  the tuned encoder makes the validation rows likelier, and learns them too")
                tuned = whole_sum(source, rows, tuned, first, whole)
                atomic.move(whole / ENCODER, gguf)
    except (DataError, StageError) as error:  # also of encoders that llama.cpp runs and transformers does not
        console.say(f"  the encoder stays frozen: {error.message}")
        return frozen, None
    facts: TunedFacts = {"right": tuned.score["encoder"], "frozen": frozen.score["encoder"], "kept": kept}
    return tuned if kept else frozen, facts


def _require_tunable(model: Path, rows: LearnedRows, frozen: Fitted) -> None:
    reason = tuning_bounds.obstacle(model)
    if len(rows.validation) < tuning_bounds.FEWEST:
        count = console.count(len(rows.validation), "validation row")
        reason = f"{count} cannot judge a tuned one, {tuning_bounds.FEWEST} can"
    elif len(frozen.model.labels) < 2 or {record.answer for record in rows.train} != set(frozen.model.labels):
        reason = "there are labels without a training row, or there is one label"
    if reason:
        raise DataError(reason)


def likelier(fitted: Fitted, other: Fitted, answers: Sequence[str]) -> bool:
    """True if a sum makes the validation rows likelier than another one, by LEAST_GAIN at the least."""
    return _likelihood(fitted, answers) - _likelihood(other, answers) > LEAST_GAIN


def _likelihood(fitted: Fitted, answers: Sequence[str]) -> float:
    """Log likelihood of the validation rows with the weights that fit these best."""
    weights = label_sum.choose(fitted.members, fitted.model.labels, answers).weights
    return sharpest(fitted.model.labels, label_sum.weighted(fitted.members, weights), answers)[1]


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
    if (tuned := facts.get("tuned")) is not None:
        with_it, without = (console.percent(tuned[key] / facts["rows"]) for key in ("right", "frozen"))
        outcome = "takes its place" if tuned["kept"] else "makes these rows no likelier and is left out"
        lines.append(f"the encoder tuned on the training rows gets {with_it}, the frozen one {without}: it {outcome}")
    if (rows := facts.get("unlabelled")) is not None:
        learned = "are learned too" if rows["learned"] else "make held-out rows no likelier, so none is learned"
        learned = "are not learned by a tuned encoder" if tuned and tuned["kept"] else learned
        lines.append(f"{console.count(rows['read'], 'row')} without an answer {learned}")
    if facts["curve"]:
        points = [
            f"{point['rows']:,} rows {console.percent(point['encoder'] / facts['rows'])} "
            f"({_interval(point['encoder'], facts['rows'])}; "
            f"words alone {console.percent(point['tfidf_logistic'] / facts['rows'])})"
            for point in facts["curve"]
        ]
        frozen = ", with the frozen encoder" if tuned and tuned["kept"] else ""
        lines.append(f"by rows learned{frozen}: {', '.join(points)}")
    return lines
