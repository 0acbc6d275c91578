"""The labels of a task as tokens: which of them a model finds likeliest, asked only where it has a choice.

The engine and the HF models walk the same trie. A label's probability is the product of the
probabilities of its tokens, each among the tokens that the labels allow there; over all labels they
add up to 1. The search is best-first: a branch is followed only while it could still hold a
likelier label than the best one found, so the answer is the likeliest of all labels at the price,
mostly, of one.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FLOOR = 1e-4  # a branch that is less likely is not followed; its labels share what it has


@dataclass
class Node:
    """The tokens that may follow, and how many labels lie below."""

    next: dict[int, Node] = field(default_factory=dict)
    label: int | None = None
    below: list[int] = field(default_factory=list)


class Trie:
    """The labels of a task by their tokens, the end of the turn included.

    Raises:
        ValueError: The tokens of one label begin another's, so that nothing would tell them apart.
    """

    def __init__(self, labels: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
        self.labels, self.tokens = tuple(labels), [list(ids) for ids in tokens]
        self.root = Node()
        for index, ids in enumerate(self.tokens):
            node = self.root
            node.below.append(index)
            for token in ids:
                if node.label is not None:
                    raise ValueError(f"the label '{self.labels[node.label]}' begins '{self.labels[index]}'")
                node = node.next.setdefault(token, Node())
                node.below.append(index)
            if len(node.below) > 1:
                other = node.below[0]
                raise ValueError(f"the label '{self.labels[index]}' begins or equals '{self.labels[other]}'")
            node.label = index

    @property
    def depth(self) -> int:
        """Tokens of the longest label."""
        return max(map(len, self.tokens))


class Search:
    """One walk through a trie: it says whose logits it needs next, and is told them.

    Args:
        trie: The labels.
        every: Go on until the probability of every label is known, not only the best one's.
    """

    def __init__(self, trie: Trie, *, every: bool = False) -> None:
        self.trie, self.every = trie, every
        self._order = itertools.count()  # of equally likely branches the first one found comes first
        self._open: list[tuple[float, int, list[int], Node]] = []  # a heap: the likeliest branch has the least number
        self._found: dict[int, float] = {}
        self._push(1.0, [], trie.root)

    @property
    def path(self) -> list[int] | None:
        """Tokens after the prompt; what follows them is to be told. None when the search is over."""
        if not self._open:
            return None
        likeliest = -self._open[0][0]
        best = max(self._found.values(), default=0.0)
        if likeliest <= (FLOOR if self.every and self._found else best):
            return None
        return self._open[0][2]

    def tell(self, logits: npt.NDArray[np.float32]) -> None:
        """The logits (n_vocab,) of what follows `path`."""
        negative, _, path, node = heapq.heappop(self._open)
        tokens = list(node.next)
        scores = np.asarray(logits[tokens], dtype=np.float64)
        weights = np.exp(scores - scores.max())
        for token, share in zip(tokens, weights / weights.sum(), strict=True):
            self._push(-negative * float(share), [*path, token], node.next[token])

    @property
    def best(self) -> tuple[int, float]:
        """The likeliest label and its probability."""
        index = max(self._found, key=lambda one: (self._found[one], -one))
        return index, self._found[index]

    def probabilities(self) -> dict[str, float]:
        """Labels with their probability, likeliest first: those that were looked at, or every one."""
        found = dict(self._found)
        if self.every:
            for negative, _, _, node in self._open:
                found |= dict.fromkeys(node.below, -negative / len(node.below))
        order = sorted(found, key=lambda one: (-found[one], one))
        return {self.trie.labels[index]: round(found[index], 6) for index in order}

    def _push(self, mass: float, path: list[int], node: Node) -> None:
        """Add a branch where its next choice is: what is forced needs no asking."""
        while node.label is None and len(node.next) == 1:
            token = next(iter(node.next))
            path = [*path, token]
            node = node.next[token]
        if node.label is not None:
            self._found[node.label] = mass
        else:
            heapq.heappush(self._open, (-mass, next(self._order), path, node))
