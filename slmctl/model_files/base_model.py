"""What `pull` found out about a base model; it travels with the weights as `base.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.artifact import canonical
from slmctl.errors import IntegrityError

FILENAME = "base.json"


@dataclass(frozen=True)
class Base:
    """A base model's name, origin, licence, size and the tokens that its prompts need.

    Attributes:
        name: The model's own name, such as `SmolLM2-135M-Instruct`.
        source: Where it came from, as the config names it; a local one is named by its file name.
        license: SPDX-like identifier, empty when the base states none.
        parameters: Number of weights.
        template_origin: `base`, or `slmctl` when the base brought no chat template.
        note: What was done to the weights, such as dequantising.
        languages: Codes such as `en` that the base's card names.
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

    @classmethod
    def read(cls, folder: Path) -> Base:
        """Raises IntegrityError when the folder has no readable `base.json`."""
        try:
            fields = json.loads((folder / FILENAME).read_bytes())
            texts = {key: tuple(fields[key]) for key in ("special_tokens", "languages")}
            return cls(**{**fields, **texts})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{folder / FILENAME} cannot be read: {error}") from None

    def write(self, folder: Path) -> None:
        (folder / FILENAME).write_bytes(canonical(self.__dict__))

    @property
    def public_name(self) -> str:
        """What others know it by: `ORG/NAME` on the hub, else its own name."""
        return self.source.removeprefix("hf:").partition("@")[0] if self.source.startswith("hf:") else self.name

    @property
    def size_label(self) -> str:
        """The size as GGUF names spell it: `135M`, `1.2B`."""
        return size_label(self.parameters)


def size_label(parameters: int) -> str:
    """`360K`, `135M`, `1.2B` (GGUF naming convention)."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= 0.9995 * limit:  # what would be rounded to 1000 takes the next unit
            count = parameters / limit
            return f"{count:.1f}".removesuffix(".0") + unit if count < 10 else f"{count:.0f}{unit}"
    return str(parameters)
