"""Conditions and cost of tuning an encoder; imports nothing heavy."""

from __future__ import annotations

import math
from pathlib import Path

from slmctl.model_files import encoder_source, safetensors_header

FEWEST = 40  # validation rows that judge a tuned encoder
PASSES, PASSES_WHOLE = 4, 2  # over the training rows; then over these and the validation rows
# weights times tokens: three minutes of two cores, on which MiniLM-L6 learns TOKENS_A_SECOND
WORK = 4.8e12
TOKENS_A_SECOND, MOST_SECONDS = 2800, 170
STEP_SECONDS, STEP_ROWS = 0.05, 16  # of a step beside its tokens, on two cores
# steps that are enough for a tagger; most passes, and work
TAG_STEPS, TAG_PASSES = 1500, 20
TAG_WORK = 3.4 * WORK
TAG_WINDOW = 180  # tokens that a tagger reads at once
LARGEST = 150e6  # weights: of larger encoders WORK allows too few steps
# of a weight that learns, its gradient, two moments and copy; of torch
WEIGHT_BYTES, BASE_BYTES = 20, 0.8e9
POOLINGS = ("mean", "cls")  # by which vectors of tokens are learned through


def obstacle(folder: Path) -> str:
    """The reason why an encoder stays frozen, in words; '' where it can be tuned.

    Args:
        folder: The folder that its ONNX file was made of; it need not exist.
    """
    if not folder.is_dir():
        return "an ONNX file cannot learn"
    if (weights := safetensors_header.parameter_count(folder)) > LARGEST:
        return f"{weights / 1e6:.0f} million weights are too many for minutes of a CPU"
    if encoder_source.pooling(folder) not in POOLINGS:
        return "its vectors are neither the mean of those of a text's tokens nor that of the first"
    return ""


def tagging_seconds(rows: float, tokens: float, weights: float) -> float:
    """Estimate of the time in which a tagger learns rows of so many tokens each."""
    steps = max(1.0, rows * max(1.0, tokens / TAG_WINDOW) / STEP_ROWS)
    steps *= min(TAG_PASSES, math.ceil(TAG_STEPS / steps))
    learned = steps * STEP_ROWS * min(tokens, TAG_WINDOW) * weights / 23e6
    return min(learned / TOKENS_A_SECOND, MOST_SECONDS * TAG_WORK / WORK)


def memory_bytes(weights: float) -> int:
    """Estimate of the peak of tuning an encoder of so many weights."""
    return int(BASE_BYTES + WEIGHT_BYTES * weights)
