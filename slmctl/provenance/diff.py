"""Compare two artifacts, releases or projects: config, data, environment, files and metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import MANIFEST, Artifact
from slmctl.console import count
from slmctl.errors import IntegrityError, UsageError
from slmctl.metrics.statistics import (
    bootstrap_p_value,
    design_effect,
    difference_interval,
    mcnemar,
    percentiles,
    resamples,
)
from slmctl.reports.evaluation_report import (
    EvaluationReport,
    RowEntry,
    entries_of,
    released,
    report_of,
    rows_of,
)
from slmctl.reports.scoreboard import difference, figure

CONFIDENCE = 0.95
# the first existing kind is compared
TOPS = ("published", "report", "gguf", "merged", "adapter", "prepared", "base")
# metrics of prepared data: compared separately, or too long
_NOT_COMPARED = ("labels", "sources", "files", "tokens")
ANSWERS = "predictions "  # begins their names in a lineage; their digests follow from other changes
FIRST_ROWS = [
    f"rows {name}" for name in ("rows_in", "train", "validation", "calibration", "test", "rejected")
]
# report.json, and the rows of rows.jsonl
Report: TypeAlias = tuple[EvaluationReport, list[RowEntry]]
Names: TypeAlias = tuple[str, str]  # of a participant in each of two reports


@dataclass(frozen=True)
class _Compared:
    """One of the two artifacts, with the artifacts of its lineage below `runs/`, by name."""

    top: Artifact
    parts: dict[str, Artifact]


class FieldChange(TypedDict):
    """A key with different values in the two artifacts; None for a missing key."""

    key: str
    first: object
    second: object


class MetricChange(TypedDict):
    """A metric of one model in both reports; `difference` is second minus first."""

    first: float
    second: float
    difference: float


class ModelChange(TypedDict):
    """A model in both reports; `paired` tests its primary metric on the
    common rows, None without common rows.
    """

    model: str
    metrics: dict[str, MetricChange]
    paired: dict[str, Any] | None


class Place(TypedDict):
    """One of the two artifacts that are compared."""

    path: str
    digest: str
    started: str


class Comparison(TypedDict):
    """The differences between two artifacts, as `slmctl diff --json` prints them."""

    kind: str
    first: Place
    second: Place
    same: bool
    config: list[FieldChange]
    data: list[FieldChange]
    environment: list[FieldChange]
    files: list[FieldChange]
    metrics: list[FieldChange]
    models: list[ModelChange]
    release: NotRequired[ModelChange]  # where a release answers by a model of another name


def diff(first: Path, second: Path) -> Comparison:
    """Compare two artifacts of one kind, two releases, or two projects (their last release or
    report).

    Raises:
        IntegrityError: A path holds no artifact.
        UsageError: The artifacts have different kinds.
    """
    left, right = _opened(first), _opened(second)
    if left.top.kind != right.top.kind:
        raise UsageError(
            f"{first} is of kind '{left.top.kind}', {second} of kind '{right.top.kind}'",
            hint="compare two of one kind",
        )
    reports = _report(left.top), _report(right.top)
    return {
        "kind": left.top.kind,
        "first": _place(left.top),
        "second": _place(right.top),
        "same": left.top.digest == right.top.digest,
        "config": changes(_configs(left, right), _configs(right, left)),
        "data": changes(_data(left), _data(right)),
        "environment": changes(
            flat(left.top.manifest.environment), flat(right.top.manifest.environment)
        ),
        "files": changes(_files(left.top), _files(right.top)),
        "metrics": changes(_figures(left.top), _figures(right.top)),
        "models": _models(reports[0], reports[1]) if reports[0] and reports[1] else [],
        **(_released(reports[0], reports[1]) if reports[0] and reports[1] else {}),  # type: ignore[typeddict-item] # a part of it
    }


def _place(top: Artifact) -> Place:
    return {"path": str(top.path), "digest": top.digest, "started": top.manifest.started}


def _opened(path: Path) -> _Compared:
    path = path.resolve()
    if (path / MANIFEST).exists():
        top = artifact.load(path)
        root = path.parents[2] if path.parent.parent.name == "runs" else None
    else:
        root, top = path, _last(path)
    return _Compared(
        top, dict(_parts(lineage.show(root, top))) if root is not None else {top.kind: top}
    )


def _last(project: Path) -> Artifact:
    artifacts = list(lineage.readable_artifacts(project))
    for kind in TOPS:
        of_kind = [made for made in artifacts if made.kind == kind]
        if of_kind:
            return max(of_kind, key=lambda made: (made.manifest.started, made.digest))
    raise IntegrityError(f"{project} is no artifact and holds none below runs/", hint="slmctl run")


def _parts(node: lineage.LineageNode) -> Iterator[tuple[str, Artifact]]:
    part = node.source
    if part is not None:
        yield (
            f"{part.kind} {part.metrics['model']}" if part.kind == "predictions" else part.kind,
            part,
        )
    for parent in node.parents:
        yield from _parts(parent)


def _configs(compared: _Compared, other: _Compared) -> dict[str, Any]:
    """Config values by key, such as `finetune.epochs`, of the stages that are in both lineages."""
    configs = {}
    for name, part in compared.parts.items():
        if name not in other.parts:
            continue
        stage = part.manifest.stage.partition("/")[0]
        label = stage if part.kind != "predictions" else name.replace("predictions", stage)
        configs[f"{label} (version)"] = part.manifest.stage
        configs |= {f"{label}.{key}": value for key, value in flat(part.manifest.config).items()}
    return configs


def _data(compared: _Compared) -> dict[str, Any]:
    """Digests of the lineage, hashes of source files, and row counts, by name."""
    facts: dict[str, Any] = {
        name: part.digest for name, part in compared.parts.items() if part is not compared.top
    }
    prepared = compared.parts.get("prepared")
    if prepared is not None:
        sources = prepared.metrics.get("sources", [])
        facts |= {f"source {source['file']}": f"sha256:{source['sha256']}" for source in sources}
        facts |= {
            f"rows {key}": value
            for key, value in prepared.metrics.items()
            if isinstance(value, int) and key not in _NOT_COMPARED
        }
        facts |= {
            f"label {name}": n
            for name, n in prepared.metrics.get("labels", {}).items()
            if isinstance(n, int)
        }
    return facts


def _files(top: Artifact) -> dict[str, Any]:
    return {
        entry.path: f"{entry.size} bytes, sha256:{entry.sha256[:12]}"
        for entry in top.manifest.files
    }


def _figures(top: Artifact) -> dict[str, Any]:
    """The numbers and texts of an artifact's metrics; {} for a
    report, which is compared model by model.
    """
    if top.kind == "report":
        return {}
    return {
        key: value
        for key, value in flat(top.metrics).items()
        if isinstance(value, int | float | str)
    }


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys; lists become JSON texts."""
    result: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            result |= flat(inner, f"{prefix}{key}.")
        else:
            result[prefix + key] = (
                json.dumps(inner, ensure_ascii=False) if isinstance(inner, list) else inner
            )
    return result


def changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[FieldChange]:
    """The keys with different values, sorted."""
    pairs = ((key, first.get(key), second.get(key)) for key in sorted(first.keys() | second.keys()))
    return [
        {"key": key, "first": before, "second": after}
        for key, before, after in pairs
        if before != after
    ]


# Reports


def _report(top: Artifact) -> Report | None:
    """The report in an artifact, and its rows; None for kinds that hold none."""
    if top.kind != "report" and not top.is_release:
        return None
    return report_of(top), rows_of(top)[1]


def _models(left: Report, right: Report) -> list[ModelChange]:
    """Every metric of every model that both reports measured."""
    (first, _), (second, _) = left, right
    both = [name for name in first["participants"] if name in second["participants"]]
    return [_change((name, name), left, right) for name in both]


def _released(left: Report, right: Report) -> dict[str, ModelChange]:
    """`Comparison.release`, where what a release answers by has
    another name in each report; else nothing.
    """
    names = (released(left[0]), released(right[0]))
    return {"release": _change(names, left, right)} if names[0] != names[1] else {}


def _change(names: Names, left: Report, right: Report) -> ModelChange:
    """A participant of each report: the metrics that both participants
    have, and a paired test of the primary one.
    """
    (first, _), (second, _) = left, right
    before, after = (
        entries_of(report)[name] for report, name in zip((first, second), names, strict=True)
    )
    common = [metric for metric in before["metrics"] if metric in after["metrics"]]
    metrics: dict[str, MetricChange] = {}
    for metric in common:
        value, other = before["metrics"][metric], after["metrics"][metric]
        metrics[metric] = {"first": value, "second": other, "difference": other - value}
    same_metric = first["primary_metric"] == second["primary_metric"]
    paired = _paired(names, left, right) if same_metric else None
    return {"model": " -> ".join(dict.fromkeys(names)), "metrics": metrics, "paired": paired}


def _paired(names: Names, left: Report, right: Report) -> dict[str, Any] | None:
    """A paired test of the primary metric on the rows in both reports; the difference is second
    minus first.

    Rows of one group count as in a report. Without interval and p-value where no report says which
    rows are of one.
    """
    import numpy as np

    metric = left[0]["primary_metric"]
    # index in RowAnswer: token F1, or right (1) and wrong (0)
    place: Literal[1, 3] = 3 if metric == "token_f1" else 1
    values = [
        _by_id(name, *report, place) for name, report in zip(names, (left, right), strict=True)
    ]
    ids = [id for id in values[0] if id in values[1]]
    if not ids:
        return None
    a, b = (np.array([by_id[id] for id in ids], np.float64) for by_id in values)
    facts: dict[str, Any] = {"metric": metric, "n": len(ids), "changed": int((a != b).sum())}
    facts["difference"] = float((b - a).mean())
    only_first, only_second = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    if place == 1:
        facts |= {"only_first": only_first, "only_second": only_second}
    group_of = _groups(left) or _groups(right)
    entries = [
        entries_of(report)[name] for name, (report, _) in zip(names, (left, right), strict=True)
    ]
    if not group_of and any("groups" in entry for entry in entries):
        return facts
    numbers: dict[int | str, int] = {}
    groups = np.array(
        [numbers.setdefault(group_of.get(id, id), len(numbers)) for id in ids], np.int64
    )
    if len(numbers) < len(ids):
        facts["groups"] = len(numbers)
    if place == 1:
        effect = design_effect(b - a, groups)
        interval = difference_interval(
            only_first / effect, only_second / effect, len(ids) / effect, CONFIDENCE
        )
        return facts | {"interval": list(interval), "p": mcnemar(only_first, only_second, effect)}
    sums = np.stack([np.bincount(groups, b - a), np.bincount(groups)], axis=1)
    drawn = np.concatenate([weights @ sums for weights in resamples(len(sums))])  # whole groups
    means = drawn[:, 0] / drawn[:, 1]
    return facts | {"interval": list(percentiles(means, CONFIDENCE)), "p": bootstrap_p_value(means)}


def _groups(report: Report) -> dict[str, int]:
    """Row id -> number of its group; {} where no rows share one, and for an older report."""
    return {row["id"]: row["group"] for row in report[1] if "group" in row}


def _by_id(
    name: str, report: EvaluationReport, rows: Sequence[RowEntry], place: Literal[1, 3]
) -> dict[str, float]:
    at = report["participants"].index(name)
    return {row["id"]: answer[place] for row in rows if (answer := row["answers"][at]) is not None}


# As text


def lines(comparison: Comparison) -> Iterator[str]:
    """The comparison as text, in the form `first -> second`."""
    first, second = comparison["first"], comparison["second"]
    yield f"{comparison['kind']}  {first['path']}  {first['started']}"
    yield f"    ->  {second['path']}  {second['started']}"
    if comparison["same"]:
        yield "the same content, byte by byte"
    parts = {
        name: comparison[name] for name in ("config", "data", "environment", "files", "metrics")
    }
    if comparison["kind"] == "prepared":  # row counts first; hashes, which follow from them, last
        parts = {
            name: parts[name] for name in ("data", "config", "metrics", "environment", "files")
        }
    for name, section in parts.items():
        if section:
            yield name
            ranked = [
                row for row in sorted(section, key=_rank) if not row["key"].startswith(ANSWERS)
            ]
            yield from (
                f"  {row['key']}: {_short(row['first'])} -> {_short(row['second'])}"
                for row in ranked
            )
            if others := len(section) - len(ranked):
                yield f"  {ANSWERS}of {count(others, 'model')} differ"
    of_release = [comparison["release"]] if "release" in comparison else []
    for entry in (*of_release, *comparison["models"]):
        yield f"{'release' if entry in of_release else 'model'} {entry['model']}"
        for metric, values in entry["metrics"].items():
            if abs(values["difference"]) < 5e-5:  # rounds to 0.00 points
                continue
            before, after = figure(metric, values["first"], 2), figure(metric, values["second"], 2)
            yield f"  {metric}: {before} -> {after} ({difference(metric, values['difference'], 2)})"
        yield from _paired_line(entry["paired"])


def _rank(change: FieldChange) -> int:
    """Sort key of a change in data: row counts of input and
    splits, then sources, then the others.
    """
    if change["key"] in FIRST_ROWS:
        return FIRST_ROWS.index(change["key"])
    return len(FIRST_ROWS) + (not change["key"].startswith("source "))


def _paired_line(paired: dict[str, Any] | None) -> Iterator[str]:
    if paired is None:
        yield "  no row in common: the difference cannot be tested"
        return
    if not paired["changed"]:
        same = "the same rows right" if "only_first" in paired else "the same score of each row"
        yield f"  {same} of those in common ({paired['n']:,})"
        return
    verdict, facts = "rows come in groups, which neither report tells: not tested", []
    if "p" in paired:
        low, high = paired["interval"]
        is_sure = (low > 0 or high < 0) and paired["p"] <= 1 - CONFIDENCE
        verdict = "more than chance" if is_sure else "may be chance"
        facts = [f"{100 * low:+.1f} to {100 * high:+.1f}", f"p={paired['p']:.2g}"]
    if "only_first" in paired:
        facts += [f"{count(paired['only_first'], 'row')} lost", f"{paired['only_second']} won"]
    of = f", of {count(paired['groups'], 'group')}" if "groups" in paired else ""
    details = f" ({', '.join(facts)})" if facts else ""
    points = f"{100 * paired['difference']:+.1f} points"
    yield f"  on {count(paired['n'], 'row')} in common{of}: {points}{details}: {verdict}"


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
