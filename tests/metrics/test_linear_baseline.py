"""The linear baseline: what it learns from, which strength it takes, and what bounds its work."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.metrics import cross_fitting, linear_baseline

ROWS = [
    ("refund my order", "money"),
    ("refund please", "money"),
    ("parcel is late", "way"),
    ("late parcel", "way"),
] * 5
CHOOSING = {"choosing": [text for text, _ in ROWS], "chosen": [label for _, label in ROWS]}


def fitted(rows: list[tuple[str, str]], **options: object) -> linear_baseline.LinearModel:
    return linear_baseline.fit(
        [text for text, _ in rows], [label for _, label in rows], **CHOOSING | options
    )


@pytest.mark.parametrize("labels", [2, 77])
def test_a_misspelled_word_is_known_by_its_characters(labels: int) -> None:
    """With few weights and one solver, with many and the other."""
    others = [(f"topic{k}a {k}b", f"label{k}") for k in range(labels - 2) for _ in range(4)]
    model = fitted(ROWS + others)
    assert model.answers(["refundd", "parcell"])[0] == ["money", "way"]


def test_a_word_of_one_letter_counts() -> None:
    rows = [("a", "first"), ("b", "second")] * 5
    assert fitted(rows, choosing=["a", "b"], chosen=["first", "second"]).answers(["b", "a"])[0] == [
        "second",
        "first",
    ]


def test_strengths_are_tried_until_two_in_a_row_do_no_better() -> None:
    """Chance rows: the first strength is as good as any, so the model of the first is kept."""
    model = fitted(ROWS, choosing=["refund", "none of this"], chosen=["money", "unknown"])
    assert model.strength == cross_fitting.STRENGTHS[0]
    assert model.strength == model.classifier.C


def test_characters_are_left_out_of_too_much_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_baseline, "RUN_WORK", 10)
    assert [name for name, _ in fitted(ROWS).vectorizer.transformer_list] == ["words"]
    monkeypatch.undo()
    assert [name for name, _ in fitted(ROWS).vectorizer.transformer_list] == ["words", "runs"]


def test_of_several_labels_each_has_a_model_of_its_own() -> None:
    sets = {
        "refund it": '["money"]',
        "parcel is late": '["way"]',
        "refund late parcel": '["money", "way"]',
        "hi": "[]",
    }
    rows = list(sets.items()) * 6
    model = fitted(
        rows,
        choosing=list(sets),
        chosen=list(sets.values()),
        several=("money", "way", "never", "rare"),
    )
    answers, sure = model.answers(["refund please", "late parcel, refund", "hi", "parcel"])
    assert answers == ['["money"]', '["money", "way"]', "[]", '["way"]']
    assert sure is not None
    assert all(0.06 < chance < 1 for chance in sure)  # of a whole list: 0.5 and more for each label


def test_a_stored_model_has_a_place_for_words_of_two_rows_alone() -> None:
    texts = [f"{word} please" for word in ("invoice", "invoice", "parcel", "parcel", "brindlecove")]
    labels = ["billing", "billing", "delivery", "delivery", "delivery"]
    made = linear_baseline.cross_fit(texts, labels, fold=np.full(5, -1))
    assert made is not None
    model, _ = made
    arrays = model.arrays()
    assert all(array.dtype.kind in "fi" for array in arrays.values()), "no array holds a text"
    (words, _) = model.vectorizer.parts
    counts = {
        word: words.transform([word]).nnz for word in ("invoice", "parcel", "please", "brindlecove")
    }
    assert counts == {"invoice": 1, "parcel": 1, "please": 1, "brindlecove": 0}
    (answer,), _ = model.answers(["a parcel, please"])
    assert answer == "delivery"


@pytest.mark.parametrize("name", linear_baseline.FEATURES)
@settings(deadline=None)  # the first one imports scikit-learn
@given(
    text=st.text(
        st.sampled_from("abcÄßΣσς\u0130é\u0301 \t\n\x1c\x85\u2003.,-_09你😀'"), max_size=300
    )
)
def test_a_text_that_is_hashed_in_pieces_has_the_features_that_it_has_as_a_whole(
    name: str, text: str
) -> None:
    whole = linear_baseline._hashes(name, [text])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_baseline, "LONG", -1)
        patch.setattr(linear_baseline, "PIECE", 7)
        pieces = linear_baseline._hashes(name, [text, ""])
    assert pieces.shape[0] == 2 and pieces.dtype == whole.dtype and (pieces[:1] != whole).nnz == 0


def test_a_client_that_sends_a_long_text_takes_no_memory_for_its_features() -> None:
    # a million characters took 239 MB, and a server takes ten million
    text = " ".join(str(k * 7919 % 1_000_003) for k in range(15_000))
    linear_baseline._hashes("runs", ["import what it needs"])
    tracemalloc.start()
    try:
        assert linear_baseline._hashes("runs", [text]).sum() > 300_000
        assert tracemalloc.get_traced_memory()[1] < 12 << 20  # 23 MB as a whole
    finally:
        tracemalloc.stop()
