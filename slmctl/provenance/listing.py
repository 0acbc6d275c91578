"""The artifacts below `runs/`, a line each: kind, base, settings, metric of the newest report; and
leaderboards.

Only names and sizes are verified. A damaged or foreign folder is listed with its fault.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slmctl import config, console
from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import SHORT_ID, Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.artifacts.lineage import Ancestry
from slmctl.console import percent
from slmctl.errors import SlmctlError, UsageError
from slmctl.model_files.gguf_choice import served_sha256
from slmctl.pipeline import LEAVES
from slmctl.releases import deliveries, registry
from slmctl.reports.evaluation_report import (
    EvaluationReport,
    ParticipantEntry,
    entries_of,
    file_of,
    released,
    report_of,
    reports_of,
)
from slmctl.reports.scoreboard import figure

LONG = 32  # characters of a value; a longer value is shown as its hash
KINDS = tuple(LEAVES.values())  # in the order of the pipeline
_BARE = config.parse("{project: none, base: none}")  # to look up the class of each stage's section


@dataclass(frozen=True)
class MeasuredMetric:
    """The primary metric that a report gives a model, with its interval and the number of rows."""

    name: str
    value: float
    interval: list[float]
    n: int
    split: str

    @property
    def text(self) -> str:
        """`accuracy 92.0 %`."""
        return f"{self.name} {figure(self.name, self.value)}"


@dataclass(frozen=True)
class Entry:
    """One folder below `runs/`.

    Attributes:
        kind: Kind of the artifact; for a damaged folder, the name of its parent folder.
        id: First characters of the recipe id.
        started: Start of its stage, in UTC; '' for a damaged folder.
        base: Names of the base models among its ancestors.
        changed: Config keys and inputs in which the artifacts of this kind differ -> this
            artifact's values.
        size: Bytes of its files.
        tags: For a release: its version, and the tags that point at it.
        fault: Reason why the folder cannot be used; '' for a readable artifact.
    """

    kind: str
    id: str
    path: str
    started: str = ""
    base: tuple[str, ...] = ()
    changed: Mapping[str, str] = field(default_factory=dict)
    validation_loss: float | None = None
    metric: MeasuredMetric | None = None
    size: int = 0
    tags: tuple[str, ...] = ()
    fault: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Ranked:
    """One line of a leaderboard: a model or baseline that a report measured on some rows.

    Attributes:
        data: Short id of the data set, or the start of its digest.
        split: Split of the data set.
        report: Short id of the newest report with these answers.
        released: True for the model that a release of those measured answers by.
    """

    data: str
    split: str
    n: int
    model: str
    kind: str
    metric: str
    value: float
    interval: list[float]
    size: int | None
    latency_ms: float | None
    report: str
    started: str
    released: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def release_facts(root: Path, release: Artifact) -> JsonObject:
    """The facts of a release by name: its tags in the registries that are
    known, its figure, and the model of that.
    """
    version, card = release.metrics.get("version", ""), release.path / "README.md"
    text = card.read_text("utf-8", "replace") if card.is_file() else ""
    facts: JsonObject = {
        "project": release.metrics.get("project", ""),
        "version": version,
        "tags": [tag for tag in _tags(root, [release])[release.digest] if tag != version],
        "digest": release.digest,
        "made": release.manifest.started,
        "base": "".join(re.findall(r'^base_model: "?(.+?)"?$', text, re.MULTILINE)[:1]),
        "path": str(release.path),
    }
    with contextlib.suppress(SlmctlError, ValueError):  # of a report that cannot be read
        figures = report_of(release)
        name = released(figures, served_sha256(release))
        if name:
            metric = _metric(figures, figures["models"][name])
            low, high = map(percent, metric.interval)
            rows = console.count(metric.n, "row")
            sentence = f"{metric.text} ({low} to {high}) on {rows} of {metric.split}"
            facts |= {"model": name, "figure": sentence, "metric": asdict(metric)}
    return facts


def release_lines(facts: JsonObject) -> list[str]:
    shown = facts | {"tags": ", ".join(facts["tags"]) or "none"}
    return ["", *(f"{name:<9}{text}" for name, text in shown.items() if name != "metric")]


def survey(root: Path, kinds: Sequence[str] = ()) -> list[Entry]:
    """Every artifact folder below `runs/`, or those of `kinds`; in the
    order of the pipeline, the newest first.
    """
    made, faults = _read(root)
    ancestry = Ancestry(made)
    measured = _measured(made)
    tags = _tags(root, made)
    changed = _changes(made, ancestry)
    entries = [
        Entry(
            kind=each.kind,
            id=each.short_id,
            path=str(each.path),
            started=each.manifest.started,
            base=_bases(ancestry, each),
            changed=changed[each.path],
            validation_loss=_number(each.metrics.get("validation_loss")),
            metric=measured.get(each.digest),
            size=sum(file.size for file in each.manifest.files),
            tags=tags.get(each.digest, ()),
        )
        for each in made
    ] + [
        Entry(path.parent.name, path.name[:SHORT_ID], str(path), fault=fault)
        for path, fault in faults.items()
    ]
    order = {kind: number for number, kind in enumerate(KINDS)}
    entries.sort(key=lambda entry: entry.started, reverse=True)
    entries.sort(key=lambda entry: (order.get(entry.kind, len(order)), entry.kind))
    return [entry for entry in entries if not kinds or entry.kind in kinds]


def leaderboard(root: Path) -> list[Ranked]:
    """Every model and baseline that a report below `runs/` measured, by data set and split, the
    best first.

    Predictions in several reports are listed once, for the newest report.
    """
    made, _ = _read(root)
    data = {entry.digest: entry.short_id for entry in made if entry.kind == "prepared"}
    rows: dict[tuple[str, ...], Ranked] = {}
    for report, figures in _reports(made):
        for name, entry in entries_of(figures).items():
            key = (figures["prepared"], figures["split"], entry.get("predictions") or name)
            latency, metric = entry.get("latency_ms"), figures["primary_metric"]
            rows.setdefault(
                key,
                Ranked(
                    data=data.get(figures["prepared"], figures["prepared"][7 : 7 + SHORT_ID]),
                    split=figures["split"],
                    n=entry.get("n", figures["n"]),
                    model=name,
                    kind=entry["kind"],
                    metric=metric,
                    value=entry["metrics"][metric],
                    interval=list(entry["interval"]),
                    size=entry.get("size"),
                    latency_ms=latency["median"] if latency else None,
                    report=report.short_id,
                    started=report.manifest.started,
                    released=name == released(figures),
                ),
            )
    newest: dict[tuple[str, str], str] = {}
    for row in rows.values():
        newest[row.data, row.split] = max(row.started, newest.get((row.data, row.split), ""))
    ranked = sorted(rows.values(), key=lambda row: -row.value)
    return sorted(
        ranked, key=lambda row: (newest[row.data, row.split], row.data, row.split), reverse=True
    )


# As text


def lines(entries: Sequence[Entry]) -> Iterator[str]:
    """The table of artifacts; below it, the faults of damaged folders."""
    columns = ["kind", "id", "made", "base", "loss", "metric", "size", "tags", "changed"]
    rows = [
        [
            entry.kind,
            entry.id,
            entry.started[:16].replace("T", " "),
            ", ".join(entry.base) or "-",
            "-" if entry.validation_loss is None else f"{entry.validation_loss:.3f}",
            entry.metric.text if entry.metric else "-",
            console.size(entry.size),
            ", ".join(entry.tags) or "-",
            ", ".join(f"{key}={value}" for key, value in entry.changed.items()) or "-",
        ]
        for entry in entries
        if not entry.fault
    ]
    if rows:
        columns, rows = _filled(columns, rows)
        yield from console.table_lines(
            columns, rows, optional=("base", "size", "made"), wrapped="changed", texts=4
        )
    yield from (f"{entry.path}: {entry.fault}" for entry in entries if entry.fault)


def leaderboard_lines(ranked: Sequence[Ranked]) -> Iterator[str]:
    """A table for each data set and split, since models that were measured
    on different rows cannot be compared.
    """
    columns = ["model", "kind", "report", "made", "metric", "interval", "size", "latency"]
    for place in dict.fromkeys((row.data, row.split, row.metric) for row in ranked):
        group = [row for row in ranked if (row.data, row.split, row.metric) == place]
        most = max(row.n for row in group)
        yield f"{console.count(most, 'row')} of {place[1]}, data set {place[0]}"
        rows = [
            [
                f"{row.model} (release)" if row.released else row.model,
                row.kind,
                row.report,
                row.started[:16].replace("T", " "),
                figure(row.metric, row.value),
                f"{percent(row.interval[0])} - {percent(row.interval[1])}",
                console.size(row.size) if row.size else "-",
                f"{row.latency_ms:.0f} ms" if row.latency_ms is not None else "-",
            ]
            for row in group
        ]
        heads = [row.metric if name == "metric" else name for name in columns for row in group[:1]]
        yield from console.table_lines(
            heads, rows, optional=("made", "kind", "size", "latency", "interval"), texts=4
        )


def _filled(columns: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The table without empty columns."""
    places = [place for place in range(len(columns)) if any(row[place] != "-" for row in rows)]
    return [columns[place] for place in places], [[row[place] for place in places] for row in rows]


# Reading


def _read(root: Path) -> tuple[list[Artifact], dict[Path, str]]:
    """Returns (artifacts below `runs/` with the right names and sizes,
    faults of the other folders by path).
    """
    made, faults = list[Artifact](), dict[Path, str]()
    for folder in lineage.folders(root):
        try:
            made.append(artifact.load(folder))
        except SlmctlError as error:
            faults[folder] = error.message.removeprefix(f"artifact {folder} is ")
        except OSError as error:
            faults[folder] = f"cannot be read: {error.strerror or error}"
    return made, faults


def _reports(made: Iterable[Artifact]) -> list[tuple[Artifact, EvaluationReport]]:
    """The readable reports, the newest first."""
    reports = []
    for report in reports_of(made):
        # written by an unknown version: listed without a metric
        with contextlib.suppress(SlmctlError):
            reports.append((report, report_of(report)))
    return reports


def _measured(made: Sequence[Artifact]) -> dict[str, MeasuredMetric]:
    """The primary metric of each artifact by its digest, from
    the newest report that measured it.
    """
    models = {each.digest: _answered_by(each) for each in made if each.kind == "predictions"}
    releases = dict(_releases(made))
    measured: dict[str, MeasuredMetric] = {}
    for report, figures in _reports(made):
        focus = released(figures)
        here = {report.digest: focus}  # artifact: participant
        ranked = sorted(figures["models"], key=lambda name: _rank(figures, name), reverse=True)
        for name in ranked:
            predictions = figures["models"][name].get("predictions") or ""
            here.setdefault(predictions, name)
            here.setdefault(models.get(predictions, ""), name)
        for release, sha256 in releases.items():
            here[release] = released(figures, sha256)
        for digest, name in here.items():
            if name in figures["models"]:
                measured.setdefault(digest, _metric(figures, figures["models"][name]))
    return measured


def _releases(made: Sequence[Artifact]) -> Iterator[tuple[str, str]]:
    """(digest, hash in reports of what it answers by) of each release that has a model."""
    for release in made:
        if release.is_release:
            with contextlib.suppress(UsageError):
                yield release.digest, served_sha256(release)


def _answered_by(predictions: Artifact) -> str:
    """The digest of the artifact that some answers stand for: linear
    models where they answer, else the model.
    """
    inputs = predictions.manifest.inputs
    return str(inputs.get("sum") or inputs.get("model") or "")


def _rank(figures: EvaluationReport, name: str) -> tuple[bool, float]:
    """Sort key: the model to release, or its file alone, stands for its
    artifact, else the one with the best metric.
    """
    focus = released(figures)
    value = figures["models"][name]["metrics"][figures["primary_metric"]]
    return name in (focus, file_of(figures, focus)), value


def _metric(figures: EvaluationReport, entry: ParticipantEntry) -> MeasuredMetric:
    name = figures["primary_metric"]
    return MeasuredMetric(
        name,
        entry["metrics"][name],
        list(entry["interval"]),
        entry.get("n", figures["n"]),
        figures["split"],
    )


def _tags(root: Path, made: Sequence[Artifact]) -> dict[str, tuple[str, ...]]:
    """The version of each release and its tags in the registries that it was sent to, by digest."""
    named = {
        each.digest: [str(each.metrics.get("version", ""))] for each in made if each.is_release
    }
    folders = {
        each.path.resolve().parents[1] for each in made if (each.path.parent / ".tags").is_dir()
    }
    with contextlib.suppress(SlmctlError):
        sent = {delivery.to for _, delivery in deliveries.recorded(root / "runs")}
        folders |= {registry.parse(to, root)[0] for to in sent if to.startswith("dir:")}
    for folder in sorted(folders):
        try:
            tags = registry.tags(folder)
        except SlmctlError:  # such as a share that is not mounted
            continue
        for tag in tags:
            if tag.digest in named:
                named[tag.digest].append(tag.name)
    return {digest: tuple(dict.fromkeys(filter(None, names))) for digest, names in named.items()}


def _bases(ancestry: Ancestry, made: Artifact) -> tuple[str, ...]:
    """The names of the bases that an artifact was made from or measured on."""
    bases = (each for each in ancestry.of(made.digest) if each.is_base)
    return tuple(sorted({str(base.metrics.get("name") or base.path.name) for base in bases}))


# Differences within a kind


def _changes(made: Sequence[Artifact], ancestry: Ancestry) -> dict[Path, dict[str, str]]:
    """Path of each artifact -> its values of the config keys and inputs
    in which artifacts of its kind differ.
    """
    changes: dict[Path, dict[str, str]] = {}
    for kind in {each.kind for each in made}:
        values = {
            each.path: _settings(each) | _origins(each, ancestry)
            for each in made
            if each.kind == kind
        }
        keys = dict.fromkeys(key for own in values.values() for key in own)
        differing = [key for key in keys if len({own.get(key, "") for own in values.values()}) > 1]
        for path, own in values.items():
            changes[path] = {key: own[key] for key in differing if key in own}
    return changes


def _settings(made: Artifact) -> dict[str, str]:
    """The recorded config of an artifact by dotted key, with present defaults for missing keys."""
    name, recorded = made.manifest.stage.partition("/")[0], made.manifest.config
    if name in LEAVES and recorded:
        model = type(config.stage_config(_BARE, name))
        try:
            section = config.restored(
                model, recorded, lambda content: Path(content[7 : 7 + SHORT_ID])
            )
            unknown = {
                key: value for key, value in recorded.items() if key not in model.model_fields
            }
            recorded = section.model_dump(mode="json", exclude_none=True) | unknown
        except SlmctlError:  # recorded by an unknown version: shown as it is
            pass
    return dict(_flat(recorded))


def _origins(made: Artifact, ancestry: Ancestry) -> dict[str, str]:
    """The inputs of an artifact by role: the short id of one, the number of several."""
    origins = {}
    for role, value in made.manifest.inputs.items():
        if isinstance(value, str):
            source = ancestry.get(value)
            origins[role] = source.short_id if source else value[7 : 7 + SHORT_ID]
        else:
            origins[role] = console.count(len(value), "artifact")
    return origins


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of each leaf of a config; a value
    longer than LONG is shown as its hash.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
        return
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    short = len(text) <= LONG and "\n" not in text
    yield (
        key,
        console.clean(text)
        if short
        else artifact.sha256_bytes(text.encode(errors="surrogatepass"))[7 : 7 + SHORT_ID],
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
