"""Collected answers: chances, what is sensitive, days, full disks, and feedback over restarts."""

from __future__ import annotations

import datetime
import fcntl
import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from support.servers import settles

from slmctl import console
from slmctl.config import CollectConfig
from slmctl.errors import UsageError
from slmctl.production import collector as module
from slmctl.production.collector import Collector
from slmctl.production.records import FEEDBACK, CollectedRow, Feedback, collected_files
from slmctl.sensitive import search_process
from slmctl.sensitive.search_process import SearchError

ASK = "where is my kettle"
NOON = datetime.datetime(2026, 11, 25, 12, tzinfo=datetime.UTC)


def collecting(folder: Path, **settings: Any) -> Collector:
    more = {key: settings.pop(key) for key in ("chance", "now") if key in settings}
    return Collector(CollectConfig(to=folder / "collected", **{"kept": 1.0, **settings}), **more)


def give(found: Collector, id: str, text: str = ASK, answer: str = "delivery", **more: Any) -> None:
    row = CollectedRow(
        found.answered(id, "desk"),
        console.timestamp(),
        [{"role": "user", "content": text}],
        answer,
        **more,
    )
    found.take(row, found.draw(), id=id)


def rows(folder: Path) -> list[CollectedRow]:
    return [
        row for path in collected_files([folder / "collected"]) for row in CollectedRow.read(path)
    ]


def total(found: Collector, name: str, **labels: str) -> float:
    return sum(value for have, value in found.figures()[name] if labels.items() <= have.items())


def test_shares_are_drawn_apart_and_their_probability_is_what_it_says(tmp_path: Path) -> None:
    chance = random.Random(7)
    found = collecting(tmp_path, kept=0.1, escalated=0.5, unsure=0.25, chance=chance.random)
    found.close()
    for kind, share in (
        (dict[str, bool](), 0.0),
        ({"escalated": True}, 0.5),
        ({"unsure": True}, 0.25),
    ):
        draws = [found.draw(**kind) for _ in range(20_000)]
        assert sum(draw.uniform for draw in draws) / 20_000 == pytest.approx(0.1, abs=0.01)
        chosen = [draw for draw in draws if draw.chosen]
        (probability,) = {draw.probability for draw in draws}
        assert probability == pytest.approx(1 - 0.9 * (1 - share))
        assert len(chosen) / 20_000 == pytest.approx(probability, abs=0.015)
        assert all(draw.uniform for draw in chosen if draw.chosen == "uniform")
        # drawn for its kind and, apart from that, uniform too
        assert {draw.uniform for draw in chosen if draw.chosen != "uniform"} == (
            {True, False} if share else set()
        )


def test_lines_are_private_and_say_how_they_were_chosen(tmp_path: Path) -> None:
    found = collecting(tmp_path, kept=0.25, chance=lambda: 0.2)
    give(found, "a", labels={"delivery": 0.75}, confidence=0.75)
    found.close()
    (row,) = rows(tmp_path)
    assert (row.id, row.text, row.answer, row.labels) == ("a", ASK, "delivery", {"delivery": 0.75})
    assert (row.chosen, row.probability, row.uniform, row.uniform_probability) == (
        "uniform",
        0.25,
        True,
        0.25,
    )
    folder = tmp_path / "collected"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.jsonl")} == {0o600}
    assert (folder / ".gitignore").read_text() == "*\n"


MAIL = "write to jane.doe@gmail.com, the kettle is for jane.doe@gmail.com"


def test_what_is_sensitive_is_left_out(tmp_path: Path) -> None:
    found = collecting(tmp_path)
    give(found, "question", MAIL)
    give(found, "answer", answer="ask jane.doe@gmail.com")
    give(found, "long", "kettle " * 50_000)
    give(found, "clean", answer="")  # an empty answer is an answer
    found.close()
    assert [(row.id, row.answer) for row in rows(tmp_path)] == [("clean", "")]
    assert (
        total(found, "slmctl_collect_dropped", reason="sensitive"),
        total(found, "slmctl_collected"),
    ) == (2, 1)
    assert total(found, "slmctl_collect_dropped", reason="doubt") == 1


def test_what_is_sensitive_is_redacted_in_every_text_alike(tmp_path: Path) -> None:
    found = collecting(tmp_path, sensitive="redact")
    give(found, "text", MAIL, "jane.doe@gmail.com it is", local_answer="jane.doe@gmail.com it is")
    give(found, "number", "my card is 4111 1111 1111 1111", '{"card": 4111111111111111}')
    assert found.cleared("ask jane.doe@gmail.com").result(60) == "ask [EMAIL_1]"
    found.close()
    (row,) = rows(tmp_path)  # the other one would be no JSON any more
    assert row.text == "write to [EMAIL_1], the kettle is for [EMAIL_1]"
    assert row.answer == row.local_answer == "[EMAIL_1] it is"


def test_a_detector_that_fails_leaves_the_answer_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SearchError("the process that searches died")

    monkeypatch.setattr(search_process, "find", fail)
    found = collecting(tmp_path)
    give(found, "a")
    found.close()
    assert (rows(tmp_path), total(found, "slmctl_collect_dropped", reason="failed")) == ([], 1)


def test_a_new_day_has_a_file_of_its_own_and_old_ones_go(tmp_path: Path) -> None:
    folder, day = tmp_path / "collected", [NOON]
    folder.mkdir()
    for name in ("2026-10-25", "2026-10-26", "notes"):
        (folder / f"{name}.jsonl").write_text("{}\n")
    (folder / FEEDBACK).write_text(
        "".join(
            json.dumps({"id": time, "time": f"{time}T01:00:00Z", "ok": True}) + "\n"
            for time in ("2026-10-25", "2026-11-01")
        )
    )
    found = collecting(tmp_path, days=30, now=lambda: day[0])
    give(found, "a")
    found.say(found.find("a"), ok=True, answer=None, key="").result(10)  # type: ignore[arg-type]
    day[0] += datetime.timedelta(days=1)
    give(found, "b")
    found.close()
    names = {path.name for path in folder.iterdir()}
    assert names == {"2026-11-25.jsonl", "2026-11-26.jsonl", "notes.jsonl", FEEDBACK}
    assert [line.id for line in Feedback.read(folder / FEEDBACK)] == ["2026-11-01", "a"]


def test_a_full_disk_costs_lines_that_are_counted(tmp_path: Path) -> None:
    found = collecting(tmp_path, now=lambda: NOON)
    assert found.find("nobody") is None  # it has read the files: /dev/full never ends
    day = tmp_path / "collected" / "2026-11-25.jsonl"
    day.symlink_to("/dev/full")
    give(found, "lost")
    answered = found.find("lost")
    assert answered is not None
    while not total(found, "slmctl_collect_lost"):
        time.sleep(0.001)  # pytest's own limit ends one that never comes true
    found.say(answered, ok=True, answer=None, key="").result(10)
    assert (total(found, "slmctl_collect_lost"), total(found, "slmctl_collected")) == (1, 0)
    day.unlink()
    give(found, "kept")
    (tmp_path / "collected" / FEEDBACK).unlink()
    (tmp_path / "collected" / FEEDBACK).symlink_to("/dev/full")
    assert found.say(answered, ok=False, answer=None, key="").result(10) is False
    assert answered.words == 1  # that word may be sent again
    found.close()
    assert [row.id for row in rows(tmp_path)] == ["kept"]
    assert (total(found, "slmctl_collect_lost"), total(found, "slmctl_collected")) == (2, 1)


def test_a_folder_that_was_away_is_written_to_again(tmp_path: Path) -> None:
    found = collecting(tmp_path, now=lambda: NOON)
    give(found, "first")
    assert settles(lambda: total(found, "slmctl_collected") == 1)
    (tmp_path / "collected").rename(tmp_path / "away")
    give(found, "lost")
    assert settles(lambda: total(found, "slmctl_collect_lost") == 1)
    (tmp_path / "collected").mkdir()
    give(found, "kept")
    assert settles(lambda: total(found, "slmctl_collected") == 2)
    found.close()
    assert [row.id for row in rows(tmp_path)] == ["kept"]
    (day,) = collected_files([tmp_path / "collected"])
    assert collected_files([day, tmp_path / "collected"]) == [day]


def test_rows_that_wait_are_bounded_by_their_size(tmp_path: Path) -> None:
    found = collecting(tmp_path)
    give(found, "huge", "x" * (module.WAITING_CHARACTERS + 1))
    found.close()
    assert total(found, "slmctl_collect_lost") == 1


def test_more_rows_than_may_wait_are_lost_and_leave_room_for_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 5)
    monkeypatch.setattr(module, "WAITING_CHARACTERS", 2500)
    found = collecting(tmp_path, now=lambda: NOON)
    with (tmp_path / "collected" / "2026-11-25.jsonl").open("w") as slow:
        fcntl.flock(slow, fcntl.LOCK_EX)  # as a disk that does not answer
        for k in range(50):
            give(found, f"id-{k}", "kettle " * 14)
        assert total(found, "slmctl_collect_lost") >= 50 - 6
    while total(found, "slmctl_collect_lost") + total(found, "slmctl_collected") < 50:
        time.sleep(0.001)  # pytest's own limit ends one that never comes true
    give(found, "later")
    found.close()
    assert [row.id for row in rows(tmp_path)][-1] == "later"
    assert total(found, "slmctl_collect_lost") + total(found, "slmctl_collected") == 51


def test_feedback_is_known_after_a_restart_and_the_last_word_counts(tmp_path: Path) -> None:
    words: list[tuple[bool | None, str | None]] = [
        (True, None),
        (True, None),
        (None, "billing"),
        (False, None),
    ]
    for again in range(2):
        found = collecting(tmp_path)
        if not again:
            give(found, "a")
            give(found, "a", "another question under the same id")
        answered = found.find("a")
        assert answered is not None
        assert found.find("nobody") is None
        for ok, answer in words:
            assert found.say(answered, ok=ok, answer=answer, key="crm").result(10)
        assert found.say(answered, ok=False, answer=None, key="crm").result(10)
        found.close()
    first, second = rows(tmp_path)
    assert (first.id, second.id.partition("-")[0]) == ("a", "a")
    assert first.id != second.id
    lines = list(Feedback.read(tmp_path / "collected" / FEEDBACK))
    # in the first life to the last answer of this id, in the second to the one that the file knows
    # it by
    assert Counter(line.id for line in lines) == {second.id: 3, "a": 3}
    assert [(line.ok, line.answer, line.key) for line in lines[:3]] == [
        (True, None, "crm"),
        (None, "billing", "crm"),
        (False, None, "crm"),
    ]


def test_a_word_is_written_before_the_answers_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long questions of one client kept another one's feedback waiting until it was a 503."""
    go_on, words, seen = threading.Event(), list[Future[bool]](), list[bool]()

    def find(*_: object, **__: object) -> list[object]:
        go_on.wait(60)
        seen.append(any(word.done() for word in words))
        return []

    monkeypatch.setattr(search_process, "find", find)
    found = collecting(tmp_path)
    for id in ("a", "b", "c"):
        give(found, id)
    answered = found.find("c")
    assert answered is not None
    words.append(found.say(answered, ok=True, answer=None, key=""))
    go_on.set()
    found.close()
    assert seen[1:] == [True, True]


def test_a_full_file_of_feedback_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FEEDBACK", 10)
    found = collecting(tmp_path)
    give(found, "a")
    answered = found.find("a")
    assert answered is not None
    assert [found.say(answered, ok=ok, answer=None, key="").result(10) for ok in (True, False)] == [
        True,
        False,
    ]
    found.close()


def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "collected").write_text("a file")
    with pytest.raises(
        UsageError, match=r"cannot be collected in .*collected: (File exists|Not a directory)"
    ):
        collecting(tmp_path)
