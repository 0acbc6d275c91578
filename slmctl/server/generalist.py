"""The general model behind an OpenAI-compatible endpoint: asked once, in time, with nothing but what is listed.

A failure is a reason and never an answer: a reply counts when it is whole. What fails again and again is left
alone for a while (`Breaker`), so that nobody waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from slmctl.config import Generalist as Settings
from slmctl.errors import NetworkError, UsageError
from slmctl.network.openai_client import MAX_BYTES, Reply, Wording, asked_to_wait, completions, read_key, read_reply

ALLOWED = ("max_tokens", "temperature", "top_p")  # what leaves beside the model's name and the messages
PER_MESSAGE = ("role", "content")
FAILURES = 5  # in a row, until nobody is sent there
FIRST_PAUSE_S = 5.0  # doubled with each further failure
LONGEST_PAUSE_S = 120.0
ITS_OWN_FAULT = (400, 413, 422)  # of this request: they say nothing about the next one


class FailedError(Exception):
    """There is no answer; `reason` is one of a few words, `pause_s` what the endpoint asks for."""

    def __init__(self, reason: str, *, pause_s: float = 0.0, counts: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.pause_s, self.counts = reason, pause_s, counts


class Breaker:
    """Lets requests through until they fail in a row; then, after a pause, one at a time to try.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed, self._until, self._trying = 0, 0.0, False

    @property
    def is_open(self) -> bool:
        """Whether requests are held back."""
        return self._failed >= FAILURES or self._clock() < self._until

    def admits(self) -> bool:
        """Whether a request may go; whoever goes says how it ended, or `leaves`."""
        if self._clock() < self._until or (self._failed >= FAILURES and self._trying):
            return False
        self._trying = self._failed >= FAILURES
        return True

    def succeeded(self) -> None:
        self._failed, self._until, self._trying = 0, 0.0, False

    def failed(self, pause_s: float = 0.0) -> None:
        """Count a failure; `pause_s` is what the endpoint itself asked for."""
        if self._clock() < self._until and pause_s <= 0:
            return  # one of several that were on their way when it was left alone
        self._failed, self._trying = self._failed + 1, False
        if self._failed >= FAILURES:
            pause_s = max(pause_s, FIRST_PAUSE_S * 2.0 ** min(self._failed - FAILURES, 10))
        if pause_s > 0:
            self._until = self._clock() + min(pause_s, LONGEST_PAUSE_S)

    def leaves(self) -> None:
        """The request ended without telling anything, as when its client hung up."""
        self._trying = False


class Generalist:
    """The client. It follows no redirect and no variable of the environment, and sends what is listed.

    Raises:
        UsageError: The address is none, or the key's variable is not set.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.name = settings, settings.model
        self.url = completions(settings.url)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if settings.key_env:
            key = read_key(settings.key_env)
            if not key.isascii() or not key.isprintable():
                raise UsageError(f"the environment variable {settings.key_env} holds no key: it has odd characters")
            self._headers["Authorization"] = f"Bearer {key}"
        self._client: httpx.AsyncClient | None = None
        self._wording = Wording()
        self.breaker = Breaker()

    @property
    def hosts(self) -> set[str]:
        """The only hosts that are contacted."""
        named = [self.url, *([self.settings.proxy] if self.settings.proxy else [])]
        return {host for host in (urlsplit(url).hostname for url in named) if host}

    def body(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> dict[str, Any]:
        """What is sent: the fields that are listed, and no other of what a caller gave."""
        turns = [{name: message[name] for name in PER_MESSAGE} for message in messages]
        named = {name: options[name] for name in ALLOWED if _is_number(options.get(name))}
        named.setdefault("max_tokens", self.settings.max_tokens)
        return {"model": self.name, "messages": turns, **self._wording.named(named)}

    async def ask(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> Reply:
        """The whole answer; the caller bounds the time.

        Raises:
            FailedError: There is none.
        """
        begun = time.monotonic()
        try:
            sent = self.body(messages, options)
            status, headers, raw = await self._post(sent)
            if status == 400 and self._wording.adapt(raw, sent):
                status, headers, raw = await self._post(self.body(messages, options))
        except (httpx.TimeoutException, TimeoutError):
            raise FailedError("generalist-slow") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, NetworkError, OSError):
            raise FailedError("generalist-down") from None
        if status == 429:
            raise FailedError("generalist-busy", pause_s=asked_to_wait(headers))
        if status != 200:  # a redirect too: the question goes where the config says, or nowhere
            pause = asked_to_wait(headers) if status == 503 else 0.0
            raise FailedError("generalist-error", pause_s=pause, counts=status not in ITS_OWN_FAULT)
        reply = read_reply(raw, time.monotonic() - begun)
        if reply is None or not reply.text.strip() or reply.finish not in ("stop", "length", ""):
            raise FailedError("generalist-garbage")
        return reply

    async def close(self) -> None:
        """Close what connections are open."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _post(self, body: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of one attempt; a reply that does not end is cut off."""
        raw = b""
        async with self._opened().stream("POST", self.url, json=body) as response:
            async for chunk in response.aiter_bytes():
                raw += chunk
                if len(raw) > MAX_BYTES:
                    raise httpx.ReadError(f"a reply of more than {MAX_BYTES} bytes")
            return response.status_code, response.headers, raw

    def _opened(self) -> httpx.AsyncClient:
        """The client, made in the loop that uses it."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                headers=self._headers, timeout=self.settings.timeout_s, follow_redirects=False, trust_env=False,
                proxy=self.settings.proxy,
            )  # fmt: skip
        return self._client


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
