"""The label search against every label scored on its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.label_scores import label_probabilities

from slmctl.inference.label_search import LOOKS, LabelSearch, LabelTrie

END = 9
VOCABULARY = 10
WORDS = st.lists(st.integers(0, 4), min_size=1, max_size=5).map(lambda tokens: (*tokens, END))


def logits_of(seed: int, path: list[int], scale: float) -> np.ndarray:
    """A model: its logits depend on the path alone."""
    return (
        np.random.default_rng([seed, 99, *path]).normal(size=VOCABULARY).astype(np.float32) * scale
    )


def scored(tokens: list[tuple[int, ...]], seed: int, scale: float) -> list[float]:
    """The probability of each label, with nothing skipped."""
    by_name = {str(k): one for k, one in enumerate(tokens)}
    found = label_probabilities(
        by_name,
        lambda name: [
            logits_of(seed, list(by_name[name][:k]), scale) for k in range(len(by_name[name]))
        ],
    )
    return list(found.values())


def walk(trie: LabelTrie, seed: int, scale: float, rest: float = 1.0) -> tuple[LabelSearch, int]:
    search, asked = LabelSearch(trie, rest=rest), 0
    while (path := search.path) is not None:
        search.take(logits_of(seed, path, scale))
        asked += 1
    return search, asked


def greedy(tokens: list[tuple[int, ...]], seed: int, scale: float, wanted: list[float]) -> float:
    """The probability of the label that the likeliest token leads to at each step."""
    left, k = list(tokens), 0
    while len(left) > 1:
        allowed = sorted({one[k] for one in left})
        scores = logits_of(seed, list(left[0][:k]), scale)[allowed]
        left = [one for one in left if one[k] == allowed[int(scores.argmax())]]
        k += 1
    return wanted[tokens.index(left[0])]


@given(
    st.lists(WORDS, min_size=1, max_size=9, unique=True),
    st.integers(0, 999),
    st.sampled_from([0.1, 1.0, 6.0]),
)
def test_the_label_and_its_probability(
    tokens: list[tuple[int, ...]], seed: int, scale: float
) -> None:
    wanted = scored(tokens, seed, scale)
    trie = LabelTrie([f"label {k}" for k in range(len(tokens))], tokens)
    search, asked = walk(trie, seed, scale)
    index, probability = search.best
    assert probability == pytest.approx(wanted[index], rel=1e-5)
    assert probability >= greedy(tokens, seed, scale, wanted) * (1 - 1e-5)
    for name, found in search.probabilities().items():
        assert found == pytest.approx(wanted[int(name.split()[1])], abs=1e-5)
    assert asked <= max(map(len, tokens)) + LOOKS
    order = list(search.probabilities().values())
    assert order == sorted(order, reverse=True)
    for rest in (1.0, 0.05, 0.0):  # what is looked at beside it leaves the answer as it is
        wide, _ = walk(trie, seed, scale, rest)
        assert (wide.best, wide.probabilities(), wide.choices()) == (
            search.best,
            search.probabilities(),
            search.choices(),
        )
        every = wide.distribution()
        assert (len(every), sum(every.values())) == (len(tokens), pytest.approx(1, abs=1e-4))
        off = [abs(every[f"label {k}"] - share) for k, share in enumerate(wanted)]
        assert max(off) <= (rest if rest < 1 else max(wanted)) + 1e-5


def test_a_branch_that_was_left_is_looked_into() -> None:
    # greedy steps alone would have missed the likeliest label: the pair's first token is likelier
    # than the single label's, but each of the pair is less likely
    trie = LabelTrie(["a b", "a c", "d"], [[0, 1, END], [0, 2, END], [3, END]])
    search = LabelSearch(trie)
    first = np.full(VOCABULARY, -9, np.float32)
    first[[0, 3]] = np.log([0.55, 0.45])
    search.take(first)
    assert search.path == [0]
    search.take(np.zeros(VOCABULARY, np.float32))
    assert search.path is None
    assert search.best == (2, pytest.approx(0.45, abs=1e-6))


def test_a_likelier_branch_beside_the_first_is_followed() -> None:
    trie = LabelTrie(
        ["a b", "a c", "d b", "d c"], [[0, 1, END], [0, 2, END], [3, 1, END], [3, 2, END]]
    )
    search = LabelSearch(trie)
    for path, shares in (
        ([], {0: 0.55, 3: 0.45}),
        ([0], {1: 0.5, 2: 0.5}),
        ([3], {1: 0.9, 2: 0.1}),
    ):
        assert search.path == path
        logits = np.full(VOCABULARY, -9, np.float32)
        logits[list(shares)] = np.log(list(shares.values()))
        search.take(logits)
    assert search.path is None
    assert search.best == (2, pytest.approx(0.45 * 0.9, abs=1e-6))


def test_what_has_no_choice_is_not_asked() -> None:
    assert LabelSearch(LabelTrie(["only"], [[1, 2, END]])).path is None
    assert LabelSearch(LabelTrie(["only"], [[1, 2, END]])).best == (0, 1.0)
    assert LabelSearch(LabelTrie(["a", "b"], [[1, 2, 3, END], [1, 2, 4, END]])).path == [1, 2]


def test_a_short_label_beside_the_way_does_not_end_it() -> None:
    # it once counted as the first label found, and the way to the likeliest one was given up after
    # two looks
    chain = [[0, *[1] * k, 2, END] for k in range(1, 6)]
    search = LabelSearch(LabelTrie(["short", *(f"{k}" for k in range(1, 6))], [[3, END], *chain]))
    while (path := search.path) is not None:
        logits = np.zeros(VOCABULARY, np.float32)
        logits[[0, 1]] = 5
        search.take(logits)
        assert len(path) < 6
    assert search.trie.labels[search.best[0]] == "5"


@pytest.mark.parametrize("tokens", [[[1], [1, 2]], [[1, 2], [1]], [[1, 2], [1, 2]]])
def test_labels_that_nothing_tells_apart_are_refused(tokens: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="begins"):
        LabelTrie(["x", "y"], tokens)
