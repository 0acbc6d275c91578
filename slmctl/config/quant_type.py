"""Quantization types of llama.cpp: what a name such as `Q4_K_M` says of the weights in a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# Of a weight on top of its bits: the scales of its block, and the tensors in larger types.
SCALE_BITS = 0.85
WIDE_BLOCK = 256  # weights


@dataclass(frozen=True)
class _Family:
    """Types of one construction.

    Attributes:
        names: Pattern of their names; the digits of a name's first part are its bits.
        wide: A block holds `WIDE_BLOCK` weights of a row. A row that is no multiple of it is stored
            in another type.
        matrix: What an importance matrix is to them; llama.cpp refuses to write a type without one
            that is `required`.
    """

    names: str
    wide: bool = False
    matrix: Literal["useless", "helpful", "required"] = "useless"


_FAMILIES = (
    _Family("F32|F16|BF16"),
    _Family("Q[45]_[01]", matrix="helpful"),
    _Family("Q8_0"),
    _Family("Q2_K|Q3_K_[SML]|Q[45]_K_[SM]", wide=True, matrix="helpful"),
    _Family("Q2_K_S", wide=True, matrix="required"),
    _Family("Q6_K|TQ[12]_0", wide=True),
    _Family("IQ1_[SM]|IQ[23]_(XXS|XS|S|M)", wide=True, matrix="required"),
    _Family("IQ4_XS", wide=True, matrix="helpful"),
    _Family("IQ4_NL", matrix="helpful"),
)
PATTERN = f"^({'|'.join(family.names for family in _FAMILIES)})$"


@dataclass(frozen=True)
class QuantType:
    """A quantization type by its name."""

    name: str

    @property
    def _family(self) -> _Family:
        return next(family for family in _FAMILIES if re.fullmatch(family.names, self.name))

    @property
    def bits(self) -> int:
        """Bits of a weight without the scales of its block: 4 of `Q4_K_M`, 16 of `BF16`."""
        return int("".join(filter(str.isdigit, self.name.partition("_")[0])))

    @property
    def is_quantized(self) -> bool:
        """False for a float of 16 or 32 bits."""
        return self.bits < 16

    @property
    def is_wide(self) -> bool:
        """True if a block holds `WIDE_BLOCK` weights of a row."""
        return self._family.wide

    @property
    def takes_matrix(self) -> bool:
        """True if an importance matrix can improve it."""
        return self._family.matrix != "useless"

    @property
    def needs_matrix(self) -> bool:
        """True if llama.cpp writes it with an importance matrix only."""
        return self._family.matrix == "required"

    @property
    def constant(self) -> str:
        """The name of its number in llama.h."""
        return f"LLAMA_FTYPE_{'ALL' if self.name == 'F32' else 'MOSTLY'}_{self.name}"

    def file_bytes(self, parameters: int) -> int:
        """Estimated size of a GGUF file of so many weights."""
        width = self.bits + SCALE_BITS if self.is_quantized else self.bits
        return int(parameters * width / 8)
