"""Weights stored in FP8 with scales -> the same weights in bfloat16, some rows at a time.

A matrix `x.weight` has the scales `x.weight_scale_inv`: one number, or one for each block of rows
and columns. Scales of activations (`x.activation_scale`) are of no use to a bfloat16 model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError
from slmctl.model_files.safetensors_stream import StoredTensor

SCALE, UNUSED = "_scale_inv", "activation_scale"
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
MAX_BLOCK = 1 << 16
HINT = "take the same base in bfloat16 or float16, or a .gguf file of it"


@dataclass(frozen=True)
class ScaledMatrix:
    """A matrix in FP8 with its scales.

    Attributes:
        block: Rows and columns that share one scale.
    """

    weight: StoredTensor
    scale: StoredTensor
    block: tuple[int, int]

    def pieces(self) -> Iterator[torch.Tensor]:
        """All rows, dequantised to bfloat16, some at a time."""
        shape = self.scale.shape if len(self.scale.shape) == 2 else (1, 1)
        scales = self.scale.rows(0, shape[0]).float().reshape(shape)
        height, width = self.block
        columns = scales.repeat_interleave(width, 1)[:, : self.weight.shape[1]]
        for first, last in self.weight.blocks():
            rows = torch.arange(first, last) // height
            weight = self.weight.rows(first, last).float()
            yield (weight * columns[rows]).to(torch.bfloat16)


def is_scale(name: str) -> bool:
    return name.endswith((SCALE, UNUSED))


def find(config: JsonObject, tensors: Sequence[StoredTensor]) -> dict[str, ScaledMatrix]:
    """Matrices in FP8 by the names under which they are stored.

    Raises:
        DataError: One has no scales, or scales of another shape than its blocks.
    """
    size = _block_size(config)
    by_name = {tensor.name: tensor for tensor in tensors}
    matrices = {}
    for weight in tensors:
        if weight.dtype not in FP8 or is_scale(weight.name):
            continue
        matrix = _scaled(weight, by_name.get(weight.name + SCALE), size)
        if matrix is None:
            raise DataError(
                f"the base holds '{weight.name[:120]}' in FP8 without scales that fit it", hint=HINT
            )
        matrices[weight.name] = matrix
    return matrices


def _scaled(
    weight: StoredTensor, scale: StoredTensor | None, size: tuple[int, int] | None
) -> ScaledMatrix | None:
    """A matrix with its scales, one for each block of `size`, or one for all; None if they do not
    fit.
    """
    if scale is None or len(weight.shape) != 2:
        return None
    height, width = weight.shape
    block = (height, width)
    if size is not None and len(scale.shape) == 2:
        block = size
    grid = (-(-height // max(block[0], 1)), -(-width // max(block[1], 1)))
    if scale.shape not in ((), (1,), grid):
        return None
    return ScaledMatrix(weight, scale, block)


def _block_size(config: JsonObject) -> tuple[int, int] | None:
    """Rows and columns of a block; None where a matrix has one scale,
    or the config states no valid size.
    """
    packed = config.get("quantization_config")
    size = packed.get("weight_block_size") if isinstance(packed, dict) else None
    if not isinstance(size, list) or len(size) != 2:
        return None
    if not all(type(n) is int and 0 < n <= MAX_BLOCK for n in size):
        return None
    return size[0], size[1]
