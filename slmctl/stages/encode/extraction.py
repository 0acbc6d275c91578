"""encoder + prepared -> encoder, of an `extract` task: its ONNX file, tuned to tag words, and the
layers on it.

The tagger is a rival of the language model that writes JSON: a report has it as the baseline
`tagger`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import EncodeConfig
from slmctl.errors import DataError, UsageError
from slmctl.inference import ENCODER, TAGGER_FILE, TOKENIZER
from slmctl.metrics import answer_metrics, cross_fitting, label_sum
from slmctl.metrics.likelihood import normalised
from slmctl.metrics.statistics import wilson
from slmctl.model_files import encoder_source, memory
from slmctl.model_files.encoder_source import FLOAT32, MODEL
from slmctl.models.tagger import TaggedAnswer, Tagger, TaggerHead, TextScores, classes_of
from slmctl.stages.encode import tuning_bounds
from slmctl.task import field_habits
from slmctl.task.contract import Task
from slmctl.task.evidence import Evidence
from slmctl.task.field_habits import Habit, Row, key_of
from slmctl.task.records import Record, read_records, require_records
from slmctl.task.span_values import FieldValue, Reader
from slmctl.task.spans import Field, SpanMark, Targets, fields_of, leaves, targets

if TYPE_CHECKING:
    from slmctl.stages.encode import tagging

SHARPNESS, POWERS = np.geomspace(0.25, 4, 33), np.geomspace(0.1, 10, 41)  # that are tried
WORTH = 0.01  # share of validation rows that float32 weights have to turn right, or int8 stays
SURE = 1e-6  # distance of a probability from 0 and 1 in a likelihood
OTHERWISE = "take the section encode out: the language model reads without it"


class FieldFacts(TypedDict):
    """A field: the way in which it is read, and its values in training rows,
    of which `standing` stand in the text.
    """

    read: str
    values: int
    standing: int


class TaggerFacts(TypedDict):
    """The tagger, and its score on the validation rows, which chose its weights and calibrated it.

    `right` counts the rows of which all is right, `interval` is the 95 % interval of their share;
    the others are those of `EncodeFacts`.
    """

    source: str
    source_sha256: dict[str, str]
    license: str
    weights_in: str
    size: int
    rows: int
    right: int
    interval: list[float]
    fields: dict[str, FieldFacts]


def run(
    config: EncodeConfig, task: Task, prepared: Artifact, out: Path, encoders: Path
) -> TaggerFacts:
    """Write ENCODER, TOKENIZER, TAGGER_FILE and `encoder.json`; arguments
    and errors are those of `encode.run`.
    """
    if config.encoder is None or not config.tune or config.unlabelled:
        raise UsageError(
            "a tagger is an encoder that learns from rows with answers alone: encode.encoder none, "
            "encode.tune false and encode.unlabelled are for labels",
            hint="encode: {}",
        )
    schema = task.schema or {}
    fields_of(schema)  # before an encoder is fetched
    train = _rows(task, require_records(prepared.file("train.jsonl")))
    held = _rows(task, read_records(prepared.file("validation.jsonl")))
    kept = encoder_source.kept(config, encoders)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        tuned = fit(kept.folder / MODEL, schema, train, held, Path(scratch, "tuned"))
        for name in (ENCODER, TOKENIZER):
            atomic.link(tuned.folder / name, out / name)
        right = _rows_right(tuned, held)
    tuned.head.write(out / TAGGER_FILE)
    bounds = wilson(right, len(held)) if held else ()
    fields = {each.path: _facts(each, habit) for each, habit in tuned.head.reader.pairs}
    facts: TaggerFacts = {
        "source": encoder_source.name(config.encoder),
        "source_sha256": kept.source,
        "license": kept.license,
        "weights_in": FLOAT32 if tuned.folder.name == FLOAT32 else "int8",
        "size": sum(path.stat().st_size for path in out.iterdir()),
        "rows": len(held),
        "right": right,
        "interval": [round(bound, 6) for bound in bounds],
        "fields": fields,
    }
    memory.trim_heap()  # freed by the training
    (out / "encoder.json").write_bytes(canonical(dict(facts)))
    for line in _lines(facts):
        console.say(f"  {line}")
    return facts


def _rows(task: Task, records: Iterable[Record]) -> list[Row]:
    return [(record.input, task.rules.read(record.answer)) for record in records]


@dataclass(frozen=True)
class TunedTagger:
    """A tagger in the folder of its ENCODER, with its answers to the validation rows."""

    folder: Path
    head: TaggerHead
    answers: Sequence[TaggedAnswer]


def fit(
    model: Path, schema: JsonObject, train: Sequence[Row], validation: Sequence[Row], out: Path
) -> TunedTagger:
    """Tune an encoder to tag the values of training rows.

    Args:
        model: The encoder's model folder, see `encoder_source.kept`.
        validation: Rows that choose the weights and calibrate; with none, the last weights stay.
        out: The folder to write, see `encoder_source.convert`.

    Raises:
        DataError: The schema, its values or the encoder are not fit for it.
        FullError: The memory is not enough.
    """
    from slmctl.stages.encode import tagging  # imports torch

    if reason := tuning_bounds.obstacle(model):
        raise DataError(f"the encoder cannot be tuned to tag: {reason}", hint=OTHERWISE)
    fields = fields_of(schema)
    made = [targets(fields, *row) for row in train]
    reader = Reader.of(schema, field_habits.learn(fields, train, made))

    def tagged(row: Row, targeted: Targets) -> tagging.TaggedRow:
        return tagging.TaggedRow(*row, _tagged(reader, targeted.marks))

    learned = [tagged(row, each) for row, each in zip(train, made, strict=True)]
    held = [tagged(row, targets(fields, *row)) for row in validation]
    head = tagging.tune(model, reader, learned, held, out / MODEL)
    encoder_source.convert(out / MODEL, out)
    exact = _calibrated(out / FLOAT32, _concluding(out / FLOAT32, head, train), held)
    small = _calibrated(out, _concluding(out, head, train), held)
    gain = _rows_right(exact, validation) - _rows_right(small, validation)
    return exact if gain > WORTH * len(validation) else small


def _rows_right(tuned: TunedTagger, rows: Sequence[Row]) -> int:
    return sum(whole_right(tuned.answers, rows))


def _tagged(reader: Reader, marks: Iterable[SpanMark]) -> list[SpanMark]:
    """The places of fields that no other way reads."""
    return [mark for mark in marks if not reader.habits[mark.field].concluded]


def _concluding(folder: Path, head: TaggerHead, rows: Sequence[Row]) -> TaggerHead:
    """The head with a sum of encoder and words for each field that the whole text decides."""
    by_text = [k for k, (_, habit) in enumerate(head.reader.pairs) if len(habit.concluded) > 1]
    if not by_text:
        return head
    texts = [text for text, _ in rows]
    with Tagger(folder, head) as tagger:
        vectors = np.array([scores.vector for scores in tagger.scores(texts)])
    concluded = {}
    for number in by_text:
        each, habit = head.reader.pairs[number]
        values = {key_of(value) for value in habit.concluded}
        labels = [key_of(_value(answer, each.path)) for _, answer in rows]
        places = [row for row, label in enumerate(labels) if label in values]
        own = [texts[row] for row in places]
        learned = [labels[row] for row in places]
        fold = cross_fitting.folds(learned, own, validation=0)
        concluded[number] = label_sum.fit(own, vectors[places], learned, fold=fold).model
    return replace(head, concluded=concluded)


def _value(answer: Any, path: str) -> Any:
    """The value of a field outside of lists; None if the answer has none."""
    return next((leaf.value for leaf in leaves(answer) if leaf.path == path), None)


def whole_right(answers: Sequence[TaggedAnswer], rows: Sequence[Row]) -> list[bool]:
    """For each row, True if all of its answer is right."""
    return [
        answer_metrics.equal(answer.read.answer, reference)
        for answer, (_, reference) in zip(answers, rows, strict=True)
    ]


# Calibration


def _calibrated(folder: Path, head: TaggerHead, rows: Sequence[Any]) -> TunedTagger:
    """The tagger with the sharpness and powers by which some `TaggedRow`s are the likeliest."""
    if not rows:
        return TunedTagger(folder, head, ())
    with Tagger(folder, head) as tagger:
        scores = tagger.scores([row.text for row in rows])

        def answers() -> list[TaggedAnswer]:
            return [tagger.answer(row.text, own) for row, own in zip(rows, scores, strict=True)]

        classes = [classes_of(Evidence(row.text), row.marks) for row in rows]
        tagger.head = replace(head, sharpness=_sharpness(scores, classes))
        powers = _powers(answers(), [row.answer for row in rows])
        tagger.head = replace(tagger.head, powers=powers)
        return TunedTagger(folder, tagger.head, answers())


def _sharpness(scores: Sequence[TextScores], classes: Sequence[Sequence[int]]) -> float:
    table = np.concatenate([each.words for each in scores]).astype(np.float64)
    pairs = zip(scores, classes, strict=True)
    of_words = np.concatenate([own[: len(each.words)] for each, own in pairs]).astype(int)
    rows = np.arange(len(of_words))

    def likelihood(sharpness: float) -> float:
        return float(normalised(sharpness * table)[rows, of_words].sum())

    return max(map(float, SHARPNESS), key=likelihood)


def _powers(answers: Sequence[TaggedAnswer], references: Sequence[Any]) -> tuple[float, float]:
    """The powers of the probabilities of values and of whole answers by
    which their being right is the likeliest.
    """
    values, wholes = list[tuple[float, bool]](), list[tuple[float, bool]]()
    for answer, reference in zip(answers, references, strict=True):
        stands = list(leaves(reference))
        values += [(value.logprob, _is_right(value, stands)) for value in answer.read.values]
        total = sum(value.logprob for value in answer.read.values)
        wholes.append((total, answer_metrics.equal(answer.read.answer, reference)))
    return _power(values), _power(wholes)


def _is_right(value: FieldValue, stands: Sequence[Any]) -> bool:
    own = [leaf.value for leaf in stands if leaf.path.startswith(value.path)]
    if value.value in (None, []):
        return not own
    return any(answer_metrics.equal(value.value, each) for each in own)


def _power(judged: Sequence[tuple[float, bool]]) -> float:
    logprobs, right = (np.array(column) for column in zip(*judged, strict=True))

    def likelihood(power: float) -> float:
        shares = np.clip(np.exp(power * logprobs), SURE, 1 - SURE)
        return float(np.log(np.where(right, shares, 1 - shares)).sum())

    return max(map(float, POWERS), key=likelihood)


# Facts


def _facts(each: Field, habit: Habit) -> FieldFacts:
    read = f"tagged as {each.kind}"
    if habit.concluded:
        read = f"concluded from the whole text, of {console.count(len(habit.concluded), 'value')}"
    elif not habit.standing:
        read = "not read: no training row has a value of it in the text"
    return {"read": read, "values": habit.values, "standing": habit.standing}


def _lines(facts: TaggerFacts) -> list[str]:
    """Sentences on the score, on the fields that are read otherwise than
    by tags, and on values without a place.
    """
    lines = ["no validation rows, so nothing shows how often the tagger is right"]
    if facts["rows"]:
        low, high = map(console.percent, facts["interval"])
        share = console.percent(facts["right"] / facts["rows"])
        lines = [
            f"the tagger gets {share} ({low} to {high}) of {facts['rows']:,} validation rows "
            "wholly right; the "
            "same rows chose its weights"
        ]
    for path, own in facts["fields"].items():
        lacking = own["values"] - own["standing"]
        if not own["read"].startswith("tagged"):
            lines.append(f"'{path}' is {own['read']}")
        elif lacking:
            lines.append(
                f"'{path}': {lacking:,} of {console.count(own['values'], 'value')} stand nowhere "
                "in the text"
            )
    return lines
