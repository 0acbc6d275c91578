"""Logs of decisions, collected rows and reviews, as a server and people leave them, of traffic that is made up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from slmctl.production.records import CollectedRow, Review
from slmctl.watch.traffic import DAY_S, seconds_of, time_of

BEGIN = seconds_of("2026-10-01")
LABELS = ("invoice", "delivery", "return", "account")


@dataclass
class MadeUp:
    """Traffic of `per_day` requests a day, of which a policy keeps those with a p_correct of 0.7 and more.

    Attributes:
        kept_share: Probability with which any answer is collected; unsure ones all are.
    """

    seed: int = 0
    per_day: int = 100
    kept_share: float = 0.2
    decisions: list[Mapping[str, object]] = field(default_factory=list)
    collected: list[CollectedRow] = field(default_factory=list)
    right: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def days(self, number: int, *, new: float = 0.0, tokens: float = 20.0) -> MadeUp:
        """Add days; a share `new` of their questions is of a subject that the model does not know."""
        for _ in range(number * self.per_day):
            self._request(self._random.random() < new, tokens)
        return self

    def _request(self, new: bool, tokens: float) -> None:
        random, n = self._random, len(self.decisions)
        p_correct = round(float(random.beta(2, 5) if new else random.beta(12, 2)), 4)
        right = not new and random.random() < p_correct
        novel = bool(random.random() < (0.8 if new else 0.1))
        label = "account" if new else str(random.choice(LABELS))
        time, kept = time_of(BEGIN + n * DAY_S / self.per_day), p_correct >= 0.7
        route, reason = ("local", "confident") if kept else ("generalist", "unsure")
        self.decisions.append({
            "time": time, "request": f"{n:08x}", "route": route, "reason": reason, "model": "desk",
            "p_correct": p_correct, "novel": novel, "prompt_tokens": int(random.poisson(tokens)),
            "completion_tokens": 3,
        })  # fmt: skip
        uniform = bool(random.random() < self.kept_share)
        if uniform or not kept:
            self.right[f"{n:08x}"] = bool(right)
            self.collected.append(CollectedRow(
                f"{n:08x}", time, [{"role": "user", "content": f"question {n}"}],
                answer=label, route=route, reason=reason, p_correct=p_correct, confidence=p_correct,
                labels={label: p_correct}, chosen="uniform" if kept else "unsure",
                probability=self.kept_share if kept else 1.0, uniform=uniform, uniform_probability=self.kept_share,
                novel=novel,
            ))  # fmt: skip

    def reviews(self, *, picked: bool = True) -> list[Review]:
        """The decisions of a person on every collected row, or on the uniform ones alone."""
        return [
            Review(
                row.id, row.time, "ada", "accepted" if self.right[row.id] else "corrected", row.messages, row.answer,
                row.answer if self.right[row.id] else "other",
                "uniform" if row.uniform else "unsure", self.kept_share if row.uniform else 1.0, seen=row.time,
            )
            for row in self.collected
            if row.uniform or picked
        ]  # fmt: skip

    def write(self, folder: Path) -> Path:
        """Write decisions.jsonl, collected/DAY.jsonl and reviewed.jsonl into a folder; returns it."""
        (folder / "collected").mkdir()
        _write(folder / "decisions.jsonl", self.decisions)
        for day in sorted({row.time[:10] for row in self.collected}):
            rows = (row.to_json() for row in self.collected if row.time[:10] == day)
            _write(folder / "collected" / f"{day}.jsonl", rows)
        _write(folder / "reviewed.jsonl", (review.to_json() for review in self.reviews()))
        return folder


def _write(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
