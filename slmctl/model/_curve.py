"""The loss curve of a training as SVG, the same bytes for the same training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 360, 60, 30, 20, 45
TRAIN, VALIDATION = "#888888", "#1f5fbf"


def svg(history: Sequence[dict[str, Any]], best_step: int) -> str:
    """Training and validation loss over the steps, on a logarithmic scale; the best validation is marked."""
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    validation = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    points = train + validation
    steps = max(step for step, _ in points) or 1
    values = [max(value, 1e-6) for _, value in points]
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = low - 0.05 * (high - low) - 0.01, high + 0.05 * (high - low) + 0.01

    def x(step: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * step / steps:.1f}"

    def y(value: float) -> str:
        share = (math.log10(max(value, 1e-6)) - low) / (high - low)
        return f"{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="12" fill="#333333" role="img">',
        "<title>Loss of training and validation over the steps</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    parts += [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}" stroke="#dddddd"/>'
        f'<text x="{LEFT - 8}" y="{y(value)}" text-anchor="end" dominant-baseline="middle">{value:g}</text>'
        for value in _ticks(low, high)
    ]
    parts += [
        f'<text x="{x(step)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step}</text>'
        for step in (round(steps * k / 4) for k in range(5))
    ]
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">step</text>')
    for name, color, line, at in (("training", TRAIN, train, 0), ("validation", VALIDATION, validation, 90)):
        path = " ".join(f"{x(step)},{y(value)}" for step, value in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{LEFT + at}" y="18" fill="{color}">{name} loss</text>')
    for step, value in validation:
        chosen = step == best_step
        parts.append(
            f'<circle cx="{x(step)}" cy="{y(value)}" r="{5 if chosen else 3}" fill="{VALIDATION}">'
            f"<title>step {step}: {value:.4f}{' (kept)' if chosen else ''}</title></circle>"
        )
        if chosen:
            end = step > steps * 0.85
            parts.append(
                f'<text x="{x(step)}" y="{float(y(value)) - 10:.1f}" fill="{VALIDATION}"'
                f' text-anchor="{"end" if end else "middle"}">kept: {value:.3f}</text>'
            )
    return "\n".join([*parts, "</svg>\n"])


def _ticks(low: float, high: float) -> list[float]:
    """Round values between 10**low and 10**high."""
    steps = (1, 2, 5) if high - low < 2 else (1,)
    found = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in steps]
    return [value for value in found if low <= math.log10(value) <= high]
