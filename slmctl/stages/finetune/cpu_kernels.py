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
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
        layer.packed = FourBitWeight(layer.weight.detach())  # type: ignore[assignment]
        layer.products = products  # type: ignore[assignment]
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
        ctx.layer = layer
        ctx.kind = x.dtype
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
        x = x.float()
        ctx.eps = eps
        fused = fused_kernels.load()
        if fused:
            ctx.save_for_backward(x, weight, None)
            return fused.norm(x, weight, eps)
        rstd = reciprocal_std(x, eps)
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, weight = ctx.saved_tensors[:2]
        fused = fused_kernels.load()
        if fused:
            return fused.norm_backward(grads[0], x, weight, ctx.eps), None, None
        return norm_backward(grads[0] * weight, x, ctx.saved_tensors[2]), None, None


def reciprocal_std(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Reciprocal of the root mean square, x (…, n) -> (…, 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def norm_backward(g: torch.Tensor, x: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """Gradient of x (…, n) from g, the gradient of x * rstd; g is overwritten."""
    inner = (g * x).sum(dim=-1, keepdim=True).mul_(rstd.pow(3)).div_(-x.shape[-1])
    return g.mul_(rstd).addcmul_(x, inner)


@dataclass(frozen=True, eq=False)
class _Update:
    """The LoRA update of a layer in a stack.

    Attributes:
        a: (rank, in).
        b: (out, rank).
        rows: Place of the layer's outputs among those of the stack.
        ranks: Place of the update among the stack's ranks.
    """

    a: torch.nn.Parameter
    b: torch.nn.Parameter
    scale: float
    rows: slice
    ranks: slice


def _updates(members: Sequence[torch.nn.Module], places: Sequence[slice]) -> list[_Update]:
    """The updates of those layers that have one; `places` are the rows of each layer."""
    updates = []
    rank = 0
    for member, rows in zip(members, places, strict=True):
        if isinstance(member, LoraLinear):
            a: Any = member.lora_A["default"].weight
            b: Any = member.lora_B["default"].weight
            ranks = slice(rank, rank + len(a))
            updates.append(_Update(a, b, member.scaling["default"], rows, ranks))
            rank = ranks.stop
    return updates


def _consecutive(counts: Sequence[int]) -> list[slice]:
    """Places of parts with these lengths."""
    ends = itertools.accumulate(counts)
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _joined_bias(layers: Sequence[torch.nn.Linear]) -> torch.Tensor | None:
    """The biases (out of all layers) in float32, zeros for a layer without; None if all are."""
    if all(layer.bias is None for layer in layers):
        return None
    parts = []
    for layer in layers:
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
        parts.append(bias.float())
    return torch.cat(parts)


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
        self.wide: int = linear[0].in_features
        self.outs: list[int] = [layer.out_features for layer in linear]
        self.high = sum(self.outs)
        places = _consecutive(self.outs)
        self._layers = list(zip(linear, places, strict=True))
        self.updates = _updates(members, places)
        ranks = sum(len(update.a) for update in self.updates)
        self.shape = (self.high + ranks, self.wide + ranks)
        adapted: list[Any] = [member for member in members if isinstance(member, LoraLinear)]
        self.dropout = adapted[0].lora_dropout["default"] if adapted else torch.nn.Identity()
        self._held: torch.Tensor | None = None
        if any(isinstance(layer, FourBitLinear) for layer in linear):
            self.dtype: torch.dtype = linear[0].products
        else:
            self.dtype = linear[0].weight.dtype
            self._held = self._hold()
        bias = _joined_bias(linear)
        self.bias = None if bias is None else bias.to(self.dtype)

    def _hold(self) -> torch.Tensor:
        """The matrix with the weights of the layers, which become views of it: held once."""
        matrix = torch.zeros(self.shape, dtype=self.dtype)
        for layer, rows in self._layers:
            weight = matrix[rows, : self.wide]
            weight.copy_(layer.weight.detach())
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        return matrix

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, in) -> (T, out of all layers side by side)."""
        if self._held is not None:
            self._write_updates(self._held)
        trained = [factor for update in self.updates for factor in (update.a, update.b)]
        product: torch.Tensor = _StackedProduct.apply(x, self, *trained)
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
        lower = matrix[self.high :, : self.wide]
        right = matrix[:, self.wide :]
        for update in self.updates:
            lower[update.ranks] = update.a
            right[update.rows, update.ranks] = update.b * update.scale


_room: dict[torch.dtype, torch.Tensor] = {}


def _shared_room(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor in a buffer that is kept for each dtype and
    grows to the largest shape requested.
    """
    count = shape[0] * shape[1]
    if dtype not in _room or _room[dtype].numel() < count:
        _room[dtype] = torch.empty(count, dtype=dtype)
    return _room[dtype][:count].view(shape)


class _Product(NamedTuple):
    """The product of x with a matrix and its low-rank update.

    Attributes:
        out: (T rounded up, width); None where it is not needed.
        x: x in the matrix's dtype, T rounded up.
        low: x times the update's first factor (T rounded up, rank).
    """

    out: Any
    x: torch.Tensor
    low: torch.Tensor


class _StackedProduct(Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, stack: StackedLinear, *updates: torch.Tensor
    ) -> torch.Tensor:
        ctx.stack = stack
        ctx.drop = _drawn_dropout(stack.dropout)
        product = _updated_product(x, stack.matrix().T, stack.high, ctx.drop)
        out: torch.Tensor = product.out
        if stack.bias is not None:
            out += stack.bias
        if updates:
            ctx.save_for_backward(product.x, product.low)
        return out[: len(x)]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        stack, drop = ctx.stack, ctx.drop
        back = _input_gradient(grads[0], stack, drop, needed=ctx.needs_input_grad[0])
        dx = None if back.out is None else back.out[: len(grads[0])]
        if not stack.updates:
            return dx, None
        x, low = ctx.saved_tensors
        if drop is not None:
            x = drop(x)
        downs = back.low.T @ x  # (rank, in)
        ups = back.x.T @ low  # (out, rank): of each layer, its own rows and columns count
        factors: list[torch.Tensor] = []
        for update in stack.updates:
            up = ups[update.rows, update.ranks].float()
            factors += [downs[update.ranks].float(), up.mul_(update.scale)]
        return dx, None, *factors


def _drawn_dropout(dropout: torch.nn.Module) -> Elementwise | None:
    """A dropout with a mask that follows from a seed, so that it need not be kept for the backward
    pass; None if nothing is dropped.
    """
    share = getattr(dropout, "p", 0.0)
    if not dropout.training or not share:
        return None
    seed = int(torch.randint(2**32, ()))
    return functools.partial(fused_kernels.dropout, share=share, seed=seed)


def _input_gradient(
    g: torch.Tensor, stack: StackedLinear, drop: Elementwise | None, *, needed: bool
) -> _Product:
    """The gradient of a stack's input from g (T, out), the gradient of its output, as a product."""
    matrix, wide = stack.matrix(), stack.wide
    if needed and drop is None:
        return _updated_product(g, matrix, wide)
    upper, a = matrix[: stack.high], matrix[stack.high :, :wide]
    g = padded(g, matrix.dtype)
    low = g @ upper[:, wide:]
    dx = None
    if needed and drop is not None:
        dx = g @ upper[:, :wide] + drop(low @ a)
    return _Product(dx, g, low)


def _updated_product(
    x: torch.Tensor, matrix: torch.Tensor, width: int, drop: Elementwise | None = None
) -> _Product:
    """x (T, k) times a matrix with its low-rank update, in one product and a thin one.

    Args:
        matrix: (k + rank, width + rank), the update's factors in its last columns and in its last
            rows.
        drop: Dropout before the update.
    """
    k, count = x.shape[1], len(x)
    # a long sum: libraries compute it fastest when k is a round number
    if k > WIDE * width and drop is None:
        x = padded(x, matrix.dtype)
        both = x @ matrix[:k]  # (T, width + rank): x W | x A
        low = both[:, width:]
        return _Product(torch.addmm(both[:, :width], low, matrix[k:, :width]), x, low)
    both = padded_rows(count, len(matrix), matrix.dtype)  # (T, k + rank): x | x A
    both[:count, :k] = x
    x, low = both[:, :k], both[:, k:]
    dropped = x if drop is None else drop(x)
    low.copy_(dropped @ matrix[:k, width:])
    return _Product(both @ matrix[:, :width], x, low)


def padded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x (T, n) in `dtype`, followed by rows of zeros, see `padded_rows`."""
    room = padded_rows(len(x), x.shape[1], dtype, x.device)
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
        ctx.kind = kind
        fused = fused_kernels.load()
        if fused:
            ctx.save_for_backward(both, None)
            return fused.gated(both, kind)
        gate, up = both.chunk(2, dim=1)
        if kind == "silu":
            active = functional.silu(gate)
        else:
            active = functional.gelu(gate, approximate="tanh")
        ctx.save_for_backward(both, active)
        return active * up

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        both, active = ctx.saved_tensors
        g = grads[0]
        fused = fused_kernels.load()
        if fused:
            return fused.gated_backward(both, g, ctx.kind), None
        gate, up = both.chunk(2, dim=1)
        result = torch.empty_like(both)
        dgate, dup = result.chunk(2, dim=1)
        torch.mul(g, active, out=dup)
        dactive = g * up
        aten = torch.ops.aten
        if ctx.kind == "silu":
            aten.silu_backward.grad_input(dactive, gate, grad_input=dgate)
        else:
            aten.gelu_backward.grad_input(dactive, gate, approximate="tanh", grad_input=dgate)
        return result, None
