"""The stage publish in the graph of stages: a release, and where it is sent."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from slmctl import config, console
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import PublishConfig
from slmctl.errors import UsageError
from slmctl.model_files.model_shape import ModelShape
from slmctl.network import guard
from slmctl.pipeline import project_gates
from slmctl.pipeline.estimates import BYTES_A_SECOND, KnownSizes, StageEstimate
from slmctl.pipeline.graph import LABELLED, PREPARED, Doubt, Project, Role, Stage, StageRequest
from slmctl.pipeline.system_errors import spoken
from slmctl.releases import deliveries, registry, signing, targets

TARGET_PACKAGES = {"hf": "huggingface_hub", "s3": "boto3"}
TUNED = ("adapter", "merged", "gguf")  # that a release of linear members does without
PUBLISH_SECONDS = 6  # probes and hashes
LINEAR_BYTES = 0.1e9  # of an encoder, linear weights and the report, here and in a registry


class Publish(Stage[PublishConfig]):
    """Build a release and send it to its target, after the checks for leaks and gates."""

    name = "publish"
    takes = (
        Role("base", ("base",), when="tuned"),
        PREPARED,
        *(Role(each, (each,), when="tuned") for each in TUNED),
        Role("encoder", ("encoder",), when="linear"),
        Role("report", ("report",)),
        LABELLED,
        Role("sum", ("sum",), when="encode"),
        Role("policy", ("policy",), when="calibrate"),
    )
    uses = ("llama_cpp_python", "gguf")
    version = 7

    def packages(self) -> Iterator[str]:
        kind = self.settings.to.partition(":")[0]
        yield from () if self.settings.linear else ("llama_cpp", "gguf")
        yield from [TARGET_PACKAGES[kind]] if kind in TARGET_PACKAGES else []
        yield from ["model_signing"] if self.settings.signing_key is not None else []

    def checkable(self) -> PublishConfig:
        section = self.settings
        if section.signing_key is not None:
            config.require_path(section.signing_key)
        return section

    def checks(self) -> Mapping[str, Callable[[], str]]:
        """The texts of the task, which the release will hold."""
        return {"texts": self._texts}

    def _texts(self) -> str:
        from slmctl.stages.publish import leak_scan  # its patterns are for those who publish

        leak_scan.require_clean_task(self.project.config)
        return ""

    def require_offline(self) -> None:
        targets.require_reachable(self.settings.to, _target_settings(self.project))

    def notes(self, shape: ModelShape | None) -> Iterator[tuple[str, str]]:
        """A note where this version was published already."""
        settings, to = self.project.config, self.settings.to
        if to.startswith("dir:"):
            folder, _ = registry.parse(to, self.project.root)
            if (folder / settings.project / settings.version).is_dir():
                text = (
                    f"{to} holds version {settings.version} already and takes no other one: "
                    "increase 'version'"
                )
                yield "version", text

    def cost(self, sizes: KnownSizes) -> StageEstimate:
        if (model := sizes.model) is None:
            return StageEstimate()
        if sizes.settings.publish.linear:
            return StageEstimate(int(LINEAR_BYTES), seconds=PUBLISH_SECONDS)
        more = {"merged": model.weights, "adapter": 4 * model.trained, "lora": 2 * model.trained}
        disk = 2 * (model.files + sum(more[kind] for kind in sizes.settings.publish.include))
        return StageEstimate(disk, model.answering, PUBLISH_SECONDS + disk / BYTES_A_SECOND)

    def doubt(self) -> Doubt | None:
        """A cheap model that is surely better, and that no gate names."""
        if text := project_gates.unguarded(self.project, self.project.artifact("report")):
            return Doubt(
                text,
                "beaten",
                (),
                "release it all the same?",
                "to release it all the same: slmctl run --yes",
            )
        return None

    def asks_for(self, role: Role, section: PublishConfig) -> bool:
        if section.linear and role.when == "tuned" and role.name in self.project.named:
            raise UsageError(
                f"--{role.name} names a model, and publish.model is linear, which releases none",
                hint="--set publish.model=gguf",
            )
        return super().asks_for(role, section)

    def options(self) -> Mapping[str, object]:
        return {"page": self.project.stage("evaluate").page}

    def run(self, request: StageRequest, *, out: Path, **more: Any) -> JsonObject:
        """Lay out the release, by the module for its model."""
        section: Any = request.section
        module = importlib.import_module(
            f"{__package__}.{'linear_release' if section.linear else self.name}"
        )
        metrics: JsonObject = module.run(section, out=out, **more, **request.inputs)
        return metrics

    def before(self) -> None:
        """Check the gates; raises a GateError where one fails."""
        report = self.project.artifact("report")
        project_gates.enforce(self.project, report)
        if note := project_gates.unguarded(self.project, report):
            console.say(f"  note: {note}")

    def after(self, made: Artifact, *, current: bool) -> None:
        """Send the release to where releases go.

        Raises:
            GateError: It would give something away.
            IntegrityError: The target has another release under the same version.
        """
        project = self.project
        to = self.settings.to
        shipment = _shipment(self.project, made)
        with _target(project, self.name) as target:
            plan = targets.plan(target, to, shipment)
            files = console.count(len(shipment.items), "file")
            console.say(f"  {console.size(plan.size)} to send, {len(plan.missing)} of {files}")
            targets.deliver(target, plan)
            deliveries.record(project.runs, made, to)
            where = target.where(shipment, shipment.manifest).rpartition("/")[0]
        console.say(f"  {'already in' if plan.there and not plan.missing else 'sent to'} {where}")


STAGE = Publish


def plan(project: Project, release: Artifact) -> tuple[JsonObject, list[str]]:
    """The files that `publish` would send of a release and their places, as JSON and as lines."""
    shipment = _shipment(project, release)
    with _target(project, "publish --plan") as target:
        made = targets.plan(target, project.config.publish.to, shipment)
        verdicts = project_gates.enforce(project, project.artifact("report"))
        lacking = {item.name for item in made.missing}
        planned: JsonObject = {
            "to": made.to,
            "visibility": target.visibility,
            "license": release.metrics["license"],
            "hosts": list(target.hosts),
            "there": made.there,
            "bytes_to_send": made.size,
            "signed": artifact.SIGNATURE in {item.name for item in shipment.items},
            "gates": [verdict.text for verdict in verdicts],
            "files": [
                {
                    "file": item.name,
                    "size": item.size,
                    "sha256": item.sha256,
                    "to": target.where(shipment, item),
                    "send": item.name in lacking,
                }
                for item in shipment.items
            ],
        }
    return planned, list(_lines(planned))


def _lines(planned: JsonObject) -> Iterator[str]:
    width = max(len(entry["file"]) for entry in planned["files"])
    for entry in planned["files"]:
        mark = "send" if entry["send"] else "there"
        yield (
            f"{mark:<5}  {console.size(entry['size']):>9}  {entry['file']:<{width}}  -> "
            f"{entry['to']}"
        )
    yield f"to          {planned['to']}{', which is there already' if planned['there'] else ''}"
    yield f"hosts       {', '.join(planned['hosts']) or 'none'}"
    yield f"visibility  {planned['visibility']}"
    yield f"license     {planned['license'] or 'none stated'}"
    yield f"signed      {'yes' if planned['signed'] else 'no'}"
    yield from (f"gate passed {text}" for text in planned["gates"] or ["(none is set)"])
    yield f"bytes       {planned['bytes_to_send']} to send"


def _shipment(project: Project, release: Artifact) -> targets.Shipment:
    """A release with all that leaves the machine, searched for what must not leave, and signed."""
    from slmctl.stages.publish import publish

    section = project.config.publish
    with spoken(Publish.name, project.runs):
        publish.require_allowed(release, section)
        signature = None
        if section.signing_key is not None:
            signature = signing.sign(release, section.signing_key, project.runs)
    return targets.shipment(release, signature=signature, gates=project.config.gates)


def _target_settings(project: Project) -> targets.Settings:
    """The settings of the target that releases go to."""
    section = project.config.publish
    return targets.Settings(project.root, section.public, tuple(section.allowed_hosts))


@contextlib.contextmanager
def _target(project: Project, purpose: str) -> Iterator[targets.Target]:
    to = project.config.publish.to
    with (
        spoken(purpose, project.root),
        guard.written_down(project.root, purpose),
        targets.opened(to, _target_settings(project), purpose=purpose) as target,
    ):
        yield target
