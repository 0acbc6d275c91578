"""Metrics, against scikit-learn, sacrebleu and rouge-score, and by
hand where no library defines them.
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.metrics import answer_metrics
from slmctl.metrics.answer_metrics import INVALID, field_counts, hits, leaves, parse

LABELS = ("a", "b", "c", "d")
answers = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40
)
# few letters, so that texts have much in common
sentences = st.lists(st.text(alphabet="abC .,-_9\n", max_size=7), max_size=9).map(" ".join)
texts = st.one_of(sentences, st.text(alphabet=string.printable, max_size=40))
leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from([1.0, 0.5]),
    st.sampled_from(["", "x"]),
)
values = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
)


@settings(deadline=None)  # the first example imports the other library
@given(answers)
def test_per_class_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    wanted, given_ = [a for a, _ in pairs], [b for _, b in pairs]
    ours = answer_metrics.per_class(LABELS, wanted, given_)
    theirs = sklearn.precision_recall_fscore_support(
        wanted, given_, labels=list(ours), zero_division=0
    )
    assert set(ours) == {*wanted, *given_}
    for k, row in enumerate(ours.values()):
        assert list(row.values()) == pytest.approx([column[k] for column in theirs])


@settings(deadline=None)
@given(answers)
def test_metrics_of_levels_are_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    wanted, given_ = (np.array([LABELS.index(pair[side]) for pair in pairs]) for side in (0, 1))
    sums = answer_metrics.level_sums(wanted - 1.5, given_ - 1.5).sum(axis=0)
    assert answer_metrics.level_error(sums) == pytest.approx(
        sklearn.mean_absolute_error(wanted, given_)
    )
    if len({*wanted.tolist(), *given_.tolist()}) == 1:  # 0 / 0, which scikit-learn leaves open
        assert answer_metrics.quadratic_kappa(sums) == 0
    else:
        kappa = sklearn.cohen_kappa_score(wanted, given_, weights="quadratic", labels=range(4))
        assert answer_metrics.quadratic_kappa(sums) == pytest.approx(kappa)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_by_its_definition(rows: list[tuple[float, bool]]) -> None:
    """Guo et al. 2017, equation 3, bin by bin."""
    sure, right = np.array([a for a, _ in rows]), np.array([b for _, b in rows])
    edges = np.linspace(0, 1, answer_metrics.BINS + 1)
    expected = 0.0
    bins = answer_metrics.bin_of(sure)
    for k in range(answer_metrics.BINS):
        inside = bins == k
        assert np.all(sure[inside] >= edges[k] - 1e-9)
        assert np.all(sure[inside] <= edges[k + 1] + 1e-9)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    found = answer_metrics.calibration_error(np.ones((1, len(sure))), sure, right.astype(float))
    assert found.observed[0] == pytest.approx(expected, abs=1e-9)
    assert 0 <= found.error[0] <= found.observed[0]


def test_calibration_of_no_rows_is_no_error() -> None:
    assert (
        answer_metrics.calibration_error(np.zeros((1, 2)), np.array([0.3, 0.9]), np.zeros(2)).error[
            0
        ]
        == 0.0
    )


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.1])
def test_the_interval_of_a_calibration_error_holds_the_truth(shift: float) -> None:
    """100 worlds of 600 rows whose true error is known; without the
    correction a calibrated model shows 2.5 %.
    """
    random = np.random.default_rng(7)
    held, errors = 0, []
    for _ in range(100):
        sure = 1 / (1 + np.exp(-np.abs(random.normal(3, 1.8, 600))))
        chance = np.clip(sure - shift, 0, 1)
        right = (random.random(600) < chance).astype(float)
        weights = random.multinomial(600, np.full(600, 1 / 600), 200).astype(float)
        low, high = np.quantile(
            answer_metrics.calibration_error(weights, sure, right).error, [0.025, 0.975]
        )
        held += low <= shift <= high
        errors.append(answer_metrics.calibration_error(np.ones((1, 600)), sure, right).error[0])
    assert held >= 93
    assert abs(np.mean(errors) - shift) < 0.012


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_chrf_of_many_rows_is_sacrebleus_corpus_score(pairs: list[tuple[str, str]]) -> None:
    chrf = pytest.importorskip("sacrebleu.metrics").CHRF()
    counts = np.sum([answer_metrics.chrf_counts(a, b) for a, b in pairs], axis=0).astype(float)
    theirs = chrf.corpus_score([b for _, b in pairs], [[a for a, _ in pairs]]).score / 100
    assert answer_metrics.chrf(counts) == pytest.approx(theirs, abs=1e-9)


@settings(deadline=None, max_examples=200)
@given(texts, texts)
def test_rouge_l_is_rouge_scores(wanted: str, given_: str) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    theirs = scorer.score(wanted, given_)["rougeL"].fmeasure
    assert answer_metrics.rouge_l(
        answer_metrics.words(wanted), answer_metrics.words(given_)
    ) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("wanted", "given_", "same"),
    [
        ("Dear Ann, we refund you.", "dear ann we  refund\nyou", True),
        # digits count, unlike in the search for near-duplicates
        ("Order 1234", "Order 1235", False),
        ("Straße", "STRASSE", True),
        ("यह दिन है", "यह दान है", False),  # a day, a donation
        ("यह दिन है", "यह दिन है।", True),
        ("Ünïcode ﬁne", "ünïcode fine", True),
        ("a b", "b a", False),
        ("", "...", True),
    ],
)
def test_normalised_match(wanted: str, given_: str, same: bool) -> None:
    assert answer_metrics.same_text(wanted, given_) is same


@pytest.mark.parametrize(
    ("wanted", "given_", "f1"),
    [
        ("a b c", "a b c", 1),
        ("a b", "a c", 0.5),
        ("a a b", "a", 0.5),
        ("a", "", 0),
        ("", "", 1),
        ("no yes", "yes", 2 / 3),
    ],
)
def test_token_f1(wanted: str, given_: str, f1: float) -> None:
    assert answer_metrics.token_f1(wanted.split(), given_.split()) == pytest.approx(f1)


# Records with fields


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        "yes",
        '{"a": 1} or so',
        "[" * 100_000,
        "[" * 101 + "]" * 101,
    ],
)
def test_what_is_no_json(text: str) -> None:
    assert parse(text) is INVALID
    assert parse("null") is None
    assert field_counts({"a": 1}, None) == (0, 1, 1)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (None, False, False),
        ("1", 1, False),
        ({"a": 1, "b": [1, {"c": 2}]}, {"b": [1.0, {"c": 2}], "a": 1}, True),
        ([1, 2], [2, 1], False),
        ({"a": None}, {}, False),
        ({"a": [True]}, {"a": [1]}, False),
    ],
)
def test_when_two_values_are_the_same(a: Any, b: Any, same: bool) -> None:
    assert answer_metrics.equal(a, b) is same


ORDER = {
    "id": "A1",
    "to": {"city": "Ulm"},
    "items": [{"name": "lamp", "qty": 2}, {"name": "chair", "qty": 1}],
}


def test_leaves_by_path() -> None:
    assert leaves(ORDER) == {"id": 1, "to.city": 1, "items[].name": 2, "items[].qty": 2}
    assert leaves({"a": [], "b": {}, "c": [[1], []]}) == {"a": 1, "b": 1, "c[][]": 1, "c[]": 1}
    assert leaves("text") == {"$": 1}


@pytest.mark.parametrize(
    ("given_", "found"),
    [
        (ORDER, {"id": 1, "to.city": 1, "items[].name": 2, "items[].qty": 2}),
        (
            ORDER | {"items": ORDER["items"][::-1]},
            {"id": 1, "to.city": 1, "items[].name": 2, "items[].qty": 2},
        ),
        # a quantity counts with its own item only: both are there, but swapped
        ({"items": [{"name": "lamp", "qty": 1}, {"name": "chair", "qty": 2}]}, {"items[].name": 2}),
        ({"items": [{"name": "lamp", "qty": 2}] * 3}, {"items[].name": 1, "items[].qty": 1}),
        ({"items": {"name": "lamp"}}, {}),
        ({"to": "Ulm", "id": 1}, {}),
        ([ORDER], {}),
    ],
)
def test_leaves_that_agree(given_: Any, found: dict[str, int]) -> None:
    assert hits(ORDER, given_) == found


@settings(deadline=None)
@given(values, values)
def test_leaves_that_agree_are_leaves_of_both(wanted: Any, given_: Any) -> None:
    same = hits(wanted, given_)
    assert same <= leaves(wanted)
    assert same <= leaves(given_)
    assert hits(given_, wanted).total() == same.total() or "[]" in " ".join(leaves(wanted))
    assert hits(wanted, wanted) == leaves(wanted)


@settings(deadline=None)
@given(values, values)
def test_equal_values_are_equal_both_ways(a: Any, b: Any) -> None:
    assert answer_metrics.equal(a, a)
    assert answer_metrics.equal(a, b) == answer_metrics.equal(b, a)
    if answer_metrics.equal(a, b):
        assert field_counts(a, b)[0] == field_counts(a, b)[1] == field_counts(a, b)[2]


def test_fields_one_by_one() -> None:
    table = answer_metrics.per_field(
        [({"a": 1, "b": "x"}, {"a": 1, "c": 3}), ({"a": 2, "b": "y"}, INVALID)]
    )
    assert table == {
        "a": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        "b": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2},
        "c": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
    }
