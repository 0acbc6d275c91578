"""The asynchronous client for any OpenAI-compatible endpoint.

A request leaves this process, so endpoints are called only if the user named them. The key comes
from an environment variable, and is in no log, error or file. A compressed or too large reply is
refused; `endpoint_replies` reads the others. Cookies are not kept, redirects not followed.
`endpoint_pool` sends many requests from synchronous code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urlsplit, urlunsplit

import httpx

from slmctl.errors import UsageError
from slmctl.network import decisions
from slmctl.network.decisions import CHAT, PATHS, Api, Choice
from slmctl.network.endpoint_replies import (
    MAX_ERROR,
    Delta,
    EndpointError,
    Reply,
    StreamedReply,
    message,
    read_reply,
)

MAX_BYTES = 8_000_000  # of one reply
A_MESSAGE, A_PROMPT = 16, 64  # tokens that a chat template may add to a message, and to a prompt
CONNECT_S = 10.0  # connect timeout
# Options that an endpoint may not know; a refused request is sent again without those that the
# refusal names.
EXTENSIONS = ("structured_outputs", "logprobs", "stream_options", "seed")
# for answers that are checked afterwards
DROPPABLE = (*EXTENSIONS, "response_format", "temperature", "top_p")
# Words of a refusal of an option in general; other refusals may be about the value of this request.
UNKNOWN = re.compile(
    r"unknown|unrecogni[sz]ed|unsupported|unexpected|extra (inputs?|fields?)|additional|"
    r"not (support|permitted|allowed|recogni[sz]ed|implemented)|no such",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class EndpointRequest:
    """One request for an answer.

    Attributes:
        messages: The conversation; empty if `prompt` is continued as raw text.
        max_tokens: Longest answer, in tokens.
        stop: Texts that end an answer.
        tools: Functions that may be called, in OpenAI's format.
        options: Further options, by OpenAI's names; an endpoint may refuse some of them.
        prompt: Raw text to continue, in place of `messages`.
        choice: The question for one label, for a decisions API; sent without options.
    """

    messages: Sequence[Mapping[str, object]]
    max_tokens: int = 256
    temperature: float | None = 0.0
    stop: tuple[str, ...] = ()
    tools: tuple[object, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    prompt: str = ""
    choice: Choice | None = None

    @property
    def most_prompt_tokens(self) -> int:
        """Upper bound of the prompt's tokens for any tokenizer: one a byte,
        plus those around messages and labels.
        """
        question = (
            self.choice.size + A_MESSAGE * len(self.choice.labels) if self.choice is not None else 0
        )
        return (
            A_PROMPT
            + question
            + sum(A_MESSAGE + len(str(turn["content"]).encode()) for turn in self.messages)
        )


class EndpointClient:
    """The client of one OpenAI-compatible server, bound to the event loop that first uses it.

    Args:
        url: `https://host/v1`, or the whole address of its chat completions or decisions.
        model: Name of the model at the server.
        key_env: Environment variable with the API key; None sends no key.
        timeout_s: Seconds for one attempt, from the connection to the last byte; None if the caller
            bounds the time.
        connections: Largest number of simultaneous connections; None for any.
        proxy: HTTP proxy to the server.
        environment_proxies: True to use `HTTPS_PROXY` and similar variables.
        droppable: Options that are left out if the endpoint refuses them.
        api: API of the server; a decisions API takes requests with a `choice`.

    Raises:
        UsageError: The address or the key cannot be used.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_env: str | None = None,
        *,
        timeout_s: float | None = None,
        connections: int | None = None,
        proxy: str | None = None,
        environment_proxies: bool = False,
        droppable: Sequence[str] = DROPPABLE,
        api: Api = CHAT,
    ) -> None:
        self.url = address(url, api)
        self.model = model
        self.timeout_s = timeout_s
        self.proxy = proxy
        self._api: Api = api
        self.host = urlsplit(self.url).hostname or ""
        self.attempts = 0  # requests sent, including those that were refused for an option
        self._key = read_key(key_env) if key_env else ""
        self._spelled_key = _spellings(self._key) if self._key else None
        self._options = OptionNames(droppable)
        self._connections, self._environment_proxies = connections, environment_proxies
        self._client: httpx.AsyncClient | None = None

    @property
    def hosts(self) -> set[str]:
        """The hosts that are contacted, without a proxy of the environment."""
        return {host for host in (self.host, urlsplit(self.proxy or "").hostname) if host}

    async def ask(self, request: EndpointRequest) -> Reply:
        """The whole answer to a request.

        Raises:
            EndpointError: The endpoint gave no valid answer.
            NetworkError: This process may not contact the host.
        """
        begun = time.monotonic()
        async with self._answered(request, stream=False) as response:
            raw = b"".join([part async for part in _bounded(response, MAX_BYTES)])
        seconds = time.monotonic() - begun
        if request.choice is not None:
            return decisions.read_decision(self._masked(raw), seconds, request.choice)
        return read_reply(self._masked(raw), seconds, request.max_tokens)

    async def stream(
        self, request: EndpointRequest, reply: StreamedReply
    ) -> AsyncGenerator[Delta, None]:
        """Yield the pieces of an answer as they arrive; `reply` accumulates them.

        Raises:
            EndpointError: The endpoint gave no valid answer, or the answer broke off with an error.
            NetworkError: This process may not contact the host.
        """
        async with (
            self._answered(request, stream=True) as response,
            contextlib.aclosing(_lines(response)) as lines,
        ):
            async for line in lines:
                if line.startswith(b"data:"):
                    delta = reply.read(self._masked(line[5:].strip()), request.max_tokens)
                    if delta is not None:
                        yield delta

    async def is_there(self, limit_s: float) -> bool:
        """True if the server answers `GET /models` within `limit_s`
        seconds with a status below 500 (404 too).
        """
        url = self.url.removesuffix("/chat/completions") + "/models"
        try:
            # a new connection, since those of the client may all be busy
            async with (
                asyncio.timeout(limit_s),
                self._new_client(None) as client,
                client.stream("GET", url) as response,
            ):
                return response.status_code < 500
        except (httpx.HTTPError, httpx.InvalidURL, OSError):  # TimeoutError is one
            return False

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @contextlib.asynccontextmanager
    async def _answered(
        self, request: EndpointRequest, *, stream: bool
    ) -> AsyncIterator[httpx.Response]:
        """Yield the response with status 200; a request is sent again
        without the options that are refused.
        """
        url = (
            self.url
            if request.messages
            else self.url.removesuffix("/chat/completions") + "/completions"
        )
        left_out = set[str]()  # options that only this request leaves out
        while True:
            body = self._body(request, left_out, stream=stream)
            self.attempts += 1
            try:
                async with (
                    asyncio.timeout(self.timeout_s),
                    self._opened().stream("POST", url, json=body) as response,
                ):
                    if response.status_code == 200:
                        _require_plain(response)
                        yield response
                        return
                    status, pause_s = response.status_code, _retry_after_s(response.headers)
                    raw = b"".join([part async for part in _bounded(response, MAX_ERROR, cut=True)])
            except TimeoutError:
                raise EndpointError(f"no whole reply within {self.timeout_s:g} s", "slow") from None
            except httpx.TimeoutException as error:
                raise EndpointError(_named_error(error), "slow") from None
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
                raise EndpointError(_named_error(error), "unreachable") from None
            refusal = message(self._masked(raw))
            learnt = (
                self._options.adapt(refusal, body.keys() - left_out)
                if status in (400, 422)
                else None
            )
            if learnt is None:
                raise EndpointError(
                    f"HTTP {status}: {refusal}", "refused", status=status, pause_s=pause_s
                )
            left_out |= learnt

    def _body(
        self, request: EndpointRequest, left_out: set[str], *, stream: bool
    ) -> dict[str, object]:
        if request.choice is not None:
            return {"model": self.model} | decisions.body(
                self._api, request.choice, request.messages
            )
        options: dict[str, object] = {"max_tokens": request.max_tokens}
        options |= {} if request.temperature is None else {"temperature": request.temperature}
        options |= request.options
        options |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        body: dict[str, object] = (
            {"messages": list(request.messages)} if request.messages else {"prompt": request.prompt}
        )
        body |= self._options.named(
            {name: value for name, value in options.items() if name not in left_out}
        )
        body |= {"stop": list(request.stop)} if request.stop else {}
        body |= {"tools": list(request.tools)} if request.tools else {}
        return {"model": self.model} | body

    def _masked(self, raw: bytes) -> bytes:
        """A reply with the key masked, since an endpoint may repeat
        it and replies are written to files.
        """
        return self._spelled_key.sub(b"***", raw) if self._spelled_key else raw

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = self._new_client(self._connections)
        return self._client

    def _new_client(self, connections: int | None) -> httpx.AsyncClient:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return httpx.AsyncClient(
            headers=headers,
            follow_redirects=False,
            trust_env=self._environment_proxies,
            proxy=self.proxy,
            timeout=httpx.Timeout(
                self.timeout_s, connect=min(self.timeout_s or CONNECT_S, CONNECT_S), pool=None
            ),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            # a cookie from one user's request must not be sent with another's
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )


class OptionNames:
    """The names of options at an endpoint, learnt from its refusals."""

    def __init__(self, droppable: Sequence[str] = DROPPABLE) -> None:
        self._droppable = droppable
        self._names = {"max_tokens": "max_tokens"}  # "" for an option that it does not accept

    def named(self, options: Mapping[str, object]) -> dict[str, object]:
        """The options that the endpoint accepts, by its names;
        `top_logprobs` only together with `logprobs`.
        """
        taken = {
            name: value for key, value in options.items() if (name := self._names.get(key, key))
        }
        if "logprobs" not in taken:
            taken.pop("top_logprobs", None)
        return taken

    def adapt(self, refusal: str, sent: Set[str]) -> set[str] | None:
        """Learn from a refusal of the options that were sent.

        Returns: the options to leave out when this request is sent again; None if that cannot help.
        Requests that were in flight when the first one was refused are each sent again.
        """
        if "max_completion_tokens" in refusal and "max_tokens" in sent:
            self._names["max_tokens"] = "max_completion_tokens"
            return set()
        names = {name for name in self._droppable if name in sent and name in refusal}
        if UNKNOWN.search(refusal):
            self._names |= dict.fromkeys(names, "")
        return names or None


def _require_plain(response: httpx.Response) -> None:
    """Refuse a compressed reply: none was requested, and a few
    kilobytes can unpack to gigabytes.
    """
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise EndpointError(
            "the reply is compressed, which was not asked for", "unreadable", status=200
        )


async def _bounded(
    response: httpx.Response, limit: int, *, cut: bool = False
) -> AsyncGenerator[bytes, None]:
    """The raw body up to `limit` bytes; a longer one is cut, or raises EndpointError."""
    size = 0
    async for part in response.aiter_raw():
        size += len(part)
        if size > limit and not cut:
            raise EndpointError(f"a reply of more than {limit} bytes", "unreadable", status=200)
        yield part[: len(part) - max(0, size - limit)]
        if size >= limit and cut:
            return


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    begun = list[bytes]()
    async for part in _bounded(response, MAX_BYTES):
        *whole, rest = part.split(b"\n")
        for line in whole:
            yield b"".join([*begun, line]).rstrip(b"\r")
            begun.clear()
        begun.append(rest)
    yield b"".join(begun)


def _retry_after_s(headers: httpx.Headers) -> float:
    """Seconds from now of `Retry-After`, a number or a date; 0
    if it is missing, invalid or past.
    """
    value = headers.get("retry-after", "").strip()
    with contextlib.suppress(ValueError):
        return max(0.0, float(value)) if math.isfinite(float(value)) else 0.0
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _spellings(key: str) -> re.Pattern[bytes]:
    """A pattern for a key with any JSON escapes: `/` may be `\\/`, and any character `\\u002f`."""
    characters = ((re.escape(bytes([byte])), b"%02x" % byte) for byte in key.encode())
    return re.compile(b"".join(b"(?:\\\\?%s|\\\\u00(?i:%s))" % spelling for spelling in characters))


def _named_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# Addresses, keys, options


def address(url: str, api: Api = CHAT) -> str:
    """The address of an endpoint's chat completions or decisions.

    Raises:
        UsageError: `url` is not an http address, or holds a user, password or query, which would
            end up in files.
    """
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket without its end, a port beyond 65,535
        is_web = False
    if not is_web:
        raise UsageError(f"'{url}' is not an http or https address", hint="https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"the address of {parts.hostname} holds more than scheme, host and path",
            hint="a key goes into an environment variable, which is named beside it",
        )
    path = parts.path.rstrip("/") or "/v1"
    path += "" if path.endswith(PATHS[api]) else PATHS[api]
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def constraint(labels: Sequence[str], schema: str) -> dict[str, object]:
    """The options that constrain an answer to labels or to a JSON
    Schema; not every server supports them.
    """
    if labels:
        return {"structured_outputs": {"choice": list(labels)}}
    if schema:
        # vLLM refuses this key
        form = {key: part for key, part in json.loads(schema).items() if key != "uniqueItems"}
        return {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": form},
            }
        }
    return {}


def read_key(name: str) -> str:
    """The key in an environment variable.

    Raises:
        UsageError: The variable is not set, or its value cannot be sent in a header.
    """
    key = os.environ.get(name, "").strip()
    if not key:
        raise UsageError(
            f"the environment variable {name} is not set",
            hint=f"export {name}=..., from a secret store",
        )
    if not key.isascii() or not key.isprintable():
        raise UsageError(
            f"the environment variable {name} holds no key: it has characters that no header can "
            "have"
        )
    return key
