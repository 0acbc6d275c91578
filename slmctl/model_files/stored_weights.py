"""Compute in float32 with weights that stay in the 16 bits of their file, mapped from it.

A layer's weights are cast to float32 for its call and dropped after it, so that a model takes the
memory of its largest layer, plus pages of the file that the kernel can drop. The results are those
of a float32 copy.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn import functional

BLOCK_ELEMENTS = 32 << 20  # of a weight cast to float32 at a time: 128 MB
# of a parameter that is cast once and stays float32: norms, biases, convolutions, routers
SMALL_ELEMENTS = 4 << 20
HALVES = (torch.bfloat16, torch.float16)
# Their code reads the type of a linear layer's weight, or multiplies by the weight itself.
UNSUPPORTED_MODELS = frozenset({"mamba", "mamba2", "falcon_mamba", "xlstm"})


class StoredLinear(torch.nn.Linear):
    """Linear layer, float32 in and out, multiplied in `products` by a weight that is stored in
    another dtype.

    Attributes:
        products: float32, or bfloat16 where inputs may be rounded to it.
    """

    products: torch.dtype = torch.float32

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = input.to(self.products)
        rows = max(BLOCK_ELEMENTS // self.in_features, 1)
        if self.out_features <= rows or self.weight.dtype == self.products:
            return self._block(x, slice(None))
        blocks = [slice(start, start + rows) for start in range(0, self.out_features, rows)]
        out = torch.empty(*x.shape[:-1], self.out_features)
        for block in blocks:
            out[..., block] = self._block(x, block)
        return out

    def _block(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        product = functional.linear(x, self.weight[rows].to(self.products)).float()
        return product if self.bias is None else product.add_(self.bias[rows])


def widen(model: Any) -> None:
    """Make a model with 16-bit weights compute in float32; its weights get no gradients afterwards.

    Linear layers become StoredLinear. For the time of a call, an embedding casts the rows that it
    looks up to float32, and any other module its own parameters.
    """
    model.requires_grad_(False)
    if getattr(model.config.get_text_config(), "model_type", "") in UNSUPPORTED_MODELS:
        model.float()
        return
    for module in model.modules():
        halves = {
            name: own
            for name, own in module._parameters.items()
            if own is not None and own.dtype in HALVES
        }
        large = type(module) is torch.nn.Linear or isinstance(module, torch.nn.Embedding)
        # by state-space mixers, which call it by its weight
        read_from_outside = isinstance(module, torch.nn.Conv1d)
        for name, own in halves.items():
            if read_from_outside or (
                not (large and name == "weight") and own.numel() < SMALL_ELEMENTS
            ):
                own.data = own.data.float()
        if type(module) is torch.nn.Linear:
            module.__class__ = StoredLinear
        elif any(own.dtype in HALVES for own in halves.values()):
            call = _WidenedCall()
            module.register_forward_pre_hook(call.begin)
            module.register_forward_hook(call.end, always_call=True)
    _recompute_buffers(model)


def _recompute_buffers(model: Any) -> None:
    """Recompute in float32 the buffers that no file holds, such as Gemma's
    embedding scale, rounded when loaded.
    """
    import accelerate  # encoders are loaded by hf_folder too, and do without it

    with accelerate.init_empty_weights(include_buffers=False):
        exact = type(model)._from_config(model.config, dtype=torch.float32)
    stored = model.state_dict(keep_vars=True).keys()
    for name, buffer in exact.named_buffers():
        place, _, own = name.rpartition(".")
        if name in stored:
            buffer = (
                model.get_buffer(name).float()
                if model.get_buffer(name).is_floating_point()
                else None
            )
        if buffer is not None and not buffer.is_meta:
            model.get_submodule(place)._buffers[own] = buffer


def multiply_in(model: Any, products: torch.dtype) -> bool:
    """Set the dtype of the matrix products of a model that computes in float32, except for its
    output head.

    The weights of a float32 copy are rounded to it in place; weights mapped from their file stay as
    they are.

    Returns:
        False if the model's code allows float32 only; nothing is changed then.
    """
    if getattr(model.config.get_text_config(), "model_type", "") in UNSUPPORTED_MODELS:
        return False
    head, copied = model.get_output_embeddings(), not is_widened(model)
    for module in model.modules():
        if copied and type(module) is torch.nn.Linear and module is not head:
            module.__class__ = StoredLinear
            module.weight = torch.nn.Parameter(module.weight.to(products), requires_grad=False)
        if isinstance(module, StoredLinear) and module is not head:
            module.products = products
    return True


def is_widened(model: Any) -> bool:
    """True if some weights stay in 16 bits, so that an adapter cannot
    be merged into them without rounding.
    """
    return any(
        isinstance(module, StoredLinear) and module.weight.dtype in HALVES
        for module in model.modules()
    )


class _WidenedCall:
    """Puts float32 parameters into a module before its call, and the stored ones back after it."""

    def __init__(self) -> None:
        self.stored: dict[str, torch.nn.Parameter] = {}
        self.padding: int | None = None

    def begin(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self.stored = {name: own for name, own in module._parameters.items() if own is not None}
        if isinstance(module, torch.nn.Embedding):
            self.padding = module.padding_idx
            if _looks_up(module) and len(args) == 1 and not args[0].is_floating_point():
                ids, places = args[0].unique(return_inverse=True)
                module._parameters["weight"] = _wide(module.weight[ids])
                # it matters for gradients only, and is not an index into these rows
                module.padding_idx = None
                return (places,)
        for name, own in self.stored.items():
            if own.dtype in HALVES:
                module._parameters[name] = _wide(own)
        return None

    def end(self, module: Any, args: Any, output: Any) -> None:
        module._parameters.update(self.stored)
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = self.padding
        self.stored = {}


def _looks_up(module: torch.nn.Embedding) -> bool:
    """True if a call's first argument is the ids to look up; learned
    positions are often computed from a mask.
    """
    return next(iter(inspect.signature(module.forward).parameters)) in ("input", "input_ids")


def _wide(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor.float(), requires_grad=False)
