"""encoder that tags + validation rows' predictions of any GGUF files -> sum: the least
probabilities of its properties.

A property is the tagger's from a probability on, and the language model's below. Each bound is the
lowest one of those with the most right validation rows, so that the model is asked for as little as
possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference import ENCODER as ENCODER_FILE
from slmctl.inference import FILE, TAGGER, TAGGER_FILE, TOKENIZER
from slmctl.metrics import answer_metrics
from slmctl.metrics.predictions import read_predictions
from slmctl.models.field_sum import united
from slmctl.models.tagger import TaggedAnswer, Tagger
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records

NEVER = 2.0  # a probability that no property reaches
# share of the rows that a bound has to turn right, or the lower one stays: less is chance
GAIN = 0.01
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Judged:
    """The answers of both to the same rows: of each property whether they are right.

    Attributes:
        shares: The tagger's probabilities.
        tagged, written: True for a right property, of the tagger and of the language model.
    """

    shares: npt.NDArray[np.float64]
    tagged: Bools
    written: Bools

    def right(self, bound: float) -> int:
        """The number of right rows if the language model has those below a bound."""
        return int(np.where(self.shares < bound, self.written, self.tagged).sum())

    def bound(self) -> float:
        """The lowest bound of which no other one has more right
        rows, but for what chance explains.
        """
        reached = [0.0, *np.unique(self.shares)[1:].tolist(), NEVER]
        counts = {bound: self.right(bound) for bound in reached}
        least = max(counts.values()) - GAIN * len(self.shares)
        return next(bound for bound in reached if counts[bound] >= least)


def run(
    floor: float, *, encoder: Artifact, prepared: Artifact, validation: list[Artifact], out: Path
) -> JsonObject:
    """Write TAGGER_FILE and link the encoder's files; without predictions the tagger answers alone.

    The facts are those of `SumFacts`; the weight of a member is the share of properties that it
    answers.
    """
    records, task = read_records(prepared.file("validation.jsonl")), Task.read(prepared.path)
    references = [task.rules.read(record.answer) for record in records]
    with Tagger(encoder.path) as tagger:
        answers = tagger.answers([record.input for record in records]) if validation else []
        head = tagger.head
    written = [_written(made, records) for made in validation]
    bounds = _bounds(answers, written, references, [*head.reader.schema.get("properties", {})])
    replace(head, bounds=bounds).write(out / TAGGER_FILE)
    for name in (ENCODER_FILE, TOKENIZER):
        atomic.link(encoder.file(name), out / name)
    of_file = round(_asked(answers, bounds), 4)
    weights = {TAGGER: round(1 - of_file, 4)} | ({FILE: of_file} if of_file else {})
    gains = _gains(answers, written, references, bounds) if written else {}
    for line in _lines(bounds, answers):
        console.say(f"  {line}")
    right = _right([each for file in written for each in file], references * len(written))
    facts = {"weights": weights, "gains": gains, "floor": floor, "rows": len(records)}
    facts |= {"right": right // len(written) if written else None, "tuned": True, "bounds": bounds}
    return facts | {
        "source": encoder.metrics["source"],
        "encoder_license": encoder.metrics["license"],
    }


def _written(made: Artifact, records: Sequence[Record]) -> list[Any]:
    """The values of a file's answers to the rows."""
    lines = read_predictions(made)
    return [
        answer_metrics.parse(line["answer"] or "") for line, _ in zip(lines, records, strict=True)
    ]


def _bounds(
    answers: Sequence[TaggedAnswer],
    written: Sequence[Sequence[Any]],
    references: Sequence[Any],
    names: Sequence[str],
) -> dict[str, float]:
    """The bound of each property, by the answers of all files together."""
    if not written:
        return {}
    bounds = {}
    for name in names:
        shares = [each.by_property.get(name, 1.0) for each in answers]
        tagged = [
            _same(each.read.answer, reference, name)
            for each, reference in zip(answers, references, strict=True)
        ]
        by_file = [
            [_same(*pair, name) for pair in zip(file, references, strict=True)] for file in written
        ]
        times = len(written)
        judged = Judged(
            np.array(shares * times), np.array(tagged * times), np.array(by_file).reshape(-1)
        )
        bounds[name] = round(judged.bound(), 6)
    return bounds


def _same(answer: Any, reference: Any, name: str) -> bool:
    own, other = (
        value.get(name, NEVER) if isinstance(value, dict) else None for value in (answer, reference)
    )
    return answer_metrics.equal(own, other)


def _asked(answers: Sequence[TaggedAnswer], bounds: Mapping[str, float]) -> float:
    """The share of properties that the language model answers."""
    return sum(len(each.unsure(bounds)) for each in answers) / max(1, len(answers) * len(bounds))


def _gains(
    answers: Sequence[TaggedAnswer],
    written: Sequence[Sequence[Any]],
    references: Sequence[Any],
    bounds: Mapping[str, float],
) -> dict[str, float]:
    """The share of whole rows that are right by both and would not be without each."""
    tagged = _right([each.read.answer for each in answers], references) * len(written)
    alone = _right([each for file in written for each in file], [*references] * len(written))
    both = [
        united(each, value, each.unsure(bounds)) if isinstance(value, dict) else each.read.answer
        for file in written
        for each, value in zip(answers, file, strict=True)
    ]
    right, rows = _right(both, [*references] * len(written)), len(both)
    return {FILE: round((right - tagged) / rows, 6), TAGGER: round((right - alone) / rows, 6)}


def _right(answers: Sequence[Any], references: Sequence[Any]) -> int:
    return sum(answer_metrics.equal(*pair) for pair in zip(answers, references, strict=True))


def _lines(bounds: Mapping[str, float], answers: Sequence[TaggedAnswer]) -> list[str]:
    """Sentences on the properties that the language model is asked for."""
    if not bounds:
        return ["the tagger answers every property: no language model stands beside it"]
    counts = {name: sum(name in each.unsure(bounds) for each in answers) for name in bounds}
    named = [
        f"'{name}' in {console.percent(count / len(answers))} of rows"
        for name, count in counts.items()
        if count
    ]
    own = (
        f"{len(bounds) - len(named)} of {console.count(len(bounds), 'field')} are read by the "
        "tagger"
    )
    return [f"{own} alone; the language model is asked for {', '.join(named) or 'none'}"]
