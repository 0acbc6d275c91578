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
        ctx.groups, ctx.dtype = groups, x.dtype
        fused = fused_kernels.load()
        if fused:
            return fused.split(x, groups, cos, sin)
        return tuple(
            _states(part, group, cos, sin)
            for part, group in zip(_parts(x, groups), groups, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        (cos, sin, x), fused = ctx.saved_tensors, fused_kernels.load()
        if fused:
            return fused.split_backward(grads, x, ctx.groups, cos, sin, ctx.dtype), None, None, None
        size = grads[0].shape[2]
        result = torch.empty(
            len(grads[0]), size * sum(group.heads for group in ctx.groups), dtype=ctx.dtype
        )
        raws = [None] * len(ctx.groups) if x is None else _parts(x, ctx.groups)
        for g, raw, place, group in zip(
            grads, raws, _parts(result, ctx.groups), ctx.groups, strict=True
        ):
            place.copy_(_states_backward(g, raw, group, cos, sin))
        return result, None, None, None


def _parts(x: torch.Tensor, groups: Sequence[HeadGroup]) -> tuple[torch.Tensor, ...]:
    """Views (T, heads, size) of x (T, heads of all groups * size)."""
    counts = [group.heads for group in groups]
    parts: tuple[torch.Tensor, ...] = torch.split(x.view(len(x), sum(counts), -1), counts, dim=1)
    return parts


def _states(
    part: torch.Tensor, group: HeadGroup, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    norm, states = group.norm, part.float()
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
        turned = raw.float()
        g = _normed_backward(
            g, _rotate(turned, cos, sin, group.rotation) if group.rotation else turned, norm
        )
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
    back = norm_backward(g.reshape(over.shape) * norm.weight, over, reciprocal_std(over, norm.eps))
    return back.view(g.shape)


def _rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotation: Rotation
) -> torch.Tensor:
    """Rotary position embedding of x (T, heads, size); cos and sin (T, 1, turned / 2)."""
    half = cos.shape[-1]
    out = torch.empty_like(x)
    if rotation == "halves":
        first, second = x[..., :half], x[..., half : 2 * half]
        torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
    else:
        pairs, turned = (
            torch.view_as_complex(torch.unflatten(t[..., : 2 * half], -1, (half, 2)))
            for t in (x, out)
        )
        torch.mul(pairs, torch.complex(cos, sin), out=turned)
    out[..., 2 * half :] = x[..., 2 * half :]
    return out


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
        tokens, heads, size = q.shape
        shape = (rows, (tokens - prefix) // rows)
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        rests = [
            torch.unflatten(q[prefix:], 0, shape).transpose(1, 2),
            _rests(k, prefix, shape),
            _rests(v, prefix, shape),
        ]
        bias = packing.causal_bias(prefix, shape[1], window)
        out, lse = flash(*rests, attn_mask=bias, scale=scale)
        result = torch.empty(tokens, heads, size, dtype=dtype)
        torch.unflatten(result[prefix:], 0, shape).copy_(out.transpose(1, 2))
        own: list[Any] = []
        if prefix:
            own = [q[None, :prefix].transpose(1, 2), *(x[:1, :, :prefix] for x in rests[1:])]
            own_bias = packing.causal_bias(0, prefix, window)
            own = [*own, *flash(*own, attn_mask=own_bias, scale=scale), own_bias]
            result[:prefix] = own[3][0].transpose(0, 1)
        ctx.save_for_backward(*rests, out, lse, bias, *own)
        ctx.shape = (prefix, shape, scale)
        return result.view(tokens, heads * size)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        q, k, v, out, lse, bias, *own = ctx.saved_tensors
        prefix, shape, scale = ctx.shape
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        g = grads[0].view(len(grads[0]), q.shape[1], q.shape[3]).float()
        gs = torch.unflatten(g[prefix:], 0, shape).transpose(1, 2)
        parts = flash(gs, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=scale)
        results = [torch.empty(len(g), x.shape[1], x.shape[3]) for x in (q, k, v)]
        for result, part in zip(results, parts, strict=True):
            torch.unflatten(result[prefix:], 0, shape).copy_(
                part[:, :, -shape[1] :].transpose(1, 2)
            )
        if prefix:
            *own, own_bias = own
            heads = flash(
                g[None, :prefix].transpose(1, 2), *own, 0.0, False, attn_mask=own_bias, scale=scale
            )
            for result, head in zip(results, heads, strict=True):
                result[:prefix] = head[0].transpose(0, 1)
            # all records attend to the prefix
            for result, part in zip(results[1:], parts[1:], strict=True):
                result[:prefix] += part[:, :, :prefix].sum(dim=0).transpose(0, 1)
        return *results, *[None] * 4


def _rests(x: torch.Tensor, prefix: int, shape: tuple[int, int]) -> torch.Tensor:
    """Keys or values x (T, heads, size) -> (rows, heads, prefix + length,
    size): the prefix before each record.
    """
    rests = torch.unflatten(x[prefix:], 0, shape)
    if prefix:
        whole = torch.empty(shape[0], prefix + shape[1], *x.shape[1:])
        whole[:, prefix:] = rests
        whole[:, :prefix] = x[:prefix]
        rests = whole
    return rests.transpose(1, 2)
