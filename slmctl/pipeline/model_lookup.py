"""Find the model that a command names (path, kind, release tag, or the config's default), verify it and open it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import MANIFEST, Artifact
from slmctl.errors import UsageError
from slmctl.inference.engine import Engine
from slmctl.model_files.gguf_choice import gguf_file, is_lora
from slmctl.pipeline import resolve, stage_table
from slmctl.pipeline.resolve import Project, Workspace, find_model
from slmctl.pipeline.stage_table import Role
from slmctl.task.contract import FILENAME, Task

AGAIN = "fetch or make it again"  # what is damaged may come from elsewhere


def gguf(where: Workspace, spec: str | None, type: str | None) -> tuple[Artifact, Path]:
    """A model for the own engine, whole, and which of its files answers."""
    model = find_model(where, spec, ("published", "gguf"), default="published")
    artifact.require_whole(model, hint=AGAIN)
    return model, model.file(gguf_file(model, type).path)


def spoken_to(desk: Workspace, model: str | None, type: str | None) -> tuple[Path, Task, str]:
    """The GGUF file to talk to, the task it is for, and the name it goes by."""
    found, path = gguf(desk, model, type)
    if _has_task(found):
        return path, Task.read(found.path), path.stem
    with Engine(path, sequences=1, context=128) as engine:
        return path, task_in(found, path, engine)[0], path.stem


def task_in(found: Artifact, path: Path, engine: Engine) -> tuple[Task, bool, str]:
    """The task of a file that is served, whether it carries none of its own, and what raw text begins with then.

    Raises:
        UsageError: It has neither a task nor a chat template.
    """
    if _has_task(found):
        return Task.read(found.path), False, ""
    template: str = engine.info["chat_template"]
    if not template:
        raise UsageError(
            f"{path.name} has no chat template, so it cannot be asked in turns", hint="serve a release that slmctl made"
        )
    controls = engine.controls()
    task = Task(
        "generate", template, "", bos_token=controls["bos"], eos_token=controls["eos"],
        special_tokens=tuple(controls["tokens"]),
    )  # fmt: skip
    return task, True, controls["bos"] if controls["adds_bos"] else ""


def contract(desk: Workspace, model: str | None, elsewhere: str) -> tuple[Task, str]:
    """What a model is asked that another server has, and the name it goes by here.

    Args:
        desk: Where the command works.
        model: Any artifact of the model, or a folder with nothing but its task, as a hand-over has it.
        elsewhere: What the other server calls it.

    Raises:
        IntegrityError: The artifact is damaged.
    """
    alone = Path(model or "")
    if model and (alone / FILENAME).is_file() and not (alone / MANIFEST).exists():
        return Task.read(alone), elsewhere
    found = find_model(desk, model, ("published", "gguf", "merged", "adapter", "prepared"), default="published")
    artifact.require_whole(found, hint=AGAIN)
    names = [Path(entry.path).stem for entry in found.files(".gguf")]
    return Task.read(found.path), found.metrics.get("project") or (names[0] if names else found.path.name)


def lora(place: Path) -> tuple[Path, Task | None]:
    """An adapter's GGUF file, and its task where it carries one.

    Raises:
        IntegrityError: It is damaged.
        UsageError: It is no adapter.
    """
    found = resolve.open_model(place, ("gguf",))
    artifact.require_whole(found, hint=AGAIN)
    entries = found.files(".gguf")
    chosen = [entry for entry in entries if is_lora(entry.path)] or (entries if found.path.is_file() else [])
    if len(chosen) != 1:
        raise UsageError(
            f"{place} has no adapter as a GGUF of its own", hint="slmctl quantize --set quantize.lora_gguf=true"
        )
    path = found.file(chosen[0].path)
    return path, Task.read(path.parent) if (path.parent / FILENAME).exists() else None


def other_build(found: Artifact, path: Path, build: str) -> str:
    """What to say where the engine is not the one that this file was measured with; nothing where it is."""
    measured = found.manifest.environment.get("llama_cpp_python")
    report = found.path / "report.json"
    if report.is_file():
        models = json.loads(report.read_bytes())["models"].values()
        listed = {entry.path: entry.sha256 for entry in found.files(".gguf")}
        builds = [one.get("engine") for one in models if one.get("sha256") == listed.get(path.name)]
        measured = builds[0] if builds else None
    if not measured or measured == build:
        return ""
    return f"this engine is llama-cpp-python {build}, and {path.name} was measured with {measured}: measure it again"


class FileModel:
    """The model that a user's file is answered with, its task, and the project where one is needed."""

    def __init__(self, desk: Workspace, model: str | None, type: str | None, *, max_tokens: int) -> None:
        kinds = tuple(kind for kind in stage_table.STAGES["predict"].takes[0].kinds if kind != "endpoint")
        self._workspace = Workspace(desk.directory, functools.cache(desk.project))
        self.model = find_model(self._workspace, model, kinds, default="gguf")
        artifact.require_whole(self.model, hint=AGAIN)
        home = self.model if _has_task(self.model) else resolve.find(self.project, Role("prepared", ("prepared",)))
        self.task = Task.read(home.path)
        self.type = type
        self.max_tokens = max_tokens

    @property
    def project(self) -> Project:
        return self._workspace.project()

    @property
    def column(self) -> str:
        """The column that the config's first source asks."""
        sources = self.project.config.prepare.sources
        column: str = sources[0].input if sources and isinstance(sources[0].input, str) else "input"
        return column


def handed_over(desk: Workspace, model: str | None, weights: str | None) -> tuple[Artifact, Artifact, Artifact | None]:
    """What a hand-over is of: what was asked, and the weights that it is or came from: a whole model, or a base and
    an adapter."""
    asked = find_model(desk, model, ("published", "gguf", "merged", "adapter"), default="published")
    root = desk.directory if asked.kind == "published" else root_of(desk.directory, asked.path)
    if (weights or ("adapter" if asked.kind == "adapter" else "merged")) == "merged":
        return asked, lineage.origin(root, asked, "merged"), None
    adapter = lineage.origin(root, asked, "adapter")
    return asked, lineage.origin(root, adapter, "base"), adapter


def root_of(directory: Path, path: Path | None) -> Path:
    """The project's folder: that of an artifact below runs/, else the one worked in."""
    if path is not None and path.resolve().parent.parent.name == "runs":
        return path.resolve().parents[2]
    return directory


def _has_task(found: Artifact) -> bool:
    return found.path.is_dir() and (found.path / FILENAME).exists()
