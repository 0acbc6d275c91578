"""Releases for a fleet: one tiny model with several tasks, in a registry with tags."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.releases import registry
from slmctl.task.contract import Task
from slmctl.task.tool_calls import OWN
from support import TESTS, handmade, tiny
from support.reported import small_report

KEPT = TESTS / "fixtures" / "0.1.0" / "published" / "base-7K-kept-v1.0-F16.gguf"  # 7,000 weights
CONTROL = ("</s>", "<s>", "<unk>", "<|im_end|>", "<|im_start|>")
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}


def task(kind: str, *labels: str) -> Task:
    """A task contract for that model."""
    schema = SCHEMA if kind == "extract" else None
    return Task(
        kind,
        tiny.TEMPLATE,
        "<|im_end|>",
        labels=labels,
        schema=schema,
        bos_token="<s>",
        eos_token="<|im_end|>",
        special_tokens=CONTROL,
    )


TOOLS: tuple[dict[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }
    for name, description, parameters in (
        (
            "track_order",
            "Tell where an order is.",
            {
                "type": "object",
                "properties": {"order": {"enum": ["A-1", "A-2"]}, "express": {"type": "boolean"}},
                "required": ["order"],
                "additionalProperties": False,
            },
        ),
        ("close_account", "Close the account.", {"type": "object", "properties": {}}),
    )
)
TASKS = {
    "tickets": task("classify", "account", "billing", "delivery"),
    "moods": task("classify", "glad", "sad"),
    "which": task("classify", "letters", "tickets"),
    "orders": task("extract"),
    "letters": task("generate"),
    "errands": dataclasses.replace(task("call"), tools=TOOLS, call_form=OWN),
}


def published(
    root: Path,
    project: str,
    version: str = "1.0",
    *,
    tag: str = "production",
    inputs: dict[str, Any] | None = None,
) -> Artifact:
    """A release of `TASKS[project]` in a registry, with a tag on
    it; of another project, of a text.
    """
    path, weights = root / project / version, KEPT.read_bytes()
    sha256 = artifact.sha256_file(KEPT).removeprefix("sha256:")
    report = small_report({"F16": {"sha256": sha256, "metrics": {"accuracy": 0.9}}})

    def fill(place: Path) -> None:
        TASKS.get(project, TASKS["letters"]).write(place)
        (place / f"base-7K-{project}-v{version}-F16.gguf").write_bytes(weights)
        (place / "report.json").write_bytes(artifact.canonical(report))
        (place / "VERSION").write_text(version, encoding="utf-8")

    metrics = {"project": project, "version": version, "license": "mit", "files": {"F16": sha256}}
    about = {"kind": "published", "stage": "publish/3", "recipe_id": "sha256:0"}
    release = handmade.make(path, fill, **about, metrics=metrics, inputs=inputs or {})
    registry.record_gates(root, release, [])
    registry.promote(root, release, tag)
    return release
