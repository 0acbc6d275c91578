"""The order in which a training sees its records: batches of like length, shuffled by a seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """Indices of an epoch's records: shuffled, then sorted by length inside windows, so that a
    batch pads little.

    The order is a function of seed and epoch alone, which makes resuming exact.
    """

    WINDOW = 20  # batches sorted together

    def __init__(self, lengths: Sequence[int], args: Any, processes: int) -> None:
        self.lengths = lengths
        self.seed = args.seed
        self.epoch = 0
        # copies of the last record, which is `without_loss`, that complete an epoch's last batch
        self.fill = 0
        self.batch = args.per_device_train_batch_size * processes
        # else accelerate fills the last batch up with records that were seen already
        if processes > 1:
            self.lengths = lengths[:-1]
            self.fill = -len(self.lengths) % self.batch

    def __len__(self) -> int:
        return len(self.lengths) + self.fill

    def __iter__(self) -> Iterator[int]:
        choose = random.Random(f"{self.seed}:{self.epoch}")  # noqa: S311 - a shuffle, not a secret
        order = list(range(len(self.lengths)))
        choose.shuffle(order)
        batches: list[list[int]] = []
        size = self.batch * self.WINDOW
        for start in range(0, len(order), size):
            window = sorted(order[start : start + size], key=self.lengths.__getitem__)
            batches += [window[k : k + self.batch] for k in range(0, len(window), self.batch)]
        # a batch that is not full comes last
        short = batches.pop() if len(batches[-1]) < self.batch else []
        choose.shuffle(batches)
        copies = [len(order)] * self.fill
        return itertools.chain(*batches, short, copies)
