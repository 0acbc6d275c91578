"""The cost of labelling, from a sample of the real rows: tokens,
money with an interval, and time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slmctl import console
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.metrics import statistics
from slmctl.stages.label.rows import LabelRow
from slmctl.stages.label.teachers import JournalTeacher

SAMPLE = 20  # rows that teachers label for a plan


@dataclass(frozen=True)
class TeacherPlan:
    """The plan of one teacher.

    Attributes:
        answers: Answers that it must give for all rows; `answered` of them are in the journal.
        prompt_tokens, completion_tokens: Mean per answer of the sample; None without an answer.
        cost: Of all answers, those in the journal included; None without prices or without an
            answer.
        interval: The 95 % bootstrap interval of the cost over the sampled rows.
        seconds: Estimated time for the missing answers.
    """

    name: str
    answers: int
    answered: int = 0
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    cost: float | None = None
    interval: tuple[float, float] | None = None
    seconds: float | None = None

    def lines(self, currency: str) -> Iterator[str]:
        yield f"{self.name}: {self.answers:,} answers, {self.answered:,} of them are here"
        if self.prompt_tokens is None or self.completion_tokens is None:
            yield "  no row of the sample has an answer of it"
            return
        yield f"  tokens an answer: {self.prompt_tokens:,.0f} in, {self.completion_tokens:,.1f} out"
        if self.cost is not None and self.interval is not None:
            low, high = self.interval
            yield f"  cost: {self.cost:,.2f} {currency} ({low:,.2f} to {high:,.2f}, 95 %)"
        else:
            yield "  cost: none is answered (prices of the teacher)"
        if self.seconds:
            yield f"  time: {console.duration(self.seconds)} at the rate of the sample"


@dataclass(frozen=True)
class CostPlan:
    """The plan of a run.

    Attributes:
        rows, gold: Rows to label, and gold rows.
        not_drawn: Rows beyond `label.max_rows`.
        sample: Rows that teachers labelled for the plan.
        stays: Rows that no teacher may see.
        left_out: Rows that are not asked for, by reason.
        spent: Cost so far by the journals, the sample and requests in doubt included.
    """

    rows: int
    gold: int
    not_drawn: int
    sample: int
    parts: tuple[TeacherPlan, ...]
    stays: int
    left_out: Mapping[str, int]
    currency: str
    max_cost: float | None
    spent: float

    @property
    def cost(self) -> float | None:
        """Cost of all teachers; None if it is known of none."""
        answered = [part.cost for part in self.parts if part.cost is not None]
        return sum(answered) if answered else None

    def to_json(self) -> JsonObject:
        return {**dataclasses.asdict(self), "cost": self.cost}

    def lines(self) -> Iterator[str]:
        more = f"; {self.not_drawn} more are beyond label.max_rows" if self.not_drawn else ""
        yield (
            f"{self.rows:,} rows to label and {self.gold:,} gold rows; {self.sample} of them "
            f"were asked{more}"
        )
        for teacher in self.parts:
            yield from teacher.lines(self.currency)
        if self.stays:
            yield (
                f"{self.stays:,} rows stay here: sensitive, and no teacher on this machine may "
                "read them"
            )
        for reason, count in self.left_out.items():
            if count:
                yield f"{count:,} left out: {reason}"
        if self.cost is not None:
            yield f"in all: {self.cost:,.2f} {self.currency}, of which {self.spent:,.2f} are spent"
            if self.max_cost is not None and self.cost > self.max_cost:
                share = self.max_cost / self.cost
                yield (
                    f"label.max_cost is {self.max_cost:,.2f}: about {int(self.rows * share):,} "
                    "rows will be labelled"
                )


def part(
    teacher: JournalTeacher, sample: Sequence[LabelRow], every: Sequence[LabelRow]
) -> TeacherPlan:
    """The plan of a teacher, from its answers to the sample and those
    that its journal has to every row.
    """
    by_row = [
        answers for row in sample if teacher.may_see(row) and (answers := teacher.answers(row))
    ]
    flat = [answer for answers in by_row for answer in answers]
    needed = teacher.asked_for(every)
    if not flat:
        return TeacherPlan(teacher.name, needed)
    teacher.look_up(every)
    answered = sum(len(teacher.answers(row)) for row in {row.id: row for row in every}.values())
    cost, interval = None, None
    if teacher.journal.prices is not None:
        rows = sum(map(teacher.may_see, every))
        costs = np.array([sum(answer.cost for answer in answers) for answers in by_row])
        drawn = np.concatenate([weights @ costs for weights in statistics.resamples(len(costs))])
        low, high = statistics.percentiles(drawn / len(costs) * rows)
        cost, interval = float(costs.mean() * rows), (low, high)
    seconds = (
        _mean([answer.seconds for answer in flat]) * max(0, needed - answered) / teacher.concurrency
    )
    return TeacherPlan(
        teacher.name,
        needed,
        answered,
        _mean([answer.prompt_tokens for answer in flat]),
        _mean([answer.completion_tokens for answer in flat]),
        cost,
        interval,
        seconds or None,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
