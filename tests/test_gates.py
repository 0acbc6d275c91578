"""Gates: what passes, what fails, and what cannot be asked."""

from __future__ import annotations

from typing import Any

import pytest

from slmctl.config import Gate
from slmctl.errors import GateError, UsageError
from slmctl.gates import check, enforce
from slmctl.statistics import drop_bound


def report(**accuracy: float) -> dict[str, Any]:
    """A report on the models named; each pair differs in 6 and 2 of 400 rows."""
    pair = {"n": 400, "both": 380, "only_first": 6, "only_second": 2}
    return {
        "primary_metric": "accuracy",
        "models": {name: {"metrics": {"accuracy": value, "macro_f1": value - 0.1}} for name, value in accuracy.items()},
        "pairs": {f"{one}|{two}": pair for one in accuracy for two in accuracy if one != two},
    }


REPORT = report(adapter=0.965, Q4_K_M=0.955)
DROP = {"metric": "accuracy", "model": "Q4_K_M", "against": "adapter"}


@pytest.mark.parametrize(("least", "passed"), [(0.9, True), (0.955, True), (0.9551, False), (1.0, False)])
def test_min(least: float, passed: bool) -> None:
    (verdict,) = check([Gate(metric="accuracy", model="Q4_K_M", min=least)], REPORT)
    assert verdict.passed is passed
    assert verdict.text == f"accuracy of Q4_K_M is 0.9550, the gate wants at least {least:g}"


def test_min_takes_any_metric_of_the_report() -> None:
    (verdict,) = check([Gate(metric="macro_f1", model="adapter", min=0.8)], REPORT)
    assert verdict.passed


def test_max_drop_tests_the_bound_not_the_drop() -> None:
    bound = drop_bound(6, 2, 400, 0.95)
    assert 0.01 < bound < 0.03
    for allowed, passed in ((bound + 1e-6, True), (bound - 1e-6, False), (0.011, False)):
        (verdict,) = check([Gate(**DROP, max_drop=allowed)], REPORT)
        assert verdict.passed is passed, allowed  # the drop that was seen, 0.01, is within all three
    assert f"lies +0.0100 below adapter, at most {bound:.4f} with 95% confidence" in verdict.text


def test_more_confidence_asks_for_more() -> None:
    allowed = drop_bound(6, 2, 400, 0.95)
    (verdict,) = check([Gate(**DROP, max_drop=allowed, confidence=0.99)], REPORT)
    assert not verdict.passed


def test_equal_models_still_leave_doubt() -> None:
    same = report(adapter=0.9, Q4_K_M=0.9)
    for n, passed in ((100, False), (1000, True)):
        same["pairs"]["adapter|Q4_K_M"] = {"n": n, "only_first": 0, "only_second": 0}
        (verdict,) = check([Gate(**DROP, max_drop=0.01)], same)
        assert verdict.passed is passed


def test_direction_of_the_comparison() -> None:
    back = {"metric": "accuracy", "model": "adapter", "against": "Q4_K_M"}
    one_sided = report(adapter=0.965, Q4_K_M=0.955)
    one_sided["pairs"]["adapter|Q4_K_M"] = {"n": 400, "only_first": 4, "only_second": 0}
    one_sided["pairs"]["Q4_K_M|adapter"] = {"n": 400, "only_first": 0, "only_second": 4}
    forth, reverse = check([Gate(**DROP, max_drop=0.01), Gate(**back, max_drop=0.01)], one_sided)
    assert (forth.passed, reverse.passed) == (False, True)
    assert "lies -0.0100 below" in reverse.text


def test_enforce_names_every_gate_that_failed() -> None:
    asked = [Gate(metric="accuracy", model=model, min=0.96) for model in ("adapter", "Q4_K_M")]
    asked.append(Gate(metric="macro_f1", model="Q4_K_M", min=0.9))
    with pytest.raises(GateError, match=r"^accuracy of Q4_K_M is 0\.9550.*; macro_f1 of Q4_K_M is 0\.8550") as caught:
        enforce(asked, REPORT)
    assert "adapter" not in caught.value.message
    assert caught.value.hint


def test_enforce_gives_the_verdicts_when_all_pass() -> None:
    verdicts = enforce([Gate(metric="accuracy", model="adapter", min=0.9)], REPORT)
    assert [verdict.passed for verdict in verdicts] == [True]
    assert enforce([], REPORT) == []


@pytest.mark.parametrize(
    ("gate", "match", "hint"),
    [
        ({"metric": "accuracy", "model": "Q8_0", "min": 0.9}, "names the model 'Q8_0'", "measured: adapter, Q4_K_M"),
        ({"metric": "bleu", "model": "adapter", "min": 0.9}, "names the metric 'bleu'", "measured: accuracy, macro_f1"),
        (DROP | {"against": "base", "max_drop": 0.1}, "accuracy of Q4_K_M against base", "between: adapter, Q4_K_M"),
        (DROP | {"metric": "macro_f1", "max_drop": 0.1}, "cannot compare macro_f1", "max_drop compares accuracy"),
        (DROP | {"model": "adapter", "max_drop": 0.1}, "accuracy of adapter against adapter", "between"),
    ],
)
def test_gate_on_what_was_not_measured_is_a_usage_error(gate: dict[str, Any], match: str, hint: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        check([Gate(**gate)], REPORT)
    assert hint in caught.value.hint
