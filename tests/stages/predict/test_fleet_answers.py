"""An answer of a model of the fleet under its policy."""

from __future__ import annotations

import dataclasses

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


def test_an_answer_that_is_out_of_scope_is_kept_by_no_threshold() -> None:
    weights = {"odds": 1.0, "allowed": 0.0, "out_of_scope": 0.0}
    policy = dataclasses.replace(POLICY, kind="classify", out_of_scope="other", weights=weights)
    for text, kept in (("billing", True), ("other", False)):
        labels = {text: 0.9, "delivery": 0.1}
        answer = Answer(text, "stop", 0.9, 4, 1, labels=labels, logprobs=(-0.1,), raw_logprobs=(-0.1,))
        judged = fleet_answers.of_policy(policy, answer)
        assert (judged.keep, judged.score > -float("inf")) == (kept, kept)
