"""`runs/report.html`: the page of the latest evaluation, with what the project says around the
report.

The page inside a report's artifact follows from predictions and data alone. Gates, training and
policy are no part of that recipe, so `evaluate`, `calibrate` and `run` write this page, unless its
last line says it is made of the same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
    from slmctl.pipeline.graph import Project
    from slmctl.reports.evaluation_report import EvaluationReport, ParticipantEntry
    from slmctl.stages.evaluate.report_opening import Opening, PolicyShares, RowsCurve, Training

FILENAME = "report.html"


def write(project: Project, report: Artifact, *, only_measured: bool = False) -> Path:
    """Write the page of a report.

    Args:
        project: With the gates of today.
        only_measured: Leave out gates about models that this report did not measure.

    Raises:
        IntegrityError: The report is of another version, or damaged.
    """
    from slmctl import __version__
    from slmctl.artifacts import artifact, atomic, lineage
    from slmctl.pipeline import project_gates
    from slmctl.reports.evaluation_report import report_of, rows_of

    path = project.runs / FILENAME
    gates = [
        (result.passed, result.text)
        for result in project_gates.results(project, report, only_measured=only_measured)
    ]
    here = [str(folder) for folder in lineage.folders(project.root)]
    allowed = getattr(project.config.calibrate, "max_error", None)
    names = [
        __version__,
        project.config.project,
        project.config.version,
        allowed,
        report.digest,
        *_code(),
    ]
    made_of = f"\n<!-- {artifact.sha256_bytes(artifact.canonical([names, gates, here]))} -->\n"
    with contextlib.suppress(OSError):
        if path.read_bytes().endswith(made_of.encode()):
            return path
    from slmctl.stages.evaluate import report_page

    figures = report_of(report)
    head, rows = rows_of(report)
    with atomic.file(path) as draft:
        opening = _opening(project, report, figures, gates)
        report_page.write(draft, figures, rows, labels=head.get("labels", ()), opening=opening)
        with draft.open("a", encoding="ascii") as stream:
            stream.write(made_of)
    return path


def write_with_policy(report: Artifact, policy: Artifact, path: Path) -> None:
    """Write the page of a report for a release: with what a policy
    keeps, and without the project around it.
    """
    from slmctl.reports.evaluation_report import report_of, rows_of
    from slmctl.stages.evaluate import report_page

    head, rows = rows_of(report)
    report_page.write(
        path, report_of(report), rows, labels=head.get("labels", ()), policy=_shares(policy)
    )


def _code() -> list[str]:
    """The hashes of what the page is made by, which changes between two versions too."""
    from importlib import resources

    from slmctl.artifacts.artifact import sha256_bytes

    folders = [
        resources.files("slmctl.templates").joinpath("report"),
        resources.files("slmctl.stages.evaluate"),
    ]
    files = [
        file
        for folder in folders
        for file in folder.iterdir()
        if file.name.endswith((".html", ".css", ".js", ".py"))
    ]
    return [sha256_bytes(file.read_bytes()) for file in sorted(files, key=lambda file: file.name)]


def _opening(
    project: Project, report: Artifact, figures: EvaluationReport, gates: Sequence[tuple[bool, str]]
) -> Opening:
    from slmctl.artifacts import lineage
    from slmctl.stages.evaluate.report_opening import Opening

    artifacts = {entry.digest: entry for entry in lineage.readable_artifacts(project.root)}
    focus = figures["models"][figures["focus"]]
    ancestors = _by_kind(artifacts, focus)
    base, adapter = ancestors.get("base"), ancestors.get("adapter")
    prepared = artifacts.get(figures["prepared"])
    return Opening(
        project=f"{project.config.project} {project.config.version}",
        base=str(base.metrics.get("name") or "") if base else "",
        data=_data(prepared.metrics, figures) if prepared else "",
        date=report.manifest.started.replace("T", " ")[:16] + " UTC",
        gates=gates,
        training=_training(adapter) if adapter else None,
        by_rows=_by_rows(artifacts, figures),
        policy=_policy(
            artifacts, focus.get("sha256"), getattr(project.config.calibrate, "max_error", None)
        ),
        linear=linear(project, figures),
    )


def linear(project: Project, figures: EvaluationReport) -> str:
    """The command that releases the cheap model; empty unless it wins."""
    from slmctl.metrics.baseline import RELEASED
    from slmctl.stages.evaluate.report_data import ReportView

    view = ReportView(figures)
    if project.config.publish.linear or not project.config.task.has("encode"):
        return ""
    for cheap in RELEASED:
        if cheap.name == view.baseline and view.score(cheap.name) >= view.score(view.focus):
            return f"To release {cheap.in_words}: {cheap.release}, which trains nothing."
    return ""


def _by_kind(artifacts: Mapping[str, Artifact], entry: ParticipantEntry) -> dict[str, Artifact]:
    """The nearest artifact of each kind that a participant's answers were made of."""
    from slmctl.artifacts import lineage

    ancestors = lineage.Ancestry(artifacts.values()).of(entry.get("predictions") or "")
    return {each.kind: each for each in reversed([*ancestors])}


def _by_rows(artifacts: Mapping[str, Artifact], figures: EvaluationReport) -> RowsCurve | None:
    """The course over training rows that `encode` measured, beside
    the tuned model; None without one.
    """
    from slmctl.metrics.baseline import EncoderLogistic
    from slmctl.stages.evaluate.report_opening import RowsCurve

    entry = figures["baselines"].get(EncoderLogistic.name)
    if entry is None:
        return None
    encoder = _by_kind(artifacts, entry).get("encoder")
    facts = encoder.metrics if encoder else {}
    if not facts.get("curve"):
        return None
    points = [
        (point["rows"], point["encoder"], point["tfidf_logistic"]) for point in facts["curve"]
    ]
    summed = figures.get("sum")
    tuned = summed["right"] if summed is not None and summed["rows"] == facts["rows"] else None
    encoder = facts.get("tuned", {})
    return RowsCurve(
        facts["rows"], points, tuned, encoder["right"] if encoder.get("kept") else None
    )


def _data(facts: Mapping[str, Any], figures: EvaluationReport) -> str:
    from slmctl.reports.html_page import count

    files = list(dict.fromkeys(str(source.get("file", "")) for source in facts.get("sources", [])))
    names = ", ".join(files[:2]) + (f" and {len(files) - 2} more" if len(files) > 2 else "")
    rows = (
        f"{count(facts.get('train', 0), 'row')} to train on, {figures['n']:,} of "
        f"{figures['split']} measured"
    )
    return f"{names}: {rows}" if names else rows


def _training(adapter: Artifact) -> Training:
    from slmctl.stages.evaluate.report_opening import Training

    facts = adapter.metrics
    history = list(_history(adapter))
    return Training(
        steps=facts.get("steps", 0),
        best_step=facts.get("best_step", 0),
        seconds=adapter.manifest.seconds,
        loss_before=facts.get("validation_loss_before"),
        loss=facts.get("validation_loss"),
        train_losses=[(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
        validation_losses=[
            (entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry
        ],
    )


def _history(adapter: Artifact) -> Iterator[dict[str, Any]]:
    """The lines of `metrics.jsonl`; none of an adapter that slmctl did not train."""
    # not of slmctl, or changed since: the page does without the curve
    with (
        contextlib.suppress(ValueError, OSError),
        (adapter.path / "metrics.jsonl").open(encoding="utf-8") as stream,
    ):
        for line in stream:
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                yield entry


def _policy(
    artifacts: Mapping[str, Artifact], sha256: str | None, max_error: float | None
) -> PolicyShares | None:
    """The newest policy that was fitted on a file, of those for this
    share of errors where there is one.
    """
    fitted = [
        e for e in artifacts.values() if e.kind == "policy" and e.metrics.get("sha256") == sha256
    ]
    if not fitted or not sha256:
        return None
    return _shares(
        max(fitted, key=lambda e: (e.metrics.get("max_error") == max_error, e.manifest.started))
    )


def _shares(policy: Artifact) -> PolicyShares:
    from slmctl.stages.evaluate.report_opening import PolicyShares

    figures = policy.metrics
    cost, currency = figures.get("cost"), figures.get("currency", "")
    return PolicyShares(figures["kept"], figures["error"], figures["tested_on"], cost, currency)
