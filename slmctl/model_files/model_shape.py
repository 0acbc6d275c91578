"""The shape of a base, and estimates from it before any stage runs: memory and time of training and
answering.

Sizes of a model in a folder are read from its modules, see `model_size`; the formulas are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Training = Literal["fast", "packed", "slow"]

# Time and activation memory of a step with 768 tokens, relative to the fast layers. Measured on one
# thread, with LoRA of rank 16 on all linear layers of a model of SmolLM2-135M's shape.
TIME = {"fast": 1.0, "packed": 1.2, "slow": 2.1}
ACTIVATIONS = {"fast": 1.0, "packed": 2.3, "slow": 3.3}
# Core seconds of a computed token outside of matrix products, per element of its layers' widths and
# its logits: 30 to 36e-9 were measured with SmolLM2-135M and gemma-3-270m. And the share of tokens
# that are learned, which alone have logits: those of a label after a question.
ELEMENT_SECONDS = 32e-9
ANSWER_SHARE = 0.2
# of a process that has loaded torch and transformers, with thread pools and tokenizer
LOADED_BYTES = 0.48e9
# of one that has loaded the training libraries too, and of the optimizer's code
PROCESS_BYTES = 0.63e9
# tokens computed at once when answering, and states (hidden + widest) held of each
STATE_TOKENS, STATES = 2048, 6
# share of linear layers' inputs and outputs that is kept: layers with one input keep it once
DISTINCT = 0.85
# Tokens computed at once on a CPU: enough for full products, little enough for the cache; and where
# memory is short.
PIECE_TOKENS, LEAST_PIECE_TOKENS = 768, 128
# Each piece computes the shared prefix again. So that this stays a small part of the work, a piece
# may be larger by so many times its prefix: with 400 tokens shared, 16 records of 60 more are one
# piece.
PREFIX_ALLOWANCE = 2
# Prompts that an HF model answers together, and the most tokens of them whose keys and values are
# held.
ANSWERED_TOGETHER, HELD_TOKENS = 64, 8192
LABEL_LOGITS = 1 << 25  # logits held at once, about, when an untuned base scores every label
RANK = 16  # of the adapter
BYTES_IN_4BIT = 0.53  # of a frozen weight with its share of a scale
TRAINED_BYTES = 20  # of a trained weight: itself, its gradient, two moments, its best value so far


def piece_budget(prefix: int, limit: int = PIECE_TOKENS) -> int:
    """Number of tokens that a piece may compute, with a shared prefix of `prefix` tokens.

    A `limit` below PIECE_TOKENS, for little memory, lowers the prefix's allowance too; one above
    does not raise it.
    """
    return limit + PREFIX_ALLOWANCE * prefix * min(limit, PIECE_TOKENS) // PIECE_TOKENS


@dataclass(frozen=True)
class TrainedSizes:
    """Sizes of a model, in elements.

    Attributes:
        linear: Weights of the linear layers below the head.
        lookup: Weights of the embeddings, and of the head where it has its own.
        other: All other weights: norms, convolutions, experts.
        channels: Inputs and outputs of all linear layers that a token passes, the head left out.
        layers, hidden, widest: Number of layers, widths of the residual stream and of the widest
            linear layer.
        mapped: Embeddings and head stay in their file, which is in bfloat16.
    """

    linear: int
    lookup: int
    other: int
    channels: int
    layers: int
    hidden: int
    widest: int
    mapped: bool

    def frozen_bytes(self, width: int, *, in_4bit: bool) -> int:
        """Bytes of the base's weights, with `width` bytes for each in a product.

        In 4 bits, linear layers are dequantised for their product.
        """
        weights = (
            width * (self.linear + (0 if self.mapped and width == 2 else self.lookup))
            + 4 * self.other
        )
        if in_4bit:  # and one dequantised matrix: the widest, with its neighbour of the same input
            weights += (
                int((BYTES_IN_4BIT - width) * self.linear) + width * 2 * self.widest * self.hidden
            )
        return weights

    def activation_bytes(self, width: int, tokens: int) -> int:
        """Bytes saved for the backward pass by `tokens` computed at once.

        A layer saves the residual stream and the inputs of its norms in float32, and its products'
        inputs and outputs.
        """
        saved = 4 * 4 * self.hidden * self.layers + width * DISTINCT * self.channels
        return int(tokens * (saved + 8 * 4 * (self.widest + self.hidden)))

    def adapter_bytes(self, rank: int) -> int:
        """Bytes of the trained weights, with gradients, optimizer state and best values."""
        return TRAINED_BYTES * rank * self.channels


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a base that its training on a CPU depends on.

    Attributes:
        parameters: All weights; for a base with vision or audio towers, of its text model.
        embedding: Weights in embeddings and the output head, which few tokens are multiplied with.
        layers, hidden, intermediate: Number of layers, and widths of the residual stream and of the
            MLP.
        training: How `finetune` trains it on a CPU.
        copied: Embeddings are held in memory, since their file is not in bfloat16; a GGUF file's
            are dequantised.
        cache: Elements of a token's keys and values in all layers. 0 if unknown, then estimated by
            the width of the residual stream: the catalogue's bases have half to twice that.
    """

    parameters: int
    embedding: int
    layers: int
    hidden: int
    intermediate: int
    training: Training
    copied: bool
    cache: int = field(default=0, kw_only=True)

    @property
    def kept_cache(self) -> int:
        """`cache`, or an estimate of it."""
        return self.cache or self.layers * self.hidden

    @property
    def channels(self) -> int:
        """Inputs and outputs of all linear layers: the weights of an adapter of rank 1."""
        return self.layers * (9 * self.hidden + 3 * self.intermediate) + self.kept_cache

    def training_bytes(
        self, weight_bytes: int, piece_tokens: int = PIECE_TOKENS, *, in_4bit: bool = False
    ) -> int:
        """Estimated peak memory of `finetune` on a CPU.

        Args:
            weight_bytes: Bytes of a weight in a product.
            piece_tokens: Tokens computed at once.
            in_4bit: Frozen weights are held in 4 bits, and dequantised for their product.
        """
        sizes = TrainedSizes(
            linear=self.parameters - self.embedding,
            lookup=self.embedding,
            other=0,
            channels=self.channels,
            layers=self.layers,
            hidden=self.hidden,
            widest=self.intermediate,
            mapped=not self.copied,
        )
        weights = sizes.frozen_bytes(weight_bytes, in_4bit=in_4bit) + sizes.adapter_bytes(RANK)
        activations = ACTIVATIONS[self.training] * sizes.activation_bytes(
            weight_bytes, piece_tokens
        )
        return int(PROCESS_BYTES + weights + activations)

    def answering_bytes(self, prompt_tokens: int, *, whole_labels: bool) -> int:
        """Estimated peak memory of answering on a CPU with a float32 copy of the weights.

        Args:
            prompt_tokens: Of one prompt, with the examples in it.
            whole_labels: Every label is scored.
        """
        held = min(ANSWERED_TOGETHER * prompt_tokens, HELD_TOKENS)
        logits = LABEL_LOGITS if whole_labels else ANSWERED_TOGETHER * self.embedding // self.hidden
        states = STATE_TOKENS * STATES * (self.hidden + self.intermediate)
        # and a copy
        return int(
            LOADED_BYTES + 4 * (self.parameters + states + logits + 2 * held * self.kept_cache)
        )

    def training_seconds(
        self, gflops: float, cores: int, *, rows: int = 1000, tokens: float = 64
    ) -> float:
        """Estimated time of an epoch of `finetune` on a CPU.

        A product with a frozen weight takes 2 operations a weight and token forward, and 2 for the
        gradient of its input.

        Args:
            gflops: Measured rate of matrix products, in GFLOP/s of all cores.
            cores: Cores that share the work outside of products.
            tokens: Tokens computed for a row, without the prefix that it shares with others.
        """
        vocabulary = self.embedding / self.hidden
        products = 4 * (self.parameters - (1 - ANSWER_SHARE) * self.embedding) / (gflops * 1e9)
        elements = self.layers * (self.hidden + self.intermediate) + ANSWER_SHARE * vocabulary
        rest = ELEMENT_SECONDS / cores * elements
        return rows * tokens * TIME[self.training] * (products + rest)
