"""Requests -> answers through the batches of an endpoint, resumed by their ids.

A batch's id stands in the journal as soon as the endpoint has told it, so a run that was killed or that reached its
time comes back to the batch, and asks nothing in it again. What a batch did not answer, since it expired or failed, is
left for the next pass.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from slmctl import console
from slmctl.config import LabelConfig, Teacher
from slmctl.errors import NetworkError
from slmctl.network import guard
from slmctl.network.openai_batches import MAX_REQUESTS, BatchClient, BatchState
from slmctl.network.openai_client import EndpointError, EndpointRequest, Reply
from slmctl.stages.label.journal import Budget, Journal, TeacherAnswer

FIRST_POLL_S, LONGEST_POLL_S = 0.5, 60.0  # between two questions for the state of a batch; doubled each time
ATTEMPTS = 6  # to reach the endpoint for one question
GONE = 404  # the status of a batch that its provider does not know any more

T = TypeVar("T")
ReadAnswer = Callable[[Reply], TeacherAnswer]
PaidRequest = tuple[str, EndpointRequest, float]  # key, request, the most that it may cost


def ask(
    config: LabelConfig, teacher: Teacher, journal: Journal, budget: Budget, requests: Iterable[PaidRequest],
    read: ReadAnswer,
) -> None:  # fmt: skip
    """Come back to open batches, then ask for what is left, until every batch is over or a ceiling is reached.

    Raises:
        NetworkError: The endpoint cannot be reached, or takes no batch.
    """
    assert teacher.url is not None and teacher.model is not None
    client = BatchClient(
        teacher.url, teacher.model, teacher.key_env, timeout_s=teacher.timeout_s, environment_proxies=True
    )
    hosts = {client.host, *guard.on_the_way(client.url)}
    console.say(f"  contacting {', '.join(sorted(hosts))}")
    with guard.network(f"asking {urlsplit(client.url).hostname}", hosts=hosts):
        asyncio.run(_ask(config, client, journal, budget, requests, read))


async def _ask(
    config: LabelConfig, client: BatchClient, journal: Journal, budget: Budget, requests: Iterable[PaidRequest],
    read: ReadAnswer,
) -> None:  # fmt: skip
    try:
        for id in list(journal.batches):
            await _collect(config, client, journal, budget, id, read)
        waiting = iter(requests)
        while True:
            some, waiting = _affordable(journal, budget, waiting)
            if not some:
                return
            id = await _reached(client, functools.partial(client.submit, some))
            journal.open_batch(id, list(some))
            console.say(f"  batch {console.shown(id, 60)}: {len(some)} requests")
            await _collect(config, client, journal, budget, id, read)
            if budget.reached:
                return
    finally:
        await client.close()


def _affordable(
    journal: Journal, budget: Budget, requests: Iterator[PaidRequest]
) -> tuple[Mapping[str, EndpointRequest], Iterator[PaidRequest]]:
    """The next requests that the budget lets out, written down as sent; and those that are left."""
    taken: dict[str, EndpointRequest] = {}
    for entry in itertools.islice(requests, MAX_REQUESTS):
        key, request, most = entry
        if budget.take(journal, key, most) != "send":
            return taken, itertools.chain([entry], requests)
        taken[key] = request
    return taken, requests


async def _collect(
    config: LabelConfig, client: BatchClient, journal: Journal, budget: Budget, id: str, read: ReadAnswer
) -> None:
    """Wait for a batch, and write down what it brought; it stays open where the time is up before."""
    state, pause_s = BatchState("running"), FIRST_POLL_S
    while True:
        try:
            state = await _reached(client, functools.partial(client.state, id))
        except EndpointError as error:
            if error.status != GONE:
                raise
            state = BatchState("failed", reason="its provider does not know it any more")
        if state.status != "running":
            break
        if budget.out_of_time():
            console.say(f"  batch {console.shown(id, 60)} is not over; it goes on there")
            return
        await asyncio.sleep(min(pause_s, budget.seconds_left(pause_s)))
        pause_s = min(2 * pause_s, LONGEST_POLL_S)
    left = set(journal.batches[id])
    async for key, result in client.results(state, config.max_tokens):
        if key in left:
            left.discard(key)
            if isinstance(result, Reply):
                journal.answer(key, read(result))
            else:
                journal.fail(key, result.status)
    for key in left:
        journal.fail(key, 408)  # it expired there, and is not charged
    journal.close_batch(id)
    if state.status != "completed":
        why = f": {state.reason}" if state.reason else ""
        console.say(f"  batch {console.shown(id, 60)} has {state.status}{why}; {len(left)} of its requests are left")


async def _reached(client: BatchClient, call: Callable[[], Awaitable[T]]) -> T:
    """The result of a call, tried again while that may help.

    Raises:
        EndpointError: There is no such thing there.
        NetworkError: The endpoint does not answer, or refuses.
    """
    for attempt in itertools.count(1):
        try:
            return await call()
        except EndpointError as error:
            if error.status == GONE:
                raise
            if attempt == ATTEMPTS or error.status in (400, 401, 403, 422):
                raise NetworkError(f"{client.host}: {error.message}", hint="batch: false asks one by one") from None
            await asyncio.sleep(max(min(error.pause_s, LONGEST_POLL_S), 0.05 * 2**attempt))
    raise AssertionError("unreachable")
