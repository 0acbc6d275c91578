"""The models of `slmctl serve`, opened: engine or endpoint, task contracts, router."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.config import ServeConfig
    from slmctl.server.app import Served
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

    def __enter__(self) -> ServedModels:
        self.served = self._open_endpoint() if self._settings.engine_url is not None else self._open_engine()
        return self

    def __exit__(self, *_: object) -> None:
        self.served.close()
        self._stack.close()

    @property
    def follow(self) -> Callable[[], Served | None] | None:
        """The function that opens a tag's new release (None if it is the same one); None without a tag."""
        return self._moved if (self._model or "").startswith("dir:") and self._settings.engine_url is None else None

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
        return Served(backend, {model.name: model}, settings, keys=self._keys)

    def _open_engine(self) -> Served:
        from slmctl.artifacts.artifact import sha256_file
        from slmctl.inference.engine import Engine
        from slmctl.model_files import memory
        from slmctl.pipeline import model_lookup
        from slmctl.server.app import Served
        from slmctl.server.backends import LocalEngine
        from slmctl.server.openai_requests import ServedModel
        from slmctl.server.router import Router

        settings = self._settings
        artifact, path = model_lookup.gguf(make_workspace(self._options), self._model, self._type)
        loras = {name: model_lookup.lora(place) for name, place in settings.adapters.items()}
        paths = {name: lora for name, (lora, _) in loras.items()}
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
            )
            models = {main.name: main}
            for name, (file, task) in loras.items():
                models[name] = ServedModel(
                    name, task or own, adapter=name, bare=bare and task is None, opening=opening, file=file.name
                )
            router = None
            if settings.policy is not None:
                router = Router.of(settings.policy, settings, sha256_file(path), own, main.name)
                stack.enter_context(router.open())
            notes = [note] if (note := model_lookup.other_build(artifact, path, engine.info["build"])) else []
            for note in notes:
                terminal().say(f"warning: {note}")
            self._digest = artifact.digest
            end = stack.pop_all().close
        return Served(LocalEngine(engine), models, settings, keys=self._keys, router=router, notes=notes, close=end)
