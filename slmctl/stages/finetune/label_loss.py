"""Answers of a task with labels -> the tokens among which each token of a label is chosen, as the
label search does.

A model that is asked for a label takes the softmax over the tokens that the labels allow at a
place, so training does the same (`benchmarks/trials.py`). A part of the loss over the whole
vocabulary stays, since other programs may ask the model without a label search.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.nn import functional

from slmctl.inference.label_search import LabelTrie, TrieNode
from slmctl.stages.finetune.packing import IGNORED, EncodedRecord

SHARE = 0.2  # of the loss over the whole vocabulary


class LabelTokens:
    """The K different tokens of a task's labels, and which of them may stand at a place."""

    def __init__(self, trie: LabelTrie) -> None:
        self._trie = trie
        tokens = sorted({token for label in trie.tokens for token in label})
        self._columns = {token: k for k, token in enumerate(tokens)}
        self._alphabet = torch.tensor(tokens)

    def spell(self, records: Iterable[EncodedRecord]) -> bool:
        """True if all answers to learn are labels."""
        for record in records:
            answer = [token for token in record["labels"] if token != IGNORED]
            if None in self._nodes(answer):
                return False
        return True

    def choices(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The choices at the N answer tokens of a batch.

        These are `alphabet` (K,), the tokens; `allowed` (N, K), true where the labels allow one;
        and `chosen` (N,), the place of the right one in `alphabet`.
        """
        tokens = labels.tolist()
        allowed = torch.zeros(len(tokens), len(self._alphabet), dtype=torch.bool)
        for row, node in zip(allowed, self._nodes(tokens), strict=True):
            assert node is not None  # or `spell` would be false
            columns = [self._columns[token] for token in node.next]
            row[columns] = True
        chosen = torch.tensor([self._columns[token] for token in tokens], dtype=torch.long)
        return {"alphabet": self._alphabet, "allowed": allowed, "chosen": chosen}

    def _nodes(self, tokens: Iterable[int]) -> Iterator[TrieNode | None]:
        """The place in the trie at which each token of some whole labels is
        chosen; ends with None where it is not.
        """
        node = self._trie.root
        for token in tokens:
            if token not in node.next:
                yield None
                return
            yield node
            node = node.next[token]
            if node.label is not None:
                node = self._trie.root
        if node is not self._trie.root:
            yield None


def mixed(
    losses: torch.Tensor,
    logits: torch.Tensor,
    weights: torch.Tensor,
    choices: dict[str, torch.Tensor],
) -> torch.Tensor:
    """The weighted losses (N,) over the vocabulary, mixed with those among the allowed tokens.

    Args:
        logits: Of the alphabet (N, K).
        choices: `allowed` and `chosen`, see `LabelTokens.choices`.
    """
    barred = logits.float().masked_fill(~choices["allowed"], -torch.inf)
    entropies = functional.cross_entropy(barred, choices["chosen"], reduction="none")
    return SHARE * losses + (1 - SHARE) * (entropies * weights)
