"""Answers of the models of a fleet: who is asked what, and an answer under its policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from support.fleets import TASKS, published, task

from slmctl.inference.engine import Answer
from slmctl.inference.escalation_policy import Policy
from slmctl.stages.predict import fleet_answers
from slmctl.stages.predict.fleet_answers import FleetModel
from slmctl.task.records import Message, Record

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


def test_a_larger_model_is_asked_the_row_of_the_named_one_with_its_own_system_prompt(tmp_path: Path) -> None:
    release, tickets = published(tmp_path, "tickets"), dataclasses.replace(TASKS["tickets"], system="Name it.")
    models = {
        "auto": FleetModel(release, task("classify", "tickets"), None),
        "large": FleetModel(release, dataclasses.replace(tickets, system="Name the one category of the text."), None),
        "tickets": FleetModel(release, tickets, None),
    }
    turns: list[Message] = [{"role": "system", "content": tickets.system}, {"role": "user", "content": "my parcel"}]
    own = Record("b", (*turns, {"role": "assistant", "content": "delivery"}), {"file": "x", "row": 1})
    router = Record("a", (turns[1], {"role": "assistant", "content": "tickets"}), {"file": "x", "row": 1})
    rows, timings = fleet_answers.answers(models, "auto", [router], [own], larger={"tickets": "large"}, max_tokens=8)
    (row,) = rows
    assert list(row.answered) == ["tickets", "large"]  # in the order in which they are asked
    assert all(answer.text in tickets.labels for answer in row.answered.values())
    lengths = {name: answer.tokens[0] for name, answer in row.answered.items()}
    longer = len(models["large"].task.system.split()) - len(tickets.system.split())
    assert lengths["large"] >= lengths["tickets"] + longer
    assert (row.expected, row.origin, set(timings)) == ("delivery", "b", set(models))


def test_a_larger_model_that_cleans_otherwise_gets_the_text_cleaned_by_its_own_task(tmp_path: Path) -> None:
    release, small = published(tmp_path, "tickets"), TASKS["tickets"]
    models = {"auto": FleetModel(release, task("classify", "tickets"), None)}
    models["tickets"] = FleetModel(release, small, None)
    answer: Message = {"role": "assistant", "content": "delivery"}
    own = Record("b", ({"role": "user", "content": "<p>my</p> <b>parcel</b>"}, answer), {"file": "x", "row": 1})
    router = dataclasses.replace(own, messages=(own.messages[0], {**answer, "content": "tickets"}))

    def lengths(larger: FleetModel) -> list[int]:
        (row,), _ = fleet_answers.answers(
            {**models, "large": larger}, "auto", [router], [own], larger={"tickets": "large"}, max_tokens=8
        )
        return [answer.tokens[0] for answer in row.answered.values()]

    same = FleetModel(release, small, None)
    asked, larger = lengths(same)
    assert asked == larger
    other = FleetModel(release, dataclasses.replace(small, clean=("html",)), None)
    asked, larger = lengths(other)
    assert asked > larger  # the marks are gone
    assert fleet_answers.remarks({**models, "large": same}, {"tickets": "large"}) == []
    (remark,) = fleet_answers.remarks({**models, "large": other}, {"tickets": "large"})
    assert remark.startswith("large cleans texts otherwise than tickets: ")
