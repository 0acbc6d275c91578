"""`auto`: a task router names the model that a request is for, and that model answers.

The veto comes first and holds for the whole way. Then the router is asked, in a turn of its own that ends before the
named model gets one, so that a server of one sequence cannot wait for itself. Where the router is not sure, or says
that the request is for no model, the general model is asked with the conversation alone, after the local answer is
there.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import NO_TASK
from slmctl.inference.escalation_policy import Decision
from slmctl.sensitive.conversation_veto import Cleared
from slmctl.server import openai_requests
from slmctl.server.bad_requests import BadRequestError
from slmctl.server.fleet_members import Served
from slmctl.server.metrics import Samples
from slmctl.server.openai_requests import FORMS, Ceilings, CheckedRequest, ServedModel
from slmctl.server.rate_limits import HeldPlace
from slmctl.server.request_run import Exchange
from slmctl.server.routed import LocalAnswer, Routed
from slmctl.server.router import Router, open_task
from slmctl.server.tool_requests import Offer

PATH = "x-slmctl-path"  # header: the models that were asked, in order
QUESTION = ("messages", "prompt", "input", "instructions")  # options that hold the conversation
FAMILIES = {
    "slmctl_auto": ("counter", "Requests to a task router by the model that it named, and whether it was sure.")
}


class AtItsWord:
    """A decision that takes a task router without a policy at its word."""

    def judge(self, answer: Mapping[str, Any], text: str) -> Decision:
        """Keep what names a model; P(correct) is not known."""
        return _for_none(0.0) if text.strip() == NO_TASK else Decision(True, 0.0, "confident")


@dataclass(frozen=True)
class Fixed:
    """A decision that was made before; None where there was none."""

    decision: Decision | None

    def judge(self, answer: Mapping[str, Any], text: str) -> Decision:
        """That decision.

        Raises:
            ValueError: There was none.
        """
        if self.decision is None:
            raise ValueError("the router's answer has no confidence")
        return self.decision


@dataclass(frozen=True)
class Naming:
    """The answer of a router to one request.

    Attributes:
        name: The router's.
        label: The model that it names, or NO_TASK.
        event: Its last event, with its answer.
        verdict: The decision of its policy; None where the answer has no confidence.
        p_correct: How likely the label is right, by the policy; None where it has none.
        cleared: The result of the veto.
        router: Decides where the named model's own policy does not.
    """

    name: str
    label: str
    event: LocalAnswer = field(repr=False)
    verdict: Decision | None
    p_correct: float | None
    cleared: Cleared = field(repr=False)
    router: Router = field(repr=False)

    @property
    def is_sure(self) -> bool:
        """True where the policy takes the router's word."""
        return self.verdict is not None and self.verdict.keep

    def is_left_to(self, own: Router | None) -> bool:
        """True where the named model's own policy decides on its answer."""
        return self.is_sure and self.label != NO_TASK and own is not None

    def offered(self, offer: Offer | None) -> Offer | None:
        """The functions that a general model may call: none where it gets the conversation alone.

        A client's choice among them is kept, since it keeps the answer here.
        """
        return offer if self.is_sure or (offer is not None and offer.is_chosen) else None

    def decides_by(self, own: Router | None) -> Router:
        """The router of the answer: the named model's own where the naming is sure and it has one."""
        if self.label == NO_TASK:
            return self.router.beside(self.cleared, (self.name,), self.name, Fixed(self.verdict))
        path = (self.name, self.label)
        if self.is_sure and own is not None:
            return own.beside(self.cleared, path)
        return self.router.beside(self.cleared, path, self.label, Fixed(self.verdict))

    @property
    def step(self) -> JsonObject:
        """The router as the first of the models that were asked."""
        return step(self.name, self.p_correct) | {"answer": self.label}


async def ask(
    body: JsonObject, kind: str, headers: Mapping[str, str], receive: Callable[[], Awaitable[Any]],
    *, model: ServedModel, served: Served, place: HeldPlace, ceilings: Ceilings, running: set[Exchange],
    limit_s: float, ends_at: float,
) -> Naming:  # fmt: skip
    """Ask a router for the model that a request is for.

    Args:
        body: The request; of its options the conversation alone is read.
        kind: Of the API.
        headers: The request's.
        receive: Tells that the client has gone.
        model: The router as it is served.
        served: Its release in memory, with its veto and policy.
        place: The request's place, whose turn is taken and given back.
        ceilings: On the size of a request.
        running: The exchanges that end with the server.
        limit_s: Seconds that an answer has.
        ends_at: When they are over, in the loop's time.

    Raises:
        BadRequestError: The conversation cannot be read.
        RequestFailedError: There is no answer.
    """
    question = {name: body[name] for name in QUESTION if name in body} | {"model": model.name}
    try:
        checked = await asyncio.to_thread(openai_requests.check, question, kind, {model.name: model}, ceilings)
    except BadRequestError as error:
        raise _with_hint(error, body, model.name) from None
    if len(checked.requests) > 1:
        raise BadRequestError(f"only one prompt is supported by '{model.name}', which names a model for it", "prompt")
    router = served.router
    assert router is not None
    exchange = Exchange(checked, served.backend, limit_s, ends_at=ends_at)
    running.add(exchange)
    try:
        exchange.watch(receive)
        cleared = await exchange.beside(router.cleared(checked.sent, headers, unread=checked.unread, also=checked.also))
        exchange.on_end = place.rest
        await exchange.beside(place.turn(model.name))
        exchange.begin()
        await exchange.whole()
    finally:
        exchange.close()
        running.discard(exchange)
        place.rest()
    (choice,) = exchange.choices
    event: LocalAnswer = {**choice.last, "text": choice.text}
    label, verdict = choice.text.strip(), router.judged(event)
    p_correct = None if verdict is None or isinstance(router.policy, AtItsWord) else verdict.p_correct
    if label == NO_TASK and verdict is not None:
        verdict = _for_none(verdict.p_correct)  # whatever its policy thinks of it, no model is for the request
    return Naming(model.name, label, event, verdict, p_correct, cleared, router)


def _with_hint(error: BadRequestError, body: JsonObject, name: str) -> BadRequestError:
    """The error about a conversation; of one that has calls or results in it, with what can be asked instead."""
    turns = [
        turn for listed in (body.get("messages"), body.get("input")) if isinstance(listed, list) for turn in listed
    ]
    if not any(isinstance(turn, dict) and (turn.get("tool_calls") or _is_of_call(turn)) for turn in turns):
        return error
    return BadRequestError(
        f"'{name}' reads no calls and no results: ask the model that calls the functions by its name", error.param,
        status=error.status, code=error.code,
    )  # fmt: skip


def _is_of_call(turn: JsonObject) -> bool:
    return turn.get("role") == "tool" or turn.get("type") in ("function_call", "function_call_output")


def without_task(model: ServedModel) -> ServedModel:
    """The router as the form of an answer by none of the models: any text."""
    return replace(model, task=open_task(model.task))


def require_text(checked: CheckedRequest) -> None:
    """Refuse to answer in a form when there is no model that could keep to it.

    Raises:
        BadRequestError: The client asks for one.
    """
    held = "tools" if checked.function else next((form for form in FORMS if form in checked.options), "")
    if held and checked.options.get(held) != {"type": "text"}:
        raise BadRequestError(
            f"this request is for none of the models here, so none can keep to '{held}'", held, code="no_task"
        )


class Named(Counter[tuple[str, bool]]):
    """Counts of what routers named."""

    def add(self, naming: Naming) -> None:
        """Count one."""
        self[naming.label, naming.is_sure] += 1

    def figures(self) -> dict[str, Samples]:
        """Every figure of FAMILIES."""
        return {
            "slmctl_auto": [
                ({"model": label, "sure": str(sure).lower()}, float(number)) for (label, sure), number in self.items()
            ]
        }


def _for_none(p_correct: float) -> Decision:
    return Decision(False, p_correct, "out-of-scope")


def step(model: str, p_correct: float | None) -> JsonObject:
    """A model that was asked, with its P(correct) where a policy says it."""
    return {"model": model} | ({"p_correct": p_correct} if p_correct is not None else {})


def path(steps: Sequence[JsonObject], routed: Routed | None) -> list[JsonObject]:
    """Every model that was asked: those here, and the general one where its answer is used."""
    return [*steps, *([{"model": routed.model}] if routed is not None and routed.route != "local" else [])]


def header(steps: Sequence[JsonObject], routed: Routed | None) -> str:
    """`auto, tickets` or `auto, tickets, generalist`."""
    beyond = ["generalist"] if routed is not None and routed.route != "local" else []
    return ", ".join([*(str(each["model"]) for each in steps), *beyond])
