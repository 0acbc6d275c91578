"""Fair order of requests that wait: by the time that each model's requests take, so that a burst for one starves none.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): every model has a clock that each of its requests moves on by the
seconds that such a request lately took, divided by the model's weight, and the model whose clock is behind is next. A
model that was idle takes part from now on; it has saved nothing up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

RECENT = 0.2  # share of the newest request in a model's mean
FIRST_S = 1.0  # that a request is taken to need while none has ended


@dataclass(eq=False)
class Turn:
    """A request in the queue.

    Attributes:
        model: The model that it is for.
        count: Sequences that it needs.
        start: Called once, when it is its turn.
    """

    model: str
    count: int
    start: Callable[[], None]
    begun: float | None = None


@dataclass
class FairQueue:
    """The queue.

    Attributes:
        slots: Sequences at the same time; None lets every request through, where an engine of its own has an order.
        weights: Of models, where they differ from 1.
    """

    slots: int | None
    weights: Mapping[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    running: int = 0
    _now: float = 0.0  # the clock of the model that was last taken
    _clocks: dict[str, float] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _waiting: dict[str, deque[Turn]] = field(default_factory=dict)  # models with requests alone

    def enter(self, turn: Turn) -> None:
        """Take a request; it is started at once where there is room."""
        if turn.model not in self._waiting:
            self._waiting[turn.model] = deque()
            self._clocks[turn.model] = max(self._clocks.get(turn.model, 0.0), self._now)
        self._waiting[turn.model].append(turn)
        self._take()

    def leave(self, turn: Turn) -> None:
        """Take a request out that has ended or was given up; a second time changes nothing."""
        if turn.begun is not None:
            self.running -= turn.count
            seconds, mean = self.clock() - turn.begun, self._seconds.get(turn.model)
            self._seconds[turn.model] = seconds if mean is None else mean + RECENT * (seconds - mean)
            turn.begun, turn.count = None, 0
        elif turn in (left := self._waiting.get(turn.model, deque())):
            left.remove(turn)
            if not left:
                del self._waiting[turn.model]
        self._take()

    def _take(self) -> None:
        """Start what there is room for. A request of several sequences needs one to be free, not all of them."""
        while self._waiting and (self.slots is None or self.running < self.slots):
            model = min(self._waiting, key=lambda name: self._clocks[name])
            turn = self._waiting[model].popleft()
            if not self._waiting[model]:
                del self._waiting[model]
            self._now = self._clocks[model]
            self._clocks[model] += turn.count * self._cost_s(model) / self.weights.get(model, 1.0)
            self.running += turn.count
            turn.begun = self.clock()
            turn.start()

    def _cost_s(self, model: str) -> float:
        """Seconds that a request of a model lately took; of a model without one, the mean of the others."""
        means = self._seconds.values()
        return self._seconds.get(model) or (sum(means) / len(means) if means else 0.0) or FIRST_S
