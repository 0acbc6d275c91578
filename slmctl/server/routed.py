"""One routed answer, and the parts that all routers of a server share: generalist, log of
decisions, figures.

Neither figures nor decisions hold a word of a question or an answer.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slmctl.config import MachinePrices, ServeConfig
from slmctl.console import timestamp
from slmctl.errors import UsageError
from slmctl.inference.escalation_policy import Policy
from slmctl.inference.events import Event
from slmctl.network import guard
from slmctl.network.decisions import CHAT, Api
from slmctl.server.generalist import Generalist
from slmctl.server.log import Log

LOCAL_REASONS = (
    "kept",  # by the policy
    "sensitive",  # the detectors or the caller say so
    "doubt",  # the search for sensitive data failed, or the answer has no confidence
    "unsure",
    "out-of-scope",  # the policy would escalate, and no general model is named
    "circuit-open",  # the general model failed again and again, and is left alone for a while
    "generalist-down",
    "generalist-slow",
    "generalist-busy",
    "generalist-error",
    "generalist-garbage",
)
GENERALIST_REASONS = ("unsure", "out-of-scope")
# one that tells nothing: a client could write anything
_PLAIN_ID = re.compile(r"(?:[a-z]{1,12}-)?[0-9a-f-]{8,64}")
# figures of a cost: since the start, and those of calibrate
COST = ("expected", "measured", "low", "high")
FAMILIES = {  # name: kind, help
    "slmctl_routed": ("counter", "Answers by the model that gave them, and why."),
    "slmctl_route_tokens": (
        "counter",
        "Tokens of answers by the model that gave them, as it says.",
    ),
    "slmctl_generalist_seconds": (
        "counter",
        "Seconds that the general model took for answers that were used.",
    ),
    "slmctl_generalist_cost": ("counter", "Price of the general model's answers that were used."),
    "slmctl_avoided_cost": (
        "counter",
        "What the general model would have cost for the answers given here.",
    ),
    "slmctl_savings": (
        "gauge",
        "Avoided cost less the machine's price since the start; below 0 it does not pay.",
    ),
    "slmctl_cost_per_thousand": (
        "gauge",
        "Cost of a thousand questions by the policy: expected since the start; "
        "measured by calibrate, from low to high.",
    ),
    "slmctl_p_correct_sum": (
        "counter",
        "Sum of p_correct over judged answers: how many of them should be right.",
    ),
    "slmctl_p_correct_count": ("counter", "Local answers that the policy judged."),
    "slmctl_circuit_open": ("gauge", "1 while the general model is left alone."),
    "slmctl_decisions_dropped": ("counter", "Decisions that the file of decisions did not take."),
}
Sample = tuple[dict[str, str], float]  # labels, value


class LocalAnswer(Event):
    """The local model's last event, with the whole text of its answer."""

    text: str


@dataclass(frozen=True)
class Routed:
    """One answer, of one model.

    Attributes:
        model: The name of the model that gave it.
        route: `local` or `generalist`.
        reason: One of LOCAL_REASONS or GENERALIST_REASONS.
        local: The local model's last event.
        finish: Why it ended: `stop` or `length`.
        p_correct: How likely the local answer is right, by the policy; None where that is unknown.
        sure: False where the policy would escalate the local answer.
        prompt_tokens, completion_tokens: Of the answer given; of the general model as far as it
            says.
    """

    text: str = field(repr=False)
    model: str
    route: str
    reason: str
    local: LocalAnswer = field(repr=False)
    finish: str = "stop"
    p_correct: float | None = None
    sure: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Escalation:
    """The way from the routers of one server to its generalist.

    Args:
        generalist: Gets the escalated questions; None only reports which would be.
        prices: For the savings.
        decisions: File that gets a line about each decision; the caller's log by default.
    """

    def __init__(
        self,
        generalist: Generalist | None = None,
        *,
        prices: MachinePrices | None = None,
        decisions: Path | None = None,
    ) -> None:
        self.generalist = generalist
        self.prices = prices
        self.decisions = decisions
        # of decisions: a disk that is full or slow holds up no answer
        self._file: Log | None = None
        self._begun = time.monotonic()
        self._routed: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._generalist_s = 0.0
        self._p_correct_sum, self._p_correct_count = 0.0, 0
        # by model: expected costs, and of how many questions
        self._spent: dict[str, tuple[float, int, Policy]] = {}

    @property
    def api(self) -> Api:
        """The API of the generalist."""
        return self.generalist.settings.api if self.generalist is not None else CHAT

    @classmethod
    def of(cls, settings: ServeConfig) -> Escalation:
        """The escalation that a config asks for.

        Raises:
            UsageError: The general model's address is wrong, or its key is missing.
        """
        generalist = Generalist(settings.generalist) if settings.generalist is not None else None
        return cls(generalist, prices=settings.prices, decisions=settings.decision_log)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Let this process reach the general model's host, and no
        other; and write decisions down.
        """
        with contextlib.ExitStack() as stack:
            if self.generalist is not None:
                endpoint = self.generalist.endpoint
                stack.enter_context(guard.network(f"asking {endpoint.host}", hosts=endpoint.hosts))
            if self.decisions is not None:
                try:
                    self.decisions.parent.mkdir(parents=True, exist_ok=True)
                    stream = self.decisions.open("a", encoding="utf-8")
                except OSError as error:
                    raise UsageError(
                        f"decisions cannot be written to {self.decisions}: {error.strerror}"
                    ) from None
                self._file = Log(stream)
                stack.callback(self._file.close, stream=True)
            yield

    async def close(self) -> None:
        """Close the connections to the general model."""
        if self.generalist is not None:
            await self.generalist.endpoint.close()

    def count(self, routed: Routed, generalist_s: float) -> None:
        """Count a decision; `generalist_s` are the seconds of the
        generalist's answer, 0 if it is not used.
        """
        self._routed[routed.route, routed.reason] += 1
        self._tokens[routed.route, "prompt"] += routed.prompt_tokens
        self._tokens[routed.route, "completion"] += routed.completion_tokens
        self._generalist_s += generalist_s
        if routed.p_correct is not None:
            self._p_correct_sum += routed.p_correct
            self._p_correct_count += 1

    def spend(self, name: str, policy: Policy, cost: float) -> None:
        """Count the expected cost of a decision on a model's answer, by a policy with costs."""
        spent, questions = self._spent.get(name, (0.0, 0, policy))[:2]
        self._spent[name] = (spent + cost, questions + 1, policy)

    def note(
        self,
        routed: Routed,
        times: Mapping[str, float],
        *,
        redacted: int,
        fault: str,
        request: str,
        log: Log | None,
    ) -> None:
        """Write a decision down, in the file of decisions or else in `log`."""
        line = {
            "request": request if _PLAIN_ID.fullmatch(request) else None,
            "route": routed.route,
            "reason": routed.reason,
            "model": routed.model,
            "p_correct": routed.p_correct,
            **{name: round(1000 * seconds, 1) for name, seconds in times.items()},
            "prompt_tokens": routed.prompt_tokens,
            "completion_tokens": routed.completion_tokens,
            **({"redacted": redacted} if redacted else {}),
            **({"fault": fault} if fault else {}),
        }
        if self._file is not None:
            self._file.line({"time": timestamp(), **line})
        elif log is not None:
            log.event("decision", **line)

    def figures(self) -> dict[str, list[Sample]]:
        reasons = [*(("local", reason) for reason in LOCAL_REASONS)]
        reasons += (
            [("generalist", reason) for reason in GENERALIST_REASONS] if self.generalist else []
        )
        samples: dict[str, list[Sample]] = {
            "slmctl_routed": [
                ({"route": a, "reason": b}, float(self._routed[a, b])) for a, b in reasons
            ],
            "slmctl_route_tokens": [
                ({"route": route, "kind": kind}, float(self._tokens[route, kind]))
                for route in ("local", "generalist")
                for kind in ("prompt", "completion")
            ],
            "slmctl_generalist_seconds": [({}, self._generalist_s)],
            "slmctl_p_correct_sum": [({}, self._p_correct_sum)],
            "slmctl_p_correct_count": [({}, float(self._p_correct_count))],
            "slmctl_circuit_open": [
                ({}, float(self.generalist is not None and self.generalist.breaker.is_open))
            ],
            "slmctl_decisions_dropped": [({}, float(self._file.dropped if self._file else 0))],
        }
        for name, (spent, questions, policy) in self._spent.items():
            costs = zip(
                COST, (1000 * spent / questions, *policy.figures.get("cost", ())), strict=False
            )
            each = [({"model": name, "figure": figure}, value) for figure, value in costs]
            samples.setdefault("slmctl_cost_per_thousand", []).extend(each)
        if self.prices is not None:
            money = {"currency": self.prices.currency}
            avoided, hours = self._price("local"), (time.monotonic() - self._begun) / 3600
            samples["slmctl_generalist_cost"] = [(money, self._price("generalist"))]
            samples["slmctl_avoided_cost"] = [(money, avoided)]
            samples["slmctl_savings"] = [(money, avoided - hours * self.prices.machine_per_hour)]
        return samples

    def _price(self, route: str) -> float:
        """The price of a route's tokens at the generalist, paid or avoided."""
        assert self.prices is not None
        return self.prices.of_tokens(
            self._tokens[route, "prompt"], self._tokens[route, "completion"]
        )
