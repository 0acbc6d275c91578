"""Models that can answer, a file a kind, and what answers beside or before one: `of` is where a kind becomes a class.

The first look at a question (`first_look`) is no model: it stands before one that is open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
    from slmctl.models.model import Model


def class_of(kind: str) -> type[Model]:
    """The class of the models of a kind of artifact."""
    from slmctl.models.encoder import EncoderAlone
    from slmctl.models.endpoint import ModelElsewhere
    from slmctl.models.gguf import GgufModel
    from slmctl.models.hf import AdapterOnBase, HfModel, UntunedBase
    from slmctl.models.linear import LinearFile

    classes: dict[str, type[Model]] = {
        "gguf": GgufModel, "published": GgufModel, "encoder": EncoderAlone, "base": UntunedBase, "merged": HfModel,
        "adapter": AdapterOnBase, "linear": LinearFile, "endpoint": ModelElsewhere,
    }  # fmt: skip
    return classes[kind]


def of(
    artifact: Artifact, *, type: str | None = None, base: Artifact | None = None, encoder: Artifact | None = None,
    own_file: bool = False,
) -> Model:  # fmt: skip
    """The model of an artifact, a release or a foreign model.

    Args:
        type: The quantization type, of a model with several GGUF files.
        base: The base of an adapter.
        encoder: The encoder whose opinion is added to a file's; a release may have one of its own.
        own_file: The adapter's own GGUF file, on the base's file of the type.
    """
    from slmctl.model_files.gguf_choice import opinion_of
    from slmctl.models.adapter_file import AdapterFile
    from slmctl.models.gguf import GgufModel
    from slmctl.models.hf import AdapterOnBase
    from slmctl.models.opinion import FileWithOpinion

    if own_file and base is not None:
        return AdapterFile(artifact, base, type)
    made = class_of(artifact.kind)
    if issubclass(made, AdapterOnBase):
        return made(artifact, base)
    if not issubclass(made, GgufModel):
        return made(artifact)
    file = made(artifact, type)
    return file if opinion_of(encoder or artifact) is None else FileWithOpinion(artifact, file, encoder)
