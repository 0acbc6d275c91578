"""An adapter's own GGUF file for the server: it belongs on the base that
is served, and passed its gates there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import TypedDict

from slmctl import config
from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import MANIFEST, Artifact
from slmctl.errors import GateError, SlmctlError, UsageError
from slmctl.metrics import gates
from slmctl.model_files.gguf_choice import lora_file
from slmctl.pipeline import named
from slmctl.pipeline.model_lookup import AGAIN, root_of, served_name
from slmctl.pipeline.predictions import LORA
from slmctl.reports.evaluation_report import EvaluationReport, report_of, reports_of, require_type
from slmctl.task.contract import FILENAME, Task


class BaseFile(TypedDict):
    """The base's own GGUF file of a type."""

    file: str
    sha256: str


class LoraFile(TypedDict):
    """An adapter's own GGUF file in the metrics of its artifact, with the base's files by type."""

    file: str
    sha256: str
    bases: dict[str, BaseFile]


MEASURE = "evaluate: {models: [..., lora]}, then slmctl run --until evaluate"


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter that may be served on a base.

    Attributes:
        path: Its GGUF file.
        task: Its task contract; None for a bare file.
        version: That of its project; empty for a bare file.
        digest: `sha256:...` of the file.
        note: A warning for a bare file; empty where a report measured it.
    """

    path: Path
    task: Task | None
    version: str
    digest: str
    note: str = ""


def find(place: Path, base: Artifact, base_file: Path) -> ServedAdapter:
    """An adapter for the base's file that is served.

    Args:
        place: A gguf artifact, a release or a bare file.

    Raises:
        GateError: No report measured it on this file, or the report that did fails a gate.
        IntegrityError: It is damaged.
        UsageError: It is not an adapter, or belongs to another base.
    """
    # a file of an artifact is no bare one
    folder = place.parent if (place.parent / MANIFEST).is_file() else place
    source = named.open_model(folder, ("gguf", "published"))
    artifact.require_whole(source, hint=AGAIN)
    entry = lora_file(source)
    path, digest = source.file(entry.path), f"sha256:{entry.sha256}"
    if source.path.is_file():
        own = Task.read(path.parent) if (path.parent / FILENAME).exists() else None
        note = (
            f"{path.name} is a bare file: nobody measured it, and it does not say which base "
            "it belongs on"
        )
        return ServedAdapter(path, own, "", digest, note)
    under = next(
        entry.sha256 for entry in base.files(".gguf") if base.file(entry.path) == base_file
    )
    _require_base(source, under, base_file)
    _require_measured(source, entry.sha256, under, base_file)
    return ServedAdapter(path, Task.read(source.path), served_name(source, path)[1], digest)


def _require_base(source: Artifact, under: str, base_file: Path) -> None:
    where = f"the manifest of {source.path}"
    facts: LoraFile = require_type(
        LoraFile, source.metrics.get(LORA), where=where, hint="slmctl quantize"
    )
    bases = facts["bases"]
    if under not in {each["sha256"] for each in bases.values()}:
        names = ", ".join(each["file"] for each in bases.values())
        raise UsageError(
            f"the adapter in {source.path} belongs on {names}, and {base_file.name} is another "
            "file",
            hint=f"serve one of these: slmctl quantize names them, and slmctl show {source.path} "
            "their artifacts",
        )


def _require_measured(source: Artifact, own: str, under: str, base_file: Path) -> None:
    """Raises GateError unless a report measured this pair of files, and
    the newest that did passes its gates.
    """
    name = f"the adapter in {source.path} on {base_file.name}"
    newest = next((pair for pair in _reports(source) if _measures(pair[0], own, under)), None)
    if newest is None:
        raise GateError(
            f"no report measured {name}: it is not served", reason="not_measured", hint=MEASURE
        )
    if failed := _failed(newest[1], newest[0]):
        text = f"{name} is not served, since its report fails: {failed}"
        raise GateError(text, reason="gate_failed", hint="slmctl evaluate")


def _failed(checked: list[config.Gate], figures: EvaluationReport) -> str:
    """The gates that a report fails, in a sentence; empty where it passes all."""
    try:
        gates.enforce(checked, figures)
    except SlmctlError as error:
        return error.message
    return ""


def _reports(source: Artifact) -> Iterator[tuple[EvaluationReport, list[config.Gate]]]:
    """The reports that may have measured an adapter, the newest first, each with the gates that it
    has to pass.

    A release carries its report, and was published because it passed. The reports of an artifact
    below `runs/` are next to it, and must pass the gates of the project's config today.
    """
    if source.is_release:
        yield report_of(source), []
        return
    root = root_of(source.path.parent, source.path)
    settings = config.load(root / config.FILENAME) if (root / config.FILENAME).is_file() else None
    for report in reports_of(lineage.readable_artifacts(root)):
        yield report_of(report), settings.gates if settings else []


def _measures(figures: EvaluationReport, own: str, under: str) -> bool:
    return any(
        entry.get("sha256") == own and entry.get("base_sha256") == under
        for entry in figures["models"].values()
    )
