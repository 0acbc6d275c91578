"""Answerers that consist of others, such as an engine and an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from slmctl.inference.engine import Answering, Outcomes, Request
from slmctl.inference.supervised_child import State, Supervised


class Parts(Answering):
    """An answerer that is as ready as its parts.

    Args:
        parts: What it is made of, nothing at the least; the first one's build is named.
    """

    def __init__(self, *parts: Answering | Supervised) -> None:
        self._parts = parts
        self._on_death: Callable[[], None] = lambda: None

    @property
    def build(self) -> str:
        return next((part.build for part in self._parts), "")

    @property
    def alive(self) -> bool:
        return all(part.alive for part in self._parts)

    @property
    def state(self) -> State:
        return next((part.state for part in self._parts if part.state != "ready"), "ready")

    @property
    def on_death(self) -> Callable[[], None]:
        return self._on_death

    @on_death.setter
    def on_death(self, called: Callable[[], None]) -> None:
        self._on_death = called
        for part in self._parts:
            part.on_death = called

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def held_bytes(self) -> int:
        return sum(part.held_bytes() for part in self._parts)

    def revive(self) -> None:
        for part in self._parts:
            part.revive()


class Composition(Parts):
    """An engine combined with an encoder; the subclass's `submit` decides which of both gets a request.

    Args:
        others: Further answerers, without which there is no answer.
    """

    def __init__(self, engine: Answering, *others: Answering) -> None:
        super().__init__(engine, *others)
        self.engine = engine

    @property
    def ahead(self) -> int:  # type: ignore[override]
        return self.engine.ahead

    @property
    def matmul_dtype(self) -> str | None:  # type: ignore[override]
        return self.engine.matmul_dtype

    def prompts(self, request: Request) -> Iterable[str]:
        return self.engine.prompts(request)

    def ask_all(
        self, requests: Iterable[Request], *, widen: bool = False, alone: bool = False, through: Answering | None = None
    ) -> Outcomes:
        return self.engine.ask_all(requests, widen=widen, alone=alone, through=through or self)
