"""Records of one step -> batches that fit the memory: packed ones, or
padded ones for models that cannot pack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from slmctl.model_files.model_shape import PIECE_TOKENS, piece_budget
from slmctl.stages.finetune.packing import (
    EncodedRecord,
    answers,
    common_prefix,
    pack,
    prompt_length,
)

SMALLER_PIECES = (512, 256, 128)  # for models that would not fit into memory otherwise


class PieceSize(NamedTuple):
    """The size of a batch that is computed at once.

    Attributes:
        tokens: Tokens computed.
        keys: Tokens attended to, those of the shared prefix counted once more for every record.
    """

    tokens: int
    keys: int


class PackedBatches:
    """Records -> packed batches of at most `piece_budget` computed tokens, or one record."""

    padded = 0  # tokens of padding so far
    filled = 0  # all tokens so far

    def __init__(self, limit: int = PIECE_TOKENS) -> None:
        self.limit = limit

    def __call__(self, records: Sequence[EncodedRecord]) -> list[dict[str, Any]]:
        parts = split_batch(records, self.limit, share=True)
        batches = [pack(part) for part in parts]
        for batch, part in zip(batches, parts, strict=True):
            prefix = batch["layout"][0]
            tokens = batch["input_ids"].numel()
            rests = sum(len(record["input_ids"]) - prefix for record in part)
            self.filled += tokens
            self.padded += tokens - prefix - rests
        return batches


def split_batch(
    records: Sequence[EncodedRecord], limit: int, *, share: bool = False
) -> list[Sequence[EncodedRecord]]:
    """Split records, in order, into as few parts as possible, of equal counts where that takes no
    more parts.

    A part computes at most `piece_budget` tokens, or holds one record.

    Args:
        limit: Tokens of a part without a shared prefix.
        share: Count the prefix that the records of a part share once, as `pack` computes it.
    """
    parts = _cut(records, limit, share, most=len(records))
    mean = math.ceil(len(records) / len(parts))
    even = _cut(records, limit, share, most=mean)
    return even if len(even) == len(parts) else parts


def _cut(
    records: Sequence[EncodedRecord], limit: int, share: bool, most: int
) -> list[Sequence[EncodedRecord]]:
    """Fill parts one after another, each with up to `most` records that fit."""
    parts = []
    start = 0
    prefix = 0  # tokens that the records of the part share
    longest = 0  # tokens of its longest record
    for k, record in enumerate(records):
        ids = record["input_ids"]
        own = prompt_length(record) if share else 0
        shared = own
        if k:
            shared = common_prefix(records[start]["input_ids"], ids, min(prefix, own))
        longest = max(longest, len(ids))
        count = k - start + 1
        tokens = shared + count * (longest - shared)
        if count > 1 and (count > most or tokens > piece_budget(shared, limit)):
            parts.append(records[start:k])
            start = k
            longest = len(ids)
            shared = own
        prefix = shared
    return [*parts, records[start:]]


def largest_piece(
    records: Sequence[EncodedRecord], together: int, limit: int = PIECE_TOKENS
) -> PieceSize:
    """Upper bound of one batch, packed or padded, in a training with `together` records a step.

    A batch shares at least the prefix of all records, and at most the longest prefix that
    `together` records share: when sorted, these are neighbours. Batches hold records of like
    length, so padding is not counted.
    """
    count = min(together, len(records))
    least, most = _shared_by(records, count)
    lengths = sorted(len(record["input_ids"]) for record in records)
    sizes = sorted(set(lengths))
    whole = sum(lengths[-count:])
    padded = max(_even_piece(count, 0, size, limit) for size in sizes)
    shared_once = whole - (count - 1) * least
    budget = piece_budget(most, limit)
    packed = max(_even_piece(count, least, size - least, budget) for size in sizes)
    tokens = max(lengths[-1], min(whole, padded), min(shared_once, packed))
    return PieceSize(tokens, tokens + count * most)


def _shared_by(records: Sequence[EncodedRecord], count: int) -> tuple[int, int]:
    """Returns the fewest and the most prompt tokens that `count` of the records open with."""
    if count < 2:
        return 0, 0
    prompts = sorted(record["input_ids"][: prompt_length(record)] for record in records)
    least = common_prefix(prompts[0], prompts[-1], len(prompts[0]))
    most = least
    for first, last in zip(prompts, prompts[count - 1 :], strict=False):
        if first[:most] == last[:most]:
            most = max(most, common_prefix(first, last, len(first)))
    return least, most


def _even_piece(count: int, prefix: int, rest: int, limit: int) -> int:
    """Tokens of a piece when `count` records of `prefix` + `rest` tokens
    are cut evenly into pieces up to `limit`.
    """
    most = max((limit - prefix) // max(rest, 1), 1)
    pieces = math.ceil(count / most)
    return prefix + math.ceil(count / pieces) * rest


class PaddedBatches:
    """Records -> batches (records, length), padded on the left, as unsloth's kernels expect.

    `labels`, `weights` and `keep` are as in a packed batch; `keep` indexes the batch flattened row
    by row, and all of it lies in the last `columns` columns. Batches have at most `limit` tokens,
    or one record.
    """

    padded = 0  # tokens of padding so far
    filled = 0  # all tokens so far

    def __init__(self, pad: int, limit: int = PIECE_TOKENS) -> None:
        self.pad = pad
        self.limit = limit

    def __call__(self, records: Sequence[EncodedRecord]) -> list[dict[str, Any]]:
        return [self._batch(part) for part in split_batch(records, self.limit)]

    def _batch(self, records: Sequence[EncodedRecord]) -> dict[str, Any]:
        sizes = [len(record["input_ids"]) for record in records]
        length = max(sizes)
        ids = torch.full((len(records), length), self.pad)  # (records, length)
        mask = torch.zeros_like(ids)
        starts = []
        for k, (record, size) in enumerate(zip(records, sizes, strict=True)):
            ids[k, -size:] = torch.tensor(record["input_ids"])
            mask[k, -size:] = 1
            starts.append((k + 1) * length - size)
        self.filled += ids.numel()
        self.padded += ids.numel() - sum(sizes)
        learned = answers(records, starts)
        first_column = int((learned["keep"] % length).min())
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "columns": length - first_column,
            **learned,
        }
