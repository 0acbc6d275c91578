"""The router: keeps the local answer or escalates to the generalist; a sensitive question never leaves.

In this order: the veto (`conversation_veto`), the local answer, the policy, the circuit breaker, the generalist. A
doubt or a failure ends with the local answer, which is there before a question leaves, so no answer is made of two
models' texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from slmctl import sensitive
from slmctl.artifacts import artifact
from slmctl.config import Prices, ServeConfig
from slmctl.errors import UsageError
from slmctl.inference.escalation_policy import Decision, Policy
from slmctl.inference.events import Event
from slmctl.network import guard
from slmctl.network.openai_client import Reply
from slmctl.sensitive import conversation_veto, search_process
from slmctl.server.generalist import Generalist, GeneralistError
from slmctl.server.log import Log
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task

LOCAL_REASONS = (
    "confident",  # the policy keeps the answer
    "sensitive",  # the detectors or the caller say so
    "doubt",  # the search for sensitive data failed, or the answer has no confidence
    "unsure", "out-of-scope",  # the policy would escalate, and no general model is named
    "circuit-open",  # the general model failed again and again, and is left alone for a while
    "generalist-down", "generalist-slow", "generalist-busy", "generalist-error", "generalist-garbage",
)  # fmt: skip
GENERALIST_REASONS = ("unsure", "out-of-scope")
LOOK_S = 2.0  # for the detectors, which take a millisecond; after it there is doubt
LOOKERS = 4  # conversations that are looked at at the same time
_PLAIN_ID = re.compile(r"(?:[a-z]{1,12}-)?[0-9a-f-]{8,64}")  # one that tells nothing: a client could write anything
CUT_S = 0.5  # for a request that was given up to let go of its connection
FAMILIES = {  # name: kind, help
    "slmctl_routed": ("counter", "Answers by the model that gave them, and why."),
    "slmctl_route_tokens": ("counter", "Tokens of answers by the model that gave them, as it says."),
    "slmctl_generalist_seconds": ("counter", "Seconds that the general model took for answers that were used."),
    "slmctl_generalist_cost": ("counter", "Price of the general model's answers that were used."),
    "slmctl_avoided_cost": ("counter", "What the general model would have cost for the answers given here."),
    "slmctl_savings": ("gauge", "Avoided cost less the machine's price since the start; below 0 it does not pay."),
    "slmctl_p_correct_sum": ("counter", "Sum of p_correct over judged answers: how many of them should be right."),
    "slmctl_p_correct_count": ("counter", "Local answers that the policy judged."),
    "slmctl_novelty": ("counter", "Questions by whether a training row is like them, where that is known."),
    "slmctl_circuit_open": ("gauge", "1 while the general model is left alone."),
    "slmctl_decisions_dropped": ("counter", "Decisions that the file of decisions did not take."),
}  # fmt: skip
Sample = tuple[dict[str, str], float]  # labels, value
T = TypeVar("T")


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
        novel: No training row is like the question; None where that is unknown.
        prompt_tokens, completion_tokens: Of the answer given; of the general model as far as it says.
    """

    text: str = field(repr=False)
    model: str
    route: str
    reason: str
    local: LocalAnswer = field(repr=False)
    finish: str = "stop"
    p_correct: float | None = None
    sure: bool = True
    novel: bool | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Router:
    """Decides about each request.

    Args:
        policy: Fitted on the very file that answers here; see `Policy.require`.
        task: The task contract of the local model.
        name: The local model's name.
        generalist: Gets the escalated questions; None only reports which would be.
        detector: The detector of sensitive data.
        prices: For the savings.
        decisions: File that gets a line about each decision; the caller's log by default.

    Raises:
        ModuleNotFoundError: The detector is not installed.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        name: str,
        generalist: Generalist | None = None,
        *,
        detector: sensitive.Engine = "rules",
        prices: Prices | None = None,
        decisions: Path | None = None,
    ) -> None:
        self.policy, self.task, self.name, self.generalist = policy, task, name, generalist
        self.detector, self.prices = detector, prices
        self._decisions = decisions
        self._file: Log | None = None  # of decisions: a disk that is full or slow holds up no answer
        # threads of their own: one that hangs takes none from the server
        self._lookers = ThreadPoolExecutor(LOOKERS, thread_name_prefix="veto")
        self._begun = time.monotonic()
        self._routed: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._generalist_s = 0.0
        self._p_correct_sum, self._p_correct_count = 0.0, 0
        self._novelty: Counter[bool] = Counter()
        search_process.find([""], engine=detector, timeout_s=LOOK_S)  # a missing detector is named at the start

    @classmethod
    def of(cls, policy: Path, settings: ServeConfig, gguf: str, task: Task, name: str) -> Router:
        """The router that a config asks for.

        Args:
            policy: Folder of the policy.
            settings: The server's section.
            gguf: sha256 of the file that answers.
            task: Its task contract.
            name: Its name.

        Raises:
            IntegrityError: There is no policy, it was changed, or it is for another file or task.
            ModuleNotFoundError: The detector is not installed.
            UsageError: The general model's address or key is none.
        """
        folder = policy if policy.is_dir() else policy.parent
        if (folder / artifact.MANIFEST).exists():  # a policy that was copied out of its artifact stands for itself
            artifact.require_whole(folder)
        fitted = Policy.read(policy)
        fitted.require(gguf, task.digest)
        generalist = Generalist(settings.generalist) if settings.generalist is not None else None
        return cls(
            fitted, task, name, generalist,
            detector=settings.detector, prices=settings.prices, decisions=settings.decision_log,
        )  # fmt: skip

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Let this process reach the general model's host, and no other; and write decisions down."""
        with contextlib.ExitStack() as stack:
            if self.generalist is not None:
                endpoint = self.generalist.endpoint
                stack.enter_context(guard.network(f"asking {endpoint.host}", hosts=endpoint.hosts))
            if self._decisions is not None:
                try:
                    self._decisions.parent.mkdir(parents=True, exist_ok=True)
                    stream = self._decisions.open("a", encoding="utf-8")
                except OSError as error:
                    raise UsageError(f"decisions cannot be written to {self._decisions}: {error.strerror}") from None
                self._file = Log(stream)
                stack.callback(self._file.close, stream=True)
            yield

    async def close(self) -> None:
        """Close the connections to the general model."""
        if self.generalist is not None:
            await self.generalist.close()

    async def route(
        self,
        messages: Sequence[Any],
        options: Mapping[str, Any],
        headers: Mapping[str, str],
        local: Callable[[], Awaitable[LocalAnswer]],
        *,
        ends_at: float | None = None,
        request: str = "",
        log: Log | None = None,
        unread: Sequence[str] = (),
        is_novel: Callable[[], bool] | None = None,
    ) -> Routed:
        """Answer a request.

        Args:
            messages: The whole conversation, as the caller gave it.
            options: The other fields of the request; those that may leave are picked here.
            headers: The request's.
            local: Runs the local model to its end: its last event, and `text`.
            ends_at: When the caller needs an answer, in the loop's time: the general model gets no more than what
                is left.
            request: The id that the answer carries, for the log of decisions.
            log: Gets the decision where no file is named for it.
            unread: Fields of the caller's messages that no detector searches, such as `tool_calls`.
            is_novel: Tells whether the question is new; called in a thread beside the local model.

        Raises:
            The exceptions of `local`: without a local answer there is none at all.
        """
        begun = time.monotonic()
        cleared = conversation_veto.Cleared(reason="doubt") if unread else await self._cleared(messages, headers)
        looked = time.monotonic()
        compared = asyncio.ensure_future(asyncio.to_thread(is_novel)) if is_novel is not None else None
        try:
            event = await local()
        finally:
            novel = await compared if compared is not None else None
        answered = time.monotonic()
        verdict = self._judged(event)
        reason, reply, text, fault = await self._decided(cleared, verdict, options, ends_at)
        if reply is None:
            routed = Routed(
                event["text"], self.name, "local", reason, event, event.get("finish", "stop"),
                None if verdict is None else verdict.p_correct, verdict is None or verdict.keep, novel,
                event.get("prompt_tokens", 0), event.get("completion_tokens", 0),
            )  # fmt: skip
        else:
            assert self.generalist is not None and verdict is not None
            routed = Routed(
                text, self.generalist.name, "generalist", reason, event, reply.finish or "stop", verdict.p_correct,
                verdict.keep, novel, reply.prompt_tokens or 0, reply.completion_tokens or 0,
            )  # fmt: skip
        self._count(routed, event, reply)
        times = {"look_ms": looked - begun, "local_ms": answered - looked, "beyond_ms": time.monotonic() - answered}
        self._note(routed, times, cleared, fault, request, log)
        return routed

    async def _cleared(self, messages: Sequence[Any], headers: Mapping[str, str]) -> conversation_veto.Cleared:
        """The veto; a detector that fails or takes long is a doubt."""
        if conversation_veto.is_marked(headers):
            return conversation_veto.Cleared(reason="sensitive")
        redact = self.generalist.settings.redact if self.generalist is not None else ()
        look = functools.partial(conversation_veto.clear, messages, engine=self.detector, redact=redact)
        cleared, _ = await _ended(asyncio.get_running_loop().run_in_executor(self._lookers, look), LOOK_S)
        return cleared if cleared is not None else conversation_veto.Cleared(reason="doubt")

    def _judged(self, event: LocalAnswer) -> Decision | None:
        """The policy's decision on the local answer; None where it has none."""
        try:
            return self.policy.judge(event, event["text"])
        except ValueError:
            return None

    async def _decided(
        self,
        cleared: conversation_veto.Cleared,
        verdict: Decision | None,
        options: Mapping[str, Any],
        ends_at: float | None,
    ) -> tuple[str, Reply | None, str, str]:
        """The reason, the general model's reply and its text where it is used, and what kind of fault prevented it."""
        if cleared.reason:
            return cleared.reason, None, "", ""
        if verdict is None or self._is_held_otherwise(options):
            return "doubt", None, "", ""
        if verdict.keep or self.generalist is None:
            return verdict.reason, None, "", ""
        breaker = self.generalist.breaker
        if not breaker.admits():
            return "circuit-open", None, "", ""
        try:
            limit_s = self._limit_s(ends_at)
            outcome, error = await _ended(self._escalated(cleared, options), limit_s)
        except asyncio.CancelledError:
            breaker.leaves()
            raise
        if outcome is not None:
            breaker.succeeded()
            return verdict.reason, *outcome, ""
        generalist_error = error if isinstance(error, GeneralistError) else None
        cut_short = error is None and limit_s < self.generalist.settings.timeout_s  # by the caller's own deadline
        if not cut_short and (generalist_error is None or generalist_error.counts):
            breaker.failed(generalist_error.pause_s if generalist_error else 0.0)
        else:
            breaker.leaves()
        reason = (
            generalist_error.reason if generalist_error else "generalist-slow" if error is None else "generalist-down"
        )
        return reason, None, "", "" if generalist_error or error is None else type(error).__name__

    def _is_held_otherwise(self, options: Mapping[str, Any]) -> bool:
        """True where the caller constrains the answer by a form that the policy was not fitted for."""
        form, choice = options.get("response_format"), options.get("structured_outputs")
        return self.task.kind == "generate" and (choice is not None or form not in (None, {"type": "text"}))

    def _limit_s(self, ends_at: float | None) -> float:
        """Seconds that the general model has."""
        assert self.generalist is not None
        limit_s = self.generalist.settings.timeout_s
        if ends_at is not None:
            limit_s = min(limit_s, ends_at - asyncio.get_running_loop().time() - CUT_S)
        return max(0.0, limit_s)

    async def _escalated(self, cleared: conversation_veto.Cleared, options: Mapping[str, Any]) -> tuple[Reply, str]:
        """The general model's reply, and its text as the task allows it.

        Raises:
            GeneralistError: There is none, or none that the task allows.
        """
        assert self.generalist is not None
        reply = await self.generalist.ask(self._asked(cleared.messages), self._options(options))
        return reply, await asyncio.to_thread(self._read, reply, cleared, options)

    def _read(self, reply: Reply, cleared: conversation_veto.Cleared, options: Mapping[str, Any]) -> str:
        """The text of a reply as the task allows it; apart from the loop, since it is another's and may be long.

        Raises:
            GeneralistError: It is none that the task allows.
        """
        text = untuned_prompt.read(self.task, reply.text)
        is_json = self.task.kind == "extract"
        try:
            text = conversation_veto.restore(text, cleared.marks, is_json=is_json)
        except (ValueError, RecursionError):
            raise GeneralistError("generalist-garbage") from None
        if not self.task.accepts(text):
            raise GeneralistError("generalist-garbage")
        return text if is_json or self.task.kind == "classify" else _until(text, options.get("stop"))

    def _asked(self, messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        """The conversation as the generalist gets it, with the task in its system prompt if the local model has one."""
        if not self.task.system and self.task.kind == "generate":
            return list(messages)
        turns = [message for message in messages if message["role"] != "system"]
        return [{"role": "system", "content": untuned_prompt.brief(self.task)}, *turns]

    def _options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The caller's sampling options, by one name each; a label or an object is not sampled, and needs its room."""
        if self.task.kind != "generate":
            return {"temperature": 0}
        length = options.get("max_completion_tokens", options.get("max_tokens"))
        return {**options, "max_tokens": length}

    # Log and metrics of decisions, without a word of a question or an answer

    def _count(self, routed: Routed, event: LocalAnswer, reply: Reply | None) -> None:
        self._routed[routed.route, routed.reason] += 1
        self._tokens[routed.route, "prompt"] += routed.prompt_tokens
        self._tokens[routed.route, "completion"] += routed.completion_tokens
        self._generalist_s += reply.seconds if reply is not None else 0.0
        if routed.p_correct is not None:
            self._p_correct_sum += routed.p_correct
            self._p_correct_count += 1
        if routed.novel is not None:
            self._novelty[routed.novel] += 1

    def _note(
        self,
        routed: Routed,
        times: dict[str, float],
        cleared: conversation_veto.Cleared,
        fault: str,
        request: str,
        log: Log | None,
    ) -> None:
        line = {
            "request": request if _PLAIN_ID.fullmatch(request) else None,
            "route": routed.route,
            "reason": routed.reason,
            "model": routed.model,
            "p_correct": routed.p_correct,
            **{name: round(1000 * seconds, 1) for name, seconds in times.items()},
            "prompt_tokens": routed.prompt_tokens,
            "completion_tokens": routed.completion_tokens,
            **({"novel": routed.novel} if routed.novel is not None else {}),
            **({"redacted": len(cleared.marks)} if cleared.marks else {}),
            **({"fault": fault} if fault else {}),
        }
        if self._file is not None:
            self._file.line({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **line})
        elif log is not None:
            log.event("decision", **line)

    def figures(self) -> dict[str, list[Sample]]:
        """Every figure of FAMILIES that there is, by name."""
        reasons = [*(("local", reason) for reason in LOCAL_REASONS)]
        reasons += [("generalist", reason) for reason in GENERALIST_REASONS] if self.generalist else []
        samples: dict[str, list[Sample]] = {
            "slmctl_routed": [({"route": a, "reason": b}, float(self._routed[a, b])) for a, b in reasons],
            "slmctl_route_tokens": [
                ({"route": route, "kind": kind}, float(self._tokens[route, kind]))
                for route in ("local", "generalist") for kind in ("prompt", "completion")
            ],
            "slmctl_generalist_seconds": [({}, self._generalist_s)],
            "slmctl_p_correct_sum": [({}, self._p_correct_sum)],
            "slmctl_p_correct_count": [({}, float(self._p_correct_count))],
            "slmctl_novelty": [({"novel": str(novel).lower()}, float(self._novelty[novel])) for novel in (False, True)],
            "slmctl_circuit_open": [({}, float(self.generalist is not None and self.generalist.breaker.is_open))],
            "slmctl_decisions_dropped": [({}, float(self._file.dropped if self._file else 0))],
        }  # fmt: skip
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
        input_price = self._tokens[route, "prompt"] * self.prices.api_per_million_input_tokens
        output_price = self._tokens[route, "completion"] * self.prices.api_per_million_output_tokens
        return (input_price + output_price) / 1e6


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


def _until(text: str, stop: Any) -> str:
    """A text up to the first of the caller's stop texts, which are not sent."""
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    places = [text.find(candidate) for candidate in stops if isinstance(candidate, str) and candidate]
    return text[: min((place for place in places if place >= 0), default=len(text))]
