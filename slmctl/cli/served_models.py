"""The models of `slmctl serve`, opened: engine or endpoint, task contracts, router."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
    from slmctl.config import ServeConfig
    from slmctl.pipeline.served_adapters import ServedAdapter
    from slmctl.server.app import Served
    from slmctl.server.collector import Collector
    from slmctl.server.novelty import Novelty
    from slmctl.server.openai_requests import ServedModel
    from slmctl.server.shadow import Shadow
from slmctl.cli.group import Options, make_workspace, terminal


class ServedModels:
    """A context manager that opens the engine or endpoint, the models by name and the router, and closes them."""

    def __init__(
        self, options: Options, settings: ServeConfig, model: str | None, type_name: str | None, *, keys: bool
    ) -> None:
        from slmctl.server.api_keys import KeyRing

        self._options, self._settings, self._model, self._type = options, settings, model, type_name
        self._keys = KeyRing(settings.keys) if keys else None
        self._stack = contextlib.ExitStack()
        self._digest = ""
        self._collector: Collector | None = None
        self._shadow: Shadow | None = None

    def __enter__(self) -> ServedModels:
        from slmctl.server.collector import Collector

        settings = self._settings
        with contextlib.ExitStack() as opened:
            if settings.collect is not None:
                self._collector = Collector(settings.collect, detector=settings.detector)
                opened.callback(self._collector.close)
            self.served = self._open_endpoint() if settings.engine_url is not None else self._open_engine()
            opened.callback(lambda: self.served.close())
            if settings.shadow is not None:
                self._shadow = self._open_shadow(settings.shadow)
                opened.callback(self._shadow.close_engine)
                self.served = dataclasses.replace(self.served, shadow=self._shadow)
            self._stack.enter_context(opened.pop_all())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def follow(self) -> Callable[[], Served | None] | None:
        """The function that opens a tag's new release (None if it is the same one); None without a tag."""
        return self._moved if (self._model or "").startswith("dir:") and self._settings.engine_url is None else None

    def facts(self) -> Iterator[str]:
        """Say what is written down of the answers, and who else answers."""
        collect, shadow = self._settings.collect, self._shadow
        if collect is not None:
            new = "known" if self.served.questions is not None else "not known here, so nobody says which are new"
            kept = terminal().percent(collect.kept, 1)
            yield f"  answers are collected in {collect.to}: {kept} of all and what is not sure"
            yield f"  questions of the training rows: {new}"
            if collect.to.stat().st_mode & 0o077:  # it was there before
                yield f"  warning: others on this machine may open {collect.to}: chmod 700 it"
        if shadow is not None:
            named = f"{shadow.model.name} {shadow.model.version}".strip()
            yield f"  {named} answers the same in the background ({shadow.model.file})"

    def _moved(self) -> Served | None:
        from slmctl.pipeline import resolve

        release = resolve.find_model(make_workspace(self._options), self._model, ("published",), default="published")
        if release.digest == self._digest:
            return None
        self.served = self._open_engine()
        return self.served

    def _open_endpoint(self) -> Served:
        from slmctl.pipeline import model_lookup
        from slmctl.server.app import Served
        from slmctl.server.backends import EndpointEngine
        from slmctl.server.openai_requests import ServedModel

        settings = self._settings
        assert settings.engine_url is not None and settings.engine_model is not None  # they come together
        task, named = model_lookup.contract(make_workspace(self._options), self._model, settings.engine_model)
        backend = EndpointEngine(
            settings.engine_url, settings.engine_model, settings.engine_key_env, settings.sequences
        )
        self._stack.enter_context(guard.network(f"answering through {settings.engine_url}", hosts=backend.hosts))
        model = ServedModel(named.name, task, aliases=named.aliases, version=named.version)
        return Served(backend, {model.name: model}, settings, keys=self._keys, collector=self._collector)

    def _open_engine(self) -> Served:
        from slmctl.artifacts.artifact import sha256_file
        from slmctl.inference.engine import Engine
        from slmctl.model_files import memory
        from slmctl.pipeline import model_lookup, served_adapters
        from slmctl.server.app import Served
        from slmctl.server.backends import LocalEngine
        from slmctl.server.openai_requests import ServedModel
        from slmctl.server.router import Router
        from slmctl.server.shadow import require_comparable

        settings = self._settings
        artifact, path = model_lookup.gguf(make_workspace(self._options), self._model, self._type)
        loras = {name: served_adapters.find(place, artifact, path) for name, place in settings.adapters.items()}
        paths = {name: lora.path for name, lora in loras.items()}
        memory.require_engine(path, sequences=settings.sequences, context=settings.context_length)
        with contextlib.ExitStack() as stack:
            engine = stack.enter_context(
                Engine(
                    path,
                    sequences=settings.sequences,
                    context=settings.context_length,
                    adapters=paths,
                    classifier=model_lookup.is_classifier(artifact),
                )
            )
            own, bare, opening = model_lookup.task_in(artifact, path, engine)
            named = model_lookup.served_name(artifact, path)
            main = ServedModel(
                path.stem if named.name in loras else named.name,
                own,
                bare=bare,
                opening=opening,
                aliases=tuple(name for name in named.aliases if name not in loras),
                version=named.version,
                file=named.file,
                digest=_digest_of(artifact, path),
            )
            models = {main.name: main}
            models |= {name: _with_adapter(main, name, lora) for name, lora in loras.items()}
            router = None
            if settings.policy is not None:
                router = Router.of(settings.policy, settings, sha256_file(path), own, main.name)
                stack.enter_context(router.open())
            notes = [note] if (note := model_lookup.other_build(artifact, path, engine.info["build"])) else []
            notes += [lora.note for lora in loras.values() if lora.note]
            for note in notes:
                terminal().say(f"warning: {note}")
            if self._shadow is not None:  # the tag has moved to a release of another task
                require_comparable(self._shadow.model, main)
            questions = self._questions(artifact)
            self._digest = artifact.digest
            end = stack.pop_all().close
        return Served(
            LocalEngine(engine), models, settings, keys=self._keys, router=router, collector=self._collector,
            shadow=self._shadow, questions=questions, notes=notes, close=end,
        )  # fmt: skip

    def _open_shadow(self, name: str) -> Shadow:
        from slmctl.inference.engine import Engine
        from slmctl.model_files import memory
        from slmctl.pipeline import model_lookup
        from slmctl.server.backends import LocalEngine
        from slmctl.server.openai_requests import ServedModel
        from slmctl.server.shadow import HANG_S, Shadow, require_comparable

        settings = self._settings
        artifact, path = model_lookup.gguf(make_workspace(self._options), name, self._type)
        memory.require_engine(path, sequences=1, context=settings.context_length)
        classifier = model_lookup.is_classifier(artifact)
        with contextlib.ExitStack() as stack:
            engine = Engine(
                path, sequences=1, context=settings.context_length, classifier=classifier, hang_s=HANG_S,
                background=True,
            )  # fmt: skip
            stack.enter_context(engine)
            task, bare, opening = model_lookup.task_in(artifact, path, engine)
            named = model_lookup.served_name(artifact, path)
            model = ServedModel(
                named.name, task, bare=bare, opening=opening, version=named.version, file=named.file,
                digest=_digest_of(artifact, path),
            )  # fmt: skip
            require_comparable(model, next(iter(self.served.models.values())))
            return Shadow(LocalEngine(engine), model, stack.pop_all().close)

    def _questions(self, artifact: Artifact) -> Novelty | None:
        """The training rows of a release, where answers or decisions are written down and the rows are known here."""
        settings = self._settings
        if settings.collect is None and settings.policy is None:
            return None
        from slmctl.pipeline import model_lookup
        from slmctl.server import novelty

        root = model_lookup.root_of(self._options.directory, artifact.path).resolve()
        return novelty.of_model(root, artifact, settings.training_rows)


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
