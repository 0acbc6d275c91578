"""gguf + report -> published: a release folder with model card, licence and contract, copied to a registry."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from slmctl import artifact, console
from slmctl.artifact import Artifact
from slmctl.base import Base
from slmctl.config import PublishConfig
from slmctl.errors import GateError, IntegrityError
from slmctl.scoreboard import table
from slmctl.task import Task

CONTEXT = 2048  # tokens; Ollama's own default would cut longer prompts without a word
CARRIED = ("LICENSE", "NOTICE", "USE_POLICY")  # files of the base that must stay with what comes of it


def run(config: PublishConfig, *, base: Artifact, gguf: Artifact, report: Artifact, out: Path) -> dict[str, Any]:
    """Lay out the release.

    Raises:
        GateError: The report did not measure one of the files, or none of them met `evaluate.choose`.
    """
    figures = json.loads(report.file("report.json").read_bytes())
    files = _chosen(gguf.metrics["files"], figures)
    _require_measured(files, figures)
    task, facts = Task.read(gguf.path), Base.read(gguf.path)
    for entry in files.values():
        shutil.copyfile(gguf.file(entry["file"]), out / entry["file"])
    for name in ("report.json", "report.md", "rows.jsonl"):
        shutil.copyfile(report.file(name), out / name)
    for entry in base.manifest.files:
        if entry.path.startswith(CARRIED):
            shutil.copyfile(base.file(entry.path), out / entry.path)
    (out / "README.md").write_text(_card(config, task, facts, figures, files), encoding="utf-8")
    smallest = min(files.values(), key=lambda entry: entry["size"])
    (out / "Modelfile").write_text(
        _render("Modelfile", file=smallest["file"], task=task, context=CONTEXT), encoding="utf-8"
    )
    return {
        "project": config.project,
        "version": config.version,
        "license": facts.license,
        "files": {name: entry["sha256"] for name, entry in files.items()},
    }


def deliver(release: Artifact, config: PublishConfig, root: Path) -> tuple[Path, bool]:
    """Copy a release to its registry, whole or not at all.

    Returns:
        Where it lies, and whether it was there already.

    Raises:
        IntegrityError: The registry has another release under the same version.
    """
    registry = (root / Path(config.to.removeprefix("dir:")).expanduser()).resolve()
    target = registry / config.project / config.version
    lock = registry / ".locks" / f"{config.project}-{config.version}"
    with artifact.lock(lock, wait=True, on_wait=console.say):
        if target.exists():
            if artifact.load(target).digest != release.digest:
                raise IntegrityError(
                    f"{target} already holds another {config.project} {config.version}",
                    hint="a published version never changes: raise 'version' in slmctl.yaml",
                )
            return target, True
        with artifact.draft(target) as place:
            for entry in release.manifest.files:
                (place / entry.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(release.file(entry.path), place / entry.path)
            artifact.publish_draft(place, target, lambda _files, _digest: release.manifest)
    return target, False


def _chosen(files: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """The file that `evaluate.choose` picked; every file where nothing was to be chosen."""
    choice = figures["choice"]
    if choice is None:
        return files
    if choice["model"] not in files:
        raise GateError(
            f"no GGUF file is as good as evaluate.choose asks: {choice['metric']} within "
            f"{choice['smallest_within']:g} of {choice['of']}",
            hint="allow a larger loss or a lower speed, or add a larger type to quantize.types",
        )
    return {choice["model"]: files[choice["model"]]}


def _require_measured(files: dict[str, Any], figures: dict[str, Any]) -> None:
    measured = {model["sha256"] for model in figures["models"].values()}
    for name, entry in files.items():
        if entry["sha256"] not in measured:
            raise GateError(
                f"no report measured {entry['file']}: it is not published",
                hint=f"evaluate it: evaluate: models: [..., gguf] measures {name} too",
            )


def _card(config: PublishConfig, task: Task, facts: Base, figures: dict[str, Any], files: dict[str, Any]) -> str:
    head, rows = table(figures)
    return _render(
        "model_card.md",
        project=config.project,
        version=config.version,
        base=facts,
        base_model=facts.public_name,
        task=task,
        report=figures,
        head=head,
        rows=rows,
        files=files,
        first=next(iter(files.values()))["file"],
        size=console.size,
    )


def _render(name: str, **values: Any) -> str:
    source = resources.files("slmctl.templates").joinpath(name).read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # noqa: S701 - not HTML
    return environment.from_string(source).render(**values)
