"""A kind of task, its language and schema -> the cheap model that `init` puts beside the language
model: the section `encode`, and the baseline of its gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import EncodeConfig
from slmctl.errors import DataError
from slmctl.metrics.baseline import EncoderLogistic, EncoderTagger
from slmctl.task.kinds.kind import TaskKind
from slmctl.task.spans import fields_of


@dataclass(frozen=True)
class CheapModel:
    """A section `encode`.

    Attributes:
        about: The comment on its line.
        rival: The baseline that a release has to beat; empty for none.
    """

    encoder: str
    about: str
    rival: str = ""


def proposed(
    rules: type[TaskKind], language: str, schema: Callable[[], JsonObject]
) -> CheapModel | None:
    """The cheap model of a kind of task, by the main language of its rows; None for none.

    An encoder that knows English tags the words of other languages too, since they stand in the
    text; what a text means it has to know.
    """
    if not rules.has("encode"):
        return None
    encoder = EncodeConfig().encoder or ""
    if rules.has("schema"):
        about = "a cheap model that marks the words of each field; 83 MB"
        return CheapModel(encoder, about, EncoderTagger.name) if _can_be_tagged(schema()) else None
    if language == "en":
        about = "cheap models, added where they help; 83 MB, or none: words alone"
        return CheapModel(encoder, about, EncoderLogistic.name)
    about = "a linear model of words, added where it helps; a sentence encoder of your language too"
    return CheapModel("none", about)


def _can_be_tagged(schema: JsonObject) -> bool:
    try:
        return bool(fields_of(schema))
    except DataError:
        return False
