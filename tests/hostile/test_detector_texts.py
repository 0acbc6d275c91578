"""Texts that froze a server: each is searched in time, or its request
stays here while the event loop goes on.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from support import hostile

from slmctl.sensitive import SensitivePolicy, conversation_veto, find, search_process

pytest.importorskip("httpx")

QUESTIONS = {
    "spelled addresses": "a-at-dot-" * 333,
    "PINs": "pin12345678," * 5000,
    "findings that overlap": "+49 30 1234567 4111 1111 1111 1111 " * 2000,
    "phones in a row": "01 23 " * 5000,
    "addresses to redact": " ".join(f"user{k}@example.org" for k in range(5000)),
    "marks of its own": "jane@example.org " + " ".join(f"[EMAIL_{k}]" for k in range(1, 9000)),
}
SECONDS = 5.0  # of processor time, on a busy machine; without a bound some of them took minutes


@pytest.mark.parametrize("name", QUESTIONS)
def test_conversation_is_decided_in_time(name: str) -> None:
    messages = [
        {"role": "system", "content": QUESTIONS[name]},
        {"role": "user", "content": "What is due?"},
    ]
    for redact in ((), ("email",)):
        begun = time.process_time()  # of this process: the search itself is elsewhere
        cleared = conversation_veto.clear(messages, redact=redact, timeout_s=120)
        assert time.process_time() - begun < SECONDS
        assert cleared.reason in ("", "sensitive")


@pytest.mark.parametrize("name", QUESTIONS)
def test_policy_on_a_row_takes_bounded_time(name: str) -> None:
    """What `prepare` does with each row; `pin12345678,` took 37 s,
    16 times as long as a quarter of it.
    """
    policy = SensitivePolicy(
        {"email": "redact", "phone": "redact", "card": "redact", "secret": "redact"}
    )
    text, seconds = QUESTIONS[name], []
    for part in (text[: len(text) // 4], text):
        begun = time.process_time()
        applied = policy.apply(part)
        seconds.append(time.process_time() - begun)
    assert seconds[1] < 12 * max(seconds[0], 0.02)
    assert bool(applied.findings) == bool(find(QUESTIONS[name]))


def test_conversation_too_long_to_be_searched_is_a_doubt() -> None:
    text = "a word " * (conversation_veto.LONGEST // 7)
    fits = [{"role": "user", "content": text[: conversation_veto.LONGEST]}]
    assert conversation_veto.clear(fits, timeout_s=60).reason == ""
    assert (
        conversation_veto.clear(
            [*fits, {"role": "user", "content": "aaaaaaaa"}], timeout_s=60
        ).reason
        == "doubt"
    )


def test_event_loop_goes_on_while_a_search_is_late() -> None:
    """`/healthz` answered after 13 s where a pattern ran in the loop's own process."""
    slow = [{"role": "user", "content": hostile.HEAVY[: conversation_veto.LONGEST]}]

    async def work() -> int:
        turns = 0
        search = asyncio.get_running_loop().run_in_executor(
            None, lambda: conversation_veto.clear(slow, timeout_s=0.3)
        )
        while not search.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(search_process.SearchError):
            await search
        return turns

    assert asyncio.run(work()) > 3
