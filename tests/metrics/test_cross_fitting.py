"""Rows in folds: none is judged by a model that learned it or its
group, and the last model learns all.
"""

from __future__ import annotations

import numpy as np
import pytest

from slmctl.metrics import cross_fitting, encoder_head, label_sum, linear_baseline

GROUPS = 60


def of_chance() -> tuple[list[str], np.ndarray, list[str], list[int]]:
    """Texts and vectors in groups of three, alike within a group alone, with
    labels by chance: only the group tells.
    """
    labels = (
        np.random.default_rng(0).permutation(["a", "b", "c"] * (GROUPS // 3)).repeat(3).tolist()
    )
    groups = np.arange(GROUPS).repeat(3)
    return (
        [f"word{k} word{k}x" for k in groups],
        np.eye(GROUPS, dtype=np.float32)[groups],
        labels,
        groups.tolist(),
    )


@pytest.mark.parametrize("grouped", [True, False])
def test_no_row_is_judged_by_a_model_that_learned_its_group(grouped: bool) -> None:
    texts, vectors, labels, groups = of_chance()
    fold = cross_fitting.folds(labels, groups if grouped else range(len(labels)), validation=0)
    fit = label_sum.fit(texts, vectors, labels, fold=fold)
    places = np.searchsorted(fit.model.labels, labels)
    for table in fit.logprobs.values():
        right = (table.argmax(axis=1) == places).mean()
        assert right < 0.5 if grouped else right > 0.9  # a group in three folds tells all
    after = fit.model.logprobs(texts, vectors)  # the model has learned every row
    assert all((table.argmax(axis=1) == places).mean() > 0.9 for table in after.values())


def test_judgements_alone_take_no_model_of_all_rows() -> None:
    texts, vectors, labels, groups = of_chance()
    fold, names = cross_fitting.folds(labels, groups, validation=0), np.array(labels)
    parts = cross_fitting.splits(fold, names, whole=False)
    assert [len(learned) + len(judged) for learned, judged in parts] == [
        len(labels)
    ] * cross_fitting.FOLDS
    assert all(len(judged) for _, judged in parts)
    whole, alone = (
        label_sum.fit(texts, vectors, labels, fold=fold, whole=each) for each in (True, False)
    )
    assert alone.model.weights == whole.model.weights
    assert all(
        np.array_equal(alone.logprobs[name], table) for name, table in whole.logprobs.items()
    )
    # no row is judged
    ((learned, judged),) = cross_fitting.splits(np.full(len(labels), -1), names, whole=False)
    assert len(learned) == len(labels) and not len(judged)


def test_the_rows_of_a_label_go_to_the_folds_in_turn() -> None:
    labels = ["a"] * 10 + ["b"] * 5 + ["c"] * 2
    fold = cross_fitting.folds(labels, range(17), validation=0)
    assert (
        np.bincount(fold[:10]).tolist() == [2] * 5 and np.bincount(fold[10:15]).tolist() == [1] * 5
    )
    assert len(set(fold[15:])) == 2
    pairs = [k // 2 for k in range(17)]
    shared = cross_fitting.folds(labels, pairs, validation=0)
    assert all(len({shared[k] for k in range(17) if pairs[k] == pair}) == 1 for pair in pairs)


def test_of_many_rows_the_validation_rows_are_the_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_fitting, "MOST", 10)
    assert (
        cross_fitting.folds(["a", "b"] * 6, range(12), validation=4).tolist() == [-1] * 8 + [0] * 4
    )


def test_a_label_that_no_other_fold_has_tells_nothing() -> None:
    texts, vectors, labels, _ = of_chance()
    labels[0] = "rare"
    fold = cross_fitting.folds(labels, range(len(labels)), validation=0)
    words = linear_baseline.cross_fit(texts, labels, fold=fold)
    assert words is not None
    for table in (words[1], encoder_head.cross_fit(vectors, labels, fold=fold).logprobs):
        assert np.exp(table[0]) == pytest.approx(1 / 4) and not np.allclose(np.exp(table[1]), 1 / 4)


def test_one_label_and_texts_without_a_word_leave_nothing_to_learn() -> None:
    assert (
        linear_baseline.cross_fit(["hello there"] * 4, ["a"] * 4, fold=np.array([0, 1, 0, 1]))
        is None
    )
    assert linear_baseline.cross_fit(["", " "] * 4, ["a", "b"] * 4, fold=np.arange(8) // 4) is None
    # it ended in a ValueError: characters without a word
    made = linear_baseline.cross_fit(["!", "?"] * 4, ["a", "b"] * 4, fold=np.arange(8) // 4)
    assert made is not None and made[0].answers(["?", "!"])[0] == ["b", "a"]
    head = encoder_head.cross_fit(
        np.eye(4, dtype=np.float32), ["a"] * 4, fold=np.array([0, 1, 0, 1])
    ).head
    assert head.labels == ("a",)
