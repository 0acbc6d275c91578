"""Pairs of answers that people judge without knowing which model gave
which: the queue, the decisions, their file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.json_lines import Line
from slmctl.console import timestamp
from slmctl.errors import UsageError
from slmctl.metrics.predictions import facts_of, read_predictions
from slmctl.metrics.statistics import hashed_position
from slmctl.production.review.session import DecisionRefusedError, DecisionSession
from slmctl.task.records import Message, read_records

Preferred: TypeAlias = Literal["first", "second", "same", "neither"]
SHOWN = 20_000  # characters of a text that are shown
SIDES = ("left", "right", "same", "neither")  # what a reviewer says; neither: both answers are bad


@dataclass(frozen=True)
class PairDecision(Line):
    """A person's decision on two models' answers to one held-out row.

    Attributes:
        id: Id of the record.
        time: Time of the decision, in UTC.
        reviewer: Name of the person.
        decision: The better answer, `same`, `neither` (both bad); `skipped`, or `undone` for an
            earlier decision.
        models: Digests of both models' predictions, the first and the second; a decision counts for
            these alone.
        names: Names of both models, for readers of the file.
    """

    id: str
    time: str
    reviewer: str
    decision: Literal["first", "second", "same", "neither", "skipped", "undone"]
    models: tuple[str, str]
    names: tuple[str, str] = ("", "")

    @property
    def outcome(self) -> str:
        return self.decision


@dataclass(frozen=True)
class AnswerPair:
    """A held-out row with the answers of the first and the second model; which one stands left is
    drawn by its id.

    Attributes:
        messages: The conversation up to the answer.
        is_swapped: True where the second model's answer stands left.
        group, is_sensitive: Those of the record.
    """

    id: str
    messages: Sequence[Message]
    answers: tuple[str, str]
    is_swapped: bool
    group: str | None = None
    is_sensitive: bool = False

    @property
    def sides(self) -> tuple[str, str]:
        """The answers, left and right."""
        first, second = self.answers
        return (second, first) if self.is_swapped else (first, second)

    def preferred(self, side: str) -> Preferred:
        """The decision that a side stands for; raises a
        DecisionRefusedError for any other word than SIDES.
        """
        side = side.strip().lower()
        if side not in SIDES:
            raise DecisionRefusedError(f"'{side[:40]}' is none of {', '.join(SIDES)}")
        if side in ("left", "right"):
            return "second" if (side == "left") == self.is_swapped else "first"
        return "same" if side == "same" else "neither"


def bounded(text: str, shown: int = SHOWN) -> str:
    """The first characters of a text, and how many more there are."""
    more = len(text) - shown
    return f"{text[:shown]}… ({more:,} characters more)" if more > 0 else text


@dataclass(frozen=True)
class JudgedModels:
    """Two models and the rows on which their answers differ, in an order by a hash of the rows'
    ids.

    So those that are judged first stand for all of them.

    Attributes:
        models, names: See PairDecision.
        equal: Number of rows with equal answers, which nobody has to judge.
    """

    models: tuple[str, str]
    names: tuple[str, str]
    queue: Sequence[AnswerPair]
    equal: int

    @property
    def stamp(self) -> str:
        """A short hash of both models' predictions, which a spreadsheet carries."""
        return hashlib.sha256("/".join(self.models).encode()).hexdigest()[:12]

    @classmethod
    def of(cls, predictions: tuple[Artifact, Artifact], prepared: Artifact) -> JudgedModels:
        """Two models' answers to the rows that were sent to both; in either order the same.

        Raises:
            IntegrityError: An artifact of predictions is damaged.
            UsageError: They are of the same answers, or of different rows.
        """
        first, second = sorted(predictions, key=lambda made: made.digest)
        read = [read_predictions(made) for made in (first, second)]
        records = read_records(prepared.file(f"{facts_of(first)['split']}.jsonl"))
        ids = [record.id for record in records]
        if any([line["id"] for line in lines] != ids for lines in read):
            raise UsageError(
                "the two models answered different rows",
                hint="slmctl evaluate measures both on the same",
            )
        if first.digest == second.digest:
            raise UsageError(
                "both models gave the same answers", hint="two models whose answers differ"
            )
        models = (first.digest, second.digest)
        queue = []
        equal = 0
        for record, *answered in zip(records, *read, strict=True):
            if any(line.get("not_sent") for line in answered):
                continue
            answers = ((answered[0]["answer"] or "").strip(), (answered[1]["answer"] or "").strip())
            equal += answers[0] == answers[1]
            if answers[0] != answers[1]:
                is_swapped = hashed_position(f"pair/{'/'.join(models)}/{record.id}") < 0.5
                more = record.group, record.sensitive
                queue.append(
                    AnswerPair(record.id, record.messages[:-1], answers, is_swapped, *more)
                )
        queue.sort(key=lambda pair: hashed_position(f"pair/order/{pair.id}"))
        return cls(models, (facts_of(first)["model"], facts_of(second)["model"]), queue, equal)


class PairSession(DecisionSession[AnswerPair, PairDecision]):
    """The pairs of one reviewer. Args and Raises: those of `DecisionSession`."""

    noun = "pair"

    def __init__(self, judged: JudgedModels, *, output: Path, reviewer: str) -> None:
        self.judged = judged
        super().__init__(judged.queue, output=output, reviewer=reviewer)

    def _lines(self) -> Iterable[PairDecision]:
        return (
            line for line in PairDecision.read(self.output) if line.models == self.judged.models
        )

    def _line(self, row: AnswerPair, answer: str | None) -> PairDecision:
        decision = "skipped" if answer is None else row.preferred(answer)
        return PairDecision(
            row.id, timestamp(), self.reviewer, decision, self.judged.models, self.judged.names
        )

    def _undone(self, line: PairDecision) -> PairDecision:
        return replace(line, time=timestamp(), reviewer=self.reviewer, decision="undone")

    def counted(self) -> str:
        counts = self._counts
        better = counts["first"] + counts["second"]
        return (
            f"{better:,} with a better answer, {counts['same']:,} the same, {counts['neither']:,} "
            "both bad, "
            f"{counts['skipped']:,} skipped"
        )
