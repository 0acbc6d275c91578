"""The shadow: answers after the client has its own, is dropped where requests wait, and costs nobody an answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import endpoint, tiny
from support.endpoint import streams
from support.forks import Forks
from support.serving import begin, chat, end, figure, post, settles

from slmctl.artifacts.artifact import Artifact
from slmctl.errors import UsageError
from slmctl.production.records import CollectedRow, collected_files
from slmctl.server import openai_requests, shadow
from slmctl.server.backends import EndpointEngine
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics
from slmctl.server.openai_requests import Ceilings, CheckedRequest, ServedModel
from slmctl.server.shadow import Shadow
from slmctl.task.contract import Task

LABELS = ("billing", "delivery", "returns")
CEILINGS = Ceilings(64, 512)


def model(name: str = "desk", **more: Any) -> ServedModel:
    kind = more.pop("kind", "classify")
    labels = more.pop("labels", LABELS if kind == "classify" else ())
    return ServedModel(name, Task(kind, tiny.TEMPLATE, "<|im_end|>", labels=labels, **more))


def request(text: str = "where is my kettle") -> CheckedRequest:
    return openai_requests.check({"messages": chat(text), "temperature": 0}, "chat", {"desk": model()}, CEILINGS)


def answered(
    manners: endpoint.Manners, work: Callable[[Shadow, list[str | None]], Awaitable[None]], busy: Callable[[], bool]
) -> tuple[list[str | None], dict[str, float]]:
    """What a shadow behind a real client gave to those who asked it, and its figures."""
    given: list[str | None] = []

    async def run() -> dict[str, float]:
        with endpoint.serving(manners) as fake:
            second = Shadow(EndpointEngine(fake.url, "large", None, 1), model(system="Another prompt."))
            second.start(Log(), Metrics(), CEILINGS, busy)
            await work(second, given)
            await second.close()
            return {labels["fate"]: value for labels, value in second.figures()["slmctl_shadow"]}

    figures = asyncio.run(run())
    return given, figures


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # pytest's own limit ends one that never comes true
        await asyncio.sleep(0.005)


def test_it_is_asked_in_its_own_words_and_its_answer_compared() -> None:
    said = {"where is my kettle": "delivery", "i want my money": "returns", "odd": "weather"}
    seen: list[Any] = []

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        seen.append(body["messages"])
        return streams(said[body["messages"][-1]["content"]])

    async def work(second: Shadow, given: list[str | None]) -> None:
        for text in said:
            second.ask(request(text), "delivery", given.append)
        await until(lambda: len(given) == 3)

    given, figures = answered(manners, work, lambda: False)
    assert given == ["delivery", "returns", None]  # the last is no label
    assert figures == {"same": 1, "other": 1, "failed": 1, "dropped": 0}
    assert {messages[0]["content"] for messages in seen} == {"Another prompt."}


def test_a_question_is_dropped_where_requests_wait_or_too_many_are_ahead() -> None:
    waiting = [True]

    async def work(second: Shadow, given: list[str | None]) -> None:
        second.ask(request(), "delivery", given.append)
        assert given == [None]
        waiting[0] = False
        for _ in range(shadow.BEHIND + 3):  # none is begun before this loop goes on
            second.ask(request(), "delivery", given.append)
        assert given == [None] * 4
        waiting[0] = True  # and those that are left are dropped too when their turn comes
        await until(lambda: len(given) == shadow.BEHIND + 4)

    given, figures = answered(lambda body, before: streams("delivery"), work, lambda: waiting[0])
    assert given == [None] * (shadow.BEHIND + 4)
    assert figures == {"same": 0, "other": 0, "failed": 0, "dropped": shadow.BEHIND + 4}


def test_what_is_left_when_the_server_stops_is_handed_back() -> None:
    async def work(second: Shadow, given: list[str | None]) -> None:
        for _ in range(3):
            second.ask(request(), "delivery", given.append)
        await asyncio.sleep(0)

    given, figures = answered(lambda body, before: streams("delivery"), work, lambda: False)
    assert (given, figures["dropped"]) == ([None] * 3, 3)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (model(labels=("billing", "delivery")), "other labels"),
        (model(kind="generate"), "another task"),
        (model(kind="extract", schema={"type": "object"}), "another task"),
    ],
    ids=["labels", "kind", "schema"],
)
def test_a_shadow_of_other_answers_is_refused(other: ServedModel, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shadow.require_comparable(other, model())
    shadow.require_comparable(model(labels=LABELS[::-1], system="Another prompt."), model())


def test_a_release_answers_in_the_background_and_both_answers_are_one_line(
    tiny_run: Path, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    named = (f"--set=serve.collect={{kept: 100%, to: {tmp_path}}}", "--shadow", str(artifacts["gguf"].path))
    child, url = begin(tiny_run, *named)
    body = post(url, {"messages": chat("refund my card")}).json()
    assert settles(lambda: bool(collected_files([tmp_path])), 200)
    (row,) = CollectedRow.read(collected_files([tmp_path])[0])
    answer = body["choices"][0]["message"]["content"]
    assert (row.answer, row.shadow in tiny.WORDS) == (answer, True)
    assert (row.digest.startswith("sha256:"), row.shadow_digest.startswith("sha256:")) == (True, True)
    assert row.novel is not None  # the training rows are below runs/
    asked = [figure(url, f'slmctl_shadow_total{{fate="{fate}"}}') for fate in ("same", "other")]
    assert asked == ([1, 0] if row.shadow == answer else [0, 1])
    policies = {os.sched_getscheduler(pid) for pid in engines(child.pid)}
    assert policies == {os.SCHED_OTHER, os.SCHED_IDLE}
    assert httpx.get(f"{url}/readyz", timeout=60).status_code == 200
    end(child)


def engines(pid: int) -> list[int]:
    """The processes of the engines below a server."""
    children = [p for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    return [int(p) for p in children if b"slmctl.inference.llama_child" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_a_shadow_without_collect_is_refused(stages: Forks, tiny_run: Path) -> None:
    done = stages.run(tiny_run, "serve", "--shadow", "runs/published")
    assert (done.returncode, "'shadow' needs 'collect'" in done.stderr) == (2, True)
