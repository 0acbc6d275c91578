"""A release's lineage as an in-toto statement with SLSA provenance: the files, the inputs and the
steps.

Plain JSON (https://in-toto.io/Statement/v1, https://slsa.dev/provenance/v1). It holds hashes,
settings and versions; no path, date, host or name of a data file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmctl import __version__
from slmctl.artifacts.artifact import Artifact, canonical, scan
from slmctl.model_files.base_model import Base

FILENAME = "lineage.intoto.json"
BUILD_TYPE = "urn:slmctl:pipeline:1"
_MODELS = (".gguf", ".safetensors", ".npz", ".onnx")
# keys of an environment that reveal the place
_APART = ("hosts_contacted", "bytes_out", "not_counted", "processor")
# keys of a config with file and column names; the task is published as task.json
_PRIVATE = ("sources", "task")


def write(out: Path, steps: Mapping[str, Artifact]) -> None:
    """Write the statement about the model files in `out`.

    Args:
        steps: The artifacts that the release was made from, by role, in the order of the pipeline.
    """
    subject = [
        {"name": entry.path, "digest": {"sha256": entry.sha256}}
        for entry in scan(out)
        if entry.path.endswith(_MODELS)
    ]
    versions: dict[str, str] = {}
    for step in steps.values():
        versions |= {
            name: str(value)
            for name, value in step.manifest.environment.items()
            if name not in _APART
        }
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {role: _settings(step) for role, step in steps.items()},
                "internalParameters": {
                    "steps": [_step(role, step) for role, step in steps.items()]
                },
                "resolvedDependencies": _dependencies(steps),
            },
            "runDetails": {
                "builder": {"id": "urn:slmctl:local", "version": versions | {"slmctl": __version__}}
            },
        },
    }
    (out / FILENAME).write_bytes(canonical(statement))


def _settings(made: Artifact) -> dict[str, Any]:
    return {key: value for key, value in made.manifest.config.items() if key not in _PRIVATE}


def _step(role: str, made: Artifact) -> dict[str, Any]:
    """One artifact of the chain: its stage, recipe, inputs and digest."""
    manifest = made.manifest
    return {
        "role": role,
        "stage": manifest.stage,
        "recipe": manifest.recipe_id,
        "inputs": manifest.inputs,
        "digest": manifest.digest,
    }


def _dependencies(steps: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """The weights of the base or the encoder by name and hash, and the data files by hash alone."""
    weights: list[dict[str, Any]] = []
    for role in ("base", "encoder"):
        if (made := steps.get(role)) is not None:
            source = Base.read(made.path).source if made.is_base else str(made.metrics["source"])
            uri = _purl(source)
            weights += [
                {"name": name, "digest": {"sha256": value}} | ({"uri": uri} if uri else {})
                for name, value in sorted(made.metrics.get("source_sha256", {}).items())
            ]
    return weights + [
        {"name": f"data source {k}", "digest": {"sha256": source["sha256"]}}
        for k, source in enumerate(steps["prepared"].metrics.get("sources", []), 1)
    ]


def _purl(source: str) -> str | None:
    """A base's source as a package URL; None for a local one."""
    kind, _, name = source.partition(":")
    if kind == "pypi":
        return "pkg:pypi/" + name.replace("==", "@")
    return f"pkg:huggingface/{name}" if kind == "hf" else None
