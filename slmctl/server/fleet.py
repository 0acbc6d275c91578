"""The releases behind one address, each loaded at the start or when it is first asked for, within
`serve.memory`.

A server of one release is a fleet of one pinned release. If the next model has no room, the least
recently used one ends: an idle one first, else a busy one after its running answers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from slmctl import hardware
from slmctl.config import ServeConfig
from slmctl.config.serve_section import DEFAULT
from slmctl.console import size
from slmctl.errors import FullError, SlmctlError, UsageError
from slmctl.production.collector import Collector
from slmctl.server.api_keys import Key, KeyRing
from slmctl.server.forms.request import ServedModel
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics, Samples
from slmctl.server.request_errors import RequestError
from slmctl.server.routed import Escalation
from slmctl.server.running_model import Release, RunningModel

AGAIN_S = 10.0  # after a load that failed, before it is tried once more
RETRY_S = 2.0  # after a load that found no room
STATES = ("on disk", "loading", "loaded", "failed")
FAMILIES = {  # name: kind, help
    "slmctl_model_state": (
        "gauge",
        "1 for the state that a model is in: on disk, loading, loaded or failed.",
    ),
    "slmctl_model_bytes": ("gauge", "Bytes that the engine of a model holds."),
    "slmctl_model_loads": ("counter", "Times that a model was loaded."),
    "slmctl_model_evictions": ("counter", "Times that a model made room for another one."),
    "slmctl_model_fault": ("gauge", "1 for a model whose newest release could not be loaded."),
}


class Fleet:
    """The releases, the default one first, with their keys, collector and escalation.

    Args:
        collector: Writes answers down; None for none.
        escalation: The routers' way to the generalist; None where no policy decides.
    """

    def __init__(
        self,
        releases: Sequence[Release],
        settings: ServeConfig,
        *,
        keys: KeyRing | None = None,
        collector: Collector | None = None,
        escalation: Escalation | None = None,
    ) -> None:
        self.releases = {release.name: release for release in releases}
        self.running: dict[str, RunningModel] = {}
        self.settings = settings
        self.keys = keys
        self.collector = collector
        self.escalation = escalation
        self._faults: dict[str, str] = {}  # why the release of a name could not be loaded
        # why the newest release of a name is not the one that is loaded
        self._behind: dict[str, str] = {}
        # time before which a load that failed is not tried again
        self._again_at: dict[str, float] = {}
        # requests by the name that is being loaded
        self._waiting: dict[str, list[asyncio.Future[RunningModel]]] = {}
        # old releases, with their last answers
        self._ending: dict[RunningModel, asyncio.Task[None]] = {}
        self._measured: dict[str, int] = {}  # bytes by digest, once they are known
        self._loads, self._evictions = Counter[str](), Counter[str]()
        self._room = asyncio.Lock()  # held while one model is loaded, and others end for it
        self._tasks: set[asyncio.Task[None]] = set()

    # Before the server runs

    def require_fit(self) -> None:
        """Refuse a `serve.memory` that is too small for the pinned releases, or for them and any
        one other release.

        Raises:
            UsageError: It is; nothing has been loaded.
        """
        pinned = [release for release in self.releases.values() if release.pin]
        names = ", ".join(release.name for release in pinned)
        need = "the pinned model needs" if len(pinned) == 1 else "the pinned models need"
        self._require_budget(
            need + " about {} (" + names + ")", sum(map(self._needed, pinned)), "pin fewer models"
        )
        for release in self.releases.values():
            if not release.pin:
                self._require_place(release)

    def load_pinned(self) -> None:
        """Load the pinned releases.

        Raises:
            SlmctlError: One cannot be loaded, or they hold more than `serve.memory`.
        """
        for release in self.releases.values():
            if release.pin:
                self._keep(release, release.load())
        self._require_budget("the pinned models hold {}", self._held(), "pin fewer models")

    def _require_place(self, release: Release) -> None:
        """Refuse a release that does not fit into `serve.memory` together with the pinned ones."""
        pinned = [other for other in self.releases.values() if other.pin]
        beside = f" beside the pinned {', '.join(other.name for other in pinned)}" if pinned else ""
        needed = self._needed(release)
        self._require_budget(
            f"model '{release.name}' needs about {size(needed)}{beside}",
            needed + sum(map(self._needed, pinned)),
            "leave the model out",
        )

    def _require_budget(self, what: str, bytes: int, instead: str) -> None:
        budget = self.settings.memory
        if budget is not None and bytes > budget:
            raise UsageError(
                f"{what.format(size(bytes))}, and serve.memory is {size(budget)}",
                hint=f"raise it, {instead}, or lower serve.context_length or serve.sequences",
            )

    def close_all(self) -> None:
        for running in self._all():
            running.close()
        self.running.clear()

    # Names

    def models(self, key: Key) -> dict[str, ServedModel]:
        """The models that a key may ask, by name, the default one first."""
        return {
            name: model
            for release in self.releases
            for name, model in self.models_of(release).items()
            if key.may_ask(name)
        }

    def models_of(self, name: str) -> Mapping[str, ServedModel]:
        """The models of a release by name, as far as they are known."""
        return (self.running.get(name) or self.releases[name]).models

    def find(self, name: object, key: Key) -> tuple[str, ServedModel]:
        """The release's name and the model that a request names, by its own name or another one.

        A request that names none, or `default`, means the key's first one.

        Raises:
            RequestError: No such model exists, or the key may not ask it.
        """
        models = self.models(key)
        if name in (None, DEFAULT):
            model = next(iter(models.values()), None)
        else:
            model = next(
                (model for own, model in models.items() if name == own or name in model.aliases),
                None,
            )
        if model is None:
            missed = f"model '{str(name)[:100]}' is not served here; served: {', '.join(models)}"
            raise RequestError(
                missed if models else "this key may ask no model that is served here",
                "model",
                status=404 if isinstance(name, str | None) else 400,
                code="model_not_found",
            )
        return next(
            release for release in self.releases if model.name in self.models_of(release)
        ), model

    # While it runs

    def start(self, log: Log, metrics: Metrics) -> None:
        """Answer from now on, in the running loop."""
        self._log, self._metrics = log, metrics
        metrics.include(FAMILIES, self.figures)
        for running in self.running.values():
            running.backend.start(log, metrics)

    @property
    def ready(self) -> bool:
        """True while every pinned model answers."""
        return all(
            name in self.running and self.running[name].backend.ready
            for name, release in self.releases.items()
            if release.pin
        )

    @property
    def faults(self) -> list[str]:
        """Names of models that still serve an older release, since
        the newest one could not be loaded.
        """
        return [name for name in self.releases if name in self._faults or name in self._behind]

    def state(self, name: str) -> str:
        if name in self.running:
            return "loaded"
        if name in self._waiting:
            return "loading"
        return "failed" if name in self._again_at else "on disk"

    def bytes_of(self, name: str) -> int:
        """Memory that a model holds, or is expected to hold once it is loaded."""
        return (
            self.running[name].bytes if name in self.running else self._needed(self.releases[name])
        )

    def figures(self) -> dict[str, Samples]:
        def of_each(figure: Callable[[str], float]) -> Samples:
            return [({"model": name}, float(figure(name))) for name in self.releases]

        return {
            "slmctl_model_state": [
                ({"model": name, "state": state}, float(self.state(name) == state))
                for name in self.releases
                for state in STATES
            ],
            "slmctl_model_bytes": of_each(
                lambda name: self.running[name].bytes if name in self.running else 0
            ),
            "slmctl_model_loads": of_each(self._loads.__getitem__),
            "slmctl_model_evictions": of_each(self._evictions.__getitem__),
            "slmctl_model_fault": of_each(self.faults.__contains__),
        }

    async def look(self) -> None:
        """Ask engines elsewhere for a sign of life."""
        for running in self._all():
            await running.backend.look()

    async def measure(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(running.measure) for running in self._all()))

    async def lease(self, name: str) -> RunningModel:
        """The model of a release, loaded where it is not, to answer one request; `give_back` ends
        that.

        Raises:
            RequestError: It cannot be loaded, or not now.
        """
        if (running := self.running.get(name)) is not None:
            self._take(running)
            return running
        if name not in self._waiting:
            if (left := self._again_at.get(name, 0.0) - time.monotonic()) > 0:
                raise _failed(name, left)
            self._waiting[name] = []
            self._beside(self._load(name))
        taken: asyncio.Future[RunningModel] = asyncio.get_running_loop().create_future()
        self._waiting[name].append(taken)
        try:
            return await taken
        except asyncio.CancelledError:
            # it was loaded at the same moment
            if not taken.cancelled() and taken.exception() is None:
                self.give_back(taken.result())
            raise

    def _take(self, running: RunningModel) -> None:
        running.users += 1
        running.used = time.monotonic()
        running.is_idle.clear()

    def give_back(self, running: RunningModel) -> None:
        running.users -= 1
        running.used = time.monotonic()
        if not running.has_answered:
            running.has_answered = True
            running.measure()
        if not running.users:
            running.is_idle.set()

    async def _load(self, name: str) -> None:
        """Load a release, and give it to every request that waits for
        it before anything else may end it.
        """
        error, running = _failed(name, AGAIN_S), None
        try:
            async with self._room:
                running = await self._opened(self.releases[name])
        except RequestError as refused:
            error = refused
        except FullError as full:
            self._log.event("model_not_loaded", model=name, error=full.message)
            error = _no_room(name)
        except SlmctlError as fault:
            self._faults[name], self._again_at[name] = fault.message, time.monotonic() + AGAIN_S
            self._log.event("model_not_loaded", model=name, error=fault.message)
        finally:
            for taken in self._waiting.pop(name):
                if taken.done():  # its client has gone
                    continue
                if running is None:
                    taken.set_exception(error)
                else:
                    self._take(running)
                    taken.set_result(running)

    async def _opened(self, release: Release) -> RunningModel:
        """A release in memory and started; the room is held by the caller.

        Raises:
            RequestError: Memory is short.
            SlmctlError: It cannot be loaded.
        """
        begun = time.monotonic()
        await self._make_room(release)
        running = await asyncio.to_thread(release.load)
        running.backend.start(self._log, self._metrics)
        old = self.running.get(release.name)
        self._keep(release, running)
        if old is not None:  # with its last answers
            self._ending[old] = self._beside(self._end(old))
        seconds = round(time.monotonic() - begun, 3)
        self._log.event("model_loaded", model=release.name, bytes=running.bytes, seconds=seconds)
        return running

    def _keep(self, release: Release, running: RunningModel) -> None:
        running.bytes = max(running.backend.held_bytes(), self._needed(release))
        running.used = time.monotonic()
        running.is_idle.set()
        self.running[release.name], self.releases[release.name] = running, release
        self._forgive(release.name)
        self._loads[release.name] += 1

    def _forgive(self, name: str) -> None:
        self._faults.pop(name, None)
        self._again_at.pop(name, None)

    # Memory

    def _all(self) -> list[RunningModel]:
        return [*self.running.values(), *self._ending]

    def _held(self) -> int:
        return sum(running.bytes for running in self._all())

    def _needed(self, release: Release) -> int:
        """Bytes of a release once it is loaded: as measured, else as estimated."""
        return self._measured.get(release.digest, release.bytes)

    def _free(self) -> int:
        """Bytes that a further model may take."""
        budget, machine = self.settings.memory, hardware.available_bytes()
        return machine if budget is None else min(machine, budget - self._held())

    async def _make_room(self, release: Release) -> None:
        """End the models that were used least recently until a release has room: idle ones first,
        then busy ones.

        New requests for a model that ends wait for their turn to load it, so one that is never idle
        keeps no other one out.

        Raises:
            RequestError: It would not have room without all of them; none has ended.
        """
        needed = self._needed(release)
        await self.measure()
        while self._ending and needed > self._free():
            await asyncio.wait(self._ending.values(), return_when=asyncio.FIRST_COMPLETED)
        others = [
            name for name in self.running if not self.releases[name].pin and name != release.name
        ]
        others.sort(key=lambda name: (self.running[name].users > 0, self.running[name].used))
        if needed > self._free() + sum(self.running[name].bytes for name in others):
            self._log.event(
                "model_has_no_room", model=release.name, bytes=needed, free=max(0, self._free())
            )
            raise _no_room(release.name)
        while others and needed > self._free():
            await self._evict(others.pop(0), release.name)

    async def _evict(self, name: str, other: str) -> None:
        running = self.running.pop(name)
        self._log.event(
            "model_evicted", model=name, for_model=other, bytes=running.bytes, running=running.users
        )
        self._evictions[name] += 1
        self._ending[running] = self._beside(self._end(running))
        await self._ending[running]
        if running.has_answered:
            self._measured[self.releases[name].digest] = running.bytes

    async def _end(self, running: RunningModel) -> None:
        """End a model after its last answer."""
        await running.is_idle.wait()
        await running.backend.close()
        await asyncio.to_thread(running.close)
        del self._ending[running]

    def _beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Tags

    @property
    def follows(self) -> bool:
        """True where a release has a tag."""
        return any(release.newest is not None for release in self.releases.values())

    async def follow(self) -> None:
        """Read every tag again; new requests go to its release of today,
        and running answers end with the old one.
        """
        moved = []
        for name, release in list(self.releases.items()):
            if release.newest is None:
                continue
            try:
                if await self._followed(
                    dataclasses.replace(await asyncio.to_thread(release.newest), name=name)
                ):
                    moved.append(name)
            except (SlmctlError, RequestError) as error:
                self._behind[name] = error.message
                self._log.event("not_followed", model=name, error=error.message)
        if moved or not self.faults:
            self._log.event("followed", models=moved or None)

    async def _followed(self, newest: Release) -> bool:
        """Serve the release of a tag, loaded before the old one ends;
        returns False if it is served already.
        """
        async with self._room:
            is_new = newest.digest != self.releases[newest.name].digest
            if is_new and newest.name in self.running:
                await self._opened(newest)
            elif is_new:
                self._require_place(newest)
                self.releases[newest.name] = newest
            self._forgive(newest.name)
            self._behind.pop(newest.name, None)
            return is_new

    async def close(self) -> None:
        """End the tasks of the event loop; `close_all` ends the engines."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for running in self._all():
            await running.backend.close()
        if self.escalation is not None:
            await self.escalation.close()


def _no_room(name: str) -> RequestError:
    message = f"there is no memory for model '{name}' now"
    return RequestError(message, status=503, code="no_room", retry_after_s=RETRY_S)


def _failed(name: str, retry_after_s: float) -> RequestError:
    message = f"model '{name}' cannot be loaded"
    return RequestError(message, status=503, code="model_failed", retry_after_s=retry_after_s)
