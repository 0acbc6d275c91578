"""The order of review: the telling rows first, and a share by chance that nobody can thin out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import production
from support.production import collected

from slmctl.deduplication import minhash
from slmctl.errors import UsageError
from slmctl.production.records import CollectedRow, Feedback
from slmctl.production.review import order, review_rows
from slmctl.production.review.review_rows import RESERVED, ReviewRow, is_reserved
from slmctl.task.contract import Task

TASK = Task("classify", "", "", labels=production.LABELS)
TEXTS = (
    "the printer on the third floor is jammed",
    "please cancel my subscription today",
    "how do I reset a password",
    "my parcel has not arrived since monday",
    "the invoice shows a wrong address",
    "do you ship to Norway at all",
    "a refund for the broken kettle, please",
    "who can open my locked account",
    "are there discounts for schools",
)


def reasons(queue: list[ReviewRow]) -> list[tuple[str, str]]:
    return [(candidate.id, candidate.chosen) for candidate in queue]


def test_the_most_telling_rows_come_first() -> None:
    rows = [
        collected("plain", TEXTS[0], p_correct=0.95),
        collected("novel", TEXTS[1], p_correct=0.9),
        collected("less-sure", TEXTS[2], p_correct=0.4, chosen="unsure"),
        collected("unsure", TEXTS[3], p_correct=0.2, chosen="unsure"),
        collected("agrees", TEXTS[4], p_correct=0.3, chosen="escalated", general_answer=" billing"),
        collected(
            "differs", TEXTS[5], p_correct=0.6, chosen="escalated", general_answer="delivery"
        ),
        collected("said-wrong", TEXTS[6], p_correct=0.97),
        collected("said-right", TEXTS[7], p_correct=0.97),
    ]
    heard = {
        "said-wrong": Feedback("said-wrong", "", ok=False),
        "said-right": Feedback("said-right", "", ok=True),
    }
    suspects = [ReviewRow(collected("train1", TEXTS[8]), "suspect", proposed="account")]
    queue = order.targeted_queue(
        rows,
        heard,
        task=TASK,
        suspects=suspects,
        similarity=lambda text: 0.0 if text == TEXTS[1] else 0.9,
    )
    assert reasons(queue)[:7] == [
        ("said-wrong", "feedback"),
        ("differs", "disagreement"),
        ("agrees", "escalated"),
        ("unsure", "unsure"),
        ("less-sure", "unsure"),
        ("train1", "suspect"),
        ("novel", "novel"),
    ]
    assert {reason for _, reason in reasons(queue)[7:]} == {"duplicates"}


def test_of_near_duplicates_one_comes_first() -> None:
    rows = [collected(f"a{k}", f"where is my parcel number {k} please tell me") for k in range(4)]
    rows += [collected(f"s{k}", text) for k, text in enumerate(TEXTS[:3])]
    queue = order.targeted_queue(rows, {}, task=TASK)
    assert [candidate.id[0] for candidate in queue] == ["a", "s", "s", "s", "a", "a", "a"]


def test_a_held_out_row_is_not_picked() -> None:
    rows = [collected("held", TEXTS[0].upper()), collected("free", TEXTS[1])]
    queue = order.targeted_queue(
        rows, {}, task=TASK, held_out=frozenset({minhash.normalise(TEXTS[0])})
    )
    assert [candidate.id for candidate in queue] == ["free"]


def test_a_conversation_is_compared_with_all_its_turns() -> None:
    # the assistant's were left out, so that no conversation equalled a held-out one
    roles, whole = ("system", "user", "assistant", "user"), "\n".join(TEXTS[1:4])
    messages = [{"role": role, "content": TEXTS[k]} for k, role in enumerate(roles)]
    row = CollectedRow("held", production.TIME, messages, "billing")
    assert (
        order.targeted_queue([row], {}, task=TASK, held_out=frozenset({minhash.normalise(whole)}))
        == []
    )
    queue = order.targeted_queue([row], {}, task=TASK, similarity=lambda text: float(text == whole))
    assert reasons(queue) == [("held", "duplicates")]  # and not novel


ROWS = st.lists(
    st.builds(
        collected,
        id=st.uuids().map(str),
        p_correct=st.none() | st.floats(0, 1),
        uniform=st.booleans(),
        uniform_probability=st.sampled_from([0.02, 0.4, 0.5, 0.8, 1.0]),
        chosen=st.sampled_from(["uniform", "escalated", "unsure"]),
    ),
    unique_by=lambda row: row.id,
    max_size=20,
)


@settings(max_examples=25, deadline=None)
@given(ROWS, st.floats(0, 1))
def test_a_row_is_in_one_queue(rows: list[CollectedRow], share: float) -> None:
    uniform, targeted = order.uniform_queue(rows, {}), order.targeted_queue(rows, {}, task=TASK)
    assert sorted(candidate.id for candidate in [*uniform, *targeted]) == sorted(
        row.id for row in rows
    )
    assert all(candidate.chosen == "uniform" and candidate.row.uniform for candidate in uniform)
    assert all(candidate.chosen != "uniform" for candidate in targeted)
    merged = order.interleaved(targeted, uniform, share)
    assert [candidate for candidate in merged if candidate.chosen != "uniform"] == targeted
    assert [candidate for candidate in merged if candidate.chosen == "uniform"] == uniform


def test_the_uniform_queue_takes_every_row_of_a_small_share_and_half_of_all_traffic() -> None:
    small = [
        collected(f"r{k}", uniform=True, uniform_probability=0.02, p_correct=k / 2000)
        for k in range(2000)
    ]
    assert all(map(is_reserved, small))
    assert order.uniform_queue(small, {})[0].probability == 0.02
    everything = [
        collected(f"r{k}", uniform=True, uniform_probability=1.0, p_correct=k / 2000)
        for k in range(2000)
    ]
    reserved = [row for row in everything if is_reserved(row)]
    assert abs(len(reserved) - 1000) < 100
    assert order.uniform_queue(everything, {})[0].probability == RESERVED
    easy = sum((row.p_correct or 0) > 0.5 for row in reserved)
    # no easier than all traffic, whatever the other queue picks
    assert abs(easy - len(reserved) / 2) < 80


def test_a_share_of_the_rows_is_drawn_by_chance() -> None:
    targeted = [ReviewRow(collected(f"t{k}"), "unsure") for k in range(70)]
    uniform = [ReviewRow(collected(f"u{k}"), "uniform") for k in range(60)]
    merged = order.interleaved(targeted, uniform, 0.3)
    for end in (10, 50, 100):
        assert sum(candidate.chosen == "uniform" for candidate in merged[:end]) == int(0.3 * end)
    assert len(merged) == 130
    assert [candidate.chosen for candidate in order.interleaved(targeted, uniform, 1.0)[:60]] == [
        "uniform"
    ] * 60


def test_free_texts_that_say_the_same_are_no_disagreement() -> None:
    task = Task("generate", "", "")
    rows = [
        collected(
            "alike", TEXTS[0], answer="It left on Monday.", general_answer="it left on monday"
        ),
        collected(
            "other",
            TEXTS[1],
            answer="It left on Monday.",
            general_answer="We do not know where it is.",
        ),
    ]
    queue = order.targeted_queue(rows, {}, task=task)
    assert reasons(queue) == [("other", "disagreement"), ("alike", "duplicates")]


def test_suspects_are_training_rows_alone(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "billing"}]
    lines = [
        {
            "id": split,
            "split": split,
            "messages": turns,
            "label": "billing",
            "proposed": "account",
            "score": 0.9,
        }
        for split in ("train", "test", "validation")
    ]
    (tmp_path / review_rows.SUSPECTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (suspect,) = review_rows.suspects_in(tmp_path)
    assert (suspect.id, suspect.before, suspect.proposals, suspect.row.messages) == (
        "train",
        "billing",
        ["account"],
        turns[:1],
    )
    assert review_rows.suspects_in(tmp_path / "none") == []


def test_a_request_is_one_row_and_its_last_feedback_counts(tmp_path: Path) -> None:
    production.written(
        tmp_path / "2026-11-24.jsonl", [collected("a", answer="billing"), collected("b")]
    )
    production.written(tmp_path / "2026-11-25.jsonl", [collected("a", answer="account")])
    production.written(
        tmp_path / "feedback.jsonl",
        [
            Feedback("a", production.TIME, ok=True),
            Feedback("a", production.TIME, ok=False, answer="delivery"),
        ],
    )
    rows, heard = review_rows.collected_rows([tmp_path])
    assert {row.id: row.answer for row in rows} == {"a": "account", "b": "billing"}
    assert heard["a"].answer == "delivery"
    with pytest.raises(UsageError, match="none does not exist"):
        review_rows.collected_rows([tmp_path / "none"])
