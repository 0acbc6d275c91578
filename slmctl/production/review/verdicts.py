"""A judge's verdicts on pairs of answers: their file, and what people's
decisions on the same pairs make of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from slmctl.artifacts.json_lines import Line
from slmctl.metrics.judged_rate import Agreement, CorrectedRate, Floats, preferred_longer
from slmctl.production.review.pairs import AnswerPair, JudgedModels, PairDecision
from slmctl.reports.evaluation_report import JudgeEntry

Verdict: TypeAlias = Literal["first", "second", "same", ""]  # "" where no choice could be read
SCORES = {"first": 1.0, "second": 0.0}  # of the first model; 0.5 for everything else


@dataclass(frozen=True)
class JudgeVerdict(Line):
    """A judge's verdict on two models' answers to one held-out row, asked in both orders.

    Attributes:
        id: Id of the record.
        judge: Name of the judge.
        models: Digests of both models' predictions; the verdict counts for these alone.
        answers: The better model, where the first one's answer was shown first, and where the
            second one's was; both "" for a row that may not be sent.
        model: Digest of a judge on this machine, or of address and model of an endpoint.
        prompt: Hash of what all its prompts share, the rubric among it.
    """

    id: str
    judge: str
    models: tuple[str, str]
    answers: tuple[Verdict, Verdict]
    model: str = ""
    prompt: str = ""

    @property
    def asker(self) -> tuple[str, str, str]:
        """The judge with its rubric."""
        return self.judge, self.model, self.prompt

    @property
    def has_turned(self) -> bool:
        """True for two choices that differ: the order decided."""
        return self.answers[0] != self.answers[1] and "" not in self.answers

    @property
    def decision(self) -> Verdict:
        """The verdict; the same where it turns with the order, and ""
        where one of the two orders has none.
        """
        if "" in self.answers:
            return ""
        return "same" if self.has_turned else self.answers[0]


@dataclass(frozen=True)
class Verdicts:
    """The verdicts on two models' pairs by the judge that counts, the last one asked.

    Attributes:
        by_row: Verdicts by row id.
        tried: Number of judges and rubrics that were asked about these pairs, at least 1.
    """

    by_row: Mapping[str, JudgeVerdict]
    tried: int = 1


def verdicts_of(lines: Iterable[JudgeVerdict]) -> dict[tuple[str, str], Verdicts]:
    """The verdicts in a file's lines, by both models' digests."""
    by_models: dict[tuple[str, str], dict[tuple[str, str, str], dict[str, JudgeVerdict]]] = {}
    for line in lines:
        askers = by_models.setdefault(line.models, {})
        rows = askers.pop(line.asker, {})
        rows[line.id] = line
        askers[line.asker] = rows  # the last one asked stands last
    return {
        models: Verdicts([*askers.values()][-1], len(askers))
        for models, askers in by_models.items()
    }


def entry_of(
    judged: JudgedModels,
    people: Mapping[str, PairDecision],
    verdicts: Verdicts,
    *,
    confidence: float,
) -> JudgeEntry:
    """The figures of a judge on two models, as those of the first one; with a win rate if it is
    admitted.

    Who tries several judges or rubrics on the same pairs may take the luckiest, so the error of
    admission and interval is divided by their number (Bonferroni). A pair without a line was never
    asked: it is no verdict, and while one is missing there is no admission, or no win rate. A pair
    that people skipped is neither theirs nor the judge's.

    Args:
        people: Standing decisions by row id; at least one is on a pair of `judged`, and is not
            `skipped`.
    """
    both = [
        pair for pair in judged.queue if pair.id in people and people[pair.id].decision != "skipped"
    ]
    rest = [pair for pair in judged.queue if pair.id not in people]
    rows, confidence = verdicts.by_row, 1 - (1 - confidence) / verdicts.tried
    numbers: dict[str, int] = {}
    groups = np.array(
        [numbers.setdefault(pair.group or f"\0{pair.id}", len(numbers)) for pair in [*both, *rest]]
    )
    human = np.array([SCORES.get(people[pair.id].decision, 0.5) for pair in both])
    own, others = (_scores(rows, pairs) for pairs in (both, rest))
    longer = np.array([_longer(pair) for pair in both])
    agreement = Agreement.of(human, own, longer, groups[: len(both)], confidence=confidence)
    here = [rows[pair.id] for pair in judged.queue if pair.id in rows]
    last = here[0] if here else None
    missing = sum(pair.id not in rows for pair in both)
    is_admitted = agreement.is_admitted and not missing
    if is_admitted:
        missing = sum(pair.id not in rows for pair in rest)
    entry: JudgeEntry = {
        "judge": last.judge if last else "",
        "model": last.model if last else "",
        "prompt": last.prompt if last else "",
        "tried": verdicts.tried,
        "missing": missing,
        "pairs": agreement.pairs,
        "right": agreement.right,
        "same": agreement.same,
        "longer": agreement.longer,
        "lead": agreement.lead,
        "admitted": is_admitted,
        "rows": len(both) + len(rest),
        "skipped": len(judged.queue) - len(both) - len(rest),
        "no_verdict": sum(not line.decision for line in here),
        "turned": sum(line.has_turned for line in here),
        "turned_to_first": sum(line.answers == ("first", "second") for line in here),
        "prefers_longer": list(preferred_longer(own, longer)),
        "people_prefer_longer": list(preferred_longer(human, longer)),
    }
    if is_admitted and rest and not missing:
        rate = CorrectedRate.of(human, own, others, groups)
        entry |= {
            "win_rate": rate.rate,
            "interval": list(rate.interval(confidence)),
            "worth": rate.worth,
            "centre": rate.centre,
            "deviation": rate.deviation,
            "freedom": rate.freedom,
        }
    return entry


def _scores(verdicts: Mapping[str, JudgeVerdict], pairs: Iterable[AnswerPair]) -> Floats:
    lines = (verdicts.get(pair.id) for pair in pairs)
    return np.array([SCORES.get(line.decision, 0.5) if line else 0.5 for line in lines])


def _longer(pair: AnswerPair) -> float:
    """The score of the first model if the longer answer won; characters count."""
    first, second = map(len, pair.answers)
    return 0.5 if first == second else float(first > second)
