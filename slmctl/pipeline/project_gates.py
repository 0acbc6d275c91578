"""The gates of a project against a report, and the release that they compare with.

After a promotion the tag stands for the model that was just measured. It is then compared with the
release that the tag stood for before, as it was, so that a promotion makes no report stale.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.artifact import Artifact
from slmctl.config import PRODUCTION, Config, Gate
from slmctl.errors import GateError, IntegrityError, UsageError
from slmctl.metrics import gates
from slmctl.metrics.baseline import RELEASED
from slmctl.pipeline.graph import Project
from slmctl.pipeline.named import TRY_FIRST
from slmctl.releases import deliveries, registry
from slmctl.reports import RELEASE
from slmctl.reports.evaluation_report import (
    EvaluationReport,
    measured_names,
    pair_of,
    released,
    report_of,
)


@dataclass(frozen=True)
class Reference:
    """The release that gates compare with: its name in gates, its address,
    and the release, None before the first.
    """

    name: str
    address: str
    release: Artifact | None

    @property
    def state(self) -> str:
        """A sentence that names the release, or says that none exists yet."""
        if self.release is None:
            return (
                f"no {self.name} release in {self.address} yet: nothing to compare, so gates "
                "against it pass"
            )
        facts = self.release.metrics
        return (
            f"gates compare with {self.name}, which is {facts['project']} {facts['version']} "
            f"in {self.address}"
        )


def reference(settings: Config, root: Path, own: Set[str] = frozenset()) -> Reference | None:
    """The release that the gates compare with; None where no gate asks for one.

    Args:
        own: The sha256 of the models that are measured; a release of one of them is not compared
            with itself.

    Raises:
        IntegrityError: The registry, the tag or the release cannot be read.
        UsageError: Several projects have such a tag.
    """
    name = next((gate.release for gate in settings.gates if gate.release), None)
    if name is None:
        return None
    to = settings.publish.to
    address = (
        f"{to.partition('#')[0]}#{settings.project}@{PRODUCTION}" if name == PRODUCTION else name
    )
    folder, tag = registry.parse(address, root)
    if not folder.is_dir():
        _require_never_sent(to, folder, root)
        return Reference(name, address.partition("#")[0], None)
    return Reference(name, address.partition("#")[0], _stands_for(folder, tag, own))


def _stands_for(folder: Path, name: str, own: Set[str]) -> Artifact | None:
    """Returns the release of a tag, or its previous one if the release holds
    a file of `own`; None if there is none.
    """
    project, _, name = name.rpartition("@")
    tags = [
        tag for tag in registry.tags(folder) if tag.name == name and project in ("", tag.project)
    ]
    if not tags:
        return None
    if len(tags) > 1:
        listed = ", ".join(f"{tag.project}@{tag.name}" for tag in tags)
        raise UsageError(f"{folder} has several tags '{name}'", hint=f"one of {listed}")
    (tag,) = tags
    release = registry.find(folder, f"{tag.project}@{tag.version}")
    if not own & set(release.metrics["files"].values()):
        return release
    there = {(path.parent.name, path.name) for path in registry.folders(folder)}
    before = tag.previous if tag.another is None else tag.another
    if not before or (tag.project, before) not in there:
        return None
    return registry.find(folder, f"{tag.project}@{before}")


def _require_never_sent(to: str, folder: Path, root: Path) -> None:
    """Tell a registry that is not mounted from one that no release was sent to."""
    if any(sent.to == to for _, sent in deliveries.recorded(root / "runs")):
        raise IntegrityError(
            f"releases were sent to {to}, and there is no {folder}: nobody can say what is in "
            "production",
            hint="mount it, or make it readable",
        )


def checked_gates(settings: Config, root: Path) -> list[Gate]:
    """The gates without those that have no release to compare with yet.

    Raises:
        What `reference` raises.
    """
    compared = reference(settings, root)
    is_there = compared is not None and compared.release is not None
    return [gate for gate in settings.gates if gate.release is None or is_there]


def enforce(
    project: Project, report: Artifact, *, only_measured: bool = False
) -> list[gates.GateResult]:
    """Every gate of the config against a report.

    Args:
        only_measured: Leave out gates about models that this report did not measure.

    Raises:
        GateError: At least one failed.
    """
    try:
        return gates.enforce(*_gates(project, report, only_measured))
    except GateError as error:
        if project.is_made("gguf"):
            error.hint = f"{error.hint}; {TRY_FIRST}"
        raise


def unguarded(project: Project, report: Artifact) -> str:
    """A sentence on a cheap model that is surely better than the one to release, and that no gate
    names; else ''.

    Surely: by the interval, which few rows make too narrow, and by the exact p-value, as a gate
    asks for both.
    """
    figures = report_of(report)
    model = released(figures)
    metric = figures["primary_metric"]
    encode = project.config.encode
    for cheap in RELEASED:
        name = cheap.name
        pair = pair_of(figures, model, name) if name in figures["baselines"] else None
        if pair is None or any(gate.against == name for gate in project.config.gates):
            continue
        is_made = cheap.on_encoder or (encode and encode.encoder is None)
        if project.config.publish.linear and is_made:
            continue  # this run releases it already
        rise = pair["metrics"][metric]
        if rise["interval"][0] > 0 and rise.get("p", 0.0) <= 1 - figures["confidence"]:
            takes = (
                f"{cheap.release} releases that one, and "
                if project.config.task.has("encode")
                else ""
            )
            return (
                f"{name} is surely better than {model}, which is to be released, and no gate names "
                f"{name}; {takes}"
                f"{{metric: {metric}, model: {RELEASE}, against: {name}, min_gain: 0}} is the gate"
            )
    return ""


def results(
    project: Project, report: Artifact, *, only_measured: bool = False
) -> list[gates.GateResult]:
    """`enforce` without its error: each gate's result, failed or not; a
    gate that cannot be checked failed.
    """
    checked, figures = _gates(project, report, only_measured)
    made = []
    for gate in checked:
        try:
            made += gates.check([gate], figures)
        except (GateError, UsageError) as error:
            made.append(gates.GateResult(False, f"{error.message} ({error.hint})"))
    return made + gates.own_check(checked, figures)


def of_files(project: Project, report: EvaluationReport) -> list[str]:
    """A sentence for each gate that tests a file alone where the release answers by more."""
    sentences = (gates.alone(gate, report) for gate in project.config.gates)
    return list(filter(None, dict.fromkeys(sentences)))


def _gates(
    project: Project, report: Artifact, only_measured: bool
) -> tuple[list[Gate], EvaluationReport]:
    figures = report_of(report)
    names = measured_names(figures)
    return [
        gate
        for gate in project.config.gates
        if not only_measured or {gate.model, gate.against or gate.model} <= names
    ], figures
