"""Frozen weights in 4 bits on a CPU: the NF4 type of QLoRA, dequantised for each product.

NF4 has 16 values, the quantiles of a normal distribution; a block of 64 weights shares a scale, the
largest magnitude in it (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314). Four weights are
two bytes, looked up in one step, so that dequantising a weight takes a fraction of the time of the
product that follows.
"""

from __future__ import annotations

import functools

import torch

BLOCK = 64  # weights that share a scale
# weights dequantised at a time, so that the values stay in the processor's caches
AT_ONCE = 1 << 20
VALUES = (
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.39491749,
    -0.28444138,
    -0.18477343,
    -0.09105004,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
)


class FourBitWeight:
    """A weight (out, in) in NF4; `in` is a multiple of BLOCK."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.rows, self.columns = weight.shape
        self._blocks = self.columns // BLOCK  # of a row
        self.scale = torch.empty(self.rows, self._blocks, dtype=torch.bfloat16)
        # (out, in / 4), 4 codes each
        self.fours = torch.empty(self.rows, self.columns // 4, dtype=torch.int16)
        values = torch.tensor(VALUES)
        middles = (values[1:] + values[:-1]) / 2
        shifts = torch.tensor([0, 4, 8, 12], dtype=torch.int32)
        for rows in self._parts():
            # (rows, in / BLOCK, BLOCK)
            blocks = weight[rows].float().reshape(-1, self._blocks, BLOCK)
            self.scale[rows] = blocks.abs().amax(2)
            divisor = self.scale[rows].float().clamp_min(1e-30)
            unit = blocks / divisor.unsqueeze(2)
            codes = torch.bucketize(unit, middles, out_int32=True)
            shifted = codes.reshape(-1, self.columns // 4, 4) << shifts
            self.fours[rows] = (shifted.sum(2) - (1 << 15)).to(torch.int16)

    def write(self, room: torch.Tensor) -> None:
        """Dequantise the weight into `room` (out, in), of any floating dtype and row stride."""
        table = _fours()
        for rows in self._parts():
            places = self.fours[rows].flatten().int().add_(1 << 15)
            values = table.index_select(0, places).view(torch.bfloat16)
            blocks = values.view(-1, self._blocks, BLOCK)
            scale = self.scale[rows].unsqueeze(2)
            torch.mul(blocks, scale, out=room[rows].view(-1, self._blocks, BLOCK))

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight (out, in), dequantised, in `dtype`."""
        room = torch.empty(self.rows, self.columns, dtype=dtype)
        self.write(room)
        return room

    def _parts(self) -> list[slice]:
        step = max(AT_ONCE // self.columns, 1)
        starts = range(0, self.rows, step)
        return [slice(start, min(start + step, self.rows)) for start in starts]


def fits(weight: torch.Tensor) -> bool:
    """True for a weight that can be held in 4 bits."""
    return weight.dim() == 2 and weight.shape[1] % BLOCK == 0


@functools.cache
def _fours() -> torch.Tensor:
    """Lookup table (65536,): for each two bytes, their four bfloat16 values as one int64."""
    codes = torch.arange(1 << 16).unsqueeze(1) >> torch.tensor([0, 4, 8, 12]) & 15
    values = torch.tensor(VALUES, dtype=torch.bfloat16)[codes]
    return values.contiguous().view(torch.int64).flatten()
