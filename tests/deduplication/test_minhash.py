"""Near-duplicates: the hashes only propose, so what is found is what comparing all pairs finds."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.deduplication.minhash import (
    BANDS,
    ROWS,
    band_keys,
    compact,
    digest,
    estimate,
    first_equal,
    normalise,
    ratio,
    sketch,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where is ORDER 4711?", "where is order 9999"),
        ("two   spaces\tand\nlines", "two spaces and lines"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("Straße", "STRASSE"),
        ("a.b-c_d", "a b c d"),
        ("cafe\u0301", "café"),
    ],
)
def test_normalise_ignores_what_makes_no_other_text(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("order 12", "order 123"), ("yes", "no"), ("late", "later"), ("я", "r")]
)
def test_normalise_keeps_what_does(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=150)
def test_normalised_text_is_plain_words(text: str) -> None:
    once = normalise(text)
    assert once == " ".join(once.split())
    if any(char.isalnum() for char in text):
        assert all(char.isalnum() or char == " " for char in once if char.isascii())


VOCABULARY = [
    "parcel",
    "late",
    "refund",
    "code",
    "broken",
    "kettle",
    "order",
    "where",
    "when",
    "my",
    "the",
    "is",
]
words = st.lists(st.sampled_from(VOCABULARY), max_size=8)
sentences = words.map(" ".join)


@given(sentences, sentences)
@settings(deadline=None, max_examples=60)
def test_ratio_is_a_share_and_symmetric(one: str, other: str) -> None:
    assert 0 <= ratio(one, other) == ratio(other, one) <= 1
    assert ratio(one, one) == 1


@given(st.lists(st.text(max_size=30), max_size=12), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_sketches_do_not_depend_on_the_batch(texts: list[str], size: int) -> None:
    whole = sketch(texts)
    assert whole.shape == (len(texts), BANDS * ROWS)
    for start in range(0, len(texts), size):
        assert (sketch(texts[start : start + size]) == whole[start : start + size]).all()


def test_a_long_text_is_cut_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    texts = [
        "".join(rng.choices("abcde ", k=length))
        for length in (3, 500, 63, 64, 65, 68, 69, 132, 2000)
    ]
    whole = sketch(texts)
    monkeypatch.setattr("slmctl.deduplication.minhash._BLOCK", 64)
    assert (sketch(texts) == whole).all()


def test_sketches_estimate_the_similarity_of_grams() -> None:
    def grams(text: str) -> set[str]:
        return {text[k : k + 5] for k in range(len(text) - 4)}

    rng = random.Random(6)
    known = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(500)
    ]
    pairs = []
    for _ in range(400):
        words = rng.choices(known, k=30)
        changed = [
            rng.choice(known) if rng.random() < rng.choice([0.02, 0.1, 0.4]) else word
            for word in words
        ]
        pairs.append((" ".join(words), " ".join(changed)))
    real = np.array([len(grams(a) & grams(b)) / len(grams(a) | grams(b)) for a, b in pairs])
    one, other = (sketch([pair[side] for pair in pairs]) for side in (0, 1))
    signatures = (one == other).mean(axis=1) - real
    bits = estimate(compact(one), compact(other)) - real
    assert abs(signatures.mean()) < 0.01
    assert abs(bits.mean()) < 0.01
    assert signatures.std() < 0.045  # 128 fair draws give 0.039 here
    assert bits.std() < 0.05
    shared = (band_keys(one) == band_keys(other)).any(axis=1)
    assert shared[real >= 0.7].all()


def test_digests_find_the_first_of_equal_rows() -> None:
    texts = ["b", "a", "b", "", "a", "b", "c", ""]
    found = first_equal(b"".join(map(digest, texts)))
    assert found.tolist() == [-1, -1, 0, -1, 1, 0, -1, 3]
    assert first_equal(np.frombuffer(digest("a") * 2, dtype=np.uint8).reshape(2, 16)).tolist() == [
        -1,
        0,
    ]
    assert first_equal(b"").tolist() == []


def test_digest_and_sketch_are_the_same_on_every_machine() -> None:
    assert digest("where is my parcel").hex() == "a989382b2ba4560be5d1bf5079bba9a8"
    assert zlib.crc32(sketch(["where is my parcel", "日本語", ""]).tobytes()) == 531067688


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=60))
@settings(deadline=None, max_examples=150)
def test_the_short_way_for_ascii_is_the_long_way(text: str) -> None:
    if any(char.isalnum() for char in text):
        assert normalise(text) == normalise(text + " é").removesuffix("é").rstrip()


def test_signs_alone_tell_texts_apart() -> None:
    assert normalise(" :-)  ") == ":-)" != normalise(":-(")
    assert normalise("👍 👍") == "👍 👍" != normalise("👎")
    assert normalise(" \n") == ""
