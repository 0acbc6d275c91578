"""Records laid out in one row of tokens, without padding between them and with what they share only once.

    prefix | rest of record 1 | rest of record 2 | …

All records of a task open with the same tokens (the system prompt, the head of the first turn), so
their states there are the same too: they are computed once, and every record attends to them. The
gradient is the sum over the records, as it would be had each carried its own copy. The rests are
filled up to the longest of their batch, which holds records of like length.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from transformers import AttentionInterface, AttentionMaskInterface

IGNORED = -100  # the label of a token that is no part of an answer
NAME = "slmctl-packed"


class Row(TypedDict):
    """One encoded record: ids, labels (the id, or IGNORED) and the weight of each token in the loss."""

    input_ids: list[int]
    labels: list[int]
    weights: list[float]


class Packing:
    """Rows -> one batch: `input_ids` and `position_ids` (1, tokens), `labels` (n,) and `weights` (n,)
    of the supervised tokens, `keep` (n,) the places that predict them, and `layout` (prefix, records).
    """

    def __init__(self, *, share: bool = True) -> None:
        self.share = share

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        prefix = shared_prefix(rows) if self.share else 0
        length = max(len(row["input_ids"]) for row in rows) - prefix
        ids = torch.zeros(prefix + len(rows) * length, dtype=torch.long)
        ids[:prefix] = torch.tensor(rows[0]["input_ids"][:prefix])
        keep, labels, weights = [], [], []
        for k, row in enumerate(rows):
            start = prefix + k * length
            rest = row["input_ids"][prefix:]
            ids[start : start + len(rest)] = torch.tensor(rest)
            for at, label in enumerate(row["labels"]):
                if label != IGNORED:
                    keep.append(start + at - prefix - 1)  # a token is predicted at the place before it
                    labels.append(label)
                    weights.append(row["weights"][at])
        positions = torch.cat([torch.arange(prefix), torch.arange(prefix, prefix + length).repeat(len(rows))])
        return {
            "input_ids": ids[None],
            "position_ids": positions[None],
            "labels": torch.tensor(labels),
            "weights": torch.tensor(weights),
            "keep": torch.tensor(keep),
            "layout": (prefix, len(rows)),
        }


def shared_prefix(rows: Sequence[Row]) -> int:
    """How many tokens all rows open with, ending before the first place that predicts an answer."""
    if len(rows) < 2:
        return 0
    ends = min(next(k for k, label in enumerate(row["labels"]) if label != IGNORED) for row in rows) - 1
    first, count = rows[0]["input_ids"], 0
    while count < ends and all(row["input_ids"][count] == first[count] for row in rows):
        count += 1
    return count


def mask(prefix: int, length: int, window: int | None) -> torch.Tensor:
    """Additive mask (length, prefix + length) of a record's rest over the prefix and itself, causal; a window bounds
    how far back it looks."""
    allowed = torch.ones(length, prefix + length, dtype=torch.bool).tril(prefix)
    if window is not None:
        allowed = allowed.triu(prefix - window + 1)
    return torch.zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)


def attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    *, layout: tuple[int, int], scaling: float | None = None, dropout: float = 0.0,
    sliding_window: int | None = None, softcap: float | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention over a packed batch, for every architecture of transformers; (1, heads, tokens, size) each."""
    prefix, rows = layout
    length = (query.shape[2] - prefix) // rows
    product: Any = torch.nn.functional.scaled_dot_product_attention
    if softcap is not None:
        product = functools.partial(_capped, cap=softcap)
    options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}

    def rests(x: torch.Tensor, *, with_prefix: bool) -> torch.Tensor:
        rest = x[0, :, prefix:].reshape(x.shape[1], rows, length, -1).transpose(0, 1)  # (rows, heads, length, size)
        return torch.cat([x[:, :, :prefix].expand(rows, -1, -1, -1), rest], dim=2) if with_prefix else rest

    bias = mask(prefix, length, sliding_window).to(query)
    out = product(
        rests(query, with_prefix=False), rests(key, with_prefix=True), rests(value, with_prefix=True),
        attn_mask=bias, **options,
    )  # fmt: skip
    parts = [out.transpose(1, 2).flatten(0, 1)]  # (tokens, heads, size)
    if prefix:
        own = [x[:, :, :prefix] for x in (query, key, value)]
        bias = mask(0, prefix, sliding_window).to(query)
        parts.insert(0, product(*own, attn_mask=bias, **options)[0].transpose(0, 1))
    return torch.cat(parts)[None], None


def _capped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *,
    attn_mask: torch.Tensor, scale: float, dropout_p: float, enable_gqa: bool, cap: float,
) -> torch.Tensor:  # fmt: skip
    """torch's `scaled_dot_product_attention` with scores that a tanh keeps below `cap`, which its kernels cannot."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = torch.tanh(query @ key.transpose(2, 3) * (scale / cap)) * cap + attn_mask
    return torch.dropout(scores.softmax(dim=-1), dropout_p, train=True) @ value


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)  # the layout says it all
