"""Find the parts of layers that the CPU kernels can compute, and replace them where the results
agree.

One probe batch goes through the model, and the inputs and outputs of every part are recorded, down
to the queries, keys and values that attention is called with. A part is replaced if it has the
expected linear layers under one of their usual names, and if its output stays the same. The others
keep transformers' and PEFT's own code.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from slmctl.stages.finetune import answer_loss, four_bit, lora_targets, packing
from slmctl.stages.finetune.attention_kernels import PackedAttention, SplitHeads
from slmctl.stages.finetune.cpu_kernels import (
    Elementwise,
    FourBitLinear,
    FrozenLinear,
    GatedActivation,
    RmsNorm,
    StackedLinear,
    reciprocal_std,
)
from slmctl.stages.finetune.fused_kernels import HeadGroup, HeadNorm, Rotation
from slmctl.stages.finetune.packing_check import core_model, probe_batch
from slmctl.stages.finetune.short_convolution import PackedShortConvolution

# Largest accepted relative error of a part's output, by the dtype of the products.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03}
# of a part of another structure
ODD = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)
PROBE_NAME = "slmctl-probe"  # packed attention that records its arguments

# Names of the linear layers into and out of attention. The last two rows are for keys that are also
# the values, and for layers that use the keys and values of another layer.
QKV_NAMES = (("q_proj", "k_proj", "v_proj"), ("qkv_proj",), ("q_proj", "k_proj"), ("q_proj",))
OUT_NAMES = (("o_proj",), ("out_proj",), ("dense",))
QUERY_NORMS = ("q_norm", "q_layernorm", "query_layernorm")
KEY_NORMS = ("k_norm", "k_layernorm", "key_layernorm")
VALUE_NORMS = ("v_norm",)
# Names of the linear layers of an MLP: gate and up, or up alone without a gate; and down.
GATE_UP_NAMES = (("gate_proj", "up_proj"), ("w1", "w3"), ("gate_up_proj",), ("input_linear",))
UP_NAMES = (("up_proj",), ("fc1",))
DOWN_NAMES = (("down_proj",), ("w2",), ("output_linear",), ("fc2",))


@dataclass
class _Call:
    """One call of a module on the probe batch; of attention, also the
    arguments of its attention function.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    attended: tuple[torch.Tensor, ...] = ()
    options: Any = None

    @property
    def hidden(self) -> torch.Tensor:
        x: torch.Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return x


def install_kernels(model: Any, smoothing: float = 0.0) -> dict[str, int]:
    """Put the CPU kernels into a model that `packing_check.supports_packing`, with or without a
    LoRA adapter on it.

    Afterwards `model(**batch)` with a batch of `packing.pack` returns the weighted sum of the
    losses.

    Args:
        smoothing: Label smoothing, while the model is in training mode.

    Returns:
        `layers`, the number of layers, and `fast_layers`, the number of layers whose attention (or
        convolution) and MLP are replaced.
    """
    core = core_model(model)
    trunk = core.base_model
    core.config._attn_implementation = packing.ATTENTION_NAME
    _freeze_linear_layers(model)
    trunk.get_input_embeddings().register_forward_hook(lambda module, args, output: output.float())
    layers = list(getattr(trunk, "layers", []))
    fast = _replace_layers(core, layers)
    for module in filter(_is_norm, trunk.children()):
        _replace_norm(module)
    answer_loss.install(model, smoothing)
    return {"layers": len(layers), "fast_layers": fast}


def hold_in_4bit(model: Any, products: torch.dtype) -> None:
    """Hold the frozen weights of the layers that LoRA can adapt in 4 bits, the others in the dtype
    `products`.

    The head, the embeddings, experts, and weights whose inputs are not a multiple of
    `four_bit.BLOCK` are not packed.
    """
    core = core_model(model)
    for name in list(lora_targets.linear_layers(core)):
        layer = core.get_submodule(name)
        frozen = type(layer) is torch.nn.Linear and not layer.weight.requires_grad
        if frozen and four_bit.fits(layer.weight):
            FourBitLinear.replace(layer, products)
    for parameter in core.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(products)


def _freeze_linear_layers(model: Any) -> None:
    """Make every frozen linear layer a FrozenLinear, and every
    other weight but embeddings float32.
    """
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = FrozenLinear
    for module in model.modules():
        if isinstance(module, LoraLinear):
            for pair in (module.lora_A, module.lora_B):  # they are trained
                pair["default"].__class__ = torch.nn.Linear
    for module in model.modules():  # norms and the like work on the float32 residual stream
        if not isinstance(module, FrozenLinear | torch.nn.Embedding):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


@torch.no_grad()
def _replace_layers(core: Any, layers: Sequence[Any]) -> int:
    """Replace the parts of every layer where the result agrees; returns
    the number of layers replaced in full.
    """
    training = core.training
    core.eval()  # without dropout, which would make two calls differ
    calls = _observe(core, layers)
    fast = 0
    for layer in layers:
        mixers = mlps = 0
        for part in layer.children():
            if part in calls and calls[part].attended:
                mixers += _replace_attention(part, calls[part])
            elif isinstance(part, PackedShortConvolution):
                mixers += _replace_convolution(part)
            elif _is_norm(part):
                _replace_norm(part)
            else:
                mlps += _replace_mlp(part)
        fast += bool(mixers and mlps)
    core.train(training)
    return fast


def _observe(core: Any, layers: Sequence[Any]) -> dict[Any, _Call]:
    """Run a probe batch; returns the call of each direct part of a layer."""
    calls: dict[Any, _Call] = {}

    def note_input(module: Any, args: Any, kwargs: Any) -> None:
        calls[module] = _Call(args, kwargs)

    def note_output(module: Any, args: Any, output: Any) -> None:
        calls[module].output = output

    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        **options: Any,
    ) -> Any:
        if module in calls:
            calls[module].attended = (query, key, value)
            calls[module].options = options
        return packing.attention(module, query, key, value, attention_mask, **options)

    parts = [part for layer in layers for part in layer.children()]
    hooks = [part.register_forward_pre_hook(note_input, with_kwargs=True) for part in parts]
    hooks += [part.register_forward_hook(note_output) for part in parts]
    AttentionInterface.register(PROBE_NAME, attention)
    core.config._attn_implementation = PROBE_NAME
    try:
        core.base_model(**probe_batch(core.base_model))
    finally:
        core.config._attn_implementation = packing.ATTENTION_NAME
        for hook in hooks:
            hook.remove()
    return calls


def _close(got: Any, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    """True if a result has the shape and values of `wanted`, up to
    the rounding of products in `dtype`.
    """
    if got.shape != wanted.shape:
        return False
    wanted = wanted.float()
    error = (got.float() - wanted).norm()
    return float(error / wanted.norm()) < TOLERANCE[dtype]


def _stack(module: Any, *choices: Sequence[str]) -> StackedLinear | None:
    """The first choice of layers that a module has, stacked; None without
    one, or if one has more than plain LoRA.
    """

    def plain(part: Any) -> bool:
        if not isinstance(part, LoraLinear):
            return isinstance(part, FrozenLinear)
        return not getattr(part, "lora_variant", {})  # such as DoRA

    for names in choices:
        members: list[Any] = [getattr(module, name, None) for name in names]
        if all(member is not None for member in members):
            return StackedLinear(members) if all(map(plain, members)) else None
    return None


def _replace_mlp(mlp: Any) -> bool:
    """Replace an MLP if it has the expected parts and agrees."""
    first = _stack(mlp, *GATE_UP_NAMES, *UP_NAMES)
    last = _stack(mlp, *DOWN_NAMES)
    if first is None or last is None:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, first.wide, generator=generator)
    x *= 2 / first(x[0]).float().std()  # so that the activation is far from linear
    with contextlib.suppress(*ODD):
        wanted = mlp(x)
        for activate in _activations(mlp, gated=first.high == 2 * last.wide):
            forward = _mlp(first, activate, last)
            if _close(forward(x), wanted, first.dtype):
                mlp.forward = forward
                return True
    return False


def _mlp(first: StackedLinear, activate: Elementwise, last: StackedLinear) -> Elementwise:
    # the gradient of x[0] would be a copy
    return lambda x: last(activate(first(x.squeeze(0))))[None]


def _activations(mlp: Any, *, gated: bool) -> list[Elementwise]:
    """Candidates for the function between the products of an MLP: its
    activation, or activation(gate) * up.
    """
    own = _attribute(mlp, ("act_fn", "activation_fn", "activation"))
    if not gated:
        return [lambda x: own(x.float())] if own is not None else []
    x = torch.linspace(-4, 4, 101)
    kinds = {"silu": functional.silu(x), "gelu": functional.gelu(x, approximate="tanh")}
    candidates: list[Elementwise] = []
    for kind, values in kinds.items():
        # without one, its forward calls a function
        if own is None or torch.allclose(own(x), values, atol=1e-6):
            candidates.append(functools.partial(_gated, kind=kind))
    return candidates


def _attribute(module: Any, names: Sequence[str]) -> Any:
    """The first of these attributes that a module has; None without one."""
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def _gated(both: torch.Tensor, kind: str) -> torch.Tensor:
    product: torch.Tensor = GatedActivation.apply(both, kind)
    return product


def _replace_convolution(module: PackedShortConvolution) -> bool:
    into = _stack(module, ["in_proj"])
    out = _stack(module, ["out_proj"])
    if into is None or out is None:
        return False
    module.products = (into, out)
    return True


def _is_norm(module: Any) -> bool:
    name = type(module).__name__
    return name.endswith("RMSNorm") or name == "Cohere2LayerNorm"


@torch.no_grad()
def _norm_weight(norm: Any, size: int = 0) -> tuple[torch.Tensor, float] | None:
    """Weight (n,) in float32 and eps of an RMS norm; None for other modules. Some models store
    weight - 1.

    Args:
        size: The n of a norm that has no weight.
    """
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if eps is None:
        return None
    own = getattr(norm, "weight", None)
    weight = torch.ones(size) if own is None else own.detach().float()
    x = torch.linspace(-2, 3, weight.numel())[None]
    expected = norm(x).float()
    plain = x * reciprocal_std(x, eps)
    errors = [(plain * (weight + added) - expected).norm() for added in (0, 1)]
    best = int(errors[1] < errors[0])
    if not float(errors[best] / expected.norm()) < 0.01:  # NaN is no small error
        return None
    return weight + best, eps


def _replace_norm(norm: Any) -> None:
    """Replace an RMS norm, or a layer norm without bias that is computed step by step (Cohere)."""
    parameters = _norm_weight(norm)
    if parameters is not None:
        weight, eps = parameters
        norm.forward = lambda x: RmsNorm.apply(x, weight, eps)
    elif type(norm).__name__.endswith("LayerNorm"):
        weight = norm.weight.detach().float()
        eps = norm.variance_epsilon
        x = torch.linspace(-2, 3, weight.numel())[None]

        def forward(x: torch.Tensor) -> torch.Tensor:
            return functional.layer_norm(x.float(), weight.shape, weight, None, eps)

        if _close(forward(x), norm(x), torch.float32):
            norm.forward = forward


def _replace_attention(module: Any, call: _Call) -> bool:
    """Replace attention if it has the expected parts and agrees."""
    into = _stack(module, *QKV_NAMES)
    out = _stack(module, *OUT_NAMES)
    if into is None or out is None:
        return False
    with contextlib.suppress(*ODD):
        heads = _heads(module, call, into)
        if heads is None:
            return False
        module.forward = _attention(module, call, heads, out)
        result = module.forward(*call.args, **call.kwargs)
        if len(result) == len(call.output) and _close(result[0], call.output[0], out.dtype):
            return True
    module.__dict__.pop("forward", None)
    return False


# hidden (1, T, width), cos and sin -> states
Heads = Callable[[torch.Tensor, Any], tuple[torch.Tensor, ...]]


def _heads(module: Any, call: _Call, into: StackedLinear) -> Heads | None:
    """A function that returns a module's queries, keys and values, each (T, heads, size); None if
    no form agrees.

    It returns queries alone for a module that uses the keys and values of another layer.
    """
    expected = [x[0].transpose(0, 1) for x in call.attended]
    size = expected[0].shape[2]
    queries = expected[0].shape[1] * size
    keys_are_values = len(into.outs) == 2
    if into.high == queries:
        expected = expected[:1]
    positions = call.kwargs.get("position_embeddings")
    rotations: list[Rotation | None] = [None]
    if positions is not None:
        rotations = ["halves", "interleaved", None]
    repeated = positions is not None and _repeats(positions[0])

    def project(hidden: torch.Tensor) -> torch.Tensor:
        x = into(hidden.squeeze(0))
        return torch.cat([x, x[:, queries:]], dim=1) if keys_are_values else x

    for rotation, late in itertools.product(rotations, (False, True)):
        groups = _groups(module, call, rotation, late)[: len(expected)]

        def heads(
            hidden: torch.Tensor, positions: Any, groups: Sequence[HeadGroup] = groups
        ) -> Any:
            angles = _angles(positions, repeated=repeated)
            return SplitHeads.apply(project(hidden), groups, *angles)

        states = heads(call.hidden, positions)
        if all(_close(a, b, into.dtype) for a, b in zip(states, expected, strict=True)):
            return heads
    return None


def _groups(module: Any, call: _Call, rotation: Rotation | None, late: bool) -> list[HeadGroup]:
    """The heads of a module's queries, keys and values, if it turns them by `rotation`, and norms
    them before, or after it if `late`.
    """
    groups = []
    size = call.attended[0].shape[3]
    forms = ((QUERY_NORMS, rotation), (KEY_NORMS, rotation), (VALUE_NORMS, None))
    for states, (names, turned) in zip(call.attended, forms, strict=True):
        norm = _head_norm(module, names, size, late)
        groups.append(HeadGroup(states.shape[1], turned, norm))
    return groups


def _repeats(cos: torch.Tensor) -> bool:
    """True if the angles are repeated one by one (a a b b), False if as a whole (a b a b)."""
    half = cos.shape[-1] // 2
    return not torch.equal(cos[..., :half], cos[..., half:])


def _angles(positions: Any, *, repeated: bool) -> list[torch.Tensor]:
    """Cosine and sine (T, 1, n) of n angles, from those of transformers
    (1, T, 2 n), or empty without positions.
    """
    if positions is None:
        return [torch.empty(0)] * 2
    half = positions[0].shape[-1] // 2
    places = slice(None, None, 2) if repeated else slice(half)
    return [angles[0, :, None, places].float().contiguous() for angles in positions]


def _head_norm(module: Any, names: Sequence[str], size: int, late: bool) -> HeadNorm | None:
    norm = _attribute(module, names)
    parameters = _norm_weight(norm, size) if norm is not None else None
    return HeadNorm(*parameters, late) if parameters else None


def _attention(
    module: Any, call: _Call, heads: Heads, out: StackedLinear
) -> Callable[..., tuple[torch.Tensor, None]]:
    """The forward function of an attention module."""
    options = dict(call.options)
    for name in ("layout", "dropout"):
        options.pop(name, None)
    scale = options.get("scaling") or call.attended[0].shape[3] ** -0.5
    window = options.get("sliding_window")
    dropout = getattr(module, "attention_dropout", 0.0)
    by_flash = not options.get("softcap") and not dropout

    def forward(
        hidden_states: torch.Tensor,
        position_embeddings: Any = None,
        *,
        layout: Any,
        shared_kv_states: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        q, *kv = heads(hidden_states, position_embeddings)
        if not kv:  # keys and values of an earlier layer
            kv = [x[0].transpose(0, 1) for x in shared_kv_states[module.layer_type]]
        elif getattr(module, "store_full_length_kv", False):
            shared_kv_states[module.layer_type] = tuple(map(_batched, kv))
        if by_flash:
            mixed = PackedAttention.apply(q, *kv, layout, scale, window, out.dtype)
        else:  # torch's flash kernel has neither caps nor dropout
            share = dropout if module.training else 0.0
            k, v = map(_batched, kv)
            whole, _ = packing.attention(
                module, _batched(q), k, v, None, layout=layout, dropout=share, **options
            )
            mixed = whole[0].flatten(1)
        return out(mixed)[None], None

    return forward


def _batched(x: torch.Tensor) -> torch.Tensor:
    """States (T, heads, size) as transformers holds them: (1, heads, T, size)."""
    return x.transpose(0, 1)[None]


AttentionMaskInterface.register(PROBE_NAME, lambda *args, **kwargs: None)
