"""Records packed into one sequence of tokens, with their shared prefix computed once.

    prefix | rest of record 1 | rest of record 2 | …

All records of a task open with the same tokens (the system prompt, the head of the first turn), so
their hidden states there are the same: they are computed once, and every record attends to them.
The gradient is the sum over the records, as if each had its own copy. The rests are padded to the
longest of their batch, which holds records of like length.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from slmctl.stages.finetune import flex_packing

IGNORED = -100  # the label of a token outside of answers, which has no loss
ATTENTION_NAME = "slmctl-packed"
# Arguments of transformers' attention interface that leave the result as it is.
NEUTRAL_ARGUMENTS = frozenset(
    {
        "is_causal",
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "num_items_in_batch",
    }
)


class EncodedRecord(TypedDict):
    """A tokenized record: token ids, labels (the id, or IGNORED), and the weight of each token in
    the loss.

    All three have the length of the record in tokens.
    """

    input_ids: list[int]
    labels: list[int]
    weights: list[float]


def pack(records: Sequence[EncodedRecord]) -> dict[str, Any]:
    """Records -> one packed batch.

    `input_ids` and `position_ids` are (1, T) with T = prefix + records * rest; `labels` and
    `weights` are (N,) over the answer tokens, `keep` (N,) holds the positions that predict them;
    `layout` is (prefix, records).
    """
    prefix = shared_prefix_length(records)
    length = max(len(record["input_ids"]) for record in records) - prefix
    ids = torch.zeros(prefix + len(records) * length, dtype=torch.long)  # (T,)
    ids[:prefix] = torch.tensor(records[0]["input_ids"][:prefix])
    starts = range(prefix, len(ids), length)
    for start, record in zip(starts, records, strict=True):
        rest = record["input_ids"][prefix:]
        ids[start : start + len(rest)] = torch.tensor(rest)
    positions = torch.cat(
        [torch.arange(prefix), torch.arange(prefix, prefix + length).repeat(len(records))]
    )
    return {
        "input_ids": ids[None],
        "position_ids": positions[None],
        "layout": (prefix, len(records)),
        **answers(records, [start - prefix for start in starts]),
    }


def answers(records: Sequence[EncodedRecord], starts: Sequence[int]) -> dict[str, torch.Tensor]:
    """`labels`, `weights` and `keep` of a batch, each (N,) over the answer tokens, see `pack`.

    Args:
        starts: Index in the batch of each record's first token, as if its prefix stood right before
            its rest.
    """
    learned = [
        (label, weight, start + at - 1)  # a token is predicted at the place before it
        for start, record in zip(starts, records, strict=True)
        for at, (label, weight) in enumerate(zip(record["labels"], record["weights"], strict=True))
        if label != IGNORED
    ]
    columns = (torch.tensor(column) for column in zip(*learned, strict=True))
    return dict(zip(("labels", "weights", "keep"), columns, strict=True))


def shared_prefix_length(records: Sequence[EncodedRecord]) -> int:
    """Number of tokens that all records open with, ending before the
    first position that predicts an answer.
    """
    if len(records) < 2:
        return 0
    count = prompt_length(records[0])
    for record in records[1:]:
        count = common_prefix(
            records[0]["input_ids"], record["input_ids"], min(count, prompt_length(record))
        )
    return count


def prompt_length(record: EncodedRecord) -> int:
    """Number of tokens before the first position that predicts an answer."""
    return max(next(k for k, label in enumerate(record["labels"]) if label != IGNORED) - 1, 0)


def common_prefix(first: list[int], second: list[int], most: int) -> int:
    """Number of tokens, up to `most`, that both open with."""
    most = min(most, len(first), len(second))
    if first[:most] == second[:most]:  # nearly always so, and compared in C
        return most
    return next(k for k in range(most) if first[k] != second[k])


def causal_bias(prefix: int, length: int, window: int | None) -> torch.Tensor:
    """Additive causal mask of a record's rest over the prefix and itself, (length, prefix +
    length).

    Args:
        window: Number of tokens that a position attends to, itself included; None for all before
            it.
    """
    allowed = torch.ones(length, prefix + length, dtype=torch.bool).tril(prefix)
    if window is not None:
        allowed = allowed.triu(prefix - window + 1)
    return torch.zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    layout: tuple[int, int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over a packed batch, as transformers' attention interface defines it for every
    architecture.

    query (1, heads, T, size), key and value (1, kv heads, T, size) -> (1, T, heads, size). Dropout
    is drawn once for the shared prefix.

    Raises:
        ValueError: The model attends in a way that is not computed here, such as with sinks, biases
            by distance, or to later tokens.
    """
    _require_causal(module, attention_mask, kwargs)
    if flex_packing.serves(query, dropout):
        whole = flex_packing.attend(
            query, key, value, layout, scaling=scaling, window=sliding_window, softcap=softcap
        )
        return whole, None
    prefix, rows = layout
    length = (query.shape[2] - prefix) // rows
    product: Any = torch.nn.functional.scaled_dot_product_attention
    if softcap is not None:
        product = functools.partial(_capped, cap=softcap)
    options: dict[str, Any] = {
        "scale": scaling,
        "dropout_p": dropout,
        "enable_gqa": query.shape[1] != key.shape[1],
    }

    def rests(x: torch.Tensor, *, with_prefix: bool) -> torch.Tensor:
        # (rows, heads, length, size)
        rest = x[0, :, prefix:].reshape(x.shape[1], rows, length, -1).transpose(0, 1)
        return (
            torch.cat([x[:, :, :prefix].expand(rows, -1, -1, -1), rest], dim=2)
            if with_prefix
            else rest
        )

    bias = causal_bias(prefix, length, sliding_window).to(query)
    out = product(  # (rows, heads, length, size)
        rests(query, with_prefix=False),
        rests(key, with_prefix=True),
        rests(value, with_prefix=True),
        attn_mask=bias,
        **options,
    )
    parts = [out.transpose(1, 2).flatten(0, 1)]  # (tokens, heads, size)
    if prefix:
        own = [x[:, :, :prefix] for x in (query, key, value)]
        bias = causal_bias(0, prefix, sliding_window).to(query)
        parts.insert(0, product(*own, attn_mask=bias, **options)[0].transpose(0, 1))
    return torch.cat(parts)[None], None


def _require_causal(module: torch.nn.Module, attention_mask: Any, others: dict[str, Any]) -> None:
    """Raises ValueError for attention that is more than softmax
    over the prefix and the record's past.
    """
    causal = others.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise ValueError("attention to what follows cannot be packed")
    unknown = [
        name
        for name, value in others.items()
        if value is not None and name not in NEUTRAL_ARGUMENTS
    ]
    if unknown or attention_mask is not None:
        raise ValueError(
            f"attention with {', '.join(unknown) or 'a mask of its own'} cannot be packed"
        )


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    attn_mask: torch.Tensor,
    scale: float,
    dropout_p: float,
    enable_gqa: bool,
    cap: float,
) -> torch.Tensor:
    """`scaled_dot_product_attention` with scores soft-capped by tanh,
    which torch's kernels do not offer.
    """
    if enable_gqa:
        key, value = (
            x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value)
        )
    # (rows, heads, length, keys)
    scores = torch.tanh(query @ key.transpose(2, 3) * (scale / cap)) * cap + attn_mask
    return torch.dropout(scores.softmax(dim=-1), dropout_p, train=True) @ value


AttentionInterface.register(ATTENTION_NAME, attention)
# `attention` masks by the layout
AttentionMaskInterface.register(ATTENTION_NAME, lambda *args, **kwargs: None)
