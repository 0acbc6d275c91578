"""The page of slmctl review in Debian's chromium: by keyboard, for every
kind of task, with real files behind it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import TESTS, handmade, production, tiny
from support.browser import Browser
from support.production import collected
from support.program import slmctl
from support.reported import HOSTILE
from support.review_page import press, served, settle, text_of, visit

from slmctl.cli.main import cli
from slmctl.production.review.near_rows import TrainingRows
from slmctl.production.review.page import ReviewDesk
from slmctl.production.review.review_rows import SUSPECTS, ReviewRow
from slmctl.production.review.session import ReviewSession
from slmctl.sources.reviewed import Review
from slmctl.task.contract import Task

PREPARED = TESTS / "fixtures" / "0.1.0" / "prepared"
SCHEMA = {
    "type": "object",
    "properties": {
        "order": {"type": "string", "title": "Order number", "description": "As on the invoice."},
        "total": {"type": ["number", "null"]},
        "paid": {"type": "boolean"},
        "size": {"enum": ["small", "large"]},
        "items": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["order"],
    "additionalProperties": False,
}
TASKS = {
    "classify": Task(
        "classify",
        "",
        "",
        labels=(*production.LABELS, "returns", "refund, other", "warranty", "praise"),
    ),
    "extract": Task("extract", "", "", schema=SCHEMA),
    "generate": Task("generate", "", ""),
}
ORDER = (
    '{"items": [{"name": "kettle"}], "order": "A-17", "paid": false, "size": "small", '
    '"total": 12.5}'
)


@contextmanager
def opened(queue: Sequence[ReviewRow], folder: Path, *, kind: str = "classify") -> Iterator[Any]:
    """The page over a queue: its address with the token, and its session."""
    with (
        ReviewSession(
            queue, task=TASKS[kind], output=folder / "reviewed.jsonl", reviewer="ann"
        ) as session,
        served(ReviewDesk(session, TrainingRows.of(PREPARED), "desk")) as url,
    ):
        yield url, session


def lines(session: ReviewSession) -> list[Review]:
    return list(Review.read(session.output))


# What is asked and answered


def test_nothing_is_said_without_the_token(tmp_path: Path) -> None:
    with opened([ReviewRow(collected("a"), "unsure")], tmp_path) as (url, session):
        address, _, token = url.partition("/#")
        page = httpx.get(address)
        assert "unsafe" not in page.headers["content-security-policy"]
        assert "require-trusted-types-for 'script'" in page.headers["content-security-policy"]
        assert token not in page.text and "parcel" not in page.text
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            for path in ("next", "decide", "undo"):
                answer = httpx.post(
                    f"{address}/v1/review/{path}", headers=headers, json={"id": "a"}
                )
                assert (answer.status_code, "token" in answer.json()["error"]["message"]) == (
                    401,
                    True,
                )
            assert httpx.get(f"{address}/v1/review/task", headers=headers).status_code == 401
        assert lines(session) == []


def test_a_request_that_is_none_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with opened([ReviewRow(collected("a"), "unsure")], tmp_path) as (url, session):
        address, _, token = url.partition("/#")
        headers = {"Authorization": f"Bearer {token}"}
        for path, body, words in (
            ("decide", b"[]", "a request is a JSON object"),
            ("decide", b"{", "a request is a JSON object"),
            ("decide", b'{"id": 1}', "a decision has the id of a row"),
            ("decide", b'{"id": "a", "answer": "refunds"}', "'refunds' is not one of the 7 labels"),
            (
                "decide",
                b'{"id": "a", "answer": "the token"}',
                "'the token' is not one of the 7 labels",
            ),
            ("decide", b'{"id": "a", "answer": "\\ud800"}', "whole characters"),
        ):
            answer = httpx.post(f"{address}/v1/review/{path}", headers=headers, content=body)
            assert (answer.status_code, words in answer.json()["error"]["message"]) == (
                422,
                True,
            ), answer.text
        assert lines(session) == []


# In the browser

SCRIPT = """(async (count) => {
  const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const settled = async () => {
    while (document.body.hasAttribute("aria-busy")) await new Promise((next) => setTimeout(next, 0));
  };
  for (let k = 0; k < count; k++) {
    press(k % 10 === 3 ? "2" : k % 10 === 7 ? "s" : "Enter");
    await settled();
  }
  window.ended = true;
})(50)"""


def test_many_rows_are_decided_by_a_script_at_the_keyboard(
    browser: Browser, tmp_path: Path
) -> None:
    queue = [
        ReviewRow(
            collected(f"r{k}", f"where is my parcel {k}", labels={"billing": 0.7, "account": 0.2}),
            "unsure",
        )
        for k in range(50)
    ]
    with opened(queue, tmp_path) as (url, session):
        visit(browser, url)
        browser.ask(f"void {SCRIPT}")
        browser.wait("window.ended")
        assert "Nothing is left to decide." in text_of(browser)
        assert "50 of 50 rows" in text_of(browser, "#figures")
        assert browser.complaints == []
        assert {
            request.split("/", 3)[3] for request in browser.requests if request.startswith("http")
        } <= {
            "",
            "v1/review/task",
            "v1/review/next",
            "v1/review/decide",
        }
        reviews = lines(session)
    assert [review.id for review in reviews] == [candidate.id for candidate in queue]
    assert Counter(review.decision for review in reviews) == {
        "accepted": 40,
        "corrected": 5,
        "skipped": 5,
    }
    assert {review.after for review in reviews if review.decision == "corrected"} == {"account"}
    assert {review.reviewer for review in reviews} == {"ann"}


def test_every_key_does_what_it_says(browser: Browser, tmp_path: Path) -> None:
    row = collected(
        "r0",
        "my parcel tracking is broken",
        labels={"billing": 0.61, "account": 0.3},
        confidence=0.61,
    )
    queue = [ReviewRow(row, "unsure")]
    queue += [
        ReviewRow(collected(f"r{k}", general_answer="delivery"), "disagreement")
        for k in range(1, 8)
    ]
    with opened(queue, tmp_path) as (url, session):
        visit(browser, url)
        shown = text_of(browser)
        for words in (
            "the model is unsure",
            "my parcel tracking is broken",
            "billing",
            "61.0 %",
            "0 of 8 rows",
            "Nearest training rows",
            "delivery",
        ):
            assert words in shown, words
        press(browser, "2")
        assert lines(session)[-1].after == "account"
        assert "General model\ndelivery" in text_of(browser, ".answers")
        press(browser, "u")
        assert "my parcel tracking is broken" in text_of(browser, "#row")
        press(browser, "Enter", "s", "/")
        assert browser.ask("document.activeElement.id") == "query"
        browser.type("re")
        assert browser.ask(
            "[...document.querySelectorAll('#hits li')].map(hit => hit.innerText)"
        ) == [
            "returns",
            "refund, other",
        ]
        press(browser, "ArrowDown", "Enter")
        press(browser, "/", "Escape")
        assert (
            browser.ask("document.getElementById('search').hidden && document.activeElement.id")
            == "row"
        )
        press(browser, "9")  # no such option
        decided = [(review.id, review.decision, review.after) for review in lines(session)]
        assert decided == [
            ("r0", "corrected", "account"),
            ("r0", "undone", ""),
            ("r0", "accepted", "billing"),
            ("r1", "skipped", ""),
            ("r2", "corrected", "refund, other"),
        ]
        browser.open("about:blank")
        browser.open(url)
        settle(browser)
        press(browser, "Enter")
        assert lines(session)[-1].reviewer == "ann"
        assert browser.complaints == []


def test_fields_are_a_form_that_is_held_to_the_schema(browser: Browser, tmp_path: Path) -> None:
    queue = [ReviewRow(collected(f"r{k}", "order A-17", answer=ORDER), "unsure") for k in range(3)]
    with opened(queue, tmp_path, kind="extract") as (url, session):
        visit(browser, url)
        assert "Order number\nAs on the invoice." in text_of(browser, "#choice")
        press(browser, "Enter")
        assert lines(session)[-1].decision == "accepted"
        press(browser, "e")
        assert browser.ask("document.activeElement.id") == "field-order"
        browser.ask("document.activeElement.select()")
        browser.type("B-18")
        browser.ask("document.getElementById('field-paid').value = 'true'")
        browser.ask("document.getElementById('field-total').value = ''")
        press(browser, "Enter")
        assert json.loads(lines(session)[-1].after) == {
            "order": "B-18",
            "total": None,
            "paid": True,
            "size": "small",
            "items": [{"name": "kettle"}],
        }
        for value, words in (
            ("[{]", "The field items is not JSON."),
            ('["kettle"]', "does not fit the schema"),
        ):
            browser.ask(f"document.getElementById('field-items').value = {json.dumps(value)}")
            press(browser, "Enter")
            assert words in text_of(browser, "#fault")
        assert len(lines(session)) == 2
        press(browser, "s")
        assert browser.ask("document.getElementById('fault').hidden")


def test_a_number_that_a_browser_rounds_is_edited_as_text(browser: Browser, tmp_path: Path) -> None:
    long, short = '{"order": "A-17", "total": 340123450000000017}', '{"order": "A-17", "total": 1}'
    queue = [
        ReviewRow(collected(f"r{k}", answer=answer), "unsure")
        for k, answer in enumerate((long, short))
    ]
    with opened(queue, tmp_path, kind="extract") as (url, session):
        visit(browser, url)
        assert browser.ask("document.getElementById('text').value") == long
        press(browser, "Enter")
        press(browser, "e")
        browser.ask("document.getElementById('field-total').value = '340123450000000017'")
        press(browser, "Enter")
        assert "The field total has a number of over 15 digits" in text_of(browser, "#fault")
        assert [line.after for line in lines(session)] == [long]


def test_a_text_is_edited_beside_what_changed(browser: Browser, tmp_path: Path) -> None:
    queue = [ReviewRow(collected(f"r{k}", answer="It left on Monday."), "unsure") for k in range(2)]
    with opened(queue, tmp_path, kind="generate") as (url, session):
        visit(browser, url)
        press(browser, "e")
        browser.ask("document.activeElement.select()")
        browser.type("It left late on Tuesday.")
        assert browser.ask(
            "[...document.querySelectorAll('#changes del')].map(part => part.innerText)"
        ) == ["Monday."]
        inserted = browser.ask(
            "[...document.querySelectorAll('#changes ins')].map(part => part.innerText.trim())"
        )
        assert inserted == ["late", "Tuesday."]
        assert browser.ask("document.getElementById('accept').firstChild.textContent") == "Save"
        press(browser, "Escape", "Enter")
        assert browser.ask("document.getElementById('accept').firstChild.textContent") == "Right"
        press(browser, "Enter")
        assert [review.after for review in lines(session)] == [
            "It left late on Tuesday.",
            "It left on Monday.",
        ]


def test_a_suspect_of_several_turns_is_not_its_own_neighbour(tmp_path: Path) -> None:
    turns = [
        {"role": role, "content": f"the {role} of parcel"} for role in ("user", "assistant", "user")
    ]
    suspect = ReviewRow(dataclasses.replace(collected("r0"), messages=turns), "suspect")
    training = TrainingRows(
        [("\n".join(turn["content"] for turn in turns), "billing"), ("a parcel", "account")]
    )
    with ReviewSession(
        [suspect], task=TASKS["classify"], output=tmp_path / "out.jsonl", reviewer="ann"
    ) as session:
        assert [near["text"] for near in ReviewDesk(session, training).view(suspect)["near"]] == [
            "a parcel"
        ]


def test_a_suspect_is_shown_beside_other_rows_than_itself(browser: Browser, tmp_path: Path) -> None:
    text = "parcel tracking green phone blue monday chair"  # a training row
    queue = [
        ReviewRow(collected("r0", text, answer="delivery", time=""), "suspect", proposed="billing")
    ]
    with opened(queue, tmp_path) as (url, session):
        visit(browser, url)
        assert "the label of this training row looks wrong" in text_of(browser, "#why")
        assert text_of(browser, ".answers").split("\n") == [
            "Label today",
            "delivery",
            "Proposed",
            "billing",
        ]
        assert browser.ask("document.querySelectorAll('#near tr').length") == 5
        assert text not in text_of(browser, "#near")
        press(browser, "2")
        (review,) = lines(session)
        assert (review.chosen, review.before, review.after, review.seen) == (
            "suspect",
            "delivery",
            "billing",
            "",
        )


def test_hostile_texts_are_texts(browser: Browser, tmp_path: Path) -> None:
    queue = [
        ReviewRow(collected(f"r{k}", text, general_answer=text), "unsure")
        for k, text in enumerate(HOSTILE)
    ]
    with opened(queue, tmp_path) as (url, session):
        visit(browser, url, width=390)
        for _ in HOSTILE:
            assert browser.ask("document.documentElement.scrollWidth <= 390")
            press(browser, "Enter")
        assert browser.ask("document.title") == "Review · desk"
        assert browser.complaints == []
        assert len(lines(session)) == len(HOSTILE)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_that_lost_its_server_says_so(browser: Browser, tmp_path: Path, dark: bool) -> None:
    with opened([ReviewRow(collected("a"), "unsure")], tmp_path) as (url, session):
        visit(browser, url, dark=dark)
        background = browser.ask("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(15, 20, 25)" if dark else "rgb(255, 255, 255)")
    press(browser, "Enter")
    assert "the last decision does not count" in text_of(browser, "#fault")
    assert lines(session) == []


# The command


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a data set and collected answers, and nothing else of a project."""
    shared_set = tmp_path / "runs" / "prepared" / "0123456789ab"
    shared_set.parent.mkdir(parents=True)
    shared_set.symlink_to(PREPARED)
    rows = [
        collected(
            f"r{k}",
            f"text {k} about {'parcels' if k % 2 else 'passwords'}",
            uniform=k < 4,
            uniform_probability=0.02,
        )
        for k in range(20)
    ]
    production.written(tmp_path / "collected" / "2026-11-25.jsonl", rows)
    return tmp_path


def test_the_command_serves_until_it_is_told_to_end(project: Path) -> None:
    child = tiny.start(project, "review")
    assert child.stdout is not None
    url = child.stdout.readline().strip()
    address, _, token = url.partition("/#")
    headers = {"Authorization": f"Bearer {token}"}
    first = httpx.post(f"{address}/v1/review/next", headers=headers, json={}).json()
    body = {"id": first["row"]["id"], "answer": "billing"}
    second = httpx.post(f"{address}/v1/review/decide", headers=headers, json=body).json()
    assert (second["progress"]["decided"], second["progress"]["total"]) == (1, 20)
    os.kill(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert "20 rows to review, 0 done" in errors
    assert "1 row reviewed: 1 right, 0 corrected, 0 skipped" in errors
    (review,) = Review.read(project / "reviewed.jsonl")
    assert (review.id, review.decision) == (first["row"]["id"], "accepted")


def test_the_command_writes_and_reads_a_spreadsheet(project: Path) -> None:
    assert tiny.ok(slmctl("review", "--csv", "rows.csv", cwd=project)) == "rows.csv"
    text = (project / "rows.csv").read_text(encoding="utf-8-sig")
    assert text.count("\n") == 21
    empty = slmctl("review", "--csv", "rows.csv", cwd=project)
    assert (empty.returncode, "its column reviewed_answer is empty" in empty.stderr) == (3, True)
    (project / "rows.csv").write_text("id,reviewed_answer\nr1,account\nr2,nonsense\n")
    some = slmctl("review", "--csv", "rows.csv", "--reviewer", "ann", cwd=project)
    assert (some.returncode, "row 3: 'nonsense' is not one of the 3 labels" in some.stderr) == (
        3,
        True,
    )
    (line,) = Review.read(project / "reviewed.jsonl")
    assert (line.id, line.after, line.reviewer) == ("r1", "account", "ann")
    (project / "rows.csv").write_text("id,reviewed_answer\nr2,returns\n")
    tiny.ok(slmctl("review", "--csv", "rows.csv", "--label", "returns", cwd=project))
    assert [line.after for line in Review.read(project / "reviewed.jsonl")] == [
        "account",
        "returns",
    ]


def test_a_user_without_a_name_is_a_reviewer_by_number(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `docker run --user "$(id -u)"` of container.md: a KeyError of getpwuid
    (project / "rows.csv").write_text("id,reviewed_answer\nr2,account\n")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    cli.main(
        ["-C", str(project), "review", "--csv", str(project / "rows.csv")], standalone_mode=False
    )
    assert [review.reviewer for review in Review.read(project / "reviewed.jsonl")] == ["uid 54321"]


def test_suspects_that_prepare_does_not_believe_in_come_last_and_only_on_request(
    project: Path,
) -> None:
    made = project / "runs" / "prepared" / "0123456789ab"
    made.unlink()

    def fill(place: Path) -> None:
        shutil.copytree(PREPARED, place, dirs_exist_ok=True)
        (place / "manifest.json").unlink()
        line = {
            "id": "s1",
            "split": "train",
            "messages": [],
            "label": "billing",
            "proposed": "account",
            "score": 0.9,
        }
        (place / SUSPECTS).write_text(json.dumps(line) + "\n")

    handmade.make(made, fill, metrics={"suspects": {"agreement": 0.7}})
    without = slmctl("review", "--csv", "without.csv", cwd=project)
    assert (
        "1 suspected label is left out: the linear model of prepare is too weak here"
        in without.stderr
    )
    tiny.ok(slmctl("review", "collected", made / SUSPECTS, "--csv", "with.csv", cwd=project))
    first, second = (
        (project / name).read_text(encoding="utf-8-sig") for name in ("without.csv", "with.csv")
    )
    assert "s1" not in first
    assert second.splitlines()[-1].startswith("s1,suspect,")
    assert second.splitlines()[:-1] == first.splitlines()
    # the rows came from the newest data set, whatever file was named
    (project / "older").mkdir()
    (project / "older" / SUSPECTS).write_text((made / SUSPECTS).read_text().replace("s1", "s2"))
    tiny.ok(slmctl("review", "collected", f"older/{SUSPECTS}", "--csv", "older.csv", cwd=project))
    assert (project / "older.csv").read_text(encoding="utf-8-sig") == second.replace("s1", "s2")


def test_where_there_is_nothing_to_review_it_says_so(project: Path) -> None:
    bare = project / "bare"
    bare.mkdir()
    for folder, args, words, code in (
        (bare, [], "the task of the collected answers is not known", 7),
        (project, ["none"], "there is nothing to review: none does not exist", 2),
        (project, [f"gone/{SUSPECTS}", "--csv", "new.csv"], f"gone/{SUSPECTS} does not exist", 2),
        (
            project,
            ["--label", "x", "--set", "task={kind: classify, labels: [account]}"],
            "does not list 'x'",
            2,
        ),
        (project, ["--uniform", "2"], "is no share such as 30% or 0.3", 2),
    ):
        done = slmctl("review", *args, cwd=folder)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
