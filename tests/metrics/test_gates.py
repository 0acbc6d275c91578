"""Gates: what passes, what fails, and what cannot be asked."""

from __future__ import annotations

import re
from typing import Any

import pytest

from slmctl.config import Gate
from slmctl.errors import GateError, UsageError
from slmctl.metrics.gates import GateResult, alone, check, enforce, out_of_reach, rows_needed
from slmctl.metrics.statistics import drop_bound

GAIN = {"metric": "accuracy", "model": "adapter", "against": "tfidf_logistic"}
KINDS = {"adapter": "adapter", "Q4_K_M+sum": "sum"}
QUANTILES = {
    "0.025": -0.06,
    "0.05": -0.05,
    "0.1": -0.04,
    "0.5": -0.01,
    "0.9": 0.02,
    "0.95": 0.03,
    "0.975": 0.04,
}


def shares(difference: float, only_first: int, only_second: int) -> dict[str, Any]:
    """A difference of two shares."""
    counts = {"only_first": only_first, "only_second": only_second}
    return {"difference": difference, "interval": [-1, 1], "test": "mcnemar", **counts}


def report(**accuracy: float) -> dict[str, Any]:
    """A report on the models named, in order; each pair differs in 6 and 2 of 400 rows."""
    names = list(accuracy)
    pairs = {}
    for k, one in enumerate(names):
        for two in names[k + 1 :]:
            drawn = {
                "difference": -0.01,
                "interval": [-0.06, 0.04],
                "test": "bootstrap",
                "quantiles": QUANTILES,
            }
            pairs[f"{one}|{two}"] = {
                "n": 400,
                "only_first": 6,
                "only_second": 2,
                "slices": [],
                "metrics": {
                    "accuracy": shares(accuracy[two] - accuracy[one], 6, 2),
                    "macro_f1": drawn,
                    "ece": drawn,
                    "ungrounded": shares(accuracy[one] - accuracy[two], 2, 6),
                },
            }
    figures = {
        name: {
            "accuracy": value,
            "macro_f1": value - 0.1,
            "ece": 0.04,
            "mean_absolute_error": 0.4,
            "ungrounded": 1 - value,
        }
        for name, value in accuracy.items()
    }
    return {
        "primary_metric": "accuracy",
        "lower_is_better": ["ece", "brier", "ungrounded"],
        "models": {
            name: {"kind": KINDS.get(name, "gguf"), "metrics": metrics}
            for name, metrics in figures.items()
        },
        "focus": names[-1],
        "baselines": {"majority": {"metrics": {"accuracy": 0.2}}},
        "pairs": pairs,
        "choice": None,
    }


REPORT = report(adapter=0.965, Q4_K_M=0.955)
DROP = {"metric": "accuracy", "model": "Q4_K_M", "against": "adapter"}


def of(metric: str, model: str, **limit: float) -> Gate:
    return Gate(metric=metric, model=model, **limit)


@pytest.mark.parametrize(
    ("gate", "passed", "text"),
    [
        (
            of("accuracy", "Q4_K_M", min=0.9),
            True,
            "accuracy of Q4_K_M is 95.5 % (at least 90.0 % required)",
        ),
        (
            of("accuracy", "Q4_K_M", min=0.955),
            True,
            "accuracy of Q4_K_M is 95.5 % (at least 95.5 % required)",
        ),
        (
            of("accuracy", "Q4_K_M", min=1),
            False,
            "accuracy of Q4_K_M is 95.5 % (at least 100.0 % required)",
        ),
        # a value that just fails does not read like its bound
        (
            of("accuracy", "Q4_K_M", min=0.95502),
            False,
            "accuracy of Q4_K_M is 95.500 % (at least 95.502 % required)",
        ),
        (of("ece", "Q4_K_M", max=0.05), True, "ece of Q4_K_M is 4.0 % (at most 5.0 % required)"),
        (of("ece", "Q4_K_M", max=0.04), True, "ece of Q4_K_M is 4.0 % (at most 4.0 % required)"),
        (of("ece", "Q4_K_M", max=0.03), False, "ece of Q4_K_M is 4.0 % (at most 3.0 % required)"),
        (
            of("mean_absolute_error", "Q4_K_M", max=0.35),
            False,
            "mean_absolute_error of Q4_K_M is 0.400 (at most 0.350 required)",
        ),
        (
            of("macro_f1", "adapter", min=0.8),
            True,
            "macro_f1 of adapter is 86.5 % (at least 80.0 % required)",
        ),
        # without a release there is nothing to compare, and the first one can go out
        (
            Gate(metric="accuracy", model="Q4_K_M", against="production", max_drop=0.01),
            True,
            "no production release yet: nothing to compare accuracy of Q4_K_M with",
        ),
    ],
)
def test_a_gate_says_the_figure_and_its_bound(gate: Gate, passed: bool, text: str) -> None:
    (verdict,) = check([gate], REPORT)
    assert (verdict.passed, verdict.text) == (passed, text)


def verdict(found: dict[str, Any] = REPORT, **gate: Any) -> GateResult:
    (result,) = check([Gate(**gate)], found)
    return result


def test_max_drop_tests_the_bound_not_the_drop() -> None:
    bound = drop_bound(6, 2, 400, 0.95)
    assert 0.01 < bound < 0.03
    for allowed, passed in ((bound + 1e-6, True), (bound - 1e-6, False), (0.011, False)):
        result = verdict(**DROP, max_drop=allowed)
        assert result.passed is passed, allowed  # the drop that was seen, 0.01, is within all three
    assert result.text == (
        f"Q4_K_M may lose up to {100 * bound:.1f} points of accuracy to adapter "
        "(a loss of 1.1 points allowed, 95 % confidence; measured: 1.0 points worse)"
    )
    assert not verdict(**DROP, max_drop=bound, confidence=0.99).passed


def test_a_share_of_faults_is_lower_for_the_better_model() -> None:
    # its rows were counted for the wrong model, so the bound was that of a gain
    right, fault = (
        verdict(**DROP | {"metric": metric}, max_drop=0.01) for metric in ("accuracy", "ungrounded")
    )
    assert (fault.passed, fault.text) == (
        right.passed,
        right.text.replace("of accuracy", "in ungrounded"),
    )
    assert not verdict(**DROP | {"metric": "ungrounded"}, min_gain=0).passed


def test_equal_models_still_leave_doubt() -> None:
    same = report(adapter=0.9, Q4_K_M=0.9)
    for n, passed in ((100, False), (1000, True)):
        pair = same["pairs"]["adapter|Q4_K_M"]
        pair["n"] = n
        pair["metrics"]["accuracy"] |= {"only_first": 0, "only_second": 0}
        result = verdict(same, **DROP, max_drop=0.01)
        assert result.passed is passed
        assert f"Q4_K_M {'loses at most' if passed else 'may lose up to'} " in result.text
        assert (
            "of accuracy to adapter (a loss of 1.0 points allowed, 95 % confidence; measured: "
            "equal)" in result.text
        )


def test_direction_of_the_comparison() -> None:
    one_sided = report(adapter=0.965, Q4_K_M=0.955)
    one_sided["pairs"]["adapter|Q4_K_M"]["metrics"]["accuracy"] |= {
        "only_first": 4,
        "only_second": 0,
    }
    reverse = verdict(
        one_sided, metric="accuracy", model="adapter", against="Q4_K_M", max_drop=0.01
    )
    assert (verdict(one_sided, **DROP, max_drop=0.01).passed, reverse.passed) == (False, True)
    assert "on Q4_K_M" in reverse.text and "measured: 1.0 points better" in reverse.text


@pytest.mark.parametrize(
    ("metric", "model", "against", "drop", "bound"),
    [
        # macro_f1 of Q4_K_M less that of adapter has the 5 % quantile -0.05, the 95 % quantile 0.03
        ("macro_f1", "Q4_K_M", "adapter", 0.01, 0.05),
        ("macro_f1", "adapter", "Q4_K_M", -0.01, 0.03),
        # of an error, less is better: a rise is a drop
        ("ece", "Q4_K_M", "adapter", -0.01, 0.03),
        ("ece", "adapter", "Q4_K_M", 0.01, 0.05),
    ],
)
def test_max_drop_of_other_figures_is_a_percentile(
    metric: str, model: str, against: str, drop: float, bound: float
) -> None:
    for allowed, passed in ((bound + 1e-6, True), (bound - 1e-6, False)):
        result = verdict(metric=metric, model=model, against=against, max_drop=allowed)
        assert result.passed is passed
    side = "worse" if drop > 0 else "better"
    assert f"measured: {100 * abs(drop):.1f} points {side})" in result.text
    of = "in" if metric == "ece" else "of"
    assert re.match(
        rf"{model} may lose up to {100 * bound:.1f}0* points {of} {metric} to {against} ",
        result.text,
    )


def test_between_two_levels_of_the_bootstrap_the_stricter_one_counts() -> None:
    result = verdict(
        metric="macro_f1", model="Q4_K_M", against="adapter", max_drop=0.055, confidence=0.96
    )
    assert "may lose up to 6.0 points" in result.text
    assert not result.passed


def chosen(name: str | None) -> dict[str, Any]:
    choice = {"model": name, "metric": "accuracy", "smallest_within": 0.01, "of": "F16"}
    return REPORT | {"choice": choice}


def test_a_gate_can_name_the_file_that_was_chosen() -> None:
    gates = [
        Gate(metric="accuracy", model="chosen", min=0.9),
        Gate(metric="accuracy", model="chosen", against="adapter", max_drop=0.1),
        Gate(metric="accuracy", model="chosen", against="Q4_K_M", max_drop=0.0),
    ]
    verdicts = enforce(gates, chosen("Q4_K_M"))
    assert [verdict.passed for verdict in verdicts] == [True, True, True]
    assert verdicts[0].text.startswith("accuracy of Q4_K_M is")
    assert verdicts[2].text == (  # it is that very file
        "Q4_K_M loses at most 0.0 points of accuracy to Q4_K_M (a loss of 0.0 points allowed, 95 % "
        "confidence; "
        "measured: equal)"
    )


# a release answers by the last one
SUMMED = report(adapter=0.93, Q4_K_M=0.92, **{"Q4_K_M+sum": 0.96})


def test_a_file_and_the_release_that_answers_by_more_are_gated_apart() -> None:
    # a gate on the file tested the file with the linear models added, which hid what quantization
    # cost
    assert not verdict(SUMMED, metric="accuracy", model="Q4_K_M", min=0.95).passed
    assert verdict(SUMMED, metric="accuracy", model="release", min=0.95).text.startswith(
        "accuracy of Q4_K_M+sum is"
    )
    loss = {"metric": "accuracy", "against": "adapter", "max_drop": 0.02, "confidence": 0.5}
    assert verdict(SUMMED, model="Q4_K_M", **loss).text.endswith("measured: 1.0 points worse)")
    assert verdict(SUMMED, model="release", **loss).text.endswith("measured: 3.0 points better)")
    assert verdict(metric="accuracy", model="release", min=0.95).text.startswith(
        "accuracy of Q4_K_M is"
    )


def test_a_gate_finds_the_base_by_its_plain_name() -> None:
    shots = report(**{"base (11-shot)": 0.3, "Q4_K_M": 0.92})
    gate = {"metric": "accuracy", "model": "Q4_K_M", "against": "base", "max_drop": 0.02}
    assert "of accuracy to base (11-shot)" in verdict(shots, **gate).text


def test_a_failed_gate_on_the_file_alone_names_the_line_for_the_release() -> None:
    old = Gate(metric="accuracy", model="Q4_K_M", min=0.95)
    assert alone(old, SUMMED) == (
        "a gate on Q4_K_M tests the file alone; 'model: release' tests Q4_K_M+sum, by which a "
        "release answers"
    )
    with pytest.raises(GateError) as caught:
        enforce([old], SUMMED)
    assert caught.value.hint.startswith(alone(old, SUMMED))
    quantized = Gate(metric="accuracy", model="Q4_K_M", against="adapter", max_drop=0.05)
    assert [
        alone(gate, SUMMED)
        for gate in (quantized, Gate(metric="accuracy", model="release", min=0.9))
    ] == ["", ""]
    assert alone(old, REPORT) == ""  # a release answers by the file


def test_a_broken_file_is_refused_without_a_gate_though_the_release_is_good() -> None:
    broken = report(adapter=0.93, Q4_K_M=0.31, **{"Q4_K_M+sum": 0.96})
    broken["pairs"]["adapter|Q4_K_M"]["metrics"]["accuracy"]["interval"] = [-0.66, -0.58]
    good = Gate(metric="accuracy", model="release", min=0.95)
    with pytest.raises(
        GateError,
        match=r"^the file Q4_K_M loses 62\.0 points of accuracy to adapter, surely more than 5",
    ):
        enforce([good], broken)
    allowed = Gate(metric="accuracy", model="Q4_K_M", against="adapter", max_drop=0.9)
    # the config decides
    assert [result.passed for result in enforce([good, allowed], broken)] == [True, True]
    # not surely
    broken["pairs"]["adapter|Q4_K_M"]["metrics"]["accuracy"]["interval"] = [-0.9, -0.04]
    assert enforce([good], broken)


def test_nothing_chosen_fails_the_gate() -> None:
    with pytest.raises(
        GateError, match=r"no GGUF file meets evaluate\.choose: accuracy within 0\.01 of F16"
    ):
        verdict(chosen(None), metric="accuracy", model="chosen", min=0.9)
    with pytest.raises(UsageError, match="a gate names the model 'chosen'"):
        verdict(metric="accuracy", model="chosen", min=0.9)


def test_enforce_names_every_gate_that_failed() -> None:
    asked = [Gate(metric="accuracy", model=model, min=0.96) for model in ("adapter", "Q4_K_M")]
    asked.append(Gate(metric="macro_f1", model="Q4_K_M", min=0.9))
    with pytest.raises(
        GateError, match=r"^accuracy of Q4_K_M is 95\.5 %.*; macro_f1 of Q4_K_M is 85\.5 %"
    ) as caught:
        enforce(asked, REPORT)
    assert "adapter" not in caught.value.message
    assert caught.value.hint
    assert enforce([], REPORT) == []


@pytest.mark.parametrize(
    ("gate", "match", "hint"),
    [
        (
            {"metric": "accuracy", "model": "Q8_0", "min": 0.9},
            "names the model 'Q8_0'",
            "measured: adapter, Q4_K_M",
        ),
        (
            {"metric": "bleu", "model": "adapter", "min": 0.9},
            "names the metric 'bleu'",
            "measured: accuracy, macro_f1",
        ),
        (DROP | {"against": "base", "max_drop": 0.1}, "names the model 'base'", "adapter, Q4_K_M"),
        (
            DROP | {"against": "majority", "max_drop": 0.1},
            "accuracy of Q4_K_M against majority",
            "no rows in common",
        ),
        (DROP | {"model": "adapter", "max_drop": 0.1}, "compares adapter with itself", "measured"),
        (
            DROP | {"metric": "macro_f1", "max_drop": 0.1, "confidence": 0.999},
            "has confidence 0.999",
            "up to 0.975",
        ),
    ],
)
def test_gate_on_what_was_not_measured_is_a_usage_error(
    gate: dict[str, Any], match: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        verdict(**gate)
    assert hint in caught.value.hint


def test_min_gain_tests_the_bound_not_the_gain() -> None:
    beside = report(tfidf_logistic=0.955, adapter=0.965)
    beside["baselines"]["tfidf_logistic"] = beside["models"].pop("tfidf_logistic")
    beside["pairs"]["tfidf_logistic|adapter"]["metrics"]["accuracy"] |= {
        "only_first": 2,
        "only_second": 6,
    }
    least = -drop_bound(2, 6, 400, 0.95)
    assert -0.01 < least < 0
    none = verdict(beside, **GAIN, min_gain=0)
    assert not none.passed  # 0.01 was seen, and no gain at all is as likely as not
    assert none.text == (
        f"adapter may lose up to {-100 * least:.1f} points of accuracy to tfidf_logistic "
        "(a gain of 0.0 points required, 95 % confidence; measured: 1.0 points better)"
    )
    won = {"only_first": 2, "only_second": 26, "difference": 0.06}
    beside["pairs"]["tfidf_logistic|adapter"]["metrics"]["accuracy"] |= won
    least = -drop_bound(2, 26, 400, 0.95)
    for asked, passed in ((0.0, True), (least - 1e-6, True), (least + 1e-6, False)):
        assert verdict(beside, **GAIN, min_gain=asked).passed is passed
    few = {"only_first": 0, "only_second": 3, "difference": 0.0075}
    beside["pairs"]["tfidf_logistic|adapter"]["metrics"]["accuracy"] |= few
    refused = verdict(beside, **GAIN, min_gain=0)
    assert not refused.passed and refused.text.endswith(
        "so few rows differ that the gain may be chance (p = 0.25)"
    )


@pytest.mark.parametrize(
    ("limits", "rows"),
    [
        ({"max_drop": 0.02}, 133),  # z² (1 - d) / d = 1.645² * 49 = 132.6 for a perfect tie
        ({"max_drop": 0.01}, 268),
        ({"max_drop": 0.02, "confidence": 0.99}, 266),
        ({"max_drop": 0.02, "confidence": 0.5}, 1),
        ({"max_drop": 0}, 3),  # of 2 rows won, no difference at all would be too likely
        ({"min_gain": 0}, 6),  # 2 * 0.5 ** 6: the exact p-value of the page is below 0.05
        ({"min_gain": 0.5}, 9),
    ],
)
def test_the_fewest_rows_with_which_a_gate_can_pass(limits: dict[str, float], rows: int) -> None:
    gate = Gate(**DROP, **limits)
    assert rows_needed(gate) == rows
    tie = limits.get("max_drop", 0) > 0
    for n in range(max(rows - 1, 1), rows + 1):
        won = shares(0.0 if tie else 1.0, 0, 0 if tie else n)
        found = REPORT | {"pairs": {"adapter|Q4_K_M": {"n": n, "metrics": {"accuracy": won}}}}
        assert verdict(found, **DROP, **limits).passed is (n == rows)


def test_gates_out_of_reach_are_named_with_the_rows_that_they_take() -> None:
    assert rows_needed(Gate(metric="accuracy", model="adapter", min=0.9)) == 1
    assert rows_needed(Gate(**DROP | {"metric": "macro_f1"}, max_drop=0.001)) == 1
    gates = [
        Gate(**DROP, max_drop=0.02),
        Gate(metric="accuracy", model="adapter", min=0.9),
        Gate(**GAIN, min_gain=0),
    ]
    assert out_of_reach(gates, 132) == [
        "132 rows are too few for the gate max_drop 0.02 in accuracy of Q4_K_M against adapter at "
        "confidence 0.95: "
        "it takes 133, even where both answer every row alike"
    ]
    assert out_of_reach(gates, 133) == []
    assert out_of_reach(gates, 5)[1].endswith(
        "of adapter against tfidf_logistic at confidence 0.95: it takes at least 6"
    )


def test_rows_of_few_groups_are_too_few_for_a_gate() -> None:
    # a split of 92 rows of 18 customers, on which equal answers failed max_drop 0.05 after the
    # whole training
    gates = [Gate(**DROP, max_drop=0.05)]
    assert out_of_reach(gates, 92) == []
    (sentence,) = out_of_reach(gates, 92, 18)
    assert sentence.startswith(
        "92 rows of 18 groups, which tell as much as 16 independent ones, are too few"
    )
    assert out_of_reach(gates, 600, 60) == []


AGAINST = {"metric": "accuracy", "model": "Q4_K_M", "against": "production", "max_drop": 0.01}


def with_release(
    old: tuple[int, int, int], new: tuple[int, int, int], rows: int = 400
) -> dict[str, Any]:
    """A report with a release; (rows, only the release right, only the
    model right) of its old and of new rows.
    """
    found = report(production=0.95, Q4_K_M=0.955)
    parts = {}
    for title, (n, lost, won) in (("old", old), ("new", new)):
        accuracy = shares((won - lost) / max(n, 1), lost, won)
        parts[title] = {
            "n": n,
            "values": {},
            "differences": {"Q4_K_M": {"accuracy": accuracy}} if n else {},
        }
    lost, won = old[1] + new[1], old[2] + new[2]
    found["pairs"]["production|Q4_K_M"]["n"] = old[0] + new[0]
    accuracy = shares((won - lost) / (old[0] + new[0]), lost, won)
    found["pairs"]["production|Q4_K_M"]["metrics"]["accuracy"] = accuracy
    return found | {
        "release": {"name": "production", "title": "desk 1.0", "trained_on": 0, "rows": parts}
    }


def test_better_on_average_and_worse_on_old_rows_is_caught_by_rows_old() -> None:
    found = with_release(old=(900, 45, 9), new=(100, 0, 80))
    average, old, new = (Gate(**AGAINST | {"rows": rows}) for rows in (None, "old", "new"))
    verdicts = check([average, old, new], found)
    assert [verdict.passed for verdict in verdicts] == [True, False, True]
    bound = drop_bound(45, 9, 900, 0.95)
    assert verdicts[1].text == (
        f"Q4_K_M may lose up to {100 * bound:.1f} points of accuracy to production on the 900 old "
        "rows "
        "(a loss of 1.0 points allowed, 95 % confidence; measured: 4.0 points worse)"
    )
    with pytest.raises(GateError, match="on the 900 old rows"):
        enforce([average, old], found)


def test_rows_that_are_not_there_or_cannot_be_told_apart() -> None:
    gate = AGAINST | {"rows": "new"}
    result = verdict(with_release(old=(900, 0, 9), new=(0, 0, 0)), **gate)
    assert result.passed
    assert result.text == "no row is new to production: nothing to compare accuracy of Q4_K_M with"
    unknown = with_release(old=(900, 0, 9), new=(10, 0, 0))
    unknown["release"]["rows"] = {}
    with pytest.raises(
        UsageError, match="asks for the new rows of production, and its data set is not below runs/"
    ):
        verdict(unknown, **gate)


# Judged pairs

WINS = {"metric": "win_rate", "model": "Q4_K_M", "against": "adapter"}


def judged(won: int, lost: int, same: int = 0, **more: Any) -> dict[str, Any]:
    """A report with judged pairs of Q4_K_M against adapter."""
    entry = {
        "model": "Q4_K_M",
        "against": "adapter",
        "won": won,
        "lost": lost,
        "same": same,
        "neither": 0,
        "win_rate": (won + same / 2) / (won + lost + same),
        "interval": [0, 1],
        **more,
    }
    return REPORT | {"judged": {"entries": [entry], "of_others": 0}}


@pytest.mark.parametrize(
    ("report", "gate", "passed", "words"),
    [
        (
            judged(39, 21),
            {"min": 0.5},
            True,
            "wins at least 53.5 % of 60 judged pairs against adapter (at",
        ),
        (judged(38, 22), {"min": 0.5}, False, "measured: 63.3 %, sign test p = 0.052"),
        (judged(38, 22), {"min": 0.5, "confidence": 0.9}, True, "90 % confidence"),
        (judged(39, 21, 30), {"min": 0.53}, False, "wins at least 52.1 % of 90 judged pairs"),
        (judged(39, 21, design_effect=2.0, groups=9), {"min": 0.5}, False, "measured: 65.0 %"),
        (judged(0, 0, 60), {"min": 0.4}, True, "measured: 50.0 %"),  # ties show that they are alike
        (judged(20, 24), {"min": 0.4}, False, "wins at least 32.5 % of 44 judged pairs"),
        # the other way round
        (
            judged(21, 39),
            WINS | {"model": "adapter", "against": "Q4_K_M", "min": 0.5},
            True,
            "adapter wins at least",
        ),
        (
            REPORT,
            {"min": 0.5},
            False,
            "no pair of Q4_K_M and adapter is judged (slmctl review --pairs Q4_K_M adapter, and "
            "evaluate.pairs",
        ),
        (
            REPORT,
            {"min": 0.5, "against": "production"},
            True,
            "no production release yet: nothing to compare win_rate",
        ),
    ],
)
def test_a_gate_on_judged_pairs(
    report: dict[str, Any], gate: dict[str, Any], passed: bool, words: str
) -> None:
    result = verdict(report, **(WINS | gate))
    assert (result.passed, words in result.text) == (passed, True), result.text


def with_judge(**figures: Any) -> dict[str, Any]:
    """Such a report, where a judge was asked about 400 rows after 60 pairs of people."""
    judge = {
        "judge": "large",
        "pairs": 60,
        "rows": 400,
        "tried": 1,
        "missing": 0,
        "centre": 0.6,
        "deviation": 0.05,
        "freedom": 60.0,
    } | figures
    return judged(39, 21, judge=judge)


@pytest.mark.parametrize(
    ("report", "gate", "passed", "words"),
    [
        (
            with_judge(win_rate=0.61, interval=[0.5, 0.7]),
            {"min": 0.5},
            True,
            "wins at least 51.6 % of 400 pairs",
        ),
        (
            with_judge(win_rate=0.61, interval=[0.5, 0.7]),
            {"min": 0.52},
            False,
            "large with 60 pairs of people: 61.0 %",
        ),
        (
            with_judge(win_rate=0.61, interval=[0.5, 0.7]),
            {"min": 0.3, "model": "adapter", "against": "Q4_K_M"},
            True,
            "adapter wins at least 31.6 %",
        ),
        (
            with_judge(win_rate=0.61, interval=[0.5, 0.7], tried=5),
            {"min": 0.5},
            False,
            "wins at least 48.0 % of 400",
        ),
        (
            with_judge(missing=3),
            {"min": 0.1},
            False,
            "large was not asked about pairs of Q4_K_M and adapter (ask",
        ),
        (
            with_judge(),
            {"min": 0.1},
            False,
            "large is not admitted as a judge about pairs of Q4_K_M and adapter",
        ),
        (
            judged(60, 0),
            {"min": 0.1},
            False,
            "no judge was asked about pairs of Q4_K_M and adapter (slmctl",
        ),
    ],
)
def test_a_gate_on_a_corrected_win_rate(
    report: dict[str, Any], gate: dict[str, Any], passed: bool, words: str
) -> None:
    result = verdict(report, **(WINS | {"metric": "corrected_win_rate"} | gate))
    assert (result.passed, words in result.text) == (passed, True), result.text


@pytest.mark.parametrize(
    "wrong", [{"against": None}, {"min": None}, {"min": None, "max_drop": 0.1}, {"rows": "new"}]
)
def test_a_gate_on_judged_pairs_names_both_models_and_a_least_value(wrong: dict[str, Any]) -> None:
    gate = {"against": "production", "min": 0.5, "metric": "win_rate", "model": "Q8_0"} | wrong
    with pytest.raises(
        ValueError, match=r"a gate on win_rate has 'against' and 'min'|a gate has either"
    ):
        Gate(**gate)
