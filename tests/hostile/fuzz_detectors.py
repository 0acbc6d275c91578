"""Texts of the rules' own alphabets, repeated: time must stay linear, and redaction must leave nothing to find."""

from __future__ import annotations

import random
import resource
import time

from hostile.fuzz import Outcome
from support import hostile

from slmctl.sensitive import SensitivePolicy, find

SHORT, LONG = 6_000, 24_000  # characters
LONGEST_S = 1.0  # of processor time for LONG characters
POLICY = SensitivePolicy(dict.fromkeys(("email", "phone", "card", "iban", "ip", "secret"), "redact"))


def run(seconds: float, seed: int) -> Outcome:
    """Search texts until the time is over."""
    choose, outcome = random.Random(seed), Outcome()
    ends_at, warm_at, grown_from = time.monotonic() + seconds, time.monotonic() + seconds / 10, 0
    while time.monotonic() < ends_at:
        fragment = _fragment(choose)
        short, long = (_seconds((fragment * size)[:size]) for size in (SHORT, LONG))
        if long > max(9 * short, 0.2):  # twice doubled, at most three times the time each
            short, long = (min(_seconds((fragment * size)[:size]) for _ in range(3)) for size in (SHORT, LONG))
        outcome.freeze_s = max(outcome.freeze_s, long if long > LONGEST_S else 0.0)
        if long > max(9 * short, 0.2):
            outcome.notes.append(f"{fragment!r} takes {short:.3f} s and {long:.3f} s for 4 times the text")
        text = "".join(_fragment(choose) for _ in range(20))
        if find(POLICY.apply(text).text):
            outcome.notes.append(f"redaction leaves something in {text!r}")
        outcome.cases += 2
        if time.monotonic() > warm_at:
            grown_from = grown_from or _peak()
    outcome.growth = max(0, _peak() - grown_from) if grown_from else 0
    return outcome


def _fragment(choose: random.Random) -> str:
    pieces = hostile.ALPHABETS[choose.choice(list(hostile.ALPHABETS))]
    every = hostile.ALPHABETS["find"]
    return "".join(choose.choice(pieces if choose.random() < 0.7 else every) for _ in range(choose.randint(1, 9)))


def _seconds(text: str) -> float:
    begun = time.process_time()
    find(text)
    return time.process_time() - begun


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
