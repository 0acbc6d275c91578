"""Short causal convolution over tokens (LFM2) that knows the packed layout.

transformers' own runs over a batch from its first token to its last, so a record would see the end
of the one before it. Here each record sees the end of the shared prefix, as it does alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd import Function

Product = Callable[[torch.Tensor], torch.Tensor]


class _Parts(NamedTuple):
    """The parts of a tensor (T, 3 n) that holds them side by side, each (T, n)."""

    b: torch.Tensor
    c: torch.Tensor
    x: torch.Tensor

    @classmethod
    def of(cls, bcx: torch.Tensor) -> _Parts:
        return cls(*bcx.chunk(3, dim=1))

    def float(self) -> _Parts:
        return _Parts(*(part.float() for part in self))


class ShortConvolution(Function):
    """c * convolution(b * x) of b, c and x side by side (T, 3 n), with
    a frozen weight (taps, n) -> (T, n).
    """

    @staticmethod
    def forward(
        ctx: Any,
        bcx: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        layout: tuple[int, int],
    ) -> torch.Tensor:
        parts = _Parts.of(bcx).float()
        sequences = _rows(parts.b * parts.x, len(weight) - 1, layout)
        mixed = torch.cat([_convolve(rows, weight).flatten(0, 1) for rows in sequences])
        if bias is not None:
            mixed += bias
        ctx.save_for_backward(bcx, weight, mixed)
        ctx.layout = layout
        return (parts.c * mixed).to(bcx.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        bcx, weight = ctx.saved_tensors[:2]
        mixed = ctx.saved_tensors[2]
        parts = _Parts.of(bcx).float()
        g = grads[0].float()
        result = torch.empty_like(bcx)
        places = _Parts.of(result)
        places.c.copy_(g * mixed)
        inner = _rows_backward(g * parts.c, weight, ctx.layout)
        places.b.copy_(inner * parts.x)
        places.x.copy_(inner * parts.b)
        return result, None, None, None


def _rows(x: torch.Tensor, before: int, layout: tuple[int, int]) -> list[torch.Tensor]:
    """The prefix (1, before + prefix, n) and the rests (rows, before +
    length, n), each with `before` earlier ones.
    """
    prefix, rows = layout
    head = torch.cat([x.new_zeros(before, x.shape[1]), x[:prefix]])
    rests = torch.unflatten(x[prefix:], 0, (rows, -1))
    earlier = head[len(head) - before :].expand(rows, -1, -1)
    return [head[None], torch.cat([earlier, rests], dim=1)]


def _convolve(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows (rows, taps - 1 + length, n) -> (rows, length, n)."""
    length = rows.shape[1] - len(weight) + 1
    out = rows[:, :length] * weight[0]
    for k in range(1, len(weight)):
        out.addcmul_(rows[:, k : k + length], weight[k])
    return out


def _rows_backward(g: torch.Tensor, weight: torch.Tensor, layout: tuple[int, int]) -> torch.Tensor:
    """Gradient (T, n) of the convolution's input, from g (T, n), the gradient of its output."""
    prefix, rows = layout
    head = _convolve_backward(g[None, :prefix], weight)[0]
    rests = _convolve_backward(torch.unflatten(g[prefix:], 0, (rows, -1)), weight)
    before = len(weight) - 1
    head[len(head) - before :] += rests[:, :before].sum(dim=0)
    return torch.cat([head[before:], rests[:, before:].flatten(0, 1)])


def _convolve_backward(g: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Gradient of the rows of `_convolve` from g (rows, length, n), the gradient of its result."""
    length = g.shape[1]
    back = g.new_zeros(len(g), len(weight) - 1 + length, g.shape[2])
    for k in range(len(weight)):
        back[:, k : k + length].addcmul_(g, weight[k])
    return back


class PackedShortConvolution(torch.nn.Module):
    """Forward of a short convolution that takes a packed batch; `teach_layout` mixes it into a
    model's class.

    `products` replace the module's own linear layers into and out of the convolution.
    """

    takes_layout = True
    products: tuple[Product, Product] | None = None

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, layout: Any = None, **kwargs: Any
    ) -> Any:
        if layout is None:
            return super().forward(hidden_states, *args, **kwargs)
        own: Any = self
        into, out = self.products or (own.in_proj, own.out_proj)
        weight = own.conv.weight.detach()[:, 0].T.float()  # (n, 1, taps) -> (taps, n)
        apply: Any = ShortConvolution.apply
        mixed = apply(into(hidden_states[0]), weight, own.conv.bias, layout)
        return out(mixed)[None]


def teach_layout(model: Any) -> None:
    """Make the short convolutions of a model take packed batches;
    other batches are computed as before.
    """
    for module in model.modules():
        kind: type = type(module)
        if kind.__name__ in ("Lfm2ShortConv", "Lfm2MoeShortConv"):
            module.__class__ = _packed(kind)


@functools.cache
def _packed(kind: type) -> type:
    """The subclass of a class of transformers that takes a layout."""
    return type(f"Packed{kind.__name__}", (PackedShortConvolution, kind), {})
