"""The nearest training rows, beside scikit-learn's vectors."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from support import TESTS, tiny

from slmctl.deduplication import minhash
from slmctl.production.review.near_rows import TrainingRows

ROWS = tiny.rows(150, seed=3)
QUERIES = [text for text, _ in tiny.rows(20, seed=4)]


def test_the_nearest_rows_are_those_of_scikit_learn() -> None:
    vectorizer = TfidfVectorizer(
        tokenizer=lambda text: minhash.normalise(text).split(),
        token_pattern=None,
        lowercase=False,
        sublinear_tf=True,
    )
    table = vectorizer.fit_transform([text for text, _ in ROWS])
    index = TrainingRows(ROWS)
    # of words that are all known: one that is not makes a text less like every row here
    for query in QUERIES:
        scores = np.asarray((table @ vectorizer.transform([query]).T).todense()).ravel()
        nearest = index.nearest(query)
        assert [each.similarity for each in nearest] == pytest.approx(
            np.sort(scores)[::-1][:5], abs=1e-4
        )
        assert all((each.text, each.answer) in ROWS for each in nearest)
        assert index.similarity(query) == pytest.approx(scores.max())


def test_a_text_of_unknown_words_is_near_nothing() -> None:
    index = TrainingRows(ROWS)
    assert index.nearest("zzz qqq") == [] == index.nearest("") == TrainingRows([]).nearest("hello")
    assert index.similarity("zzz qqq") == 0 == TrainingRows([]).similarity("hello")
    text = ROWS[0][0]
    assert index.similarity(text) == pytest.approx(1)
    assert index.similarity(f"{text} zzz qqq xxx yyy") < 0.8


def test_the_rows_of_a_data_set_are_read() -> None:
    index = TrainingRows.of(TESTS / "fixtures" / "0.1.0" / "prepared")
    (first, *_) = index.nearest("parcel tracking green phone blue monday chair")
    assert (first.text, first.answer) == (
        "parcel tracking green phone blue monday chair",
        "delivery",
    )
