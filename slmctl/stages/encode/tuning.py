"""A sentence encoder and the head on it -> both tuned: the layers' weights learn the labels of the
training rows.

Cross entropy, from the logistic regression on frozen vectors. The table of tokens stays: it is half
of a small encoder, and the validation rows are as likely without its change. In
`benchmarks/tuned_encoder.py` the tuned encoder had more right answers than the frozen one on all
four data sets. The work is bounded, not the passes, so that the time is known: of many rows, or of
a large encoder, fewer steps.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmctl import console
from slmctl.config import resolve_matmul_dtype
from slmctl.metrics.encoder_head import EncoderHead
from slmctl.model_files import encoder_source, hf_folder, memory, safetensors_header
from slmctl.model_files.encoder_source import WEIGHTS
from slmctl.stages.encode import tuning_bounds
from slmctl.stages.encode.tuning_bounds import PASSES, WORK

BATCH, DECAY = 16, 0.01
# of the encoder, with FEW rows a label; that of the head is so many times as high
RATE, OF_HEAD = 1.25e-4, 10
# the rate grows by this power of the rows a label, up to so many times
FEW = 20
GROWTH, MOST = 0.25, 1.6
WARMUP = 0.1  # of the steps
# batches' rows that are sorted by length before they are dealt: padding costs as much as text
SORTED = 16
# padded tokens computed at once: attention holds the square of the longest text for each text
TOGETHER = 1024
LONGEST = 512  # tokens that count of a text, as where the encoder answers
SEED = 0


def tune(
    folder: Path,
    texts: Sequence[str],
    labels: Sequence[str],
    head: EncoderHead,
    out: Path,
    passes: int,
) -> EncoderHead:
    """Tune an encoder and its head on the CPU, and write the encoder as another model folder;
    returns the head.

    Args:
        folder: The encoder's model folder, see `encoder_source.kept`.
        texts, labels: The rows; every label is one of the head's.
        out: The folder to write, which does not exist.
        passes: Over the rows, see `steps_of`.

    Raises:
        DataError: transformers cannot load the encoder.
        FullError: The memory is not enough.
    """
    model, tokenizer = opened(folder, out, hint="encode: {tune: false}")
    # of RoBERTa the first position is 2
    longest = int(min(hf_folder.context_of(folder) - 2, LONGEST))
    # control tokens that a text spells out are read as text, as where the encoder answers
    tokens = tokenizer(list(texts), truncation=True, max_length=longest, split_special_tokens=True)[
        "input_ids"
    ]
    places = torch.tensor([head.labels.index(label) for label in labels])
    weights = torch.nn.Parameter(torch.tensor(head.weights))
    bias = torch.nn.Parameter(torch.tensor(head.bias))
    steps = steps_of(model, tokens, passes)
    first = encoder_source.pooling(folder) == "cls"
    # few passes more change little of what is learned
    rate = _rate(len(texts) / len(head.labels)) * passes / PASSES
    model.requires_grad_(False)
    layers = [weight.requires_grad_() for weight in layers_of(model)]
    groups: list[dict[str, Any]] = [
        {"params": layers},
        {"params": [weights, bias], "lr": OF_HEAD * rate},
    ]
    optimizer = torch.optim.AdamW(groups, rate, weight_decay=DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_rate(step, steps))
    narrow = resolve_matmul_dtype("auto") == "bfloat16"
    with console.progress("tune", steps, "steps") as meter:
        for batch, _ in zip(batches([len(each) for each in tokens]), range(steps), strict=False):
            some = max(1, TOGETHER // max(len(tokens[k]) for k in batch))
            for piece in _parts(batch, some):
                padded, mask = padded_rows([tokens[k] for k in piece], tokenizer.pad_token_id or 0)
                with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                    states = model(input_ids=padded, attention_mask=mask).last_hidden_state
                scores = pooled(states.float(), mask, first=first) @ weights.T + bias
                loss = torch.nn.functional.cross_entropy(scores, places[piece], reduction="sum")
                (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            meter.advance(1)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    hf_folder.save(state, out / WEIGHTS)
    return EncoderHead(head.labels, weights.detach().numpy(), bias.detach().numpy())


def opened(folder: Path, out: Path, *, hint: str) -> tuple[Any, Any]:
    """Returns (an encoder to tune, its tokenizer), and copies its folder without the weights.

    Args:
        hint: What to do if the memory is not enough.

    Raises:
        DataError: transformers cannot load the encoder.
        FullError: The memory is not enough.
    """
    needed = tuning_bounds.memory_bytes(safetensors_header.parameter_count(folder))
    memory.require(needed, "tuning the encoder", hint=hint)
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(WEIGHTS))
    tokenizer = hf_folder.load_tokenizer(folder)
    # fused is slower on short texts; no dropout
    model = hf_folder.load_encoder(folder, attn_implementation="eager")
    return model, tokenizer


def _rate(rows: float) -> float:
    """The rate for some rows a label: more of them bear a higher one,
    by the likelihood of validation rows.
    """
    return float(RATE * min(MOST, max(1.0, rows / FEW) ** GROWTH))


def layers_of(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights that learn: all but those of the embeddings."""
    return [weight for name, weight in model.named_parameters() if "embedding" not in name]


def padded_rows(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of some texts, (texts, tokens of the longest)."""
    width = max(1, max(map(len, rows)))
    padded = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for k, row in enumerate(rows):
        padded[k, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[k, : len(row)] = 1
    return padded, mask


def pooled(states: torch.Tensor, mask: torch.Tensor, *, first: bool) -> torch.Tensor:
    """Vectors (n, size) of length 1 of texts: that of the first of their
    tokens (n, tokens, size), or the mean.
    """
    mask = mask[..., None]
    vectors = states[:, 0] if first else (states * mask).sum(1) / mask.sum(1).clamp(min=1)
    return torch.nn.functional.normalize(vectors, dim=-1)


def steps_of(model: torch.nn.Module, tokens: Sequence[Sequence[int]], passes: int) -> int:
    """Steps of some passes over the rows, or as many as WORK allows for them; 1 at the least."""
    multiplied = sum(weight.numel() for weight in layers_of(model))
    a_step = multiplied * BATCH * max(1.0, sum(map(len, tokens)) / len(tokens))
    steps = passes * math.ceil(len(tokens) / BATCH)
    bound = int(WORK * passes / PASSES / a_step)
    return max(1, min(steps, bound))


def share_of_rate(step: int, steps: int) -> float:
    """The share of the rate at a step: rising at first, then falling to none."""
    rising = max(1, round(WARMUP * steps))
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising))


def _parts(places: Sequence[int], size: int) -> list[list[int]]:
    return [[*places[k : k + size]] for k in range(0, len(places), size)]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of rows that are learned together, pass after pass without an
    end; rows of like length share a batch.
    """
    random = np.random.default_rng(SEED)
    while True:
        order = random.permutation(len(lengths)).tolist()
        batches = []
        for block in _parts(order, BATCH * SORTED):
            by_length = sorted(block, key=lambda k: lengths[k])
            batches += _parts(by_length, BATCH)
        for k in random.permutation(len(batches)).tolist():
            yield batches[k]
