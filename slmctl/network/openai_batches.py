"""Many questions -> one batch at an OpenAI-compatible endpoint: `/v1/files` and `/v1/batches`, answered within a day.

A batch goes on at its provider whatever becomes of this process, so its id is all that is needed to come back to it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import httpx

from slmctl.network.openai_client import (
    EndpointClient,
    EndpointError,
    EndpointRequest,
    Reply,
    message,
    read_reply,
    retry_after_s,
)

MAX_REQUESTS = 2000  # of one batch
MAX_FILE = 1 << 28  # bytes of a batch's results
WINDOW = "24h"
OVER = ("completed", "expired", "failed", "cancelled")
BatchStatus = Literal["running", "completed", "expired", "failed", "cancelled"]


@dataclass(frozen=True)
class BatchState:
    """A batch at its provider.

    Attributes:
        status: `running` until it is over.
        files: Ids of the files with results and with errors, as far as there are some.
        reason: Why it failed, in the provider's words.
    """

    status: BatchStatus
    files: tuple[str, ...] = ()
    reason: str = ""


class BatchClient(EndpointClient):
    """One OpenAI-compatible server that is asked in batches; see `EndpointClient`."""

    async def submit(self, requests: Mapping[str, EndpointRequest]) -> str:
        """Hand requests over, at most MAX_REQUESTS, each under its own id.

        Returns: the id of the batch.

        Raises:
            EndpointError: It was not taken.
            NetworkError: The host is not one that this process may reach.
        """
        lines = [
            json.dumps({
                "custom_id": id, "method": "POST", "url": "/v1/chat/completions",
                "body": self._body(request, set(), stream=False),
            })
            for id, request in requests.items()
        ]  # fmt: skip
        content = ("\n".join(lines) + "\n").encode()
        parts = {"file": ("batch.jsonl", content, "application/jsonl")}
        file = _text(_object(await self._sent("POST", "/files", files=parts, data={"purpose": "batch"})), "id")
        made = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": WINDOW}
        return _text(_object(await self._sent("POST", "/batches", json=made)), "id")

    async def state(self, id: str) -> BatchState:
        """The state of a batch.

        Raises:
            EndpointError: The provider does not tell it; with status 404 there is no such batch any more.
            NetworkError: The host is not one that this process may reach.
        """
        fields = _object(await self._sent("GET", f"/batches/{_plain(id)}"))
        status = fields.get("status")
        files = [fields.get(name) for name in ("output_file_id", "error_file_id")]
        over = cast(BatchStatus, status) if status in OVER else "running"
        reason = message(json.dumps({"error": fields.get("errors")}).encode()) if fields.get("errors") else ""
        return BatchState(over, tuple(file for file in files if isinstance(file, str) and file), reason)

    async def results(self, state: BatchState, max_tokens: int) -> AsyncIterator[tuple[str, Reply | EndpointError]]:
        """The answers of a batch by the ids of their requests; one that was not answered has its error.

        Raises:
            EndpointError: A file of it cannot be read.
            NetworkError: The host is not one that this process may reach.
        """
        for file in state.files:
            raw = await self._sent("GET", f"/files/{_plain(file)}/content", limit=MAX_FILE)
            for line in raw.splitlines():
                fields = _object(line)
                response, id = fields.get("response"), fields.get("custom_id")
                if isinstance(id, str):
                    yield id, _result(response, fields.get("error"), max_tokens)
                await asyncio.sleep(0)  # a file has thousands of lines

    async def _sent(self, method: str, path: str, *, limit: int = 1 << 22, **more: Any) -> bytes:
        """The body of a good response to a request below the endpoint's address."""
        url = self.url.removesuffix("/chat/completions") + path
        self.attempts += 1
        try:
            async with asyncio.timeout(self.timeout_s), self._opened().stream(method, url, **more) as response:
                parts, size = [], 0
                async for part in response.aiter_raw():
                    size += len(part)
                    if size > limit:
                        raise EndpointError(f"a reply of more than {limit} bytes", "unreadable", status=200)
                    parts.append(part)
                raw = self._masked(b"".join(parts))
                if response.status_code == 200:
                    return raw
                pause_s, status = retry_after_s(response.headers), response.status_code
        except (TimeoutError, httpx.TimeoutException):
            raise EndpointError(f"no whole reply within {self.timeout_s:g} s", "slow") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise EndpointError(f"{type(error).__name__}: {error}", "unreachable") from None
        raise EndpointError(f"HTTP {status}: {message(raw)}", "refused", status=status, pause_s=pause_s)


def _result(response: object, error: object, max_tokens: int) -> Reply | EndpointError:
    if not isinstance(response, dict) or response.get("status_code") != 200:
        status = response.get("status_code") if isinstance(response, dict) else None
        text = message(json.dumps({"error": error or "no answer"}).encode())
        return EndpointError(text, "refused", status=status if isinstance(status, int) and status else 408)
    try:
        return read_reply(json.dumps(response.get("body")).encode(), 0.0, max_tokens)
    except EndpointError as unreadable:
        return unreadable


def _object(raw: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(raw.decode())
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise EndpointError("the reply is no JSON object", "unreadable", status=200)
    return fields


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise EndpointError(f"the reply names no '{name}'", "unreadable", status=200)
    return value


def _plain(id: str) -> str:
    """An id as a part of an address.

    Raises:
        EndpointError: It holds more than letters, digits and dashes.
    """
    if not id.replace("-", "").replace("_", "").isalnum() or not id.isascii():
        raise EndpointError("an id that is no part of an address", "unreadable", status=200)
    return id
