"""Logs of decisions, collected rows and reviews, as a server and people
leave them, of traffic that is made up.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from slmctl.production.records import CollectedRow
from slmctl.sources.reviewed import Review

BEGIN = datetime.datetime(2026, 10, 5, tzinfo=datetime.UTC)  # a Monday
LABELS = ("invoice", "delivery", "return", "account")


@dataclass
class MadeUp:
    """Traffic of `per_day` requests a day, of which a policy keeps those with a p_correct of 0.7
    and more.

    Attributes:
        kept_share: Probability with which any answer is collected; unsure ones all are.
    """

    seed: int = 0
    per_day: int = 100
    kept_share: float = 0.2
    decisions: list[Mapping[str, object]] = field(default_factory=list)
    collected: list[CollectedRow] = field(default_factory=list)
    right: dict[str, bool] = field(default_factory=dict)

    def days(self, number: int) -> MadeUp:
        """Add days of requests."""
        random = np.random.default_rng(self.seed)
        for n in range(number * self.per_day):
            p_correct = round(float(random.beta(12, 2)), 4)
            id, label = f"{n:08x}", str(random.choice(LABELS))
            time, kept = (
                f"{BEGIN + n * datetime.timedelta(days=1 / self.per_day):%Y-%m-%dT%H:%M:%SZ}",
                p_correct >= 0.7,
            )
            route, reason = ("local", "kept") if kept else ("generalist", "unsure")
            self.decisions.append(
                {
                    "time": time,
                    "request": id,
                    "route": route,
                    "reason": reason,
                    "model": "desk",
                    "p_correct": p_correct,
                    "prompt_tokens": 20,
                    "completion_tokens": 3,
                }
            )
            uniform = bool(random.random() < self.kept_share)
            if uniform or not kept:
                self.right[id] = bool(random.random() < p_correct)
                self.collected.append(
                    CollectedRow(
                        id,
                        time,
                        [{"role": "user", "content": f"question {n}"}],
                        answer=label,
                        route=route,
                        reason=reason,
                        p_correct=p_correct,
                        confidence=p_correct,
                        labels={label: p_correct},
                        chosen="uniform" if kept else "unsure",
                        probability=self.kept_share if kept else 1.0,
                        uniform=uniform,
                        uniform_probability=self.kept_share,
                    )
                )
        return self

    def reviews(self) -> list[Review]:
        """The decisions of a person on every collected row."""
        return [
            Review(
                row.id,
                row.time,
                "ada",
                "accepted" if self.right[row.id] else "corrected",
                row.messages,
                row.answer,
                row.answer if self.right[row.id] else "other",
                "uniform" if row.uniform else "unsure",
                self.kept_share if row.uniform else 1.0,
                seen=row.time,
            )
            for row in self.collected
        ]

    def write(self, folder: Path) -> Path:
        """Write decisions.jsonl, collected/DAY.jsonl and
        reviewed.jsonl into a folder; returns it.
        """
        (folder / "collected").mkdir()
        _write(folder / "decisions.jsonl", self.decisions)
        for day in sorted({row.time[:10] for row in self.collected}):
            rows = (row.to_json() for row in self.collected if row.time[:10] == day)
            _write(folder / "collected" / f"{day}.jsonl", rows)
        _write(folder / "reviewed.jsonl", (review.to_json() for review in self.reviews()))
        return folder


def _write(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
