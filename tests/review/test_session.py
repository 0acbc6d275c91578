"""A session of review: who gets which row, and what stands in the file afterwards."""

from __future__ import annotations

import math
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import production
from support.production import collected

from slmctl.errors import DataError, LockedError
from slmctl.production.records import Review, agreed, standing
from slmctl.review.review_rows import ReviewRow
from slmctl.review.session import LEASE_S, DecisionRefusedError, ReviewSession
from slmctl.task.contract import Task

TASK = Task("classify", "", "", labels=production.LABELS)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(tmp_path: Path, clock: Clock) -> Iterator[ReviewSession]:
    queue = [ReviewRow(collected(f"r{k}"), "unsure" if k % 2 else "uniform") for k in range(6)]
    with ReviewSession(queue, task=TASK, output=tmp_path / "reviewed.jsonl", clock=clock) as opened:
        yield opened


def lines(session: ReviewSession) -> list[Review]:
    return list(Review.read(session.output))


def id_of(session: ReviewSession, reviewer: str) -> str:
    candidate = session.next(reviewer)
    assert candidate is not None
    return candidate.id


def test_each_decision_is_a_line_before_the_next_row(session: ReviewSession) -> None:
    assert session.decide("ann", id_of(session, "ann"), "billing") == "accepted"
    assert session.decide("ann", id_of(session, "ann"), " delivery ") == "corrected"
    assert session.decide("ann", id_of(session, "ann"), None) == "skipped"
    first, second, third = lines(session)
    assert (first.id, first.decision, first.after, first.chosen, first.reviewer) == (
        "r0", "accepted", "billing", "uniform", "ann",
    )  # fmt: skip
    assert (second.decision, second.before, second.after) == ("corrected", "billing", "delivery")
    assert (second.chosen, second.messages) == ("unsure", [{"role": "user", "content": "where is parcel r1"}])
    assert (third.decision, third.messages, third.after) == ("skipped", [], "")
    assert session.output.stat().st_mode & 0o777 == 0o600
    assert id_of(session, "ann") == "r3"
    assert session.progress("ann").decided == 3


def test_what_the_task_does_not_allow_is_refused_and_changes_nothing(session: ReviewSession) -> None:
    id_of(session, "ann")
    for id, answer, words in (
        ("r0", "refunds", "'refunds' is not one of the 3 labels"),
        ("r0", "  ", "the answer is empty"),
        ("gone", "billing", "row 'gone' is not in the queue"),
    ):
        with pytest.raises(DecisionRefusedError, match=words):
            session.decide("ann", id, answer)
    for name in ("", "x" * 81, "two\nlines"):
        with pytest.raises(DecisionRefusedError, match="a name of 1 to 80 characters"):
            session.next(name)
    assert lines(session) == []


def test_a_decision_that_comes_twice_is_one_line(session: ReviewSession) -> None:
    assert session.decide("ann", "r0", "billing") == "accepted"
    assert session.decide("ann", "r0", "billing") == "unchanged"
    with pytest.raises(DecisionRefusedError, match="ann has decided row 'r0' before"):
        session.decide("ann", "r0", "account")
    assert len(lines(session)) == 1


def test_undo_takes_back_the_last_decision_and_shows_its_row(session: ReviewSession) -> None:
    session.decide("ann", "r0", "billing")
    session.decide("ann", "r1", "account")
    session.decide("bob", "r2", "account")
    undone = session.undo("ann")
    assert undone is not None and undone.id == "r1"
    assert id_of(session, "ann") == "r1"
    assert id_of(session, "bob") != "r1"  # ann has it on the screen
    session.decide("ann", "r1", "delivery")
    assert {review.id: review.after for review in agreed(standing(lines(session)))} == {
        "r0": "billing", "r1": "delivery", "r2": "account",
    }  # fmt: skip
    assert session.undo("ann") is not None and session.undo("ann") is not None
    assert session.undo("ann") is None
    assert session.progress("ann").own == 0


def test_several_reviewers_get_different_rows_until_a_lease_ends(session: ReviewSession, clock: Clock) -> None:
    names = ["ann", "bob", "cem"]
    assert [id_of(session, name) for name in names] == ["r0", "r1", "r2"]
    assert [id_of(session, name) for name in names] == ["r0", "r1", "r2"]  # a reload shows the same
    clock.now = LEASE_S + 1
    assert id_of(session, "dan") == "r0"
    session.decide("ann", "r0", "billing")  # she comes back later: her decision counts
    assert session.progress().decided == 1


def test_many_threads_decide_every_row_once(tmp_path: Path) -> None:
    queue = [ReviewRow(collected(f"r{k}"), "unsure") for k in range(40)]
    with ReviewSession(queue, task=TASK, output=tmp_path / "reviewed.jsonl") as session:

        def work(name: str) -> None:
            while (candidate := session.next(name)) is not None:
                session.decide(name, candidate.id, "billing")

        threads = [threading.Thread(target=work, args=(f"reviewer {k}",)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(review.id for review in lines(session)) == sorted(candidate.id for candidate in queue)


def test_rows_of_the_overlap_are_decided_by_two_and_a_tie_by_a_third(tmp_path: Path) -> None:
    queue = [ReviewRow(collected(f"r{k}"), "unsure") for k in range(4)]
    with ReviewSession(queue, task=TASK, output=tmp_path / "reviewed.jsonl", overlap=1.0) as session:
        for name, answers in (("ann", ["billing"] * 4), ("bob", ["billing", "billing", "billing", "account"])):
            for answer in answers:
                session.decide(name, id_of(session, name), answer)
        progress = session.progress()
        assert (progress.overlap, progress.decided) == (4, 4)
        assert progress.kappa == pytest.approx(0.0)  # as often as chance: ann always gives one answer
        assert session.next("ann") is None
        assert id_of(session, "cem") == "r3"  # on which they differ
        session.decide("cem", "r3", "account")
        assert session.next("dan") is None
        assert len(agreed(standing(lines(session)))) == 4


def test_about_the_share_of_rows_overlaps(tmp_path: Path) -> None:
    queue = [ReviewRow(collected(f"r{k}"), "unsure") for k in range(300)]
    with ReviewSession(queue, task=TASK, output=tmp_path / "reviewed.jsonl", overlap=0.1) as session:
        for candidate in queue:
            session.decide("ann", candidate.id, "billing")
        count = 0
        while (candidate := session.next("bob")) is not None:
            session.decide("bob", candidate.id, "billing")
            count += 1
        assert 15 <= count <= 45
        assert math.isnan(session.progress().kappa)  # one answer alone: nothing follows
        assert f"two people looked at {count} rows: no kappa" in session.summary()[1]


def test_a_session_goes_on_where_another_ended(tmp_path: Path) -> None:
    queue = [ReviewRow(collected(f"r{k}"), "unsure") for k in range(3)]
    output = tmp_path / "reviewed.jsonl"
    with ReviewSession(queue, task=TASK, output=output) as session:
        session.decide("ann", "r0", "account")
        with pytest.raises(LockedError, match=r"another slmctl review fills reviewed\.jsonl"):
            ReviewSession(queue, task=TASK, output=output)
    with output.open("a") as stream:
        stream.write('{"id": "torn", "ti')  # a kill
    with ReviewSession(queue, task=TASK, output=output) as session:
        assert [candidate.id for candidate in session.open_rows()] == ["r1", "r2"]
        session.decide("ann", "r1", "account")
        assert [review.id for review in lines(session)] == ["r0", "r1"]
        undone = session.undo("ann"), session.undo("ann")
        assert [candidate.id for candidate in undone if candidate] == ["r1", "r0"]


def test_rows_that_were_forgotten_meanwhile_stay_forgotten(session: ReviewSession, tmp_path: Path) -> None:
    session.decide("ann", "r0", "account")
    session.decide("ann", "r1", "account")
    rewritten = production.written(tmp_path / "new", [review for review in lines(session) if review.id != "r0"])
    rewritten.replace(session.output)
    session.decide("ann", "r2", "billing")
    assert [review.id for review in lines(session)] == ["r1", "r2"]
    assert session.progress().decided == 2


def test_a_decision_that_cannot_be_written_does_not_count(session: ReviewSession) -> None:
    session.decide("ann", "r0", "billing")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (session.output.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            session.decide("ann", "r1", "billing")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert session.progress("ann").decided == 1
    assert session.decide("ann", "r1", "billing") == "accepted"
    assert [review.id for review in lines(session)] == ["r0", "r1"]


def test_a_device_is_no_file_of_reviews() -> None:
    with pytest.raises(DataError, match="it is a device or socket"):
        ReviewSession([], task=TASK, output=Path("/dev/full"))


def test_the_pace_is_rows_an_hour(session: ReviewSession, clock: Clock) -> None:
    id_of(session, "ann")
    assert session.progress("ann").per_hour is None
    clock.now = 10
    session.decide("ann", "r0", "billing")
    assert session.progress("ann").per_hour == pytest.approx(360)
    assert session.summary()[0] == "1 row reviewed: 1 right, 0 corrected, 0 skipped, 360 rows an hour; 1 of 6 done"


# The served model and its shadow


def shadowed(count: int) -> list[ReviewRow]:
    return [ReviewRow(collected(f"r{k}", shadow="account"), "shadow") for k in range(count)]


def test_the_better_of_two_models_is_named_once_it_is_clear(tmp_path: Path) -> None:
    with ReviewSession(shadowed(60), task=TASK, output=tmp_path / "reviewed.jsonl") as session:
        comparison = session.comparison()
        assert comparison is not None and comparison.sentence == "No row is decided yet."
        for k in range(12):
            session.decide("ann", f"r{k}", "billing" if k % 6 == 0 else "account" if k % 6 < 5 else "delivery")
        comparison = session.comparison()
        assert comparison is not None
        assert (comparison.first, comparison.second, comparison.neither) == (2, 8, 2)
        assert comparison.test.better == "" and comparison.test.more
        assert f"it takes about {comparison.test.more} more decisions" in comparison.sentence
        for k in range(12, 40):
            session.decide("ann", f"r{k}", "account")
        assert session.summary()[-1].startswith("The shadow is better (p at most")


def test_rows_decided_for_another_reason_count_when_the_queue_reaches_them(tmp_path: Path) -> None:
    output = production.written(tmp_path / "reviewed.jsonl", [production.reviewed("r5", "account", chosen="unsure")])
    with ReviewSession(shadowed(8), task=TASK, output=output) as session:
        comparison = session.comparison()
        assert comparison is not None and comparison.second == 0
        for k in (0, 1, 2, 3, 4, 6):
            session.decide("ann", f"r{k}", "billing")
        comparison = session.comparison()
        assert comparison is not None and (comparison.first, comparison.second) == (6, 1)


# Other tasks


def test_fields_are_compared_as_json_and_held_to_the_schema(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}
    task = Task("extract", "", "", schema=schema)
    queue = [ReviewRow(collected(f"r{k}", answer='{"total": 1, "paid": true}'), "unsure") for k in range(3)]
    with ReviewSession(queue, task=task, output=tmp_path / "reviewed.jsonl") as session:
        assert session.decide("ann", "r0", '{"paid":true,"total":1}') == "accepted"
        assert session.decide("ann", "r1", '{"paid": 1, "total": 1}') == "corrected"
        for answer, words in (
            ('{"total": "one"}', "does not fit the schema: total: 'one' is not of type 'number'"),
            ("{}", "'total' is a required property"),
            ("no", "the answer is not JSON"),
        ):
            with pytest.raises(DecisionRefusedError, match=words):
                session.decide("ann", "r2", answer)


def test_a_text_is_accepted_to_the_letter(tmp_path: Path) -> None:
    queue = [ReviewRow(collected(f"r{k}", answer="It left on Monday."), "unsure") for k in range(2)]
    with ReviewSession(queue, task=Task("generate", "", ""), output=tmp_path / "reviewed.jsonl") as session:
        assert session.decide("ann", "r0", "It left on Monday.\n") == "accepted"
        assert session.decide("ann", "r1", "It left on monday.") == "corrected"
