"""A loaded model, as the scheduler drives it: batches of tokens
of many sequences in, logits out.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

BATCH = 512  # tokens that one decode call takes at most
Logits = npt.NDArray[np.float32]


class Item(NamedTuple):
    """A token at a position of a sequence; `needed` where its logits are."""

    token: int
    position: int
    sequence: int
    needed: bool


class DecodingModel(Protocol):
    """A loaded model, as the scheduler uses it."""

    cells: int  # tokens that all sequences together may hold
    recurrent: bool  # a sequence can be copied and forgotten as a whole only

    def tokenize(self, text: str) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...
    def ends(self, token: int) -> bool: ...
    def decode(self, items: list[Item]) -> list[tuple[int, Logits]]: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def forget(self, sequence: int, start: int = 0) -> None: ...
    def use(self, adapter: str) -> None: ...


def common(tokens: list[int], others: list[int]) -> int:
    """Number of tokens at the beginning that are the same."""
    length = min(len(tokens), len(others))
    return next((k for k in range(length) if tokens[k] != others[k]), length)
