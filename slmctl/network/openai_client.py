"""Questions -> answers over HTTP: the client for any OpenAI-compatible endpoint.

What is asked here leaves this process, so nothing calls it unless the user named the endpoint. The key
comes from an environment variable, and is in no log, error or file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from slmctl import console
from slmctl.errors import NetworkError, UsageError
from slmctl.network import guard

ATTEMPTS = 6  # for one request, the first one included
FIRST_WAIT_S = 0.5  # after the first failure; doubled after each further one
LONGEST_WAIT_S = 30.0  # also where the endpoint asks for more
MAX_BYTES = 8_000_000  # of one reply
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # what may pass if asked again
HOPELESS = {401: "the key is not accepted", 403: "the key may not do this", 404: "there is no such model or path"}
GIVE_UP_AFTER = 16  # requests in a row that failed in every attempt
# What an endpoint may not know; it is asked again without what its refusal names.
OPTIONAL = ("structured_outputs", "logprobs", "stream_options", "seed")
DROPPED = (*OPTIONAL, "response_format", "temperature", "top_p")  # of an answer that is checked afterwards


@dataclass(frozen=True)
class Ask:
    """One request: the conversation, how long its answer may become, in tokens, the tools that it may call, and
    options that the endpoint may refuse by name."""

    messages: Sequence[dict[str, str]]
    max_tokens: int = 256
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    tools: tuple[Any, ...] = ()
    optional: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """One answer. Counts are in tokens, None where the endpoint gives none; `seconds` is of the attempt that worked."""

    text: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    confidence: float | None = None  # where the endpoint tells it
    tool_calls: list[Any] | None = None  # as the endpoint wrote them


@dataclass(frozen=True)
class Refusal:
    """Why one request has no answer; the others go on."""

    message: str
    status: int = 0


class Remote:
    """An endpoint, asked with a bounded number of requests at a time; each is tried again while that may help.

    Args:
        url: `https://host/v1`, or the whole address of its chat completions.
        model: The name it knows the model by.
        key_env: The environment variable that holds the key; None sends none.
        concurrency: Requests in flight.
        timeout_s: For one attempt, from the connection to the last byte.

    Raises:
        UsageError: The address is none, or the variable is not set.
    """

    def __init__(
        self, url: str, model: str, key_env: str | None = None, concurrency: int = 8, timeout_s: float = 60.0
    ) -> None:
        self.url, self.model = completions(url), model
        self.host = urlsplit(self.url).hostname or ""
        self.concurrency, self.timeout_s = concurrency, timeout_s
        self.retries = 0  # attempts beyond the first, over all requests
        self._key = read_key(key_env) if key_env else ""
        self._headers = {"Authorization": f"Bearer {self._key}"} if key_env else {}
        self._wordings: defaultdict[str, Wording] = defaultdict(Wording)  # by address
        self._stop = threading.Event()
        self._jitter = random.Random()  # noqa: S311 - spreads retries, hides nothing
        self._failed_in_a_row, self._worked = 0, False
        self._said = False

    def ask_all(self, requests: Iterable[Ask]) -> Iterator[tuple[int, Reply | Refusal]]:
        """Answer every request, in any order: its index, and the answer or why there is none.

        Leaving the iteration early ends the requests in flight.

        Raises:
            NetworkError: The endpoint cannot be reached at all, or refuses the key or the model.
        """
        if not self._said:
            console.say(f"  contacting {', '.join(sorted(self._hosts()))}")
            self._said = True
        self._stop.clear()
        self._failed_in_a_row, self._worked = 0, False
        numbered = enumerate(requests)
        with (
            guard.network(f"asking {self.host}", hosts=self._hosts()),
            httpx.Client(headers=self._headers, timeout=self.timeout_s, limits=self._limits()) as client,
            ThreadPoolExecutor(self.concurrency, thread_name_prefix="remote") as pool,
        ):
            running: dict[Future[Reply | Refusal], int] = {}
            try:
                for index, request in numbered:
                    running[pool.submit(self._ask, client, request)] = index
                    if len(running) >= 2 * self.concurrency:
                        yield from self._finished(running)
                while running:
                    yield from self._finished(running)
            finally:
                self._stop.set()
                for future in running:
                    future.cancel()

    def _finished(self, running: dict[Future[Reply | Refusal], int]) -> Iterator[tuple[int, Reply | Refusal]]:
        """What is done by now; if that ends it all, first every answer that was still got."""
        hopeless: BaseException | None = None
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            index, error = running.pop(future), future.exception()
            if error is None:
                error = self._judge(future.result())
                yield index, future.result()
            hopeless = hopeless or error
        if hopeless is not None:
            self._stop.set()
            for future in wait(running).done:
                if future.exception() is None and isinstance(future.result(), Reply):
                    yield running[future], future.result()
            raise hopeless

    def _judge(self, found: Reply | Refusal) -> NetworkError | None:
        """Give up on an endpoint that has answered nothing for long; that it refuses some requests is no sign yet."""
        if isinstance(found, Reply):
            self._failed_in_a_row, self._worked = 0, True
            return None
        if found.status == 400 and self._worked:
            return None
        self._failed_in_a_row += 1
        if self._failed_in_a_row < GIVE_UP_AFTER * (4 if found.status == 400 else 1):
            return None
        return NetworkError(
            f"{self.host} has answered none of {self._failed_in_a_row} requests in a row: {found.message}"
        )

    def _ask(self, client: httpx.Client, request: Ask) -> Reply | Refusal:
        """One request with all its attempts."""
        problem, url, bad, failed = Refusal("stopped"), "", "", 0
        while not self._stop.is_set():
            pause = 0.0
            try:
                with self._place(bad) as url:
                    body = self._body(request, url)
                    status, headers, raw, seconds = self._attempt(client, url, body)
            except httpx.RequestError as error:
                problem = Refusal(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
            else:
                if status == 200:
                    reply = read_reply(raw, seconds)
                    if reply is not None:
                        return reply
                    problem = Refusal("the reply is no chat completion", status)
                else:
                    problem = Refusal(f"HTTP {status}: {message(raw)}", status)
                    if status in HOPELESS:
                        self._refused(url, f"{HOPELESS[status]} ({problem.message})")
                        self.retries += 1
                        continue
                    if status in (400, 422) and self._wordings[url].adapt(raw, body):
                        self.retries += 1
                        continue
                    if status not in AGAIN:
                        return problem
                    pause = asked_to_wait(headers)
            bad, failed = url, failed + 1
            if failed == ATTEMPTS:
                return Refusal(f"{problem.message} ({ATTEMPTS} attempts)", problem.status)
            self.retries += 1
            longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (failed - 1))
            self._stop.wait(max(min(pause, LONGEST_WAIT_S), self._jitter.uniform(longest / 2, longest)))
        return problem

    def _attempt(self, client: httpx.Client, url: str, body: dict[str, Any]) -> tuple[int, httpx.Headers, bytes, float]:
        """Status, headers and body of one attempt; a reply that drips or does not end is cut off."""
        begun, raw = time.monotonic(), b""
        with client.stream("POST", url, json=body) as response:
            for chunk in response.iter_bytes():
                raw += chunk
                if time.monotonic() - begun > self.timeout_s or self._stop.is_set():
                    raise httpx.ReadTimeout(f"no whole reply within {self.timeout_s:g} s")
                if len(raw) > MAX_BYTES:
                    raise httpx.ReadError(f"a reply of more than {MAX_BYTES} bytes")
            # an endpoint that repeats the key, in an error or an answer, must not bring it into a file
            raw = raw.replace(self._key.encode(), b"***") if self._key else raw
            return response.status_code, response.headers, raw, time.monotonic() - begun

    @contextlib.contextmanager
    def _place(self, failed: str) -> Iterator[str]:
        """Where the next attempt goes, for as long as it takes; `failed` is where the last one failed."""
        yield self.url

    def _refused(self, url: str, why: str) -> None:
        """See whether anybody is left to ask.

        Raises:
            NetworkError: No request can get past this.
        """
        raise NetworkError(f"{urlsplit(url).hostname}: {why}")

    def _body(self, request: Ask, url: str) -> dict[str, Any]:
        options = {"max_tokens": request.max_tokens, "temperature": request.temperature, **request.optional}
        more = {"stop": list(request.stop)} if request.stop else {}
        more |= {"tools": list(request.tools)} if request.tools else {}
        return {"model": self.model, "messages": list(request.messages), **self._wordings[url].named(options), **more}

    def _limits(self) -> httpx.Limits:
        return httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)

    def _hosts(self) -> set[str]:
        """The endpoint, and the proxy that this machine reaches it through."""
        return guard.on_the_way(self.url)


class Wording:
    """What an endpoint calls the options; learned from its refusals."""

    def __init__(self) -> None:
        self._names = {"max_tokens": "max_tokens"}  # "" for an option that it does not take

    def named(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that the endpoint takes, by its own names."""
        return {name: value for key, value in options.items() if (name := self._names.get(key, key))}

    def adapt(self, raw: bytes, sent: Mapping[str, Any]) -> bool:
        """Learn from a refusal of what was sent how an option is called, or that it is not taken; True to ask again.

        Several requests may be on their way when the first of them teaches it: each is to be asked again.
        """
        said = message(raw)
        if "max_completion_tokens" in said and "max_tokens" in sent:
            self._names["max_tokens"] = "max_completion_tokens"
            return True
        for option in DROPPED:
            if option in said and option in sent:
                self._names[option] = ""
                return True
        return False


def completions(url: str) -> str:
    """The address of an endpoint's chat completions.

    Raises:
        UsageError: It is no http address, or holds a name, a key or a query, which would end up in files.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"'{url}' is no http or https address", hint="https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"the address of {parts.hostname} holds more than scheme, host and path",
            hint="a key goes into an environment variable, which is named beside it",
        )
    path = parts.path.rstrip("/") or "/v1"
    path += "" if path.endswith("/chat/completions") else "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def held(labels: Sequence[str], schema: str) -> dict[str, Any]:
    """The options that hold an answer to labels, or to a JSON Schema, where the server knows them."""
    if labels:
        return {"structured_outputs": {"choice": list(labels)}}
    if schema:
        form = {"name": "answer", "schema": json.loads(schema)}
        return {"response_format": {"type": "json_schema", "json_schema": form}}
    return {}


def confidence(own: Any, logprobs: Sequence[float]) -> float | None:
    """How sure an endpoint is: as slmctl's own says it, else the probability of the tokens that it tells."""
    if isinstance(own, int | float):
        return float(own)
    total = sum(logprobs)
    return math.exp(total) if logprobs and total <= 0 else None


def read_key(name: str) -> str:
    """The key in an environment variable.

    Raises:
        UsageError: It is not set.
    """
    key = os.environ.get(name, "").strip()
    if not key:
        raise UsageError(f"the environment variable {name} is not set", hint=f"export {name}=..., from a secret store")
    return key


def read_reply(raw: bytes, seconds: float) -> Reply | None:
    """The answer in a body, or None where there is none."""
    with contextlib.suppress(ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        body = json.loads(raw)
        choice, usage = body["choices"][0], body.get("usage") or {}
        text, calls = choice["message"].get("content"), choice["message"].get("tool_calls")
        if (text is None and "content" in choice["message"]) or calls:  # a refusal to answer is an answer without words
            text = text or ""
        counts = [usage.get(f"{kind}_tokens") for kind in ("prompt", "completion")]
        prompt, completion = (count if type(count) is int and count >= 0 else None for count in counts)
        sure = (body.get("slmctl") or {}).get("confidence")
        if isinstance(text, str):
            finish = str(choice.get("finish_reason") or "")
            called = calls if isinstance(calls, list) and calls else None
            return Reply(text, finish, prompt, completion, seconds, confidence(sure, _logprobs(choice)), called)
    return None


def _logprobs(choice: dict[str, Any]) -> list[float]:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return [float(token["logprob"]) for token in choice["logprobs"]["content"]]
    return []


def message(raw: bytes) -> str:
    """What an endpoint says is wrong, short."""
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
        error = json.loads(raw)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:200]
    return raw[:80].decode(errors="replace")


def asked_to_wait(headers: httpx.Headers) -> float:
    """Seconds that `Retry-After` asks for, as a number or a date; 0 for none."""
    value = headers.get("retry-after", "").strip()
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
