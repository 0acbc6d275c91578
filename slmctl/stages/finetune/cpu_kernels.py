"""A frozen base under LoRA, computing only what the loss needs.

What transformers and PEFT compute in some hundred small operations a layer is written here as six
autograd functions with their own backward: a frozen weight gets no gradient and is multiplied in
the type that the processor is fastest in, layers that read the same input are one product, LoRA's
thin products are part of it, and the logits of the whole vocabulary never exist at once. The
residual stream, norms and attention stay in float32.

Nothing here is specific to an architecture: a module is replaced where it has the expected parts,
and only if it then computes what it did before (`install` tries). What stays is transformers' and
PEFT's own.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.autograd import Function
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from slmctl.stages.finetune import packing

BLOCK = 4096  # columns of the vocabulary at a time: what is computed of them stays in the cache
ROWS = 64  # products have a multiple of so many rows
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03}  # of a layer's update, by the type of the products
LEAK = 0.25  # change of a state: rounding makes some 0.01, a token that sees another record 1


class FrozenLinear(torch.nn.Linear):
    """A linear layer that only passes gradients on; float32 in and out, whatever type it multiplies in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _Frozen.apply(input, self.weight)
        return product if self.bias is None else product + self.bias


class _Frozen(Function):
    """x (…, in) float32, weight (out, in) -> (…, out) float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        return functional.linear(x.to(weight.dtype), weight).float()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (grads[0].to(ctx.weight.dtype) @ ctx.weight).float(), None


class _Norm(Function):
    """RMS norm of x (…, n) with a frozen weight (n,), in float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x = x.float()
        rstd = _rstd(x, eps)
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _norm_backward(grads[0] * ctx.saved_tensors[1], ctx.saved_tensors[0], ctx.saved_tensors[2]), None, None


def _rstd(x: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / root mean square of x (…, n), (…, 1)."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_backward(g: torch.Tensor, x: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """The gradient of x, from that of x * rstd; g is overwritten."""
    inner = (g * x).sum(dim=-1, keepdim=True).mul_(rstd.pow(3)).div_(-x.shape[-1])
    return g.mul_(rstd).addcmul_(x, inner)


class Stack:
    """Linear layers that read the same input, with their low-rank updates, as one product.

    All of them lie in one matrix, (out + rank, in + rank):

        W | scale B
        A | 0

    so [x, A x] through its upper rows is the layers' sum with their updates, rounded once, and
    [g, B' g] through its left columns is the gradient of x.
    """

    def __init__(self, members: Sequence[torch.nn.Module]) -> None:
        linear: list[Any] = [getattr(member, "base_layer", member) for member in members]
        adapted: list[Any] = [member for member in members if isinstance(member, LoraLinear)]
        self.dropout = adapted[0].lora_dropout["default"] if adapted else torch.nn.Identity()
        self.wide = linear[0].in_features
        self.outs = [layer.out_features for layer in linear]
        self.high = sum(self.outs)
        self.updates: list[tuple[Any, Any, float, slice, slice]] = []  # A, B, scale, rows of W, place among the ranks
        ranks = sum(member.r["default"] for member in adapted)
        self.matrix = torch.zeros(self.high + ranks, self.wide + ranks, dtype=linear[0].weight.dtype)
        row = rank = 0
        for member, layer in zip(members, linear, strict=True):
            rows = slice(row, row + layer.out_features)
            self.matrix[rows, : self.wide] = layer.weight.detach()
            layer.weight = torch.nn.Parameter(self.matrix[rows, : self.wide], requires_grad=False)  # held once
            if member in adapted:
                wrapped: Any = member
                a, b = wrapped.lora_A["default"].weight, wrapped.lora_B["default"].weight
                self.updates.append((a, b, wrapped.scaling["default"], rows, slice(rank, rank + len(a))))
                rank += len(a)
            row = rows.stop
        biases = [layer.bias for layer in linear]
        self.bias = None
        if any(bias is not None for bias in biases):
            zeros = (torch.zeros(count) for count in self.outs)
            self.bias = torch.cat([z if b is None else b.detach().float() for b, z in zip(biases, zeros, strict=True)])
            self.bias = self.bias.to(self.matrix.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (tokens, in) -> (tokens, out of all layers)."""
        self._refresh()
        product: torch.Tensor = _Product.apply(x, self, *(p for a, b, *_ in self.updates for p in (a, b)))
        return product

    @torch.no_grad()
    def _refresh(self) -> None:
        """Copy the updates into the matrix: the optimizer changes them at every step."""
        for a, b, scale, rows, place in self.updates:
            self.matrix[self.high + place.start : self.high + place.stop, : self.wide] = a
            self.matrix[rows, self.wide + place.start : self.wide + place.stop] = b * scale


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, stack: Stack, *updates: torch.Tensor) -> torch.Tensor:
        matrix, high, wide = stack.matrix, stack.high, stack.wide
        both = _rounded(len(x), matrix.shape[1], matrix.dtype)
        both[: len(x), :wide] = x
        if updates:
            share = getattr(stack.dropout, "p", 0.0) if stack.dropout.training else 0.0
            mask = torch.empty_like(both[:, :wide]).bernoulli_(1 - share).div_(1 - share) if share else None
            seen = both[:, :wide] if mask is None else both[:, :wide] * mask
            both[:, wide:] = seen @ matrix[high:, :wide].T
            ctx.save_for_backward(both, seen, mask)
        ctx.stack = stack
        return functional.linear(both, matrix[:high], stack.bias)[: len(x)]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        stack = ctx.stack
        matrix, high, wide = stack.matrix, stack.high, stack.wide
        count = len(grads[0])
        both = _rounded(count, len(matrix), matrix.dtype)
        both[:count, :high] = grads[0]
        result: list[Any] = []
        mask = None
        if stack.updates:
            x, seen, mask = ctx.saved_tensors
            both[:, high:] = both[:, :high] @ matrix[:high, wide:]
            downs = both[:, high:].T @ seen  # (rank, in)
            ups = both[:, :high].T @ x[:, wide:]  # (out, rank): of each layer, its own rows and columns count
            for _, _, scale, rows, place in stack.updates:
                result += [downs[place].float(), ups[rows, place].float().mul_(scale)]
        dx = None
        if ctx.needs_input_grad[0] and mask is None:
            dx = both @ matrix[:, :wide]
        elif ctx.needs_input_grad[0]:
            dx = both[:, :high] @ matrix[:high, :wide] + (both[:, high:] @ matrix[high:, :wide]).mul_(mask)
        return None if dx is None else dx[:count], None, *result


def _rounded(count: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Room for `count` rows and some zeros after them.

    The library behind torch's products builds and keeps a program for every shape it meets; with the
    rows rounded up there are few shapes, so little is built, and memory does not grow with the steps.
    """
    rows = -(-count // ROWS) * ROWS
    room = torch.empty(rows, width, dtype=dtype)
    room[count:] = 0
    return room


class _Gate(Function):
    """activation(gate) * up of both side by side, (tokens, 2 n) -> (tokens, n)."""

    @staticmethod
    def forward(ctx: Any, both: torch.Tensor, kind: str) -> torch.Tensor:
        gate, up = both.chunk(2, dim=1)
        active = functional.silu(gate) if kind == "silu" else functional.gelu(gate, approximate="tanh")
        ctx.save_for_backward(both, active)
        ctx.kind = kind
        return active * up

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        both, active = ctx.saved_tensors
        gate, up = both.chunk(2, dim=1)
        result = torch.empty_like(both)
        dgate, dup = result.chunk(2, dim=1)
        g = grads[0]
        torch.mul(g, active, out=dup)
        if ctx.kind == "silu":
            torch.ops.aten.silu_backward.grad_input(g * up, gate, grad_input=dgate)
        else:
            torch.ops.aten.gelu_backward.grad_input(g * up, gate, approximate="tanh", grad_input=dgate)
        return result, None


class _Attention(Function):
    """Causal attention with rotary positions over a packed batch; queries and keys may be normed first.

    qkv (tokens, (heads + 2 kv) * size), norm (heads + kv, size) or None, cos and sin (tokens, size / 2)
    -> (tokens, heads * size).
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, heads: int, size: int, norm: torch.Tensor | None, eps: float,
        cos: torch.Tensor, sin: torch.Tensor, layout: tuple[int, int], scale: float, window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        prefix, rows = layout
        tokens, length = len(qkv), (len(qkv) - prefix) // rows
        parts = qkv.view(tokens, -1, size)
        kv = (parts.shape[1] - heads) // 2
        turned = raw = parts[:, : heads + kv].float()
        rstd = None
        if norm is not None:
            rstd = _rstd(raw, eps)
            turned = (raw * rstd).mul_(norm)
        turned = _rotated(turned, cos, sin)
        shape = [rows, length]
        q = turned[prefix:, :heads].unflatten(0, shape).transpose(1, 2)
        pairs = torch.empty(rows, prefix + length, 2 * kv, size)
        pairs[:, prefix:, :kv] = turned[prefix:, heads:].unflatten(0, shape)
        pairs[:, prefix:, kv:] = parts[prefix:, heads + kv :].unflatten(0, shape)
        pairs[:, :prefix, :kv] = turned[:prefix, heads:]
        pairs[:, :prefix, kv:] = parts[:prefix, heads + kv :]
        k, v = pairs[:, :, :kv].transpose(1, 2), pairs[:, :, kv:].transpose(1, 2)
        bias = packing.mask(prefix, length, window)
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = flash(q, k, v, attn_mask=bias, scale=scale)
        result = torch.empty(tokens, heads, size, dtype=qkv.dtype)
        result[prefix:].unflatten(0, shape).copy_(out.transpose(1, 2))
        own: list[Any] = []
        if prefix:
            own = [turned[None, :prefix, :heads].transpose(1, 2), k[:1, :, :prefix], v[:1, :, :prefix]]
            own_bias = packing.mask(0, prefix, window)
            own = [*own, *flash(*own, attn_mask=own_bias, scale=scale), own_bias]
            result[:prefix] = own[3][0].transpose(0, 1)
        ctx.save_for_backward(q, k, v, out, lse, bias, cos, sin, raw if norm is not None else None, norm, rstd, *own)
        ctx.shape = (prefix, rows, length, heads, kv, size, scale)
        return result.view(tokens, heads * size)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        q, k, v, out, lse, bias, cos, sin, raw, norm, rstd, *own = ctx.saved_tensors
        prefix, rows, length, heads, kv, size, scale = ctx.shape
        tokens = prefix + rows * length
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        shape = [rows, length]
        g = grads[0].view(tokens, heads, size).float()
        gs = g[prefix:].unflatten(0, shape).transpose(1, 2)
        dq, dk, dv = flash(gs, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=scale)
        dturned = torch.empty(tokens, heads + kv, size)
        result = torch.empty(tokens, heads + 2 * kv, size, dtype=grads[0].dtype)
        dturned[prefix:, :heads].unflatten(0, shape).copy_(dq.transpose(1, 2))
        dturned[prefix:, heads:].unflatten(0, shape).copy_(dk[:, :, prefix:].transpose(1, 2))
        result[prefix:, heads + kv :].unflatten(0, shape).copy_(dv[:, :, prefix:].transpose(1, 2))
        if prefix:
            *own, own_bias = own
            pq, pk, pv = flash(
                g[None, :prefix].transpose(1, 2), *own, 0.0, False, attn_mask=own_bias, scale=scale
            )  # fmt: skip
            dturned[:prefix, :heads] = pq[0].transpose(0, 1)
            dturned[:prefix, heads:] = (dk[:, :, :prefix].sum(dim=0) + pk[0]).transpose(0, 1)
            result[:prefix, heads + kv :] = (dv[:, :, :prefix].sum(dim=0) + pv[0]).transpose(0, 1)
        back = _rotated(dturned, cos, -sin)
        if norm is not None:
            back = _norm_backward(back.mul_(norm), raw, rstd)
        result[:, : heads + kv] = back
        return result.view(tokens, -1), *[None] * 9


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (tokens, heads, size) float32, turned by its position; cos and sin (tokens, 1, size / 2)."""
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    first, second = x[..., :half], x[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


class _HeadLoss(Function):
    """Weighted sum of the cross-entropies of hidden (n, width) through a frozen head (vocabulary, width).

    A share `smoothing` of each target is spread over the whole vocabulary (Szegedy et al. 2016, section 7). The
    mean of all logits, which that needs, is one product with the head's mean row.

    The gradient is computed on the way, block by block, so (n, vocabulary) logits never exist; the
    exponentials are relative to the running maximum, as in flash attention.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor,
        smoothing: float = 0.0,
    ) -> torch.Tensor:  # fmt: skip
        given = len(hidden)
        h = _rounded(given, hidden.shape[1], head.dtype)
        h[:given] = hidden
        count = len(h)
        targets = functional.pad(targets, (0, count - given))
        weights = functional.pad(weights, (0, count - given))  # what fills up weighs nothing
        largest = torch.full((count,), -torch.inf)
        total, wanted = torch.zeros(count), torch.zeros(count)
        grad = torch.zeros(count, h.shape[1]) if ctx.needs_input_grad[0] else None
        for start in range(0, len(head), BLOCK):
            block = head[start : start + BLOCK]
            logits = h @ block.T
            inside = (targets >= start) & (targets < start + len(block))
            place = (targets - start).clamp_(0, len(block) - 1)[:, None]
            wanted = torch.where(inside, logits.gather(1, place)[:, 0].float(), wanted)
            now = torch.maximum(largest, logits.amax(dim=1).float())
            shrink = (largest - now).exp_()
            shares = logits.sub_(now.to(logits.dtype)[:, None]).exp_()
            total.mul_(shrink).add_(shares.sum(dim=1, dtype=torch.float32))
            if grad is not None:
                grad.mul_(shrink[:, None]).add_(shares @ block)
            largest = now
        aimed = head[targets].float()  # the head's row of a target, and the mean row for what is spread
        if smoothing:
            mean = head.mean(dim=0, dtype=torch.float32)
            wanted = wanted * (1 - smoothing) + h.float() @ mean * smoothing
            aimed.mul_(1 - smoothing).add_(mean, alpha=smoothing)
        if grad is not None:
            ctx.save_for_backward(grad.div_(total[:, None]).sub_(aimed).mul_(weights[:, None])[:given])
        return ((total.log() + largest - wanted) * weights).sum()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        return ctx.saved_tensors[0] * grads[0], None, None, None, None


# Putting them in


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
            loss = _HeadLoss.apply(hidden, core.get_output_embeddings().weight, labels, weights, spread)
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
    mlp.forward = lambda x: last(_Gate.apply(first(x[0]), kind))[None]
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
    wanted, plain = norm(x).float(), x * _rstd(x, eps)
    error, best = min(
        (float((plain * candidate - wanted).norm() / wanted.norm()), k)
        for k, candidate in enumerate((weight, weight + 1))
    )
    return (weight + best, eps) if error < 0.01 else None


def _replace_norm(norm: Any) -> None:
    known = _norm_weight(norm)
    if known is not None:
        weight, eps = known
        norm.forward = lambda x: _Norm.apply(x, weight, eps)


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
        mixed = _Attention.apply(qkv, heads, size, norm, eps, cos, sin, layout, self.scaling, window)
        return out(mixed)[None], None

    module.forward = types.MethodType(forward, module)
