"""Models that can answer, a file a kind, and what answers beside or before one: `of` is where a kind becomes a class.

The first look at a question (`first_look`) is no model: it stands before one that is open.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
    from slmctl.models.model import Model


@functools.cache
def class_of(kind: str) -> type[Model]:
    """The class of the models of a kind, of artifacts and as predictions and reports have it.

    Of what is no model, such as a baseline, the class that says nothing special.
    """
    from slmctl.models.adapter_file import AdapterFile
    from slmctl.models.encoder import EncoderAlone
    from slmctl.models.endpoint import ModelElsewhere
    from slmctl.models.gguf import GgufModel, ReferenceFile, ReleasedFile
    from slmctl.models.hf import AdapterOnBase, HfModel, UntunedBase
    from slmctl.models.linear import LinearFile
    from slmctl.models.model import Model
    from slmctl.models.opinion import FileWithOpinion

    classes: dict[str, type[Model]] = {
        "gguf": GgufModel, "published": ReleasedFile, "encoder": EncoderAlone, "base": UntunedBase, "merged": HfModel,
        "adapter": AdapterOnBase, "linear": LinearFile, "endpoint": ModelElsewhere,
        "lora": AdapterFile, "ensemble": FileWithOpinion, "release": ReferenceFile,
    }  # fmt: skip
    return classes.get(kind, Model)


def of(
    artifact: Artifact, *, type: str | None = None, base: Artifact | None = None, encoder: Artifact | None = None,
    own_file: bool = False, release: str = "",
) -> Model:  # fmt: skip
    """The model of an artifact, a release or a foreign model.

    Args:
        type: The quantization type, of a model with several GGUF files.
        base: The base of an adapter.
        encoder: The encoder whose opinion is added to a file's; a release may have one of its own.
        own_file: The adapter's own GGUF file, on the base's file of the type.
        release: The name that gates call a release by; empty for a model that is no reference of theirs.
    """
    from slmctl.model_files.gguf_choice import opinion_of
    from slmctl.models.adapter_file import AdapterFile
    from slmctl.models.gguf import GgufModel, ReferenceFile
    from slmctl.models.hf import AdapterOnBase
    from slmctl.models.opinion import FileWithOpinion

    if own_file and base is not None:
        return AdapterFile(artifact, base, type)
    made = class_of(artifact.kind)
    if issubclass(made, AdapterOnBase):
        return made(artifact, base)
    if not issubclass(made, GgufModel):
        return made(artifact)
    file = ReferenceFile(artifact, type, release) if release else made(artifact, type)
    return file if opinion_of(encoder or artifact) is None else FileWithOpinion(artifact, file, encoder)
