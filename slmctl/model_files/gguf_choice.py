"""Choose the GGUF file of an artifact that answers: the same rule for every command."""

from __future__ import annotations

import re

from slmctl.artifacts.artifact import Artifact, FileEntry, canonical, sha256_bytes
from slmctl.errors import IntegrityError, UsageError
from slmctl.inference import ENCODER, SUM_FILE, TAGGER_FILE, TOKENIZER

BEFORE = "encoder.gguf"  # of releases before an encoder was ONNX

LORA_TYPE = "F16-LoRA"  # ends the name of an adapter's own file


def gguf_file(model: Artifact, type: str | None = None) -> FileEntry:
    """The smallest GGUF file of an artifact, a release or a bare `.gguf`; with a type such as
    `Q4_K_M`, of that type.

    Raises:
        UsageError: It has no such file.
    """
    models = [
        entry for entry in model.files(".gguf") if not is_lora(entry.path) and entry.path != BEFORE
    ]
    matches = [entry for entry in models if type is None or is_type(entry.path, type)]
    if not matches:
        raise UsageError(
            f"no GGUF file of type {type} in {model.path}"
            if type
            else f"{model.path} has no GGUF file of a model",
            hint=f"there are: {', '.join(entry.path for entry in models) or 'none'}",
        )
    return min(matches, key=lambda entry: entry.size)


def lora_file(model: Artifact) -> FileEntry:
    """The adapter's own GGUF file of an artifact, a release or a bare `.gguf`.

    Raises:
        UsageError: It has none.
    """
    entries = model.files(".gguf")
    chosen = [entry for entry in entries if is_lora(entry.path)] or (
        entries if model.path.is_file() else []
    )
    if len(chosen) != 1:
        raise UsageError(
            f"{model.path} has no adapter as a GGUF of its own",
            hint="slmctl quantize --set quantize.lora_gguf=true",
        )
    return chosen[0]


def is_type(path: str, type: str) -> bool:
    """True if a GGUF file's name ends with this type: `F16` is not the end of `…-BF16.gguf`."""
    return re.search(rf"(^|[-._]){re.escape(type)}\.gguf$", path) is not None


def is_lora(path: str) -> bool:
    """True if a GGUF file is an adapter, as quantize names it, and no model by itself."""
    return path.endswith("-LoRA.gguf")


def has_sum(model: Artifact) -> bool:
    """True for a folder with the small models of a sum, such as a release that answers by them."""
    return (model.path / SUM_FILE).is_file() or is_tagging(model)


def is_tagging(model: Artifact) -> bool:
    """True for a folder with an encoder that tags words."""
    return (model.path / TAGGER_FILE).is_file()


def head_file(model: Artifact) -> str:
    """The name of the file that says what is made of an encoder's vectors."""
    return TAGGER_FILE if is_tagging(model) else SUM_FILE


def sum_files(model: Artifact) -> dict[str, str]:
    """The files of a sum's linear members in a folder, with their
    sha256; empty if there are none.
    """
    hashes = {entry.path: entry.sha256 for entry in model.manifest.files}
    own = (head_file(model), *((ENCODER, TOKENIZER) if ENCODER in hashes else ()))
    return {name: hashes[name] for name in own if name in hashes} if has_sum(model) else {}


def require_measured(model: Artifact) -> None:
    """Raise IntegrityError for a release that lacks linear members, or has
    others than those that were measured.
    """
    if has_sum(model) and (model.path / BEFORE).is_file():
        raise IntegrityError(
            f"{model.path} holds {BEFORE}, and this version runs encoders as {ENCODER}",
            hint="slmctl run makes it anew",
        )
    measured = model.metrics.get("sum", {}).get("files", {})
    if measured and measured != sum_files(model):
        raise IntegrityError(
            f"the sum in {model.path} is not the one that was measured", hint="fetch it again"
        )


def is_linear(model: Artifact) -> bool:
    """True for a folder with the linear members of a sum and no GGUF file that they are beside."""
    return has_sum(model) and not [entry for entry in model.files(".gguf") if entry.path != BEFORE]


def answering(model: Artifact) -> dict[str, str]:
    """The files by which a release answers, with the hash of each in
    reports; of linear members alone it is one.
    """
    if is_linear(model):
        return {head_file(model): answering_sha256(model)}
    files = model.files(".gguf")
    return {
        each.path: each.sha256 if is_lora(each.path) else answering_sha256(model, each)
        for each in files
    }


def served_sha256(release: Artifact) -> str:
    """The hash, in reports and policies, of what `slmctl serve` answers by:
    the smallest file, and linear models.
    """
    return answering_sha256(release, None if is_linear(release) else gguf_file(release))


def answering_sha256(
    model: Artifact, entry: FileEntry | None = None, members: Artifact | None = None
) -> str:
    """The hash that a policy is bound to: of the GGUF file, or of all files of a sum.

    Args:
        entry: The GGUF file; None for linear members alone.
        members: The sum's linear members, if they are not in the model's folder.
    """
    others = sum_files(members or model)
    own = [entry.sha256] if entry is not None else []
    if own and not others:
        return own[0]
    parts = [*own, *(others[name] for name in sorted(others))]
    return sha256_bytes(canonical(parts)).removeprefix("sha256:")
