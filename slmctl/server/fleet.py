"""The fleet: the models behind one address, each loaded when it is first asked for, within a budget of memory.

A server of one release is a fleet of one member that is pinned. What is counted is bytes: the estimate of a member that
is being loaded, and what its engine holds from then on. The least recently used member goes first, never one with
work and never a pinned one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from slmctl import hardware
from slmctl.config import ServeConfig
from slmctl.console import size
from slmctl.errors import FullError, SlmctlError, UsageError
from slmctl.server.api_keys import Key, KeyRing
from slmctl.server.backends import Backend
from slmctl.server.bad_requests import BadRequestError
from slmctl.server.collector import Collector, Questions
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics, Samples
from slmctl.server.openai_requests import ServedModel, find_model
from slmctl.server.request_run import RequestFailedError
from slmctl.server.routed import Escalation
from slmctl.server.router import Router
from slmctl.server.shadow import Shadow

DEFAULT = "default"
AGAIN_S = 10.0  # after a load that failed, before it is tried once more
LOADERS = 2  # models that are loaded at the same time
LESS = "raise it, pin fewer models, or lower serve.context_length or serve.sequences"
ROOM_S = 2.0  # that a cold start waits for a model without work
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
    """A release in memory, and the requests that it has."""

    served: Served
    digest: str
    bytes: int
    users: int = 0


@dataclass(eq=False)
class Member:
    """One model of the fleet.

    Attributes:
        find: Finds and verifies the release that its tag stands for now; None where it has no tag.
        has_policy: A policy decides about its answers.
        is_router: A task router: its labels are names of other members, which answer in its place.
        release: The one that is served, or will be at the next load.
        loaded: None while it is on disk.
        work: Requests that it has, those that wait for its load too.
        used: Its place in the order of use.
        fault: Why its newest release is not served; empty where it is.
        again_at: Time before which a load that failed is not tried again.
    """

    name: str
    release: LoadableRelease
    find: Callable[[], LoadableRelease] | None = None
    pin: bool = False
    weight: int = 1
    has_policy: bool = False
    is_router: bool = False
    loaded: Loaded | None = None
    loading: asyncio.Task[None] | None = None
    work: int = 0
    used: int = 0
    fault: str = ""
    again_at: float | None = None
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
        return self.loaded.bytes if self.loaded is not None else _needed(self, self.release)


class Fleet:
    """The members, the default one first, and what they share.

    Args:
        budget: Bytes that they may hold together; None for what the machine has.
        collector: Writes answers down; None for none.
        escalation: The routers' way to the generalist.
    """

    def __init__(
        self,
        members: Sequence[Member],
        settings: ServeConfig,
        *,
        keys: KeyRing | None = None,
        collector: Collector | None = None,
        escalation: Escalation | None = None,
        budget: int | None = None,
    ) -> None:
        self.members = {member.name: member for member in members}
        self.settings, self.keys, self.collector, self.budget = settings, keys, collector, budget
        self.escalation = escalation or Escalation()
        self.shadow: Shadow | None = None  # of the default member
        self._uses = itertools.count(1)
        self._reserved = 0  # bytes of what is being loaded
        self._leaving: list[Loaded] = []  # with their last answers
        self._room = asyncio.Lock()  # held while bytes are counted
        self._idle = asyncio.Event()  # something has no work any more
        self._tasks: set[asyncio.Task[None]] = set()
        # threads of their own: those of the loop check requests meanwhile
        self._loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="load")
        self._stopping = False

    @property
    def default(self) -> Member:
        return next(iter(self.members.values()))

    @property
    def has_policies(self) -> bool:
        """True where a policy decides for a member."""
        return any(member.has_policy for member in self.members.values())

    # Before the server runs

    def require_fit(self) -> None:
        """Refuse a budget that the pinned members pass, or any other one beside them.

        Raises:
            UsageError: They do; nothing has been loaded.
        """
        if self.budget is None:
            return
        pinned = [member for member in self.members.values() if member.pin]
        names, needed = ", ".join(member.name for member in pinned), sum(member.bytes for member in pinned)
        limit = f"and serve.memory is {size(self.budget)}"
        if needed > self.budget:
            what = "the pinned model needs" if len(pinned) == 1 else "the pinned models need"
            raise UsageError(f"{what} about {size(needed)} ({names}), {limit}", hint=LESS)
        for member in self.members.values():
            if not member.pin and needed + member.bytes > self.budget:
                beside = f" beside the pinned {names}" if pinned else ""
                raise UsageError(
                    f"model '{member.name}' needs about {size(member.bytes)}{beside}, {limit}",
                    hint="raise it, leave the model out, or lower serve.context_length or serve.sequences",
                )

    def load_pinned(self) -> None:
        """Load the pinned members.

        Raises:
            SlmctlError: One cannot be loaded, or they hold more than the budget.
        """
        for member in self.members.values():
            if member.pin:
                self._keep(member, member.release, member.release.load())
        held = self._held()
        if self.budget is not None and held > self.budget:
            raise UsageError(
                f"the pinned models hold {size(held)}, and serve.memory is {size(self.budget)}",
                hint=LESS,
            )

    def close_all(self) -> None:
        """End whoever answers."""
        for member in self.members.values():
            loaded, member.loaded = member.loaded, None
            if loaded is not None:
                loaded.served.close()

    # Names

    def models(self, key: Key) -> dict[str, ServedModel]:
        """The models that a key may ask, by name, the default one first."""
        return {
            name: model
            for member in self.members.values()
            for name, model in member.models.items()
            if key.may_ask(name)
        }

    def find(self, name: object, key: Key) -> tuple[Member, ServedModel]:
        """The member and the model that a request names; the key's first one where it names none.

        Raises:
            BadRequestError: There is no such model, or it is not for this key.
        """
        models = self.models(key)
        model = next(iter(models.values()), None) if name in (None, DEFAULT) else find_model(models, name)
        if model is None:
            raise BadRequestError(
                f"model '{str(name)[:100]}' is not served here; served: {', '.join(models)}",
                "model",
                status=404 if isinstance(name, str | None) else 400,
                code="model_not_found",
            )
        return next(member for member in self.members.values() if model.name in member.models), model

    # While it runs

    def start(self, log: Log, metrics: Metrics) -> None:
        """Answer from now on, in the running loop."""
        self._log, self._metrics = log, metrics
        metrics.include(FAMILIES, self.figures)
        for member in self.members.values():
            if member.loaded is not None:
                member.loaded.served.backend.start(log, metrics)

    @property
    def build(self) -> str:
        """The engine of the loaded members; empty where none is loaded."""
        return next((loaded.served.backend.build for loaded in self._all()), "")

    @property
    def notes(self) -> list[str]:
        """Warnings for the operator, of the loaded members."""
        return [note for loaded in self._all() for note in loaded.served.notes]

    @property
    def ready(self) -> bool:
        """True while every pinned member answers."""
        return all(
            member.loaded is not None and member.loaded.served.backend.ready
            for member in self.members.values()
            if member.pin
        )

    async def look(self) -> None:
        """Ask engines elsewhere for a sign of life."""
        for loaded in self._all():
            await loaded.served.backend.look()

    @contextlib.contextmanager
    def at_work(self, member: Member) -> Iterator[None]:
        """Keep a member loaded, once it is."""
        member.work += 1
        member.used = next(self._uses)
        try:
            yield
        finally:
            member.work -= 1
            member.used = next(self._uses)
            self._tell_idle()

    async def lease(self, member: Member) -> Loaded:
        """The member's release in memory, to answer one request; `give_back` ends that.

        Raises:
            RequestFailedError: It cannot be loaded, or not now.
        """
        while member.loaded is None:
            if member.loading is None:
                self._require_hope(member)
                member.loading = asyncio.create_task(self._load(member))
                member.loading.add_done_callback(_seen)
            await asyncio.shield(member.loading)
        member.loaded.users += 1
        return member.loaded

    def give_back(self, loaded: Loaded) -> None:
        """End a lease."""
        loaded.users -= 1
        self._tell_idle()

    def _require_hope(self, member: Member) -> None:
        if member.again_at is not None and (left := member.again_at - time.monotonic()) > 0:
            raise RequestFailedError(f"model '{member.name}' cannot be loaded", "model_failed", 503, retry_after_s=left)

    async def _load(self, member: Member) -> None:
        release, begun = member.release, time.monotonic()
        try:
            self._keep(member, release, await self._opened(member, release))
        except FullError as error:
            self._log.event("model_not_loaded", model=member.name, error=error.message)
            raise _no_room(member) from None
        except SlmctlError as error:
            member.fault, member.again_at = error.message, time.monotonic() + AGAIN_S
            self._log.event("model_not_loaded", model=member.name, error=error.message)
            raise RequestFailedError(
                f"model '{member.name}' cannot be loaded", "model_failed", 503, retry_after_s=AGAIN_S
            ) from None
        finally:
            member.loading = None
        assert member.loaded is not None
        seconds = round(time.monotonic() - begun, 3)
        self._log.event("model_loaded", model=member.name, bytes=member.loaded.bytes, seconds=seconds)
        self._beside(self._within_budget(member))  # nobody waits for it

    async def _opened(self, member: Member, release: LoadableRelease) -> Served:
        """A release in memory, within the budget and started.

        Raises:
            RequestFailedError: There is no room for it now.
            SlmctlError: It cannot be loaded.
        """
        needed = _needed(member, release)
        await self._make_room(member, needed)
        try:
            served = await asyncio.get_running_loop().run_in_executor(self._loaders, release.load)
        finally:
            self._reserved -= needed
        served.backend.start(self._log, self._metrics)
        return served

    def _keep(self, member: Member, release: LoadableRelease, served: Served) -> None:
        held = served.backend.held_bytes()
        member.loaded = Loaded(served, release.digest, held)
        member.release, member.fault, member.again_at = release, "", None
        member.measured[release.digest] = held
        member.loads += 1

    # Memory

    def _all(self) -> list[Loaded]:
        return [member.loaded for member in self.members.values() if member.loaded is not None] + self._leaving

    def _held(self) -> int:
        return sum(loaded.bytes for loaded in self._all())

    def _free(self) -> int:
        """Bytes that another member may take."""
        machine = hardware.available_bytes() - self._reserved
        return machine if self.budget is None else min(machine, self.budget - self._held() - self._reserved)

    def _evictable(self) -> list[Member]:
        """Members without work that are not pinned, the least recently used first."""
        members = [
            member
            for member in self.members.values()
            if member.loaded is not None and not member.pin and member.work == 0
        ]
        return sorted(members, key=lambda member: member.used)

    async def _make_room(self, member: Member, needed: int) -> None:
        """Reserve bytes; members without work go for it.

        Raises:
            RequestFailedError: Too many have work.
        """
        ends_at = time.monotonic() + ROOM_S
        while True:
            async with self._room:
                await asyncio.to_thread(self._measure)
                evictable = self._evictable()
                if needed <= self._free() + sum(other.bytes for other in evictable):
                    while needed > self._free() and (evictable := self._evictable()):
                        await self._evict(evictable[0])
                    if needed <= self._free():
                        self._reserved += needed
                        return
            self._idle.clear()
            left = ends_at - time.monotonic()
            if left <= 0 or self._stopping:
                self._log.event("model_has_no_room", model=member.name, bytes=needed, free=max(0, self._free()))
                raise _no_room(member)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), left)

    def _measure(self) -> None:
        for loaded in self._all():
            loaded.bytes = max(loaded.served.backend.held_bytes(), 1)

    async def _evict(self, member: Member) -> None:
        loaded, member.loaded = member.loaded, None
        assert loaded is not None and loaded.users == 0
        member.measured[loaded.digest] = loaded.bytes
        member.evictions += 1
        self._log.event("model_evicted", model=member.name, bytes=loaded.bytes)
        self._leaving.append(loaded)
        await self._end(loaded)

    async def _within_budget(self, newest: Member) -> None:
        """Evict what the newest member, which holds more than was estimated, has no room for."""
        async with self._room:
            while self.budget is not None and self._held() + self._reserved > self.budget:
                others = [member for member in self._evictable() if member is not newest]
                if not others:
                    return
                await self._evict(others[0])

    async def _end(self, loaded: Loaded) -> None:
        await loaded.served.backend.close()
        await asyncio.to_thread(loaded.served.close)
        self._leaving.remove(loaded)

    def _tell_idle(self) -> None:
        self._idle.set()

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def measure(self) -> None:
        """Count the bytes of every engine again."""
        await asyncio.to_thread(self._measure)

    # Tags

    @property
    def follows(self) -> bool:
        """True where a member has a tag."""
        return any(member.find is not None for member in self.members.values())

    async def follow(self) -> None:
        """Read every tag again; new requests go to what they stand for, running answers end where they began."""
        moved = []
        for member in self.members.values():
            if member.find is None:
                continue
            try:
                if await self._followed(member, member.find):
                    moved.append(member.name)
            except (SlmctlError, RequestFailedError) as error:
                member.fault = error.message
                self._log.event("not_followed", model=member.name, error=error.message)
                continue
        if moved or not self.faults:
            self._log.event("followed", models=moved or None)

    async def _followed(self, member: Member, find: Callable[[], LoadableRelease]) -> bool:
        """Serve what a tag stands for; False where that is served already."""
        release = await asyncio.to_thread(find)
        if member.loading is not None:
            await asyncio.wait({member.loading})
        if release.digest == member.release.digest:
            member.fault, member.again_at = "", None
            return False
        old = member.loaded
        if old is None:
            member.release, member.fault, member.again_at = release, "", None
            return True
        with self.at_work(member):  # so that it is not evicted for its own successor
            served = await self._opened(member, release)
        self._keep(member, release, served)
        self._leaving.append(old)
        self._beside(self._retire(old))
        return True

    async def _retire(self, old: Loaded) -> None:
        while old.users:
            await asyncio.sleep(0.05)
        await self._end(old)

    @property
    def faults(self) -> list[str]:
        """The members whose newest release is not served."""
        return [member.name for member in self.members.values() if member.fault]

    async def close(self) -> None:
        """End what goes on in the loop; `close_all` ends who answers."""
        self._stopping = True
        self._tell_idle()
        loads = [member.loading for member in self.members.values() if member.loading is not None]
        await asyncio.gather(*loads, *self._tasks, return_exceptions=True)
        if self.shadow is not None:
            await self.shadow.close()
        for loaded in self._all():
            await loaded.served.backend.close()
        await self.escalation.close()

    def figures(self) -> dict[str, Samples]:
        """Every figure of FAMILIES."""
        members = self.members.values()
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


def _needed(member: Member, release: LoadableRelease) -> int:
    """Bytes of a release once it is loaded: as measured, else as estimated."""
    return member.measured.get(release.digest, release.bytes)


def _no_room(member: Member) -> RequestFailedError:
    return RequestFailedError(
        f"there is no memory for model '{member.name}' now: the models that are loaded have work or are pinned",
        "no_room",
        503,
        retry_after_s=ROOM_S,
    )


def _seen(task: asyncio.Task[None]) -> None:
    """Retrieve the error of a load whose requests have all gone, or asyncio would log it."""
    if not task.cancelled():
        task.exception()
