"""An answerer that consists of others, such as an engine and linear members."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from slmctl.inference.engine import Answering, Outcomes, Request
from slmctl.inference.supervised_child import State


class Composition(Answering):
    """An engine combined with others, as ready as all of them; the subclass's `submit` decides
    which gets a request.

    Args:
        others: Further answerers, without which there is no answer.
    """

    def __init__(self, engine: Answering, *others: Answering) -> None:
        self.engine, self._parts = engine, (engine, *others)
        self._on_death: Callable[[], None] = lambda: None

    @property
    def build(self) -> str:
        return self.engine.build

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

    @property
    def ahead(self) -> int:  # type: ignore[override]
        return self.engine.ahead

    @property
    def matmul_dtype(self) -> str | None:  # type: ignore[override]
        return self.engine.matmul_dtype

    def prompts(self, request: Request) -> Iterable[str]:
        return self.engine.prompts(request)

    def ask_all(
        self,
        requests: Iterable[Request],
        *,
        widen: bool = False,
        alone: bool = False,
        through: Answering | None = None,
    ) -> Outcomes:
        return self.engine.ask_all(requests, widen=widen, alone=alone, through=through or self)
