"""Labels spread over unlabelled rows: what neighbours mend, what they
leave, and how much each row counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from slmctl.metrics import cross_fitting, encoder_head
from slmctl.metrics.label_spreading import NEIGHBOURS, WEIGHT, spread

AXES = np.eye(6, dtype=np.float32)
Rows = tuple[np.ndarray, np.ndarray]


def clusters(count: int, seed: int) -> Rows:
    """Returns (unit vectors (count, 24), labels): six clusters, two of
    each label, and noise in 24 dimensions.
    """
    draw = np.random.default_rng(seed)
    cluster = draw.integers(6, size=count)
    vectors = np.eye(6, 24)[cluster] + 0.22 * draw.standard_normal((count, 24))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(
        np.float32
    ), cluster % 3


def mixed(count: int, seed: int) -> Rows:
    """As `clusters`, but a label is in three of 24 numbers, and neighbours
    are those of a cluster, whatever label.
    """
    vectors, labels = clusters(count, seed)
    labels = np.random.default_rng(seed).permutation(labels)
    vectors[:, 21:] = 0.1 * np.eye(3, dtype=np.float32)[labels]
    return vectors, labels


def test_a_head_that_learns_the_spread_labels_is_right_more_often() -> None:
    (vectors, labels), (asked, wanted) = clusters(438, 10), clusters(600, 60)
    told = labels.astype(str).tolist()
    heads = [
        encoder_head.cross_fit(
            vectors[:18], told[:18], fold=np.arange(18) % 5, unlabelled=rows
        ).head
        for rows in (None, vectors[38:])
    ]
    alone, more = ((head.evidence(asked).argmax(axis=1) == wanted).mean() for head in heads)
    assert more > alone + 0.03


@pytest.mark.parametrize(("rows", "helps"), [(clusters, True), (mixed, False)])
def test_held_out_rows_tell_if_unlabelled_rows_help(
    rows: Callable[[int, int], Rows], helps: bool
) -> None:
    vectors, labels = rows(550, 0)
    told = labels.astype(str).tolist()
    fold = cross_fitting.folds(told[:40], range(40), validation=0)
    fit = encoder_head.cross_fit(vectors[:40], told[:40], fold=fold, unlabelled=vectors[150:])
    assert fit.learns_unlabelled == helps


def test_unlabelled_rows_that_help_by_less_than_a_nat_are_not_learned() -> None:
    # any gain was enough, and 10,000 rows were learned for 0.01 nats of 40 rows
    vectors, labels = clusters(550, 7)
    told = labels.astype(str).tolist()
    fold = cross_fitting.folds(told[:40], range(40), validation=0)
    fit = encoder_head.cross_fit(vectors[:40], told[:40], fold=fold, unlabelled=vectors[150:])
    assert not fit.learns_unlabelled


@pytest.mark.parametrize(
    ("chance", "weight"), [(1.0, WEIGHT), (0.8, WEIGHT * 0.8**2), (0.5, WEIGHT / 4)]
)
def test_a_row_counts_by_the_square_of_its_probability(chance: float, weight: float) -> None:
    # the axes are alike to none, so each row keeps what the model says of it
    chances = np.array([[chance, 1 - chance], [1 - chance, chance]], np.float32)
    found, weights = spread(AXES[:2], np.array([0, 1]), AXES[2:4], chances)
    assert weights == pytest.approx(weight)
    assert chance == 0.5 or found.tolist() == [0, 1]


def test_a_row_takes_the_label_of_its_neighbours_against_an_unsure_model() -> None:
    near = AXES[0] + 0.01 * np.random.default_rng(0).standard_normal((NEIGHBOURS, 6)).astype(
        np.float32
    )
    chances = np.array([[0.45, 0.55], [0.2, 0.8]], np.float32)
    found, _ = spread(
        np.concatenate([near, AXES[1:2]]),
        np.array([0] * NEIGHBOURS + [1]),
        np.stack([AXES[0], AXES[3]]),
        chances,
    )
    assert found.tolist() == [0, 1]


@pytest.mark.parametrize(
    "case", ["none", "one labelled row", "zero vectors", "a label without a row", "equal rows"]
)
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
