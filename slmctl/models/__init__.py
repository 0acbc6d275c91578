"""Models that can answer, a file a kind, and their combinations with an
encoder; `of` turns a kind into its class.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
    from slmctl.models.model import Model


# Kinds of artifacts, and kinds as predictions and reports have them, each with module and class: a
# command that finds a model imports no other one.
CLASSES = {
    "encoder": "encoder.EncoderAlone",
    "base": "hf.UntunedBase",
    "adapter": "hf.AdapterOnBase",
    "merged": "hf.HfModel",
    "gguf": "gguf.GgufModel",
    "lora": "adapter_file.AdapterFile",
    "sum": "sum.FileInSum",
    "published": "gguf.ReleasedFile",
    "release": "gguf.ReferenceFile",
    "endpoint": "endpoint.ModelElsewhere",
    "linear": "linear.LinearSum",
}


def class_of(kind: str) -> type[Model]:
    """The class of the models of a kind; `Model`, which says nothing
    special, for a kind such as a baseline's.
    """
    module, name = CLASSES.get(kind, "model.Model").split(".")
    made: type[Model] = getattr(importlib.import_module(f"slmctl.models.{module}"), name)
    return made


def of(
    artifact: Artifact,
    *,
    type: str | None = None,
    base: Artifact | None = None,
    sum: Artifact | None = None,
    own_file: bool = False,
    release: str = "",
) -> Model:
    """The model of an artifact, a release or a foreign model.

    Args:
        type: The quantization type, of a model with several GGUF files.
        base: The base of an adapter.
        sum: The linear members beside a file; a release may carry them itself.
        own_file: The adapter's own GGUF file, on the base's file of the type.
        release: The name of a release in gates; empty for a model that gates do not compare with.
    """
    from slmctl.model_files.gguf_choice import has_sum, is_linear, require_measured
    from slmctl.models.adapter_file import AdapterFile
    from slmctl.models.gguf import GgufModel, ReferenceFile
    from slmctl.models.hf import AdapterOnBase
    from slmctl.models.linear import LinearSum
    from slmctl.models.sum import FileInSum

    if own_file and base is not None:
        return AdapterFile(artifact, base, type)
    made = class_of(artifact.kind)
    if artifact.is_release:
        require_measured(artifact)
    if issubclass(made, AdapterOnBase):
        return made(artifact, base)
    if issubclass(made, FileInSum) or (issubclass(made, GgufModel) and is_linear(artifact)):
        return LinearSum(artifact, release)
    if not issubclass(made, GgufModel):
        return made(artifact)
    file = ReferenceFile(artifact, type, release) if release else made(artifact, type)
    return FileInSum(artifact, file, sum) if has_sum(sum or artifact) else file
