"""The bound on accepted labels: it holds over many draws of gold rows, for
objects by field, and not for free texts.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re

from support import ROOT

from slmctl.config import LabelConfig
from slmctl.stages.label import acceptance
from slmctl.stages.label.acceptance import LabelledRow
from slmctl.stages.label.rows import LabelRow
from slmctl.stages.label.teachers import Vote


def config(kind: str, **more: object) -> LabelConfig:
    task = {"kind": kind} | ({"schema": "s.json"} if kind == "extract" else {})
    return LabelConfig.model_validate({"task": task, **more})


def labelled(
    kind: str, k: int, answers: list[str], gold: str = "", *, pool: bool = False
) -> LabelledRow:
    votes = [Vote(0, answer, True, None) for answer in answers]
    row = LabelRow(f"{k:016x}", "", f"text {k}", "f", k, gold, pool)
    return LabelledRow(row, votes, acceptance.choose(kind, votes))


def drawn(seed: int, count: int) -> list[tuple[list[str], str]]:
    """Votes of a teacher that is right in 92 %, and less sure where
    it is wrong, with the right answer.
    """
    choose, rows = random.Random(seed), []
    for _ in range(count):
        wrong = choose.random() < 0.08
        votes = ["b" if choose.random() < (0.5 if wrong else 0.05) else "a" for _ in range(4)]
        rows.append((votes, "a"))
    return rows


def test_the_bound_holds_over_many_draws_of_gold() -> None:
    held = kept = 0
    for seed in range(20):
        gold = [
            labelled(
                "extract", k, [json.dumps(v) for v in votes], json.dumps(right), pool=k % 10 < 3
            )
            for k, (votes, right) in enumerate(drawn(seed, 300))
        ]
        rows = [
            labelled("extract", k + 1000, [json.dumps(v) for v in votes])
            for k, (votes, _) in enumerate(drawn(seed + 1000, 400))
        ]
        bound = acceptance.accept(config("extract"), rows, gold)
        accepted = [entry for entry in rows if entry.accepted]
        wrong = sum(entry.answer != '"a"' for entry in accepted) / max(len(accepted), 1)
        held += wrong <= 0.05
        kept += len(accepted) > 200
        assert bound.reason or bound.error_bound <= 0.05
    assert held >= 18  # of 20, at 95 %
    assert kept >= 15


def test_few_accepted_labels_are_bounded_themselves() -> None:
    def bound(count: int, copies: int = 1) -> acceptance.Bound:
        gold = [
            labelled("extract", k, ['"a"'], '"b"' if k % 100 == 9 else '"a"', pool=k % 10 < 3)
            for k in range(300)
        ]
        rows = [labelled("extract", k // copies, ['"a"']) for k in range(1000, 1000 + count)]
        for k, entry in enumerate(rows):
            entry.row = dataclasses.replace(
                entry.row, text="abcdefghijklmnopqrst"[k // copies % 20] * 9
            )
        return acceptance.accept(config("extract"), rows, gold)

    many, page = (
        acceptance.sentence(bound(400)),
        (ROOT / "docs" / "label.md").read_text(encoding="utf-8"),
    )
    assert many.startswith("of labels accepted in this way at most 3.7 %")
    # the session there quotes it
    assert re.sub(r"\d[\d.]*", "0", many) in re.sub(r"\d[\d.]*", "0", page)
    few = bound(20)
    # 3 of 210 gold rows are wrong: with 3 more among the 20 so few are drawn in 1.0 % of draws,
    # with 2 more in 6.1 %
    assert acceptance.sentence(few).startswith(
        "of the 20 accepted labels at most 2 (10.0 %) are wrong, with 95 %"
    )
    assert bound(20, copies=5).most_wrong == 5  # 4 texts, of which one may be wrong


def test_objects_are_right_as_a_whole_and_bounded_by_field() -> None:
    choose = random.Random(0)

    def pair(k: int) -> tuple[str, str]:
        right = {"topic": "a", "count": k}
        said = right | ({"count": -1} if choose.random() < 0.02 else {})
        return json.dumps(said), json.dumps(right, indent=1)

    gold = [
        labelled("extract", k, [said], right, pool=k % 10 < 3)
        for k, (said, right) in enumerate(map(pair, range(400)))
    ]
    bound = acceptance.accept(config("extract"), [], gold)
    assert not bound.reason
    assert set(bound.fields) == {"topic", "count"}
    assert bound.fields["topic"] < 0.02 < bound.fields["count"] <= bound.error_bound + 1e-9


def test_a_teacher_that_is_wrong_too_often_has_nothing_accepted() -> None:
    gold = [
        labelled("extract", k, ['"a"'], '"a"' if k % 3 else '"b"', pool=k % 10 < 3)
        for k in range(300)
    ]
    rows = [labelled("extract", 1000, ['"a"'])]
    bound = acceptance.accept(config("extract"), rows, gold)
    assert "no threshold keeps the error at or below 5" in bound.reason
    assert not rows[0].accepted


def test_texts_are_accepted_by_the_agreement_of_their_votes_and_no_bound_is_told() -> None:
    alike = labelled(
        "generate",
        1,
        ["we will send the money back", "we send the money back", "we will send money back"],
    )
    apart = labelled("generate", 2, ["we will send the money back", "please call us", "no"])
    alone = labelled("generate", 3, ["we will send the money back"])
    bound = acceptance.accept(config("generate"), [alike, apart, alone], [])
    assert [entry.accepted for entry in (alike, apart, alone)] == [True, False, False]
    assert "without a judge" in acceptance.sentence(bound)


def test_equal_objects_are_one_vote_in_any_spelling() -> None:
    votes = ['{"a": 1, "b": 2.0}', '{"b": 2, "a": 1}', '{"a": 2}']
    entry = labelled("extract", 1, votes)
    assert entry.answer == votes[0]
    assert entry.agreement == 2 / 3
    assert not acceptance.same("1", "1.0")  # labels that look like numbers are labels


def test_two_teachers_that_agree_tell_more_than_each_alone() -> None:
    def signal(*votes: tuple[int, str]) -> float:
        row = labelled("classify", 1, [answer for _, answer in votes])
        row.votes = [Vote(teacher, answer, True, None) for teacher, answer in votes]
        return acceptance._teachers(row)

    assert (
        signal((0, "a"), (1, "a"))
        > signal((0, "a"), (0, "a"))
        == 1
        > signal((0, "a"), (0, "a"), (1, "b"))
    )
