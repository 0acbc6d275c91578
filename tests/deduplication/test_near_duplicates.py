"""Near-duplicates of spilled rows: what all pairs give, whatever the
batches, and never the work of all pairs.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz, process
from support.spill import spilled

from slmctl.deduplication import minhash
from slmctl.deduplication.near_duplicates import DEPTH, LINKS, roots

NEAR = 0.85


def vocabulary(rng: random.Random, count: int = 2000) -> list[str]:
    return [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9)))
        for _ in range(count)
    ]


def tickets(count: int, seed: int = 0) -> list[str]:
    """Texts of 12 to 30 words; a fifth of them are an earlier one with a word or two changed."""
    rng = random.Random(seed)
    known = vocabulary(rng)
    texts: list[str] = []
    for _ in range(count):
        words = (
            rng.choice(texts).split()
            if texts and rng.random() < 0.2
            else rng.choices(known, k=rng.randint(12, 30))
        )
        for _ in range(rng.randint(1, 2)):
            words[rng.randrange(len(words))] = rng.choice(known)
        texts.append(" ".join(words))
    return texts


def brute_force(texts: list[str], threshold: float) -> list[int]:
    """The earliest earlier text that is near, of all of them."""
    scores = process.cdist(texts, texts, scorer=fuzz.ratio, dtype=np.float64) / 100 >= threshold
    return [int(row[:k].argmax()) if row[:k].any() else -1 for k, row in enumerate(scores)]


def test_finds_what_comparing_all_pairs_finds(tmp_path: Path) -> None:
    texts = tickets(2500)
    expected = brute_force(texts, NEAR)
    with spilled(tmp_path / "spill", texts) as rows:
        found = rows.near(NEAR).tolist()
        assert rows.compared < len(texts)
    assert sum(one >= 0 for one in expected) > 300
    missed = [k for k, one in enumerate(expected) if one >= 0 and found[k] < 0]
    assert len(missed) <= 0.01 * sum(one >= 0 for one in expected)
    for k, one in enumerate(found):
        assert one == -1 or (one < k and minhash.ratio(texts[k], texts[one]) >= NEAR)
    assert sum(one != other for one, other in zip(found, expected, strict=True)) <= 0.01 * len(
        texts
    )


def test_batches_workers_and_threads_change_nothing(tmp_path: Path) -> None:
    texts = [*tickets(400), "", "日本", "", "ab", "日本語の文", "x" * 9, "日本"]
    found = []
    for name, batch, workers in (("one", 1, 1), ("seven", 7, 2), ("all", 1000, -1)):
        with spilled(tmp_path / name, texts, batch) as rows:
            found.append(rows.near(NEAR, workers=workers).tolist())
    assert found[0] == found[1] == found[2]
    assert found[0][-7:] == [-1, -1, 400, -1, -1, -1, 401]  # texts without a whole gram too


def test_some_rows_among_others(tmp_path: Path) -> None:
    texts = tickets(1200, seed=5)
    side = np.random.default_rng(1).random(len(texts)) < 0.3
    train, held_out = np.flatnonzero(~side), np.flatnonzero(side)
    with spilled(tmp_path / "spill", texts) as rows:
        found = rows.near(NEAR, rows=train, among=held_out)
    scores = process.cdist(
        [texts[k] for k in train], [texts[k] for k in held_out], scorer=fuzz.ratio, dtype=np.float64
    )
    expected = np.where(
        (scores >= NEAR * 100).any(axis=1), held_out[(scores >= NEAR * 100).argmax(axis=1)], -1
    )
    assert (expected >= 0).sum() > 60
    assert (found != expected).sum() <= 0.01 * len(train)
    assert set(found[found >= 0]) <= set(held_out)


def test_rows_left_out_are_not_found(tmp_path: Path) -> None:
    texts = [
        "where is my parcel it was sent on monday",
        "",
        "where is my parcel it was sent on mondays",
    ]
    with spilled(tmp_path / "spill", texts) as rows:
        assert rows.near(NEAR).tolist() == [-1, -1, 0]
        assert rows.near(NEAR, rows=np.array([1, 2])).tolist() == [-1, -1]
        assert rows.near(NEAR, rows=np.array([0, 1]), among=np.array([2])).tolist() == [2, -1]
        # never itself
        assert rows.near(NEAR, rows=np.array([2]), among=np.array([2])).tolist() == [-1]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_compare(tmp_path: Path, count: int) -> None:
    with spilled(tmp_path / "spill", ["hello"] * count) as rows:
        assert rows.near(NEAR).tolist() == [-1] * count
    assert not (tmp_path / "spill").exists()


def test_texts_come_back(tmp_path: Path) -> None:
    texts = ["", "one", "", "zwei", "日本", "\ud800 lone"]
    with spilled(tmp_path / "spill", texts, batch=2) as rows:
        assert rows.texts(range(6)) == texts
        assert rows.texts([5, 1, 1]) == ["\ud800 lone", "one", "one"]


def test_equal_texts_cost_one_comparison_each(tmp_path: Path) -> None:
    with spilled(
        tmp_path / "spill", ["the same words again and again"] * 10_000, batch=2000
    ) as rows:
        found = rows.near(NEAR)
        assert rows.compared == 9999
    assert found[0] == -1
    assert not found[1:].any()


def test_texts_that_share_boilerplate_cost_no_more_each_when_there_are_more(tmp_path: Path) -> None:
    rng = random.Random(9)
    known = vocabulary(rng)
    boilerplate = " ".join(rng.choices(known, k=30))
    each = []
    for count in (3_000, 12_000):
        texts = [f"{boilerplate} {' '.join(rng.choices(known, k=14))}" for _ in range(count)]
        texts += [text.replace(boilerplate[:9], "something") for text in texts[:100]]
        with spilled(tmp_path / str(count), texts) as rows:
            found = rows.near(0.95)
            each.append(rows.compared / count)
        assert (found[-100:] == range(100)).mean() >= 0.9  # found although all of them look alike
    assert each[1] <= 32 * (LINKS + DEPTH)
    assert each[1] < 1.5 * each[0]


def test_chains_end_in_their_first_row() -> None:
    assert roots(np.array([-1, 0, -1, 1, 3, 2])).tolist() == [0, 0, 2, 0, 0, 2]
    assert roots(np.array([], dtype=np.int64)).tolist() == []


@given(st.lists(st.sampled_from([-1, 0, 1, 2]), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_roots_are_roots(steps: list[int]) -> None:
    near = np.array([-1 if step < 0 or k <= step else k - 1 - step for k, step in enumerate(steps)])
    for row, root in enumerate(roots(near)):
        at = row
        while near[at] >= 0:
            at = near[at]
        assert at == root
