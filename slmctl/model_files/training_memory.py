"""The memory of a training on a CPU, from the sizes of a model: what its weights, activations and adapter take."""

from __future__ import annotations

from dataclasses import dataclass

BYTES_IN_4BIT = 0.53  # of a frozen weight with its share of a scale
TRAINED_BYTES = 20  # of a trained weight: itself, its gradient, two moments, its best value so far


@dataclass(frozen=True)
class TrainedSizes:
    """Sizes of a model, in elements.

    Attributes:
        linear: Weights of the linear layers below the head.
        lookup: Weights of the embeddings, and of the head where it has its own.
        other: All other weights: norms, convolutions, experts.
        channels: Inputs and outputs of all linear layers that a token passes, the head left out.
        layers, hidden, widest: Number of layers, widths of the residual stream and of the widest linear layer.
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
        """Bytes of the base's weights; a product takes `width` bytes of each.

        In 4 bits, linear layers are made whole for their product.
        """
        weights = width * (self.linear + (0 if self.mapped and width == 2 else self.lookup)) + 4 * self.other
        if in_4bit:  # and one matrix made whole: the widest, with its neighbour of the same input
            weights += int((BYTES_IN_4BIT - width) * self.linear) + width * 2 * self.widest * self.hidden
        return weights

    def activation_bytes(self, width: int, tokens: int, *, distinct: float = 1.0) -> int:
        """Bytes that so many tokens computed at once leave for the backward pass.

        A layer keeps the residual stream and the inputs of its norms in float32, and what its products read and give.

        Args:
            distinct: Share of what products read and give: those that read the same input may keep it once.
        """
        saved = 4 * 4 * self.hidden * self.layers + width * distinct * self.channels
        return int(tokens * (saved + 8 * 4 * (self.widest + self.hidden)))

    def adapter_bytes(self, rank: int) -> int:
        """Bytes of the trained weights, with what the optimizer holds of them."""
        return TRAINED_BYTES * rank * self.channels
