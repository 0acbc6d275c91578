"""Decide if a model computes each record of a packed batch as it computes that record alone.

A packed batch is compared with the same records one by one, on a float32 copy with one layer of
each kind and sliding windows shorter than the probe. There a sound model differs by rounding only,
whatever its size and dtype, so that even a small error counts: with small random weights, a lost
attention bias changes little.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from slmctl.stages.finetune import packing
from slmctl.stages.finetune.short_convolution import teach_layout

KNOWN_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "conv"})
# Modules that mix tokens. They ignore the packed layout, unless a module that contains them has
# `takes_layout`.
CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
MAX_CHANGE = 1e-4  # largest relative change of a hidden state in float32 that rounding explains
PLAIN = (bool, int, float, str, type(None))  # types of settings
MAX_KINDS = 8  # of layers; more come only from settings that differ in every layer
# The probe: tokens of the shared prefix, tokens of each of two records after it, and a window
# shorter than both.
PREFIX = 6
LENGTH = 10
WINDOW = 5
# Raised by models that take no `layout`, pass an argument that `packing.attention` refuses, or need
# a shape that the probe does not have.
UNSUITED = (
    TypeError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    AttributeError,
    LookupError,
    AssertionError,
)


@torch.no_grad()
def supports_packing(model: Any) -> bool:
    """True if packed batches are sound for a model, with or without an adapter on it.

    Records must not change each other's states, and each record's states must be those of that
    record alone.
    """
    core = core_model(model)
    teach_layout(core)
    if not _has_known_layers(core):
        return False
    try:
        probe = _probe_copy(core)
        with _float32_embeddings(probe):
            return _is_exact(probe)
    except UNSUITED:
        return False


def core_model(model: Any) -> Any:
    """The model under its adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def probe_batch(trunk: Any, first: int = 3) -> dict[str, Any]:
    """A small packed batch: a prefix of 6 tokens and two records of 10; the
    first record begins with token `first`.
    """
    count = min(trunk.get_input_embeddings().weight.shape[0], 1000)
    rest = torch.arange(PREFIX, PREFIX + LENGTH)  # places of the first record
    ids = torch.arange(PREFIX + 2 * LENGTH) + 3
    ids[rest] = rest - PREFIX + first
    positions = torch.cat([torch.arange(PREFIX), rest, rest])
    return {
        "input_ids": ids.remainder(count)[None],
        "position_ids": positions[None],
        "layout": (PREFIX, 2),
        "use_cache": False,
    }


def layer_kind(layer: torch.nn.Module) -> tuple[Any, ...]:
    """The classes and settings of a layer's modules, such as a sliding
    window; layers of one kind compute alike.
    """
    kinds = []
    for name, module in layer.named_modules():
        settings = _settings(module)
        for place in ("layer_idx", "layer_id", "layer_number"):
            settings.pop(place, None)
        kinds.append((name, type(module), *settings.items()))
    return tuple(kinds)


def _settings(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, PLAIN)}


def _has_known_layers(core: Any) -> bool:
    """True if no layer is seen that mixes tokens in a way that ignores the packed layout."""
    types = getattr(core.config, "layer_types", None) or ()
    if not KNOWN_LAYER_TYPES.issuperset(types):
        return False
    unaware = {id(module) for module in core.modules() if isinstance(module, CONVOLUTIONS)}
    for module in core.modules():
        if getattr(module, "takes_layout", False):
            unaware.difference_update(id(part) for part in module.modules())
    return not unaware


class _Skipped(torch.nn.Module):
    """Placeholder for a layer, with its settings: returns the states
    unchanged, in a tuple if `like` returns one.
    """

    def __init__(self, layer: torch.nn.Module, like: torch.nn.Module) -> None:
        super().__init__()
        self.__dict__.update(_settings(layer))
        self.as_tuple = False
        like.register_forward_hook(self._note)

    def _note(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self.as_tuple = isinstance(output, tuple)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if self.as_tuple else hidden_states


def _probe_copy(core: Any) -> Any:
    """A copy of the model without its head: one layer of every kind, in float32, with a small
    window.

    Embeddings are shared with the model, since a large vocabulary's would be most of the copy.
    """
    trunk = core.base_model
    name, layers = _layers(trunk)
    # the first of each
    kinds = {layer_kind(layer): index for index, layer in reversed(list(enumerate(layers)))}
    chosen = sorted(kinds.values())[:MAX_KINDS]
    shared = {id(module): module for module in _embeddings(trunk)}
    setattr(trunk, name, torch.nn.ModuleList())
    try:
        probe = copy.deepcopy(trunk, shared)
        # `shared` maps the config, too
        kept = {index: copy.deepcopy(layers[index], shared) for index in chosen}
    finally:
        setattr(trunk, name, layers)
    some = [
        kept[k] if k in kept else _Skipped(layer, like=kept[0]) for k, layer in enumerate(layers)
    ]
    setattr(probe, name, torch.nn.ModuleList(some))
    for owner in (probe.config, *probe.modules()):
        if isinstance(getattr(owner, "sliding_window", None), int):
            owner.sliding_window = WINDOW
    for module in probe.modules():
        if not isinstance(module, torch.nn.Embedding):
            _make_float32(module)
    return probe.eval()


def _embeddings(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]


def _make_float32(module: torch.nn.Module) -> None:
    """Change the tensors of a module, but not of the modules in it."""
    parameters, buffers = module.parameters(recurse=False), module.buffers(recurse=False)
    for tensor in itertools.chain(parameters, buffers):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()


def _layers(trunk: Any) -> tuple[str, torch.nn.ModuleList]:
    """The decoder layers of a model, and their name in it.

    Raises:
        LookupError: It has none, such as a model with a vision tower, which holds its decoder
            further in.
    """
    count = trunk.config.num_hidden_layers
    for name, module in trunk.named_children():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, module
    raise LookupError("no list of decoder layers")


@contextmanager
def _float32_embeddings(probe: Any) -> Iterator[None]:
    def to_float(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.float()

    hooks = [module.register_forward_hook(to_float) for module in _embeddings(probe)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_exact(probe: Any) -> bool:
    """True if packed records have the states of each alone, and changing
    the first changes no state of the second.
    """
    batch, other = probe_batch(probe), probe_batch(probe, first=31)
    ids = batch["input_ids"][0]
    elsewhere = torch.ones(len(ids), dtype=torch.bool)  # true outside of the first record
    elsewhere[PREFIX : PREFIX + LENGTH] = False
    records = torch.stack([ids[: PREFIX + LENGTH], ids[elsewhere]])
    # (2, prefix + length, width)
    alone = probe(input_ids=records, use_cache=False).last_hidden_state
    probe.config._attn_implementation = packing.ATTENTION_NAME
    packed, changed = (probe(**inputs).last_hidden_state[0] for inputs in (batch, other))
    expected = torch.cat([alone[0], alone[1, PREFIX:]])
    if not _change(packed, expected) < MAX_CHANGE:  # NaN is no small change
        return False
    return _change(changed[elsewhere], packed[elsewhere]) < MAX_CHANGE


def _change(states: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative difference of a token's state (T, width);
    NaN where a state is not finite.
    """
    errors = (states - expected).norm(dim=1)
    return float((errors / expected.norm(dim=1)).max())
