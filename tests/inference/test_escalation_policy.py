"""What a policy says of an answer, and what it refuses to judge."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from slmctl.errors import IntegrityError
from slmctl.inference.escalation_policy import FILENAME, Decision, FirstStep, Policy, signals

SURE = {
    "confidence": 0.9,
    "labels": {"a": 0.9, "b": 0.06, "c": 0.02, "d": 0.01, "e": 0.005, "oos": 0.004},
    "logprobs": [-0.1, -0.005],
    "raw_logprobs": [-0.3, -0.01],
    "completion_tokens": 3,
}
TEXT = {"confidence": 0.2, "logprobs": [-1.0, -0.6], "completion_tokens": 2}


def policy(**more: Any) -> Policy:
    names = signals(SURE, out_of_scope="oos")
    fields = {
        "gguf": "a" * 64,
        "task": "sha256:" + "b" * 64,
        "kind": "classify",
        "correct": "the label wanted",
        "out_of_scope": "oos",
        "weights": dict.fromkeys(names, 0.0) | {"odds": 1.0},
        "bias": 0.0,
        "knots": ((0.0, 0.2), (2.0, 0.6), (4.0, 1.0)),
        "threshold": 2.0,
    }
    return Policy(**{**fields, **more})


def test_signals_read_the_same_from_a_line_and_from_the_engines_event() -> None:
    cut = dict(list(SURE["labels"].items())[:5])  # type: ignore[attr-defined]
    line = {"id": "r1", "answer": "a", "expected": "a", **SURE, "labels": cut, "finish": "stop"}
    event = {**SURE, "finish": "stop", "prompt_tokens": 9, "text": "a"}
    assert signals(line, out_of_scope="oos") == signals(event, out_of_scope="oos")
    assert signals(json.loads(json.dumps(line)), out_of_scope="e") == signals(
        event, out_of_scope="e"
    )
    # of the vocabulary that labels have, over both choices
    share = math.exp(-0.3 + 0.1 - 0.01 + 0.005)
    assert signals(event) == pytest.approx(
        {"odds": math.log(9), "allowed": math.log(share / (1 - share))}
    )
    assert signals(TEXT) == pytest.approx(
        {"mean": -0.8, "least": -1.0, "choices": 0.6931471805599453}
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": None},
        {"confidence": "0.9"},
        {"confidence": float("nan")},
        {"confidence": 1.2},
        {"confidence": True},
        {"logprobs": []},
        {"logprobs": ["x", 1]},
        {"raw_logprobs": [-1.0]},
        {"raw_logprobs": None},
        {"logprobs": [float("nan"), -1.0]},
    ],
)
def test_what_does_not_say_how_sure_it_is_has_no_signals(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"confidence|log prob"):
        signals(SURE | wrong)


def test_probabilities_at_the_ends_are_finite() -> None:
    for sure in (0.0, 1.0):
        found = signals(
            {
                **SURE,
                "confidence": sure,
                "labels": {"a": sure},
                "logprobs": [-1e9],
                "raw_logprobs": [-1e9],
            }
        )
        assert all(abs(value) < 50 for value in found.values())


def test_judging() -> None:
    kept = policy().judge(SURE, "a")
    assert (kept.keep, kept.reason) == (True, "kept")
    assert kept.p_correct == pytest.approx(0.6 + 0.4 * (2.197 - 2) / 2, abs=1e-3)
    unsure = policy().judge({**SURE, "confidence": 0.5}, "a")
    assert (unsure.keep, unsure.reason, unsure.p_correct) == (False, "unsure", 0.2)
    assert policy(threshold=policy().score(SURE)).judge(SURE, "a").keep  # at the threshold itself
    assert policy().judge(SURE, " oos\n").reason == "out-of-scope"
    with pytest.raises(ValueError, match="another kind"):
        policy().judge(TEXT, "a")


@pytest.mark.parametrize(
    ("score", "p"), [(-9, 0.2), (0, 0.2), (1, 0.4), (2, 0.6), (3, 0.8), (4, 1.0), (99, 1.0)]
)
def test_p_correct_is_read_between_the_knots(score: float, p: float) -> None:
    assert policy().p_correct(score) == pytest.approx(p)
    assert policy(knots=((1.0, 0.5),)).p_correct(score) == 0.5


FIRST = FirstStep({"odds": 1.0, "evidence": 0.5}, 0.0, ((0.0, 0.4),), 3.0, ((0.0, 0.1),), 2.5)


@pytest.mark.parametrize("first", [None, FIRST])
def test_it_reads_back_from_a_folder_and_a_file(tmp_path: Path, first: FirstStep | None) -> None:
    policy(first=first).write(tmp_path)
    assert Policy.read(tmp_path) == Policy.read(tmp_path / FILENAME) == policy(first=first)
    assert ("first" in json.loads((tmp_path / FILENAME).read_bytes())) == (first is not None)


def test_a_policy_in_steps_judges_the_members_answers_and_then_the_sums() -> None:
    members, rest = policy(first=FIRST).in_steps()
    alone = {"confidence": 0.9, "labels": {"a": 0.9, "b": 0.1}, "logprobs": [-0.1], "evidence": 2.0}
    with pytest.raises(ValueError, match="of another kind"):
        policy().judge(alone, "a")
    members = dataclasses.replace(members, out_of_scope="")
    assert members.judge(alone, "a") == Decision(True, 0.4, "kept")
    assert members.judge(alone | {"evidence": 1.0}, "a") == Decision(False, 0.4, "unsure")
    assert (policy().judge(SURE, "a").keep, rest.judge(SURE, "a")) == (
        True,
        Decision(False, 0.1, "unsure"),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"knots": []},
        {"knots": [[1]]},
        {"knots": 3},
        {"weights": None},
        {"weights": {"odds": "x"}},
        {"threshold": None},
        {"more": 1},
        {"schema": 2},
        {"bias": "high"},
        {"first": {"weights": {}}},
        {"first": dataclasses.asdict(FIRST) | {"rest_knots": []}},
        {"first": dataclasses.asdict(FIRST) | {"more": 1}},
    ],
)
def test_what_is_no_policy_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    policy().write(tmp_path)
    fields = json.loads((tmp_path / FILENAME).read_bytes())
    (tmp_path / FILENAME).write_text(json.dumps(fields | change), encoding="utf-8")
    with pytest.raises(
        IntegrityError,
        match=r"policy\.json is not valid: (knots|weights|threshold|more|bias|first)|has schema 2",
    ):
        Policy.read(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / FILENAME).write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"policy\.json is not valid"):
        Policy.read(tmp_path)
    with pytest.raises(IntegrityError, match="there is no policy"):
        Policy.read(tmp_path / "elsewhere")


def test_another_file_or_task_is_refused() -> None:
    policy().require("sha256:" + "a" * 64, "b" * 64)
    with pytest.raises(
        IntegrityError, match="another GGUF file: fitted on aaaaaaaaaaaa, and cccccccccccc"
    ):
        policy().require("c" * 64, "b" * 64)
    with pytest.raises(IntegrityError, match="another task"):
        policy().require("a" * 64, "c" * 64)
