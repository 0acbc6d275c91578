"""The server's web page in Debian's chromium: in front of the real server,
and of one whose answers a test decides.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from support import here, tiny
from support.browser import Browser
from support.reported import HOSTILE

from slmctl.config import CollectConfig, ServeConfig
from slmctl.server import page, routed
from slmctl.server.forms.request import ServedModel
from slmctl.task.contract import Task

# what a terminal or a browser obeys in a text: control characters, and those that turn the
# direction of writing
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
NAME = "SmolLM2-135M-desk-v1.0-Q8_0"
SCHEMA = {
    "type": "object",
    "properties": {
        "order": {"type": "string", "title": "Order number", "description": "As on the invoice."},
        "items": {
            "type": "array",
            "items": {"type": "object", "properties": {"name": {"type": "string"}}},
        },
        "paid": {"type": "boolean"},
        "note": {"type": ["string", "null"]},
    },
}
TOOL = {"name": "track_order", "description": "Tell where an order is.", "parameters": SCHEMA}
TASKS = {
    "classify": Task("classify", "", "", labels=("billing", "delivery", "returns")),
    "extract": Task("extract", "", "", schema=SCHEMA),
    "generate": Task("generate", "", ""),
    "call": Task("call", "", "", tools=({"type": "function", "function": TOOL},)),
}
EXTRA = {
    "task": "x",
    "confidence": 0.875,
    "route": "local",
    "reason": "above_threshold",
    "model": NAME,
    "seconds": 0.5,
}


@dataclass
class Fake:
    """What the page talks to: it says what it was told to, and keeps what it was asked."""

    kind: str
    text: str = "hello"
    extra: dict[str, Any] = field(default_factory=lambda: dict(EXTRA))
    refuse: tuple[int, dict[str, str], str] | None = None
    broken: str = ""  # how a stream ends that does not end well: error, cut
    held: bool = False  # the rest of the answer comes when this is no longer so
    key: str = ""
    finish: str = "stop"
    more: dict[str, str] = field(default_factory=dict)  # further models: name and kind
    collects: bool = False
    documents: bool = False
    calls: str = ""  # the function that an answer calls; its text is the arguments
    asked: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)
    words: list[dict[str, Any]] = field(default_factory=list)  # feedback
    url: str = ""

    def app(self) -> Starlette:
        routes = [
            Route("/v1/chat/completions", self._answer, methods=["POST"]),
            Route("/v1/feedback", self._feedback, methods=["POST"]),
            Route("/v1/models", self._models),
            *page.routes(),
        ]
        app = Starlette(routes=routes)
        # as much of both as the page's own paths ask
        app.state.gateway = app.state.gateway.fleet = self
        collect = CollectConfig() if self.collects else None
        self.settings = ServeConfig(max_tokens=64, collect=collect, documents=self.documents)
        return app

    @property
    def models(self) -> dict[str, str]:
        return {NAME: self.kind, **self.more}

    def find(self, name: str | None, key: None) -> tuple[str, ServedModel]:
        name = NAME if name in (None, "default") else name
        if name not in self.models:
            raise HTTPException(404)
        return name, ServedModel(name, TASKS[self.models[name]], version="1.0")

    def key_of(self, http: Request) -> None:
        if self.key and http.headers.get("authorization") != f"Bearer {self.key}":
            raise HTTPException(401, "no such key")

    async def _models(self, request: Request) -> Response:
        self.key_of(request)
        return JSONResponse({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _answer(self, request: Request) -> Response:
        self.asked.append((await request.json(), dict(request.headers)))
        if self.refuse:
            status, headers, message = self.refuse
            return JSONResponse(
                {"error": {"message": message}}, status_code=status, headers=headers
            )
        headers = {"x-request-id": f"id-{len(self.asked)}"}
        return StreamingResponse(self._stream(), media_type="text/event-stream", headers=headers)

    async def _feedback(self, request: Request) -> Response:
        word = await request.json()
        if word.get("answer") == "refused":
            return JSONResponse(
                {"error": {"message": "'answer' holds personal data"}}, status_code=400
            )
        self.words.append(word)
        return JSONResponse(word)

    async def _stream(self) -> AsyncIterator[str]:
        half = len(self.text) // 2
        yield self._chunk({"role": "assistant", "content": None if self.calls else ""})
        if self.calls:
            yield self._chunk(
                _call(id="call_1", type="function", function={"name": self.calls, "arguments": ""})
            )
        for piece in (self.text[:half], self.text[half:]):
            yield self._chunk(
                _call(function={"arguments": piece}) if self.calls else {"content": piece}
            )
            while self.held:
                await asyncio.sleep(0.01)
            if self.broken == "error":
                yield f"data: {json.dumps({'error': {'message': 'the engine died'}})}\n\n"
            if self.broken:
                return
        yield self._chunk({}, "tool_calls" if self.calls else self.finish, slmctl=self.extra)
        usage = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
        yield f"data: {json.dumps({'model': NAME, 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        # json.dumps spells a lone surrogate as an escape, which a browser reads
        return f"data: {json.dumps({'model': NAME, 'choices': [choice], **more})}\n\n"


def _call(**fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, **fields}]}


@contextmanager
def faking(kind: str, **settings: Any) -> Iterator[Fake]:
    fake = Fake(kind, **settings)
    with here.listening(fake.app()) as url:
        fake.url = f"{url}/"
        try:
            yield fake
        finally:
            fake.held = False


def visit(browser: Browser, url: str, **how: Any) -> None:
    """Open the page and wait until it knows its task."""
    browser.open(url, **how)
    browser.wait(
        "!document.getElementById('form').hidden || !document.getElementById('fault').hidden"
    )


@contextmanager
def shown(browser: Browser, kind: str, **settings: Any) -> Iterator[Fake]:
    with faking(kind, **settings) as fake:
        visit(browser, fake.url)
        yield fake


def ask(browser: Browser, text: str = "where is my parcel?") -> None:
    """Type a question, send it by the keyboard, and wait for what comes of it."""
    browser.ask("document.getElementById('text').focus()")
    browser.type(text)
    browser.press("Enter")
    browser.wait("document.getElementById('stop').hidden && !document.querySelector('[aria-busy]')")


def seen(browser: Browser, selector: str = "body") -> str:
    return str(browser.ask(f"document.querySelector({json.dumps(selector)}).innerText"))


def fault_of(browser: Browser) -> str:
    assert not browser.ask("document.getElementById('fault').hidden")
    return seen(browser, "#fault")


# What is sent


def test_the_page_allows_nothing_but_itself() -> None:
    with faking("generate") as fake:
        response = httpx.get(fake.url)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        for outside in (
            "http://",
            "https://",
            "//cdn",
            "@import",
            "url(",
            " src=",
            " style=",
            "javascript:",
        ):
            assert outside not in response.text, outside
        assert " on" not in {
            part[:3] for part in response.text.split("<body>")[1].split("<script>")[0].split("\n")
        }


def test_the_task_is_told_as_json() -> None:
    with faking("extract") as fake:
        told = httpx.get(f"{fake.url}v1/task").json()
        assert told == {
            "kind": "extract",
            "labels": [],
            "schema": SCHEMA,
            "name": NAME,
            "version": "1.0",
            "max_tokens": 64,
            "documents": False,
            "feedback": False,
        }
        assert httpx.get(f"{fake.url}v1/task", params={"model": NAME}).json() == told


# In the browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_chat_answers_and_says_who_and_why(browser: Browser, dark: bool) -> None:
    with faking("generate", text="It left on Monday.") as fake:
        visit(browser, fake.url, dark=dark)
        assert browser.ask("document.activeElement.id") == "text"  # one can write at once
        ask(browser, "where is it?")
        log = seen(browser, "#log")
        for wanted in (
            "where is it?",
            "It left on Monday.",
            NAME,
            "this server",
            "above threshold",
            "87.5 %",
            "24.0 tokens/s",
            "0.50 s for 12 tokens",
        ):
            assert wanted in log, wanted
        assert browser.complaints == []
        assert {url.removeprefix(fake.url) for url in browser.requests} == {
            "",
            "data:,",
            "v1/models",
            "v1/task",
            "v1/chat/completions",
        } - ({"data:,"} if "data:," not in browser.requests else set())
        background = browser.ask("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(15, 20, 25)" if dark else "rgb(255, 255, 255)")
        ask(browser, "and then?")
        assert [turn["content"] for turn in fake.asked[1][0]["messages"]] == [
            "where is it?",
            "It left on Monday.",
            "and then?",
        ]
        browser.ask("document.getElementById('anew').click()")
        ask(browser, "afresh")
        assert [turn["content"] for turn in fake.asked[2][0]["messages"]] == ["afresh"]


def test_every_reason_has_words(browser: Browser) -> None:
    with shown(browser, "generate") as fake:
        for reason in (*routed.LOCAL_REASONS, *routed.GENERALIST_REASONS, "no-policy"):
            fake.extra = EXTRA | {"route": "generalist", "reason": reason}
            ask(browser)
            facts = seen(browser, "article:last-of-type .facts")
            assert "the general model" in facts
            assert f"because\n{reason.replace('-', ' ')}\n" not in facts, reason


def test_what_the_server_does_not_say_is_left_out(browser: Browser) -> None:
    with shown(browser, "generate", extra={"task": "generate", "confidence": None}):
        ask(browser)
        facts = seen(browser, ".facts")
        assert NAME in facts
        assert not [
            word for word in ("because", "undefined", "null", "confidence") if word in facts
        ]


def test_an_answer_is_shown_as_it_comes_and_can_be_stopped(browser: Browser) -> None:
    with shown(browser, "generate", text="first half, second half", held=True) as fake:
        browser.type("hello")
        browser.press("Enter")
        browser.wait("document.querySelector('.answer .text')?.textContent === 'first half,'")
        assert browser.ask("document.querySelector('.answer').getAttribute('aria-busy')") == "true"
        assert browser.ask("document.getElementById('send').disabled")
        fake.held = False
        browser.wait("!document.querySelector('[aria-busy]')")
        assert "first half, second half" in seen(browser, "#log")
        fake.held = True
        browser.type("again")
        browser.press("Enter")
        browser.wait("document.querySelectorAll('.answer .text')[1]?.textContent === 'first half,'")
        browser.ask("document.getElementById('stop').click()")
        browser.wait("document.getElementById('stop').hidden")
        assert "Stopped here." in seen(browser, "#log")
        assert browser.ask("document.getElementById('fault').hidden")


NEXT = {"returns": 0.1, "billing": 0.025}


@pytest.mark.parametrize("labels", [{"delivery": 0.875, **NEXT}, None], ids=["named", "none"])
def test_a_category_has_its_confidence_and_what_came_next(browser: Browser, labels: Any) -> None:
    with shown(
        browser, "classify", text="delivery", extra=EXTRA | ({"labels": labels} if labels else {})
    ) as fake:
        assert seen(browser, "#labels summary") == "The 3 categories"
        ask(browser)
        assert seen(browser, ".best") == "delivery"
        assert "0.50 s" in seen(browser, ".facts")
        assert "token" not in seen(browser, ".facts")  # a label is not written token by token
        bars = browser.ask(
            "[...document.querySelectorAll('[role=meter]')].map(b => [b.ariaLabel, b.ariaValueNow])"
        )
        assert bars[0] == ["confidence in delivery", "87.5"]
        assert bars[1:] == (
            [["confidence in returns", "10.0"], ["confidence in billing", "2.5"]] if labels else []
        )
        widths = browser.ask(
            "[...document.querySelectorAll('.bar')].map(b => b.firstChild.offsetWidth / "
            "b.clientWidth)"
        )
        assert widths[0] == pytest.approx(0.875, abs=0.02)
        assert not browser.ask("!!document.querySelector('.verdict')")  # nothing is collected here
        ask(browser, " once more")
        assert browser.ask("document.querySelectorAll('.best').length") == 1
        assert [len(body["messages"]) for body, _ in fake.asked] == [1, 1]


def test_a_reader_says_by_the_keyboard_whether_an_answer_is_right(browser: Browser) -> None:
    with shown(browser, "classify", text="delivery", collects=True) as fake:
        ask(browser)
        group = "document.querySelector('.verdict')"
        assert browser.ask(f"[{group}.role, {group}.ariaLabel]") == [
            "group",
            "Is this answer right?",
        ]
        browser.ask(f"{group}.querySelector('button').focus()")
        browser.press("Space")  # right
        browser.wait(f"{group}.querySelector('[aria-pressed=true]')?.textContent === 'Right'")
        browser.press("Tab")
        browser.press("Space")  # no, wrong
        browser.wait(f"{group}.querySelector('select')")
        assert browser.ask("document.activeElement.tagName") == "SELECT"
        assert browser.ask(f"[...{group}.querySelectorAll('option')].map(o => o.value)") == [
            "billing",
            "returns",
        ]
        browser.ask(f"{group}.querySelector('select').value = 'returns'")
        browser.press("Tab")
        browser.press("Enter")
        browser.wait(f"{group}.querySelector('[role=status]').textContent.includes('right answer')")
        assert not browser.ask(f"!!{group}.querySelector('form')")
        assert browser.ask(f"{group}.querySelector('[aria-pressed=true]').textContent") == "Wrong"
        assert fake.words == [
            {"request_id": "id-1", "ok": True},
            {"request_id": "id-1", "ok": False},
            {"request_id": "id-1", "ok": False, "answer": "returns"},
        ]
        assert browser.complaints == []


def test_a_text_that_would_be_right_begins_with_the_answer_and_a_refusal_is_said(
    browser: Browser,
) -> None:
    with shown(browser, "generate", text="It left.", collects=True) as fake:
        ask(browser)
        browser.ask("document.querySelectorAll('.verdict button')[1].click()")
        browser.wait("document.activeElement.value === 'It left.'")
        browser.ask("document.activeElement.value = 'refused'")
        browser.ask("document.querySelector('.better').requestSubmit()")
        browser.wait(
            "document.querySelector('.verdict [role=status]').textContent.includes('personal data')"
        )
        assert fake.words == [{"request_id": "id-1", "ok": False}]


def test_fields_are_a_table_and_can_be_copied(browser: Browser) -> None:
    answer = {
        "order": "A-17",
        "items": [{"name": "kettle"}, {"name": "lamp"}],
        "paid": False,
        "extra": [1, 2],
    }
    with shown(browser, "extract", text=json.dumps(answer)):
        ask(browser)
        rows = browser.ask(
            "[...document.querySelector('#result table').rows].filter(r => "
            "r.closest('table').caption)"
            ".map(r => [r.cells[0].innerText, r.cells[1].innerText.trim()])"
        )
        assert rows[0] == ["Order number\nAs on the invoice.", "A-17"]
        assert [name for name, _ in rows][1:] == ["items", "paid", "note", "extra"]
        assert "kettle" in rows[1][1]
        assert [value for _, value in rows][2:4] == ["no", "not stated"]
        assert browser.ask(
            "[...document.querySelectorAll('#result th')].every(t => t.scope === 'row')"
        )
        browser.ask(
            "window.copied = ''; navigator.clipboard.writeText = async (text) => { window.copied = "
            "text }"
        )
        browser.ask(
            "[...document.querySelectorAll('#result button')].find(b => "
            "b.textContent.includes('Copy')).click()"
        )
        browser.wait("document.getElementById('told').textContent === 'Copied.'")
        assert json.loads(browser.ask("window.copied")) == answer


def test_a_document_is_dropped_and_its_values_say_where_they_stand(browser: Browser) -> None:
    around = "the order <b>A-17</b> of May, order A-17"
    place = {"path": "order", "value": "A-17", "start": 13, "end": 17, "page": 3, "around": around}
    rival = {**place, "value": "A-18", "page": 4, "around": "or A-18", "conflict": True}
    extra = EXTRA | {"places": [place, rival]}
    with shown(browser, "extract", text='{"order": "A-17"}', documents=True, extra=extra) as fake:
        browser.ask("""
            const list = new DataTransfer();
            list.items.add(new File(["Order A-17"], "order.txt", { type: "text/plain" }));
            const drop = new DragEvent("drop", { dataTransfer: list, bubbles: true, cancelable: true });
            document.getElementById("text").dispatchEvent(drop);
            document.getElementById("form").requestSubmit();
        """)
        browser.wait("document.querySelector('.places')")
        (file,) = fake.asked[-1][0]["messages"][-1]["content"]
        assert file["file"] == {
            "filename": "order.txt",
            "file_data": "data:text/plain;base64,T3JkZXIgQS0xNw==",
        }
        read = browser.ask("document.querySelector('.places').innerText").splitlines()
        assert read[0] == "order, page 3" and read[1] == around
        assert "another value that is likely too" in read[2]
        assert browser.ask("document.querySelector('.places mark').textContent") == "A-17"
        assert browser.complaints == []
    with shown(browser, "extract"):
        assert browser.ask("document.getElementById('attach').hidden")


def test_a_call_is_its_function_and_a_table_of_arguments(browser: Browser) -> None:
    arguments = {"order": "A-17", "paid": True}
    with shown(browser, "call", text=json.dumps(arguments), calls="track_order", collects=True):
        assert "Calls the function that a text asks for" in seen(browser)
        ask(browser)
        told = seen(browser, "#result")
        for part in ("track_order", "Tell where an order is.", "Order number", "A-17", "yes"):
            assert part in told
        browser.ask(
            "[...document.querySelectorAll('#result button')].find(b => b.textContent === "
            "'Wrong').click()"
        )
        browser.wait("!!document.querySelector('#result textarea')")
        typed = browser.ask("document.querySelector('#result textarea').value")
        assert json.loads(typed) == {"name": "track_order", "arguments": arguments}
    with shown(browser, "call", text="none"):
        ask(browser)
        assert "No function is called" in seen(browser, "#result")


def test_json_that_was_cut_off_is_said_to_be(browser: Browser) -> None:
    with shown(browser, "extract", text='{"order": "A-1', finish="length"):
        ask(browser)
        assert "no whole JSON" in seen(browser, "#result")
        assert '{"order": "A-1' in seen(browser, "#result")
        assert "cut at the longest answer" in seen(browser, "#result")


@pytest.mark.parametrize("kind", list(TASKS))
def test_text_from_a_model_stays_text(browser: Browser, kind: str) -> None:
    with shown(browser, kind) as fake:
        for text in HOSTILE:
            fake.text = (
                json.dumps({text: [text, {text: text}]}) if kind in ("extract", "call") else text
            )
            fake.calls = text if kind == "call" else ""
            fake.extra = EXTRA | {
                "reason": text,
                "model": text,
                "route": text,
                "labels": {text + "x": 0.1},
            }
            ask(browser)
            home = "#log article:last-of-type" if kind == "generate" else "#result"
            said = browser.ask(f"document.querySelector('{home}').textContent")
            if kind not in ("extract", "call"):  # JSON's own escapes stand in the raw form of it
                assert OBEYED.sub("", text) in said
            assert not OBEYED.search(said)
        assert browser.ask("document.title") == f"{NAME} · slmctl"
        counted = (
            "document.scripts.length, document.images.length, "
            "document.querySelectorAll('style').length"
        )
        assert browser.ask(f"[{counted}]") == [1, 0, 1]
        assert browser.complaints == []


@pytest.mark.parametrize(
    ("refuse", "wanted"),
    [
        (
            (400, {}, "the prompt does not fit the context of 2048 tokens"),
            "does not fit the context of 2048 tokens",
        ),
        ((413, {}, "the body is too large"), "longer than this server takes"),
        (
            (429, {"Retry-After": "7"}, "queue full"),
            "busy, or this key has reached its limit. Try again in 7 seconds.",
        ),
        (
            (503, {}, "the engine died"),
            "cannot answer just now. Try again in a moment. the engine died",
        ),
        ((502, {}, ""), "The server answered with status 502."),
    ],
)
def test_a_refusal_is_said_in_words_and_the_question_is_kept(
    browser: Browser, refuse: Any, wanted: str
) -> None:
    with shown(browser, "generate", refuse=refuse) as fake:
        ask(browser, "my long question")
        assert wanted in fault_of(browser)
        assert browser.ask("document.getElementById('text').value") == "my long question"
        assert browser.ask("document.querySelectorAll('.answer').length") == 0
        fake.refuse = None
        browser.ask("document.getElementById('text').value = ''")
        ask(browser)
        assert browser.ask("document.getElementById('fault').hidden")
        # what was refused is no part of the conversation
        assert len(fake.asked[-1][0]["messages"]) == 1


@pytest.mark.parametrize(
    ("broken", "wanted"), [("error", "the engine died"), ("cut", "before the answer was complete")]
)
def test_a_stream_that_breaks_is_no_answer(browser: Browser, broken: str, wanted: str) -> None:
    with shown(browser, "generate", broken=broken, text="ab"):
        ask(browser)
        assert wanted in fault_of(browser)
        assert "This answer is not complete." in seen(browser, "#log")


def test_a_server_that_is_gone_is_said(browser: Browser) -> None:
    with shown(browser, "generate"):
        pass
    ask(browser)
    assert "cannot be reached" in fault_of(browser)


def test_a_key_stays_in_the_tab_and_sensitive_is_a_header(browser: Browser) -> None:
    with shown(browser, "generate", key="sk-one") as fake:
        assert "wants an API key" in fault_of(browser)
        assert browser.ask("document.activeElement.id") == "key"
        browser.type("sk-one")
        browser.press("Enter")
        browser.wait("!document.getElementById('form').hidden")
        assert browser.ask("document.getElementById('fault').hidden")
        ask(browser)
        assert fake.asked[0][1]["authorization"] == "Bearer sk-one"
        assert "x-slmctl-sensitive" not in fake.asked[0][1]
        browser.ask("document.getElementById('sensitive').focus()")
        browser.press("Space")
        ask(browser)
        assert fake.asked[1][1]["x-slmctl-sensitive"] == "true"
        assert browser.ask("sessionStorage.getItem('slmctl-key')") == "sk-one"
        assert browser.ask("localStorage.length + document.cookie.length") == 0
        visit(browser, fake.url)
        assert browser.ask("document.getElementById('fault').hidden")  # the tab remembers it
        browser.ask("sessionStorage.clear()")
        visit(browser, fake.url)  # a new one does not
        assert "wants an API key" in fault_of(browser)


def test_one_of_several_models_is_chosen(browser: Browser) -> None:
    with shown(browser, "generate", more={"sorter": "classify"}) as fake:
        assert browser.ask("[...document.getElementById('model').options].map(o => o.value)") == [
            NAME,
            "sorter",
        ]
        ask(browser)
        browser.ask(
            "(m => { m.value = 'sorter'; m.dispatchEvent(new Event('change')) "
            "})(document.getElementById('model'))"
        )
        browser.wait("document.getElementById('send').textContent === 'Find the category'")
        assert seen(browser, "h1") == "sorter"
        assert browser.ask("document.getElementById('log').hidden")
        ask(browser)
        assert [body["model"] for body, _ in fake.asked] == [NAME, "sorter"]
        assert seen(browser, ".best") == "hello"


@pytest.mark.parametrize("kind", list(TASKS))
def test_nothing_is_wider_than_the_screen(browser: Browser, kind: str) -> None:
    long = "W" * 3000
    objects = kind in ("extract", "call")
    text = json.dumps({"order": long, "items": [{"name": {"deep": [long]}}]}) if objects else long
    with faking(
        kind,
        text=text,
        calls=long if kind == "call" else "",
        extra=EXTRA | {"labels": {long + "x": 0.1}},
    ) as fake:
        for width in (360, 1280):
            visit(browser, fake.url, width=width)
            ask(browser, long)
            browser.ask("document.querySelectorAll('details').forEach(d => { d.open = true })")
            assert browser.ask("document.documentElement.scrollWidth") == width


def test_every_control_has_a_name_and_is_reached_by_tab(browser: Browser) -> None:
    with shown(browser, "generate"):
        ask(browser)
        controls = (
            "[...document.querySelectorAll('button,input,textarea,select')].filter(e => "
            "e.offsetParent)"
        )
        nameless = (
            f"{controls}.filter(e => !e.textContent && !e.labels?.length && "
            "!e.ariaLabel).map(e => e.id)"
        )
        assert browser.ask(nameless) == []
        browser.ask("document.getElementById('text').focus()")
        reached = []
        for _ in range(6):
            browser.press("Tab")
            reached.append(
                browser.ask("document.activeElement.id || document.activeElement.tagName")
            )
        assert reached[:3] == ["send", "anew", "sensitive"]
        assert reached[3:5] == ["SUMMARY", "SUMMARY"]
        assert browser.ask("document.querySelectorAll('h1').length") == 1
        assert browser.ask("document.documentElement.lang") == "en"
        assert browser.ask("document.querySelector('#log').getAttribute('role')") == "log"


def test_shift_and_enter_begin_a_new_line(browser: Browser) -> None:
    with shown(browser, "generate") as fake:
        browser.type("one")
        browser.press("Enter", shift=True)
        browser.type("two")
        browser.press("Enter")
        browser.wait("document.querySelector('.facts')")
        assert fake.asked[0][0]["messages"][0]["content"] == "one\ntwo"


# In front of the real server


def test_the_real_server_sorts_a_text_and_talks(
    browser: Browser, desk_url: str, free_url: str
) -> None:
    for url in (desk_url, free_url):
        visit(browser, f"{url}/")
        ask(browser, "refund my card")
        if url == free_url:
            assert browser.ask("document.querySelector('.answer .text').textContent.length") > 0
        else:
            assert seen(browser, ".best") in tiny.WORDS
            assert float(browser.ask("document.querySelector('[role=meter]').ariaValueNow")) > 33
        assert browser.complaints == []
