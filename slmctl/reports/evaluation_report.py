"""`report.json` and `rows.jsonl` as types: what `evaluate` writes, and gates, releases, `diff` and
pages read.

Shares and their differences lie between 0 and 1, intervals are `[low, high]`. Keys marked
NotRequired depend on the task, on the config or on the model; all others stand in every report
since 0.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NotRequired, TypeAlias, cast

from typing_extensions import TypedDict

from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import IntegrityError, UsageError
from slmctl.reports import IN_SUM, RELEASE

Bounds: TypeAlias = list[float]  # [low, high]
# shares of drafts with a fault that shows without a reference (`task/draft_checks.py`)
CHECKS = (
    "ungrounded",
    "other_language",
    "missing_pattern",
    "forbidden_pattern",
    "repetition",
    "unfinished",
)


class LatencyFigures(TypedDict):
    """Milliseconds that one caller waits for one answer."""

    median: float
    p95: NotRequired[float]
    n: NotRequired[int]


class TokenCounts(TypedDict):
    prompt: int
    completion: int


class ClassFigures(TypedDict):
    """Precision, recall, F1 and support of a label or field; `interval`, of
    F1, only where a row has several labels.
    """

    precision: float
    recall: float
    f1: float
    support: int
    interval: NotRequired[Bounds]


class ReliabilityBin(TypedDict):
    """Answers with a confidence in [low, high): their number, mean confidence and accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


class CalibrationFigures(TypedDict):
    """Expected calibration error, Brier score and reliability table of the answers with a
    confidence.

    `ece` is `observed` corrected for `by_chance`, see `answer_metrics.CalibrationError`;
    `confidence` and `accuracy` are the means over all these answers, by which a model is too sure
    or too modest.
    """

    n: int
    confidence: NotRequired[float]  # this and `accuracy` since evaluate/10
    accuracy: NotRequired[float]
    ece: float
    observed: NotRequired[float]  # this and `by_chance` since evaluate/7
    by_chance: NotRequired[float]
    brier: float
    bins: list[ReliabilityBin]


class ModelFacts(TypedDict):
    """Source and speed of a participant's answers; a baseline has
    only `kind`, `not_sent` and `failed`.
    """

    kind: str
    size: NotRequired[int | None]
    sha256: NotRequired[str | None]
    base_sha256: NotRequired[str]  # of the base file, for an adapter file
    engine: NotRequired[str | None]
    matmul_dtype: NotRequired[str | None]
    latency_ms: NotRequired[LatencyFigures | None]
    rows_per_s: NotRequired[float | None]
    prompt_lists_labels: NotRequired[bool | None]
    shots: NotRequired[int | None]
    sample: NotRequired[int]  # rows that were asked, where not all were
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
    groups: int  # this and `effective_groups` since groups are weighed by their sizes
    effective_groups: float


class ParticipantEntry(ModelFacts, TaskFigures):
    """One model or baseline: its metrics, the primary one first, with an interval for each.

    `design_effect`, of `right`: rows of one group are alike, so n rows count as n / design_effect
    independent rows. Rows of `groups` groups tell no more than those of `effective_groups` of equal
    size.
    """

    n: int
    right: int
    invalid: int
    metrics: dict[str, float]
    intervals: dict[str, Bounds]
    interval: Bounds


class MetricDifference(TypedDict):
    """The metric of the second participant minus that of the first, on the rows that both answered.

    `detectable`: the smallest true difference that a test on these rows finds with the chance
    `power`. Shares have `only_first` and `only_second` (numbers of rows), other metrics `quantiles`
    of the bootstrap. `design_effect` and the number of `groups` only where rows have groups.
    """

    difference: float
    interval: Bounds
    p: NotRequired[float]
    detectable: NotRequired[float]
    test: str
    only_first: NotRequired[int]
    only_second: NotRequired[int]
    design_effect: NotRequired[float]
    groups: NotRequired[int]
    quantiles: NotRequired[dict[str, float]]


class SliceDifference(TypedDict):
    """The difference on one slice of the rows, with its p-value
    before and after Holm's correction.
    """

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
    """The primary metric of every participant on one slice of
    the rows, and of drafts the CHECKS.
    """

    by: str
    name: str
    n: int
    values: dict[str, float]
    intervals: NotRequired[dict[str, Bounds]]
    checks: NotRequired[dict[str, dict[str, float]]]


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
    """The rule of `evaluate.choose` and its result; `model` is None if no file meets it."""

    model: str | None
    of: str
    metric: str
    smallest_within: float
    min_tokens_per_s: float | None
    split: str
    n: int
    candidates: list[CandidateEntry]


class SumEntry(TypedDict):
    """The sum of models that a release answers by.

    Attributes:
        model: Its name among the models; that of the file alone, where no other member helps.
        weights: Of the members that are kept (`file`, `encoder`, `words`).
        gains: By member, the share of right answers that the sum expects to lose without it.
        floor: The least gain of a file or encoder that is kept.
        rows, right: Numbers of validation rows, and of those that the file alone answers right,
            None without a file.
    """

    model: str
    weights: dict[str, float]
    gains: dict[str, float]
    floor: float
    rows: int
    right: int | None


class CostEntry(TypedDict):
    """Prices of 1,000 rows, and the rows an hour above which your own machine is cheaper."""

    api_per_1000_rows: float
    rows_per_hour: NotRequired[float]
    machine_per_1000_rows: NotRequired[float]
    break_even_rows_per_hour: NotRequired[float]
    share_of_capacity: NotRequired[float]


class BreakEven(TypedDict):
    """`prices` of the config, and the resulting costs by model."""

    machine_per_hour: float
    api_per_million_input_tokens: float
    api_per_million_output_tokens: float
    currency: str
    models: dict[str, CostEntry]


class ReleaseRows(TypedDict):
    """Metrics of a release and of the models of this pipeline on some
    rows; `differences`: model minus release.
    """

    n: int
    values: dict[str, dict[str, float]]
    differences: dict[str, dict[str, MetricDifference]]


class ReleaseEntry(TypedDict):
    """The release that gates compare with.

    `rows` holds figures on the rows that were in its data set (`old`) and on the others (`new`); it
    is empty if that data set is not below `runs/`. `trained_on`: number of measured rows that it
    was trained on.
    """

    name: str
    title: str
    trained_on: int
    rows: dict[str, ReleaseRows]


class JudgeEntry(TypedDict):
    """A judge's verdicts on the pairs of two models, beside people's decisions.

    Attributes:
        judge, model, prompt: See `production.review.verdicts.JudgeVerdict`.
        tried: Number of judges and rubrics that were asked about these pairs, by which the error of
            admission, interval and gate is divided.
        missing: Number of pairs without a verdict that admission, or the win rate of an admitted
            judge, needs.
        skipped: Number of pairs that people skipped, which do not count.
        pairs, right, same, longer, lead: See `metrics.judged_rate.Agreement`.
        admitted: True if it surely agrees with people more often than both rules.
        rows: Number of rows on which the two models' answers differ, without skipped ones.
        no_verdict, turned, turned_to_first: Number of rows without a choice, of verdicts that turn
            with the order, and of those that prefer the answer shown first both times.
        prefers_longer, people_prefer_longer: [pairs of which the longer answer won, decided pairs
            of unlike lengths].
        win_rate, interval, worth, centre, deviation, freedom: Of an admitted judge, see
            `CorrectedRate`.
    """

    judge: str
    model: str
    prompt: str
    tried: int
    missing: int
    skipped: int
    pairs: int
    right: int
    same: int
    longer: int
    lead: float
    admitted: bool
    rows: int
    no_verdict: int
    turned: int
    turned_to_first: int
    prefers_longer: list[int]
    people_prefer_longer: list[int]
    win_rate: NotRequired[float]
    interval: NotRequired[Bounds]
    worth: NotRequired[float]
    centre: NotRequired[float]
    deviation: NotRequired[float]
    freedom: NotRequired[float]


class JudgedEntry(TypedDict):
    """People's decisions on pairs of two models' answers.

    Attributes:
        model, against: The two models.
        won, lost, same, neither: Numbers of pairs of which the answer of `model` was preferred,
            that of `against`, of equally good answers and of two bad ones.
        equal: Number of measured rows with equal answers, which were not asked.
        win_rate: Share of pairs that `model` wins, with `same` and `neither` as half; `interval` is
            its.
        p: Of the sign test.
        more: Number of further pairs that would decide, in the same proportions; None if that is
            not known.
        reviewers: Number of people.
        design_effect, groups: Where rows have groups, as in a MetricDifference.
        judge: Of a judge that was asked about the pairs too.
    """

    model: str
    against: str
    won: int
    lost: int
    same: int
    neither: int
    equal: int
    win_rate: float
    interval: Bounds
    p: float
    more: int | None
    reviewers: int
    design_effect: NotRequired[float]
    groups: NotRequired[int]
    judge: NotRequired[JudgeEntry]


class JudgedPairs(TypedDict):
    """Judged pairs by their two models; `of_others`: decisions on
    other answers than those measured here.
    """

    entries: list[JudgedEntry]
    of_others: int


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
    sum: NotRequired[SumEntry]
    release: NotRequired[ReleaseEntry]
    judged: NotRequired[JudgedPairs]  # with evaluate.pairs


# label, right, confidence, score
RowAnswer: TypeAlias = tuple[int | None, int, float | None, float]


class RowTexts(TypedDict):
    input: str
    expected: str
    answers: list[str | None]


class RowEntry(TypedDict):
    """A line of `rows.jsonl` after the first; `answers` are in the order of the participants, None
    if not sent.

    `group`: the number of the row's group, where rows share groups; older reports have none.
    """

    id: str
    source: tuple[str, int]
    length: int
    sensitive: bool
    expected: int | None
    answers: list[RowAnswer | None]
    group: NotRequired[int]
    texts: NotRequired[RowTexts]
    # of drafts: by participant and check, the values that are shown
    faults: NotRequired[list[dict[str, list[str]]]]


def parse_report(value: object, *, where: str) -> EvaluationReport:
    """Check a decoded `report.json` and return it as a report.

    Raises:
        IntegrityError: A key is missing or has a value of another type; `where` begins the message.
    """
    return cast(
        EvaluationReport, require_type(EvaluationReport, value, where=where, hint="slmctl evaluate")
    )


def report_of(source: Artifact) -> EvaluationReport:
    """The figures of a report, or of the report in a release; raises an
    IntegrityError where they are damaged.
    """
    if not source.is_release:
        return parse_report(source.metrics, where=f"the manifest of {source.path}")
    return parse_report(
        json.loads(source.file("report.json").read_bytes()), where=f"{source.path}/report.json"
    )


def reports_of(made: Iterable[Artifact]) -> list[Artifact]:
    """The reports among artifacts, the newest first."""
    reports = (each for each in made if each.kind == "report")
    return sorted(reports, key=lambda report: report.manifest.started, reverse=True)


def parse_rows(lines: Sequence[object], *, where: str) -> list[RowEntry]:
    """Check the decoded lines of a `rows.jsonl` after its first, and return them as rows.

    Raises:
        IntegrityError: A line does not fit `RowEntry`; `where` begins the message.
    """
    return cast(
        list[RowEntry], require_type(list[RowEntry], lines, where=where, hint="slmctl evaluate")
    )


def rows_of(source: Artifact) -> tuple[JsonObject, list[RowEntry]]:
    """Returns (first line, rows) of the `rows.jsonl` of a report or release; raises like
    `parse_rows`.

    Read by lines of the file: a text in it may hold U+2028, at which `str.splitlines` would split
    too.
    """
    path = source.file("rows.jsonl")
    with path.open(encoding="utf-8") as stream:
        head, *rest = map(json.loads, stream)
    return head, parse_rows(rest, where=str(path))


def model_named(report: EvaluationReport, name: str) -> str:
    """The measured model of a name, with whatever examples in its prompt: `base` finds `base
    (11-shot)`; '' for none.

    Raises:
        UsageError: It was measured with several numbers of examples.
    """
    forms = [model for model in report["models"] if name in (model, model.partition(" (")[0])]
    if name in forms:
        return name
    if len(forms) > 1:
        raise UsageError(
            f"'{name}' may be {' or '.join(forms)}", hint=f"one of them in quotes: '{forms[0]}'"
        )
    return "".join(forms)


def entries_of(report: EvaluationReport) -> dict[str, ParticipantEntry]:
    """Baselines and models by name, in the order of the report."""
    entries = {**report["baselines"], **report["models"]}
    return {name: entries[name] for name in report["participants"]}


def released(report: EvaluationReport, sha256: str = "") -> str:
    """The model that a release answers by when it is served; '' where the report did not measure
    it.

    Args:
        sha256: Of a release, see `gguf_choice.served_sha256`; by default that of the measured
            models.
    """
    if not sha256:
        return report["focus"]
    return next(
        (name for name, entry in report["models"].items() if entry.get("sha256") == sha256), ""
    )


def file_of(report: EvaluationReport, model: str) -> str:
    """The GGUF file alone of a model that answers with linear models
    added; any other model is its own.
    """
    alone = model.removesuffix(IN_SUM)
    return alone if alone in report["models"] else model


def pair_of(report: EvaluationReport, first: str, second: str) -> PairEntry | None:
    """The entry of a pair as `second` minus `first`, whatever its
    order in the report; None without one.
    """
    entry, other = (
        report["pairs"].get(f"{first}|{second}"),
        report["pairs"].get(f"{second}|{first}"),
    )
    if entry is not None or other is None:
        return entry
    return {
        **other,
        "only_first": other["only_second"],
        "only_second": other["only_first"],
        "metrics": {name: turned(metric) for name, metric in other["metrics"].items()},
        "slices": [{**entry, "difference": -entry["difference"]} for entry in other["slices"]],
    }


def judged_of(report: EvaluationReport, model: str, against: str) -> JudgedEntry | None:
    """The judged pairs of two models as those of `model`, whatever their
    order in the report; None without any.
    """
    for entry in report["judged"]["entries"] if "judged" in report else ():
        if (entry["model"], entry["against"]) == (model, against):
            return entry
        if (entry["against"], entry["model"]) == (model, against):
            low, high = entry["interval"]
            other: JudgedEntry = {**entry, "model": model, "against": against, "won": entry["lost"]}
            if "judge" in entry:
                other["judge"] = turned_judge(entry["judge"])
            return {
                **other,
                "lost": entry["won"],
                "win_rate": 1 - entry["win_rate"],
                "interval": [1 - high, 1 - low],
            }
    return None


def turned_judge(entry: JudgeEntry) -> JudgeEntry:
    """The figures of a judge as those of the other model."""
    if "win_rate" not in entry:
        return entry
    low, high = entry["interval"]
    own: JudgeEntry = {**entry, "win_rate": 1 - entry["win_rate"], "centre": 1 - entry["centre"]}
    return {**own, "interval": [1 - high, 1 - low]}


def turned(metric: MetricDifference) -> MetricDifference:
    """The difference with the participants exchanged: first minus second."""
    low, high = metric["interval"]
    result: MetricDifference = {
        **metric,
        "difference": -metric["difference"],
        "interval": [-high, -low],
    }
    if "only_first" in metric:
        result |= {"only_first": metric["only_second"], "only_second": metric["only_first"]}
    if "quantiles" in metric:
        result["quantiles"] = {
            f"{1 - float(level):g}": -value for level, value in metric["quantiles"].items()
        }
    return result


def measured_names(report: EvaluationReport) -> set[str]:
    """The names that a gate may use: models, baselines, `release`, and
    `chosen` if `evaluate.choose` was set.
    """
    return {RELEASE, *report["models"], *report["baselines"]} | (
        {"chosen"} if report["choice"] else set()
    )


def require_type(expected: Any, value: object, *, where: str, hint: str) -> Any:
    """Validate a JSON value as the type `expected`; unknown keys are left out.

    Args:
        expected: A TypedDict or another type that pydantic supports.
        value: Decoded JSON, or a line of a file.
        where: Beginning of the error message.

    Raises:
        IntegrityError: The value has another type.
    """
    from pydantic import ValidationError  # here: pages and charts are drawn without it

    # JSON mode takes arrays for tuples, "1" for no int
    raw = value if isinstance(value, bytes) else json.dumps(value)
    try:
        return _adapter(expected).validate_json(raw, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        more = f", and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        message = f"{place}: {fault['msg'].lower()}" if place else fault["msg"].lower()
        raise IntegrityError(f"{where}: {message}{more}", hint=hint) from None


@cache  # an adapter takes 0.2 s to build
def _adapter(expected: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(expected)
