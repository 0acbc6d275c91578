"""gguf + report + … -> published: a release with model card, license, lineage and task contract."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from slmctl import console
from slmctl.artifacts.artifact import MANIFEST, Artifact
from slmctl.config import PublishConfig
from slmctl.errors import GateError, IntegrityError, UsageError
from slmctl.inference import ENCODER, FILE, escalation_policy
from slmctl.metrics import gates
from slmctl.model_files.base_model import MODEL_FILES, Base
from slmctl.model_files.gguf_choice import (
    LORA_TYPE,
    answering_sha256,
    gguf_file,
    is_tagging,
    sum_files,
)
from slmctl.reports import html_page
from slmctl.reports.evaluation_report import EvaluationReport, released, report_of
from slmctl.reports.scoreboard import table
from slmctl.stages.publish import leak_scan, license, memorisation_probe, slsa_provenance
from slmctl.task.contract import Task
from slmctl.task.documents import training
from slmctl.task.records import SPLITS, read_records

# writes the report of a release: report, policy, file
Page = Callable[[Artifact, Artifact, Path], None]
# in the manifest of a release
POLICY_FIGURES = ("kept", "error", "error_bound", "confidence", "tested_on")
CONTEXT = 2048  # tokens; Ollama's own default truncates longer prompts silently
# The only files of an artifact that are published.
REPORT = ("report.json", "report.md", "report.html", "rows.jsonl")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


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
    labelled: Artifact | None = None,
    sum: Artifact | None = None,
    policy: Artifact | None = None,
    page: Page | None = None,
) -> dict[str, Any]:
    """Lay out the release.

    Args:
        policy: Fitted on what the release answers by; `page` writes the report with it.

    Raises:
        GateError: The report did not measure one of the files, none of them met `evaluate.choose`,
            the license's label cannot be true, a text holds a secret or personal data, or the model
            reproduces training rows.
        IntegrityError: The inputs were not made from each other.
    """
    steps = {
        "base": base,
        "prepared": prepared,
        "adapter": adapter,
        "merged": merged,
        "gguf": gguf,
        "report": report,
    }
    require_chain(steps, labelled)
    figures = report_of(report)
    files = gguf.metrics["files"]
    if (choice := figures["choice"]) is not None:
        name = gates.chosen_file(choice, among=files)
        files = {name: files[name]}
    _require_measured(files, figures)
    lora = _measured_lora(gguf, figures) if "lora" in config.include else {}
    members = _members(sum, gguf, files, figures, out)
    steps |= {"sum": sum} if sum is not None and members else {}
    steps |= {"policy": policy} if policy is not None else {}
    task, facts = Task.read(gguf.path), Base.read(gguf.path)
    label = license.license_of(base, config.license)
    files = {
        name: _carry_file(gguf, entry, name, config.version, out) for name, entry in files.items()
    }
    if lora:
        lora = _carry_file(gguf, lora, LORA_TYPE, config.version, out)
    copy(report, REPORT, out)
    kept = carry_policy(policy, figures, report, page, out)
    for name, weights, allowed in (("adapter", adapter, ADAPTER), ("merged", merged, MODEL_FILES)):
        if name in config.include:
            copy(weights, allowed, out / name)
    memorisation = _probe(out, files, task, prepared, config)
    license.carry(base, label, _changes(facts, config), out)
    if members.get("source"):
        license.carry_encoder(
            members["source"], members["encoder_weights"], members["license"], out
        )
    slsa_provenance.write(out, steps)
    teaching = teaching_of(labelled)
    _write_texts(
        out,
        task,
        files,
        figures,
        config=config,
        base=facts,
        base_model=facts.public_name,
        license=label,
        data=summary(prepared),
        memorisation=memorisation,
        teaching=teaching,
        lora=lora,
        members=members,
        policy=kept,
    )
    hashes = {name: entry["sha256"] for name, entry in files.items()}
    return finished(
        out,
        task,
        config,
        base=base,
        license=label,
        files=hashes,
        memorisation=memorisation,
        lora=lora,
        sum=members,
        teachers=teaching.get("teachers"),
        policy=kept,
    )


def finished(
    out: Path, task: Task, config: PublishConfig, *, base: Artifact | None, **facts: Any
) -> dict[str, Any]:
    """Write the task contract, and search every text of the release; returns its metrics, of
    `facts` those that say something.

    Raises:
        GateError: A text holds a secret or personal data.
    """
    task.write(out)
    names = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    leak_scan.require_clean(out, names, base=base, allow=config.allowed_texts)
    optional = ("lora", "sum", "teachers", "policy")
    kept = {name: value for name, value in facts.items() if value or name not in optional}
    return {"project": config.project, "version": config.version, **kept}


def require_allowed(release: Artifact, config: PublishConfig) -> None:
    """Check a finished release: its manifest is clean, its license is known if it leaves this
    machine, and the terms of its teachers are `permitted` if it goes public.

    Raises:
        GateError: It must not be sent to `publish.to`.
    """
    leak_scan.require_clean(release.path, [MANIFEST], base=None, allow=config.allowed_texts)
    members = release.metrics.get("sum", {})
    if members.get("source") and not members["license"] and not config.to.startswith("dir:"):
        raise GateError(
            f"nobody knows the license of the encoder ({members['source']}): the release must not "
            "leave this machine",
            reason="license",
            hint="encode: {encoder: none} releases the model without it",
        )
    if not release.metrics["license"] and not config.to.startswith("dir:"):
        raise GateError(
            "the base states no license, so the release must not leave this machine",
            reason="license",
            hint="publish.license: the license of the base",
        )
    if not (config.to.startswith("hf:") and config.public):
        return
    for teacher in release.metrics.get("teachers", []):
        if teacher["terms"] != "permitted":
            state = "are declared private" if teacher["terms"] else "are not declared"
            raise GateError(
                f"the terms of the teacher {teacher['name']}, whose labels are in this model, "
                f"{state}, and {config.to} "
                "is public",
                reason="teacher_terms",
                hint="label.teachers[].terms: permitted, if the terms of its provider permit it",
            )


LINKS = (
    ("gguf", "merged"),
    ("merged", "adapter"),
    ("merged", "base"),
    ("adapter", "prepared"),
    ("sum", "encoder"),
    ("encoder", "prepared"),
    ("prepared", "labelled"),
)


def require_chain(steps: Mapping[str, Artifact], labelled: Artifact | None) -> None:
    """Check that each of these artifacts was made from the others that it names; see LINKS.

    `labelled` is no step of the published lineage, since its config holds the teachers' addresses.
    """
    steps = {**steps, **({"labelled": labelled} if labelled is not None else {})}
    for later, earlier in LINKS:
        if not {later, earlier} <= steps.keys():
            continue
        recorded = steps[later].manifest.inputs.get(earlier)
        if recorded != steps[earlier].digest:
            raise IntegrityError(
                f"{steps[later].path} was not made from {steps[earlier].path}",
                hint="publish with the config that made it: its lineage would be wrong",
            )


def carry_policy(
    policy: Artifact | None,
    figures: EvaluationReport,
    report: Artifact,
    page: Page | None,
    out: Path,
) -> dict[str, Any]:
    """Copy a policy into a release, and write the release's report with it; returns its figures, {}
    without one.

    Raises:
        IntegrityError: It was fitted on another model than the release answers by.
    """
    if policy is None or page is None:
        return {}
    if released(figures, policy.metrics["sha256"]) != released(figures):
        text = (
            f"{policy.path} was fitted on another model than {released(figures)}, which is released"
        )
        raise IntegrityError(text, hint="slmctl calibrate")
    shutil.copyfile(policy.file(escalation_policy.FILENAME), out / escalation_policy.FILENAME)
    page(report, policy, out / "report.html")
    return {key: policy.metrics[key] for key in POLICY_FIGURES}


def copy(source: Artifact, allowed: tuple[str, ...], out: Path) -> None:
    """Copy the files of an artifact that match `allowed`."""
    out.mkdir(exist_ok=True)
    for entry in source.manifest.files:
        if any(fnmatch.fnmatchcase(entry.path, pattern) for pattern in allowed):
            shutil.copyfile(source.file(entry.path), out / entry.path)


def _carry_file(
    gguf: Artifact, entry: dict[str, Any], kind: str, version: str, out: Path
) -> dict[str, Any]:
    """Copy a GGUF file into a release, byte by byte as it was measured; returns its entry with the
    version in its name.

    `SmolLM2-135M-acme-Q8_0.gguf` becomes `SmolLM2-135M-acme-v1.0-Q8_0.gguf`.
    """
    name = f"{entry['file'].removesuffix(f'-{kind}.gguf')}-v{version}-{kind}.gguf"
    shutil.copyfile(gguf.file(entry["file"]), out / name)
    return {**entry, "file": name}


def _require_measured(files: dict[str, Any], figures: EvaluationReport) -> None:
    measured = {model.get("sha256") for model in figures["models"].values()}
    for name, entry in files.items():
        if entry["sha256"] not in measured:
            raise unmeasured(
                entry["file"], f"evaluate it: evaluate: models: [..., gguf] measures {name} too"
            )


def unmeasured(what: str, hint: str) -> GateError:
    return GateError(
        f"no report measured {what}: it is not published", reason="not_measured", hint=hint
    )


def _measured_lora(gguf: Artifact, figures: EvaluationReport) -> dict[str, Any]:
    """The adapter's own file, with the base's files on which the report measured it.

    Raises:
        GateError: The report measured the adapter on none of them.
        UsageError: The adapter's own file was not written.
    """
    lora = gguf.metrics.get("lora") or {}
    if not lora.get("bases"):
        raise UsageError(
            f"publish.include names lora, and {gguf.path} holds no adapter with its base's files",
            hint="quantize: {lora_gguf: true}",
        )
    measured = {
        model.get("base_sha256")
        for model in figures["models"].values()
        if model.get("sha256") == lora["sha256"]
    }
    bases = {name: entry for name, entry in lora["bases"].items() if entry["sha256"] in measured}
    if not bases:
        raise unmeasured(lora["file"], "evaluate it: evaluate: {models: [..., lora]}")
    kept = {
        name: {key: entry[key] for key in ("file", "size", "sha256")}
        for name, entry in bases.items()
    }
    return {"file": lora["file"], "size": lora["size"], "sha256": lora["sha256"], "bases": kept}


def _members(
    made: Artifact | None,
    gguf: Artifact,
    files: Mapping[str, Any],
    figures: EvaluationReport,
    out: Path,
) -> dict[str, Any]:
    """Copy the linear members of the sum that the report measured; returns weights, hashes and the
    encoder's source, license and size, or {} where the file answers alone.

    Raises:
        GateError: The report did not measure these files with these members, or the file has no
            weight among them.
    """
    entry = figures.get("sum")
    if made is None or entry is None or entry["model"] in files:
        return {}
    if FILE not in entry["weights"]:
        raise GateError(
            "the file has no weight in the sum: linear members alone answer better than with it",
            reason="beaten",
            hint="publish: {model: linear} releases those; without a section encode the file alone "
            "is released",
        )
    measured = {model.get("sha256") for model in figures["models"].values()}
    for name in files:
        if answering_sha256(gguf, gguf_file(gguf, name), made) not in measured:
            raise unmeasured(f"{name} in this sum", "slmctl evaluate")
    return copy_members(made, out)


def copy_members(made: Artifact, out: Path) -> dict[str, Any]:
    """Copy linear members into a release; returns weights, hashes and
    the encoder's source, license and size.
    """
    hashes = sum_files(made)
    copy(made, tuple(hashes), out)
    facts = {"weights": made.metrics["weights"], "files": hashes, "source": made.metrics["source"]}
    facts |= {"tagging": True} if is_tagging(made) else {}
    if ENCODER not in hashes:
        return facts
    weights = (
        "changed: they learned training and validation rows"
        if made.metrics.get("tuned")
        else "unchanged"
    )
    terms, size = made.metrics["encoder_license"], made.file(ENCODER).stat().st_size
    return facts | {"license": terms, "size": size, "encoder_weights": weights}


def _probe(
    out: Path, files: dict[str, Any], task: Task, prepared: Artifact, config: PublishConfig
) -> dict[str, Any]:
    """Probe the largest file for memorised rows: it is the closest to the merged model."""
    largest = max(files.values(), key=lambda entry: entry["size"])
    settings = config.memorisation
    records = training(read_records(prepared.file("train.jsonl")), task)
    counts = memorisation_probe.probe(
        out / largest["file"], task, records, probes=settings.probes, max_share=settings.max_share
    )
    if settings.probes and not counts["asked"]:
        console.say(
            "  note: no training row holds a rare string, so there was nothing to probe for "
            "memorised rows"
        )
    return counts


def _changes(facts: Base, config: PublishConfig) -> str:
    return (
        f"It was fine-tuned with LoRA on private data and quantized to GGUF as {config.project} "
        f"{config.version}; "
        f"the weights of {facts.name} were changed."
    )


def _write_texts(
    out: Path, task: Task, files: dict[str, Any], figures: EvaluationReport, **facts: Any
) -> None:
    """Write the model card and Ollama's Modelfile; `facts` are further values for the card."""
    if '"""' in task.whole_system:
        raise UsageError(
            'task.system holds """, which a Modelfile cannot express', hint="rephrase task.system"
        )
    smallest = min(files.values(), key=lambda entry: entry["size"])["file"]
    write_card(out, task, files, figures, smallest=smallest, **facts)
    modelfile = _render("Modelfile", file=smallest, task=task, context=CONTEXT)
    (out / "Modelfile").write_text(modelfile, encoding="utf-8")


def write_card(
    out: Path, task: Task, files: Mapping[str, Any], figures: EvaluationReport, **facts: Any
) -> None:
    """Write the model card of files, by the name of each in the
    report; `facts` are further values for it.
    """
    head, rows = table(figures)
    card = _render(
        "model_card.md",
        task=task,
        report=figures,
        released=released(figures),
        head=head,
        rows=rows,
        files=files,
        size=console.size,
        context=CONTEXT,
        **facts,
    )
    (out / "README.md").write_text(card, encoding="utf-8")


def teaching_of(labelled: Artifact | None) -> dict[str, Any]:
    """The teachers whose labels were trained on, the number of their
    labels and the bound; {} without any.
    """
    if labelled is None or not labelled.metrics["accepted"]:
        return {}
    facts = labelled.metrics
    names = [{"name": entry["name"], "terms": entry["terms"]} for entry in facts["teachers"]]
    return {"rows": facts["accepted"], "bound": facts["bound"], "teachers": names}


def summary(prepared: Artifact) -> dict[str, Any]:
    """Counts of the prepared data for the model card; no text of it."""
    facts = prepared.metrics
    sensitive: dict[str, dict[str, int]] = {}
    for row in facts.get("sensitive", []):
        actions = sensitive.setdefault(row["kind"], {})
        actions[row["action"]] = actions.get(row["action"], 0) + row["count"]
    return {
        "splits": {split: facts[split] for split in SPLITS},
        "sources": len(facts.get("sources", [])),
        "labels": len(facts.get("labels", {})),
        "rejected": facts["rejected"],
        "split": facts["splits"]["by"],
        "tokens": facts.get("tokens", {}),
        "sensitive": sensitive,
    }


def _render(name: str, **values: Any) -> str:
    source = resources.files("slmctl.templates").joinpath(name).read_text(encoding="utf-8")
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # noqa: S701 - not HTML
    environment.filters |= {
        "percent": console.percent,
        "clean": console.clean,
        "code": html_page.code,
        "inert": html_page.inert,
    }
    environment.filters |= {"scalar": _scalar, "unmarked": html_page.unmarked}
    return environment.from_string(source).render(**values)


_PLAIN = re.compile(r"[A-Za-z][\w./-]*")  # `[a, b]`, `a: b`, `# a` and `1.0` are no texts in YAML


def _scalar(text: str) -> str:
    """A text as a value of YAML, which is quoted where it could be read as more."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
