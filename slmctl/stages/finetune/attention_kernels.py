"""Autograd functions for attention over a packed batch, made of parts that differ between families
of models.

`SplitHeads` splits the output of the projections into heads of queries, keys and values, and
applies the norm and the rotary positions of each `HeadGroup`. `PackedAttention` attends with them.
Both compute in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function

from slmctl.stages.finetune import fused_kernels, packing
from slmctl.stages.finetune.cpu_kernels import norm_backward, reciprocal_std
from slmctl.stages.finetune.fused_kernels import HeadGroup, HeadNorm, Rotation

SAVED = 6  # tensors that `_flash` returns
OUTPUT = 3  # the place of attention's output among them, after queries, keys and values


class SplitHeads(Function):
    """x (T, heads of all groups * size), cos and sin (T, 1, turned / 2) -> states (T, heads, size)
    of each group.

    Only the first `turned` values of a head are rotated.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, groups: Sequence[HeadGroup], cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        normed = any(group.norm for group in groups)
        ctx.save_for_backward(cos, sin, x if normed else None)
        ctx.groups = groups
        ctx.dtype = x.dtype
        fused = fused_kernels.load()
        if fused:
            return fused.split(x, groups, cos, sin)
        parts = zip(_parts(x, groups), groups, strict=True)
        return tuple(_states(part, group, cos, sin) for part, group in parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors[:2]
        x = ctx.saved_tensors[2]
        groups = ctx.groups
        fused = fused_kernels.load()
        if fused:
            dx = fused.split_backward(grads, x, groups, cos, sin, ctx.dtype)
            return dx, None, None, None
        width = grads[0].shape[2] * sum(group.heads for group in groups)
        result = torch.empty(len(grads[0]), width, dtype=ctx.dtype)
        places = _parts(result, groups)
        raws = [None] * len(groups) if x is None else _parts(x, groups)
        for g, raw, place, group in zip(grads, raws, places, groups, strict=True):
            place.copy_(_states_backward(g, raw, group, cos, sin))
        return result, None, None, None


def _parts(x: torch.Tensor, groups: Sequence[HeadGroup]) -> tuple[torch.Tensor, ...]:
    """Views (T, heads, size) of x (T, heads of all groups * size)."""
    counts = [group.heads for group in groups]
    heads = x.view(len(x), sum(counts), -1)
    parts: tuple[torch.Tensor, ...] = torch.split(heads, counts, dim=1)
    return parts


def _states(
    part: torch.Tensor, group: HeadGroup, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    norm = group.norm
    states = part.float()
    if norm is not None and not norm.after_rotation:
        states = _normed(states, norm)
    if group.rotation:
        states = _rotate(states, cos, sin, group.rotation)
    if norm is not None and norm.after_rotation:
        states = _normed(states, norm)
    return states if states is not part else states.clone()


def _states_backward(
    g: torch.Tensor,
    raw: torch.Tensor | None,
    group: HeadGroup,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    norm = group.norm
    if norm is not None and raw is not None and norm.after_rotation:
        states = raw.float()
        if group.rotation:
            states = _rotate(states, cos, sin, group.rotation)
        g = _normed_backward(g, states, norm)
    if group.rotation:
        g = _rotate(g, cos, -sin, group.rotation)
    if norm is not None and raw is not None and not norm.after_rotation:
        g = _normed_backward(g, raw.float(), norm)
    return g


def _normed(x: torch.Tensor, norm: HeadNorm) -> torch.Tensor:
    over = x.reshape(-1, len(norm.weight))
    return (over * reciprocal_std(over, norm.eps)).mul_(norm.weight).view(x.shape)


def _normed_backward(g: torch.Tensor, x: torch.Tensor, norm: HeadNorm) -> torch.Tensor:
    over = x.reshape(-1, len(norm.weight))
    weighted = g.reshape(over.shape) * norm.weight
    return norm_backward(weighted, over, reciprocal_std(over, norm.eps)).view(g.shape)


def _rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotation: Rotation
) -> torch.Tensor:
    """Rotary position embedding of x (T, heads, size); cos and sin (T, 1, turned / 2)."""
    out = torch.empty_like(x)
    turned = 2 * cos.shape[-1]
    if rotation == "halves":
        first, second = x[..., :turned].chunk(2, dim=-1)
        low, high = out[..., :turned].chunk(2, dim=-1)
        torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=high).addcmul_(first, sin)
    else:
        places = _pairs(out[..., :turned])
        torch.mul(_pairs(x[..., :turned]), torch.complex(cos, sin), out=places)
    out[..., turned:] = x[..., turned:]
    return out


def _pairs(x: torch.Tensor) -> torch.Tensor:
    """View of x (…, 2 n) as complex numbers (…, n): values 2 k and 2 k + 1 are a number."""
    return torch.view_as_complex(torch.unflatten(x, -1, (-1, 2)))


class PackedAttention(Function):
    """Causal attention over a packed batch by torch's flash kernel.

    q (T, heads, size), k and v (T, kv heads, size) in float32 -> (T, heads * size) in `dtype`. T is
    prefix + rows * length, see `packing`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layout: tuple[int, int],
        scale: float,
        window: int | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        prefix, rows = layout
        length = (len(q) - prefix) // rows
        shape = (rows, length)
        queries = torch.unflatten(q[prefix:], 0, shape).transpose(1, 2)
        keys = _rests(k, prefix, shape)
        values = _rests(v, prefix, shape)
        rests = _flash(queries, keys, values, packing.causal_bias(prefix, length, window), scale)
        result = torch.empty(q.shape, dtype=dtype)
        torch.unflatten(result[prefix:], 0, shape).copy_(rests[OUTPUT].transpose(1, 2))
        own: list[torch.Tensor] = []
        if prefix:
            queries = q[None, :prefix].transpose(1, 2)
            keys = keys[:1, :, :prefix]
            values = values[:1, :, :prefix]
            own = _flash(queries, keys, values, packing.causal_bias(0, prefix, window), scale)
            result[:prefix] = own[OUTPUT][0].transpose(0, 1)
        ctx.save_for_backward(*rests, *own)
        ctx.prefix = prefix
        ctx.shape = shape
        ctx.scale = scale
        return result.flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        rests, own = ctx.saved_tensors[:SAVED], ctx.saved_tensors[SAVED:]
        prefix, shape = ctx.prefix, ctx.shape
        states = rests[:OUTPUT]  # queries, keys and values
        g = torch.unflatten(grads[0], 1, (states[0].shape[1], -1)).float()
        g_rests = torch.unflatten(g[prefix:], 0, shape).transpose(1, 2)
        parts = _flash_backward(g_rests, rests, ctx.scale)
        results = [torch.empty(len(g), x.shape[1], x.shape[3]) for x in states]
        for result, part in zip(results, parts, strict=True):
            places = torch.unflatten(result[prefix:], 0, shape)
            places.copy_(part[:, :, -shape[1] :].transpose(1, 2))
        if prefix:
            g_prefix = g[None, :prefix].transpose(1, 2)
            heads = _flash_backward(g_prefix, own, ctx.scale)
            for result, head in zip(results, heads, strict=True):
                result[:prefix] = head[0].transpose(0, 1)
            # all records attend to the prefix
            for result, part in zip(results[1:], parts[1:], strict=True):
                result[:prefix] += part[:, :, :prefix].sum(dim=0).transpose(0, 1)
        return *results, *[None] * 4


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float
) -> list[torch.Tensor]:
    """Attention of states (rows, heads, tokens, size) -> all that its backward pass takes: q, k, v,
    the output, the log-sum-exps, and the bias.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return [q, k, v, *flash(q, k, v, attn_mask=bias, scale=scale), bias]


def _flash_backward(
    g: torch.Tensor, saved: Sequence[torch.Tensor], scale: float
) -> Sequence[torch.Tensor]:
    """Gradients of q, k and v from g, the gradient of the output of `_flash`, and its result."""
    *forward, bias = saved
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    parts: Sequence[torch.Tensor] = flash(g, *forward, 0.0, False, attn_mask=bias, scale=scale)
    return parts


def _rests(x: torch.Tensor, prefix: int, shape: tuple[int, int]) -> torch.Tensor:
    """Keys or values x (T, heads, size) -> (rows, heads, prefix + length,
    size): the prefix before each record.
    """
    rests = torch.unflatten(x[prefix:], 0, shape)
    if not prefix:
        return rests.transpose(1, 2)
    rows, length = shape
    whole = torch.empty(rows, prefix + length, *x.shape[1:])
    whole[:, prefix:] = rests
    whole[:, :prefix] = x[:prefix]
    return whole.transpose(1, 2)
