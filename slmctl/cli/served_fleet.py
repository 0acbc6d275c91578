"""The models of `slmctl serve` as a fleet: releases found and verified, policies matched, what is pinned loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slmctl.cli.group import Options, make_workspace, terminal
from slmctl.errors import IntegrityError, UsageError
from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
    from slmctl.config import ServeConfig
    from slmctl.pipeline.served_adapters import ServedAdapter
    from slmctl.server.fleet import Fleet
    from slmctl.server.fleet_members import LoadableRelease, Member, Served
    from slmctl.server.openai_requests import ServedModel


@dataclass(frozen=True)
class _Plan:
    """One model as it was asked for.

    Attributes:
        spec: What names the release; None for the config's own.
        name: Its name for clients; empty for the release's own.
        is_default: It also goes by `default`.
        policy: Its policy; True for the one that was fitted on its file.
        pin, weight: See `FleetMember`.
    """

    spec: str | None
    name: str = ""
    is_default: bool = True
    policy: bool | Path = False
    pin: bool = True
    weight: int = 1


class ServedFleet:
    """A context manager that opens the fleet, and closes it."""

    def __init__(
        self, options: Options, settings: ServeConfig, model: str | None, type_name: str | None, *, keys: bool
    ) -> None:
        from slmctl.server.api_keys import KeyRing

        self._options, self._settings, self._model, self._type = options, settings, model, type_name
        self._keys = KeyRing(settings.keys) if keys else None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ServedFleet:
        from slmctl.server.collector import Collector
        from slmctl.server.fleet import Fleet
        from slmctl.server.routed import Escalation

        settings = self._settings
        members = [self._endpoint()] if settings.engine_url is not None else list(self._members())
        with contextlib.ExitStack() as opened:
            escalation = Escalation.of(settings) if any(member.has_policy for member in members) else Escalation()
            collector = None
            if settings.collect is not None:
                collector = Collector(settings.collect)
                opened.callback(collector.close)
            self._escalation = escalation
            self.fleet: Fleet = Fleet(
                members, settings, keys=self._keys, collector=collector, escalation=escalation, budget=settings.memory,
                discover=self._newcomers if self._is_registry else None,
            )  # fmt: skip
            self.fleet.require_fit()
            opened.enter_context(escalation.open())
            opened.callback(self.fleet.close_all)
            self.fleet.load_pinned()
            self._stack.enter_context(opened.pop_all())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def models(self) -> list[ServedModel]:
        """Every model that clients can ask for."""
        return [model for member in self.fleet.members.values() for model in member.models.values()]

    def facts(self) -> Iterator[str]:
        """Say what is loaded where there are several, what is written down of the answers, and who else answers."""
        from slmctl.console import size

        collect, members = self._settings.collect, self.fleet.members
        for member in members.values() if len(members) > 1 else ():
            about = (
                f"needs about {size(member.bytes)} once it is asked" if member.loaded is None else size(member.bytes)
            )
            yield f"  {member.name}: {member.state}, {about}{', pinned' if member.pin else ''}"
        if collect is not None:
            kept = terminal().percent(collect.kept, 1)
            yield f"  answers are collected in {collect.to}: {kept} of all and what is not sure"
            if collect.to.stat().st_mode & 0o077:  # it was there before
                yield f"  warning: others on this machine may open {collect.to}: chmod 700 it"

    # Members

    def _members(self) -> Iterator[Member]:
        """The members that the command or the config asks for, each found and verified.

        Raises:
            SlmctlError: One cannot be served; nothing has been loaded.
        """
        plans = list(self._plans())
        if len(plans) > 1 and self._settings.policy is not None:
            raise UsageError(
                f"serve.policy belongs to one release, and {self._model} has {len(plans)}",
                hint="name one, dir:REGISTRY#PROJECT@TAG, or a policy for each model: serve.fleet.NAME.policy",
            )
        if len(plans) > 1 and self._settings.adapters:
            raise UsageError(
                f"serve.adapters belong to one release, and {self._model} has {len(plans)}",
                hint="name one: dir:REGISTRY#PROJECT@TAG",
            )
        yield from map(self._member, plans)

    def _member(self, plan: _Plan) -> Member:
        """A member, found and verified.

        Raises:
            SlmctlError: It cannot be served.
        """
        from slmctl.server.fleet_members import Member

        release = self._find(plan)
        name = plan.name or next(iter(release.models), "") or Path(plan.spec or "").stem
        follows = (plan.spec or "").startswith("dir:")
        return Member(
            name, release, find=functools.partial(self._find, plan) if follows else None, pin=plan.pin,
            weight=plan.weight, has_policy=bool(plan.policy),
        )  # fmt: skip

    def _plans(self) -> Iterator[_Plan]:
        settings, spec = self._settings, self._model
        if spec is None and settings.fleet:
            for place, (name, member) in enumerate(settings.fleet.items()):
                release = self._from_config(member.release)
                yield _Plan(release, name, place == 0, member.policy, member.pin, member.weight)
            return
        from slmctl.config import PRODUCTION

        names = self._production(spec) if spec is not None and self._is_registry else []
        if not names:
            yield _Plan(spec, policy=settings.policy or False)
        for place, name in enumerate(names):
            alone = len(names) == 1  # it gets every request, so it is loaded at the start
            policy = settings.policy or False
            yield _Plan(f"{spec}#{name}@{PRODUCTION}", name, place == 0, policy, pin=alone)

    @property
    def _is_registry(self) -> bool:
        """True where every release in production of a registry is served."""
        return self._model is not None and self._model.startswith("dir:") and "#" not in self._model

    def _newcomers(self, members: Collection[str]) -> dict[str, Callable[[], Member]]:
        """By name, the projects in production beside those that are members."""
        from slmctl.config import PRODUCTION

        assert self._model is not None
        names = [name for name in self._production(self._model) if name not in members]
        plans = [_Plan(f"{self._model}#{name}@{PRODUCTION}", name, False, pin=False) for name in names]
        return {plan.name: functools.partial(self._member, plan) for plan in plans}

    def _from_config(self, release: str) -> str:
        """A release as a command would name it from here: a path in the config is relative to its folder."""
        return release if release.startswith("dir:") else str((self._options.directory / release).absolute())

    def _production(self, spec: str) -> list[str]:
        """The projects of a registry that have a release in production."""
        from slmctl.config import PRODUCTION
        from slmctl.releases import registry

        root, _ = registry.parse(spec, self._options.directory)
        return sorted(tag.project for tag in registry.tags(root) if tag.name == PRODUCTION)

    def _find(self, plan: _Plan) -> LoadableRelease:
        """The release that a model was asked for by, verified, with its policy.

        Raises:
            SlmctlError: There is none, it is damaged, or its policy does not fit.
        """
        from slmctl.model_files import memory
        from slmctl.pipeline import model_lookup
        from slmctl.server.fleet_members import LoadableRelease
        from slmctl.server.router import fitted_policy

        settings = self._settings
        artifact, path = model_lookup.gguf(make_workspace(self._options), plan.spec, self._type)
        models = self._models_of(plan, artifact, path)
        policy = self._policy(plan, artifact, path)
        if policy is not None and models:
            main = next(iter(models.values()))
            fitted_policy(policy, main.digest, main.task)
        needed = memory.engine_bytes(
            path, sequences=settings.sequences, context=settings.context_length,
            classifier=model_lookup.is_classifier(artifact), grammars=model_lookup.is_constrained(artifact),
        )  # fmt: skip
        load = functools.partial(self._load, plan, artifact, path, policy)
        return LoadableRelease(artifact.digest, models, needed, load)

    def _models_of(self, plan: _Plan, artifact: Artifact, path: Path) -> dict[str, ServedModel]:
        """The models of a release by name, the adapters' last; none of a file without a task.

        Raises:
            UsageError: It is one of a fleet, and carries no task.
        """
        from slmctl.pipeline import model_lookup
        from slmctl.server.openai_requests import ServedModel

        own = model_lookup.own_task(artifact)
        if own is None and plan.name:
            raise UsageError(
                f"model '{plan.name}' of the fleet is {path.name}, which carries no task",
                hint="a release of slmctl publish, or a gguf artifact",
            )
        if own is None:
            return {}
        main = ServedModel("", own, file=path.name, digest=_digest_of(artifact, path))
        return self._named(plan, artifact, path, main, self._adapters(artifact, path))

    def _named(
        self, plan: _Plan, artifact: Artifact, path: Path, main: ServedModel, loras: dict[str, ServedAdapter]
    ) -> dict[str, ServedModel]:
        """A model under its names, with the adapters over it."""
        from slmctl.pipeline import model_lookup

        named = model_lookup.served_name(artifact, path)
        name, aliases = (path.stem if named.name in loras else named.name), named.aliases
        if plan.name:  # others may be of the same project
            name, aliases = plan.name, ((model_lookup.DEFAULT,) if plan.is_default else ())
        main = dataclasses.replace(
            main, name=name, aliases=tuple(alias for alias in aliases if alias not in loras), version=named.version
        )
        models = {name: main}
        models |= {lora_name: _with_adapter(main, lora_name, lora) for lora_name, lora in loras.items()}
        return models

    def _adapters(self, artifact: Artifact, path: Path) -> dict[str, ServedAdapter]:
        """The adapters over a release, each verified for its file."""
        from slmctl.pipeline import served_adapters

        return {name: served_adapters.find(place, artifact, path) for name, place in self._settings.adapters.items()}

    def _policy(self, plan: _Plan, artifact: Artifact, path: Path) -> Path | None:
        """The policy of a model, where it has one.

        Raises:
            IntegrityError: None was fitted on its file.
        """
        from slmctl.pipeline import model_lookup

        if not isinstance(plan.policy, bool):
            return plan.policy
        if not plan.policy:
            return None
        roots = {
            self._options.directory.resolve(),
            model_lookup.root_of(self._options.directory, artifact.path).resolve(),
        }
        if (newest := model_lookup.newest_policy(roots, _digest_of(artifact, path))) is not None:
            return newest
        raise IntegrityError(
            f"no policy below runs/ was fitted on {path.name}, which answers as '{plan.name}'",
            hint=f"slmctl calibrate, or serve.fleet.{plan.name}.policy: PATH",
        )

    # Loading

    def _load(self, plan: _Plan, artifact: Artifact, path: Path, policy: Path | None) -> Served:
        from slmctl.artifacts.artifact import sha256_file
        from slmctl.inference.engine import Engine
        from slmctl.model_files import memory
        from slmctl.pipeline import model_lookup
        from slmctl.server.backends import LocalEngine
        from slmctl.server.fleet_members import Served
        from slmctl.server.openai_requests import ServedModel
        from slmctl.server.router import Router

        settings = self._settings
        loras = self._adapters(artifact, path)
        if plan.pin:  # of the others, the fleet has made room for what they were measured to hold
            memory.require_engine(path, sequences=settings.sequences, context=settings.context_length)
        with contextlib.ExitStack() as stack:
            engine = stack.enter_context(
                Engine(
                    path,
                    sequences=settings.sequences,
                    context=settings.context_length,
                    adapters={name: lora.path for name, lora in loras.items()},
                    grammars=model_lookup.is_constrained(artifact),
                    classifier=model_lookup.is_classifier(artifact),
                )
            )
            task, bare, opening = model_lookup.task_in(artifact, path, engine)
            digest = _digest_of(artifact, path)
            main = ServedModel("", task, bare=bare, opening=opening, file=path.name, digest=digest)
            models = self._named(plan, artifact, path, main, loras)
            name = next(iter(models))
            router = None
            if policy is not None:
                router = Router.of(policy, settings, digest or sha256_file(path), task, name, self._escalation)
                stack.callback(router.retire)
            notes = [note] if (note := model_lookup.other_build(artifact, path, engine.info["build"])) else []
            notes += [lora.note for lora in loras.values() if lora.note]
            for note in notes:
                terminal().say(f"warning: {note}")
            end = stack.pop_all().close
        return Served(LocalEngine(engine, name), models, router, notes, end)

    def _endpoint(self) -> Member:
        """The only member, whose engine is a server elsewhere."""
        from slmctl.pipeline import model_lookup
        from slmctl.server.backends import EndpointEngine
        from slmctl.server.fleet_members import LoadableRelease, Member, Served
        from slmctl.server.openai_requests import ServedModel

        settings = self._settings
        assert settings.engine_url is not None and settings.engine_model is not None  # they come together
        task, named = model_lookup.contract(make_workspace(self._options), self._model, settings.engine_model)
        if task.kind == "call":
            raise UsageError(
                "calls are held to the form of their base by slmctl's own engine, so no server elsewhere answers them",
                hint="slmctl serve without --engine-url",
            )
        backend = EndpointEngine(
            settings.engine_url, settings.engine_model, settings.engine_key_env, settings.sequences
        )
        self._stack.enter_context(guard.network(f"answering through {settings.engine_url}", hosts=backend.hosts))
        models = {named.name: ServedModel(named.name, task, aliases=named.aliases, version=named.version)}
        return Member(named.name, LoadableRelease("", models, 0, lambda: Served(backend, models)), pin=True)


def _with_adapter(main: ServedModel, name: str, lora: ServedAdapter) -> ServedModel:
    """The model with an adapter over it, by the adapter's name; a bare adapter without a task has the model's."""
    return dataclasses.replace(
        main, name=name, task=lora.task or main.task, adapter=name, bare=main.bare and lora.task is None, aliases=(),
        version=lora.version, file=lora.path.name, digest=lora.digest,
    )  # fmt: skip


def _digest_of(artifact: Artifact, path: Path) -> str:
    """`sha256:…` of a file of an artifact, as its manifest says."""
    digests = [entry.sha256 for entry in artifact.files(".gguf") if artifact.file(entry.path) == path]
    return f"sha256:{digests[0].removeprefix('sha256:')}" if digests else ""
