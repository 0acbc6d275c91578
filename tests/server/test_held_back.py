"""`serve.refuse`: a draft that fails a check is held back, in the form of each API."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import here, production
from support.endpoint import Turn, streams
from support.serving import chat

from slmctl.config import ServeConfig
from slmctl.reports.evaluation_report import CHECKS
from slmctl.task.contract import Task

WRONG = "It comes on 9 May, for 20 €."
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


@pytest.fixture(scope="module")
def said() -> list[Turn]:
    return []


@pytest.fixture(scope="module")
def server(said: list[Turn]) -> Iterator[here.Here]:
    with here.in_front(lambda body, before: said[0], refuse=["ungrounded", "unfinished"]) as found:
        yield found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (CHAT, lambda text: {"messages": chat(text)}),
        (RESPONSES, lambda text: {"input": text}),
        (TEXT, lambda text: {"prompt": text}),
    ],
)
def test_a_draft_with_an_invented_value_is_no_answer(
    server: here.Here, said: list[Turn], path: str, asked: Any, stream: bool
) -> None:
    said[:] = [streams(WRONG)]

    def ask(text: str) -> httpx.Response:
        return httpx.post(server.url + path, json=asked(text) | {"stream": stream}, timeout=60)

    held = ask("When, for 20 €?")
    assert (held.status_code, held.json()["error"]["code"]) == (422, "held_back")
    assert held.json()["error"]["message"].endswith("it fails a check of this server: ungrounded")
    assert "9 May" not in held.text and held.headers["x-slmctl-route"] == "local; reason=refused"
    given = ask("On 9 May, for 20 €?")
    assert given.status_code == 200 and "9 May" in given.text
    said[:] = [streams("It comes", "length")]
    assert ask("When?").status_code == 422


def test_one_of_several_choices_holds_all_back(server: here.Here, said: list[Turn]) -> None:
    said[:] = [streams(WRONG)]
    assert server.ask("When?", n=2).status_code == 422
    assert server.gateway.metrics.failed.labels("held_back")._value.get() >= 1


def test_a_held_draft_waits_for_a_person(tmp_path: Path) -> None:
    collect = {"to": tmp_path, "kept": 0, "unsure": 1}
    with here.in_front(
        lambda body, before: streams(WRONG), refuse=["ungrounded"], collect=collect
    ) as server:
        assert server.ask("When, for 20 €?").status_code == 422
        assert server.ask("On 9 May, for 20 €?").status_code == 200
    (row,) = production.rows(tmp_path)
    assert (row.answer, row.reason, row.chosen, row.probability) == (
        WRONG,
        "held_back",
        "unsure",
        1,
    )
    assert row.text == "When, for 20 €?"


def test_labels_are_not_checked() -> None:
    task = Task("classify", "", "", labels=("9 May", "20 €"))
    with here.in_front(
        lambda body, before: streams("9 May"), task=task, refuse=list(CHECKS)
    ) as server:
        assert server.ask("When?").json()["choices"][0]["message"]["content"] == "9 May"
        assert server.ask("When?", stream=True).status_code == 200
        # of the stream
        assert "slmctl_first_piece_seconds_count 1.0" in server.get("/metrics").text


def test_the_config_names_every_check() -> None:
    names = ServeConfig.model_fields["refuse"].annotation
    assert typing.get_args(typing.get_args(names)[0]) == CHECKS
