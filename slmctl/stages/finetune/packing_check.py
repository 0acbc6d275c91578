"""Decide if a model computes each record of a packed batch as it computes that record alone."""

from __future__ import annotations

from typing import Any

import torch

from slmctl.stages.finetune import packing

# Largest accepted relative change of a hidden state. Rounding changes it by about 0.01, attending to another
# record by about 1.
MAX_STATE_CHANGE = 0.25


@torch.no_grad()
def supports_packing(model: Any) -> bool:
    """True if a model computes each record of a packed batch as it computes that record alone.

    Models that mix tokens by other means than attention (convolutions, recurrent layers) do not, nor do those
    that bypass transformers' attention interface.
    """
    core = core_model(model)
    trunk, own = core.base_model, core.config._attn_implementation
    batch = probe_batch(trunk)
    prefix, ids = batch["layout"][0], batch["input_ids"][0]
    last = ids[-10:]
    alone = trunk(input_ids=torch.cat([ids[:prefix], last])[None], use_cache=False).last_hidden_state[0, prefix:]
    core.config._attn_implementation = packing.ATTENTION_NAME
    try:
        packed = trunk(**batch).last_hidden_state[0, -len(last) :]
    except (TypeError, ValueError, NotImplementedError):  # the model takes no `layout`
        return False
    finally:
        core.config._attn_implementation = own
    change = (packed.float() - alone.float()).norm(dim=1) / alone.float().norm(dim=1)
    return bool(change.max() < MAX_STATE_CHANGE)


def core_model(model: Any) -> Any:
    """The model under its adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def probe_batch(trunk: Any) -> dict[str, Any]:
    """A small packed batch: two records of 10 arbitrary tokens after a shared prefix of 6."""
    count = min(trunk.get_input_embeddings().weight.shape[0], 1000)
    ids = torch.arange(3, 3 + 26).remainder(count)[None]
    positions = torch.cat([torch.arange(6), torch.arange(6, 16), torch.arange(6, 16)])[None]
    return {"input_ids": ids, "position_ids": positions, "layout": (6, 2), "use_cache": False}
