"""The confident joint: the same suspects as cleanlab names, in the same order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.metrics import confident_joint
from slmctl.metrics.linear_baseline import out_of_fold


def drawn(seed: int, labels: int, rows: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a model that mostly knows the true label,
    and labels of which a share is wrong.
    """
    rng = np.random.default_rng(seed)
    true = np.concatenate([np.arange(labels), rng.integers(0, labels, rows - labels)])
    wrong = rng.random(rows) < noise
    wrong[:labels] = False  # every label has a row
    given = np.where(wrong, rng.integers(0, labels, rows), true)
    chances = 0.6 * rng.dirichlet(np.full(labels, 0.5), rows) + 0.4 * np.eye(labels)[true]
    return chances, given


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(20, 150), st.floats(0, 0.4))
def test_the_joint_and_the_number_of_suspects_are_those_of_cleanlab(
    seed: int, labels: int, rows: int, noise: float
) -> None:
    counting = pytest.importorskip("cleanlab.count", reason="cleanlab comes with the extra dev")
    chances, own = drawn(seed, labels, rows, noise)
    theirs = counting.compute_confident_joint(own, chances, calibrate=False)
    assert confident_joint.joint(chances, own).tolist() == theirs.tolist()
    found = confident_joint.find(chances, own)
    doubted = int((chances.argmax(axis=1) != own).sum())
    expected = min(
        doubted,
        counting.num_label_issues(own, chances, estimation_method="off_diagonal_calibrated"),
    )
    # cleanlab rounds the joint to whole rows first
    assert abs(len(found.rows) - expected) <= labels / 2 + 1
    assert found.proposed.tolist() == chances[found.rows].argmax(axis=1).tolist()
    assert not (found.proposed == own[found.rows]).any()
    assert found.scores.tolist() == sorted(found.scores, reverse=True)
    rest = sorted(set(range(rows)) - set(found.rows.tolist()))
    left = chances[rest].max(axis=1) / (chances[rest].max(axis=1) + chances[rest, own[rest]])
    assert not found.rows.size or left.max(initial=0) <= found.scores.min() + 1e-4


def test_a_surer_model_asks_for_more_before_it_doubts() -> None:
    own = np.array([0, 0, 0, 1, 1, 1])
    chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.1, 0.9], [0.1, 0.9], [0.1, 0.9]])
    assert confident_joint.thresholds(chances, own) == pytest.approx([0.7167, 0.9], abs=1e-4)
    # 0.65 is less than label 1 has on its own rows
    assert not confident_joint.find(chances, own).rows.size
    chances[3:] = [0.4, 0.6]
    found = confident_joint.find(chances, own)
    assert (found.rows.tolist(), found.proposed.tolist(), found.scores.tolist()) == (
        [2],
        [1],
        [0.65],
    )


def test_no_row_is_judged_by_a_model_that_saw_it() -> None:
    texts = [f"{word} {k % 7}" for word in ("apple", "plum") for k in range(40)]
    own = np.repeat([0, 1], 40)
    # one row of each label: a model that saw a row would follow its label
    texts[5] = texts[45] = "quince alone"
    chances = out_of_fold(texts, own, folds=2, strength=100.0)
    assert chances is not None
    assert chances.sum(axis=1) == pytest.approx(np.ones(80), abs=1e-5)
    right = chances[np.arange(80), own] > 0.5
    assert right.sum() == 78
    assert not right[5] and not right[45]


def test_texts_without_a_word_have_no_probabilities() -> None:
    assert out_of_fold(["!", "?"] * 10, np.array([0, 1] * 10), folds=2, strength=1.0) is None
