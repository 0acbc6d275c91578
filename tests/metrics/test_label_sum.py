"""The sum of members: what validation rows choose, what each
brings, and what a label's name teaches.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from slmctl.metrics import cross_fitting, encoder_head, label_sum, likelihood
from slmctl.metrics.cross_fitting import FoldRows

NAMES = ("a", "b", "c")
Rows = tuple[list[str], np.ndarray, list[str]]


def drawn(count: int, noise: float, seed: int) -> Rows:
    """Texts whose words tell the label three times in four, and
    vectors that tell it up to noise.
    """
    draw = np.random.default_rng(seed)
    labels = [NAMES[k] for k in draw.integers(3, size=count)]
    words = [
        label if draw.random() < 0.75 else str(draw.choice(["a", "b", "c"])) for label in labels
    ]
    vectors = np.eye(3)[[NAMES.index(label) for label in labels]] + noise * draw.standard_normal(
        (count, 3)
    )
    return [f"word{word} please" for word in words], vectors.astype(np.float32), labels


def test_what_ties_in_right_answers_is_chosen_by_likelihood() -> None:
    # counted, words had no more right answers than none here, and were left out
    texts, vectors, labels = drawn(200, 0.4, 0)
    others, choosing, chosen = drawn(12, 0.05, 1)
    fold = np.repeat([-1, 0], [200, 12])
    fit = label_sum.fit(
        [*texts, *others], np.concatenate([vectors, choosing]), labels + chosen, fold=fold
    )
    model, tables = fit.model, {name: table[200:] for name, table in fit.logprobs.items()}
    assert model.weights["words"] > 0
    rights = {
        int((np.array(model.labels)[table.argmax(axis=1)] == chosen).sum())
        for table in (tables["encoder"], label_sum.weighted(tables, model.weights))
    }
    assert len(rights) == 1


def test_words_that_mislead_have_no_weight_and_the_sum_still_answers() -> None:
    texts, vectors, labels = drawn(60, 0.1, 0)
    _, choosing, chosen = drawn(40, 0.1, 1)
    # each word tells another label
    others = [f"word{NAMES[(NAMES.index(label) + 1) % 3]} please" for label in chosen]
    fold = np.repeat([-1, 0], [60, 40])
    model = label_sum.fit(
        [*texts, *others], np.concatenate([vectors, choosing]), labels + chosen, fold=fold
    ).model
    assert [*model.weights] == ["encoder"] and model.words is not None
    # it ended in a KeyError, where few rows left the words out
    summed, _ = model.scored(others, choosing)
    assert (np.array(model.labels)[summed.argmax(axis=1)] == chosen).mean() > 0.9


def test_a_row_a_label_is_fitted_without_a_warning() -> None:
    # scikit-learn's warning was printed; here warnings are errors
    vectors, labels = np.eye(30, dtype=np.float32), [f"label{k}" for k in range(30)]
    head = encoder_head.cross_fit(
        vectors, labels, fold=cross_fitting.folds(labels, labels, validation=0)
    ).head
    assert head.evidence(vectors).argmax(axis=1).tolist() == np.argsort(np.argsort(labels)).tolist()


def members(count: int, seed: int, **noise: float) -> tuple[dict[str, np.ndarray], list[str]]:
    """Log probabilities of three labels by members that see the label
    behind noise of their own; and the labels.
    """
    draw = np.random.default_rng(seed)
    places = draw.integers(3, size=count)
    seen = {
        name: np.eye(3)[places] + size * draw.standard_normal((count, 3))
        for name, size in noise.items()
    }
    return {name: likelihood.normalised(4 * table) for name, table in seen.items()}, [
        ("a", "b", "c")[k] for k in places
    ]


def test_a_dear_member_that_brings_less_than_the_floor_is_left_out() -> None:
    tables, labels = members(400, 3, file=0.5, encoder=9.0, words=0.8)
    fitting = label_sum.choose(tables, NAMES, labels, floor=0.002)
    assert [*fitting.weights] == ["file", "words"] and fitting.gains.keys() == {
        "file",
        "encoder",
        "words",
    }
    assert fitting.gains["encoder"] < 0.002 < fitting.gains["words"] < fitting.gains["file"]
    strict = label_sum.choose(tables, NAMES, labels, floor=fitting.gains["words"] + 0.001)
    assert [*strict.weights] == ["file", "words"], "words cost next to nothing"
    tables["words"] = -tables["words"]
    assert [*label_sum.choose(tables, NAMES, labels, floor=0.002).weights] == ["file"], (
        "without a weight they go"
    )
    assert [*label_sum.choose(tables, NAMES, labels, floor=1.0).weights] == ["words"], "one stays"
    assert label_sum.choose(tables, NAMES, ["x"] * 400).weights == {"file": 1.0}, "no row tells"


def test_of_two_that_say_the_same_the_dearer_is_left_out() -> None:
    # on all rows of Banking77 the file stayed, and words that cost nothing had brought 0.02 points
    # less
    tables, labels = members(400, 7, file=1.0, encoder=0.8)
    tables["words"] = tables["file"] + 1.5 * np.random.default_rng(0).standard_normal((400, 3))
    gains = label_sum.choose(tables, NAMES, labels).gains
    assert gains["words"] < gains["file"] < gains["encoder"]
    assert [*label_sum.choose(tables, NAMES, labels, floor=gains["file"] + 0.001).weights] == [
        "encoder",
        "words",
    ]


@pytest.mark.parametrize("names", [("words",), ("encoder", "words")])
def test_of_members_that_all_mislead_one_answers(names: tuple[str, ...]) -> None:
    # none had a weight, and the sum was refused as damaged when it was read
    tables, labels = members(60, 1, **dict.fromkeys(names, 0.1))
    fitting = label_sum.choose({name: -table for name, table in tables.items()}, NAMES, labels)
    assert [*fitting.weights.values()] == [1.0] and fitting.weights.keys() <= {*names}


def test_the_gain_is_what_other_rows_show() -> None:
    tables, labels = members(4000, 5, file=0.5, words=0.8)
    fitting = label_sum.choose(tables, NAMES, labels)
    others, answers = members(20_000, 6, file=0.5, words=0.8)
    right = [
        np.mean([NAMES[k] for k in table.argmax(axis=1)] == np.array(answers))
        for table in (others["file"], label_sum.weighted(others, fitting.weights))
    ]
    assert fitting.gains["words"] == pytest.approx(right[1] - right[0], abs=0.012)


def test_the_weights_are_those_of_the_likeliest_rows_and_hold_the_sharpness() -> None:
    tables, labels = members(600, 4, file=0.5, words=0.8)
    weights = label_sum.choose(tables, NAMES, labels).weights
    places = np.array([NAMES.index(label) for label in labels])

    def penalised(file: float, words: float) -> float:
        table = likelihood.normalised(file * tables["file"] + words * tables["words"])
        return float(table[np.arange(600), places].sum() - file**2 - words**2)

    best = penalised(weights["file"], weights["words"])
    steps = [(a, b) for a in (-0.02, 0, 0.02) for b in (-0.02, 0, 0.02) if a or b]
    assert all(penalised(weights["file"] + a, weights["words"] + b) < best for a, b in steps)
    blunt = {name: table / 2 for name, table in tables.items()}
    assert label_sum.choose(blunt, NAMES, labels).weights["file"] > 1.8 * weights["file"]


def test_none_overrules_the_others_for_good() -> None:
    sure = {"file": np.array([[-np.inf, -50.0, 0.0]]), "words": np.log([[0.8, 0.1, 0.1]])}
    summed = label_sum.weighted(sure, {"file": 1.0, "words": 8.0})
    assert np.isfinite(summed).all() and summed.argmax() == 0


def test_labels_that_a_model_did_not_reach_share_what_is_left() -> None:
    shares = np.exp(label_sum.spread({"a": 0.9}, ("a", "b", "c")))
    assert shares == pytest.approx([0.9, 0.05, 0.05])
    assert np.exp(label_sum.spread({"a": 1.0}, ("a", "b"))) == pytest.approx([1.0, 1e-6])


def test_the_strength_is_that_of_the_likeliest_rows() -> None:
    rows, labels = drawn(60, 0.8, 8)[1:]
    others, references = drawn(40, 0.8, 9)[1:]
    answers = np.array(labels + references)
    parts = [
        FoldRows(rows, np.array(labels), others, np.arange(60, 100)),
        FoldRows(np.concatenate([rows, others]), answers, others[:0], np.zeros(0, np.int64)),
    ]
    each, right = {}, {}
    for candidate in cross_fitting.STRENGTHS:
        model = LogisticRegression(C=candidate, max_iter=2000).fit(rows, labels)
        each[candidate] = likelihood.sharpest(
            model.classes_, np.log(model.predict_proba(others)), references
        )[1]
        right[candidate] = (model.predict(others) == references).sum()
    fit = cross_fitting.fit(parts, answers, max_iter=2000)
    assert each[fit.strength] == pytest.approx(max(each.values()), abs=0.01)
    assert fit.likelihood == pytest.approx(each[fit.strength], abs=0.01)
    counted = max(right, key=lambda candidate: right[candidate])
    assert each[counted] < each[fit.strength] - 0.05
    whole = LogisticRegression(C=fit.strength, max_iter=2000).fit(parts[1].rows, answers)
    assert fit.models[1].coef_ == pytest.approx(whole.coef_, rel=1e-2, abs=1e-2)


def test_the_name_of_a_label_is_a_row_of_its_head() -> None:
    labels, vectors = ["card_arrival", "top_up"], np.zeros((2, 4), np.float32)  # rows tell nothing
    assert [encoder_head.spoken(label) for label in (*labels, "Card-Arrival.")] == [
        "card arrival",
        "top up",
        "Card Arrival",
    ]
    named = ["card_arrival", "top_up", "unseen"], np.eye(4, dtype=np.float32)[:3]
    head = encoder_head.cross_fit(vectors, labels, fold=np.array([-1, -1]), named=named).head
    # a label without a row is not learned by its name alone
    assert head.labels == ("card_arrival", "top_up")
    assert [head.labels[k] for k in head.evidence(named[1][:2]).argmax(axis=1)] == labels


def test_without_a_learned_label_the_sum_stays_as_sharp_as_it_is() -> None:
    scores = np.log(np.full((3, 2), 0.5))
    assert likelihood.sharpest(("a", "b"), scores, ["x", "y", "z"]) == (1.0, 0.0)


def test_a_row_of_which_no_member_tells_is_not_right() -> None:
    # the first label by name was right wherever its rows were judged by nobody
    table = np.log([[1 / 3] * 3, [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [1 / 3] * 3])
    assert label_sum.right(("aaa", "b", "c"), table, ["aaa", "aaa", "c", "b"]) == 1
    # of one label, each row gets it
    assert label_sum.right(("aaa",), np.zeros((2, 1)), ["aaa", "b"]) == 1
