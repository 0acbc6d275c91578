"""A release that can be served, and a model that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from slmctl.server.backends import Backend
from slmctl.server.forms.request import ServedModel
from slmctl.server.router import Router


@dataclass(frozen=True)
class Release:
    """A release that was verified, and can be loaded.

    Attributes:
        digest: The artifact's; another one after the tag has moved.
        models: Its models by name, as its files tell them; none of a file without a task.
        bytes: Estimate of the memory that its engine will hold.
        load: Loads it, for seconds; raises SlmctlError.
        newest: Finds and verifies the current release of its tag; None without a tag.
        pin: It is loaded at the start, and stays.
    """

    name: str
    digest: str
    models: Mapping[str, ServedModel]
    bytes: int
    load: Callable[[], RunningModel]
    newest: Callable[[], Release] | None = None
    pin: bool = False


@dataclass(eq=False)
class RunningModel:
    """A release in memory, and the requests that it has.

    Attributes:
        models: Its models by name, the default one first.
        router: Decides for the default model; None keeps every answer local.
        notes: Warnings for the operator, logged at the start.
        close: Ends its engine.
        bytes: Memory that it holds; before its first answer at least the estimate, since it grows
            until then.
        used: When a request last came or went, in seconds of the monotonic clock.
    """

    backend: Backend
    models: Mapping[str, ServedModel]
    router: Router | None = None
    notes: Sequence[str] = ()
    close: Callable[[], None] = lambda: None
    bytes: int = 0
    users: int = 0
    used: float = 0.0
    has_answered: bool = False
    is_idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def default(self) -> ServedModel:
        return next(iter(self.models.values()))

    def router_of(self, model: ServedModel) -> Router | None:
        """The router that decides for one of the models.

        A policy was fitted on the release's own answers, not on answers of an adapter over it.
        """
        return self.router if model is self.default else None

    def measure(self) -> None:
        held = self.backend.held_bytes()
        self.bytes = (held or self.bytes) if self.has_answered else max(held, self.bytes)
