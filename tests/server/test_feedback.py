"""A server that collects, as its clients see it: what is written down of
which answers, and what feedback is taken.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from support import endpoint, here, production, tiny
from support.endpoint import streams
from support.servers import settles
from support.serving import LOCAL, chat, gateway

from slmctl.config import CollectConfig
from slmctl.production.records import CollectedRow, Feedback, collected_files
from slmctl.server import api_keys, collecting
from slmctl.task.contract import Task

CLASSIFY = Task("classify", tiny.TEMPLATE, "<|im_end|>", labels=("billing", "delivery", "returns"))
EVERYTHING = "--set=serve.collect={kept: 100%}"
MAIL = "my address is jane.doe@gmail.com"


ASKED, ANSWER_IT = threading.Event(), threading.Event()  # a question that waits, and its end


def label(body: dict[str, Any], before: int) -> endpoint.Turn:
    if "wait for me" in json.dumps(body):
        ASKED.set()
        ANSWER_IT.wait(60)
    return streams("delivery")


@dataclass(frozen=True)
class Desk:
    """A server of labels that collects everything, and the folder that it writes to."""

    url: str
    secret: str
    folder: Path

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        sent = {"authorization": f"Bearer {self.secret}"} | headers
        return httpx.post(f"{self.url}/v1/{path}", json=body, headers=sent, **LOCAL)

    def ask(self, text: str, **more: Any) -> str:
        """The id of an answer."""
        response = self.post("chat/completions", {"messages": chat(text), **more})
        assert response.status_code == 200, response.text
        return response.headers["x-request-id"]

    def say(self, id: str, **word: Any) -> httpx.Response:
        return self.post("feedback", {"request_id": id, **word})

    def row(self, id: str) -> CollectedRow:
        """A line, as soon as it is there."""
        assert settles(lambda: id in {row.id for row in production.rows(self.folder)})
        return next(row for row in production.rows(self.folder) if row.id == id)

    def figure(self, name: str) -> float:
        page = httpx.get(
            f"{self.url}/metrics", headers={"authorization": f"Bearer {self.secret}"}, **LOCAL
        ).text
        return float(
            next(line for line in page.splitlines() if line.startswith(name + " ")).rpartition(" ")[
                2
            ]
        )


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("collecting")
    secret = api_keys.add(folder / "keys.json", "crm")
    collect = CollectConfig(to=folder / "collected", kept=1.0)
    with here.in_front(label, task=CLASSIFY, keys=folder / "keys.json", collect=collect) as server:
        yield Desk(server.url, secret, folder / "collected")


def test_every_answer_is_written_down_as_the_client_got_it(desk: Desk) -> None:
    whole = desk.row(desk.ask("where is my kettle"))
    said = (whole.text, whole.answer, whole.route, whole.reason)
    assert said == ("where is my kettle", "delivery", "local", "no-policy")
    assert (whole.model, whole.uniform, whole.uniform_probability, whole.p_correct) == (
        "large",
        True,
        1.0,
        None,
    )
    assert desk.row(desk.ask("and as a stream", stream=True)).answer == "delivery"
    several = desk.ask("several answers", n=2)
    assert {desk.row(several).text, desk.row(f"{several}-2").text} == {"several answers"}
    text = desk.post("completions", {"prompt": ["first of two", "second of two"]}).headers[
        "x-request-id"
    ]
    assert [desk.row(text).text, desk.row(f"{text}-2").text] == ["first of two", "second of two"]


def test_what_is_sensitive_or_marked_so_is_never_written_down(desk: Desk) -> None:
    desk.ask(MAIL)
    desk.post(
        "chat/completions",
        {"messages": chat("this stays with me")},
        **{"x-slmctl-sensitive": "true"},
    )
    pictured = [{"role": "user", "content": "look at this", "tool_calls": [{"id": "x"}]}]
    assert desk.post("chat/completions", {"messages": pictured}).status_code == 200
    desk.row(desk.ask("and this one is written"))  # after the others
    written = "".join(path.read_text() for path in desk.folder.iterdir())
    for secret in ("jane.doe", "stays with me", "look at this"):
        assert secret not in written
    assert desk.figure('slmctl_collect_dropped_total{reason="sensitive"}') == 2
    assert desk.figure('slmctl_collect_dropped_total{reason="doubt"}') == 1


def test_choices_of_a_client_are_written_down_where_they_are_labels() -> None:
    model = SimpleNamespace(task=CLASSIFY, digest="", name="large", version="1.0")
    checked = SimpleNamespace(model=model, conversation=lambda _: chat("who"), offer=None)
    choice = SimpleNamespace(text="delivery", last={"labels": {"delivery": 0.9, "jane.doe": 0.1}})
    assert collecting._row(cast(Any, checked), 0, cast(Any, choice), None, "a").labels == {
        "delivery": 0.9
    }


def test_a_system_message_that_a_classifier_does_not_get_is_neither_searched_nor_written_down(
    desk: Desk,
) -> None:
    """A long one of a client took the search from the others."""
    question, own = (
        chat("where is my lamp"),
        {"role": "system", "content": f"{MAIL} and a word " * 20_000},
    )
    id = desk.post("chat/completions", {"messages": [own, *question]}).headers["x-request-id"]
    assert desk.row(id).messages == question


def test_feedback_is_taken_for_answers_of_this_server(desk: Desk) -> None:
    id = desk.ask("is this right")
    desk.row(id)
    said = desk.say(id, ok=True)
    assert (said.status_code, said.json()) == (
        200,
        {"request_id": id, "ok": True, "answer": None, "collected": True},
    )
    assert desk.say(id, ok=True).status_code == 200
    assert desk.say(id, ok=False, answer="returns").status_code == 200
    words = [
        (word.ok, word.answer, word.key)
        for word in Feedback.read(desk.folder / "feedback.jsonl")
        if word.id == id
    ]
    # the same word twice is one line
    assert words == [(True, None, "crm"), (False, "returns", "crm")]
    assert desk.figure('slmctl_feedback_total{verdict="answer"}') == 1


def test_feedback_that_says_nothing_is_refused_in_a_sentence(desk: Desk) -> None:
    id = desk.ask("feedback on this")
    for status, words, body in (
        (400, "one of the task's labels", {"request_id": id, "answer": "weather"}),
        (400, "'ok', 'answer' or both", {"request_id": id}),
        (400, "true or false", {"request_id": id, "ok": "yes"}),
        (400, "must be a text", {"request_id": id, "answer": 5}),
        (400, "not empty", {"request_id": id, "answer": " "}),
        (400, "x-request-id", {"ok": True}),
        (400, "'rating' is not known", {"request_id": id, "rating": 5}),
        (404, "was not answered here lately", {"request_id": "nobody", "ok": True}),
    ):
        response = desk.post("feedback", body)
        assert (response.status_code, words in response.json()["error"]["message"]) == (
            status,
            True,
        ), response.text
    assert (
        desk.post("feedback", {"request_id": id, "ok": True}, authorization="Bearer no").status_code
        == 401
    )


def test_a_key_whose_places_are_taken_leaves_no_feedback_either(desk: Desk) -> None:
    secret = api_keys.add(desk.folder.parent / "keys.json", "narrow", concurrency=1)
    narrow = Desk(desk.url, secret, desk.folder)
    id = narrow.ask("where is it")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(narrow.ask, "wait for me")
        assert ASKED.wait(60)
        refused = narrow.say(id, ok=True)
        ANSWER_IT.set()
        running.result(60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "concurrency")
    assert narrow.say(id, ok=True).status_code == 200


def test_a_word_counts_as_a_request_of_its_key(desk: Desk) -> None:
    seldom = Desk(
        desk.url, api_keys.add(desk.folder.parent / "keys.json", "seldom", rate=2), desk.folder
    )
    id = seldom.ask("how often")
    assert seldom.say(id, ok=True).status_code == 200
    refused = seldom.say(id, ok=False)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate")


def test_an_id_with_personal_data_is_not_kept(desk: Desk) -> None:
    kept = desk.post("feedback", {}, **{"x-request-id": "order-17.b"})
    assert kept.headers["x-request-id"] == "order-17.b"
    for id in ("4111111111111111", "DE89370400440532013000"):
        assert desk.post("feedback", {}, **{"x-request-id": id}).headers["x-request-id"] != id


def test_the_page_is_told_that_feedback_is_taken(desk: Desk) -> None:
    headers = {"authorization": f"Bearer {desk.secret}"}
    assert httpx.get(f"{desk.url}/v1/task", headers=headers, **LOCAL).json()["feedback"] is True


def test_a_server_that_was_killed_goes_on_and_knows_its_answers(tmp_path: Path) -> None:
    folder = tmp_path / "collected"
    with gateway(tmp_path, EVERYTHING, task=CLASSIFY, manners=label) as server:
        first = Desk(server.url, "none", folder)
        id = first.ask("before the kill")
        first.row(id)
        server.child.send_signal(signal.SIGKILL)
        server.child.communicate()
    (day,) = collected_files([folder])
    with day.open("a") as torn:
        torn.write('{"id": "torn", "messages": [')
    with gateway(tmp_path, EVERYTHING, task=CLASSIFY, manners=label) as server:
        second = Desk(server.url, "none", folder)
        assert second.say(id, ok=False).json()["collected"] is True
        second.row(second.ask("after the kill"))
    assert [row.text for row in production.rows(folder)] == ["before the kill", "after the kill"]
    assert "torn" not in day.read_text()
    assert json.loads((folder / "feedback.jsonl").read_text())["ok"] is False


def test_without_the_section_no_feedback_is_taken(tmp_path: Path) -> None:
    with here.in_front(label, task=CLASSIFY) as server:
        plain = Desk(server.url, "none", tmp_path)
        refused = plain.say(plain.ask("where is my kettle"), ok=True)
        assert (refused.status_code, refused.json()["error"]["message"]) == (
            404,
            "feedback is not taken here: serve.collect is not set",
        )
        assert server.get("/v1/task").json()["feedback"] is False
        assert "slmctl_collect" not in server.get("/metrics").text
