"""The page of slmctl review --pairs in Debian's chromium, by keyboard alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from support import judged, tiny
from support.browser import Browser
from support.judged import DRAFTS
from support.reported import HOSTILE
from support.review_page import press, served, text_of, visit

from slmctl.production.review.page import PairDesk
from slmctl.production.review.pairs import PairDecision, PairSession


@contextmanager
def opened(project: Path) -> Iterator[tuple[str, PairSession]]:
    """The page over a project's pairs: its address with the token, and its session."""
    with (
        PairSession(
            judged.models(project), output=project / "pairs.jsonl", reviewer="ann"
        ) as session,
        served(PairDesk(session, "desk")) as url,
    ):
        yield url, session


def lines(project: Path) -> list[PairDecision]:
    return list(PairDecision.read(project / "pairs.jsonl"))


SIDES = "[...document.querySelectorAll('.side .message')].map(answer => answer.textContent)"


def test_nothing_that_the_page_gets_names_a_model(tmp_path: Path) -> None:
    with opened(judged.project(tmp_path)) as (url, session):
        address, _, token = url.partition("/#")
        headers = {"Authorization": f"Bearer {token}"}
        told = httpx.get(f"{address}/v1/review/task", headers=headers).text
        for word in ("left", "right", "same", "neither"):
            row = httpx.post(f"{address}/v1/review/next", headers=headers, json={}).json()["row"]
            body = {"id": row["id"], "answer": word}
            told += httpx.post(f"{address}/v1/review/decide", headers=headers, json=body).text
        assert not any(
            word in told
            for word in (*session.judged.models, *session.judged.names, "first", "kind.")
        )
        assert set(row) == {"id", "messages", "left", "right"}
        for answer in ("first", "Q8_0", 1):
            body = {"id": session.open_rows()[0].id, "answer": answer}
            assert (
                httpx.post(f"{address}/v1/review/decide", headers=headers, json=body).status_code
                == 422
            )
        assert httpx.post(f"{address}/v1/review/next", json={}).status_code == 401
    assert len(lines(tmp_path)) == 4


def test_a_judge_reads_the_whole_conversation_and_counts_to_the_round(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "find_parcel", "arguments": {"city": "Ulm"}}}
    turns: list[dict[str, object]] = [
        {"role": "user", "content": "I wait."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "on its way", "name": "find_parcel"},
    ]
    project = judged.project(tmp_path, turns=turns)
    with PairSession(
        judged.models(project), output=project / "pairs.jsonl", reviewer="ann"
    ) as session:
        session.begin_round(3)
        with served(PairDesk(session, "desk")) as url:
            address, _, token = url.partition("/#")
            headers = {"Authorization": f"Bearer {token}"}
            row = httpx.post(f"{address}/v1/review/next", headers=headers, json={}).json()["row"]
            assert [turn["role"] for turn in row["messages"]] == [
                "user",
                "assistant",
                "tool",
                "user",
            ]
            assert "I wait." in str(row["messages"]) and "Ulm" in str(row["messages"]), row[
                "messages"
            ]
            for count in (1, 2, 3):
                body = {"id": row["id"], "answer": "same"}
                told = httpx.post(f"{address}/v1/review/decide", headers=headers, json=body).json()
                row = told["row"]
                assert (told["progress"]["decided"], told["progress"]["total"]) == (count, 3)
            assert row is None


def test_pairs_are_judged_by_keyboard_alone(browser: Browser, tmp_path: Path) -> None:
    project = judged.project(tmp_path)
    with opened(project) as (url, _):
        visit(browser, url)
        shown = text_of(browser)
        assert "Which answer is better?" in text_of(browser, "header")
        for words in ("where is parcel", "Left", "Right", "Both bad", "0 of 11 rows"):
            assert words in shown, words
        assert "Be kind" not in shown
        marked = browser.ask(
            "[...document.querySelectorAll('.side mark')].map(part => part.textContent.trim())"
        )
        assert {"Monday,", "Tuesday,"} <= set(marked)
        hidden = (
            "['accept', 'find', 'near'].every(id => "
            "document.getElementById(id).checkVisibility() === false)"
        )
        assert browser.ask(hidden)
        expected = []
        for key, side in (("1", 0), ("2", 1), ("ArrowLeft", 0), ("ArrowRight", 1)):
            expected.append("Q8_0" if browser.ask(SIDES)[side] in DRAFTS else "base")
            press(browser, key)
        press(browser, "3", "4", "s")
        press(browser, "Enter", "x", "/", "e", "9")  # do nothing here
        made = lines(project)
        assert [
            line.names[("first", "second").index(line.decision)] for line in made[:4]
        ] == expected
        assert [line.decision for line in made[4:]] == ["same", "neither", "skipped"]
        press(browser, "u")
        assert "6 of 11 rows" in text_of(browser, "#figures")
        press(browser, *["3"] * 5)
        assert "Nothing is left to decide. The decisions are in pairs.jsonl." in text_of(browser)
        assert browser.complaints == []


def test_a_button_and_a_sides_text_take_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    project = judged.project(tmp_path, ["left or right\n" * 300] * 2, ["right or left\n" * 300] * 2)
    with opened(project) as (url, _):
        visit(browser, url)
        browser.ask("document.querySelector('.side').focus()")
        assert browser.ask("document.activeElement.className") == "side"
        assert browser.ask(
            "(({scrollHeight, clientHeight}) => scrollHeight > "
            "clientHeight)(document.activeElement)"
        )
        browser.ask("document.getElementById('same').focus()")
        press(browser, "Enter")
    assert [line.decision for line in lines(project)] == ["same"]


def test_hostile_and_long_texts_are_texts(browser: Browser, tmp_path: Path) -> None:
    texts = [
        *(text.encode("utf-8", "replace").decode() for text in HOSTILE),
        "<b>long</b> words " * 6_000,
        "W" * 100_000,
    ]
    project = judged.project(
        tmp_path, texts, [f"{text} {text[:40]}" for text in texts], questions=texts
    )
    with opened(project) as (url, session):
        visit(browser, url, width=390)
        for _ in texts:
            assert browser.ask("document.documentElement.scrollWidth <= 390")
            assert (
                browser.ask("document.querySelectorAll('.side b, .side img, .side script').length")
                == 0
            )
            assert max(map(len, browser.ask(SIDES))) < 20_100
            press(browser, "3")
        assert browser.ask("document.title") == "Review · desk"
        assert browser.complaints == []
        assert session.next() is None


def test_the_command_serves_pairs(tmp_path: Path) -> None:
    project = judged.project(tmp_path)
    child = tiny.start(project, "review", "--pairs", "Q8_0", "base")
    assert child.stdout is not None
    address, _, token = child.stdout.readline().strip().partition("/#")
    headers = {"Authorization": f"Bearer {token}"}
    first = httpx.post(f"{address}/v1/review/next", headers=headers, json={}).json()
    body = {"id": first["row"]["id"], "answer": "neither"}
    httpx.post(f"{address}/v1/review/decide", headers=headers, json=body)
    os.kill(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert "11 pairs to review, 0 done\n  1 with equal answers are left out" in errors
    assert "1 pair reviewed: 0 with a better answer, 0 the same, 1 both bad, 0 skipped" in errors
    assert "to measure them: evaluate: {pairs: pairs.jsonl}" in errors
    (line,) = lines(project)
    assert (line.decision, set(line.names)) == ("neither", {"Q8_0", "base"})
