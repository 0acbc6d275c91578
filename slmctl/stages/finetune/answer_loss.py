"""The loss on the answers of a batch, packed or padded, with logits at the places that predict them
only.

With a plain output head the logits are computed block by block of the vocabulary and never held as
a whole: in float32 those of one batch can take more memory than the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional
from transformers.utils import ModelOutput

from slmctl.stages.finetune import label_loss, packing
from slmctl.stages.finetune.cpu_kernels import padded
from slmctl.stages.finetune.packing_check import core_model, probe_batch

VOCABULARY_BLOCK = 16384  # rows of the head computed at a time
PROBE_TOKENS = 16


@dataclass
class AnswerLoss(ModelOutput):  # type: ignore[misc]
    """The loss of a batch.

    Attributes:
        loss: The weighted sum of the cross-entropies of its answer tokens.
        losses: The weighted cross-entropy of each answer token (N,), record after record; without a
            gradient.
    """

    loss: torch.Tensor | None = None
    losses: torch.Tensor | None = None


def install(model: Any, smoothing: float = 0.0) -> None:
    """Replace a model's forward, so that `model(**batch)` returns an AnswerLoss.

    Args:
        model: With or without an adapter; for packed batches, its attention is
            `packing.ATTENTION_NAME` already.
        smoothing: Label smoothing, while the model is in training mode.
    """
    core = core_model(model)
    trunk, own_forward = core.base_model, core.forward
    plain_head = is_plain_head(core, trunk)
    # (width,), of the head's rows; kept, since the head is frozen
    mean_row: torch.Tensor | None = None

    def forward(
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        keep: torch.Tensor,
        layout: Any = None,
        attention_mask: Any = None,
        columns: int = 0,
        choices: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> AnswerLoss:
        nonlocal mean_row
        spread = smoothing if core.training else 0.0
        kind = {"attention_mask": attention_mask} if layout is None else {"layout": layout}
        where = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False, **kind}
        if plain_head:
            states = trunk(**where).last_hidden_state
            hidden = states.flatten(0, 1)[keep]  # (N, width)
            head = core.get_output_embeddings().weight
            if spread and mean_row is None:
                mean_row = head.mean(dim=0, dtype=torch.float32)
            losses: torch.Tensor = BlockwiseCrossEntropy.apply(
                hidden, head, labels, weights, spread, mean_row
            )
            if choices:
                rows = head[choices["alphabet"]].float()
                losses = label_loss.mixed(losses, hidden.float() @ rows.T, weights, choices)
        else:
            if layout is None:
                logits = _last_columns(own_forward, where, keep, columns)
            else:
                logits = own_forward(**where, logits_to_keep=keep).logits[0].float()
            losses = weights * functional.cross_entropy(
                logits, labels, reduction="none", label_smoothing=spread
            )
            if choices:
                among = logits[:, choices["alphabet"]]
                losses = label_loss.mixed(losses, among, weights, choices)
        return AnswerLoss(loss=losses.sum(), losses=losses.detach())

    core.forward = forward


def _last_columns(
    forward: Any, where: dict[str, Any], keep: torch.Tensor, columns: int
) -> torch.Tensor:
    """Logits (N, V) at the places `keep` of a left-padded batch, the head computed for its last
    columns only.

    All answers end in the last column, so the model's own `logits_to_keep` limits the head to the
    longest answer, whatever the architecture does after it.
    """
    length = where["input_ids"].shape[1]
    logits: torch.Tensor = forward(**where, logits_to_keep=columns).logits
    logits = logits[:, -columns:]  # a model that ignores the argument returns all columns
    place = keep % length - (length - columns)
    return logits[keep // length, place].float()


@torch.no_grad()
def is_plain_head(core: Any, trunk: Any) -> bool:
    """True if the logits are a frozen head's product with the trunk's
    states, without scale or soft cap.
    """
    head = core.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None or head.weight.requires_grad:
        return False  # such as a head with a LoRA update
    if getattr(core.config, "final_logit_softcapping", None):
        return False  # a cap does not show on the small logits of the probe
    probe = probe_batch(trunk)
    if core.config._attn_implementation != packing.ATTENTION_NAME:
        ids = probe["input_ids"][:, :PROBE_TOKENS].to(head.weight.device)
        probe = {"input_ids": ids, "use_cache": False}
    try:
        logits = core(**probe).logits[0].float()
        own = head(trunk(**probe).last_hidden_state[0]).float()
        largest = float(own.abs().max())
        return torch.allclose(logits, own, rtol=0.02, atol=0.02 * largest)
    # another way from hidden states to logits
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False


class BlockwiseCrossEntropy(Function):
    """Weighted cross-entropies (N,) of hidden (N, width) through a frozen head (V, width).

    The gradient is computed on the way, block by block of the vocabulary, so logits (N, V) never
    exist; the exponentials are relative to the running maximum, as in flash attention (Dao et al.
    2022).

    With label smoothing (Szegedy et al. 2016, section 7) a share `smoothing` of each target is
    spread over the vocabulary. The mean of all logits, which that needs, is one product with the
    head's mean row, `mean` (width,).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        smoothing: float = 0.0,
        mean: torch.Tensor | None = None,
    ) -> torch.Tensor:
        spread = None
        if smoothing:
            if mean is None:
                mean = head.mean(dim=0, dtype=torch.float32)
            spread = (smoothing, mean)
        needs = ctx.needs_input_grad[0]
        with torch.autocast(hidden.device.type, enabled=False):
            losses, grad = _blockwise(hidden, head, targets, weights, spread, with_gradient=needs)
        if grad is not None:
            ctx.save_for_backward(grad)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        return ctx.saved_tensors[0] * grads[0][:, None], *[None] * 5


def _blockwise(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    spread: tuple[float, torch.Tensor] | None,
    *,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns (losses (N,), gradient of their sum with respect to hidden (N, width), float32, or
    None).

    Args:
        spread: The label smoothing, and the head's mean row (width,).
    """
    positions, device = len(hidden), hidden.device
    h = padded(hidden, head.dtype)  # (count, width)
    count = len(h)
    targets = functional.pad(targets, (0, count - positions))
    weights = functional.pad(weights, (0, count - positions))  # padding weighs nothing
    largest = torch.full((count,), -torch.inf, device=device)
    total, target_logits = torch.zeros(2, count, device=device).unbind()
    grad = torch.zeros(count, h.shape[1], device=device) if with_gradient else None
    for start in range(0, len(head), VOCABULARY_BLOCK):
        block = head[start : start + VOCABULARY_BLOCK]
        logits = h @ block.T  # (count, block)
        inside, here = _in_block(logits, targets - start)
        target_logits = torch.where(inside, here, target_logits)
        now = torch.maximum(largest, logits.amax(dim=1).float())
        shrink = (largest - now).exp_()
        shares = logits.sub_(now.to(logits.dtype)[:, None]).exp_()
        total.mul_(shrink).add_(shares.sum(dim=1, dtype=torch.float32))
        if grad is not None:
            grad.mul_(shrink[:, None]).add_(shares @ block)
        largest = now
    target_rows = head[targets].float()  # (count, width)
    if spread:
        smoothing, mean = spread
        mean_logits = h.float() @ mean
        target_logits = target_logits * (1 - smoothing) + mean_logits * smoothing
        target_rows.mul_(1 - smoothing).add_(mean, alpha=smoothing)
    losses = total.log() + largest - target_logits
    if grad is not None:
        difference = grad.div_(total[:, None]).sub_(target_rows)
        grad = difference.mul_(weights[:, None])[:positions]
    return (losses * weights)[:positions], grad


def _in_block(logits: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (True where a target lies in a block, the target's logit there), each (count,).

    Args:
        logits: Of the block (count, block).
        places: The targets, counted from the begin of the block.
    """
    size = logits.shape[1]
    inside = (places >= 0) & (places < size)
    nearest = places.clamp(0, size - 1)[:, None]
    return inside, logits.gather(1, nearest)[:, 0].float()
