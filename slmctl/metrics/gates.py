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
from slmctl.metrics.baseline import RELEASED
from slmctl.metrics.statistics import drop_bound, independent_rows, mcnemar, t_quantile
from slmctl.metrics.win_rate import WinRate
from slmctl.reports import RELEASE, scoreboard
from slmctl.reports.evaluation_report import (
    ChoiceEntry,
    EvaluationReport,
    JudgedEntry,
    JudgeEntry,
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
    everything = [*results, *own_check(gates, report)]
    failed = [result for result in everything if not result.passed]
    if not failed:
        return results
    missed = [gate for gate, result in zip(gates, results, strict=True) if not result.passed]
    text = "; ".join(result.text for result in failed)
    raise GateError(text, reason="gate_failed", hint=_advice(missed, failed, report))


def _advice(missed: Sequence[Gate], failed: Sequence[GateResult], report: EvaluationReport) -> str:
    """Advice on failed gates: test what ships, release a cheap model
    that won, or make the model better.
    """
    hint = "more or cleaner data, more epochs, or a larger quantization type"
    groups = max(result.groups for result in failed)
    if groups:
        hint = (
            f"rows of one group are alike, so {groups} groups show no small difference: more "
            f"groups; or {hint}"
        )
    lost = {gate.against for gate in missed}
    cheap = [each.release for each in RELEASED if each.name in lost]
    if cheap:
        hint = f"release the cheap model: {cheap[0]}; or {hint}"
    for gate in missed:
        of_file = alone(gate, report)
        if of_file:
            return f"{of_file}; or {hint}"
    return hint


def _check(gate: Gate, report: EvaluationReport) -> GateResult:
    if gate.release is not None and gate.release not in report["models"]:
        text = f"no {gate.release} release yet"
        return GateResult(True, f"{text}: nothing to compare {gate.metric} of {gate.model} with")
    model = _named(gate.model, report)
    if gate.metric in (WIN_RATE, CORRECTED_WIN_RATE):
        return _preferred(gate, model, report)
    value = _metric(model, gate.metric, report)
    subject = f"{gate.metric} of {model}"
    if gate.min is not None:
        text, bound = _apart(gate.metric, value, gate.min)
        text = f"{subject} is {text} (at least {bound} required)"
        return GateResult(value >= gate.min, text)
    if gate.max is not None:
        text, bound = _apart(gate.metric, value, gate.max)
        text = f"{subject} is {text} (at most {bound} required)"
        return GateResult(value <= gate.max, text)
    return _compared(gate, model, report)


@dataclass(frozen=True)
class Drop:
    """Loss of a model in a metric, beside another one; below 0 for a gain.

    Attributes:
        most: Its upper bound.
        p: The p-value of no difference.
        rows, groups: Numbers of rows that both answered, and of their groups; 0 without groups.
    """

    measured: float = 0.0
    most: float = 0.0
    p: float = 1.0
    rows: int = 0
    groups: int = 0


def _compared(gate: Gate, model: str, report: EvaluationReport) -> GateResult:
    """The gate on a difference: its bound must stay within the drop that is allowed, and a gain
    must not be chance.
    """
    assert gate.against is not None  # Gate's own validator
    other = _named(gate.against, report)
    if gate.model == gate.against:
        measured = ", ".join(_entries(report))
        raise UsageError(f"a gate compares {model} with itself", hint=f"measured: {measured}")
    if gate.rows is not None and not _part(gate, report)["n"]:
        text = f"no row is {gate.rows} to {other}"
        return GateResult(True, f"{text}: nothing to compare {gate.metric} of {model} with")
    drop = Drop()
    if model != other:
        drop = _drop(other, model, gate, report)
    # the p-value that the report's page shows
    is_chance = gate.max_drop is None and drop.p > 1 - gate.confidence
    is_within = drop.most <= gate.allowed_drop
    text = f"{model} {_bound_text(gate, other, drop, report)} ({_measured_text(gate, drop)})"
    if drop.groups:
        text += f", on {drop.rows} rows of {drop.groups} groups"
    if is_chance and is_within:
        text += f"; so few rows differ that the gain may be chance (p = {drop.p:.2f})"
    return GateResult(is_within and not is_chance, text, drop.groups)


def _bound_text(gate: Gate, other: str, drop: Drop, report: EvaluationReport) -> str:
    """Such as `loses at most 2.0% of accuracy to merged`."""
    bound, _ = _drop_texts(gate, drop)
    verb = "may lose up to"
    if drop.most < 0:
        verb = "gains at least"
    elif drop.most <= gate.allowed_drop:
        verb = "loses at most"
    side = "on" if drop.most < 0 else "to"
    # a model loses accuracy, but not error
    of = "in" if gate.metric in report["lower_is_better"] else "of"
    text = f"{verb} {bound} {of} {gate.metric} {side} {other}"
    if gate.rows is not None:
        count = _part(gate, report)["n"]
        text += f" on the {count:,} {gate.rows} rows"
    return text


def _measured_text(gate: Gate, drop: Drop) -> str:
    """The limit of a gate on a difference, its confidence, and the measured difference."""
    _, limit = _drop_texts(gate, drop)
    allowed = f"a loss of {limit} allowed"
    if gate.max_drop is None:
        allowed = f"a gain of {limit} required"
    measured = "equal"
    if drop.measured:
        side = "better" if drop.measured < 0 else "worse"
        measured = f"{_amount(gate.metric, abs(drop.measured))} {side}"
    return f"{allowed}, {percent(gate.confidence, 0)} confidence; measured: {measured}"


def _drop_texts(gate: Gate, drop: Drop) -> tuple[str, str]:
    """The bound of a drop, and the drop that is allowed, both without a sign."""
    return _apart(gate.metric, abs(drop.most), abs(gate.allowed_drop), show=_amount)


def _preferred(gate: Gate, model: str, report: EvaluationReport) -> GateResult:
    """The gate on the win rate: its bound must meet `min`, and from a
    half on the sign test must decide too.
    """
    assert gate.against is not None and gate.min is not None  # Gate's own validator
    other = _named(gate.against, report)
    for name in (model, other):
        _entry(name, report)
    entry = judged_of(report, model, other)
    if entry is None:
        how = f"slmctl review --pairs {model} {other}, and evaluate.pairs names its file"
        return GateResult(False, f"no pair of {model} and {other} is judged ({how})")
    if gate.metric == CORRECTED_WIN_RATE:
        return _corrected(gate, entry)
    ties = entry["same"] + entry["neither"]
    effect = entry.get("design_effect", 1.0)
    rate = WinRate(entry["won"], entry["lost"], ties, effect)
    bound, _ = rate.interval(2 * gate.confidence - 1)
    is_enough = bound >= gate.min
    is_chance = gate.min >= 0.5 and rate.p > 1 - gate.confidence
    least, limit = _apart(gate.metric, bound, gate.min)
    rule = f"at least {limit} required, {percent(gate.confidence, 0)} confidence"
    measured = f"{percent(rate.rate)}, sign test p = {rate.p:.2g}"
    text = f"{model} wins at least {least} of {rate.pairs} judged pairs against {other}"
    text += f" ({rule}; measured: {measured})"
    if is_chance and is_enough:
        text += ", which may be chance"
    return GateResult(is_enough and not is_chance, text, entry.get("groups", 0))


def _corrected(gate: Gate, entry: JudgedEntry) -> GateResult:
    """The gate on the win rate by people and an admitted judge: its lower bound must meet `min`."""
    assert gate.min is not None  # Gate's own validator
    model, other = entry["model"], entry["against"]
    judge = entry.get("judge")
    if judge is None or "win_rate" not in judge:
        state, how = _unjudged(judge)
        return GateResult(False, f"{state} about pairs of {model} and {other} ({how})")
    level = 1 - (1 - gate.confidence) / judge["tried"]
    quantile = t_quantile(level, judge["freedom"])
    bound = judge["centre"] - quantile * judge["deviation"]
    least, limit = _apart(gate.metric, bound, gate.min)
    rule = f"at least {limit} required, {percent(gate.confidence, 0)} confidence"
    judges = f"{judge['judge']} with {judge['pairs']} pairs of people"
    text = f"{model} wins at least {least} of {judge['rows']} pairs against {other}"
    text += f" ({rule}; {judges}: {percent(judge['win_rate'])})"
    return GateResult(bound >= gate.min, text, entry.get("groups", 0))


def _unjudged(judge: JudgeEntry | None) -> tuple[str, str]:
    """The reason for a judge to have no win rate, and a remedy."""
    if judge is None:
        return "no judge was asked", "slmctl evaluate --judge NAME"
    if judge["missing"]:
        return f"{judge['judge']} was not asked", "ask again: slmctl evaluate --judge NAME"
    return f"{judge['judge']} is not admitted as a judge", "people's pairs, or gate on win_rate"


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
        text, bound_text = show(metric, value, digits), show(metric, bound, digits)
        if text != bound_text or value == bound:
            break
    return text, bound_text


def rows_needed(gate: Gate) -> int:
    """Smallest number of measured rows with which a gate can pass.

    For `max_drop` above 0: the number where two models that answer every row alike pass. `max_drop:
    0` and `min_gain` need a difference: the number where a model that is right on every row passes
    against one that is always wrong. 1 for other gates and for metrics that are not shares.
    """
    if gate.against is None or gate.metric not in SHARES:
        return 1

    def passes(rows: int) -> bool:
        if gate.max_drop is None and mcnemar(0, rows) > 1 - gate.confidence:
            return False
        better = 0 if gate.allowed_drop > 0 else rows
        return drop_bound(0, better, rows, gate.confidence) <= gate.allowed_drop

    high = 1
    while not passes(high):
        high *= 2
    low = high // 2
    return bisect.bisect_left(range(high), True, lo=low, key=lambda rows: rows > 0 and passes(rows))


def out_of_reach(gates: Sequence[Gate], rows: int, groups: float | None = None) -> list[str]:
    """A sentence for each gate that cannot pass on this number of rows, with the number that it
    needs.

    `groups`: the effective number of groups of these rows; None where each row is independent.
    """
    independent: float = rows
    of = ""
    if groups is not None:
        independent = independent_rows(groups)
        of = f" of {groups:.0f} groups, which tell as much as {independent:.0f} independent ones,"
    sentences = []
    for gate in gates:
        needed = rows_needed(gate)
        if needed <= independent:
            continue
        least = f"at least {needed}"
        if gate.allowed_drop > 0:
            least = f"{needed}, even where both answer every row alike"
        text = f"{rows} rows{of} are too few for the gate {_title(gate)}: it takes {least}"
        sentences.append(text)
    return sentences


def _title(gate: Gate) -> str:
    if gate.max_drop is None:
        limit = f"min_gain {gate.min_gain:g}"
    else:
        limit = f"max_drop {gate.max_drop:g}"
    models = f"{gate.model} against {gate.against}"
    if gate.rows is not None:
        models += f" on {gate.rows} rows"
    return f"{limit} in {gate.metric} of {models} at confidence {gate.confidence:g}"


def _drop(first: str, second: str, gate: Gate, report: EvaluationReport) -> Drop:
    """The loss of `second` beside `first` in the gate's metric.

    The bound is Tango's for a share; for another metric a percentile of the paired bootstrap. The
    report holds those for some levels of confidence; the lowest level at or above the gate's is
    taken.
    """
    _metric(first, gate.metric, report)
    metrics, n = _differences(first, second, gate, report)
    if gate.metric not in metrics:
        text = f"a gate cannot compare {gate.metric} of {second} against {first}"
        hint = "they have no rows in common, or one of them has no such metric"
        raise UsageError(text, hint=hint)
    rise = metrics[gate.metric]
    drop = rise if gate.metric in report["lower_is_better"] else turned(rise)
    measured = drop["difference"]
    groups = rise.get("groups", 0)
    if drop["test"] == "mcnemar":
        lost, won = drop["only_second"], drop["only_first"]
        effect = rise.get("design_effect", 1.0)
        most = drop_bound(lost / effect, won / effect, n / effect, gate.confidence)
        return Drop(measured + 0.0, most, mcnemar(lost, won, effect), n, groups)
    bounds = {float(level): value for level, value in drop["quantiles"].items()}
    levels = [level for level in bounds if level >= gate.confidence - 1e-9]
    if not levels:
        text = f"a gate on {gate.metric} has confidence {gate.confidence:g}"
        raise UsageError(text, hint=f"the report's bootstrap goes up to {max(bounds):g}")
    most = bounds[min(levels)]
    return Drop(measured, most, drop.get("p", 0.0), n, groups)


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
    if pair is None:
        return {}, 0
    return pair["metrics"], pair["n"]


def _part(gate: Gate, report: EvaluationReport) -> ReleaseRows:
    """The report's figures on the old or the new rows of a release, as `gate.rows` says.

    Raises:
        UsageError: The report does not distinguish old and new rows.
    """
    release = report.get("release")
    if release is None or gate.rows not in release["rows"]:
        text = f"a gate asks for the {gate.rows} rows of {gate.against}"
        raise UsageError(
            f"{text}, and its data set is not below runs/",
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
    is_about_file = gate.model in (file, "chosen")
    if shipped == file or not is_about_file or gate.against in _sources(report):
        return ""
    whole = f"'model: {RELEASE}' tests {shipped}"
    return f"a gate on {gate.model} tests the file alone; {whole}, by which a release answers"


def own_check(gates: Sequence[Gate], report: EvaluationReport) -> list[GateResult]:
    """A failed result where the file of the release surely loses over LOSS to the model that it was
    made of; else none.

    The linear models of a release can hide a broken file. A gate that compares a model with the
    source replaces this.
    """
    file = file_of(report, released(report))
    metric = report["primary_metric"]
    sources = _sources(report)
    if not sources or file in sources:
        return []
    if any(gate.against in sources for gate in gates):
        return []
    source = sources[-1]
    pair = pair_of(report, source, file)
    if pair is None or metric not in pair["metrics"]:
        return []
    difference = pair["metrics"][metric]
    _, most = difference["interval"]
    if most >= -LOSS:
        return []
    lost = _amount(metric, abs(difference["difference"]))
    limit = _amount(metric, LOSS)
    text = f"the file {file} loses {lost} of {metric} to {source}"
    return [GateResult(False, f"{text}, surely more than {limit}: it is broken")]


def _sources(report: EvaluationReport) -> list[str]:
    """The measured models that the GGUF files were made of, the last step last."""
    return [name for name, entry in report["models"].items() if entry["kind"] in SOURCES]


def chosen_file(choice: ChoiceEntry, *, among: Container[str | None] | None = None) -> str:
    """The GGUF file that evaluate.choose picked.

    Raises:
        GateError: No file met the rule, or none of `among`.
    """
    model = choice["model"]
    if model is None or (among is not None and model not in among):
        rule = f"{choice['metric']} within {choice['smallest_within']:g} of {choice['of']}"
        raise GateError(
            f"no GGUF file meets evaluate.choose: {rule}, and min_tokens_per_s where it is set",
            reason="none_chosen",
            hint="allow a larger loss or a lower speed, or add a larger type to quantize.types",
        )
    return model


def _entries(report: EvaluationReport) -> dict[str, ParticipantEntry]:
    return {**report["models"], **report["baselines"]}


def _entry(model: str, report: EvaluationReport) -> ParticipantEntry:
    entries = _entries(report)
    if model not in entries:
        measured = ", ".join(entries)
        raise UsageError(f"a gate names the model '{model}'", hint=f"measured: {measured}")
    return entries[model]


def _metric(model: str, metric: str, report: EvaluationReport) -> float:
    metrics = _entry(model, report)["metrics"]
    if metric not in metrics:
        measured = ", ".join(metrics)
        raise UsageError(f"a gate names the metric '{metric}'", hint=f"measured: {measured}")
    return metrics[metric]
