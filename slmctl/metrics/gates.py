"""A report and gates -> the result of every gate.

Gates are part of no recipe, so that a changed gate is checked against the same report without a new
measurement.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from slmctl.config import CORRECTED_WIN_RATE, WIN_RATE, Gate
from slmctl.console import percent
from slmctl.errors import GateError, UsageError
from slmctl.metrics.answer_metrics import SHARES
from slmctl.metrics.statistics import drop_bound, independent_rows, mcnemar, t_quantile
from slmctl.metrics.win_rate import WinRate
from slmctl.reports import RELEASE, scoreboard
from slmctl.reports.evaluation_report import (
    ChoiceEntry,
    EvaluationReport,
    JudgedEntry,
    MetricDifference,
    ParticipantEntry,
    ReleaseRows,
    file_of,
    judged_of,
    model_named,
    pair_of,
    released,
    turned,
)

SOURCES = ("adapter", "merged")  # kinds of models that a GGUF file is made of
LOSS = 0.05  # of the primary metric, which a sound file does not lose by its quantization
# baselines, and the command that releases each
CHEAP = {
    "encoder_logistic": "slmctl run --set publish.model=linear",
    "tagger": "slmctl run --set publish.model=linear",
    "tfidf_logistic": "slmctl run --set publish.model=linear --set encode.encoder=none",
}


@dataclass(frozen=True)
class GateResult:
    """Result of a gate; `text` is a sentence with the measured value, its bound, and the limit of
    the gate.

    `groups`: number of groups of the rows that it compares; 0 for rows without groups.
    """

    passed: bool
    text: str
    groups: int = 0


def check(gates: Sequence[Gate], report: EvaluationReport) -> list[GateResult]:
    """The result of every gate.

    Raises:
        GateError: A gate is about the chosen file, and none was chosen.
        UsageError: A gate names a model or a metric that the report does not have.
    """
    return [_check(gate, report) for gate in gates]


def enforce(gates: Sequence[Gate], report: EvaluationReport) -> list[GateResult]:
    """`check` and `own_check`, and fail when one of them did not pass.

    Raises:
        GateError: At least one gate failed.
    """
    results = check(gates, report)
    pairs = zip(gates, results, strict=True)
    failed = [result for result in [*results, *own_check(gates, report)] if not result.passed]
    if not failed:
        return results
    missed = [gate for gate, result in pairs if not result.passed]
    text = "; ".join(result.text for result in failed)
    raise GateError(text, reason="gate_failed", hint=_advice(missed, failed, report))


def _advice(missed: Sequence[Gate], failed: Sequence[GateResult], report: EvaluationReport) -> str:
    """Advice on failed gates: test what ships, release a cheap model
    that won, or make the model better.
    """
    hint = "more or cleaner data, more epochs, or a larger quantization type"
    if groups := max(result.groups for result in failed):
        hint = (
            f"rows of one group are alike, so {groups} groups show no small difference: more "
            f"groups; or {hint}"
        )
    lost = {gate.against for gate in missed}
    if cheap := [command for name, command in CHEAP.items() if name in lost]:
        hint = f"release the cheap model: {cheap[0]}; or {hint}"
    if of_file := [text for gate in missed if (text := alone(gate, report))]:
        hint = f"{of_file[0]}; or {hint}"
    return hint


def _check(gate: Gate, report: EvaluationReport) -> GateResult:
    if gate.release is not None and gate.release not in report["models"]:
        return GateResult(
            True,
            f"no {gate.release} release yet: nothing to compare {gate.metric} of {gate.model} with",
        )
    model = _named(gate.model, report)
    if gate.metric in (WIN_RATE, CORRECTED_WIN_RATE):
        return _preferred(gate, model, report)
    value = _metric(model, gate.metric, report)
    if gate.min is not None:
        passed = value >= gate.min
        text, bound = _apart(gate.metric, value, gate.min)
        return GateResult(passed, f"{gate.metric} of {model} is {text} (at least {bound} required)")
    if gate.max is not None:
        passed = value <= gate.max
        text, bound = _apart(gate.metric, value, gate.max)
        return GateResult(passed, f"{gate.metric} of {model} is {text} (at most {bound} required)")
    assert gate.against is not None  # Gate's own validator
    other = _named(gate.against, report)
    if gate.model == gate.against:
        raise UsageError(
            f"a gate compares {model} with itself", hint=f"measured: {', '.join(_entries(report))}"
        )
    if gate.rows is not None and not _part(gate, report)["n"]:
        return GateResult(
            True,
            f"no row is {gate.rows} to {other}: nothing to compare {gate.metric} of {model} with",
        )
    drop, most, p = (0.0, 0.0, 1.0) if model == other else _drop(other, model, gate, report)
    # the p-value that the report's page shows
    is_chance = gate.max_drop is None and p > 1 - gate.confidence
    bound, limit = _apart(gate.metric, abs(most), abs(gate.allowed_drop), show=_amount)
    where = (
        f" on the {_part(gate, report)['n']:,} {gate.rows} rows" if gate.rows is not None else ""
    )
    verb = (
        "gains at least"
        if most < 0
        else "loses at most"
        if most <= gate.allowed_drop
        else "may lose up to"
    )
    # a model loses accuracy, but not error
    of = "in" if gate.metric in report["lower_is_better"] else "of"
    measured = (
        f"{_amount(gate.metric, abs(drop))} {'better' if drop < 0 else 'worse'}"
        if drop
        else "equal"
    )
    allowed = (
        f"a gain of {limit} required" if gate.max_drop is None else f"a loss of {limit} allowed"
    )
    text = (
        f"{model} {verb} {bound} {of} {gate.metric} {'on' if most < 0 else 'to'} {other}{where} "
        f"({allowed}, "
        f"{percent(gate.confidence, 0)} confidence; measured: {measured})"
    )
    differences, n = ({}, 0) if model == other else _differences(other, model, gate, report)
    groups = differences[gate.metric].get("groups", 0) if gate.metric in differences else 0
    if groups:
        text += f", on {n} rows of {groups} groups"
    if is_chance and most <= gate.allowed_drop:
        text += f"; so few rows differ that the gain may be chance (p = {p:.2f})"
    return GateResult(most <= gate.allowed_drop and not is_chance, text, groups)


def _preferred(gate: Gate, model: str, report: EvaluationReport) -> GateResult:
    """The gate on the win rate: its bound must meet `min`, and from a
    half on the sign test must decide too.
    """
    assert gate.against is not None and gate.min is not None  # Gate's own validator
    other = _named(gate.against, report)
    entries = _entries(report)
    for name in (model, other):
        if name not in entries:
            raise UsageError(
                f"a gate names the model '{name}'", hint=f"measured: {', '.join(entries)}"
            )
    entry = judged_of(report, model, other)
    if entry is None:
        how = f"slmctl review --pairs {model} {other}, and evaluate.pairs names its file"
        return GateResult(False, f"no pair of {model} and {other} is judged ({how})")
    if gate.metric == CORRECTED_WIN_RATE:
        return _corrected(gate, entry)
    effect = entry.get("design_effect", 1.0)
    rate = WinRate(entry["won"], entry["lost"], entry["same"] + entry["neither"], effect)
    bound, _ = rate.interval(2 * gate.confidence - 1)
    is_chance = gate.min >= 0.5 and rate.p > 1 - gate.confidence
    least, limit = _apart(gate.metric, bound, gate.min)
    text = (
        f"{model} wins at least {least} of {rate.pairs} judged pairs against {other} (at least "
        f"{limit} required, "
        f"{percent(gate.confidence, 0)} confidence; measured: {percent(rate.rate)}, sign test p = "
        f"{rate.p:.2g})"
    )
    text += ", which may be chance" if is_chance and bound >= gate.min else ""
    return GateResult(bound >= gate.min and not is_chance, text, entry.get("groups", 0))


def _corrected(gate: Gate, entry: JudgedEntry) -> GateResult:
    """The gate on the win rate by people and an admitted judge: its lower bound must meet `min`."""
    assert gate.min is not None  # Gate's own validator
    pair, judge = f"{entry['model']} and {entry['against']}", entry.get("judge")
    if judge is None or "win_rate" not in judge:
        how = (
            "slmctl evaluate --judge NAME"
            if judge is None
            else "people's pairs, or gate on win_rate"
        )
        state = (
            "no judge was asked"
            if judge is None
            else f"{judge['judge']} is not admitted as a judge"
        )
        if judge is not None and judge["missing"]:
            state, how = (
                f"{judge['judge']} was not asked",
                "ask again: slmctl evaluate --judge NAME",
            )
        return GateResult(False, f"{state} about pairs of {pair} ({how})")
    level = 1 - (1 - gate.confidence) / judge["tried"]
    bound = judge["centre"] - t_quantile(level, judge["freedom"]) * judge["deviation"]
    least, limit = _apart(gate.metric, bound, gate.min)
    text = (
        f"{entry['model']} wins at least {least} of {judge['rows']} pairs against "
        f"{entry['against']} (at least {limit} "
        f"required, {percent(gate.confidence, 0)} confidence; {judge['judge']} with "
        f"{judge['pairs']} pairs of people: "
        f"{percent(judge['win_rate'])})"
    )
    return GateResult(bound >= gate.min, text, entry.get("groups", 0))


def _amount(metric: str, value: float, digits: int = 1) -> str:
    return scoreboard.difference(metric, value, digits).lstrip("+")


def _apart(
    metric: str,
    value: float,
    bound: float,
    show: Callable[[str, float, int], str] = scoreboard.figure,
) -> tuple[str, str]:
    """Value and bound as texts, with enough digits (1 to 6) to show that they differ."""
    for digits in range(1, 7):
        texts = show(metric, value, digits), show(metric, bound, digits)
        if texts[0] != texts[1] or value == bound:
            break
    return texts


def rows_needed(gate: Gate) -> int:
    """Smallest number of measured rows with which a gate can pass.

    For `max_drop` above 0: the number where two models that answer every row alike pass. `max_drop:
    0` and `min_gain` need a difference: the number where a model that is right on every row passes
    against one that is always wrong. 1 for other gates and for metrics that are not shares.
    """
    if gate.against is None or gate.metric not in SHARES:
        return 1
    tie = gate.allowed_drop > 0

    def passes(rows: int) -> bool:
        is_chance = gate.max_drop is None and mcnemar(0, rows) > 1 - gate.confidence
        return (
            not is_chance
            and drop_bound(0, 0 if tie else rows, rows, gate.confidence) <= gate.allowed_drop
        )

    high = 1
    while not passes(high):
        high *= 2
    return bisect.bisect_left(
        range(high), True, lo=high // 2, key=lambda rows: rows > 0 and passes(rows)
    )


def out_of_reach(gates: Sequence[Gate], rows: int, groups: float | None = None) -> list[str]:
    """A sentence for each gate that cannot pass on this number of rows, with the number that it
    needs.

    `groups`: the effective number of groups of these rows; None where each row is independent.
    """
    count = rows if groups is None else independent_rows(groups)
    of = (
        ""
        if groups is None
        else f" of {groups:.0f} groups, which tell as much as {count:.0f} independent ones,"
    )
    return [
        f"{rows} rows{of} are too few for the gate {_title(gate)}: it takes "
        + (
            f"{needed}, even where both answer every row alike"
            if gate.allowed_drop > 0
            else f"at least {needed}"
        )
        for gate in gates
        if (needed := rows_needed(gate)) > count
    ]


def _title(gate: Gate) -> str:
    limit = (
        f"min_gain {gate.min_gain:g}" if gate.max_drop is None else f"max_drop {gate.max_drop:g}"
    )
    rows = f" on {gate.rows} rows" if gate.rows is not None else ""
    return (
        f"{limit} in {gate.metric} of {gate.model} against {gate.against}{rows} at confidence "
        f"{gate.confidence:g}"
    )


def _drop(
    first: str, second: str, gate: Gate, report: EvaluationReport
) -> tuple[float, float, float]:
    """Returns (drop, upper bound of it, p-value); drop: how much worse `second` is than `first` in
    the gate's metric.

    The bound is Tango's for a share; for another metric a percentile of the paired bootstrap. The
    report holds those for some levels of confidence; the lowest level at or above the gate's is
    taken.
    """
    _metric(first, gate.metric, report)
    metrics, n = _differences(first, second, gate, report)
    if gate.metric not in metrics:
        raise UsageError(
            f"a gate cannot compare {gate.metric} of {second} against {first}",
            hint="they have no rows in common, or one of them has no such metric",
        )
    rise = metrics[gate.metric]
    drop = rise if gate.metric in report["lower_is_better"] else turned(rise)
    if drop["test"] == "mcnemar":
        lost, won, effect = drop["only_second"], drop["only_first"], rise.get("design_effect", 1.0)
        most = drop_bound(lost / effect, won / effect, n / effect, gate.confidence)
        return drop["difference"] + 0.0, most, mcnemar(lost, won, effect)
    bounds = {float(level): value for level, value in drop["quantiles"].items()}
    levels = [level for level in bounds if level >= gate.confidence - 1e-9]
    if not levels:
        raise UsageError(
            f"a gate on {gate.metric} has confidence {gate.confidence:g}",
            hint=f"the report's bootstrap goes up to {max(bounds):g}",
        )
    return drop["difference"], bounds[min(levels)], drop.get("p", 0.0)


def _differences(
    first: str, second: str, gate: Gate, report: EvaluationReport
) -> tuple[Mapping[str, MetricDifference], int]:
    """Returns (differences by metric, second model minus first;
    number of rows that both answered).
    """
    if gate.rows is not None:
        part = _part(gate, report)
        return part["differences"].get(second, {}), part["n"]
    pair = pair_of(report, first, second)
    return (pair["metrics"], pair["n"]) if pair is not None else ({}, 0)


def _part(gate: Gate, report: EvaluationReport) -> ReleaseRows:
    """The report's figures on the old or the new rows of a release, as `gate.rows` says.

    Raises:
        UsageError: The report does not distinguish old and new rows.
    """
    release = report.get("release")
    if release is None or gate.rows not in release["rows"]:
        raise UsageError(
            f"a gate asks for the {gate.rows} rows of {gate.against}, and its data set is not "
            "below runs/",
            hint="evaluate in the project that made the release, or leave out 'rows'",
        )
    return release["rows"][gate.rows]


def _named(model: str, report: EvaluationReport) -> str:
    """The participant that a gate names; the base by its plain name,
    with whatever examples in its prompt.
    """
    choice = report["choice"]
    if model == RELEASE:
        if choice is not None:
            chosen_file(choice)
        return released(report)
    if model != "chosen":
        return model_named(report, model) or model
    if choice is None:
        raise UsageError(
            "a gate names the model 'chosen'",
            hint="evaluate.choose: {smallest_within: 0.01} picks one",
        )
    return chosen_file(choice)


def alone(gate: Gate, report: EvaluationReport) -> str:
    """A sentence about a gate that tests a GGUF file alone where the release answers by more; ''
    for any other gate.

    A comparison with the model that the file was made of is about the file: that is what
    quantization costs.
    """
    shipped = released(report)
    file = file_of(report, shipped)
    if shipped == file or gate.model not in (file, "chosen") or gate.against in _sources(report):
        return ""
    return (
        f"a gate on {gate.model} tests the file alone; 'model: {RELEASE}' tests {shipped}, by "
        "which a release answers"
    )


def own_check(gates: Sequence[Gate], report: EvaluationReport) -> list[GateResult]:
    """A failed result where the file of the release surely loses over LOSS to the model that it was
    made of; else none.

    The linear models of a release can hide a broken file. A gate that compares a model with the
    source replaces this.
    """
    file, metric = file_of(report, released(report)), report["primary_metric"]
    sources = _sources(report)
    if not sources or file in sources or any(gate.against in sources for gate in gates):
        return []
    pair = pair_of(report, sources[-1], file)
    if pair is None or metric not in pair["metrics"]:
        return []
    difference = pair["metrics"][metric]
    if difference["interval"][1] >= -LOSS:
        return []
    lost, limit = _amount(metric, abs(difference["difference"])), _amount(metric, LOSS)
    text = (
        f"the file {file} loses {lost} of {metric} to {sources[-1]}, surely more than {limit}: "
        "it is broken"
    )
    return [GateResult(False, text)]


def _sources(report: EvaluationReport) -> list[str]:
    """The measured models that the GGUF files were made of, the last step last."""
    return [name for name, entry in report["models"].items() if entry["kind"] in SOURCES]


def chosen_file(choice: ChoiceEntry, *, among: Container[str | None] | None = None) -> str:
    """The GGUF file that evaluate.choose picked.

    Raises:
        GateError: No file met the rule, or none of `among`.
    """
    if choice["model"] is None or (among is not None and choice["model"] not in among):
        raise GateError(
            f"no GGUF file meets evaluate.choose: {choice['metric']} within "
            f"{choice['smallest_within']:g} of "
            f"{choice['of']}, and min_tokens_per_s where it is set",
            reason="none_chosen",
            hint="allow a larger loss or a lower speed, or add a larger type to quantize.types",
        )
    return choice["model"]


def _entries(report: EvaluationReport) -> dict[str, ParticipantEntry]:
    return {**report["models"], **report["baselines"]}


def _metric(model: str, metric: str, report: EvaluationReport) -> float:
    entries = _entries(report)
    if model not in entries:
        raise UsageError(
            f"a gate names the model '{model}'", hint=f"measured: {', '.join(entries)}"
        )
    metrics = entries[model]["metrics"]
    if metric not in metrics:
        raise UsageError(
            f"a gate names the metric '{metric}'", hint=f"measured: {', '.join(metrics)}"
        )
    return metrics[metric]
