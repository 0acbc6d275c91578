"""Two artifacts, releases or projects side by side: what was asked differently, of what data, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import MANIFEST, Artifact
from slmctl.errors import IntegrityError, UsageError
from slmctl.metrics.statistics import difference_interval, mcnemar, no_difference, percentiles, resamples

CONFIDENCE = 0.95
TOPS = (
    "published",
    "report",
    "gguf",
    "merged",
    "adapter",
    "prepared",
    "base",
)  # what stands for a project: the first it has
_NO_FACT = ("labels", "sources", "files", "tokens")  # of a prepared data set: compared apart, or too long


@dataclass(frozen=True)
class Side:
    """One of the two: the artifact itself, and by name what it was made of, as far as that is at hand."""

    top: Artifact
    parts: dict[str, Artifact]


def diff(first: Path, second: Path) -> dict[str, Any]:
    """What differs between two artifacts of one kind, two releases, or two projects (their last release or report).

    Returns:
        JSON values: `config`, `data`, `environment` and `files` list what is not the same on both sides; `models`
        compares what both reports measured, row by row where both hold the same rows.

    Raises:
        IntegrityError: There is no artifact at a path.
        UsageError: The two are of different kinds.
    """
    one, two = _side(first), _side(second)
    if one.top.kind != two.top.kind:
        raise UsageError(
            f"{first} is of kind '{one.top.kind}', {second} of kind '{two.top.kind}'",
            hint="two of one kind can be compared",
        )
    reports = _report(one.top), _report(two.top)
    return {
        "kind": one.top.kind,
        "first": {"path": str(one.top.path), "digest": one.top.digest, "started": one.top.manifest.started},
        "second": {"path": str(two.top.path), "digest": two.top.digest, "started": two.top.manifest.started},
        "same": one.top.digest == two.top.digest,
        "config": changes(_configs(one, two), _configs(two, one)),
        "data": changes(_data(one), _data(two)),
        "environment": changes(flat(one.top.manifest.environment), flat(two.top.manifest.environment)),
        "files": changes(_files(one.top), _files(two.top)),
        "metrics": changes(_figures(one.top), _figures(two.top)),
        "models": _models(reports[0], reports[1]) if reports[0] and reports[1] else [],
    }


def _side(path: Path) -> Side:
    path = path.resolve()
    if (path / MANIFEST).exists():
        top = artifact.load(path)
        root = path.parents[2] if path.parent.parent.name == "runs" else None
    else:
        root, top = path, _last(path)
    return Side(top, dict(_parts(lineage.show(root, top))) if root is not None else {top.kind: top})


def _last(project: Path) -> Artifact:
    found = list(lineage.known(project))
    for kind in TOPS:
        of_kind = [one for one in found if one.kind == kind]
        if of_kind:
            return max(of_kind, key=lambda one: (one.manifest.started, one.digest))
    raise IntegrityError(f"{project} is no artifact and holds none below runs/", hint="slmctl run")


def _parts(node: lineage.Node) -> Iterator[tuple[str, Artifact]]:
    if node.found is not None:
        found = node.found
        name = f"{found.kind} {found.metrics['model']}" if found.kind == "predictions" else found.kind
        yield name, found
    for parent in node.parents:
        yield from _parts(parent)


def _configs(side: Side, other: Side) -> dict[str, Any]:
    """Every key of every stage that had a part in both: `finetune.epochs`; `data` names what one lacks."""
    configs = {}
    for name, part in side.parts.items():
        if name not in other.parts:
            continue
        stage = part.manifest.stage.partition("/")[0]
        label = stage if part.kind != "predictions" else name.replace("predictions", stage)
        configs[f"{label} (version)"] = part.manifest.stage
        configs |= {f"{label}.{key}": value for key, value in flat(part.manifest.config).items()}
    return configs


def _data(side: Side) -> dict[str, Any]:
    """Source files, row counts and digests of what the top was made of."""
    facts: dict[str, Any] = {name: part.digest for name, part in side.parts.items() if part is not side.top}
    prepared = side.parts.get("prepared")
    if prepared is not None:
        facts |= {f"source {one['file']}": f"sha256:{one['sha256']}" for one in prepared.metrics.get("sources", [])}
        facts |= {
            f"rows {key}": value
            for key, value in prepared.metrics.items()
            if isinstance(value, int) and key not in _NO_FACT
        }
        facts |= {f"label {name}": n for name, n in prepared.metrics.get("labels", {}).items() if isinstance(n, int)}
    return facts


def _files(top: Artifact) -> dict[str, Any]:
    return {entry.path: f"{entry.size} bytes, sha256:{entry.sha256[:12]}" for entry in top.manifest.files}


def _figures(top: Artifact) -> dict[str, Any]:
    """The plain figures of an artifact's metrics; those of a report are compared model by model."""
    if top.kind == "report":
        return {}
    return {key: value for key, value in flat(top.metrics).items() if isinstance(value, int | float | str)}


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones; lists as JSON."""
    result: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            result |= flat(inner, f"{prefix}{key}.")
        else:
            result[prefix + key] = json.dumps(inner, ensure_ascii=False) if isinstance(inner, list) else inner
    return result


def changes(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is not the same on both sides; None where a side does not have it."""
    keys = sorted(one.keys() | two.keys())
    return [{"key": key, "first": one.get(key), "second": two.get(key)} for key in keys if one.get(key) != two.get(key)]


# Reports


def _report(top: Artifact) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """The report in an artifact, and its rows; None for kinds that hold none."""
    if top.kind not in ("report", "published"):
        return None
    lines = top.file("rows.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(top.file("report.json").read_bytes()), [json.loads(line) for line in lines[1:]]


def _models(
    one: tuple[dict[str, Any], list[dict[str, Any]]], two: tuple[dict[str, Any], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Every metric of every model that both reports measured; the primary one also tested on the rows in common."""
    (first, _), (second, _) = one, two
    found = []
    for name in first["participants"]:
        if name not in second["participants"]:
            continue
        a, b = ({**report["baselines"], **report["models"]}[name] for report in (first, second))
        metrics = {
            metric: {"first": value, "second": b["metrics"][metric], "difference": b["metrics"][metric] - value}
            for metric, value in a["metrics"].items()
            if metric in b["metrics"]
        }
        entry: dict[str, Any] = {"model": name, "metrics": metrics, "paired": None}
        if first["primary_metric"] == second["primary_metric"]:
            entry["paired"] = _paired(name, one, two)
        found.append(entry)
    return found


def _paired(
    name: str, one: tuple[dict[str, Any], list[dict[str, Any]]], two: tuple[dict[str, Any], list[dict[str, Any]]]
) -> dict[str, Any] | None:
    """The rows that both reports hold, whatever else they hold: a difference is second less first."""
    metric = one[0]["primary_metric"]
    place = 3 if metric == "token_f1" else 1  # the row's own figure, or right and wrong
    sides = [_by_id(name, report, rows, place) for report, rows in (one, two)]
    ids = [id for id in sides[0] if id in sides[1]]
    if not ids:
        return None
    a, b = (np.array([side[id] for id in ids], np.float64) for side in sides)
    facts: dict[str, Any] = {"metric": metric, "n": len(ids), "changed": int((a != b).sum())}
    facts["difference"] = float((b - a).mean())
    if place == 1:
        only_first, only_second = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
        return facts | {
            "only_first": only_first,
            "only_second": only_second,
            "interval": list(difference_interval(only_first, only_second, len(ids), CONFIDENCE)),
            "p": mcnemar(only_first, only_second),
        }
    means = np.concatenate([weights @ (b - a) for weights in resamples(len(ids))]) / len(ids)
    return facts | {"interval": list(percentiles(means, CONFIDENCE)), "p": no_difference(means)}


def _by_id(name: str, report: dict[str, Any], rows: list[dict[str, Any]], place: int) -> dict[str, float]:
    at = report["participants"].index(name)
    return {row["id"]: row["answers"][at][place] for row in rows if row["answers"][at] is not None}


# As text


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The comparison for people; `first -> second` throughout."""
    yield f"{found['kind']}  {found['first']['path']}  {found['first']['started']}"
    yield f"    ->  {found['second']['path']}  {found['second']['started']}"
    if found["same"]:
        yield "the same content, byte by byte"
    for section in ("config", "data", "environment", "files", "metrics"):
        if found[section]:
            yield section
            yield from (f"  {one['key']}: {_short(one['first'])} -> {_short(one['second'])}" for one in found[section])
    for entry in found["models"]:
        yield f"model {entry['model']}"
        for metric, values in entry["metrics"].items():
            if abs(values["difference"]) < 5e-5:  # nothing would be seen of it
                continue
            yield f"  {metric}: {values['first']:.4f} -> {values['second']:.4f} ({values['difference']:+.4f})"
        yield from _paired_line(entry["paired"])


def _paired_line(paired: dict[str, Any] | None) -> Iterator[str]:
    if paired is None:
        yield "  no row in common, so chance cannot be told from change"
        return
    if not paired["changed"]:
        yield f"  the same on each of the {paired['n']} rows of both"
        return
    low, high = paired["interval"]
    verdict = "more than chance" if low > 0 or high < 0 else "may be chance"
    counts = f", {paired['only_first']} rows lost, {paired['only_second']} won" if "only_first" in paired else ""
    yield (
        f"  on the {paired['n']} rows of both: {100 * paired['difference']:+.1f} points "
        f"({100 * low:+.1f} to {100 * high:+.1f}, p={paired['p']:.2g}{counts}): {verdict}"
    )


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
