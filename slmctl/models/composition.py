"""An engine combined with an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from slmctl.inference.engine import Answering, Outcomes, Request, State


class Composition(Answering):
    """An engine combined with an encoder; the subclass's `submit` decides which of both gets a request."""

    def __init__(self, engine: Answering) -> None:
        self.engine = engine

    @property
    def build(self) -> str:  # type: ignore[override]
        return self.engine.build

    @property
    def alive(self) -> bool:  # type: ignore[override]
        return self.engine.alive

    @property
    def state(self) -> State:  # type: ignore[override]
        return self.engine.state

    @property
    def ahead(self) -> int:  # type: ignore[override]
        return self.engine.ahead

    @property
    def matmul_dtype(self) -> str | None:  # type: ignore[override]
        return self.engine.matmul_dtype

    @property
    def on_death(self) -> Callable[[], None]:
        return self.engine.on_death

    @on_death.setter
    def on_death(self, called: Callable[[], None]) -> None:
        self.engine.on_death = called

    def close(self) -> None:
        self.engine.close()

    def held_bytes(self) -> int:
        return self.engine.held_bytes()

    def revive(self) -> None:
        self.engine.revive()

    def ask_all(
        self, requests: Iterable[Request], *, widen: bool = False, alone: bool = False, through: Answering | None = None
    ) -> Outcomes:
        return self.engine.ask_all(requests, widen=widen, alone=alone, through=through or self)
