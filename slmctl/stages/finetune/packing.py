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
    longest = max(len(record["input_ids"]) for record in records)
    length = longest - prefix
    ids = torch.zeros(prefix + len(records) * length, dtype=torch.long)  # (T,)
    ids[:prefix] = torch.tensor(records[0]["input_ids"][:prefix])
    starts = range(prefix, len(ids), length)
    for start, record in zip(starts, records, strict=True):
        rest = record["input_ids"][prefix:]
        ids[start : start + len(rest)] = torch.tensor(rest)
    rests = torch.arange(prefix, longest).repeat(len(records))
    positions = torch.cat([torch.arange(prefix), rests])
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
    labels: list[int] = []
    weights: list[float] = []
    keep: list[int] = []
    for start, record in zip(starts, records, strict=True):
        learned = [at for at, label in enumerate(record["labels"]) if label != IGNORED]
        labels += [record["labels"][at] for at in learned]
        weights += [record["weights"][at] for at in learned]
        keep += [start + at - 1 for at in learned]  # a token is predicted at the place before it
    columns = {"labels": labels, "weights": weights, "keep": keep}
    return {name: torch.tensor(column) for name, column in columns.items()}


def shared_prefix_length(records: Sequence[EncodedRecord]) -> int:
    """Number of tokens that all records open with, ending before the
    first position that predicts an answer.
    """
    if len(records) < 2:
        return 0
    first = records[0]["input_ids"]
    count = prompt_length(records[0])
    for record in records[1:]:
        most = min(count, prompt_length(record))
        count = common_prefix(first, record["input_ids"], most)
    return count


def prompt_length(record: EncodedRecord) -> int:
    """Number of tokens before the first position that predicts an answer."""
    learned = (at for at, label in enumerate(record["labels"]) if label != IGNORED)
    return max(next(learned) - 1, 0)


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
    product: Any = torch.nn.functional.scaled_dot_product_attention
    if softcap is not None:
        product = functools.partial(_capped, cap=softcap)
    product = functools.partial(
        product, scale=scaling, dropout_p=dropout, enable_gqa=query.shape[1] != key.shape[1]
    )
    prefix = layout[0]
    rests = _rests(query, layout)
    bias = causal_bias(prefix, rests.shape[2], sliding_window).to(query)
    keys = _after_prefix(key, layout)
    values = _after_prefix(value, layout)
    out = product(rests, keys, values, attn_mask=bias)  # (rows, heads, length, size)
    parts = [out.transpose(1, 2).flatten(0, 1)]  # (tokens, heads, size)
    if prefix:
        own = [x[:, :, :prefix] for x in (query, key, value)]
        bias = causal_bias(0, prefix, sliding_window).to(query)
        out = product(*own, attn_mask=bias)
        parts.insert(0, out[0].transpose(0, 1))
    return torch.cat(parts)[None], None


def _rests(x: torch.Tensor, layout: tuple[int, int]) -> torch.Tensor:
    """The states of each record's rest, x (1, heads, T, size) -> (rows, heads, length, size)."""
    prefix, rows = layout
    return torch.unflatten(x[0, :, prefix:], 1, (rows, -1)).transpose(0, 1)


def _after_prefix(x: torch.Tensor, layout: tuple[int, int]) -> torch.Tensor:
    """The states of each record, (rows, heads, prefix + length, size)."""
    prefix, rows = layout
    shared = x[:, :, :prefix].expand(rows, -1, -1, -1)
    return torch.cat([shared, _rests(x, layout)], dim=2)


def _require_causal(module: torch.nn.Module, attention_mask: Any, others: dict[str, Any]) -> None:
    """Raises ValueError for attention that is more than softmax
    over the prefix and the record's past.
    """
    causal = others.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    if not causal:
        raise ValueError("attention to what follows cannot be packed")
    present = (name for name, value in others.items() if value is not None)
    unknown = [name for name in present if name not in NEUTRAL_ARGUMENTS]
    if unknown or attention_mask is not None:
        names = ", ".join(unknown) or "a mask of its own"
        raise ValueError(f"attention with {names} cannot be packed")


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
        repeats = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(repeats, dim=1)
        value = value.repeat_interleave(repeats, dim=1)
    products = query @ key.transpose(2, 3)  # (rows, heads, length, keys)
    scores = torch.tanh(products * (scale / cap)) * cap + attn_mask
    return torch.dropout(scores.softmax(dim=-1), dropout_p, train=True) @ value


AttentionInterface.register(ATTENTION_NAME, attention)
# `attention` masks by the layout
AttentionMaskInterface.register(ATTENTION_NAME, lambda *args, **kwargs: None)
