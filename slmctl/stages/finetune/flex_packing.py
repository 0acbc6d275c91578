"""Attention over a packed batch as one kernel on a GPU: torch's flex_attention, masked by the
packed layout.

The kernel skips blocks of scores that are masked throughout, so the shared prefix is read once and
never copied, and scores between different records cost nothing.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch.nn.attention import flex_attention as flex

BLOCK = 128  # queries and keys of a block of scores
LEAST_CAPABILITY = (8, 0)  # compute capability of CUDA that the kernel needs


def serves(query: torch.Tensor, dropout: float) -> bool:
    """True if the kernel runs on the device of `query`; it has no dropout."""
    return bool(
        query.is_cuda
        and not dropout
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(query.device) >= LEAST_CAPABILITY
    )


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: tuple[int, int],
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """query (1, heads, T, size), key and value (1, kv heads, T, size) -> (1, T, heads, size)."""
    prefix, rows = layout
    tokens = query.shape[2]
    length = (tokens - prefix) // rows
    mask = block_mask(prefix, rows, length, window, query.device)
    out: torch.Tensor = _kernel(query.is_cuda)(
        query,
        key,
        value,
        score_mod=_cap(softcap),
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


@functools.lru_cache(maxsize=8)  # every layer of a batch asks for the same one
def block_mask(
    prefix: int, rows: int, length: int, window: int | None, device: torch.device
) -> Any:
    """flex_attention's BlockMask of a batch of `rows` records, each with `length` tokens after the
    prefix.

    The blocks with a visible score follow from the layout, so no mask (T, T) is made.
    """
    tokens = prefix + rows * length
    first = torch.arange(0, tokens, BLOCK)  # the first query of each block
    last = (first + BLOCK - 1).clamp(max=tokens - 1)
    # first token of its record
    opens = torch.where(first < prefix, 0, prefix + (first - prefix) // length * length)
    blocks = torch.arange(len(first))
    # (blocks of queries, of keys)
    seen = (blocks * BLOCK < prefix) | ((blocks + 1) * BLOCK > opens[:, None])
    seen &= blocks * BLOCK <= last[:, None]
    order = seen.int().argsort(dim=1, descending=True, stable=True).int()
    counts = seen.sum(dim=1, dtype=torch.int32)
    return flex.BlockMask.from_kv_blocks(
        counts[None, None].to(device),
        order[None, None].to(device),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible(prefix, length, window),
        seq_lengths=(tokens, tokens),
    )


def visible(prefix: int, length: int, window: int | None) -> Any:
    """flex_attention's mask_mod: a query sees keys of the prefix and of its own record, up to
    itself.

    Args:
        window: Number of tokens that a place attends to, itself included; None for all before it.
    """

    def sees(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        record = torch.where(query < prefix, -1, (query - prefix) // length)
        same = (key < prefix) | ((key - prefix) // length == record)
        seen = (key <= query) & same
        if window is not None:
            at = torch.where(query < prefix, query, prefix + (query - prefix) % length)
            other = torch.where(key < prefix, key, prefix + (key - prefix) % length)
            seen = seen & (at - other < window)
        return seen

    return sees


def _cap(softcap: float | None) -> Any:
    """flex_attention's score_mod: a soft cap by tanh, or None."""
    if softcap is None:
        return None
    return lambda score, batch, head, query, key: torch.tanh(score / softcap) * softcap


@functools.cache
def _kernel(compiled: bool) -> Any:
    """flex_attention, compiled on a GPU with dynamic shapes, since
    batches differ; eager elsewhere, for tests.
    """
    return torch.compile(flex.flex_attention, dynamic=True) if compiled else flex.flex_attention
