"""The models of `slmctl serve`: finds and verifies releases, matches
policies, and loads pinned models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmctl.config import PRODUCTION, ServeConfig
from slmctl.config.serve_section import DEFAULT
from slmctl.console import percent, say, size
from slmctl.errors import IntegrityError, UsageError
from slmctl.models import documents
from slmctl.models.model import Loading, Model, TaskInModel
from slmctl.network import guard
from slmctl.network.decisions import CHAT
from slmctl.pipeline import model_lookup
from slmctl.pipeline.named import Workspace
from slmctl.production.collector import Collector
from slmctl.releases import registry
from slmctl.server import served_adapters
from slmctl.server.api_keys import KeyRing
from slmctl.server.backends import EndpointEngine, LocalEngine
from slmctl.server.fleet import Fleet
from slmctl.server.forms.request import ServedModel
from slmctl.server.rate_limits import ANYBODY
from slmctl.server.routed import Escalation
from slmctl.server.router import Router
from slmctl.server.running_model import Release, RunningModel
from slmctl.server.served_adapters import ServedAdapter
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task


@contextlib.contextmanager
def opened(
    where: Workspace, settings: ServeConfig, model: str | None, type_name: str | None, *, keys: bool
) -> Iterator[Fleet]:
    """The fleet that a command or the config asks for, with its pinned models loaded.

    Raises:
        SlmctlError: A release, its policy or an adapter cannot be served.
    """
    with contextlib.ExitStack() as stack:
        escalation: Escalation | None = None
        if settings.engine is not None:
            releases = [_elsewhere(where, settings, model, stack)]
        else:
            members = list(_members(where, settings, type_name, model))
            if any(each.policy for each in members):
                escalation = Escalation.of(settings)
            releases = [each.find(escalation) for each in members]
        _require_used(
            settings, [model.task for release in releases for model in release.models.values()]
        )
        collector = None
        if settings.collect is not None:
            collector = Collector(settings.collect)
            stack.callback(collector.close)
        ring = KeyRing(settings.keys) if keys else None
        fleet = Fleet(releases, settings, keys=ring, collector=collector, escalation=escalation)
        fleet.require_fit()
        if escalation is not None:
            stack.enter_context(escalation.open())
        stack.callback(fleet.close_all)
        fleet.load_pinned()
        yield fleet


def _require_used(settings: ServeConfig, tasks: Sequence[Task]) -> None:
    """Refuse settings that do nothing for any task that is served; a
    file without a task is of any kind.
    """
    if tasks and settings.refuse and not any(task.rules.checks for task in tasks):
        raise UsageError(
            "serve.refuse checks drafts, and no task here writes them",
            hint="leave serve.refuse out: it is for a task of kind generate",
        )
    if tasks and settings.documents and not any(task.document for task in tasks):
        raise UsageError(
            "serve.documents is for a task that reads documents in windows, and none here does",
            hint="task: {document: {window: auto}}, or leave serve.documents out",
        )


def facts(fleet: Fleet) -> Iterator[str]:
    """Lines on the state of several releases, on keys for models that are
    not served, and on collected answers.
    """
    collect = fleet.settings.collect
    for name, release in fleet.releases.items() if len(fleet.releases) > 1 else ():
        bytes = size(fleet.bytes_of(name))
        about = bytes if name in fleet.running else f"needs about {bytes} once it is asked"
        yield f"  {name}: {fleet.state(name)}, {about}{', pinned' if release.pin else ''}"
    served = fleet.models(ANYBODY)
    for key in fleet.keys.keys if fleet.keys is not None else ():
        if strange := [model for model in key.models or () if model not in served]:
            yield (
                f"  warning: key '{key.name}' is for {' and '.join(strange)}, and no model here "
                "has that name"
            )
    if collect is not None:
        yield (
            f"  answers are collected in {collect.to}: {percent(collect.kept)} of all and what "
            "is not sure"
        )
        if collect.to.stat().st_mode & 0o077:  # it was there before
            yield f"  warning: others on this machine may open {collect.to}: chmod 700 it"


def _members(
    where: Workspace, settings: ServeConfig, type_name: str | None, model: str | None
) -> Iterator[_Member]:
    """The releases that a command or the config asks for, the default one first.

    Raises:
        UsageError: A key that belongs to one release goes with several.
    """
    directory, make = where.directory, functools.partial(_Member, where, settings, type_name)
    if model is None and settings.fleet:
        for name, member in settings.fleet.items():
            release = member.release  # a path in the config is relative to its folder
            spec = release if release.startswith("dir:") else str((directory / release).absolute())
            yield make(spec, name, name == next(iter(settings.fleet)), member.policy, member.pin)
        return
    names = _in_production(directory, model) if model is not None and _is_registry(model) else []
    policy = settings.policy or False
    if len(names) > 1 and isinstance(policy, Path):
        raise UsageError(
            f"serve.policy belongs to one release, and {model} has {len(names)}",
            hint="name one, dir:REGISTRY#PROJECT@TAG, or a policy for each model: "
            "serve.fleet.NAME.policy",
        )
    for key in ("adapters", "first_look"):
        if len(names) > 1 and getattr(settings, key):
            raise UsageError(
                f"serve.{key} is for one release, and {model} has {len(names)}",
                hint="name one: dir:REGISTRY#PROJECT@TAG",
            )
    if not names:
        yield make(model, policy=policy)
    for name in names:  # one alone gets every request, so it is loaded at the start
        yield make(
            f"{model}#{name}@{PRODUCTION}", name, name == names[0], policy, pin=len(names) == 1
        )


def _is_registry(model: str) -> bool:
    """True where every release in production of a registry is served."""
    return model.startswith("dir:") and "#" not in model


def _in_production(directory: Path, registry_name: str) -> list[str]:
    """The projects of a registry that have a release in production."""
    root, _ = registry.parse(registry_name, directory)
    return sorted(tag.project for tag in registry.tags(root) if tag.name == PRODUCTION)


@dataclass(frozen=True)
class _Member:
    """A release that a command or the config names; finds and verifies it, to be loaded at once or
    later.

    Attributes:
        type_name: The quantization type of its file; None for the smallest file.
        spec: Its address; None for the config's own.
        name: Its name for clients; empty for the release's own.
        is_default: It also goes by `default`.
        policy: Its policy; True for the one that was fitted on its file, `auto` for that where
            there is one.
        pin: It is loaded at the start.
    """

    where: Workspace
    settings: ServeConfig
    type_name: str | None
    spec: str | None
    name: str = ""
    is_default: bool = True
    policy: bool | str | Path = False
    pin: bool = True

    def find(self, escalation: Escalation | None) -> Release:
        """The release, verified, with its policy.

        Raises:
            SlmctlError: It does not exist, is damaged, or its policy does not fit.
        """
        look = self.settings.first_look
        model = model_lookup.served(self.where, self.spec, self.type_name, first_look=look)
        task, names = model.task, dict[str, ServedModel]()
        if task is not None:
            names = self._named(model, _main(model, TaskInModel(task)), self._adapters(model))
        elif self.name:
            raise UsageError(
                f"model '{self.name}' of the fleet is {model.path.name}, which carries no task",
                hint="a release of slmctl publish, or a gguf artifact",
            )
        policy = self._policy(model)
        if policy is not None and task is not None:
            model_lookup.fitted_policy(policy, model.digest, task)
            untuned_prompt.choice(task, escalation.api if escalation is not None else CHAT)
        if look:
            model = model_lookup.looking_first(self.where.directory, model, policy)
        return Release(
            self.name or next(iter(names), "") or model.path.stem,
            model.artifact.digest,
            names,
            model.bytes(self._loading(task)),
            load=functools.partial(self._load, model, policy, escalation),
            newest=functools.partial(self.find, escalation)
            if (self.spec or "").startswith("dir:")
            else None,
            pin=self.pin,
        )

    def _loading(self, task: Task | None) -> Loading:
        return Loading.of(
            task, sequences=self.settings.sequences, context=self.settings.context_length
        )

    def _load(
        self, model: Model, policy: Path | None, escalation: Escalation | None
    ) -> RunningModel:
        """The model in memory; raises an SlmctlError where it
        cannot be loaded, or memory is short.
        """
        loras = self._adapters(model)
        adapters = {name: lora.path for name, lora in loras.items()}
        loading = dataclasses.replace(self._loading(model.task), adapters=adapters)
        with contextlib.ExitStack() as stack:
            if self.pin:  # for the others the fleet has made room
                model.require_room(loading)
            engine = stack.enter_context(model.load(loading))
            inside = model.task_in(engine)
            task = inside.task
            names = self._named(model, _main(model, inside), loras)
            name, router = next(iter(names)), None
            if policy is not None and escalation is not None:
                fitted = model_lookup.fitted_policy(policy, model.digest, task)
                rest = fitted.in_steps()[1] if self.settings.first_look else fitted
                router = Router(rest, task, name, escalation, self.settings.refuse)
                stack.callback(router.retire)
            notes = [
                *filter(
                    None, [model.other_build(engine.build), *(lora.note for lora in loras.values())]
                )
            ]
            for note in notes:
                say(f"warning: {note}")
            reader = documents.reading(
                engine, {model.adapter: model.task for model in names.values()}
            )
            return RunningModel(
                LocalEngine(reader, name), names, router, notes, stack.pop_all().close
            )

    def _adapters(self, model: Model) -> dict[str, ServedAdapter]:
        """The adapters over a release, each verified for its file."""
        places = self.settings.adapters.items()
        return {
            name: served_adapters.find(place, model.artifact, model.path) for name, place in places
        }

    def _policy(self, model: Model) -> Path | None:
        """The policy of a release, where it has one.

        Raises:
            IntegrityError: It needs a policy, and none was fitted on its file.
        """
        if not self.policy or isinstance(self.policy, Path):
            return self.policy or None
        newest = model_lookup.newest_policy(self.where.directory, model)
        escalates = self.settings.generalist is not None and not self.settings.fleet
        if newest is None and (self.policy is True or escalates):
            raise IntegrityError(
                f"no policy below runs/ was fitted on {model.path.name}, which answers"
                + f" as '{self.name}'" * bool(self.name),
                hint="slmctl calibrate, or "
                f"serve.{f'fleet.{self.name}.' * (self.policy is True)}policy: PATH",
            )
        return newest

    def _named(
        self, model: Model, main: ServedModel, loras: Mapping[str, ServedAdapter]
    ) -> dict[str, ServedModel]:
        """A model under its names, with the adapters over it; a bare
        adapter without a task has the model's.
        """
        stem = model.path.stem
        name, version = model_lookup.served_name(model.artifact, model.path)
        others = [DEFAULT, stem]
        if self.name:  # others may be of the same project
            name, others = self.name, [DEFAULT] if self.is_default else []
        elif name in loras:
            name = stem
        aliases = tuple(alias for alias in others if alias != name and alias not in loras)
        main = dataclasses.replace(main, name=name, aliases=aliases, version=version)
        served = {name: main}
        for lora_name, lora in loras.items():
            served[lora_name] = dataclasses.replace(
                main,
                name=lora_name,
                task=lora.task or main.task,
                adapter=lora_name,
                aliases=(),
                version=lora.version,
                bare=main.bare and lora.task is None,
                file=lora.path.name,
                digest=lora.digest,
            )
        return served


def _main(model: Model, inside: TaskInModel) -> ServedModel:
    """Returns the model without its adapters, still without a name."""
    return ServedModel(
        "",
        inside.task,
        bare=inside.bare,
        opening=inside.opening,
        file=model.path.name,
        digest=f"sha256:{model.file.sha256}",
    )


def _elsewhere(
    where: Workspace, settings: ServeConfig, model: str | None, stack: contextlib.ExitStack
) -> Release:
    """Returns the only release, answered by another server (serve.engine), which may be reached
    until `stack` ends.

    Raises:
        UsageError: Its answers are calls, or it reads documents in windows.
    """
    engine = settings.engine
    assert engine is not None
    task, names = model_lookup.contract(where, model, engine.model)
    name, version = names
    if task.rules.calls:
        raise UsageError(
            "calls are held to the form of their base by slmctl's own engine, so no server "
            "elsewhere answers them",
            hint="slmctl serve without --engine-url",
        )
    if task.document is not None:
        raise UsageError(
            "documents are read in windows by slmctl's own engine, and another server would be "
            "asked for them whole",
            hint="slmctl serve without --engine-url",
        )
    backend = EndpointEngine(engine.url, engine.model, engine.key_env, settings.sequences)
    stack.enter_context(
        guard.network(f"answering through {engine.url}", hosts=backend.endpoint.hosts)
    )
    served = {name: ServedModel(name, task, aliases=(DEFAULT,), version=version)}
    return Release(name, "", served, 0, load=lambda: RunningModel(backend, served), pin=True)
