"""Documents in a chat: file parts become texts, or one sentence says why not."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import here, papers
from support.servers import settles
from support.serving import post

from slmctl.config import ServeConfig
from slmctl.server import api_keys
from slmctl.server.forms import file_parts
from slmctl.server.places import Places
from slmctl.server.request_errors import RequestError

READS = ServeConfig(documents=True)


def with_texts(body: dict[str, Any], settings: ServeConfig) -> dict[str, Any]:
    asyncio.run(file_parts.put_texts(body, settings, Places(file_parts.TOGETHER), ""))
    return body


def part(name: str, data: bytes, *, url: bool = True) -> dict[str, Any]:
    encoded = base64.b64encode(data).decode()
    return {
        "type": "file",
        "file": {"filename": name, "file_data": f"data:x/y;base64,{encoded}" if url else encoded},
    }


def chat(*parts: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": list(parts)}]
    }


@pytest.mark.parametrize("url", [True, False])
def test_a_document_is_its_text_with_the_pages_marked(url: bool) -> None:
    text = {"type": "text", "text": "and this"}
    read = with_texts(
        chat(part("a.pdf", papers.pdf(["Erste Größe", "zweite"]), url=url), text), READS
    )
    assert read["messages"][0] == {"role": "system", "content": "s"}
    first, second = read["messages"][1]["content"]
    assert first == {"type": "text", "text": "Erste Größe\fzweite\f"} and second == text
    read = with_texts(chat(part("b.docx", papers.word("Absatz", [["a", "b"]]), url=url)), READS)
    assert read["messages"][1]["content"] == [{"type": "text", "text": "Absatz\na | b"}]


def test_a_body_without_a_file_is_not_touched() -> None:
    for body in (
        {"messages": [{"role": "user", "content": "x"}]},
        {"messages": 3},
        {},
        chat({"type": "text"}),
    ):
        assert with_texts(dict(body), ServeConfig()) == body


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (part("a.pdf", b"%PDF-1.4"), "a.pdf is cut off: it lacks the end of a PDF"),
        (
            part("a.pdf", papers.pdf(["x"], password="secret")),
            "a.pdf is encrypted: its text needs a password",
        ),
        (
            part("../../etc/a.pdf", papers.pdf([None])),
            "a.pdf holds no text",
        ),
        (part("a.docx", papers.pdf(["x"])), "a.docx is no DOCX: by its first bytes it is a PDF"),
        (part("a.exe", b"MZ"), "'a.exe' is no document that is read: .pdf, .docx"),
        # it was "no document that is read: .pdf, .docx, .eml, .mbox"
        (
            part("a.mbox", b"From x"),
            "'a.mbox' is a mailbox, and its mails are read one by one: .pdf, .docx, .eml,",
        ),
        (part("a.txt", b""), "a.txt is empty"),
        (part("a.html", b"<html><img src=x></html>"), "a.html holds no text"),
        (part("a\\.pdf", b"x"), "'.pdf' is no document that is read"),
        (
            {"type": "file", "file": {"filename": "a.md", "file_data": "no base64!"}},
            "'file_data' of 'a.md' is no",
        ),
        (
            {"type": "file", "file": {"file_id": "file-1"}},
            "a file part needs 'file' with 'filename' and 'file_data'",
        ),
        ({"type": "file"}, "a file part needs 'file'"),
    ],
)
def test_a_document_that_cannot_be_read_is_one_sentence(sent: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        with_texts(chat(sent), READS)
    assert refused.value.message.startswith(words) and refused.value.status == 400


def test_a_request_holds_few_documents() -> None:
    with pytest.raises(RequestError, match="a request may hold 4 documents, and this one holds 5"):
        with_texts(chat(*[part("a.txt", b"text")] * 5), READS)


def test_a_server_reads_no_documents_unasked() -> None:
    with pytest.raises(RequestError, match=r"serve\.documents"):
        with_texts(chat(part("a.txt", b"text")), ServeConfig())


def test_a_request_that_has_ended_holds_no_document() -> None:
    async def ended(body: dict[str, Any]) -> None:
        reading = asyncio.create_task(
            file_parts.put_texts(body, READS, Places(file_parts.TOGETHER), "")
        )
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait((reading,))
        assert reading.cancelled() and not body

    asyncio.run(ended(chat(part("a.txt", b""))))


def test_documents_that_are_slow_to_read_stop_no_other_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # once each of them held a thread that all requests share, and neither a deadline nor SIGTERM
    # reached them
    is_read, requests = threading.Event(), 8

    def read(*args: object, **limits: object) -> Iterator[dict[str, Any]]:
        is_read.wait(60)
        yield {"text": "text", "bare": 0, "pages": 1}

    monkeypatch.setattr(file_parts.folder, "read", read)
    with here.in_front(documents=True) as server, ThreadPoolExecutor(requests) as pool:
        try:
            slow = [
                pool.submit(post, server.url, chat(part("a.txt", b"text"))) for _ in range(requests)
            ]
            assert settles(lambda: server.gateway.limits.running == requests)
            assert server.ask("hello").status_code == server.get("/metrics").status_code == 200
            server.loop.call_soon_threadsafe(server.gateway.end_all)
            assert {each.result().json()["error"]["code"] for each in slow} == {"server_stopping"}
        finally:
            is_read.set()


def test_a_key_that_floods_with_documents_leaves_a_reader_to_another_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # readers took documents in the order of arrival: ten slow ones of a key were another key's 504
    begun, go_on = list[str](), threading.Semaphore(0)

    def read(waiting: list[tuple[str, str]], **limits: object) -> Iterator[dict[str, Any]]:
        begun.append(waiting[0][1])
        go_on.acquire(timeout=60)
        yield {"text": "text", "bare": 0, "pages": 1}

    monkeypatch.setattr(file_parts.folder, "read", read)
    keys = tmp_path / "keys.json"
    secrets = {name: api_keys.add(keys, name) for name in ("flood", "other")}
    with here.in_front(documents=True, keys=keys) as server, ThreadPoolExecutor(12) as pool:

        def ask(name: str) -> Future[httpx.Response]:
            body = chat(part(f"{name}.txt", b"text"))
            return pool.submit(post, server.url, body, authorization=f"Bearer {secrets[name]}")

        try:
            flood = [ask("flood") for _ in range(8)]
            assert settles(
                lambda: server.gateway.limits.running == 8 and begun == ["flood.txt"] * 2
            )
            question = ask("other")
            assert settles(lambda: server.gateway.limits.running == 9)
            go_on.release()
            assert settles(lambda: begun == ["flood.txt", "flood.txt", "other.txt"])
            while not question.done():  # the other document of the flood may end before
                seen = len(begun)
                go_on.release()
                assert settles(lambda seen=seen: question.done() or len(begun) > seen)
            again = ask("other")  # a reader is free, though documents of the flood wait
            assert settles(lambda: begun.count("other.txt") == 2)
            assert begun.count("flood.txt") < 8
        finally:
            go_on.release(20)
        assert {each.result().status_code for each in (*flood, question, again)} == {200}
