"""The section `finetune.lora` -> PEFT's settings for a base."""

from __future__ import annotations

from peft import LoraConfig

from slmctl.config import FinetuneConfig


def lora_config(config: FinetuneConfig) -> LoraConfig:
    """The section `finetune.lora` as PEFT takes it."""
    lora = config.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )
