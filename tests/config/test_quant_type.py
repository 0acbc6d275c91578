"""What the name of a quantization type says, beside llama.cpp's own list and files."""

from __future__ import annotations

import re

import pytest

from slmctl.config.quant_type import PATTERN, QuantType

# name, bits, blocks of 256, an importance matrix helps, and is required
TYPES = [
    ("F32", 32, False, False, False),
    ("F16", 16, False, False, False),
    ("BF16", 16, False, False, False),
    ("Q8_0", 8, False, False, False),
    ("Q5_1", 5, False, True, False),
    ("Q4_0", 4, False, True, False),
    ("Q6_K", 6, True, False, False),
    ("Q4_K_M", 4, True, True, False),
    ("Q2_K", 2, True, True, False),
    ("Q2_K_S", 2, True, True, True),
    ("IQ4_XS", 4, True, True, False),
    ("IQ4_NL", 4, False, True, False),
    ("IQ3_M", 3, True, True, True),
    ("IQ2_XXS", 2, True, True, True),
    ("IQ1_S", 1, True, True, True),
    ("TQ1_0", 1, True, False, False),
]

TRAINED = {"MXFP4_MOE", "NVFP4", "Q1_0", "Q2_0"}


@pytest.mark.parametrize("name, bits, wide, takes, needs", TYPES)
def test_a_name_says_what_a_type_is(
    name: str, bits: int, wide: bool, takes: bool, needs: bool
) -> None:
    kind = QuantType(name)
    assert re.match(PATTERN, name)
    assert (kind.bits, kind.is_wide, kind.takes_matrix) == (bits, wide, takes)
    assert kind.needs_matrix is needs and kind.is_quantized is (bits < 16)


def test_a_file_has_the_bits_of_its_type_and_their_scales() -> None:
    assert QuantType("BF16").file_bytes(1000) == 2000
    assert QuantType("F32").file_bytes(1000) == 4000
    assert 1000 < QuantType("Q8_0").file_bytes(1000) < 1200


def test_every_type_that_llama_cpp_writes_is_named() -> None:
    """But those that a model has to be trained for."""
    lc = pytest.importorskip("llama_cpp")
    prefix = re.compile(r"LLAMA_FTYPE_(?:ALL|MOSTLY)_")
    names = {prefix.sub("", name): name for name in dir(lc) if prefix.match(name)}
    ours = {name for name in names if re.match(PATTERN, name)}
    assert ours == set(names) - TRAINED
    assert all(QuantType(name).constant == names[name] for name in ours)
