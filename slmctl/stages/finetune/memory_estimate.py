"""Estimate of the memory that a training on a CPU will take, before it starts."""

from __future__ import annotations

from pathlib import Path

from slmctl import hardware
from slmctl.config import FinetuneConfig
from slmctl.model_files import memory, model_size

TOO_LARGE = "a smaller base, --set finetune.max_length=N with finetune.too_long=truncate, or a machine with more"
IN_4BIT = "--set finetune.load_in_4bit=true, "
FIXED_BYTES = 150e6  # optimizer code, thread pools, tokenized records
DISTINCT = 0.85  # of what linear layers read and give: those that read the same input keep it once


def hint(config: FinetuneConfig) -> str:
    """Hint for a training that does not fit."""
    return TOO_LARGE if config.load_in_4bit else IN_4BIT + TOO_LARGE


def estimate_bytes(folder: Path, config: FinetuneConfig, tokens: int, keys: int = 0) -> int:
    """Estimated peak of this process in bytes: what it holds now, weights, activations for backward, adapter.

    Args:
        folder: The base.
        tokens: Tokens of the largest batch computed at once, see `batches.largest_piece`.
        keys: Tokens attended to in it, if more.
    """
    memory.trim_heap()  # an earlier stage of this process may have left much that is free, and will be used again
    model = model_size.read(folder)
    width = 2 if config.matmul_dtype == "bfloat16" else 4  # bytes of an element in a product
    activations = model.activation_bytes(width, tokens, distinct=DISTINCT)
    activations += 4 * max(keys - tokens, 0) * model.cache  # keys and values of the prefix, before each record
    activations *= 4 if config.lora.dora else 1  # PEFT's own layers keep more
    weights = model.frozen_bytes(width, in_4bit=config.load_in_4bit) + model.adapter_bytes(config.lora.rank)
    return int(hardware.held_bytes() + FIXED_BYTES + weights + activations)
