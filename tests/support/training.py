"""Small random models under random adapters, records for them, and the loss and gradients that each
record gives alone.

`trained` is a training of the tiny project in this process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import get_peft_model

from slmctl.artifacts.artifact import Artifact
from slmctl.config import FinetuneConfig
from slmctl.stages.finetune import finetune, lora_targets, packing
from slmctl.stages.finetune.packing import IGNORED

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def trained(
    artifacts: dict[str, Artifact], out: Path, keep: Path | None = None, **given: Any
) -> dict[str, Any]:
    """Train the tiny base into a new folder; the metrics."""
    out.mkdir(parents=True)
    settings = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 16, "lora": {"rank": 4}, **given}
    return finetune.run(
        FinetuneConfig.model_validate(settings),
        base=artifacts["base"],
        prepared=artifacts["prepared"],
        out=out,
        keep=keep or out.with_name(f"keep-{out.name}"),
    )


def adapted(
    kind: str, settings: dict[str, Any], lora: dict[str, Any] | None = None, *, wild: float = 1.0
) -> Any:
    """A random model under a random adapter; the same arguments give the same weights, the less
    `wild` the tamer.

    Without any wildness the base is as its class makes it.
    """
    torch.manual_seed(0)
    given = SIZES | settings
    if not wild:
        del given["initializer_range"]
    config = getattr(transformers, kind)(**given)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.add_(torch.randn_like(parameter) * 2 * wild)  # large, as Gemma's are
        if name.endswith("bias") and wild:
            parameter.data.normal_(std=0.3 * wild)
    shape = {"rank": 4, "alpha": 8} | (lora or {})
    model = get_peft_model(
        model, lora_targets.lora_config(FinetuneConfig.model_validate({"lora": shape}), model)
    )
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def in_bfloat16(model: Any) -> Any:
    """The model with its frozen weights as `finetune` loads them where products are in bfloat16."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model


def some_rows() -> list[Any]:
    """Records of different lengths that open with the same tokens; one answer token weighs less."""
    choose = torch.Generator().manual_seed(3)
    head = torch.randint(3, 300, (5,), generator=choose).tolist()
    rows = []
    for length in (20, 24, 31):
        ids = head + torch.randint(3, 300, (length - 5,), generator=choose).tolist()
        weights = [0.0] * (length - 4) + [1.0, 1.0, 0.5, 1.0]
        rows.append(
            {"input_ids": ids, "labels": [IGNORED] * (length - 4) + ids[-4:], "weights": weights}
        )
    return rows


def plain_loss(model: Any, rows: list[Any], smoothing: float = 0.0) -> Any:
    """Each record alone, all its logits, by transformers and PEFT."""
    total = torch.zeros(())
    for row in rows:
        logits = (
            model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False)
            .logits[0, :-1]
            .float()
        )
        wanted, weights = torch.tensor(row["labels"])[1:], torch.tensor(row["weights"])[1:]
        losses = torch.nn.functional.cross_entropy(
            logits, wanted, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
        )
        total = total + (losses * weights).sum()
    return total


def packed_loss(model: Any) -> Any:
    batch = packing.pack(some_rows())
    assert batch["layout"] == (5, 3)
    return model(**batch).loss


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(
    plain: Any,
    fast: Any,
    loss: Any = packed_loss,
    near: float = 5e-4,
    rows: list[Any] | None = None,
) -> None:
    """Both models' losses and gradients are equal; `loss` gives that
    of the fast one. 3.2e-4 were seen.
    """
    wanted, got = plain_loss(plain, rows or some_rows()), loss(fast)
    torch.testing.assert_close(got, wanted, rtol=near, atol=0)
    assert_same_gradients(gradients(plain, wanted), gradients(fast, got), near)


def assert_same_gradients(wanted: dict[str, Any], got: dict[str, Any], near: float) -> None:
    """Each is near enough by itself: those of queries and keys are small beside the others."""
    assert got.keys() == wanted.keys()
    off = {name: float((got[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted}
    assert max(off.values()) < near, {name: error for name, error in off.items() if error >= near}
