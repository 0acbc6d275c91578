"""Choose the GGUF file of an artifact that answers: the same rule for every command."""

from __future__ import annotations

import re
from pathlib import Path

from slmctl.artifacts.artifact import Artifact, FileEntry, canonical, sha256_bytes
from slmctl.errors import UsageError
from slmctl.inference import ENCODER, OPINION


def gguf_file(model: Artifact, type: str | None = None) -> FileEntry:
    """The smallest GGUF file of an artifact, a release or a bare `.gguf`; with a type such as `Q4_K_M`, of that type.

    Raises:
        UsageError: It has no such file.
    """
    models = [entry for entry in model.files(".gguf") if not is_lora(entry.path) and not is_encoder(model, entry)]
    matches = [entry for entry in models if type is None or is_type(entry.path, type)]
    if not matches:
        raise UsageError(
            f"no GGUF file of type {type} in {model.path}" if type else f"{model.path} has no GGUF file of a model",
            hint=f"there are: {', '.join(entry.path for entry in models) or 'none'}",
        )
    return min(matches, key=lambda entry: entry.size)


def lora_file(model: Artifact) -> FileEntry:
    """The adapter's own GGUF file of an artifact, a release or a bare `.gguf`.

    Raises:
        UsageError: It has none.
    """
    entries = model.files(".gguf")
    chosen = [entry for entry in entries if is_lora(entry.path)] or (entries if model.path.is_file() else [])
    if len(chosen) != 1:
        raise UsageError(
            f"{model.path} has no adapter as a GGUF of its own", hint="slmctl quantize --set quantize.lora_gguf=true"
        )
    return chosen[0]


def is_type(path: str, type: str) -> bool:
    """True if a GGUF file's name ends with this type: `F16` is not the end of `…-BF16.gguf`."""
    return re.search(rf"(^|[-._]){re.escape(type)}\.gguf$", path) is not None


def is_lora(path: str) -> bool:
    """True if a GGUF file is an adapter, as quantize names it, and no model by itself."""
    return path.endswith("-LoRA.gguf")


def is_encoder(model: Artifact, entry: FileEntry) -> bool:
    """True for the encoder of a second opinion, which is in one folder with its head."""
    return entry.path == ENCODER and opinion_of(model) is not None


def opinion_of(model: Artifact) -> Path | None:
    """The folder of the second opinion that belongs to a model, such as a release with one; None without one."""
    return model.path if (model.path / OPINION).is_file() else None


def answering_sha256(model: Artifact, entry: FileEntry, encoder: Artifact | None = None) -> str:
    """The hash that a policy is bound to: of the GGUF file, or of file and second opinion where both answer.

    Args:
        encoder: The encoder of the second opinion, if it is not in the model's folder.
    """
    other = encoder or model
    if opinion_of(other) is None:
        return entry.sha256
    names = {each.path: each.sha256 for each in other.manifest.files}
    parts = [entry.sha256, *(names[name] for name in (ENCODER, OPINION))]
    return sha256_bytes(canonical(parts)).removeprefix("sha256:")
