"""`report.json` and `rows.jsonl` as types: what `evaluate` writes, and gates, releases, `diff` and pages read.

Shares and their differences lie between 0 and 1, intervals are `[low, high]`. Keys marked NotRequired depend on the
task, on the config or on the model; all others stand in every report since 0.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NotRequired, TypeAlias, cast

from typing_extensions import TypedDict

from slmctl.errors import IntegrityError

Bounds: TypeAlias = list[float]  # [low, high]


class LatencyFigures(TypedDict):
    """Milliseconds that one caller waits for one answer."""

    median: float
    p95: NotRequired[float]
    n: NotRequired[int]


class TokenCounts(TypedDict):
    prompt: int
    completion: int


class ClassFigures(TypedDict):
    """`interval` is that of F1, where a row may have several labels."""

    precision: float
    recall: float
    f1: float
    support: int
    interval: NotRequired[Bounds]


class ReliabilityBin(TypedDict):
    """Answers whose confidence lies in [low, high): their number, mean confidence and accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


class CalibrationFigures(TypedDict):
    """Expected calibration error and Brier score of answers with a confidence, and their reliability table.

    `ece` is `observed` without `by_chance`, see `answer_metrics.CalibrationError`.
    """

    n: int
    ece: float
    observed: NotRequired[float]  # not in reports of evaluate/6 and before; nor is the next
    by_chance: NotRequired[float]
    brier: float
    bins: list[ReliabilityBin]


class ModelFacts(TypedDict):
    """Source of a participant's answers; only `kind`, `not_sent` and `failed` are known of a baseline."""

    kind: str
    size: NotRequired[int | None]
    sha256: NotRequired[str | None]
    base_sha256: NotRequired[str]  # of the base's GGUF file that an adapter's own answered on
    engine: NotRequired[str | None]
    matmul_dtype: NotRequired[str | None]
    latency_ms: NotRequired[LatencyFigures | None]
    rows_per_s: NotRequired[float | None]
    prompt_lists_labels: NotRequired[bool | None]
    shots: NotRequired[int | None]
    not_sent: int
    failed: int
    predictions: NotRequired[str]
    tokens: NotRequired[TokenCounts | None]
    tokens_per_s: NotRequired[float | None]


class TaskFigures(TypedDict, total=False):
    per_class: dict[str, ClassFigures]
    confusion: list[tuple[str, str, int]]
    calibration: CalibrationFigures | None
    fields: dict[str, ClassFigures]
    design_effect: float


class ParticipantEntry(ModelFacts, TaskFigures):
    """One model or baseline: its metrics, the primary one first, with an interval of each.

    `design_effect` is that of `right`: rows of one group are alike, so that n tell as much as n / design_effect.
    """

    n: int
    right: int
    invalid: int
    metrics: dict[str, float]
    intervals: dict[str, Bounds]
    interval: Bounds


class MetricDifference(TypedDict):
    """The second of two participants less the first, on the rows that both answered.

    `detectable` is the smallest true difference that so many rows show with the chance `power`; `quantiles` of the
    bootstrap are there for figures that are no shares, counts of rows for shares. `design_effect` is there where rows
    of one group are alike.
    """

    difference: float
    interval: Bounds
    p: NotRequired[float]
    detectable: NotRequired[float]
    test: str
    only_first: NotRequired[int]
    only_second: NotRequired[int]
    design_effect: NotRequired[float]
    quantiles: NotRequired[dict[str, float]]


class SliceDifference(TypedDict):
    """The difference on one slice of the rows, with its p-value before and after Holm's correction."""

    by: str
    name: str
    n: int
    difference: float
    p: float
    p_holm: float


class PairEntry(TypedDict):
    """Two participants on the rows that both answered."""

    n: int
    both: int
    only_first: int
    only_second: int
    neither: int
    metrics: dict[str, MetricDifference]
    slices: list[SliceDifference]
    slices_tested: int


class SliceEntry(TypedDict):
    """The primary metric of every participant on one slice of the rows."""

    by: str
    name: str
    n: int
    values: dict[str, float]
    intervals: NotRequired[dict[str, Bounds]]


class CandidateEntry(TypedDict):
    """One GGUF file under the rule of `evaluate.choose`."""

    model: str
    size: int
    value: float
    loss: float
    loss_at_most: float
    tokens_per_s: float | None
    within: bool
    fast: bool


class ChoiceEntry(TypedDict):
    """The rule of `evaluate.choose` and its result; `model` is None where no file meets it."""

    model: str | None
    of: str
    metric: str
    smallest_within: float
    min_tokens_per_s: float | None
    split: str
    n: int
    candidates: list[CandidateEntry]


class OpinionEntry(TypedDict):
    """The verdict on the encoder's second opinion; of evaluate.second_opinion: auto with the validation rows that the
    file alone answers right and that the opinion won and lost, and the p-value of McNemar's test.

    Attributes:
        model: The ensemble that it makes of the file to release.
        kept: A release carries it: it is surely better, or the config says so.
    """

    model: str
    kept: bool
    rows: NotRequired[int]
    right: NotRequired[int]
    won: NotRequired[int]
    lost: NotRequired[int]
    p: NotRequired[float]


class CostEntry(TypedDict):
    """Prices of 1,000 rows, and the rows an hour above which a machine of one's own is the cheaper one."""

    api_per_1000_rows: float
    rows_per_hour: NotRequired[float]
    machine_per_1000_rows: NotRequired[float]
    break_even_rows_per_hour: NotRequired[float]
    share_of_capacity: NotRequired[float]


class BreakEven(TypedDict):
    """`prices` and the costs that follow, by model."""

    machine_per_hour: float
    api_per_million_input_tokens: float
    api_per_million_output_tokens: float
    currency: str
    models: dict[str, CostEntry]


class ReleaseRows(TypedDict):
    """The metrics of a release and of the models of this pipeline on some rows, and each model less the release."""

    n: int
    values: dict[str, dict[str, float]]
    differences: dict[str, dict[str, MetricDifference]]


class ReleaseEntry(TypedDict):
    """The release that gates compare with.

    `rows` has the rows that were in its data set (`old`) and those that were not (`new`), and is empty where that data
    set is not there; `trained_on` counts the old ones that it was trained on.
    """

    name: str
    title: str
    trained_on: int
    rows: dict[str, ReleaseRows]


class EvaluationReport(TypedDict):
    task: str
    primary_metric: str
    lower_is_better: list[str]
    split: str
    n: int
    confidence: float
    power: float
    prepared: str
    participants: list[str]
    focus: str
    models: dict[str, ParticipantEntry]
    baselines: dict[str, ParticipantEntry]
    pairs: dict[str, PairEntry]
    slices: list[SliceEntry]
    choice: ChoiceEntry | None
    cut: int
    break_even: BreakEven | None
    remarks: list[str]
    second_opinion: NotRequired[OpinionEntry]
    release: NotRequired[ReleaseEntry]


RowAnswer: TypeAlias = tuple[int | None, int, float | None, float]  # label, right, confidence, score


class RowTexts(TypedDict):
    input: str
    expected: str
    answers: list[str | None]


class RowEntry(TypedDict):
    """One line of `rows.jsonl` after the first; `answers` follow the report's participants, None where not sent."""

    id: str
    source: tuple[str, int]
    length: int
    sensitive: bool
    expected: int | None
    answers: list[RowAnswer | None]
    texts: NotRequired[RowTexts]


def parse_report(value: object, *, where: str) -> EvaluationReport:
    """A decoded `report.json` as a report.

    Raises:
        IntegrityError: A key is missing or holds a value of another type; `where` begins the message.
    """
    return cast(EvaluationReport, require_type(EvaluationReport, value, where=where, hint="slmctl evaluate"))


def parse_rows(lines: Sequence[object], *, where: str) -> list[RowEntry]:
    """The decoded lines of a `rows.jsonl` after its first.

    Raises:
        IntegrityError: A line is not as `RowEntry` says; `where` begins the message.
    """
    return cast(list[RowEntry], require_type(list[RowEntry], lines, where=where, hint="slmctl evaluate"))


def entries_of(report: EvaluationReport) -> dict[str, ParticipantEntry]:
    """Baselines and models by name, in the order of the report."""
    entries = {**report["baselines"], **report["models"]}
    return {name: entries[name] for name in report["participants"]}


def pair_of(report: EvaluationReport, first: str, second: str) -> PairEntry | None:
    """The entry of a pair, `second` less `first`, in whichever order the report holds it."""
    entry, other = report["pairs"].get(f"{first}|{second}"), report["pairs"].get(f"{second}|{first}")
    if entry is not None or other is None:
        return entry
    return {
        **other,
        "only_first": other["only_second"],
        "only_second": other["only_first"],
        "metrics": {name: turned(metric) for name, metric in other["metrics"].items()},
        "slices": [{**entry, "difference": -entry["difference"]} for entry in other["slices"]],
    }


def turned(metric: MetricDifference) -> MetricDifference:
    """The first of two participants less the second."""
    low, high = metric["interval"]
    result: MetricDifference = {**metric, "difference": -metric["difference"], "interval": [-high, -low]}
    if "only_first" in metric:
        result |= {"only_first": metric["only_second"], "only_second": metric["only_first"]}
    if "quantiles" in metric:
        result["quantiles"] = {f"{1 - float(level):g}": -value for level, value in metric["quantiles"].items()}
    return result


def measured_names(report: EvaluationReport) -> set[str]:
    """The names that a gate may use: models, baselines, and `chosen` where `evaluate.choose` was set."""
    return {*report["models"], *report["baselines"]} | ({"chosen"} if report["choice"] else set())


def require_type(expected: Any, value: object, *, where: str, hint: str) -> Any:
    """A value of JSON, as the type that it must have; keys that the type does not name are left out.

    Args:
        expected: A TypedDict or another type that pydantic knows.
        value: Decoded JSON, or a line of a file.
        where: Begins the message.

    Raises:
        IntegrityError: The value is of another type.
    """
    from pydantic import ValidationError  # here: pages and charts are drawn without it

    raw = value if isinstance(value, bytes) else json.dumps(value)  # in JSON a tuple is an array, and "1" no number
    try:
        return _adapter(expected).validate_json(raw, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        more = f", and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        message = f"{place}: {fault['msg'].lower()}" if place else fault["msg"].lower()
        raise IntegrityError(f"{where}: {message}{more}", hint=hint) from None


@cache  # making one takes 0.2 s
def _adapter(expected: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(expected)
