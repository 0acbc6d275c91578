"""Find the layers that `cpu_kernels` can compute, and replace them where the results agree.

A layer is replaced where it has the expected parts, and only if it then gives what it gave before on
a probe batch. The others keep transformers' and PEFT's own code.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from slmctl.stages.finetune import packing
from slmctl.stages.finetune.cpu_kernels import (
    Attention,
    BlockwiseCrossEntropy,
    FrozenLinear,
    GatedActivation,
    RmsNorm,
    StackedLinear,
    reciprocal_std,
)
from slmctl.stages.finetune.packing_check import core_model, probe_batch

# Largest accepted relative error of what a layer adds to the residual stream, by the type of the products.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03}


def install_kernels(model: Any, smoothing: float = 0.0) -> dict[str, int]:
    """Put the CPU kernels into a model that `packing_check.supports_packing`, with or without a LoRA adapter on it.

    Afterwards `model(**batch)` with a batch of `BatchPacker` gives the weighted sum of the losses.

    Args:
        smoothing: Label smoothing, while the model is in training mode.

    Returns:
        `layers`, the number of layers, and `fast_layers`, the number of replaced ones.
    """
    core = core_model(model)
    trunk = core.base_model
    core.config._attn_implementation = packing.ATTENTION_NAME
    _freeze_linear_layers(model)
    trunk.get_input_embeddings().register_forward_hook(lambda module, args, output: output.float())
    plain_head = _is_plain_head(core, trunk)
    layers = list(getattr(trunk, "layers", []))
    fast = _replace_layers(trunk, layers)
    if hasattr(trunk, "norm"):
        _replace_norm(trunk.norm)
    core.forward = _packed_loss(core, trunk, smoothing, plain_head=plain_head)
    return {"layers": len(layers), "fast_layers": fast}


def _freeze_linear_layers(model: Any) -> None:
    """Make every frozen linear layer a FrozenLinear, and every other weight but embeddings float32."""
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


def _packed_loss(core: Any, trunk: Any, smoothing: float, *, plain_head: bool) -> Callable[..., CausalLMOutput]:
    """A forward function: packed batch -> weighted sum of the cross-entropies of its answer tokens.

    With a plain head the logits are never held as a whole; a model that scales or caps them computes its own, at
    the answer tokens only.
    """
    own_forward = core.forward

    def forward(
        input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor,
        keep: torch.Tensor, layout: tuple[int, int], **kwargs: Any,
    ) -> CausalLMOutput:  # fmt: skip
        spread = smoothing if core.training else 0.0
        where = {"input_ids": input_ids, "position_ids": position_ids, "layout": layout, "use_cache": False}
        if plain_head:
            hidden = trunk(**where).last_hidden_state[0, keep]  # (1, T, width) -> (N, width)
            loss = BlockwiseCrossEntropy.apply(hidden, core.get_output_embeddings().weight, labels, weights, spread)
        else:
            logits = own_forward(**where, logits_to_keep=keep).logits[0].float()  # (N, V)
            losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=spread)
            loss = (losses * weights).sum()
        return CausalLMOutput(loss=loss)

    return forward


@torch.no_grad()
def _is_plain_head(core: Any, trunk: Any) -> bool:
    """True if the logits are the head's product without scale or soft cap."""
    head, probe = core.get_output_embeddings(), probe_batch(trunk)
    if head is None or head.bias is not None or getattr(core.config, "final_logit_softcapping", None):
        return False  # a cap does not show on the small logits of the probe
    logits = core(**probe).logits[0].float()
    own = head(trunk(**probe).last_hidden_state[0]).float()
    return bool(torch.allclose(logits, own, rtol=0.02, atol=0.02 * float(own.abs().max())))


def _replace_layers(trunk: Any, layers: Sequence[Any]) -> int:
    """Replace the parts of every layer where the result agrees; returns the number of replaced layers."""
    calls: dict[int, tuple[Any, Any]] = {}

    def note(module: Any, args: Any, kwargs: Any) -> None:
        calls.setdefault(layers.index(module), (args, kwargs))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        trunk(**probe_batch(trunk))
    for hook in hooks:
        hook.remove()
    trusted: dict[Any, bool] = {}
    fast = 0
    for index, layer in enumerate(layers):
        kind = (
            type(layer),
            *_scalar_attributes(getattr(layer, "self_attn", None)),
            *_scalar_attributes(getattr(layer, "mlp", None)),
        )
        if kind not in trusted:
            args, kwargs = calls[index]
            exact = copy.deepcopy(layer).float()
            trusted[kind] = _replace(layer) and _agree(exact, layer, args, kwargs)
            if not trusted[kind]:
                _restore(layer)
            fast += trusted[kind]
        elif trusted[kind]:
            fast += _replace(layer)
    return fast


def _scalar_attributes(module: Any) -> list[tuple[str, Any]]:
    """A module's settings, such as its sliding window, in which layers of one class may differ."""
    attributes = vars(module) if module is not None else {}
    plain = (bool, int, float, str, type(None))
    return [(name, value) for name, value in attributes.items() if isinstance(value, plain) and name != "layer_idx"]


@torch.no_grad()
def _agree(exact: Any, fast: Any, args: Any, kwargs: Any) -> bool:
    """True if both layers add the same to a residual stream of random-like values, within TOLERANCE."""
    x = args[0] if args else kwargs["hidden_states"]
    x = x.float() + torch.linspace(-1, 1, x.numel()).view(x.shape) * x.float().std()
    rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
    try:
        results = [layer(x, *args[1:], **rest) for layer in (exact, fast)]
    except (RuntimeError, TypeError):  # such as a rotation of a part of each head
        return False
    expected, actual = ((r[0] if isinstance(r, tuple) else r).float() - x for r in results)
    dtype = next(m.weight.dtype for m in fast.modules() if isinstance(m, FrozenLinear))
    return float((actual - expected).norm() / expected.norm()) < TOLERANCE[dtype]


def _replace(layer: Any) -> bool:
    """Replace the norms, the attention and the MLP of a layer; False if it lacks the expected parts."""
    attention: Any = getattr(layer, "self_attn", None)
    mlp: Any = getattr(layer, "mlp", None)
    stackable = _stackable(attention, "q_proj", "k_proj", "v_proj", "o_proj") and _stackable(
        mlp, "gate_proj", "up_proj", "down_proj"
    )
    kind = _activation(mlp) if stackable else ""
    if not kind or not hasattr(attention, "head_dim") or not hasattr(attention, "scaling"):
        return False
    if getattr(attention, "attn_logit_softcapping", None):
        return False
    for module in layer.children():
        if type(module).__name__.endswith("RMSNorm"):
            _replace_norm(module)
    _replace_attention(attention)
    first, last = StackedLinear([mlp.gate_proj, mlp.up_proj]), StackedLinear([mlp.down_proj])
    mlp.forward = lambda x: last(GatedActivation.apply(first(x[0]), kind))[None]
    return True


def _restore(layer: Any) -> None:
    for module in layer.modules():
        module.__dict__.pop("forward", None)


def _stackable(module: Any, *names: str) -> bool:
    """True if a module has linear layers of these names, each frozen or with a plain LoRA update."""

    def plain(part: Any) -> bool:
        if not isinstance(part, LoraLinear):
            return isinstance(part, FrozenLinear)
        return not getattr(part, "lora_variant", {})  # such as DoRA

    return all(plain(getattr(module, name, None)) for name in names)


def _activation(mlp: Any) -> str:
    """`silu` or `gelu` (the tanh form) if the MLP's activation computes that, else empty."""
    x = torch.linspace(-4, 4, 101)
    act = getattr(mlp, "act_fn", None) or (lambda x: x)
    candidates = {"silu": functional.silu(x), "gelu": functional.gelu(x, approximate="tanh")}
    return next((kind for kind, values in candidates.items() if torch.allclose(act(x), values, atol=1e-6)), "")


@torch.no_grad()
def _norm_weight(norm: Any) -> tuple[torch.Tensor, float] | None:
    """Weight (n,) in float32 and eps of an RMS norm, None of any other module; some models store weight - 1."""
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if eps is None:
        return None
    weight = norm.weight.detach().float()
    x = torch.linspace(-2, 3, weight.numel())[None]
    expected, plain = norm(x).float(), x * reciprocal_std(x, eps)
    error, best = min(
        (float((plain * candidate - expected).norm() / expected.norm()), k)
        for k, candidate in enumerate((weight, weight + 1))
    )
    return (weight + best, eps) if error < 0.01 else None


def _replace_norm(norm: Any) -> None:
    parameters = _norm_weight(norm)
    if parameters is not None:
        weight, eps = parameters
        norm.forward = lambda x: RmsNorm.apply(x, weight, eps)


def _replace_attention(module: Any) -> None:
    into, out = StackedLinear([module.q_proj, module.k_proj, module.v_proj]), StackedLinear([module.o_proj])
    size = module.head_dim
    heads, kv = into.outs[0] // size, into.outs[1] // size
    norm, eps = None, 0.0
    if hasattr(module, "q_norm"):
        q, k = _norm_weight(module.q_norm), _norm_weight(module.k_norm)
        if q is not None and k is not None and q[0].numel() == size:
            norm, eps = torch.cat([q[0].expand(heads, size), k[0].expand(kv, size)]), q[1]
    window = getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))

    def forward(
        self: Any, hidden_states: torch.Tensor, position_embeddings: Any = None, layout: Any = None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        cos, sin = (part[0, :, None, : size // 2].float() for part in position_embeddings)
        qkv = into(hidden_states[0])
        mixed = Attention.apply(qkv, heads, size, norm, eps, cos, sin, layout, self.scaling, window)
        return out(mixed)[None], None

    module.forward = types.MethodType(forward, module)
