"""predictions -> policy: a score of every answer, and the threshold
from which on an answer is kept locally.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from markupsafe import Markup

from slmctl import console, models
from slmctl.artifacts.artifact import Artifact, canonical, sha256_bytes
from slmctl.config import CalibrateConfig
from slmctl.console import percent
from slmctl.errors import DataError, GateError, UsageError
from slmctl.inference.escalation_policy import (
    LINEAR,
    WORDS,
    AnswerCosts,
    Policy,
    PolicyFigures,
    signals,
)
from slmctl.metrics import error_threshold
from slmctl.metrics.answer_score import CalibrationRows, fits_score
from slmctl.metrics.error_threshold import MIN_ROWS
from slmctl.metrics.predictions import Prediction, PredictionFacts, facts_of, read_predictions
from slmctl.reports import svg_chart
from slmctl.task.contract import Task
from slmctl.task.records import read_records

FEW_ROWS = 400  # with fewer, a policy often passes by chance


def run(
    config: CalibrateConfig,
    *,
    predictions: Artifact,
    out: Path,
    outside: Artifact | None = None,
    prepared: Artifact | None = None,
) -> dict[str, Any]:
    """Fit the score, test the thresholds, and write `policy.json` and `curve.svg`.

    `prepared`: the data set of the rows, where these have groups.

    Raises:
        DataError: There are too few rows, or the answers have no confidence.
        GateError: No threshold keeps the error low enough.
        IntegrityError: The artifact of predictions does not hold predictions.
        UsageError: The predictions are of another split than calibration, or of another kind of
            model.
    """
    _require(predictions, outside)
    task = Task.read(predictions.path)
    _require_labels(config, task.labels)
    lines = _answered(predictions)
    own = len(lines)
    if outside is not None:
        lines += [line for line in _answered(outside) if line["expected"] == config.out_of_scope]
    groups = _groups(prepared) if prepared is not None else None
    rows = read(lines, task, config, groups)
    least_p, facts = config.least_p_correct, facts_of(predictions)
    ms = facts.get("step_ms") or {"": (facts.get("latency_ms") or {"median": 0.0})["median"]}
    fitted = error_threshold.fit(rows, config, least_p=least_p, ms=ms[""])
    policy = Policy(
        gguf=_source(facts),
        task=task.digest,
        kind=task.kind,
        correct=correctness(task, config),
        out_of_scope=config.out_of_scope or "",
        costs=_costs(config),
        **fitted,
    )
    looks = {name: _rows(alone, task, config, groups) for name, alone in _looks(lines).items()}
    if looks:
        try:
            first = error_threshold.fit_first(looks, rows, fitted, config, least_p=least_p, ms=ms)
            policy = dataclasses.replace(policy, first=first)
        except GateError as error:
            console.say(f"  no first look: {error.message}")
    policy.figures.update(_expected(policy, lines[:own], rows))
    if config.min_token_f1 is not None:
        policy.figures["min_token_f1"] = config.min_token_f1
    policy.write(out)
    (out / "curve.svg").write_text(svg_chart.standalone(picture(policy.figures)), encoding="utf-8")
    figures = _figures(policy)
    if models.class_of(facts["kind"]).is_remote:
        figures |= {"remote": True} | _by_confidence(policy, lines)
    return {"model": facts["model"], "sha256": policy.gguf, "correct": policy.correct} | figures


def _require_labels(config: CalibrateConfig, labels: Collection[str]) -> None:
    """Raise a UsageError for a label in the config that the task does not have."""
    if config.out_of_scope is not None and config.out_of_scope not in labels:
        raise UsageError(
            f"calibrate.out_of_scope '{config.out_of_scope}' is not one of the task's labels",
            hint="task.labels",
        )
    dear = config.costs.label if config.costs is not None else {}
    if unknown := dear.keys() - set(labels):
        text = f"calibrate.costs.label '{min(unknown)}' is not one of the task's labels"
        raise UsageError(text, hint="task.labels")


def _figures(policy: Policy) -> dict[str, Any]:
    """The figures of a policy and of its first look for the manifest, without their curves."""
    figures: dict[str, Any] = {**policy.figures}
    figures.pop("curve", None)
    if policy.first is not None:
        first: dict[str, Any] = {**policy.first.figures}
        first.pop("curve", None)
        if policy.first.words_alone:
            first["words_alone"] = True
        figures["first_look"] = first
    if policy.costs is not None:
        figures["currency"] = policy.costs.currency
    return figures


def _by_confidence(policy: Policy, lines: Sequence[Prediction]) -> dict[str, float]:
    """The least confidence that is kept, if confidence alone decides what is kept."""
    kept = [
        line.get("confidence") or 0.0
        for line in lines
        if policy.judge(line, line["answer"] or "").keep
    ]
    least = min(kept)
    above = sum((line.get("confidence") or 0.0) >= least for line in lines)
    return {"least_confidence": least} if len(kept) == above else {}


def _costs(config: CalibrateConfig) -> AnswerCosts | None:
    """The costs that a policy decides by."""
    if config.costs is None or config.unit_costs is None:
        return None
    currency = config.prices.currency if config.prices is not None else "EUR"
    return AnswerCosts(config.unit_costs[0], config.costs.wrong, config.costs.label, currency)


def _looks(lines: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The answers of those that may look first, by name: all linear
    members, and words alone beside an encoder.
    """
    linear = [line for line in lines if "first" in line]
    words = [line for line in linear if "first" in line["first"]]
    looks = {LINEAR: [cast(Prediction, {**line, **line["first"]}) for line in linear]}
    looks[WORDS] = [cast(Prediction, {**line, **line["first"]["first"]}) for line in words]
    return {name: alone for name, alone in looks.items() if alone}


def _answered(predictions: Artifact) -> list[Prediction]:
    """The predictions, without rows that an endpoint answered without a probability or not at all.

    A policy never keeps such an answer, so they say nothing about the kept ones.
    """
    lines, facts = read_predictions(predictions), facts_of(predictions)
    if not models.class_of(facts["kind"]).is_remote:
        return lines
    answered = [line for line in lines if line.get("confidence") is not None]
    if left_out := len(lines) - len(answered):
        console.say(
            f"  {console.count(left_out, 'row')} without an answer of {facts['model']} or its "
            "probability"
        )
    return answered


def _source(facts: PredictionFacts) -> str:
    """The sha256 of the file that answered, or for an endpoint of its address and model."""
    return facts["sha256"] or sha256_bytes(canonical([facts.get("endpoint"), facts["model"]]))[7:]


def _expected(policy: Policy, lines: Sequence[Prediction], rows: CalibrationRows) -> PolicyFigures:
    """Accuracy on the rows that test the policy: `p_correct` as the
    policy expects it, `right` as measured.
    """
    tests = [k for k, line in enumerate(lines) if not rows.fits[k]]
    chances = [policy.judge(lines[k], lines[k]["answer"] or "").p_correct for k in tests]
    right = rows.right[tests] & ~rows.outside[tests]
    return {"p_correct": float(np.mean(chances)), "right": float(right.mean())}


def _groups(prepared: Artifact) -> dict[str, str] | None:
    """Id of a held-out record -> its group, or the id itself where it
    has none; None where no record has one.
    """
    files = [prepared.file(f"{split}.jsonl") for split in ("calibration", "validation")]
    records = [record for path in files for record in read_records(path)]
    if not any(record.group for record in records):
        return None
    return {record.id: record.group or record.id for record in records}


def correctness(task: Task, config: CalibrateConfig) -> str:
    """The definition of a right answer, in words."""
    if task.rules.is_free and config.min_token_f1 is not None:
        return f"token F1 with the reference answer of at least {config.min_token_f1:g}"
    return task.rules.right


def read(
    lines: Sequence[Prediction],
    task: Task,
    config: CalibrateConfig,
    groups: Mapping[str, str] | None = None,
) -> CalibrationRows:
    """Predictions as calibration rows; `groups` has the group of each row by its id, where rows
    have groups.

    Raises:
        DataError: There are fewer than MIN_ROWS, or one has no answer or no confidence.
    """
    if len(lines) < MIN_ROWS:
        raise DataError(
            f"{len(lines)} calibration rows are too few: at least {MIN_ROWS} are needed to bound "
            "an error of a few "
            "percent",
            hint="a larger prepare.splits.calibration, or more data",
        )
    if len(lines) < FEW_ROWS:
        console.say(
            f"  note: {len(lines)} calibration rows are few: a policy that passes on so few may be "
            "over max_error more "
            f"often than {percent(1 - config.confidence, 0)} of the time; {FEW_ROWS} and more are "
            "better"
        )
    return _rows(lines, task, config, groups)


def _rows(
    lines: Sequence[Prediction],
    task: Task,
    config: CalibrateConfig,
    groups: Mapping[str, str] | None,
) -> CalibrationRows:
    outside, dear = (
        config.out_of_scope or "",
        config.costs.label if config.costs is not None else {},
    )
    try:
        table = [signals(line, out_of_scope=outside) for line in lines]
    except ValueError as error:
        raise DataError(f"these predictions cannot be calibrated: {error}") from None
    names = tuple(table[0])
    if any(tuple(row) != names for row in table):
        raise DataError(
            "these predictions cannot be calibrated: some answers have labels and others have none"
        )
    names_of_groups = [(groups or {}).get(line["id"], line["id"]) for line in lines]
    answers = [line["answer"] or "" for line in lines]
    expected = [line["expected"] for line in lines]
    right = [
        task.rules.is_right(answer, reference, config.min_token_f1)
        for answer, reference in zip(answers, expected, strict=True)
    ]
    numbers = np.unique(names_of_groups, return_inverse=True)[1]
    dear_labels = np.array([label if label in dear else "" for label in expected])
    return CalibrationRows(
        names,
        signals=np.array([[row[name] for name in names] for row in table]),
        right=np.array(right),
        outside=np.array([bool(outside) and reference == outside for reference in expected]),
        says_outside=np.array([bool(outside) and answer.strip() == outside for answer in answers]),
        fits=np.array([fits_score(name) for name in names_of_groups]),
        groups=numbers if groups is not None else None,
        dear=dear_labels if dear else None,
    )


def picture(figures: PolicyFigures) -> Markup:
    """The cost-quality curve: accuracy of kept answers and overall, over the share of answers kept.

    Every answer that is not kept is escalated and paid for, so the share kept is 1 less the
    relative cost.
    """
    curve = figures["curve"]
    here = [svg_chart.Point(point["kept"], 1 - point["error"]) for point in curve]
    bound = [svg_chart.Point(point["kept"], 1 - point["error_bound"]) for point in curve]
    best = [svg_chart.Point(point["kept"], 1 - point["kept"] * point["error"]) for point in curve]
    note = f"{percent(figures['kept'])} kept, {percent(figures['error'])} of them wrong"
    chosen = [svg_chart.Point(figures["kept"], 1 - figures["error"], note, "chosen")]
    lines = [
        svg_chart.LineSeries("overall, at best", best, "c3", dashed=True),
        svg_chart.LineSeries("kept", here, "c1"),
        svg_chart.LineSeries("bound", bound, "c5", dashed=True),
    ]
    if "out_of_scope_kept" in figures:
        away = [svg_chart.Point(point["kept"], point["out_of_scope_away"]) for point in curve]
        lines.append(svg_chart.LineSeries("out of scope, escalated", away, "c4"))
    low = max(0.0, min(point.y for point in [*here, *best]) - 0.03)
    visible = [
        dataclasses.replace(line, points=[point for point in line.points if point.y >= low])
        for line in lines
    ]
    return svg_chart.lines(
        [*visible, svg_chart.LineSeries("", chosen, "c2")],
        title="Cost and quality",
        x_label="share of answers kept; the others are escalated",
        y_label="accuracy",
        x_range=(0.0, 1.0),
        y_range=(low, 1.0),
        percent=True,
        width=2 * svg_chart.WIDTH,
        height=340,
    )


def _require(predictions: Artifact, outside: Artifact | None) -> None:
    """Check that the predictions are of the right split and of one GGUF file.

    Raises:
        UsageError: They are not.
    """
    facts, hint = facts_of(predictions), "slmctl predict gguf --split calibration"
    if facts["split"] != "calibration":
        raise UsageError(
            f"{predictions.path} answers the split '{facts['split']}', and thresholds are set on "
            "calibration rows",
            hint=hint,
        )
    if not models.class_of(facts["kind"]).takes_policy:
        raise UsageError(
            f"{predictions.path} is of a model of kind '{facts['kind']}', and a policy is for a "
            "GGUF file, an encoder "
            "or an endpoint",
            hint=hint,
        )
    if outside is None:
        return
    other = facts_of(outside)
    if other["split"] not in ("calibration", "validation"):
        raise UsageError(
            f"{outside.path} answers the split '{other['split']}': out-of-scope rows may come from "
            "validation or "
            "calibration",
            hint="slmctl predict gguf --split validation",
        )
    if other.get("learned"):
        raise UsageError(
            f"{outside.path} is of a model that has learned the validation rows",
            hint="leave out --outside",
        )
    if _source(other) != _source(facts):
        raise UsageError(
            f"{predictions.path} and {outside.path} are answers of different models "
            f"({_source(facts)[:12]}, {_source(other)[:12]})",
            hint="slmctl predict gguf --type TYPE --split calibration, then the same with --split "
            "validation",
        )
