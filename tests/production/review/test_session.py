"""A session of review: who gets which row, and what stands in the file afterwards."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import production
from support.production import collected

from slmctl.errors import DataError, LockedError, SlmctlError, UsageError
from slmctl.production.review.review_rows import ReviewRow
from slmctl.production.review.session import DecisionRefusedError, ReviewSession
from slmctl.sources.reviewed import Review, decided
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
    with ReviewSession(
        queue, task=TASK, output=tmp_path / "reviewed.jsonl", reviewer="ann", clock=clock
    ) as opened:
        yield opened


def lines(session: ReviewSession) -> list[Review]:
    return list(Review.read(session.output))


def id_of(session: ReviewSession) -> str:
    candidate = session.next()
    assert candidate is not None
    return candidate.id


def test_each_decision_is_a_line_before_the_next_row(session: ReviewSession) -> None:
    assert session.decide(id_of(session), "billing") == "accepted"
    assert session.decide(id_of(session), " delivery ") == "corrected"
    assert session.decide(id_of(session), None) == "skipped"
    first, second, third = lines(session)
    assert (first.id, first.decision, first.after, first.chosen, first.reviewer) == (
        "r0",
        "accepted",
        "billing",
        "uniform",
        "ann",
    )
    assert (second.decision, second.before, second.after) == ("corrected", "billing", "delivery")
    assert (second.chosen, second.messages) == (
        "unsure",
        [{"role": "user", "content": "where is parcel r1"}],
    )
    assert (third.decision, third.messages, third.after) == ("skipped", [], "")
    assert session.output.stat().st_mode & 0o777 == 0o600
    assert id_of(session) == "r3"
    assert session.progress().decided == 3


def test_whoever_reviews_four_labels_at_a_time_goes_on_with_the_next(
    session: ReviewSession,
) -> None:
    session.decide("r4", "billing")  # before rounds were thought of
    session.begin_round(4)
    assert [row.id for row in session.queue] == ["r4", "r0", "r1", "r2"]
    assert session.summary().endswith("1 of 4 done")
    for id in ("r0", "r1", "r2"):
        assert id_of(session) == id
        session.decide(id, "billing")
    assert (session.next(), session.progress().decided) == (None, 4)
    undone = session.undo()
    assert undone is not None and (undone.id, id_of(session)) == ("r2", "r2")


def test_what_the_task_does_not_allow_is_refused_and_changes_nothing(
    session: ReviewSession,
) -> None:
    id_of(session)
    for id, answer, words in (
        ("r0", "refunds", "'refunds' is not one of the 3 labels"),
        ("r0", "  ", "the answer is empty"),
        ("gone", "billing", "row 'gone' is not in the queue"),
    ):
        with pytest.raises(DecisionRefusedError, match=words):
            session.decide(id, answer)
    assert lines(session) == []


@pytest.mark.parametrize(
    ("name", "output", "error", "words"),
    [
        *(
            (name, "reviewed.jsonl", UsageError, "a name of 1 to 80 characters")
            for name in ("", "x" * 81, "two\nlines")
        ),
        ("ann", "/dev/full", DataError, "it is a device or socket"),
    ],
)
def test_a_session_has_the_name_of_its_reviewer_and_a_file(
    tmp_path: Path, name: str, output: str, error: type[SlmctlError], words: str
) -> None:
    with pytest.raises(error, match=words):
        ReviewSession([], task=TASK, output=tmp_path / output, reviewer=name)


def test_a_decision_that_comes_twice_is_one_line(session: ReviewSession) -> None:
    assert session.decide("r0", "billing") == "accepted"
    assert session.decide("r0", "billing") == "unchanged"
    with pytest.raises(DecisionRefusedError, match="row 'r0' is decided otherwise, by ann"):
        session.decide("r0", "account")
    assert len(lines(session)) == 1


def test_undo_takes_back_the_last_decision_and_shows_its_row(session: ReviewSession) -> None:
    session.decide("r0", "billing")
    session.decide("r1", "account")
    undone = session.undo()
    assert undone is not None and undone.id == "r1"
    assert id_of(session) == "r1"
    session.decide("r1", "delivery")
    assert {review.id: review.after for review in decided(lines(session))} == {
        "r0": "billing",
        "r1": "delivery",
    }
    assert session.undo() is not None and session.undo() is not None
    assert session.undo() is None
    assert session.progress().own == 0


def test_threads_decide_every_row_once(tmp_path: Path) -> None:
    queue = [ReviewRow(collected(f"r{k}"), "unsure") for k in range(40)]
    with ReviewSession(
        queue, task=TASK, output=tmp_path / "reviewed.jsonl", reviewer="ann"
    ) as session:

        def work() -> None:
            while (candidate := session.next()) is not None:
                session.decide(candidate.id, "billing")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [review.id for review in lines(session)] == [candidate.id for candidate in queue]


def test_a_session_goes_on_where_another_ended(tmp_path: Path) -> None:
    queue = [ReviewRow(collected(f"r{k}"), "unsure") for k in range(3)]
    output = tmp_path / "reviewed.jsonl"
    with ReviewSession(queue, task=TASK, output=output, reviewer="ann") as session:
        session.decide("r0", "account")
        with pytest.raises(LockedError, match=r"another slmctl review fills reviewed\.jsonl"):
            ReviewSession(queue, task=TASK, output=output, reviewer="ann")
    with output.open("a") as stream:
        stream.write('{"id": "torn", "ti')  # a kill
    with ReviewSession(queue, task=TASK, output=output, reviewer="ann") as session:
        assert [candidate.id for candidate in session.open_rows()] == ["r1", "r2"]
        session.decide("r1", "account")
        assert [review.id for review in lines(session)] == ["r0", "r1"]
        undone = session.undo(), session.undo()
        assert [candidate.id for candidate in undone if candidate] == ["r1", "r0"]


def test_rows_that_were_forgotten_meanwhile_stay_forgotten(
    session: ReviewSession, tmp_path: Path
) -> None:
    session.decide("r0", "account")
    session.decide("r1", "account")
    rewritten = production.written(
        tmp_path / "new", [review for review in lines(session) if review.id != "r0"]
    )
    rewritten.replace(session.output)
    session.decide("r2", "billing")
    assert [review.id for review in lines(session)] == ["r1", "r2"]
    assert session.progress().decided == 2


def test_a_decision_that_cannot_be_written_does_not_count(session: ReviewSession) -> None:
    session.decide("r0", "billing")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (session.output.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            session.decide("r1", "billing")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert session.progress().decided == 1
    assert session.decide("r1", "billing") == "accepted"
    assert [review.id for review in lines(session)] == ["r0", "r1"]


def test_the_pace_is_rows_an_hour(session: ReviewSession, clock: Clock) -> None:
    id_of(session)
    assert session.progress().per_hour is None
    clock.now = 10
    session.decide("r0", "billing")
    assert session.progress().per_hour == pytest.approx(360)
    assert (
        session.summary()
        == "1 row reviewed: 1 right, 0 corrected, 0 skipped, 360 rows an hour; 1 of 6 done"
    )


# Other tasks


def test_fields_are_compared_as_json_and_held_to_the_schema(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}
    task = Task("extract", "", "", schema=schema)
    queue = [
        ReviewRow(collected(f"r{k}", answer='{"total": 1, "paid": true}'), "unsure")
        for k in range(3)
    ]
    with ReviewSession(
        queue, task=task, output=tmp_path / "reviewed.jsonl", reviewer="ann"
    ) as session:
        assert session.decide("r0", '{"paid":true,"total":1}') == "accepted"
        assert session.decide("r1", '{"paid": 1, "total": 1}') == "corrected"
        for answer, words in (
            ('{"total": "one"}', "does not fit the schema: total: 'one' is not of type 'number'"),
            ("{}", "'total' is a required property"),
            ("no", "the answer is not JSON"),
        ):
            with pytest.raises(DecisionRefusedError, match=words):
                session.decide("r2", answer)


def test_a_text_is_accepted_to_the_letter(tmp_path: Path) -> None:
    queue = [ReviewRow(collected(f"r{k}", answer="It left on Monday."), "unsure") for k in range(2)]
    with ReviewSession(
        queue, task=Task("generate", "", ""), output=tmp_path / "reviewed.jsonl", reviewer="ann"
    ) as session:
        assert session.decide("r0", "It left on Monday.\n") == "accepted"
        assert session.decide("r1", "It left on monday.") == "corrected"
