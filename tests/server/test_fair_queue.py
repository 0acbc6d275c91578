"""The order of requests that wait: fair over models, by the time that they take and by weight."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from slmctl.server.fair_queue import FairQueue, Turn


@dataclass
class Simulation:
    """Requests that take known times, on a clock that only this moves."""

    slots: int | None
    seconds: dict[str, float]
    weights: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    order: list[str] = field(default_factory=list)
    ends: list[tuple[float, int, Turn]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = FairQueue(self.slots, self.weights, clock=lambda: self.now)

    def ask(self, model: str, count: int = 1) -> Turn:
        turn = Turn(model, count, lambda: self._start(turn))
        self.queue.enter(turn)
        return turn

    def _start(self, turn: Turn) -> None:
        self.order.append(turn.model)
        self.ends.append((self.now + self.seconds[turn.model], len(self.order), turn))

    def end_one(self) -> None:
        """Go on to the moment at which the next request ends."""
        first = min(self.ends, key=lambda entry: entry[:2])
        self.ends.remove(first)
        self.now = first[0]
        self.queue.leave(first[2])


def test_a_burst_for_one_model_does_not_hold_up_another() -> None:
    running = Simulation(2, {"a": 1.0, "b": 1.0})
    for _ in range(50):
        running.ask("a")
    running.end_one()
    running.ask("b")  # after 50 others
    running.end_one()
    running.end_one()
    assert running.order[2:5].count("b") == 1


def test_models_share_the_time_and_not_the_number_of_requests() -> None:
    running = Simulation(1, {"long": 10.0, "short": 1.0})
    for _ in range(200):
        running.ask("long")
        running.ask("short")
    for _ in range(110):
        running.end_one()
    begun = Counter(running.order)
    assert 8 <= begun["short"] / begun["long"] <= 12


def test_weights_share_the_time() -> None:
    running = Simulation(1, {"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0})
    for _ in range(100):
        running.ask("a")
        running.ask("b")
    for _ in range(80):
        running.end_one()
    assert 2.5 <= running.order.count("a") / running.order.count("b") <= 3.5


def test_an_idle_model_has_saved_nothing_up() -> None:
    running = Simulation(1, {"a": 1.0, "b": 1.0})
    for _ in range(40):
        running.ask("a")
    for _ in range(30):
        running.end_one()
    for _ in range(40):
        running.ask("b")
    before = len(running.order)
    for _ in range(8):
        running.end_one()
    assert 3 <= running.order[before:].count("b") <= 5


def test_no_more_run_than_there_are_slots_and_one_that_gave_up_takes_none() -> None:
    running = Simulation(3, {"a": 1.0})
    turns = [running.ask("a") for _ in range(6)]
    assert (running.queue.running, len(running.order)) == (3, 3)
    running.queue.leave(turns[4])  # its client has gone
    running.queue.leave(turns[4])
    for _ in range(3):
        running.end_one()
    assert running.queue.running == 2
    for _ in range(2):
        running.end_one()
    running.queue.leave(turns[0])  # a second time
    assert (running.queue.running, len(running.order)) == (0, 5)


def test_one_of_several_sequences_needs_one_to_be_free() -> None:
    running = Simulation(2, {"a": 1.0, "b": 1.0})
    running.ask("a", 8)
    assert (running.queue.running, running.order) == (8, ["a"])
    running.ask("b")
    assert running.order == ["a"]
    running.end_one()
    assert running.order == ["a", "b"]


def test_without_slots_everything_is_let_through() -> None:
    running = Simulation(None, {"a": 1.0})
    for _ in range(20):
        running.ask("a")
    assert running.queue.running == 20
