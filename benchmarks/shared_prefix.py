"""Training on records that open with the same long prompt: pieces cut by the tokens they compute, and by whole lengths.

    python -m benchmarks.shared_prefix [--prefixes TOKENS...] [--layers N] [--repetitions N]

A step is 16 records of 60 tokens of their own on a random model of SmolLM2-135M's shape. `theirs` cuts the same step
into pieces by the records' whole lengths, so that a piece has at most 768 tokens with the prefix counted every time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import result
from slmctl.config import resolve_matmul_dtype
from slmctl.model_files import catalogue, memory
from slmctl.stages.finetune import batches, layer_replacement
from slmctl.stages.finetune.packing import IGNORED, BatchPacker, EncodedRecord

RECORDS, OWN, ANSWER = 16, 60, 4  # records of a step; a record's own tokens, and those of them that are its answer
PREFIXES = (0, 100, 200, 400, 800)
GOAL = "<= 1.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--prefixes", nargs="+", type=int, default=PREFIXES, help="tokens that all records share")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    model = small_model(options.layers)
    rows, everything = [], {}
    for prefix in options.prefixes:
        records = some_records(prefix)
        sides = {"ours": batches.PackedBatches()(records), "theirs": [BatchPacker()(part) for part in whole(records)]}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.repetitions + 1):
            for side, pieces in sides.items():
                seconds[side].append(step(model, pieces))
        tokens = {side: sum(piece["input_ids"].numel() for piece in pieces) for side, pieces in sides.items()}
        peak = {side: peak_bytes(model, pieces) / 1e9 for side, pieces in sides.items()}
        everything[prefix] = {"tokens": tokens, "seconds": seconds, "peak_gb": peak}
        name = f"{prefix} tokens shared"
        rows += [
            result.compared(
                f"{name}: tokens computed a step", [tokens["ours"]], [prefix + RECORDS * OWN],
                peer="each token once", goal=GOAL,
            ),
            result.compared(
                f"{name}: tokens computed a step", [tokens["ours"]], [tokens["theirs"]], peer="by whole lengths"
            ),
            result.compared(
                f"{name}: CPU seconds a step", seconds["ours"][1:], seconds["theirs"][1:], peer="by whole lengths"
            ),
            result.compared(
                f"{name}: peak, GB", [peak["ours"]], [peak["theirs"]], peer="by whole lengths"
            ),
        ]  # fmt: skip
        sys.stderr.write(f"{name}: {tokens}, {peak}\n")
    path = result.write(
        "shared-prefix", "python -m benchmarks.shared_prefix", rows, ("torch", "transformers", "peft"),
        layers=options.layers, measured=everything,
    )  # fmt: skip
    sys.stdout.write(result.table(path.stem) + f"\n\n{path}\n")


def small_model(layers: int) -> Any:
    """A random Llama of SmolLM2-135M's shape under a LoRA adapter, with the CPU kernels in it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, resolve_matmul_dtype("auto")))
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    layer_replacement.install_kernels(model)
    return model.train()


def some_records(prefix: int) -> list[EncodedRecord]:
    """Records of arbitrary tokens that share the first `prefix` and no more."""
    choose = torch.Generator().manual_seed(prefix)
    head = torch.randint(3, 49152, (prefix,), generator=choose).tolist()
    records = []
    for k in range(RECORDS):
        ids = [*head, k, *torch.randint(100, 49152, (OWN - 1,), generator=choose).tolist()]
        asked = len(ids) - ANSWER
        records.append(
            EncodedRecord(input_ids=ids, labels=[IGNORED] * asked + ids[asked:], weights=[0.0] * asked + [1.0] * ANSWER)
        )
    return records


def whole(records: Sequence[EncodedRecord]) -> list[Sequence[EncodedRecord]]:
    """The records in parts of which each has at most PIECE_TOKENS tokens, the prefix counted in every record."""
    return batches.split_batch(records, catalogue.PIECE_TOKENS)


def step(model: Any, pieces: Sequence[dict[str, Any]]) -> float:
    """CPU seconds of the forward and backward of all pieces."""
    model.zero_grad()
    begun = time.process_time()
    for piece in pieces:
        model(**piece).loss.backward()
    return time.process_time() - begun


def peak_bytes(model: Any, pieces: Sequence[dict[str, Any]]) -> int:
    """Peak of this process's anonymous memory during a step."""
    memory.trim_heap()
    with memory.PeakMeter() as peak:
        step(model, pieces)
    return peak.bytes


if __name__ == "__main__":
    main()
