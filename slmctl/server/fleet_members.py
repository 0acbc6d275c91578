"""The members of a fleet: releases that can be loaded, and those that are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from slmctl.server.backends import Backend
from slmctl.server.collector import Questions
from slmctl.server.openai_requests import ServedModel
from slmctl.server.router import Router

State = Literal["on disk", "loading", "loaded", "failed"]
STATES: tuple[State, ...] = ("on disk", "loading", "loaded", "failed")


@dataclass(frozen=True)
class Served:
    """A release that is loaded: who answers, with the models that clients can ask for, the first one by default.

    Attributes:
        router: Decides for the default model; None keeps every answer local.
        questions: Tells which questions to the default model are new; None where nobody knows.
        notes: Warnings for the operator, logged at the start.
        close: Ends who answers.
    """

    backend: Backend
    models: Mapping[str, ServedModel]
    router: Router | None = None
    questions: Questions | None = None
    notes: Sequence[str] = ()
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class LoadableRelease:
    """A release that was verified, and can be loaded.

    Attributes:
        digest: Tells it from the one that its tag stood for before.
        models: The models of it by name, as its files tell them; none of a file without a task.
        bytes: Estimate of what its engine will hold.
        load: Loads it, for seconds; see `SlmctlError`.
    """

    digest: str
    models: Mapping[str, ServedModel]
    bytes: int
    load: Callable[[], Served]


@dataclass(eq=False)
class Loaded:
    """A release in memory, and the requests that it has.

    Attributes:
        bytes: What it holds; before its first answer at least what is expected, since it holds more from then on.
        users: Requests that it has.
        has_answered: A request has ended.
    """

    served: Served
    digest: str
    bytes: int
    users: int = 0
    has_answered: bool = False


@dataclass(eq=False)
class Member:
    """One model of the fleet.

    Attributes:
        find: Finds and verifies the release that its tag stands for now; None where it has no tag.
        has_policy: A policy decides about its answers.
        is_router: A task router: its labels are names of other members, which answer in its place.
        larger: The member that is asked where the policy does not keep an answer; empty for none.
        release: The one that is served, or will be at the next load.
        loaded: None while it is on disk.
        work: Requests that it has, those that wait for its load too.
        used: Its place in the order of use.
        fault: Why its newest release is not served; empty where it is.
        again_at: Time before which a load that failed is not tried again.
        is_spare: Only requests that have an answer already wait for its load.
        goes_for: The name of the one that it makes room for: it takes no new requests. Empty for none.
    """

    name: str
    release: LoadableRelease
    find: Callable[[], LoadableRelease] | None = None
    pin: bool = False
    weight: int = 1
    has_policy: bool = False
    is_router: bool = False
    larger: str = ""
    loaded: Loaded | None = None
    loading: asyncio.Task[None] | None = None
    work: int = 0
    used: int = 0
    fault: str = ""
    again_at: float | None = None
    is_spare: bool = False
    goes_for: str = ""
    loads: int = 0
    evictions: int = 0
    measured: dict[str, int] = field(default_factory=dict)  # bytes by digest, once they are known

    @property
    def state(self) -> State:
        if self.loaded is not None:
            return "loaded"
        if self.loading is not None:
            return "loading"
        return "failed" if self.again_at is not None else "on disk"

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The models by name, as far as they are known."""
        return self.loaded.served.models if self.loaded is not None else self.release.models

    @property
    def bytes(self) -> int:
        """Memory that it holds, or is expected to hold once it is loaded."""
        return self.loaded.bytes if self.loaded is not None else self.needed_by(self.release)

    def needed_by(self, release: LoadableRelease) -> int:
        """Bytes of a release once it is loaded: as measured, else as estimated."""
        return self.measured.get(release.digest, release.bytes)
