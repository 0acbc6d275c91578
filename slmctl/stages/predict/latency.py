"""A model and prompts -> how long one answer takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from slmctl.models.prompts import Prompt, PromptAnswerer

ROWS, LEAST = 32, 5  # answered one at a time, to measure the latency of one caller
# after which the least number is enough: an untuned base writes long objects, of 10 s each
LONGEST_S = 5.0


def one_by_one(answerer: PromptAnswerer, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Latency of one answer in ms: median and 95th percentile over the first rows, one at a time,
    after a warm-up.

    The warm-up is the longest prompt, so that no figure includes the time in which the engine makes
    room for it. After LONGEST_S seconds no further row is measured.
    """
    times, start = [], time.monotonic()
    for prompt in [max(prompts, key=lambda prompt: len(prompt.text)), *prompts[:ROWS]]:
        begun = time.monotonic()
        for _ in answerer.answer([prompt]):
            pass
        times.append((time.monotonic() - begun) * 1000)
        if len(times) > LEAST and time.monotonic() - start > LONGEST_S:
            break
    return quantiles(times[1:])


def quantiles(times_ms: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and number of times."""
    ordered = sorted(times_ms)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return {"median": round(statistics.median(ordered), 1), "p95": round(p95, 1), "n": len(ordered)}
