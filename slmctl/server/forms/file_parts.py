"""Documents in a chat, as OpenAI's file parts: read as texts before anything else sees the request."""

from __future__ import annotations

import base64
import binascii
import os
import threading
from pathlib import Path, PurePosixPath
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import ServeConfig
from slmctl.server.request_errors import RequestError
from slmctl.sources.documents import folder, readers

SECONDS = 20  # of CPU time for a document
_NAMED = 120  # characters of a file name in an error
_reading = threading.BoundedSemaphore(2)  # documents that are read at the same time, in a process each


def with_texts(body: JsonObject, settings: ServeConfig) -> JsonObject:
    """A body with the text of each document in place of its file part; blocks while it is read.

    Raises:
        RequestError: The server reads no documents, or one cannot be read to its end.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not any(map(_files_of, messages)):
        return body
    if not settings.documents:
        raise RequestError("this server reads no file parts: send the text, or set serve.documents", "messages")
    return body | {"messages": [_read(message) if _files_of(message) else message for message in messages]}


def _files_of(message: Any) -> list[Any]:
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, dict) and part.get("type") == "file"]


def _read(message: JsonObject) -> JsonObject:
    """A message with texts alone, a blank line behind each document."""
    files = _files_of(message)
    content = [
        {"type": "text", "text": _text(part) + "\n\n" * (part is not message["content"][-1])} if part in files else part
        for part in message["content"]
    ]
    return message | {"content": content}


def _text(part: JsonObject) -> str:
    file = part.get("file")
    name, data = (file.get("filename"), file.get("file_data")) if isinstance(file, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(data, str):
        raise RequestError("a file part needs 'file' with 'filename' and 'file_data', its base64", "messages")
    shown, suffix = PurePosixPath(name.replace("\\", "/")).name[-_NAMED:], Path(name).suffix.lower()
    if not readers.kind_of(name) or suffix == ".mbox":
        raise RequestError(f"'{shown}' is no document that is read: {', '.join(readers.KINDS)}", "messages")
    try:
        raw = base64.b64decode(data.partition(",")[2] if data.startswith("data:") else data, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"'file_data' of '{shown}' is no base64", "messages") from None
    with _reading, os.fdopen(os.memfd_create("document"), "wb") as memory:  # no byte of it on a disk
        memory.write(raw)
        memory.flush()
        row = next(folder.read([(f"/proc/{os.getpid()}/fd/{memory.fileno()}", shown)], seconds=SECONDS))
    if "fault" in row:
        raise RequestError(f"{shown} {row['fault']}", "messages")
    if row["bare"]:
        raise RequestError(f"{shown} has {row['bare']} of {row['pages']} pages without text: scanned?", "messages")
    return str(row["text"])
