"""Estimate of the memory that a training on a CPU will take, before it starts."""

from __future__ import annotations

from pathlib import Path

from slmctl import hardware
from slmctl.config import FinetuneConfig
from slmctl.model_files import catalogue, memory, model_size

TOO_LARGE = "a smaller base, --set finetune.max_length=N with finetune.too_long=truncate, or a machine with more"
IN_4BIT = "--set finetune.load_in_4bit=true, "
FIXED_BYTES = 150e6  # optimizer code, thread pools, tokenized records
DISTINCT = 0.85  # of what linear layers read and give: those that read the same input keep it once
TRAINED_BYTES = 20  # of a trained weight: itself, its gradient, two moments, its best value so far


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
    mapped = model.halves == "BF16" and width == 2  # embeddings and head stay in the file
    weights = width * (model.linear + (0 if mapped else model.lookup)) + 4 * model.other
    if config.load_in_4bit:  # and one matrix made whole: the widest, with its neighbour of the same input
        weights += int((catalogue.BYTES_IN_4BIT - width) * model.linear) + width * 2 * model.widest * model.hidden
    # a layer keeps the residual stream and the inputs of its norms in float32, and what its products read and give
    saved = 4 * 4 * model.hidden * model.layers + width * DISTINCT * model.channels
    activations = tokens * (saved + 8 * (4 * model.widest + 4 * model.hidden))
    activations += 4 * max(keys - tokens, 0) * model.cache  # keys and values of the prefix, before each record
    activations *= 4 if config.lora.dora else 1  # PEFT's own layers keep more
    adapter = TRAINED_BYTES * config.lora.rank * model.channels
    return int(hardware.held_bytes() + FIXED_BYTES + weights + adapter + activations)
