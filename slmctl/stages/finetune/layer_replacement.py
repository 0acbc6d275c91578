"""Find the layers that the CPU kernels can compute, and replace them where the results agree."""

from __future__ import annotations

import copy
import types
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from slmctl.stages.finetune import packing
from slmctl.stages.finetune.cpu_kernels import (
    Attention,
    FrozenLinear,
    GatedActivation,
    HeadLoss,
    RmsNorm,
    Stack,
    reciprocal_std,
)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03}  # of a layer's update, by the type of the products
LEAK = 0.25  # change of a state: rounding makes some 0.01, a token that sees another record 1


@torch.no_grad()
def packs(model: Any) -> bool:
    """Whether a model computes each record of a packed batch as it does that record alone.

    One that mixes tokens by more than attention (convolutions, recurrent layers) does not, nor one
    that keeps transformers' attention interface to itself.
    """
    core = _core(model)
    trunk, own = core.base_model, core.config._attn_implementation
    batch = _probe(trunk)
    prefix, ids = batch["layout"][0], batch["input_ids"][0]
    last = ids[-10:]
    alone = trunk(input_ids=torch.cat([ids[:prefix], last])[None], use_cache=False).last_hidden_state[0, prefix:]
    core.config._attn_implementation = packing.NAME
    try:
        packed = trunk(**batch).last_hidden_state[0, -len(last) :]
    except (TypeError, ValueError, NotImplementedError):  # it takes no layout
        return False
    finally:
        core.config._attn_implementation = own
    change = (packed.float() - alone.float()).norm(dim=1) / alone.float().norm(dim=1)
    return bool(change.max() < LEAK)


def _core(model: Any) -> Any:
    """The model under its adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def install(model: Any, smoothing: float = 0.0) -> dict[str, int]:
    """Make a model on a CPU that `packs`, with or without a LoRA adapter on it, train fast on packed batches.

    Afterwards `model(**batch)` with a batch of `_packing` gives the weighted sum of the losses, whose targets
    are smoothed while the model trains.
    Returns how many layers there are, and how many of them are fast.
    """
    core = _core(model)
    trunk = core.base_model
    core.config._attn_implementation = packing.NAME
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = FrozenLinear  # LoRA's own two are taken back below
    for module in model.modules():
        if isinstance(module, LoraLinear):
            for pair in (module.lora_A, module.lora_B):
                pair["default"].__class__ = torch.nn.Linear
    for module in model.modules():  # what meets the float32 stream outside of a product, such as a layer norm
        if not isinstance(module, FrozenLinear | torch.nn.Embedding):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    trunk.get_input_embeddings().register_forward_hook(lambda module, args, output: output.float())
    plain_head = _is_plain_head(core, trunk)
    layers = list(getattr(trunk, "layers", []))
    fast = _make_fast(trunk, layers)
    if hasattr(trunk, "norm"):
        _replace_norm(trunk.norm)
    whole = core.forward

    def forward(
        input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor,
        keep: torch.Tensor, layout: tuple[int, int], **kwargs: Any,
    ) -> CausalLMOutput:  # fmt: skip
        spread = smoothing if core.training else 0.0
        where = {"input_ids": input_ids, "position_ids": position_ids, "layout": layout, "use_cache": False}
        if plain_head:
            hidden = trunk(**where).last_hidden_state[0, keep]
            loss = HeadLoss.apply(hidden, core.get_output_embeddings().weight, labels, weights, spread)
        else:
            logits = whole(**where, logits_to_keep=keep).logits[0].float()
            losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=spread)
            loss = (losses * weights).sum()
        return CausalLMOutput(loss=loss)

    core.forward = forward
    return {"layers": len(layers), "fast_layers": fast}


def _probe(trunk: Any) -> dict[str, Any]:
    """A small packed batch of arbitrary tokens: two records that share a prefix."""
    count = min(trunk.get_input_embeddings().weight.shape[0], 1000)
    ids = torch.arange(3, 3 + 26).remainder(count)[None]
    positions = torch.cat([torch.arange(6), torch.arange(6, 16), torch.arange(6, 16)])[None]
    return {"input_ids": ids, "position_ids": positions, "layout": (6, 2), "use_cache": False}


@torch.no_grad()
def _is_plain_head(core: Any, trunk: Any) -> bool:
    """Whether the logits are the head's product and nothing more (no scale, no cap)."""
    head, probe = core.get_output_embeddings(), _probe(trunk)
    if head is None or head.bias is not None or getattr(core.config, "final_logit_softcapping", None):
        return False  # a cap does not show on the small logits of the probe
    logits = core(**probe).logits[0].float()
    own = head(trunk(**probe).last_hidden_state[0]).float()
    return bool(torch.allclose(logits, own, rtol=0.02, atol=0.02 * float(own.abs().max())))


def _make_fast(trunk: Any, layers: Sequence[Any]) -> int:
    """Replace what can be replaced in every layer; returns in how many layers that held."""
    calls: dict[int, tuple[Any, Any]] = {}

    def note(module: Any, args: Any, kwargs: Any) -> None:
        calls.setdefault(layers.index(module), (args, kwargs))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        trunk(**_probe(trunk))
    for hook in hooks:
        hook.remove()
    trusted: dict[Any, bool] = {}
    fast = 0
    for index, layer in enumerate(layers):
        kind = (type(layer), *_switches(getattr(layer, "self_attn", None)), *_switches(getattr(layer, "mlp", None)))
        if kind not in trusted:
            args, kwargs = calls[index]
            exact = copy.deepcopy(layer).float()
            trusted[kind] = _replace(layer) and _same(exact, layer, args, kwargs)
            if not trusted[kind]:
                _restore(layer)
            fast += trusted[kind]
        elif trusted[kind]:
            fast += _replace(layer)
    return fast


def _switches(module: Any) -> list[tuple[str, Any]]:
    """What a module was told about itself, such as its window; layers of one class may differ in it."""
    known = vars(module) if module is not None else {}
    plain = (bool, int, float, str, type(None))
    return [(name, value) for name, value in known.items() if isinstance(value, plain) and name != "layer_idx"]


@torch.no_grad()
def _same(exact: Any, fast: Any, args: Any, kwargs: Any) -> bool:
    x = args[0] if args else kwargs["hidden_states"]
    x = x.float() + torch.linspace(-1, 1, x.numel()).view(x.shape) * x.float().std()
    rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
    try:
        results = [layer(x, *args[1:], **rest) for layer in (exact, fast)]
    except (RuntimeError, TypeError):  # such as a rotation of a part of each head
        return False
    wanted, got = ((r[0] if isinstance(r, tuple) else r).float() - x for r in results)  # what the layer adds
    dtype = next(m.weight.dtype for m in fast.modules() if isinstance(m, FrozenLinear))
    return float((got - wanted).norm() / wanted.norm()) < TOLERANCE[dtype]


def _replace(layer: Any) -> bool:
    """Replace the norms, the attention and the feed-forward of a layer; False if it lacks the parts."""
    attention: Any = getattr(layer, "self_attn", None)
    mlp: Any = getattr(layer, "mlp", None)
    found = _stackable(attention, "q_proj", "k_proj", "v_proj", "o_proj") and _stackable(
        mlp, "gate_proj", "up_proj", "down_proj"
    )
    kind = _activation(mlp) if found else ""
    if not kind or not hasattr(attention, "head_dim") or not hasattr(attention, "scaling"):
        return False
    if getattr(attention, "attn_logit_softcapping", None):
        return False
    for module in layer.children():
        if type(module).__name__.endswith("RMSNorm"):
            _replace_norm(module)
    _replace_attention(attention)
    first, last = Stack([mlp.gate_proj, mlp.up_proj]), Stack([mlp.down_proj])
    mlp.forward = lambda x: last(GatedActivation.apply(first(x[0]), kind))[None]
    return True


def _restore(layer: Any) -> None:
    for module in layer.modules():
        module.__dict__.pop("forward", None)


def _stackable(module: Any, *names: str) -> bool:
    """Whether a module has linear layers of these names, each frozen or with a plain update of its own."""

    def plain(part: Any) -> bool:
        if not isinstance(part, LoraLinear):
            return isinstance(part, FrozenLinear)
        return not getattr(part, "lora_variant", {})  # such as DoRA

    return all(plain(getattr(module, name, None)) for name in names)


def _activation(mlp: Any) -> str:
    """`silu` or `gelu` (its tanh form), by what the module's own function does; else nothing."""
    x = torch.linspace(-4, 4, 101)
    act = getattr(mlp, "act_fn", None) or (lambda x: x)
    known = {"silu": functional.silu(x), "gelu": functional.gelu(x, approximate="tanh")}
    return next((kind for kind, wanted in known.items() if torch.allclose(act(x), wanted, atol=1e-6)), "")


@torch.no_grad()
def _norm_weight(norm: Any) -> tuple[torch.Tensor, float] | None:
    """A norm's weight in float32, which some models store less one, and its eps; None if it is no RMS norm."""
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if eps is None:
        return None
    weight = norm.weight.detach().float()
    x = torch.linspace(-2, 3, weight.numel())[None]
    wanted, plain = norm(x).float(), x * reciprocal_std(x, eps)
    error, best = min(
        (float((plain * candidate - wanted).norm() / wanted.norm()), k)
        for k, candidate in enumerate((weight, weight + 1))
    )
    return (weight + best, eps) if error < 0.01 else None


def _replace_norm(norm: Any) -> None:
    known = _norm_weight(norm)
    if known is not None:
        weight, eps = known
        norm.forward = lambda x: RmsNorm.apply(x, weight, eps)


def _replace_attention(module: Any) -> None:
    into, out = Stack([module.q_proj, module.k_proj, module.v_proj]), Stack([module.o_proj])
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
