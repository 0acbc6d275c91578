"""Autograd functions for training LoRA on a frozen base on a CPU.

transformers and PEFT compute a layer in some hundred small operations. A few autograd functions
with their own backward replace them, here and in `attention_kernels` and `short_convolution`: a
frozen weight gets no gradient and is multiplied in `finetune.matmul_dtype`, layers that read the
same input are one matrix product, and LoRA's low-rank products are part of it. The residual stream,
norms and attention stay in float32.

No function is specific to an architecture; `layer_replacement` decides which layers use them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.autograd import Function
from torch.nn import functional

from slmctl.stages.finetune import fused_kernels
from slmctl.stages.finetune.four_bit import FourBitWeight

ROW_MULTIPLE = 64  # rows of a matrix product are rounded up to a multiple
Elementwise = Callable[[torch.Tensor], torch.Tensor]
WIDE = 2  # times as many columns in as out make a product wide, see `_updated_product`


class FrozenLinear(torch.nn.Linear):
    """Linear layer with a frozen weight: float32 in and out, multiplied in the weight's dtype."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _FrozenProduct.apply(input, self)
        return product if self.bias is None else product + self.bias

    def write_weight(self, room: torch.Tensor) -> None:
        """Copy the weight into `room` (out, in)."""
        room.copy_(self.weight)


class FourBitLinear(FrozenLinear):
    """Linear layer whose frozen weight is held in 4 bits; the output has the dtype of the input.

    Attributes:
        packed: The weight (out, in).
        products: Dtype of its matrix products.
    """

    packed: FourBitWeight
    products: torch.dtype

    @classmethod
    def replace(cls, layer: torch.nn.Linear, products: torch.dtype) -> None:
        """Turn a linear layer into one of this class, in place, and free its unpacked weight."""
        layer.packed, layer.products = FourBitWeight(layer.weight.detach()), products  # type: ignore[assignment]
        del layer.weight
        layer.__class__ = cls

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The weight (out, in) in the dtype of its products, dequantised at every access."""
        return self.packed.whole(self.products)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).to(input.dtype)

    def write_weight(self, room: torch.Tensor) -> None:
        self.packed.write(room)


class _FrozenProduct(Function):
    """x (…, in), a frozen layer -> (…, out) float32; a weight in 4 bits is
    dequantised again for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenLinear) -> torch.Tensor:
        ctx.layer, ctx.kind = layer, x.dtype
        weight = layer.weight
        return functional.linear(x.to(weight.dtype), weight).float()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        weight = ctx.layer.weight
        return (grads[0].to(weight.dtype) @ weight).to(ctx.kind), None


class RmsNorm(Function):
    """RMS norm of x (…, n) with a frozen weight (n,), in float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x, fused, ctx.eps = x.float(), fused_kernels.load(), eps
        if fused:
            ctx.save_for_backward(x, weight, None)
            return fused.norm(x, weight, eps)
        rstd = reciprocal_std(x, eps)
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x, weight, rstd), fused = ctx.saved_tensors, fused_kernels.load()
        if fused:
            return fused.norm_backward(grads[0], x, weight, ctx.eps), None, None
        return norm_backward(grads[0] * weight, x, rstd), None, None


def reciprocal_std(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Reciprocal of the root mean square, x (…, n) -> (…, 1)."""
    return (
        torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        .square_()
        .div_(x.shape[-1])
        .add_(eps)
        .rsqrt_()
    )


def norm_backward(g: torch.Tensor, x: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """Gradient of x (…, n) from g, the gradient of x * rstd; g is overwritten."""
    inner = (g * x).sum(dim=-1, keepdim=True).mul_(rstd.pow(3)).div_(-x.shape[-1])
    return g.mul_(rstd).addcmul_(x, inner)


class StackedLinear:
    """Linear layers that read the same input, with their LoRA updates, as one matrix product.

    All of them lie in one matrix, (out + rank, in + rank):

        W | scale B
        A | 0

    so [x, A x] times its upper rows is the layers' output with the updates, and [g, B' g] times its
    left columns is the gradient of x. For layers in 4 bits, it is assembled for each product, in a
    buffer that all stacks share.
    """

    def __init__(self, members: Sequence[torch.nn.Module]) -> None:
        linear: list[Any] = [getattr(member, "base_layer", member) for member in members]
        adapted: list[Any] = [member for member in members if isinstance(member, LoraLinear)]
        self.dropout = adapted[0].lora_dropout["default"] if adapted else torch.nn.Identity()
        self.wide = linear[0].in_features
        self.outs = [layer.out_features for layer in linear]
        self.high = sum(self.outs)
        # A, B, scale, rows of W, place among the ranks
        self.updates: list[tuple[Any, Any, float, slice, slice]] = []
        ranks = sum(member.r["default"] for member in adapted)
        self.shape = (self.high + ranks, self.wide + ranks)
        held = not any(isinstance(layer, FourBitLinear) for layer in linear)
        self.dtype: torch.dtype = linear[0].weight.dtype if held else linear[0].products
        self._held = torch.zeros(self.shape, dtype=self.dtype) if held else None
        # layers in 4 bits with their rows; else empty
        self._layers: list[tuple[FrozenLinear, slice]] = []
        row = rank = 0
        for member, layer in zip(members, linear, strict=True):
            rows = slice(row, row + layer.out_features)
            if self._held is None:
                self._layers.append((layer, rows))
            else:
                self._held[rows, : self.wide] = layer.weight.detach()
                # held once
                layer.weight = torch.nn.Parameter(
                    self._held[rows, : self.wide], requires_grad=False
                )
            if member in adapted:
                wrapped: Any = member
                a, b = wrapped.lora_A["default"].weight, wrapped.lora_B["default"].weight
                self.updates.append(
                    (a, b, wrapped.scaling["default"], rows, slice(rank, rank + len(a)))
                )
                rank += len(a)
            row = rows.stop
        biases = [layer.bias for layer in linear]
        self.bias = None
        if any(bias is not None for bias in biases):
            zeros = (torch.zeros(count) for count in self.outs)
            self.bias = torch.cat(
                [z if b is None else b.detach().float() for b, z in zip(biases, zeros, strict=True)]
            )
            self.bias = self.bias.to(self.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, in) -> (T, out of all layers side by side)."""
        if self._held is not None:
            self._write_updates(self._held)
        product: torch.Tensor = _StackedProduct.apply(
            x, self, *(p for a, b, *_ in self.updates for p in (a, b))
        )
        return product

    @torch.no_grad()
    def matrix(self) -> torch.Tensor:
        """The matrix (out + rank, in + rank); for layers in 4 bits,
        valid until the next call on any stack.
        """
        if self._held is not None:
            return self._held
        matrix = _shared_room(self.shape, self.dtype)
        matrix[: self.high, self.wide :] = 0
        for layer, rows in self._layers:
            layer.write_weight(matrix[rows, : self.wide])
        self._write_updates(matrix)
        return matrix

    @torch.no_grad()
    def _write_updates(self, matrix: torch.Tensor) -> None:
        """Copy A and scale B into the matrix: the optimizer changes them at every step."""
        for a, b, scale, rows, place in self.updates:
            matrix[self.high + place.start : self.high + place.stop, : self.wide] = a
            matrix[rows, self.wide + place.start : self.wide + place.stop] = b * scale


_room: dict[torch.dtype, torch.Tensor] = {}


def _shared_room(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor in a buffer that is kept for each dtype and
    grows to the largest shape requested.
    """
    count = shape[0] * shape[1]
    if dtype not in _room or _room[dtype].numel() < count:
        _room[dtype] = torch.empty(count, dtype=dtype)
    return _room[dtype][:count].view(shape)


class _StackedProduct(Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, stack: StackedLinear, *updates: torch.Tensor
    ) -> torch.Tensor:
        count, share = len(x), getattr(stack.dropout, "p", 0.0) if stack.dropout.training else 0.0
        drop: Elementwise | None = None
        if share:  # the mask follows from a seed, so that it need not be kept for the backward pass
            drop = functools.partial(
                fused_kernels.dropout, share=share, seed=int(torch.randint(2**32, ()))
            )
        out, x, low = _updated_product(x, stack.matrix().T, stack.high, drop)
        if stack.bias is not None:
            out += stack.bias
        if updates:
            ctx.save_for_backward(x, low)
        ctx.stack, ctx.drop = stack, drop
        return out[:count]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        stack, drop = ctx.stack, ctx.drop
        matrix, high, wide = stack.matrix(), stack.high, stack.wide
        dx: torch.Tensor | None = None
        if ctx.needs_input_grad[0] and drop is None:
            dx, g, low_g = _updated_product(grads[0], matrix, wide)
        else:
            g = _padded(grads[0], matrix.dtype)
            low_g = g @ matrix[:high, wide:]
        if ctx.needs_input_grad[0] and drop is not None:
            dx = g @ matrix[:high, :wide] + drop(low_g @ matrix[high:, :wide])
        result: list[Any] = []
        if stack.updates:
            x, low = ctx.saved_tensors
            downs = low_g.T @ (x if drop is None else drop(x))  # (rank, in)
            ups = g.T @ low  # (out, rank): of each layer, its own rows and columns count
            for _, _, scale, rows, place in stack.updates:
                result += [downs[place].float(), ups[rows, place].float().mul_(scale)]
        return None if dx is None else dx[: len(grads[0])], None, *result


def _updated_product(
    x: torch.Tensor, matrix: torch.Tensor, width: int, drop: Elementwise | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (T, k) times a matrix with its low-rank update, in one product and a thin one.

    Args:
        matrix: (k + rank, width + rank), the update's factors in its last columns and in its last
            rows.
        drop: Dropout before the update.

    Returns:
        The product (T rounded up, width), x in the matrix's dtype, and x times the update's first
        factor (…, rank).
    """
    k, count = x.shape[1], len(x)
    # a long sum: libraries compute it fastest when k is a round number
    if k > WIDE * width and drop is None:
        x = _padded(x, matrix.dtype)
        both = x @ matrix[:k]  # (T, width + rank): x W | x A
        low = both[:, width:]
        return torch.addmm(both[:, :width], low, matrix[k:, :width]), x, low
    both = padded_rows(count, len(matrix), matrix.dtype)  # (T, k + rank): x | x A
    both[:count, :k] = x
    x, low = both[:, :k], both[:, k:]
    low.copy_((x if drop is None else drop(x)) @ matrix[:k, width:])
    return both @ matrix[:, :width], x, low


def _padded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x (T, n) in `dtype`, followed by rows of zeros, see `padded_rows`."""
    room = padded_rows(len(x), x.shape[1], dtype)
    room[: len(x)] = x
    return room


def padded_rows(
    count: int, width: int, dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    """Uninitialised (count rounded up, width), with zeros in the rows after `count`.

    The library behind torch's products compiles and keeps a kernel for every shape it meets;
    rounding the rows up keeps the shapes few, so that memory does not grow with the steps.
    """
    rows = -(-count // ROW_MULTIPLE) * ROW_MULTIPLE
    room = torch.empty(rows, width, dtype=dtype, device=device)
    room[count:] = 0
    return room


class GatedActivation(Function):
    """activation(gate) * up, from [gate, up] side by side: (T, 2 n) -> (T, n)."""

    @staticmethod
    def forward(ctx: Any, both: torch.Tensor, kind: str) -> torch.Tensor:
        fused, ctx.kind = fused_kernels.load(), kind
        if fused:
            ctx.save_for_backward(both, None)
            return fused.gated(both, kind)
        gate, up = both.chunk(2, dim=1)
        active = (
            functional.silu(gate) if kind == "silu" else functional.gelu(gate, approximate="tanh")
        )
        ctx.save_for_backward(both, active)
        return active * up

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (both, active), fused = ctx.saved_tensors, fused_kernels.load()
        if fused:
            return fused.gated_backward(both, grads[0], ctx.kind), None
        gate, up = both.chunk(2, dim=1)
        result = torch.empty_like(both)
        dgate, dup = result.chunk(2, dim=1)
        g = grads[0]
        torch.mul(g, active, out=dup)
        if ctx.kind == "silu":
            torch.ops.aten.silu_backward.grad_input(g * up, gate, grad_input=dgate)
        else:
            torch.ops.aten.gelu_backward.grad_input(
                g * up, gate, approximate="tanh", grad_input=dgate
            )
        return result, None
