"""The baselines: what each answers, from the rows that a model learns."""

from __future__ import annotations

import dataclasses

import pytest

from slmctl.metrics.baseline import BASELINES, RELEASED, BaselineRows, of_encoder
from slmctl.task.kinds import KINDS

ROWS = BaselineRows(
    ["where is my parcel", "a refund for my order", "Where is the parcel of my order now?"],
    ["on its way", "in two days", "at the depot"],
    choosing=["where is my parcel"],
    chosen=["on its way"],
    asked=["my refund, please", "where is the parcel now", "12 % !"],
    empty="{}",
)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("nearest", ["in two days", "at the depot", "on its way"]),
        ("majority", ["at the depot"] * 3),
        ("copy", ROWS.asked),
        ("empty", ["{}"] * 3),
        ("no_call", ["{}"] * 3),
    ],
)
def test_a_baseline_answers_every_row(name: str, answers: list[str]) -> None:
    assert BASELINES[name].answers(ROWS) == (answers, None)


def test_rows_without_a_word_get_the_most_frequent_answer() -> None:
    rows = dataclasses.replace(ROWS, texts=["!", "?", "..."])
    assert BASELINES["nearest"].answers(rows)[0] == ["at the depot"] * 3


def test_long_texts_and_many_rows_are_answered_in_parts() -> None:
    rows = dataclasses.replace(ROWS, asked=[*ROWS.asked, "parcel " * 50_000] * 200)
    answers, _ = BASELINES["nearest"].answers(rows)
    assert len(answers) == 800 and answers[1] == answers[797] == "at the depot"


def test_each_kind_of_task_names_baselines_that_answer() -> None:
    rows = dataclasses.replace(ROWS, answers=["a", "b", "a"], chosen=["a"])
    for kind in KINDS.values():
        assert kind.baselines
        for name in kind.baselines:
            several = ("a", "b") if kind.name == "tag" else ()
            own = dataclasses.replace(rows, several=several)
            if several:
                own = dataclasses.replace(own, answers=['["a"]', '["b"]', "[]"], chosen=['["a"]'])
            texts, _ = BASELINES[name].answers(own)
            assert len(texts) == len(rows.asked)


def test_what_the_encoder_makes_can_be_released_and_comes_first() -> None:
    for tags in (False, True):
        cheap = of_encoder(tags=tags)
        assert cheap.on_encoder and "publish.model=linear" in cheap.release
        with pytest.raises(NotImplementedError, match=cheap.name):
            cheap.answers(ROWS)
    assert [each.on_encoder for each in RELEASED] == [True, True, False]
