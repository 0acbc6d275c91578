"""Open what `serve` is given: the engine, its models, the router."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slmctl.network import guard

if TYPE_CHECKING:
    pass
from slmctl.cli.group import Options, make_workspace, terminal


class ServedModels:
    """What `serve` is given, opened: who answers, the models by name, and who decides where a policy says so.

    In a `with` block; at its end everything is closed again.
    """

    def __init__(
        self, options: Options, settings: Any, model: str | None, type_name: str | None, *, keys: bool
    ) -> None:
        from slmctl.server.api_keys import KeyRing

        self._options, self._settings, self._model, self._type = options, settings, model, type_name
        self._keys = KeyRing(settings.keys) if keys else None
        self._stack = contextlib.ExitStack()
        self._digest = ""

    def __enter__(self) -> ServedModels:
        self.served = self._elsewhere() if self._settings.engine_url is not None else self._here()
        return self

    def __exit__(self, *_: object) -> None:
        self.served.close()
        self._stack.close()

    @property
    def follow(self) -> Callable[[], Any] | None:
        """What opens the release that a tag stands for by now, or None where it is the same; None without a tag."""
        return self._moved if (self._model or "").startswith("dir:") and self._settings.engine_url is None else None

    def _moved(self) -> Any:
        from slmctl.pipeline import resolve

        release = resolve.find_model(make_workspace(self._options), self._model, ("published",), default="published")
        if release.digest == self._digest:
            return None
        self.served = self._here()
        return self.served

    def _elsewhere(self) -> Any:
        from slmctl.pipeline import model_lookup
        from slmctl.server.app import Served
        from slmctl.server.backends import EndpointEngine
        from slmctl.server.openai_requests import ServedModel

        settings = self._settings
        task, name = model_lookup.contract(make_workspace(self._options), self._model, settings.engine_model)
        backend = EndpointEngine(
            settings.engine_url, settings.engine_model, settings.engine_key_env, settings.sequences
        )
        self._stack.enter_context(guard.network(f"answering through {settings.engine_url}", hosts=backend.hosts))
        return Served(backend, {name: ServedModel(name, task)}, settings, keys=self._keys)

    def _here(self) -> Any:
        from slmctl.artifacts.artifact import sha256_file
        from slmctl.inference.engine import Engine
        from slmctl.pipeline import model_lookup
        from slmctl.server.app import Served
        from slmctl.server.backends import LocalEngine
        from slmctl.server.openai_requests import ServedModel
        from slmctl.server.router import Router

        settings = self._settings
        found, path = model_lookup.gguf(make_workspace(self._options), self._model, self._type)
        loras = {name: model_lookup.lora(place) for name, place in settings.adapters.items()}
        paths = {name: lora for name, (lora, _) in loras.items()}
        with contextlib.ExitStack() as stack:
            engine = stack.enter_context(
                Engine(path, sequences=settings.sequences, context=settings.context_length, adapters=paths)
            )
            own, bare, opening = model_lookup.task_in(found, path, engine)
            models = {path.stem: ServedModel(path.stem, own, bare=bare, opening=opening)}
            for name, (_, task) in loras.items():
                models[name] = ServedModel(name, task or own, adapter=name, bare=bare and task is None, opening=opening)
            router = None
            if settings.policy is not None:
                router = Router.of(settings.policy, settings, sha256_file(path), own, path.stem)
                stack.enter_context(router.open())
            notes = [note] if (note := model_lookup.other_build(found, path, engine.info["build"])) else []
            for note in notes:
                terminal().say(f"warning: {note}")
            self._digest = found.digest
            end = stack.pop_all().close
        return Served(LocalEngine(engine), models, settings, keys=self._keys, router=router, notes=notes, close=end)
