"""The general model behind an OpenAI-compatible endpoint: asked once, with a deadline, and with
listed fields alone.

Only a whole reply is an answer; everything else is an error with a reason. An endpoint that fails
several times in a row gets no request for a while (`Breaker`), so that no client waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import GeneralistConfig as Settings
from slmctl.errors import NetworkError
from slmctl.network.decisions import Choice
from slmctl.network.endpoint_replies import EndpointError, Reply
from slmctl.network.openai_client import EndpointClient, EndpointRequest

# options that are sent, besides model, messages and `max_tokens`
SAMPLING = ("temperature", "top_p")
PER_MESSAGE = ("role", "content")
FAILURES = 5  # in a row, until no request is sent there
FIRST_PAUSE_S = 5.0  # doubled with each further failure
LONGEST_PAUSE_S = 120.0
# statuses that are of this request, and say nothing about the next one
ITS_OWN_FAULT = (400, 413, 422)


class GeneralistError(Exception):
    """The generalist gave no answer.

    Attributes:
        reason: One of the router's reasons, such as `generalist-slow`.
        pause_s: Seconds for which the endpoint asks for no requests (Retry-After).
        counts: True where it counts as a failure of the endpoint.
    """

    def __init__(self, reason: str, *, pause_s: float = 0.0, counts: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause_s = pause_s
        self.counts = counts


class Breaker:
    """Lets requests through until they fail in a row; then, after a pause, one at a time to try.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed = 0
        self._until = 0.0
        self._trying = False

    @property
    def is_open(self) -> bool:
        """True while requests are held back."""
        return self._failed >= FAILURES or self._clock() < self._until

    def admits(self) -> bool:
        """Admit a request or not; an admitted one ends with `succeeded`, `failed` or `leaves`."""
        if self._clock() < self._until or (self._failed >= FAILURES and self._trying):
            return False
        self._trying = self._failed >= FAILURES
        return True

    def succeeded(self) -> None:
        self._failed = 0
        self._until = 0.0
        self._trying = False

    def failed(self, pause_s: float = 0.0) -> None:
        """Count a failure; `pause_s` is the pause that the endpoint itself asked for."""
        if self._clock() < self._until and pause_s <= 0:
            return  # one of several that were on their way when it was left alone
        self._failed, self._trying = self._failed + 1, False
        if self._failed >= FAILURES:
            pause_s = max(pause_s, FIRST_PAUSE_S * 2.0 ** min(self._failed - FAILURES, 10))
        if pause_s > 0:
            self._until = self._clock() + min(pause_s, LONGEST_PAUSE_S)

    def leaves(self) -> None:
        """Forget a request that ended without a sign of the
        endpoint, as when its client hung up.
        """
        self._trying = False


class Generalist:
    """The general model as the config names it. It follows no proxy that a variable of the
    environment names.

    Raises:
        UsageError: The address or the key cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.name = settings, settings.model
        self.endpoint = EndpointClient(
            settings.url,
            settings.model,
            settings.key_env,
            timeout_s=settings.timeout_s,
            proxy=settings.proxy,
            api=settings.api,
        )
        self.breaker = Breaker()

    async def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        *,
        tools: Sequence[JsonObject] = (),
        choice: Choice | None = None,
    ) -> Reply:
        """The whole answer.

        Args:
            messages: The conversation; of each message role and content leave.
            options: The caller's; of them `max_tokens`, `temperature` and `top_p` leave.
            tools: The functions that it may call; they leave as they are.
            choice: The question for a decisions API.

        Raises:
            GeneralistError: The generalist gave no whole answer.
        """
        request = EndpointRequest(
            [{name: message[name] for name in PER_MESSAGE} for message in messages],
            options.get("max_tokens") or self.settings.max_tokens,
            temperature=None,
            tools=tuple(tools),
            options={name: options[name] for name in SAMPLING if name in options},
            choice=choice,
        )
        try:
            reply = await self.endpoint.ask(request)
        except EndpointError as error:
            raise _failure(error) from None
        except NetworkError:
            raise GeneralistError("generalist-down") from None
        calls = bool(tools and reply.tool_calls)
        is_whole = reply.finish in ("stop", "length", "") or (
            calls and reply.finish == "tool_calls"
        )
        if not is_whole or not (calls or reply.text.strip()):
            raise GeneralistError("generalist-garbage")
        return reply


def _failure(error: EndpointError) -> GeneralistError:
    if error.kind != "refused":
        reason = {
            "slow": "generalist-slow",
            "unreachable": "generalist-down",
            "unreadable": "generalist-garbage",
        }
        return GeneralistError(reason[error.kind])
    if error.status == 429:
        return GeneralistError("generalist-busy", pause_s=error.pause_s)
    # a redirect too: the question goes where the config says, or nowhere
    pause_s = error.pause_s if error.status == 503 else 0.0
    return GeneralistError(
        "generalist-error", pause_s=pause_s, counts=error.status not in ITS_OWN_FAULT
    )
