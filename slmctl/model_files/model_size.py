"""Sizes of a model of transformers, by its config alone, and the
memory that computing with it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from slmctl import hardware
from slmctl.model_files import hf_folder, safetensors_header, stored_weights
from slmctl.model_files.model_shape import STATES, TrainedSizes

FIXED_BYTES = 150_000_000  # thread pools, tokenizer, records


@dataclass(frozen=True)
class ModelSize(TrainedSizes):
    """Sizes of a model in a folder, in elements.

    Attributes:
        cache: Keys and values that a token leaves in all layers.
        cast: Most elements that `stored_weights` casts to float32 at a time.
        vocabulary: Tokens with weights.
        halves: Most weights in the files have 16 bits.
        widened: `stored_weights` cannot keep this model in 16 bits.
    """

    cache: int
    cast: int
    vocabulary: int
    halves: bool
    widened: bool

    @property
    def weights(self) -> int:
        return self.linear + self.lookup + self.other

    def stored_bytes(self, tokens: int, *, kept: int = 0) -> int:
        """Estimated peak of a process that computes with `stored_weights`, memory held now
        included.

        Args:
            tokens: Tokens computed at once.
            kept: Positions whose logits are kept at once.
        """
        weights = 4 * (self.weights if self.widened else self.cast) if self.halves else 0
        return self._computing_bytes(weights, tokens, kept)

    def copied_bytes(self, tokens: int, *, kept: int = 0) -> int:
        """Estimated peak of a process that computes with a float32
        copy of the weights, in the same way.
        """
        return self._computing_bytes(4 * self.weights if self.halves else 0, tokens, kept)

    def _computing_bytes(self, weights: int, tokens: int, kept: int) -> int:
        states = 4 * tokens * STATES * (self.hidden + self.widest)
        return hardware.held_bytes() + FIXED_BYTES + weights + states + 4 * kept * self.vocabulary


def read(folder: Path) -> ModelSize:
    """Sizes of the model in a folder.

    Raises:
        DataError: Its config describes no model.
    """
    model: Any = hf_folder.empty_model(folder)
    config = model.config.get_text_config()
    head, layers = model.get_output_embeddings(), config.num_hidden_layers
    active = getattr(config, "num_experts_per_tok", None) or 1
    seen: set[int] = set()
    linear = lookup = other = channels = widest = cast = 0
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            count = 0 if id(parameter) in seen else parameter.numel()
            seen.add(id(parameter))
            if module is head or isinstance(module, torch.nn.Embedding):
                lookup += count
            elif isinstance(module, torch.nn.Linear):
                linear += count
            else:
                other += count
            if not isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                cast = max(cast, parameter.numel())
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            rows, columns = module.weight.shape
            channels += rows + columns
            widest = max(widest, rows, columns)
        experts = [p for p in module.parameters(recurse=False) if p.dim() == 3 and len(p) > active]
        channels += sum(active * sum(parameter.shape[1:]) for parameter in experts)
    cast = max(cast, min(stored_weights.BLOCK_ELEMENTS, max(linear, lookup)))
    cached = sum(
        module.out_features
        for name, module in model.named_modules()
        if name.endswith(("k_proj", "v_proj"))
    )
    most = safetensors_header.main_type(folder)
    return ModelSize(
        linear=linear,
        lookup=lookup,
        other=other,
        channels=channels,
        cache=cached or 2 * config.hidden_size * layers,
        widest=max(widest, config.hidden_size),
        cast=cast,
        mapped=most == "BF16",
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        layers=layers,
        halves=most in ("BF16", "F16"),
        widened=config.model_type in stored_weights.UNSUPPORTED_MODELS,
    )
