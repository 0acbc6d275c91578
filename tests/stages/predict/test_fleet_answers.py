"""An answer of a model of the fleet under its policy."""

from __future__ import annotations

from slmctl.inference.engine import Answer
from slmctl.inference.escalation_policy import Policy
from slmctl.stages.predict import fleet_answers

POLICY = Policy("f" * 64, "t", "generate", "the same words", "", {"mean": 1.0, "least": 0.0, "choices": 0.0}, 0.0,
                ((-1.0, 0.1), (0.0, 0.9)), -0.5)  # fmt: skip


def test_an_answer_without_log_probabilities_is_not_kept() -> None:
    known = fleet_answers.of_policy(POLICY, Answer("yes", "stop", 0.9, 4, 1, logprobs=(-0.1,)))
    assert (known.keep, known.score, known.tokens) == (True, -0.1, (4, 1))
    unknown = fleet_answers.of_policy(POLICY, Answer("yes", "stop", None, 4, 1))
    assert (unknown.keep, unknown.score, unknown.text) == (False, -float("inf"), "yes")
