"""A sentence encoder and the head on it -> both tuned: all weights learn the labels of the training rows.

Cross entropy, from the logistic regression on frozen vectors. In `benchmarks/tuned_encoder.py` the tuned encoder had
more right answers than the frozen one on all four data sets. The work is bounded, not the passes, so that the time is
known: of many rows, or of a large encoder, fewer steps.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from slmctl import console
from slmctl.artifacts import bounded_json
from slmctl.config import resolve_matmul_dtype
from slmctl.metrics.encoder_head import EncoderHead
from slmctl.model_files import hf_folder
from slmctl.model_files.encoder_source import WEIGHTS

PASSES, BATCH, RATE, DECAY = 10, 16, 5e-5, 0.01
WARMUP = 0.1  # of the steps
SORTED = 16  # batches' rows that are sorted by length before they are dealt: padding costs as much as text
WORK = 6e12  # weights times tokens: five minutes of two cores, on which MiniLM-L6 learns 1,850 tokens a second
LONGEST = 512  # tokens that count of a text, as where the encoder answers
LARGEST = 600e6  # bytes of the weights: they are held five times, and of larger ones WORK allows too few steps
SEED = 0
MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def is_possible(folder: Path) -> bool:
    """True for an encoder of at most LARGEST bytes whose vectors are the mean of its tokens' or the first token's."""
    return (folder / WEIGHTS).stat().st_size <= LARGEST and _pooling(folder) in ("mean", "cls")


def tune(folder: Path, texts: Sequence[str], labels: Sequence[str], head: EncoderHead, out: Path) -> EncoderHead:
    """Tune an encoder and its head, and write the encoder as another model folder; returns the head.

    Args:
        folder: The encoder's model folder, see `encoder_source.kept`.
        texts, labels: The rows; every label is one of the head's.
        out: The folder to write, which does not exist.

    Raises:
        DataError: transformers cannot load the encoder.
    """
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = hf_folder.load_tokenizer(folder)
    # the fused attention of torch is slower on short texts
    model = hf_folder.load_encoder(folder, attn_implementation="eager").to(device).train()
    longest = min(hf_folder.context_of(folder) - 2, LONGEST)  # of RoBERTa the first position is 2
    tokens = tokenizer(list(texts), truncation=True, max_length=int(longest))["input_ids"]
    places = torch.tensor([head.labels.index(label) for label in labels], device=device)
    weights, bias = (torch.nn.Parameter(torch.tensor(part, device=device)) for part in (head.weights, head.bias))
    steps = steps_of(model, tokens)
    optimizer = torch.optim.AdamW([*model.parameters(), weights, bias], RATE, weight_decay=DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
    first, narrow = _pooling(folder) == "cls", device == "cuda" or resolve_matmul_dtype("auto") == "bfloat16"
    with console.progress("tune", steps, "steps") as meter:
        for batch, _ in zip(batches([len(each) for each in tokens]), range(steps), strict=False):
            padded = tokenizer.pad({"input_ids": [tokens[k] for k in batch]}, return_tensors="pt").to(device)
            with torch.autocast(device, torch.bfloat16, enabled=narrow):
                states = model(**padded).last_hidden_state
            scores = pooled(states.float(), padded["attention_mask"], first=first) @ weights.T + bias
            loss = torch.nn.functional.cross_entropy(scores, places[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            meter.advance(1)
    shutil.copytree(folder, out)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    hf_folder.save(kept, out / WEIGHTS)
    tuned = [part.detach().cpu().numpy() for part in (weights, bias)]
    return EncoderHead(head.labels, *tuned)


def pooled(states: torch.Tensor, mask: torch.Tensor, *, first: bool) -> torch.Tensor:
    """Vectors (n, size) of length 1 of texts: that of the first of their tokens (n, tokens, size), or the mean."""
    mask = mask[..., None]
    vectors = states[:, 0] if first else (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(vectors, dim=-1)


def _pooling(folder: Path) -> str:
    """Name of the way from vectors of tokens to the vector of a text: `mean`, `cls`, or another one."""
    path = folder / "1_Pooling" / "config.json"
    facts = bounded_json.read_object(path) if path.is_file() else {}
    modes = [name for key, name in MODES.items() if facts.get(key)]  # as written until 2025; since then in one key
    return str(facts.get("pooling_mode") or (modes[0] if len(modes) == 1 else ""))


def steps_of(model: torch.nn.Module, tokens: Sequence[Sequence[int]]) -> int:
    """Steps of PASSES passes over the rows, or as many as WORK allows; 1 at the least."""
    multiplied = sum(p.numel() for name, p in model.named_parameters() if "embedding" not in name)
    a_step = multiplied * BATCH * sum(map(len, tokens)) / len(tokens)
    return max(1, min(PASSES * math.ceil(len(tokens) / BATCH), int(WORK / a_step)))


def _share(step: int, steps: int) -> float:
    """The share of the rate at a step: rising at first, then falling to none."""
    rising = max(1, round(WARMUP * steps))
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising))


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of rows that are learned together, pass after pass without an end; rows of like length share a batch."""
    random = np.random.default_rng(SEED)
    while True:
        order = random.permutation(len(lengths)).tolist()
        blocks = [order[k : k + BATCH * SORTED] for k in range(0, len(order), BATCH * SORTED)]
        dealt = [sorted(block, key=lambda k: lengths[k]) for block in blocks]
        batches = [block[k : k + BATCH] for block in dealt for k in range(0, len(block), BATCH)]
        for k in random.permutation(len(batches)).tolist():
            yield batches[k]
