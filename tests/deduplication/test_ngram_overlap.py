"""Runs of words that two sides share: the hashes find what comparing the words finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.spill import spilled

from slmctl.deduplication.ngram_overlap import LONG, SHORT, hashes, measure

letters = st.lists(st.sampled_from("abc"), max_size=30).map(" ".join)
texts_of_words = st.lists(letters, max_size=8)


def runs(text: str, size: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[k : k + size]) for k in range(len(words) - size + 1)}


def by_words(train: list[str], held_out: list[str]) -> tuple[int, int, int, list[tuple[int, int]]]:
    """The same from sets of words."""
    measured, short, pairs = 0, 0, []
    for k, text in enumerate(held_out):
        size = LONG if len(text.split()) >= LONG else SHORT
        if len(text.split()) < SHORT:
            short += 1
            continue
        measured += 1
        met = [j for j, other in enumerate(train) if runs(text, size) & runs(other, size)]
        if met:
            pairs.append((k, met[0]))
    return measured, len(pairs), short, pairs


@given(texts_of_words, texts_of_words)
@settings(deadline=None, max_examples=80)
def test_finds_what_comparing_the_words_finds(
    tmp_path_factory: pytest.TempPathFactory, train: list[str], held_out: list[str]
) -> None:
    with spilled(tmp_path_factory.mktemp("overlap") / "spill", [*train, *held_out]) as rows:
        sides = np.arange(len(train)), np.arange(len(train), len(rows))
        found = measure(rows, *sides)
    measured, overlapping, short, pairs = by_words(train, held_out)
    assert (found.measured, found.overlapping, found.too_short) == (measured, overlapping, short)
    assert list(found.pairs) == [(len(train) + k, j) for k, j in pairs]
    assert found.share == (overlapping / measured if measured else 0)


@given(
    st.lists(st.text(alphabet="ab \né日", max_size=40), max_size=8),
    st.integers(1, 4),
    st.integers(1, 3),
)
@settings(deadline=None, max_examples=100)
def test_hashes_stand_for_words_whatever_the_batch(texts: list[str], size: int, batch: int) -> None:
    texts = [" ".join(part for part in text.split(" ") if part) for text in texts]
    whole, owners = hashes(texts, size)
    expected = [
        (k, tuple(words[j : j + size]))
        for k, words in enumerate([part for part in text.split(" ") if part] for text in texts)
        for j in range(len(words) - size + 1)
    ]
    assert owners.tolist() == [k for k, _ in expected]
    assert len(set(whole.tolist())) == len({run for _, run in expected})
    assert len({(one, run) for one, (_, run) in zip(whole.tolist(), expected, strict=True)}) == len(
        set(whole.tolist())
    )
    parts = [hashes(texts[start : start + batch], size)[0] for start in range(0, len(texts), batch)]
    assert np.concatenate([np.empty(0, np.uint64), *parts]).tolist() == whole.tolist()


def test_parts_and_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(list("abcdefg"), size=rng.integers(4, 40))) for _ in range(400)]
    texts[300] = texts[20]
    texts[301] = "x " + " ".join(texts[40].split()[:14])
    train, held_out = np.arange(300), np.arange(300, 400)
    with spilled(tmp_path / "spill", texts) as rows:
        whole = measure(rows, train, held_out)
        monkeypatch.setattr("slmctl.deduplication.ngram_overlap._BATCH", 7)
        monkeypatch.setattr("slmctl.deduplication.ngram_overlap._HELD", 50)
        assert measure(rows, train, held_out) == whole
    assert whole.overlapping >= 2
    assert len(whole.pairs) == whole.overlapping


def test_nothing_to_measure(tmp_path: Path) -> None:
    with spilled(tmp_path / "spill", ["one two three", ""]) as rows:
        found = measure(rows, np.array([0]), np.array([1]))
        assert (found.measured, found.overlapping, found.too_short, found.share) == (0, 0, 1, 0.0)
        assert measure(rows, np.array([], dtype=np.int64), np.array([0, 1])).too_short == 2
