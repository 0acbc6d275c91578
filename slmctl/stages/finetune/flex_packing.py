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
    if not query.is_cuda or dropout or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(query.device) >= LEAST_CAPABILITY


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
    length = (query.shape[2] - prefix) // rows
    options = {
        "score_mod": _cap(softcap),
        "block_mask": block_mask(prefix, rows, length, window, query.device),
        "scale": scaling,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    attention = _kernel(query.is_cuda)
    out: torch.Tensor = attention(query, key, value, **options)
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
    seen = _seen_blocks(prefix, length, tokens)
    order = seen.int().argsort(dim=1, descending=True, stable=True).int()
    counts = seen.sum(dim=1, dtype=torch.int32)
    return flex.BlockMask.from_kv_blocks(
        counts[None, None].to(device),
        order[None, None].to(device),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible(prefix, length, window),
        seq_lengths=(tokens, tokens),
    )


def _seen_blocks(prefix: int, length: int, tokens: int) -> torch.Tensor:
    """True where a block of queries sees a key of a block: (blocks of queries, blocks of keys)."""
    first = torch.arange(0, tokens, BLOCK)  # token of each block
    end = first + BLOCK
    last = (end - 1).clamp(max=tokens - 1)
    record = (first - prefix) // length
    # the token that the record of a block's first query begins with
    begin = torch.where(first < prefix, 0, prefix + record * length)
    in_prefix = first < prefix
    in_record = end > begin[:, None]
    before = first <= last[:, None]
    return (in_prefix | in_record) & before


def visible(prefix: int, length: int, window: int | None) -> Any:
    """flex_attention's mask_mod: a query sees keys of the prefix and of its own record, up to
    itself.

    Args:
        window: Number of tokens that a place attends to, itself included; None for all before it.
    """

    def place(index: torch.Tensor) -> torch.Tensor:
        """The place of a token in its own record."""
        after = (index - prefix) % length
        return torch.where(index < prefix, index, prefix + after)

    def sees(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        record = torch.where(query < prefix, -1, (query - prefix) // length)
        same = (key < prefix) | ((key - prefix) // length == record)
        seen = (key <= query) & same
        if window is not None:
            seen = seen & (place(query) - place(key) < window)
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
    if not compiled:
        return flex.flex_attention
    return torch.compile(flex.flex_attention, dynamic=True)
