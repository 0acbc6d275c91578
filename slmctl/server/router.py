"""The router: keeps the local answer or escalates to the generalist; a sensitive question never
leaves.

In this order: the veto (`conversation_veto`), the local answer, the policy, the circuit breaker,
the generalist. A doubt or a failure ends with the local answer, which is there before a question
leaves, so no answer is made of two models' texts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError
from slmctl.inference.escalation_policy import Decision, Policy
from slmctl.network.endpoint_replies import Reply
from slmctl.sensitive import conversation_veto, search_process
from slmctl.server.forms.client_schemas import satisfies
from slmctl.server.forms.request import CheckedRequest
from slmctl.server.forms.tool_requests import Offer
from slmctl.server.generalist import GeneralistError
from slmctl.server.log import Log
from slmctl.server.routed import Escalation, LocalAnswer, Routed
from slmctl.task import tool_calls, untuned_prompt
from slmctl.task.contract import Task

LOOK_S = 2.0  # for the detectors, which take a millisecond; after it there is doubt
# conversations that are looked at, or wait until it is their client's turn: a thread each
LOOKERS = 256
CUT_S = 0.5  # for a request that was given up to let go of its connection
T = TypeVar("T")


@dataclass(frozen=True)
class _Beyond:
    """The outcome of the general model.

    Attributes:
        reason: The reason why its reply is used, or why it has none.
        text: Of the reply, as the task allows it.
        fault: The type of an unexpected exception.
    """

    reason: str
    reply: Reply | None = None
    text: str = ""
    fault: str = ""


class Router:
    """Decides about each request.

    Args:
        policy: Fitted on the very file that answers here; see `Policy.require`.
        task: The task contract of the local model.
        name: The local model's name.
        refuse: Checks of a draft (`serve.refuse`); one that fails any is not kept.
        escalation: Shared by the routers of a server; without a generalist it only reports what
            would be escalated.

    Raises:
        UsageError: The general model answers with labels alone, and the task has none or too many.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        name: str,
        escalation: Escalation,
        refuse: Sequence[str] = (),
    ) -> None:
        self.policy = policy
        self.task = task
        self.name = name
        self.escalation = escalation
        self.refuse = refuse
        self.generalist = escalation.generalist
        self._choice = untuned_prompt.choice(task, escalation.api)
        # own threads: one that hangs takes none from the server
        self._lookers = ThreadPoolExecutor(LOOKERS, thread_name_prefix="veto")
        if self.generalist is not None:
            # starts its process, for which the first question would wait
            search_process.find([""], timeout_s=LOOK_S)

    def retire(self) -> None:
        """End its threads; other routers go on."""
        self._lookers.shutdown(wait=False, cancel_futures=True)

    def judges(self, checked: CheckedRequest) -> bool:
        """True for a request that is decided on as a whole.

        Without a general model, several answers and a stream of free text are given as they come,
        without a decision.
        """
        is_whole = len(checked.requests) == 1 and not (checked.stream and self.task.rules.is_free)
        return is_whole or self.generalist is not None

    async def route(
        self,
        checked: CheckedRequest,
        headers: Mapping[str, str],
        local: Callable[[], Awaitable[LocalAnswer]],
        *,
        ends_at: float = math.inf,
        request: str = "",
        client: str = "",
        log: Log | None = None,
    ) -> Routed:
        """Answer a request.

        Args:
            checked: The request, with the whole conversation as the caller gave it.
            local: Runs the local model to its end: its last event, and `text`.
            ends_at: Deadline of the answer, in the loop's time; the generalist gets the time that
                is left.
            request: The id that the answer carries, for the log of decisions.
            client: The name of the key that it came with.
            log: Gets the decision where no file is named for it.

        Raises:
            The exceptions of `local`: without a local answer no other one is given.
        """
        begun = time.monotonic()
        cleared = await self._clear(checked, headers, client)
        looked = time.monotonic()
        event = await local()
        answered, verdict = time.monotonic(), self._judged(event)
        finish = event.get("finish", "stop")
        failed = await asyncio.to_thread(
            checked.failed_checks, 0, event["text"], finish, self.refuse
        )
        if verdict is not None and failed:
            verdict = dataclasses.replace(verdict, keep=False, reason="unsure")
        beyond = await self._beyond(checked, cleared, verdict, ends_at)
        p_correct, sure = (None, True) if verdict is None else (verdict.p_correct, verdict.keep)
        if beyond.reply is None:
            routed = Routed(
                event["text"],
                self.name,
                "local",
                beyond.reason,
                event,
                finish,
                p_correct,
                sure,
                event.get("prompt_tokens", 0),
                event.get("completion_tokens", 0),
            )
        else:
            assert self.generalist is not None
            finish = "stop" if beyond.reply.finish in ("", "tool_calls") else beyond.reply.finish
            routed = Routed(
                beyond.text,
                self.generalist.name,
                "generalist",
                beyond.reason,
                event,
                finish,
                p_correct,
                sure,
                beyond.reply.prompt_tokens or 0,
                beyond.reply.completion_tokens or 0,
            )
        self.escalation.count(routed, beyond.reply.seconds if beyond.reply is not None else 0.0)
        if verdict is not None and self.policy.costs is not None:
            self.escalation.spend(
                self.name, self.policy, self.policy.costs.of(verdict, event.get("labels", {}))
            )
        times = {
            "look_ms": looked - begun,
            "local_ms": answered - looked,
            "beyond_ms": time.monotonic() - answered,
        }
        self.escalation.note(
            routed, times, redacted=len(cleared.marks), fault=beyond.fault, request=request, log=log
        )
        return routed

    async def _clear(
        self, checked: CheckedRequest, headers: Mapping[str, str], client: str
    ) -> conversation_veto.Cleared:
        """Returns the veto's result; detectors that fail or are slow,
        and unsearched fields, give `doubt`.
        """
        if self.generalist is None:
            return conversation_veto.Cleared()  # nothing leaves
        if checked.unread:
            return conversation_veto.Cleared(reason="doubt")
        if conversation_veto.is_marked(headers):
            return conversation_veto.Cleared(reason="sensitive")
        redact = self.generalist.settings.redact
        offer = checked.offer  # the task's own tools leave with an escalated question, too
        own = (
            conversation_veto.texts_in(offer.tools)
            if offer is not None and not offer.is_clients
            else ()
        )
        also = (*checked.also, *own)
        look = functools.partial(
            conversation_veto.clear, checked.sent, redact=redact, also=also, client=client
        )
        looking = asyncio.get_running_loop().run_in_executor(self._lookers, look)
        cleared, _ = await _ended(looking, LOOK_S)
        return cleared if cleared is not None else conversation_veto.Cleared(reason="doubt")

    def _judged(self, event: LocalAnswer) -> Decision | None:
        """Returns the decision of the policy on the local answer; None without its signals."""
        if "p_correct" in event:  # kept by the policy's first step
            return Decision(True, event["p_correct"], "kept")
        try:
            return self.policy.judge(event, event["text"])
        except ValueError:
            return None

    async def _beyond(
        self,
        checked: CheckedRequest,
        cleared: conversation_veto.Cleared,
        verdict: Decision | None,
        ends_at: float,
    ) -> _Beyond:
        """Returns the outcome of the generalist, or the reason for not asking it."""
        if cleared.reason:
            return _Beyond(cleared.reason)
        offer = checked.offer
        if (
            verdict is None
            or self._is_held_otherwise(checked.options)
            or (offer is not None and offer.is_chosen)
        ):
            return _Beyond("doubt")
        if verdict.keep or self.generalist is None:
            return _Beyond(verdict.reason)
        breaker, longest_s = self.generalist.breaker, self.generalist.settings.timeout_s
        if not breaker.admits():
            return _Beyond("circuit-open")
        limit_s = max(0.0, min(longest_s, ends_at - asyncio.get_running_loop().time() - CUT_S))
        try:
            outcome, error = await _ended(self._escalated(checked, cleared), limit_s)
        except asyncio.CancelledError:
            breaker.leaves()
            raise
        if outcome is not None:
            breaker.succeeded()
            return _Beyond(verdict.reason, *outcome)
        refusal = error if isinstance(error, GeneralistError) else None
        cut_short = error is None and limit_s < longest_s  # by the caller's own deadline
        if cut_short or (refusal is not None and not refusal.counts):
            breaker.leaves()
        else:
            breaker.failed(refusal.pause_s if refusal is not None else 0.0)
        if refusal is not None:
            return _Beyond(refusal.reason)
        return (
            _Beyond("generalist-slow")
            if error is None
            else _Beyond("generalist-down", fault=type(error).__name__)
        )

    def _is_held_otherwise(self, options: Mapping[str, Any]) -> bool:
        """True where the caller constrains the answer by a form
        that the policy was not fitted for.
        """
        form, choice = options.get("response_format"), options.get("structured_outputs")
        return self.task.rules.is_free and (
            choice is not None or form not in (None, {"type": "text"})
        )

    async def _escalated(
        self, checked: CheckedRequest, cleared: conversation_veto.Cleared
    ) -> tuple[Reply, str]:
        """The general model's reply, and its text as the task allows it.

        Raises:
            GeneralistError: There is none, or none that the task allows.
        """
        assert self.generalist is not None
        offer = checked.offer
        tools = offer.tools if offer is not None else ()
        reply = await self.generalist.ask(
            self._asked(cleared.messages, tools),
            self._options(checked.options),
            tools=tools,
            choice=self._choice,
        )
        # apart from the event loop, since a reply may be long
        if offer is not None:
            return reply, await asyncio.to_thread(self._read_call, reply, cleared, offer)
        return reply, await asyncio.to_thread(
            self._read, reply, cleared, checked.options.get("stop", ())
        )

    def _read_call(self, reply: Reply, cleared: conversation_veto.Cleared, offer: Offer) -> str:
        """The call in a reply, or `none`, as the local model would write it.

        Raises:
            GeneralistError: The reply has no call of an offered tool, and does not say `none`.
        """
        try:
            text = tool_calls.answer_of_openai(reply.tool_calls or ()) or reply.text
            answer = untuned_prompt.read(self.task, text)
            restored = conversation_veto.restore(
                answer, cleared.marks, is_json=answer != tool_calls.NO_CALL
            )
            call = tool_calls.read_answer(restored)
        except (DataError, ValueError, RecursionError):
            raise GeneralistError("generalist-garbage") from None
        if call is not None:
            schema = next((tool.schema for tool in offer.callable if tool.name == call.name), None)
            if schema is None or not satisfies(json.dumps(schema), json.dumps(call.arguments)):
                raise GeneralistError("generalist-garbage")
        return self.task.form.shown(call)

    def _read(
        self, reply: Reply, cleared: conversation_veto.Cleared, stop: str | Sequence[str]
    ) -> str:
        """The text of a reply, up to the caller's `stop` texts, which are not sent.

        Raises:
            GeneralistError: The task does not allow the text.
        """
        text, is_json = untuned_prompt.read(self.task, reply.text), self.task.is_json
        try:
            text = conversation_veto.restore(text, cleared.marks, is_json=is_json)
        except (ValueError, RecursionError):
            raise GeneralistError("generalist-garbage") from None
        if not self.task.accepts(text):
            raise GeneralistError("generalist-garbage")
        return _until(text, stop) if self.task.rules.is_free else text

    def _asked(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[JsonObject] = ()
    ) -> list[Mapping[str, Any]]:
        """The conversation as the generalist gets it, with the task in its
        system prompt if the local model has one.
        """
        if not self.task.system and self.task.rules.is_free:
            return list(messages)
        turns: list[Mapping[str, Any]] = [
            untuned_prompt.turn_of(message) for message in messages if message["role"] != "system"
        ]
        if self._choice is not None:
            return turns
        return [{"role": "system", "content": untuned_prompt.brief(self.task, tools=tools)}, *turns]

    def _options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The caller's sampling options, by one name each; a label or an
        object is not sampled, and needs its room.
        """
        if not self.task.rules.is_free:
            return {"temperature": 0}
        length = options.get("max_completion_tokens", options.get("max_tokens"))
        return {**options, "max_tokens": length}


async def _ended(work: Awaitable[T], limit_s: float) -> tuple[T | None, BaseException | None]:
    """The result of some work, or the exception that it raises; neither where its time was over.

    A task and not `wait_for`: that one waits for as long as the work takes to let go.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=limit_s)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_forget)
    if not task.done():
        await asyncio.wait({task}, timeout=CUT_S)
        return None, None
    error = None if task.cancelled() else task.exception()
    return (None if task.cancelled() or error is not None else task.result()), error


def _forget(task: asyncio.Future[Any]) -> None:
    """Retrieve the exception of a task that is no longer awaited, or asyncio would log it."""
    if not task.cancelled():
        task.exception()


def _until(text: str, stop: str | Sequence[str]) -> str:
    """A text up to the first of the stop texts."""
    places = [text.find(each) for each in ([stop] if isinstance(stop, str) else stop)]
    return text[: min((place for place in places if place >= 0), default=len(text))]
