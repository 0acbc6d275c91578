"""encoder + prepared -> encoder: its ONNX file and linear models on it and on hashed words, and
their sum.

With the encoder as it came this takes seconds. Tuned (`tuning.py`, minutes), it takes the frozen
one's place where validation rows are likelier by it. A fine-tuned model has to beat the sum, or to
gain from it (stage `sum`).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.config import EncodeConfig, Source
from slmctl.errors import DataError, StageError, UsageError
from slmctl.inference import ENCODER, SUM_FILE, TOKENIZER
from slmctl.metrics import encoder_head, label_sum, linear_baseline
from slmctl.metrics.encoder_head import EncoderHead, Floats, Named
from slmctl.metrics.label_sum import WORDS, LabelSum
from slmctl.metrics.likelihood import LEAST_GAIN, Logprobs, normalised, sharpest
from slmctl.metrics.statistics import hashed_position, wilson
from slmctl.model_files import encoder_source, memory
from slmctl.model_files.encoder_source import FLOAT32, MODEL, KeptEncoder
from slmctl.models import learned_rows
from slmctl.models.learned_rows import LearnedRows
from slmctl.models.onnx_encoder import Encoder
from slmctl.sources.rows import columns_of, read_rows
from slmctl.stages.encode import tuning_bounds
from slmctl.task import conversation_formats
from slmctl.task.contract import Task
from slmctl.task.records import SPLITS, Record, RowRejectedError, read_records

if TYPE_CHECKING:
    from slmctl.stages.encode.extraction import TaggerFacts

TOGETHER = 512  # texts between two updates of the progress bar
# rows without an answer that are read, drawn by a hash: the time grows with their square
MOST = 10_000
# mean cosine of int8 and float32 vectors from which int8 needs no trial; rows compared
NEAR, COMPARED = 0.99, 256
SHARES = (1 / 8, 1 / 4, 1 / 2)  # of the training rows; both cheap models are fitted on each too


class ShareScore(TypedDict):
    """Right answers to the validation rows of the sum and of the words
    alone, by models that learned `rows` rows.
    """

    rows: int
    encoder: int
    tfidf_logistic: int


class TunedFacts(TypedDict):
    """A tuned encoder: right answers to the validation rows by the sum with it and with the frozen
    one, which stays unless it is `kept`.
    """

    right: int
    frozen: int
    kept: bool


class EncodeFacts(TypedDict):
    """The encoder, and the score of the sum on the validation rows, by models that had not learned
    them.

    The same rows chose strength and weights, and the models that are written have learned them too.

    `source` is empty without an encoder. `source_sha256` maps the name of the file of weights, as
    it came, to its hash; `license` is the encoder's; `weights_in` is the type of its weights,
    `int8`, or `float32` if that is likelier; `interval` is the 95 % interval of the share that is
    right; `weights` are those of the sum; `curve` is of the frozen encoder; `unlabelled` counts the
    rows without an answer, `read` and `learned`.
    """

    source: str
    source_sha256: dict[str, str]
    license: str
    weights_in: str
    size: int
    dimensions: int
    rows: int
    right: int
    interval: list[float]
    curve: list[ShareScore]
    weights: dict[str, float]
    tuned: NotRequired[TunedFacts]
    unlabelled: NotRequired[dict[str, int]]


@dataclass(frozen=True)
class Vectors:
    """Vectors of the texts of a data set; all None without an encoder.

    Attributes:
        rows: (n, size) of training and validation rows.
        named: Labels, and the vectors of their names and descriptions.
        unlabelled: (m, size) of rows without an answer, if there are any.
    """

    rows: Floats | None = None
    named: Named | None = None
    unlabelled: Floats | None = None


WORDS_ALONE = Vectors()


@dataclass(frozen=True)
class Texts:
    """The texts of a data set, in the order of `Vectors`."""

    rows: list[str]
    names: list[tuple[str, str]]
    unlabelled: list[str]

    @classmethod
    def of(cls, config: EncodeConfig, task: Task, rows: LearnedRows, prepared: Artifact) -> Texts:
        names = [(label, encoder_head.spoken(label)) for label in task.labels]
        names += task.descriptions.items()
        texts = [record.input for record in (*rows.train, *rows.validation)]
        return cls(texts, names, _unlabelled(config, task, prepared))

    def vectors(self, folder: Path, source: str) -> Vectors:
        """The vectors by the encoder in a folder; raises a
        DataError if there are NaN among them.
        """
        spoken = [text for _, text in self.names]
        vectors = _vectors(folder, [*self.rows, *spoken, *self.unlabelled])
        if not np.isfinite(vectors).all():
            raise DataError(
                f"{source} computes NaN: its weights are damaged",
                hint="fetch the encoder again, or name another one: encode.encoder",
            )
        rows, others = np.split(vectors, [len(self.rows)])
        names, unlabelled = np.split(others, [len(spoken)])
        labels = [label for label, _ in self.names]
        return Vectors(rows, (labels, names), unlabelled if self.unlabelled else None)


def run(
    config: EncodeConfig, *, prepared: Artifact, out: Path, encoders: Path
) -> EncodeFacts | TaggerFacts:
    """Write ENCODER and TOKENIZER, `sum.npz`, `validation.npz` and `encoder.json`; a tagger in
    place of linear models.

    Args:
        encoders: The folder of encoders that were fetched, which every data set of the project
            shares.

    Raises:
        DataError: The source holds no sentence encoder, or one that computes NaN, or there is
            nothing to learn from.
        EngineError: ONNX Runtime cannot run it.
        IntegrityError: Its sha256 is not the pinned one.
        NetworkError: It could not be fetched.
        UsageError: The task has no labels, or the source is not pinned.
    """
    task = Task.read(prepared.path)
    if task.rules.has("schema"):
        from slmctl.stages.encode import extraction

        return extraction.run(config, task, prepared, out, encoders)
    if not task.rules.chooses:
        raise UsageError(
            f"a task of kind {task.kind} has no labels for an encoder", hint="slmctl finetune"
        )
    rows = learned_rows.read(prepared)
    if config.encoder is None:
        words = Fitted.on(rows, WORDS_ALONE)
        outcome = Chosen(words, words)
    else:
        outcome = _on_encoder(config, rows, Texts.of(config, task, rows, prepared), out, encoders)
    outcome.fitted.model.write(out / SUM_FILE)
    np.savez_compressed(
        out / encoder_source.VALIDATION, allow_pickle=False, **outcome.fitted.members
    )
    size = sum(path.stat().st_size for path in out.iterdir())
    facts = _facts(outcome, len(rows.validation), size)
    if config.unlabelled:
        others, learned = outcome.vectors.unlabelled, outcome.fitted.unlabelled
        facts["unlabelled"] = {"read": 0 if others is None else len(others), "learned": learned}
    if len(rows.validation) >= linear_baseline.FEWEST:
        facts["curve"] = [
            *_curve(rows.train, rows.validation, outcome.vectors),
            outcome.frozen.score,
        ]
    memory.trim_heap()  # freed by the fits; the same process may answer with the model next
    (out / "encoder.json").write_bytes(canonical(dict(facts)))
    for line in _lines(facts):
        console.say(f"  {line}")
    return facts


@dataclass(frozen=True)
class Chosen:
    """The sum that ships, with the one of the frozen encoder.

    Attributes:
        frozen: The sum with the encoder as it came, or without one.
        kept: The encoder as it came; None without one.
        weights_in: As in `EncodeFacts`.
    """

    fitted: Fitted
    frozen: Fitted
    vectors: Vectors = WORDS_ALONE
    kept: KeptEncoder | None = None
    source: str = ""
    weights_in: str = ""
    tuned: TunedFacts | None = None


def _facts(outcome: Chosen, rows: int, size: int) -> EncodeFacts:
    right, kept = outcome.fitted.score["encoder"], outcome.kept
    bounds = wilson(right, rows) if rows else ()
    facts: EncodeFacts = {
        "source": outcome.source,
        "source_sha256": kept.source if kept else {},
        "license": kept.license if kept else "",
        "weights_in": outcome.weights_in,
        "size": size,
        "dimensions": outcome.fitted.model.size,
        "rows": rows,
        "right": right,
        "interval": [round(bound, 6) for bound in bounds],
        "curve": [],
        "weights": dict(outcome.fitted.model.weights),
    }
    if outcome.tuned is not None:
        facts["tuned"] = outcome.tuned
    return facts


def _on_encoder(
    config: EncodeConfig, rows: LearnedRows, texts: Texts, out: Path, encoders: Path
) -> Chosen:
    """The better of the sums with the encoder as it came and tuned,
    with the encoder's files in `out`.
    """
    assert config.encoder is not None
    source = encoder_source.name(config.encoder)
    kept, seen = encoder_source.kept(config, encoders), dict[Path, Vectors]()

    def fit(folder: Path) -> Fitted:
        seen[folder] = texts.vectors(folder, source)
        return Fitted.on(rows, seen[folder])

    folder, frozen = _better_weights(kept.folder, fit, texts.rows, rows)
    outcome = Chosen(frozen, frozen, seen[folder], kept, source, _weights_in(folder))
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        if config.tune:
            folder, outcome = _better(kept.folder / MODEL, rows, outcome, folder, Path(scratch))
        for name in (ENCODER, TOKENIZER):
            atomic.link(folder / name, out / name)
    return outcome


def _better_weights(
    folder: Path, fit: Callable[[Path], Fitted], texts: Sequence[str], rows: LearnedRows
) -> tuple[Path, Fitted]:
    """The folder of an encoder with its sum: with int8 weights, unless these differ and float32 is
    likelier.

    Args:
        fit: Gives the sum with the encoder in a folder.
        texts: Some of which are compared.
    """
    fitted, whole = fit(folder), folder / FLOAT32
    some = texts[:: max(1, len(texts) // COMPARED)][:COMPARED]
    cosines = (_vectors(folder, some) * _vectors(whole, some)).sum(axis=1)
    if cosines.mean() >= NEAR:
        return folder, fitted
    answers = [record.answer for record in rows.validation]
    exact = fit(whole)
    return (whole, exact) if not answers or likelier(exact, fitted, answers) else (folder, fitted)


def _weights_in(folder: Path) -> str:
    return FLOAT32 if folder.name == FLOAT32 else "int8"


def _unlabelled(config: EncodeConfig, task: Task, prepared: Artifact) -> list[str]:
    """Texts of the rows without an answer, cleaned as records are; none
    that is a record's, of whatever split.
    """
    if not config.unlabelled:
        return []
    records = {
        record.input for split in SPLITS for record in read_records(prepared.file(f"{split}.jsonl"))
    }

    def texts(source: Source) -> Iterator[str]:
        make = conversation_formats.text_maker(
            source, source.input, columns_of(source.local, **source.reading)
        )
        for row in read_rows(source.local, **source.reading):
            with contextlib.suppress(RowRejectedError):
                if (
                    not row.fault
                    and (text := task.cleaned_text(make(row.columns))[0])
                    and text not in records
                ):
                    yield text

    distinct = dict.fromkeys(itertools.chain.from_iterable(map(texts, config.unlabelled)))
    return heapq.nsmallest(MOST, distinct, key=lambda text: hashed_position(f"unlabelled/{text}"))


def _vectors(folder: Path, texts: Sequence[str]) -> Floats:
    blocks = [texts[k : k + TOGETHER] for k in range(0, len(texts), TOGETHER)]
    vectors = []
    with Encoder(folder) as encoder, console.progress("encode", len(texts), "rows") as meter:
        for block in blocks:
            vectors.append(encoder.encode(block))
            meter.advance(len(block))
    return np.concatenate(vectors)


def _score(
    rows: int, members: Mapping[str, Logprobs], model: LabelSum, answers: Sequence[str]
) -> ShareScore:
    """The score of members that learned `rows` rows, by their log
    probabilities of the validation rows' labels.
    """
    tables = label_sum.weighted(members, model.weights), members.get(WORDS)

    def right(table: Logprobs | None) -> int:
        return 0 if table is None else label_sum.right(model.labels, table, answers)

    both, words = map(right, tables)
    return {"rows": rows, "encoder": both, "tfidf_logistic": words}


@dataclass(frozen=True)
class Fitted:
    """A sum that some rows fitted.

    Attributes:
        members: Log probabilities of the validation rows' labels by each linear member, as it was
            without them.
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
    def on(cls, rows: LearnedRows, encoded: Vectors) -> Fitted:
        """Fit on some rows."""
        records, train = [*rows.train, *rows.validation], len(rows.train)
        texts = [record.input for record in records]
        labels = [record.answer for record in records]
        kept, vectors = rows.places.tolist(), encoded.rows
        fitted = label_sum.fit(
            [texts[k] for k in kept],
            None if vectors is None else vectors[kept],
            [labels[k] for k in kept],
            fold=rows.fold,
            named=encoded.named,
            unlabelled=encoded.unlabelled,
        )
        if vectors is None:
            vectors = np.zeros((len(records), 0), np.float32)
        # not learned, so the model itself judges them
        rest = np.setdiff1d(np.arange(len(records)), kept).tolist()
        members = fitted.model.logprobs([texts[k] for k in rest], vectors[rest])
        for name, table in fitted.logprobs.items():
            whole = np.empty((len(records), table.shape[1]))
            whole[kept] = table
            whole[rest] = members.get(name, table[:0])
            members[name] = whole[train:]
        in_folds, folds = int((rows.fold >= 0).sum()), max(int(rows.fold.max()) + 1, 1)
        judged = in_folds // folds
        score = _score(len(kept) - judged, members, fitted.model, labels[train:])
        if (head := fitted.head) is None:
            return cls(fitted.model, members, score)
        others = encoded.unlabelled
        count = len(others) if others is not None and head.learns_unlabelled else 0
        return cls(fitted.model, members, score, count, head.strength)


def tuned_sum(
    model: Path, rows: LearnedRows, vectors: Vectors, frozen: Fitted, out: Path
) -> tuple[Path, Fitted]:
    """The sum with the encoder tuned on the training rows in place of the frozen one, which the
    validation rows judge.

    Args:
        model: The folder of the encoder.
        vectors: By the frozen encoder.
        out: Gets the tuned encoder, see `encoder_source.convert`, and its folder MODEL.

    Returns:
        The folder with its ENCODER, and the sum.

    Raises:
        DataError: transformers cannot load the encoder.
    """
    assert vectors.rows is not None
    labels, answers = (
        [record.answer for record in rows.train],
        [record.answer for record in rows.validation],
    )
    apart = np.full(len(labels), -1)  # no fold: the validation rows judge
    learned, texts = vectors.rows[: len(labels)], [record.input for record in rows.validation]
    fitted = encoder_head.cross_fit(
        learned, labels, fold=apart, named=vectors.named, strengths=[frozen.strength]
    )
    head = _tuned(model, rows.train, fitted.head, out, tuning_bounds.PASSES)

    def judged(folder: Path) -> Fitted:
        members = frozen.members | {
            label_sum.ENCODER: normalised(head.evidence(_vectors(folder, texts)))
        }
        weights = label_sum.choose(members, frozen.model.labels, answers).weights
        both = LabelSum(frozen.model.labels, weights, head, frozen.model.words)
        return Fitted(both, members, _score(len(labels), members, both, answers))

    return _better_weights(out, judged, texts, rows)


def whole_sum(rows: LearnedRows, tuned: Fitted, first: Path, out: Path) -> Fitted:
    """A tuned sum after its encoder has learned all rows that may be learned; its weights stay.

    Args:
        first, out: Folders that `tuned_sum` has written, and that this writes alike.
    """
    records = [*rows.train, *rows.validation]
    assert tuned.model.head is not None
    learned, passes = [records[k] for k in rows.places.tolist()], tuning_bounds.PASSES_WHOLE
    head = _tuned(first / MODEL, learned, tuned.model.head, out, passes)
    return replace(tuned, model=replace(tuned.model, head=head))


def _tuned(
    model: Path, rows: Sequence[Record], head: EncoderHead, out: Path, passes: int
) -> EncoderHead:
    """Tune an encoder and its head on some rows, and write the
    encoder, see `tuned_sum`; returns the head.
    """
    from slmctl.stages.encode import tuning  # imports torch

    texts, labels = [row.input for row in rows], [row.answer for row in rows]
    head = tuning.tune(model, texts, labels, head, out / MODEL, passes)
    encoder_source.convert(out / MODEL, out)
    return head


def _better(
    model: Path, rows: LearnedRows, outcome: Chosen, folder: Path, scratch: Path
) -> tuple[Path, Chosen]:
    """The outcome with the tuned encoder and its folder below `scratch`, if that is likelier; else
    the frozen one.

    If the encoder cannot be tuned, the reason is said.
    """
    frozen = outcome.frozen
    first, second = scratch / "first", scratch / "whole"
    try:
        _require_tunable(model, rows, frozen)
        form, tuned = tuned_sum(model, rows, outcome.vectors, frozen, first)
        if kept := likelier(tuned, frozen, [record.answer for record in rows.validation]):
            console.say(
                "  the tuned encoder makes the validation rows likelier, and learns them too"
            )
            tuned = whole_sum(rows, tuned, first, second)
            folder = second / FLOAT32 if form.name == FLOAT32 else second
    except (DataError, StageError) as error:
        console.say(f"  the encoder stays frozen: {error.message}")
        return folder, outcome
    facts: TunedFacts = {
        "right": tuned.score["encoder"],
        "frozen": frozen.score["encoder"],
        "kept": kept,
    }
    fitted = tuned if kept else frozen
    return folder, replace(outcome, fitted=fitted, weights_in=_weights_in(folder), tuned=facts)


def _require_tunable(model: Path, rows: LearnedRows, frozen: Fitted) -> None:
    reason = tuning_bounds.obstacle(model)
    if len(rows.validation) < tuning_bounds.FEWEST:
        count = console.count(len(rows.validation), "validation row")
        reason = f"{count} cannot judge a tuned one, {tuning_bounds.FEWEST} can"
    else:
        labels, learned = {*frozen.model.labels}, {record.answer for record in rows.train}
        if len(labels) < 2 or learned != labels:
            reason = "there are labels without a training row, or there is one label"
    if reason:
        raise DataError(reason)


def likelier(fitted: Fitted, other: Fitted, answers: Sequence[str]) -> bool:
    """True if a sum makes the validation rows likelier than
    another one, by LEAST_GAIN at the least.
    """
    return _likelihood(fitted, answers) - _likelihood(other, answers) > LEAST_GAIN


def _likelihood(fitted: Fitted, answers: Sequence[str]) -> float:
    """Log likelihood of the validation rows with the weights that fit these best."""
    labels, members = fitted.model.labels, fitted.members
    weights = label_sum.choose(members, labels, answers).weights
    return sharpest(labels, label_sum.weighted(members, weights), answers)[1]


def _curve(
    train: Sequence[Record], validation: Sequence[Record], encoded: Vectors
) -> Iterator[ShareScore]:
    """Both cheap models on shares of the training rows, drawn by a hash: a smaller share is part of
    a larger one.

    A share of which nothing can be learned has no score.
    """
    order = sorted(range(len(train)), key=lambda k: hashed_position(f"curve/{train[k].id}"))
    held = [*range(len(train), len(train) + len(validation))]
    for share in SHARES:
        count = max(1, round(share * len(order)))
        places = [*order[:count], *held]
        records = [(*train, *validation)[k] for k in places]
        labels = [record.answer for record in records]
        with contextlib.suppress(DataError):
            fitted = label_sum.fit(
                [record.input for record in records],
                None if encoded.rows is None else encoded.rows[places],
                labels,
                fold=np.repeat([-1, 0], [count, len(validation)]),
                named=encoded.named,
                unlabelled=encoded.unlabelled,
                whole=False,
            )
            judged = {name: table[count:] for name, table in fitted.logprobs.items()}
            yield _score(count, judged, fitted.model, labels[count:])


def _interval(right: int, rows: int) -> str:
    """The 95 % interval of a share of right answers, in words."""
    return " to ".join(map(console.percent, wilson(right, rows)))


def _lines(facts: EncodeFacts) -> list[str]:
    """Sentences on the score, and on the score by number of training rows."""
    if not facts["rows"]:
        return ["no validation rows, so nothing shows how often the linear models are right"]
    tuned = facts.get("tuned")
    is_tuned = tuned is not None and tuned["kept"]
    lines = [_of_both(facts)]
    if tuned is not None:
        lines.append(_of_tuned(tuned, facts["rows"]))
    if (rows := facts.get("unlabelled")) is not None:
        learned = "make held-out rows no likelier, so none is learned"
        if rows["learned"]:
            learned = "are learned too"
        if is_tuned:
            learned = "are not learned by a tuned encoder"
        lines.append(f"{console.count(rows['read'], 'row')} without an answer {learned}")
    if facts["curve"]:
        points = [_of_share(point, facts["rows"]) for point in facts["curve"]]
        frozen = ", with the frozen encoder" if is_tuned else ""
        lines.append(f"by rows learned{frozen}: {', '.join(points)}")
    return lines


def _of_both(facts: EncodeFacts) -> str:
    right, rows = facts["right"], facts["rows"]
    models = "a linear model on words gets"
    if facts["source"]:
        models = "linear models on the encoder and on words get"
    scored = f"{console.percent(right / rows)} ({_interval(right, rows)})"
    return (
        f"{models} {scored} of {rows:,} validation rows right, before they learn these rows too; "
        "the same rows chose their settings"
    )


def _of_tuned(tuned: TunedFacts, rows: int) -> str:
    with_it = console.percent(tuned["right"] / rows)
    without = console.percent(tuned["frozen"] / rows)
    outcome = "makes these rows no likelier and is left out"
    if tuned["kept"]:
        outcome = "takes its place"
    return (
        f"the encoder tuned on the training rows gets {with_it}, the frozen one {without}: it "
        f"{outcome}"
    )


def _of_share(point: ShareScore, rows: int) -> str:
    both = console.percent(point["encoder"] / rows)
    words = console.percent(point["tfidf_logistic"] / rows)
    interval = _interval(point["encoder"], rows)
    return f"{point['rows']:,} rows {both} ({interval}; words alone {words})"
