"""Labels spread over unlabelled rows: what neighbours mend, what they leave, and how much each row counts."""

from __future__ import annotations

import numpy as np
import pytest

from slmctl.metrics import encoder_head
from slmctl.metrics.label_spreading import NEIGHBOURS, WEIGHT, spread

AXES = np.eye(6, dtype=np.float32)
Rows = tuple[np.ndarray, np.ndarray]


def clusters(count: int, seed: int) -> Rows:
    """Returns (unit vectors (count, 24), labels): six clusters, two of each label, and noise in 24 dimensions."""
    draw = np.random.default_rng(seed)
    cluster = draw.integers(6, size=count)
    vectors = np.eye(6, 24)[cluster] + 0.22 * draw.standard_normal((count, 24))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), cluster % 3


def right(head: encoder_head.OpinionHead, rows: Rows) -> float:
    vectors, labels = rows
    return float((np.array(head.labels)[head.scored((), vectors)[0].argmax(axis=1)] == labels.astype(str)).mean())


def test_a_head_that_learns_the_spread_labels_is_right_more_often() -> None:
    (vectors, labels), asked, choosing = clusters(412, 0), clusters(600, 1), AXES[:0]
    known, rest = slice(0, 12), slice(12, None)
    told = labels.astype(str)
    head = encoder_head.fit_head(vectors[known], told[known].tolist(), choosing=choosing, chosen=[])
    chances = np.exp(head.scored((), vectors[rest])[0])
    found, weights = spread(vectors[known], labels[known], vectors[rest], chances)
    assert (found == labels[rest]).mean() > (chances.argmax(axis=1) == labels[rest]).mean() + 0.05
    assert weights[found == labels[rest]].mean() > weights[found != labels[rest]].mean()
    more = encoder_head.fit_head(
        np.concatenate([vectors[known], vectors[rest]]),
        [*told[known], *found.astype(str)],
        choosing=choosing,
        chosen=[],
    )
    assert right(more, asked) > right(head, asked) + 0.05


@pytest.mark.parametrize(("chance", "weight"), [(1.0, WEIGHT), (0.8, WEIGHT * 0.8**2), (0.5, WEIGHT / 4)])
def test_a_row_counts_by_the_square_of_its_probability(chance: float, weight: float) -> None:
    # the axes are alike to none, so each row keeps what the model says of it
    chances = np.array([[chance, 1 - chance], [1 - chance, chance]], np.float32)
    found, weights = spread(AXES[:2], np.array([0, 1]), AXES[2:4], chances)
    assert weights == pytest.approx(weight)
    assert chance == 0.5 or found.tolist() == [0, 1]


def test_a_row_takes_the_label_of_its_neighbours_against_an_unsure_model() -> None:
    near = AXES[0] + 0.01 * np.random.default_rng(0).standard_normal((NEIGHBOURS, 6)).astype(np.float32)
    chances = np.array([[0.45, 0.55], [0.2, 0.8]], np.float32)
    found, _ = spread(
        np.concatenate([near, AXES[1:2]]), np.array([0] * NEIGHBOURS + [1]), np.stack([AXES[0], AXES[3]]), chances
    )
    assert found.tolist() == [0, 1]


@pytest.mark.parametrize("case", ["none", "one labelled row", "zero vectors", "a label without a row", "equal rows"])
def test_every_number_stays_in_its_bounds(case: str) -> None:
    vectors, labels, unlabelled = AXES[:2], np.array([0, 1]), AXES[2:5]
    chances = np.full((3, 3), 1 / 3, np.float32)
    if case == "none":
        unlabelled, chances = unlabelled[:0], chances[:0]
    elif case == "one labelled row":
        vectors, labels = vectors[:1], labels[:1]
    elif case == "zero vectors":
        vectors, unlabelled = 0 * vectors, 0 * unlabelled
    elif case == "equal rows":
        vectors, unlabelled = vectors[[0, 0]], AXES[[0, 0, 0]]
    found, weights = spread(vectors, labels, unlabelled, chances)
    assert found.shape == weights.shape == (len(unlabelled),)
    assert set(found.tolist()) <= set(labels.tolist())  # label 2 has no row to learn it from
    assert ((weights >= 0) & (weights <= WEIGHT)).all()
