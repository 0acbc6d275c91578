"""The likeliest label of a task, by its tokens: the model is asked only where the labels leave it a
choice.

A label's probability is the product of the probabilities of its tokens, each among the tokens that
the labels allow there; over all labels they add up to 1.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LOOKS = 2  # branches that are followed after the first label


@dataclass
class TrieNode:
    """The tokens that may follow, or the label that ends here."""

    next: dict[int, TrieNode] = field(default_factory=dict)
    label: int | None = None

    def labels(self) -> Iterator[int]:
        """The labels that end here or below."""
        if self.label is not None:
            yield self.label
        for node in self.next.values():
            yield from node.labels()


class Branch(NamedTuple):
    """A way to labels that was not followed yet; the likeliest and then the earliest comes first.

    Attributes:
        negative: Minus its probability.
    """

    negative: float
    turn: int
    path: list[int]
    node: TrieNode


class LabelChoice(NamedTuple):
    """A place on the way to a label where the model was asked.

    Attributes:
        path: Tokens after the prompt, up to the choice.
        shares: The probability of every token that the labels allow there.
        weight: Log of the sum of their exponentials, as the logits have it.
    """

    path: tuple[int, ...]
    shares: dict[int, float]
    weight: float


class LabelTrie:
    """The labels of a task by their tokens, the end of the turn included.

    Raises:
        ValueError: The tokens of one label begin another's, so that nothing would tell them apart.
    """

    def __init__(self, labels: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
        self.labels, self.tokens = tuple(labels), [list(ids) for ids in tokens]
        self.root = TrieNode()
        for index, ids in enumerate(self.tokens):
            node = self.root
            for token in ids:
                if node.label is not None:
                    raise ValueError(
                        f"the label '{self.labels[node.label]}' begins '{self.labels[index]}'"
                    )
                node = node.next.setdefault(token, TrieNode())
            if node.next or node.label is not None:
                other = next(k for k, tokens in enumerate(self.tokens) if tokens[: len(ids)] == ids)
                raise ValueError(
                    f"the label '{self.labels[index]}' begins or equals '{self.labels[other]}'"
                )
            node.label = index

    @property
    def size(self) -> int:
        """Tokens of all labels."""
        return sum(map(len, self.tokens))

    @property
    def depth(self) -> int:
        """Tokens of the longest label."""
        return max(map(len, self.tokens))


class LabelTree:
    """The beginnings of some labels, each once: in one sequence after a prompt, they give every
    label's probability.

    Attributes:
        places: The place of each beginning; no label is among them, since nothing is asked after
            it.
        seen: (n, n), True where the beginning of a column begins the one of the row, or is it.
        ways: The places of each label's beginnings; its second token follows the first of them.
    """

    def __init__(self, tokens: Sequence[Sequence[int]]) -> None:
        paths = [[tuple(ids[:length]) for length in range(1, len(ids))] for ids in tokens]
        self.places = {
            path: place for place, path in enumerate(dict.fromkeys(itertools.chain(*paths)))
        }
        self.ways = [[self.places[path] for path in each] for each in paths]
        self.seen = np.eye(len(self.places), dtype=bool)
        for path, place in self.places.items():
            if len(path) > 1:
                self.seen[place] |= self.seen[self.places[path[:-1]]]


class LabelSearch:
    """One walk through a trie: `path` names the position whose logits are needed, `take` takes
    them.

    It first takes the likeliest token at every choice, as free decoding does. A skipped branch that
    is likelier than the label found is followed too, LOOKS times at most: an uncertain model would
    else evaluate half of its labels.

    Args:
        rest: When the answer is found, branches that are likelier than this are followed for
            `distribution` alone.
    """

    def __init__(self, trie: LabelTrie, *, rest: float = 1.0) -> None:
        self.trie, self._rest = trie, rest
        self._left = LOOKS
        self._order = itertools.count()  # of equally likely branches the earlier one comes first
        self._open: list[Branch] = []  # a heap: the likeliest branch has the least number
        self._likelihood: dict[int, float] = {}
        # the labels among which the answer is the likeliest, when it is found
        self._found: dict[int, float] = {}
        self._asked: dict[tuple[int, ...], LabelChoice] = {}
        self._here = self._branch(1.0, [], trie.root)
        self._first = True  # on the way to the first label

    @property
    def path(self) -> list[int] | None:
        """Tokens after the prompt, for which the logits of the next token are
        needed; None at the end of the search.
        """
        return None if self._here is None else self._here.path

    def take(self, logits: npt.NDArray[np.float32]) -> None:
        """Take the logits (n_vocab,) of the token after `path`."""
        assert self._here is not None
        path, node = self._here.path, self._here.node
        tokens = list(node.next)
        scores = np.asarray(logits[tokens], dtype=np.float64)
        weights = np.exp(scores - scores.max())
        among = weights / weights.sum()
        shares = -self._here.negative * among
        weight = float(scores.max()) + math.log(float(weights.sum()))
        self._asked[tuple(path)] = LabelChoice(
            tuple(path), dict(zip(tokens, among.tolist(), strict=True)), weight
        )
        branches = [
            self._branch(float(share), [*path, token], node.next[token])
            for token, share in zip(tokens, shares, strict=True)
        ]
        down = int(shares.argmax()) if self._first else None
        for k, branch in enumerate(branches):
            if branch is not None and k != down:
                heapq.heappush(self._open, branch)
        self._here = branches[down] if down is not None else None
        if self._here is None:
            self._first = False
            self._here = self._another()

    @property
    def best(self) -> tuple[int, float]:
        """The index of the likeliest label, and its probability."""
        reached = self._found or self._likelihood
        index = max(reached, key=lambda label: (reached[label], -label))
        return index, reached[index]

    def choices(self) -> list[LabelChoice]:
        """The places where the model was asked on the way to the best label, in order."""
        tokens = tuple(self.trie.tokens[self.best[0]])
        paths = (tokens[:length] for length in range(len(tokens)))
        return [self._asked[path] for path in paths if path in self._asked]

    def probabilities(self) -> dict[str, float]:
        """The labels that the search reached for the answer with
        their probability, likeliest first.
        """
        return self._told(self._found or self._likelihood)

    def distribution(self) -> dict[str, float]:
        """Every label with its probability, likeliest first; they add up to 1.

        The labels of a branch that was not followed have equal parts of its probability.
        """
        shares = dict(self._likelihood)
        for branch in self._open:
            labels = list(branch.node.labels())
            shares |= dict.fromkeys(labels, -branch.negative / len(labels))
        return self._told(shares)

    def _told(self, shares: dict[int, float]) -> dict[str, float]:
        order = sorted(shares, key=lambda label: (-shares[label], label))
        return {self.trie.labels[index]: float(f"{shares[index]:.6g}") for index in order}

    def _another(self) -> Branch | None:
        """The branch to follow next; None where none is likelier than the
        best label, and none of the rest is asked.
        """
        likeliest = -self._open[0].negative if self._open else 0.0
        if not self._found:
            if self._left and likeliest > max(self._likelihood.values()):
                self._left -= 1
                return heapq.heappop(self._open)
            self._found = dict(self._likelihood)
        return heapq.heappop(self._open) if likeliest > self._rest else None

    def _branch(self, mass: float, path: list[int], node: TrieNode) -> Branch | None:
        """The branch from a choice to the next one, over tokens that are
        forced; None where it ends in a label.
        """
        while node.label is None and len(node.next) == 1:
            token = next(iter(node.next))
            path = [*path, token]
            node = node.next[token]
        if node.label is not None:
            self._likelihood[node.label] = mass
            return None
        return Branch(-mass, next(self._order), path, node)
