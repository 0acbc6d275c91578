"""The linear models on an encoder's vectors: what validation rows choose, and what a label's name teaches."""

from __future__ import annotations

import numpy as np
import pytest

from slmctl.metrics import encoder_head, likelihood, linear_baseline

Rows = tuple[list[str], np.ndarray, list[str]]


def drawn(count: int, noise: float, seed: int) -> Rows:
    """Texts whose words tell the label three times in four, and vectors that tell it up to noise."""
    draw = np.random.default_rng(seed)
    labels = [("a", "b", "c")[k] for k in draw.integers(3, size=count)]
    words = [label if draw.random() < 0.75 else str(draw.choice(["a", "b", "c"])) for label in labels]
    vectors = np.eye(3)[[("a", "b", "c").index(label) for label in labels]] + noise * draw.standard_normal((count, 3))
    return [f"word{word} please" for word in words], vectors.astype(np.float32), labels


def test_what_ties_in_right_answers_is_chosen_by_likelihood() -> None:
    # counted, all weights had the same right answers here, and the first of them, 0, left TF-IDF out
    texts, vectors, labels = drawn(200, 0.4, 0)
    others, choosing, chosen = drawn(12, 0.05, 1)
    model, _ = encoder_head.fit(texts, vectors, labels, choosing=(others, choosing), chosen=chosen)
    names, parts = (
        np.array(model.labels),
        (model.head.scored((), choosing)[0], model.tfidf and model.tfidf.logprobs(others)),
    )
    assert model.weight > 0 and parts[1] is not None
    rights = {int((names[(parts[0] + w * parts[1]).argmax(axis=1)] == chosen).sum()) for w in (0.0, model.weight)}
    assert len(rights) == 1


def test_the_strength_is_that_of_the_likeliest_rows() -> None:
    rows, labels = drawn(60, 0.8, 8)[1:]
    others, references = drawn(40, 0.8, 9)[1:]
    _, strength = linear_baseline.fitted(rows, labels, others, references, likelihood=True, max_iter=2000)
    each = {}
    for candidate in linear_baseline.STRENGTHS:
        model, _ = linear_baseline.fitted(rows, labels, others, references, strengths=(candidate,), max_iter=2000)
        each[candidate] = likelihood.sharpest(model.classes_, np.log(model.predict_proba(others)), references)[1]
    _, counted = linear_baseline.fitted(rows, labels, others, references, max_iter=2000)
    assert each[strength] == pytest.approx(max(each.values()), abs=0.01)
    assert each[counted] < each[strength] - 0.05


def test_the_name_of_a_label_is_a_row_of_its_head() -> None:
    texts, labels, vectors = ["x", "y"], ["card_arrival", "top_up"], np.zeros((2, 4), np.float32)  # rows tell nothing
    assert [encoder_head.spoken(label) for label in (*labels, "Card-Arrival.")] == [
        "card arrival",
        "top up",
        "Card Arrival",
    ]
    named = ["card_arrival", "top_up", "unseen"], np.eye(4, dtype=np.float32)[:3]
    model, _ = encoder_head.fit(texts, vectors, labels, choosing=([], vectors[:0]), chosen=[], named=named)
    assert model.labels == ("card_arrival", "top_up")  # a label without a row is not learned by its name alone
    assert [model.labels[k] for k in model.scored((), named[1][:2])[0].argmax(axis=1)] == labels


def test_without_a_learned_label_the_sum_stays_as_sharp_as_it_is() -> None:
    scores = np.log(np.full((3, 2), 0.5))
    assert likelihood.sharpest(("a", "b"), scores, ["x", "y", "z"]) == (1.0, 0.0)
