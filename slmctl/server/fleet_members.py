"""The members of a fleet: releases that can be loaded, and those that are."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from slmctl.server.backends import Backend
from slmctl.server.metrics import Samples
from slmctl.server.openai_requests import ServedModel
from slmctl.server.router import Router

State = Literal["on disk", "loading", "loaded", "failed"]
STATES: tuple[State, ...] = ("on disk", "loading", "loaded", "failed")
FAMILIES = {  # name: kind, help
    "slmctl_model_state": ("gauge", "1 for the state that a model is in: on disk, loading, loaded or failed."),
    "slmctl_model_bytes": ("gauge", "Bytes that the engine of a model holds."),
    "slmctl_model_loads": ("counter", "Times that a model was loaded."),
    "slmctl_model_evictions": ("counter", "Times that a model made room for another one."),
    "slmctl_model_fault": ("gauge", "1 for a model whose newest release could not be loaded."),
}


@dataclass(frozen=True)
class Served:
    """A release that is loaded: who answers, with the models that clients can ask for, the first one by default.

    Attributes:
        router: Decides for the default model; None keeps every answer local.
        notes: Warnings for the operator, logged at the start.
        close: Ends who answers.
    """

    backend: Backend
    models: Mapping[str, ServedModel]
    router: Router | None = None
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
        release: The one that is served, or will be at the next load.
        loaded: None while it is on disk.
        work: Requests that it has, those that wait for its load too.
        used: When it was last used, in seconds of the monotonic clock.
        evicted_at: When it last had to go.
        fault: Why its newest release is not served; empty where it is.
        again_at: Time before which a load that failed is not tried again.
        goes_for: The name of the one that it makes room for: it takes no new requests. Empty for none.
    """

    name: str
    release: LoadableRelease
    find: Callable[[], LoadableRelease] | None = None
    pin: bool = False
    weight: int = 1
    has_policy: bool = False
    loaded: Loaded | None = None
    loading: asyncio.Task[None] | None = None
    work: int = 0
    used: float = 0.0
    evicted_at: float = -math.inf
    fault: str = ""
    again_at: float | None = None
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


def figures(members: Collection[Member]) -> dict[str, Samples]:
    """Every figure of FAMILIES."""
    return {
        "slmctl_model_state": [
            ({"model": member.name, "state": state}, float(member.state == state))
            for member in members
            for state in STATES
        ],
        "slmctl_model_bytes": [
            ({"model": member.name}, float(member.loaded.bytes if member.loaded else 0)) for member in members
        ],
        "slmctl_model_loads": [({"model": member.name}, float(member.loads)) for member in members],
        "slmctl_model_evictions": [({"model": member.name}, float(member.evictions)) for member in members],
        "slmctl_model_fault": [({"model": member.name}, float(bool(member.fault))) for member in members],
    }
