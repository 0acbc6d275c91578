"""Documents in a chat, as OpenAI's file parts: read as texts
before anything else sees the request.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, Literal

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import ServeConfig
from slmctl.installation import is_installed
from slmctl.server.places import Places
from slmctl.server.request_errors import RequestError
from slmctl.sources.documents import folder, readers

SECONDS, MOST = 20, 4  # of CPU time for all documents of a request, and their number
_NAMED = 120  # characters of a file name in an error
# Two requests have their documents read at a time, each in a process; asyncio's own threads are for
# all requests.
TOGETHER = 2
READERS = ThreadPoolExecutor(TOGETHER)


async def put_texts(body: JsonObject, settings: ServeConfig, places: Places, client: str) -> None:
    """Put the text of each document in place of its file part into a body, so that the document
    leaves the memory.

    Args:
        places: TOGETHER of them, in which documents are read; a document that nobody waits for
            holds one to its end.
        client: The key that sent the body.

    Raises:
        RequestError: The server reads no documents, or one cannot be read to its end.
    """
    messages = body.get("messages")
    count = (
        sum(sum(map(_is_file, _parts(message))) for message in messages)
        if isinstance(messages, list)
        else 0
    )
    if not count:
        return
    if not settings.documents:
        raise RequestError(
            "this server reads no file parts: send the text, or set serve.documents", "messages"
        )
    if count > MOST:
        raise RequestError(
            f"a request may hold {MOST} documents, and this one holds {count}", "messages"
        )
    loop = asyncio.get_running_loop()

    def give_back(done: Future[list[Any]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(places.give_back, client)

    try:
        await places.take(client)
        reading = READERS.submit(
            lambda: [_read(message, SECONDS // count) for message in body["messages"]]
        )
        reading.add_done_callback(give_back)
        body["messages"] = await asyncio.wrap_future(reading)
    except asyncio.CancelledError:
        body.clear()  # which would stay in memory until a thread is free
        raise


def _parts(message: Any) -> list[Any]:
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, list) else []


def _is_file(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "file"


def _read(message: Any, seconds: int) -> Any:
    """A message with texts alone; each document ends its last page where something follows."""
    if not any(map(_is_file, parts := _parts(message))):
        return message
    content = [
        {"type": "text", "text": _text(part, seconds) + readers.PAGE * (part is not parts[-1])}
        if _is_file(part)
        else part
        for part in parts
    ]
    return message | {"content": content}


def _text(part: JsonObject, seconds: int) -> str:
    file = part.get("file")
    name, data = (
        (file.get("filename"), file.get("file_data")) if isinstance(file, dict) else (None, None)
    )
    if not isinstance(name, str) or not isinstance(data, str):
        raise RequestError(
            "a file part needs 'file' with 'filename' and 'file_data', its base64", "messages"
        )
    shown = PurePosixPath(name.replace("\\", "/")).name[-_NAMED:]
    if (kind := readers.kind_of(shown)) in ("", "mailbox"):
        suffixes = ", ".join(suffix for suffix, each in readers.KINDS.items() if each != "mailbox")
        fault = (
            "a mailbox, and its mails are read one by one" if kind else "no document that is read"
        )
        raise RequestError(f"'{shown}' is {fault}: {suffixes}", "messages")
    try:
        raw = base64.b64decode(
            data.partition(",")[2] if data.startswith("data:") else data, validate=True
        )
    except (binascii.Error, ValueError):
        raise RequestError(f"'file_data' of '{shown}' is no base64", "messages") from None
    with os.fdopen(os.memfd_create("document"), "wb") as memory:  # no byte of it on a disk
        memory.write(raw)
        memory.flush()
        path = f"/proc/{os.getpid()}/fd/{memory.fileno()}"
        row = next(folder.read([(path, shown)], seconds=seconds, recognise=_recognises()))
    if "fault" in row:
        raise RequestError(f"{shown} {row['fault']}", "messages")
    if row["bare"]:
        raise RequestError(
            f"{shown} has {row['bare']} of {row['pages']} pages without text, and this server "
            "reads no scanned pages",
            "messages",
        )
    if not row["text"].strip():
        raise RequestError(f"{shown} holds no text", "messages")
    return str(row["text"])


def _recognises() -> Literal["none", "bounded"]:
    return "bounded" if is_installed("rapidocr") else "none"
