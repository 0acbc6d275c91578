"""A judge's verdicts on pairs of answers: their file, and what people's decisions on the same pairs make of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from slmctl.artifacts.json_lines import Line
from slmctl.metrics.judged_rate import Agreement, CorrectedRate, Floats, preferred_longer
from slmctl.production.review.pairs import AnswerPair, JudgedModels, PairDecision
from slmctl.reports.evaluation_report import JudgeEntry
from slmctl.sources.reviewed import standing

Verdict: TypeAlias = Literal["first", "second", "same", ""]  # "" where no choice could be read
SCORES = {"first": 1.0, "second": 0.0}  # of the first model; 0.5 for everything else


@dataclass(frozen=True)
class JudgeVerdict(Line):
    """A judge's verdict on two models' answers to one held-out row, asked in both orders.

    Attributes:
        id: Id of the record.
        judge: Name of the judge.
        models: Digests of both models' predictions; the verdict counts for these alone.
        answers: The better model, where the first one's answer was shown first, and where the second one's was.
    """

    id: str
    judge: str
    models: tuple[str, str]
    answers: tuple[Verdict, Verdict]

    @property
    def has_turned(self) -> bool:
        """True for two choices that differ: the order decided."""
        return self.answers[0] != self.answers[1] and "" not in self.answers

    @property
    def decision(self) -> Verdict:
        """The verdict; the same where it turns with the order, and "" where one of the two orders has none."""
        if "" in self.answers:
            return ""
        return "same" if self.has_turned else self.answers[0]


def decisions_on(models: tuple[str, str], lines: Iterable[PairDecision]) -> dict[str, PairDecision]:
    """People's valid decisions on the pairs of two models, by row id, without skipped ones."""
    stands = standing(line for line in lines if line.models == models)
    return {id: line for id, line in stands.items() if line.decision != "skipped"}


def entry_of(
    judged: JudgedModels, people: Mapping[str, PairDecision], verdicts: Mapping[str, JudgeVerdict], *, confidence: float
) -> JudgeEntry:
    """The figures of a judge on two models, as those of the first one; with a win rate if it is admitted.

    A pair without a verdict counts as one that the judge finds the same.

    Args:
        people: Decisions by row id; at least one is on a pair of `judged`.
        verdicts: Verdicts by row id.
    """
    both = [pair for pair in judged.queue if pair.id in people]
    rest = [pair for pair in judged.queue if pair.id not in people]
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(pair.group or f"\0{pair.id}", len(numbers)) for pair in [*both, *rest]])
    human = np.array([SCORES.get(people[pair.id].decision, 0.5) for pair in both])
    own, others = (_scores(verdicts, pairs) for pairs in (both, rest))
    longer = np.array([_longer(pair) for pair in both])
    agreement = Agreement.of(human, own, longer, groups[: len(both)], confidence=confidence)
    here = [verdicts[pair.id] for pair in judged.queue if pair.id in verdicts]
    entry: JudgeEntry = {
        "judge": here[0].judge if here else "",
        "pairs": agreement.pairs, "right": agreement.right, "same": agreement.same, "longer": agreement.longer,
        "lead": agreement.lead, "admitted": agreement.is_admitted, "rows": len(judged.queue),
        "no_verdict": sum(not line.decision for line in here),
        "turned": sum(line.has_turned for line in here),
        "turned_to_first": sum(line.answers == ("first", "second") for line in here),
        "prefers_longer": list(preferred_longer(own, longer)),
        "people_prefer_longer": list(preferred_longer(human, longer)),
    }  # fmt: skip
    if agreement.is_admitted and rest:
        rate = CorrectedRate.of(human, own, others, groups)
        entry |= {
            "win_rate": rate.rate, "interval": list(rate.interval(confidence)), "worth": rate.worth,
            "centre": rate.centre, "deviation": rate.deviation, "freedom": rate.freedom,
        }  # fmt: skip
    return entry


def _scores(verdicts: Mapping[str, JudgeVerdict], pairs: Iterable[AnswerPair]) -> Floats:
    lines = (verdicts.get(pair.id) for pair in pairs)
    return np.array([SCORES.get(line.decision, 0.5) if line else 0.5 for line in lines])


def _longer(pair: AnswerPair) -> float:
    """The score of the first model if the longer answer won; characters count."""
    first, second = map(len, pair.answers)
    return 0.5 if first == second else float(first > second)
