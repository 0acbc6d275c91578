"""The fleet: the models behind one address, each loaded when it is first asked for, within a budget of memory.

A server of one release is a fleet of one member that is pinned. What is counted is bytes: the estimate of a member that
is being loaded, and what its engine holds from then on. The least recently used member goes first, one with work after
its last answer, and a pinned one never.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from slmctl import hardware
from slmctl.config import ServeConfig
from slmctl.console import size
from slmctl.errors import FullError, SlmctlError, UsageError
from slmctl.server.api_keys import Key, KeyRing
from slmctl.server.bad_requests import BadRequestError
from slmctl.server.collector import Collector
from slmctl.server.fleet_members import FAMILIES, LoadableRelease, Loaded, Member, Served, figures
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics
from slmctl.server.openai_requests import ServedModel, find_model
from slmctl.server.request_run import RequestFailedError
from slmctl.server.routed import Escalation

DEFAULT = "default"
AGAIN_S = 10.0  # after a load that failed, before it is tried once more
LOADERS = 2  # models that are loaded at the same time
LESS = "raise it, pin fewer models, or lower serve.context_length or serve.sequences"
WAIT = 0.9  # share of an answer's time that a cold start waits for room, so that its requests are told of it
SHORT_S = 2.0  # that one waits for which nobody makes room
CALM_S = 2.0  # without a request, after which a model goes at once
RECENT_S = 60.0  # after it had to go, in which a model waits CALM_S before it takes the room of one that is asked
RETRY_S = 2.0  # after a cold start that found no room
MEASURED_S = 0.25  # for which the bytes of engines are taken to stay as they are


class Fleet:
    """The members, the default one first, and what they share.

    Args:
        budget: Bytes that they may hold together; None for what the machine has.
        discover: By name, what finds and verifies a release that has come beside the members whose names it gets.
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
        discover: Callable[[Collection[str]], Mapping[str, Callable[[], Member]]] | None = None,
    ) -> None:
        self.members = {member.name: member for member in members}
        self.settings, self.keys, self.collector, self.budget = settings, keys, collector, budget
        self.escalation, self._discover = escalation or Escalation(), discover
        self._wanted: dict[str, int] = {}  # bytes of the members that others make room for, and of those being loaded
        self._loading: dict[str, int] = {}  # of the latter
        self._leaving: list[Loaded] = []  # with their last answers
        self._following: set[str] = set()  # members whose next release is being loaded
        self._measured_at = 0.0
        self._room = asyncio.Lock()  # held while bytes are counted
        self._changed = asyncio.Event()  # of now: set, and followed by another one, when there may be room
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
        names = ", ".join(member.name for member in pinned)
        needed = self._needed_always()
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

    def _needed_always(self) -> int:
        """Bytes of what is never evicted."""
        return sum(member.bytes for member in self.members.values() if member.pin)

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
        metrics.include(FAMILIES, lambda: figures(self.members.values()))
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
        member.used = time.monotonic()
        try:
            yield
        finally:
            member.work -= 1
            member.used = time.monotonic()
            self._tell()

    async def opened(self, member: Member) -> None:
        """Wait while a member makes room for another one; its place in the order of use stays as it is.

        Raises:
            RequestFailedError: The server stops.
        """
        while member.goes_for:
            if self._stopping:
                raise RequestFailedError("the server is being stopped", "server_stopping", 503)
            await self._changed.wait()

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
        if not loaded.has_answered:
            loaded.has_answered = True
            loaded.bytes = loaded.served.backend.held_bytes() or loaded.bytes
        self._tell()

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
        needed = member.needed_by(release)
        await self._make_room(member, needed)
        try:
            served = await asyncio.get_running_loop().run_in_executor(self._loaders, release.load)
        finally:
            del self._wanted[member.name], self._loading[member.name]
            self._tell()
        served.backend.start(self._log, self._metrics)
        return served

    def _keep(self, member: Member, release: LoadableRelease, served: Served) -> None:
        # the bytes that it was given, until it is known what it holds with an answer
        member.loaded = Loaded(served, release.digest, max(served.backend.held_bytes(), member.needed_by(release)))
        member.release, member.fault, member.again_at = release, "", None
        member.loads += 1

    # Memory

    def _all(self) -> list[Loaded]:
        return [member.loaded for member in self.members.values() if member.loaded is not None] + self._leaving

    def _held(self) -> int:
        return sum(loaded.bytes for loaded in self._all())

    def _free(self) -> int:
        """Bytes that nobody holds now, or will hold when what is being loaded is there."""
        loading = sum(self._loading.values())
        machine = hardware.available_bytes() - loading
        return machine if self.budget is None else min(machine, self.budget - self._held() - loading)

    def _evictable(self, newest: Member, *, calm: bool = False) -> list[Member]:
        """Members that could make room for the newest one: those without work, then those chosen already, by use.

        Args:
            calm: Only those that nobody has asked for a while.
        """
        members = [
            member
            for member in self.members.values()
            if member.loaded is not None
            and not member.pin
            and member.goes_for in ("", newest.name)
            and member is not newest
            and member.name not in self._following
            and (not calm or (member.work == 0 and member.used < time.monotonic() - CALM_S))
        ]
        return sorted(members, key=lambda member: (member.work > 0, not member.goes_for, member.used))

    async def _make_room(self, member: Member, needed: int) -> None:
        """Have the least recently used members go until there are so many bytes, which are kept for this one.

        One with work goes after its last answer, and new requests for it wait until it has gone. Where members
        come and go, each load is to serve several requests: a member that had to go lately waits a moment for its turn.

        Raises:
            RequestFailedError: The others are pinned, or are at work for longer than a request may take.
        """
        begun = time.monotonic()
        try:
            while True:
                now = time.monotonic()
                calm = now < min(begun + CALM_S, member.evicted_at + RECENT_S)
                async with self._room:
                    await self._measure_again()
                    self._claim(member, needed, calm=calm)
                    for other in self._going_for(member):
                        if other.work == 0:
                            await self._evict(other)
                    if member.name in self._wanted and needed <= self._free() - self._counted_on(member):
                        self._loading[member.name] = needed
                        return
                    changed = self._changed
                hopes = calm or self._wanted or self._following - {member.name}
                wait_s = WAIT * self.settings.answer_timeout_s if hopes else SHORT_S
                left = begun + wait_s - time.monotonic()
                if left <= 0 or self._stopping:
                    self._log.event("model_has_no_room", model=member.name, bytes=needed, free=max(0, self._free()))
                    raise _no_room(member)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), min(left, MEASURED_S))
        finally:
            for other in self._going_for(member):  # too late
                other.goes_for = ""
            if member.name not in self._loading:
                self._wanted.pop(member.name, None)
            self._tell()

    def _claim(self, member: Member, needed: int, *, calm: bool) -> None:
        """Choose who makes room, unless there is enough without; nobody where it would not be enough.

        It is chosen anew after every change: one that has no work any more goes before one that has. What those hold
        that make room for other members counts as free, and what these want as held.
        """
        before = self._going_for(member)
        going = sum(other.bytes for other in self.members.values() if other.goes_for not in ("", member.name))
        going += sum(loaded.bytes for loaded in self._leaving)
        wanted = sum(size for name, size in self._wanted.items() if name != member.name and name not in self._loading)
        short = needed - (self._free() + going - wanted)
        chosen: list[Member] = []
        for other in self._evictable(member, calm=calm):
            if short <= 0:
                break
            chosen.append(other)
            short -= other.bytes
        if short > 0:
            chosen = []
            self._wanted.pop(member.name, None)
        else:
            self._wanted[member.name] = needed
        for other in reversed(chosen):  # the least recently used may be small, and one after it enough
            if short + other.bytes <= 0:
                chosen.remove(other)
                short += other.bytes
        for other in before:
            other.goes_for = ""
        for other in chosen:
            other.goes_for = member.name
            if other.work and other not in before:
                self._log.event("model_drained", model=other.name, for_model=member.name)
        if any(not other.goes_for for other in before):
            self._tell()

    def _counted_on(self, member: Member) -> int:
        """Free bytes that other members count on, beside those of who makes room for them."""
        return sum(
            max(0, size - sum(other.bytes for other in self.members.values() if other.goes_for == name))
            for name, size in self._wanted.items()
            if name != member.name and name not in self._loading
        )

    def _going_for(self, member: Member) -> list[Member]:
        return [other for other in self.members.values() if other.goes_for == member.name]

    async def _measure_again(self) -> None:
        if time.monotonic() > self._measured_at + MEASURED_S:
            await asyncio.to_thread(self._measure)
            self._measured_at = time.monotonic()

    def _measure(self) -> None:
        for loaded in self._all():
            held = loaded.served.backend.held_bytes()
            loaded.bytes = (held or loaded.bytes) if loaded.has_answered else max(held, loaded.bytes)

    async def _evict(self, member: Member) -> None:
        loaded, member.loaded = member.loaded, None
        assert loaded is not None and loaded.users == 0
        if loaded.has_answered:
            member.measured[loaded.digest] = loaded.bytes
        member.evictions += 1
        member.evicted_at = time.monotonic()
        self._log.event("model_evicted", model=member.name, bytes=loaded.bytes)
        self._leaving.append(loaded)
        member.goes_for = ""
        await self._end(loaded)

    async def _within_budget(self, newest: Member) -> None:
        """Evict what the newest member, which holds more than was estimated, has no room for."""
        async with self._room:
            while self.budget is not None and self._held() + sum(self._loading.values()) > self.budget:
                others = [member for member in self._evictable(newest) if member.work == 0]
                if not others:
                    return
                await self._evict(others[0])

    async def _end(self, loaded: Loaded) -> None:
        await loaded.served.backend.close()
        await asyncio.to_thread(loaded.served.close)
        self._leaving.remove(loaded)
        self._tell()

    def _tell(self) -> None:
        """Wake whoever waits for room, or for a member that makes some."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

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
        """True where a member has a tag, or others may come."""
        return self._discover is not None or any(member.find is not None for member in self.members.values())

    async def follow(self) -> None:
        """Read every tag again; new requests go to what they stand for, running answers end where they began."""
        moved = []
        for member in list(self.members.values()):
            if member.find is None:
                continue
            try:
                if await self._followed(member, member.find):
                    moved.append(member.name)
            except (SlmctlError, RequestFailedError) as error:
                member.fault = error.message
                self._log.event("not_followed", model=member.name, error=error.message)
                continue
        moved += await self._joined()
        if moved or not self.faults:
            self._log.event("followed", models=moved or None)

    async def _joined(self) -> list[str]:
        """Take in the projects that have a first release by now, each on disk until it is asked for; their names."""
        if self._discover is None:
            return []
        names = []
        try:
            newcomers = await asyncio.to_thread(self._discover, frozenset(self.members))
        except SlmctlError as error:
            self._log.event("not_followed", model=None, error=error.message)
            return []
        for name, find in newcomers.items():
            try:
                member = await asyncio.to_thread(find)
                if self.budget is not None and self._needed_always() + member.bytes > self.budget:
                    raise UsageError(f"it needs about {size(member.bytes)} beside what is pinned")
            except SlmctlError as error:
                self._log.event("not_followed", model=name, error=error.message)
                continue
            self.members[name] = member
            names.append(name)
        return names

    async def _followed(self, member: Member, find: Callable[[], LoadableRelease]) -> bool:
        """Serve what a tag stands for; False where that is served already."""
        release = await asyncio.to_thread(find)
        while member.loading is not None or member.goes_for:
            await (self.opened(member) if member.loading is None else asyncio.wait({member.loading}))
        if release.digest == member.release.digest:
            member.fault, member.again_at = "", None
            return False
        old = member.loaded
        if old is None:
            member.release, member.fault, member.again_at = release, "", None
            return True
        self._following.add(member.name)  # so that it does not make room for another one meanwhile
        try:
            served = await self._opened(member, release)
        finally:
            self._following.discard(member.name)
            self._tell()
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
        self._tell()
        loads = [member.loading for member in self.members.values() if member.loading is not None]
        await asyncio.gather(*loads, *self._tasks, return_exceptions=True)
        for loaded in self._all():
            await loaded.served.backend.close()
        await self.escalation.close()


def _no_room(member: Member) -> RequestFailedError:
    why = f"there is no memory for model '{member.name}' now: the models that are loaded have work or are pinned"
    return RequestFailedError(why, "no_room", 503, retry_after_s=RETRY_S)


def _seen(task: asyncio.Task[None]) -> None:
    """Retrieve the error of a load whose requests have all gone, or asyncio would log it."""
    if not task.cancelled():
        task.exception()
