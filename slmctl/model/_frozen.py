"""Frozen linear layers whose products run in bfloat16, the activations around them in float32.

Where the processor multiplies bfloat16 natively (AVX512-BF16, AMX) a product costs about half of
float32's; everything element-wise stays in float32, where it is faster and exact.
"""

from __future__ import annotations

from typing import Any

import torch


class _Product(torch.autograd.Function):
    """x (…, in) float32, weight (out, in) bfloat16 -> (…, out) float32; the weight gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        return torch.nn.functional.linear(x.to(torch.bfloat16), weight).to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (grads[0].to(torch.bfloat16) @ ctx.weight).to(torch.float32), None


class FrozenLinear(torch.nn.Linear):
    """A linear layer that only passes gradients on."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _Product.apply(input, self.weight)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


def freeze_to_bfloat16(model: torch.nn.Module) -> None:
    """Turn every linear layer of a model into a frozen one; the output head too, tied or not."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = FrozenLinear
            # a new parameter: a head tied to the embeddings must not change their type
            module.weight = torch.nn.Parameter(module.weight.detach().to(torch.bfloat16), requires_grad=False)
