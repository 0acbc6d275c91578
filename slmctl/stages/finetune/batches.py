"""Records of one step -> batches that fit the memory: packed ones, or padded ones for models that cannot pack."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slmctl.stages.finetune import memory_estimate
from slmctl.stages.finetune.packing import IGNORED, BatchPacker, EncodedRecord


@dataclass
class PackedBatches:
    """Records -> packed batches of at most `limit` computed tokens, or one record."""

    packer: BatchPacker = field(default_factory=BatchPacker)
    limit: int = memory_estimate.PIECE_TOKENS
    padded: int = 0
    filled: int = 0

    def __call__(self, records: Sequence[EncodedRecord]) -> list[dict[str, Any]]:
        parts = split_batch(records, self.limit)
        batches = [self.packer(part) for part in parts]
        for batch, part in zip(batches, parts, strict=True):
            prefix, tokens = batch["layout"][0], batch["input_ids"].numel()
            self.filled += tokens
            self.padded += tokens - prefix - sum(len(record["input_ids"]) - prefix for record in part)
        return batches


def split_batch(records: Sequence[EncodedRecord], limit: int | None) -> list[Sequence[EncodedRecord]]:
    """Records in parts of nearly the same count, each of at most `limit` tokens once padded, or one record."""
    longest = max(len(record["input_ids"]) for record in records)
    count = max(1, min(len(records), limit // longest)) if limit else len(records)
    parts = math.ceil(len(records) / count)
    bounds = [round(k * len(records) / parts) for k in range(parts + 1)]
    return [records[a:b] for a, b in itertools.pairwise(bounds)]


class PaddedBatches:
    """Records -> batches (records, length), padded on the left, as unsloth's kernels expect.

    With a `limit` they have at most so many tokens, or one record.
    """

    padded, filled = 0, 0

    def __init__(self, pad: int, limit: int | None = None) -> None:
        self.pad, self.limit = pad, limit

    def __call__(self, records: Sequence[EncodedRecord]) -> list[dict[str, Any]]:
        return [self._batch(part) for part in split_batch(records, self.limit)]

    def _batch(self, records: Sequence[EncodedRecord]) -> dict[str, Any]:
        length = max(len(record["input_ids"]) for record in records)
        ids = torch.full((len(records), length), self.pad)  # (records, length), like all that follow
        labels, mask, weights = torch.full_like(ids, IGNORED), torch.zeros_like(ids), torch.zeros(ids.shape)
        for k, record in enumerate(records):
            size = len(record["input_ids"])
            ids[k, -size:] = torch.tensor(record["input_ids"])
            labels[k, -size:] = torch.tensor(record["labels"])
            weights[k, -size:] = torch.tensor(record["weights"])
            mask[k, -size:] = 1
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        self.filled += ids.numel()
        self.padded += int(ids.numel() - mask.sum())
        return {
            "input_ids": ids, "labels": labels, "weights": weights, "attention_mask": mask, "position_ids": positions,
        }  # fmt: skip
