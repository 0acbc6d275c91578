"""gguf + report + … -> published: a release that may leave, with model card, license, lineage and contract."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from slmctl import console
from slmctl.artifacts.artifact import MANIFEST, Artifact
from slmctl.config import PublishConfig
from slmctl.errors import GateError, IntegrityError, UsageError
from slmctl.model_files.base_model import Base
from slmctl.reports.scoreboard import table
from slmctl.stages.publish import leak_scan, license, memorisation_probe, slsa_provenance
from slmctl.task.contract import Task
from slmctl.task.records import SPLITS, read_records

CONTEXT = 2048  # tokens; Ollama's own default would cut longer prompts without a word
# What may go out of each artifact, and nothing else.
REPORT = ("report.json", "report.md", "report.html", "rows.jsonl")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MERGED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json",
          "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json",
          "merges.txt", "chat_template.jinja")  # fmt: skip


def run(
    config: PublishConfig,
    *,
    base: Artifact,
    prepared: Artifact,
    adapter: Artifact,
    merged: Artifact,
    gguf: Artifact,
    report: Artifact,
    out: Path,
) -> dict[str, Any]:
    """Lay out the release.

    Raises:
        GateError: The report did not measure one of the files, none of them met `evaluate.choose`, the license's
            label cannot be true, a text would give something away, or the model gives training rows away.
        IntegrityError: The inputs are not of one chain.
    """
    steps = {"base": base, "prepared": prepared, "adapter": adapter, "merged": merged, "gguf": gguf, "report": report}
    _require_chain(steps)
    figures = json.loads(report.file("report.json").read_bytes())
    files = _chosen(gguf.metrics["files"], figures)
    _require_measured(files, figures)
    task, facts = Task.read(gguf.path), Base.read(gguf.path)
    label = license.license_of(base, config.license)
    for entry in files.values():
        shutil.copyfile(gguf.file(entry["file"]), out / entry["file"])
    _copy(report, REPORT, out)
    for name, given, allowed in (("adapter", adapter, ADAPTER), ("merged", merged, MERGED)):
        if name in config.include:
            _copy(given, allowed, out / name)
    asked = _ask(out, files, task, prepared, config)
    license.carry(base, label, _changes(facts, config), out)
    slsa_provenance.write(out, steps)
    _write_texts(config, out, task, facts, label, figures, files, prepared, asked)
    task.write(out)
    names = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    leak_scan.require_clean(out, names, base=base, allow=config.allowed_texts)
    return {
        "project": config.project,
        "version": config.version,
        "license": label,
        "files": {name: entry["sha256"] for name, entry in files.items()},
        "memorisation": asked,
    }


def require_allowed(release: Artifact, config: PublishConfig) -> None:
    """What is known only when the release is laid out: its manifest says nothing that must not leave, and where it
    leaves this machine its license is known.

    Raises:
        GateError: It may not go there.
    """
    leak_scan.require_clean(release.path, [MANIFEST], base=None, allow=config.allowed_texts)
    if not release.metrics["license"] and not config.to.startswith("dir:"):
        raise GateError(
            "the base states no license, so nobody may pass this model on", hint="publish.license: its license"
        )


def _require_chain(steps: Mapping[str, Artifact]) -> None:
    """What was quantized was merged from this adapter, which was trained on this base and this data."""
    for later, earlier in (("gguf", "merged"), ("merged", "adapter"), ("merged", "base"), ("adapter", "prepared")):
        wanted = steps[later].manifest.inputs.get(earlier)
        if wanted != steps[earlier].digest:
            raise IntegrityError(
                f"{steps[later].path} was not made from {steps[earlier].path}",
                hint="publish with the config that made it: its lineage would be wrong",
            )


def _copy(given: Artifact, allowed: tuple[str, ...], out: Path) -> None:
    """Copy what may go out of an artifact."""
    out.mkdir(exist_ok=True)
    for entry in given.manifest.files:
        if any(fnmatch.fnmatchcase(entry.path, pattern) for pattern in allowed):
            shutil.copyfile(given.file(entry.path), out / entry.path)


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


def _ask(out: Path, files: dict[str, Any], task: Task, prepared: Artifact, config: PublishConfig) -> dict[str, Any]:
    """Probe the largest file, which keeps the most of what was learned."""
    largest = max(files.values(), key=lambda entry: entry["size"])
    wanted = config.memorisation
    records = read_records(prepared.file("train.jsonl"))
    found = memorisation_probe.probe(
        out / largest["file"], task, records, probes=wanted.probes, max_share=wanted.max_share
    )
    if wanted.probes and not found["asked"]:
        console.say("  note: no training row holds a rare string, so there was nothing to probe for memorised rows")
    return found


def _changes(facts: Base, config: PublishConfig) -> str:
    return (
        f"It was fine-tuned with LoRA on private data and quantized to GGUF as {config.project} {config.version}; "
        f"the weights of {facts.name} were changed."
    )


def _write_texts(
    config: PublishConfig,
    out: Path,
    task: Task,
    facts: Base,
    label: str,
    figures: dict[str, Any],
    files: dict[str, Any],
    prepared: Artifact,
    asked: dict[str, Any],
) -> None:
    """The model card and Ollama's Modelfile."""
    if '"""' in task.system:
        raise UsageError('task.system holds """, which a Modelfile cannot', hint="say it otherwise")
    head, rows = table(figures)
    smallest = min(files.values(), key=lambda entry: entry["size"])["file"]
    card = _render(
        "model_card.md",
        config=config,
        base=facts,
        base_model=facts.public_name,
        license=label,
        task=task,
        report=figures,
        head=head,
        rows=rows,
        files=files,
        smallest=smallest,
        size=console.size,
        data=_summary(prepared),
        asked=asked,
        context=CONTEXT,
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    modelfile = _render("Modelfile", file=smallest, task=task, context=CONTEXT)
    (out / "Modelfile").write_text(modelfile, encoding="utf-8")


def _summary(prepared: Artifact) -> dict[str, Any]:
    """What can be said of the data without any of it: counts."""
    facts = prepared.metrics
    found: dict[str, dict[str, int]] = {}
    for one in facts.get("sensitive", []):
        kind = found.setdefault(one["kind"], {})
        kind[one["action"]] = kind.get(one["action"], 0) + one["count"]
    return {
        "sides": {side: facts[side] for side in SPLITS},
        "sources": len(facts.get("sources", [])),
        "labels": len(facts.get("labels", {})),
        "rejected": facts["rejected"],
        "split": facts["splits"]["by"],
        "tokens": facts.get("tokens", {}),
        "sensitive": found,
    }


def _render(name: str, **values: Any) -> str:
    source = resources.files("slmctl.templates").joinpath(name).read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # noqa: S701 - not HTML
    return environment.from_string(source).render(**values)
