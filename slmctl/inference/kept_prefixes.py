"""Prefixes that prompts share, each kept in its own sequence: a request copies the prefix instead
of computing it.

Clients with different system prompts get one each, up to PREFIXES. A kept prefix takes cells of the
cache, and every token of a batch attends over all cells, so a prefix that no request used lately is
dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from slmctl.inference.decoding_model import BATCH, DecodingModel, Item, common

PREFIXES = 4  # that are kept of an attention model, and one more for each LoRA adapter
IDLE = 64  # requests in a row without a prefix, after which it is dropped
# last tokens in which equal prefixes may differ: tokens merge with the text that follows
MERGED = 4


def count_of(recurrent: bool, adapters: int) -> int:
    """Number of sequences for prefixes; a recurrent model has
    one, since each holds a whole state.
    """
    return (1 if recurrent else PREFIXES) + adapters


@dataclass
class _Prefix:
    sequence: int
    adapter: str = ""
    tokens: list[int] = field(default_factory=list)
    used: int = 0  # the number of the request that used it last


class KeptPrefixes:
    """The prefixes that a model holds, each computed with an adapter or without one.

    Args:
        sequences: The numbers of the sequences that hold them.
    """

    def __init__(self, model: DecodingModel, sequences: Iterable[int]) -> None:
        self._model = model
        self._kept = [_Prefix(sequence) for sequence in sequences]
        self._requests = 0

    def make_room(self, cells: int, adapter: str, prefix: list[int]) -> bool:
        """Forget other prefixes than this one, as many as is needed for all to take at most
        `cells`.

        Returns:
            True if they then do.
        """
        own = self._closest(adapter, prefix)
        others = [
            entry for entry in sorted(self._kept, key=lambda entry: entry.used) if entry is not own
        ]
        while (taken := sum(len(entry.tokens) for entry in self._kept)) > cells and others:
            self._forget(others.pop(0))
        return taken <= cells

    def clear(self) -> None:
        """Forget all."""
        for entry in self._kept:
            self._forget(entry)

    def share(self, adapter: str, prefix: list[int]) -> tuple[int, int]:
        """Have a sequence hold a prefix, computing it where it is new.

        Returns:
            The sequence to copy from, and how many tokens of the prefix it is to give.
        """
        self._requests += 1
        for entry in self._kept:
            if entry.tokens and self._requests - entry.used > IDLE:
                self._forget(entry)
        if not prefix:
            return 0, 0
        if (own := self._closest(adapter, prefix)) is not None:
            same, whole = common(own.tokens, prefix), self._model.recurrent
            # it stays, for the others' sake
            if same >= max(len(prefix), len(own.tokens) if whole else 0) - MERGED:
                own.used = self._requests
                return own.sequence, 0 if whole and same < len(own.tokens) else same
        new = min(self._kept, key=lambda entry: (bool(entry.tokens), entry.used))
        self._forget(new)
        self._compute(new, adapter, prefix)
        return new.sequence, len(prefix)

    def _closest(self, adapter: str, prefix: list[int]) -> _Prefix | None:
        """The entry that begins most like `prefix`; None where none begins alike."""
        own = [
            entry
            for entry in self._kept
            if entry.adapter == adapter and common(entry.tokens, prefix)
        ]
        return max(own, key=lambda entry: common(entry.tokens, prefix), default=None)

    def _compute(self, new: _Prefix, adapter: str, prefix: list[int]) -> None:
        self._model.use(adapter)
        for start in range(0, len(prefix), BATCH):
            part = prefix[start : start + BATCH]
            self._model.decode(
                [Item(token, start + k, new.sequence, needed=False) for k, token in enumerate(part)]
            )
        new.adapter = adapter
        new.tokens = prefix
        new.used = self._requests

    def _forget(self, entry: _Prefix) -> None:
        self._model.forget(entry.sequence)
        entry.tokens = []
