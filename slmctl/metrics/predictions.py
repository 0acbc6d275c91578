"""predictions artifact -> typed records: what `predict` writes,
and `evaluate` and `calibrate` read.
"""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

from slmctl.artifacts.artifact import Artifact
from slmctl.inference.events import ValuePlace
from slmctl.reports.evaluation_report import LatencyFigures, require_type


class PredictionFacts(TypedDict):
    """The model that answered, and the speed of its answers: the metrics of a predictions artifact.

    `sha256`: of the model's file, '' for an endpoint. `base_sha256`: of the base file, where the
    model is an adapter file. `rows_per_s`: None where every answer was resumed from an earlier run.
    `matmul_dtype`: dtype of matrix products, None for a GGUF file. `release`: project and version
    of a release that gates compare with. `learned`: the model has learned these rows. `sample`:
    number of rows that were asked, where not all were. `step_ms`: of a file in a sum, the median
    milliseconds of an answer by words, by the linear members, and by all as ''.
    """

    model: str
    kind: str
    split: str
    size: NotRequired[int | None]
    sha256: str
    endpoint: NotRequired[str]  # its address
    base_sha256: NotRequired[str]
    latency_ms: NotRequired[LatencyFigures | None]
    rows_per_s: NotRequired[float | None]
    step_ms: NotRequired[dict[str, float]]
    engine: NotRequired[str | None]
    matmul_dtype: NotRequired[str | None]
    prompt_lists_labels: NotRequired[bool]
    shots: NotRequired[int]
    sample: NotRequired[int]
    not_sent: NotRequired[int]
    failed: NotRequired[int]
    release: NotRequired[str]
    learned: NotRequired[bool]


class LinearAnswer(TypedDict):
    """The answer that the linear members of a sum give alone."""

    answer: str
    confidence: float
    labels: dict[str, float]
    logprobs: list[float]
    evidence: float
    first: NotRequired[LinearAnswer]  # of words alone, beside an encoder


class Prediction(TypedDict):
    """One line of `predictions.jsonl`.

    `expected` is the record's reference answer; `answer` is None for a row that was not sent, not
    of the sample or not answered; `first` is there where a file and linear members answered.
    """

    id: str
    answer: str | None
    expected: str
    confidence: NotRequired[float | None]
    labels: NotRequired[dict[str, float]]
    logprobs: NotRequired[list[float]]
    raw_logprobs: NotRequired[list[float]]
    evidence: NotRequired[float]
    first: NotRequired[LinearAnswer]
    prompt_tokens: NotRequired[int | None]
    completion_tokens: NotRequired[int | None]
    finish: NotRequired[str | None]
    not_sent: NotRequired[str]
    places: NotRequired[list[ValuePlace]]


def facts_of(predictions: Artifact) -> PredictionFacts:
    """The metrics of a predictions artifact.

    Raises:
        IntegrityError: The manifest holds none, or a value of another type.
    """
    facts: PredictionFacts = require_type(
        PredictionFacts,
        predictions.metrics,
        where=f"the manifest of {predictions.path}",
        hint="slmctl predict",
    )
    return facts


def read_predictions(predictions: Artifact) -> list[Prediction]:
    """Every line of `predictions.jsonl`, in order.

    Raises:
        IntegrityError: The artifact has no such file, or a line is not a prediction.
    """
    path = predictions.file("predictions.jsonl")
    with path.open("rb") as stream:
        return [
            require_type(Prediction, line, where=f"{path} line {number}", hint="slmctl predict")
            for number, line in enumerate(stream, 1)
        ]
