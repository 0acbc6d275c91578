"""Decides whether a local answer is kept: its probabilities -> how likely it is right -> keep or
escalate.

`calibrate` fits a policy on predictions and `serve` asks it about every answer: both read the
answer's signals here, from the same fields, so the measured policy is the one that decides. A
policy is plain JSON, bound to one GGUF file and one task, and needs nothing to be asked.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypedDict

from pydantic import ConfigDict, GetPydanticSchema

from slmctl.artifacts.artifact import canonical
from slmctl.artifacts.typed_json import read_typed
from slmctl.errors import IntegrityError

FILENAME = "policy.json"
SCHEMA = 1
LINEAR, WORDS = "linear", "words"  # that may look first: all linear members, or words alone
LABELS = 5  # the likeliest ones that predictions hold, and no more of an answer's are looked at
UNSURE = 0.05  # chance of n right answers where the share that is right is UNSURE ** (1 / n)
FLOOR = 1e-7  # probabilities below it are taken for it: predictions hold six digits


def signals(answer: Mapping[str, Any], *, out_of_scope: str = "") -> dict[str, float]:
    """The signals of an answer, from its probabilities, for a linear score.

    Of labels: `odds`, the log odds of the chosen label against all others; `allowed`, the log odds
    that the model would answer with any label and not with another text; `out_of_scope`, the log
    probability of that label. The second finds questions that are out of scope: a model that never
    saw such a question is as sure of a label, but less likely to answer with one. Of an encoder
    alone, `evidence` takes its place: what speaks for the label by itself, which is little for a
    text unlike all training rows. Of other answers: `mean` and `least`, the mean and the least log
    probability of a choice, and `choices`, the log of their number.

    Args:
        answer: A line of predictions, or the engine's last event: `confidence` and `logprobs` and,
            of labels, `raw_logprobs` or `evidence`, and `labels` with their probabilities,
            likeliest first.
        out_of_scope: The label of questions that are out of scope, where the task has one.

    Raises:
        ValueError: It has no confidence or no log probabilities, or they are no numbers.
    """
    sure, choices = (
        answer.get("confidence"),
        [_logprob(value) for value in answer.get("logprobs") or ()],
    )
    if isinstance(sure, bool) or not isinstance(sure, int | float) or not 0 <= sure <= 1:
        raise ValueError("the answer has no confidence")
    if not choices:
        raise ValueError("the answer has no log probabilities")
    listed = list((answer.get("labels") or {}).items())[:LABELS]
    if not listed:
        return {
            "mean": math.fsum(choices) / len(choices),
            "least": min(choices),
            "choices": math.log(len(choices)),
        }
    values, evidence = {"odds": _log_odds(sure)}, answer.get("evidence")
    if evidence is not None:
        values["evidence"] = _number(evidence)
    else:
        among_all = [_logprob(value) for value in answer.get("raw_logprobs") or ()]
        if len(among_all) != len(choices):
            raise ValueError("the answer has no log probabilities among the whole vocabulary")
        allowed = math.fsum(raw - choice for raw, choice in zip(among_all, choices, strict=True))
        values["allowed"] = _log_odds(math.exp(min(0.0, allowed)))
    if out_of_scope:
        values["out_of_scope"] = math.log(max(dict(listed).get(out_of_scope, 0.0), 1e-4))
    return values


def _log_odds(p: float) -> float:
    return math.log(max(p, FLOOR) / max(1 - p, FLOOR))


def _logprob(value: Any) -> float:
    """A log probability, at least -20, below which all are alike.

    Raises:
        ValueError: It is not a number.
    """
    return min(0.0, max(_number(value), -20.0))


def _number(value: Any) -> float:
    """The value of a signal.

    Raises:
        ValueError: It is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError("a log probability or another signal is not a number")
    return float(value)


@dataclass(frozen=True)
class Decision:
    """A policy's decision on one answer.

    Attributes:
        keep: Answer here; else escalate.
        p_correct: How likely the answer is right.
        reason: `kept`, `unsure`, or `out-of-scope`: the model answered with the out-of-scope label.
    """

    keep: bool
    p_correct: float
    reason: str


class CurvePoint(TypedDict, total=False):
    """One threshold of the cost-quality curve, over the rows that tested it; all but the threshold
    are shares.

    Attributes:
        threshold: Score from which on an answer is kept.
        kept: Of the answers, those that are kept.
        error: Of the kept answers, the wrong ones.
        error_bound: Upper bound of the error, at the confidence of the fit.
        out_of_scope_away: Of the out-of-scope rows, those that are not kept.
    """

    threshold: float
    kept: float
    error: float
    error_bound: float
    out_of_scope_away: float


class PolicyFigures(TypedDict, total=False):
    """The measurements of a fit; shares, unless they are numbers of rows.

    Attributes:
        rows, fitted_on, tested_on: Numbers of all rows, of those that fit the score, of those that
            test the threshold.
        groups, design_effect: Number of groups of all rows, and how many of the kept rows tell as
            much as one independent row; only for rows with groups.
        cost: Of a thousand questions, with its interval; this and the next three only with costs.
        saved_by_more: Of the cost, by 100 more calibration rows, as foreseen.
        labels: Of each label with a cost of its own, the numbers of rows to which a wrong answer is
            kept, and of all.
        label_bounds: Upper bounds of these shares, of labels with enough rows.
        kept_by_more: Share of the answers that would be kept beyond `kept` with 100 more
            calibration rows, as foreseen.
        ms: Milliseconds of a question; 0 if they were not measured.
        kept, error, error_bound: At the threshold of the policy; see CurvePoint.
        chance_to_pass: Chance that any threshold passes, predicted from the scores; a policy that
            passed against the odds is more often over max_error.
        max_error, confidence: The largest error allowed, and the confidence of its bound.
        accuracy: Share of right answers to rows in scope.
        p_correct, right: Mean P(correct), and share of answers that are right to keep, among all
            calibration rows that test the threshold.
        first_kept: Share of the answers that the first step keeps; only of a first step.
        min_token_f1: Least token F1 of a right text; left out where it is 1.
        out_of_scope_rows: Number of out-of-scope rows; this and the following are left out without
            such rows.
        out_of_scope_kept, out_of_scope_bound: Share of these rows that is kept, and its upper
            bound.
        in_scope_kept: Share of the rows in scope that is kept.
    """

    rows: int
    fitted_on: int
    tested_on: int
    groups: int
    design_effect: float
    chance_to_pass: float
    kept: float
    error: float
    error_bound: float
    max_error: float
    confidence: float
    accuracy: float
    p_correct: float
    right: float
    first_kept: float
    cost: tuple[float, float, float]
    saved_by_more: float
    labels: dict[str, tuple[int, int]]
    label_bounds: dict[str, float]
    kept_by_more: float
    ms: float
    min_token_f1: float
    curve: list[CurvePoint]
    out_of_scope_rows: int
    out_of_scope_kept: float
    out_of_scope_bound: float
    in_scope_kept: float


# Figures decide nothing, so a file may lack some or have others: it is held to having an object in
# their place.
_AS_AN_OBJECT = GetPydanticSchema(lambda _source, handler: handler(dict[str, Any]))


Knots = tuple[tuple[float, float], ...]  # (score, P(correct)), both rising


@dataclass(frozen=True)
class FirstStep:
    """The part of a policy by which the linear members of a sum answer alone, and the file is asked
    for the rest.

    Attributes:
        weights, bias, knots, threshold: As in a Policy, for the answers of the linear members.
        rest_knots, rest_threshold: As in a Policy, for the sum's answers to the rest, with the
            policy's own weights.
        figures: The measurements of all kept answers together.
        words_alone: The step is one of words, and the encoder is asked together with the file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
    }

    weights: dict[str, float]
    bias: float
    knots: Knots
    threshold: float
    rest_knots: Knots
    rest_threshold: float
    figures: Annotated[PolicyFigures, _AS_AN_OBJECT] = field(default_factory=PolicyFigures)
    words_alone: bool = False


@dataclass(frozen=True)
class AnswerCosts:
    """Costs of answers, in money.

    Attributes:
        escalated: A question that is not kept, for a person or the generalist.
        wrong: A wrong answer that is kept.
        label: The same by the right label, for those with a cost of their own.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
    }

    escalated: float
    wrong: float
    label: dict[str, float]
    currency: str

    def of(self, decision: Decision, labels: Mapping[str, float]) -> float:
        """The expected cost of a decision on an answer with these
        probabilities, of which the first is the answer's.
        """
        if not decision.keep:
            return self.escalated
        others = [(p, self.label.get(label, self.wrong)) for label, p in [*labels.items()][1:]]
        total = math.fsum(p for p, _ in others)
        wrong = math.fsum(p * cost for p, cost in others) / total if total else self.wrong
        return (1 - decision.p_correct) * wrong


@dataclass(frozen=True)
class Policy:
    """A fitted policy.

    Attributes:
        gguf: sha256 of the file that gives the answers that it judges.
        task: Digest of the task contract of the answers.
        kind: Kind of the task, such as classify.
        correct: The rule by which an answer counted as right, in words.
        out_of_scope: The label of questions that are out of scope; empty for none.
        weights, bias: The linear score over the signals.
        knots: (score, P(correct)), both rising; between knots P is interpolated, beyond the last
            one it is constant.
        threshold: Score from which on an answer is kept.
        figures: The measurements of the fit.
        first: The step of the linear members of a sum; None where none was fitted. It is taken by
            `--first-look` alone.
        costs: Those that it was fitted for; None for none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
    }

    gguf: str
    task: str
    kind: str
    correct: str
    out_of_scope: str
    weights: dict[str, float]
    bias: float
    knots: Knots
    threshold: float
    figures: Annotated[PolicyFigures, _AS_AN_OBJECT] = field(default_factory=PolicyFigures)
    first: FirstStep | None = None
    costs: AnswerCosts | None = None
    schema: int = SCHEMA

    @classmethod
    def read(cls, path: Path) -> Policy:
        """Read the policy in an artifact's folder, or in a single file.

        Raises:
            IntegrityError: It does not exist, its schema is newer, or its values are wrong; all
                faults are named.
        """
        path, hint = path / FILENAME if path.is_dir() else path, "slmctl calibrate makes one"
        if not path.exists():
            raise IntegrityError(f"there is no policy at {path}", hint=hint)
        policy = read_typed(path, cls, hint=hint, schema=SCHEMA)
        steps = (policy,) if policy.first is None else (policy, *policy.in_steps())
        if not all(step.knots for step in steps):
            raise IntegrityError(f"{path} is not valid: knots: there are none", hint=hint)
        return policy

    def write(self, folder: Path) -> None:
        """Write it as `policy.json`."""
        fields = dataclasses.asdict(self)
        for name in ("first", "costs"):
            if fields[name] is None:
                del fields[name]
        if self.first is not None and not self.first.words_alone:
            del fields["first"]["words_alone"]  # as older versions read it
        (folder / FILENAME).write_bytes(canonical(fields))

    def in_steps(self) -> tuple[Policy, Policy]:
        """The policies of the linear members' answers, and of the sum's
        answers to the rest; `first` must be there.
        """
        step = self.first
        assert step is not None
        members = dataclasses.replace(
            self,
            weights=step.weights,
            bias=step.bias,
            knots=step.knots,
            threshold=step.threshold,
            first=None,
        )
        return members, dataclasses.replace(
            self,
            knots=step.rest_knots,
            threshold=step.rest_threshold,
            figures=step.figures,
            first=None,
        )

    def require(self, gguf: str, task: str) -> None:
        """Refuse a file or task that the policy was not fitted on.

        Args:
            gguf: sha256 of the file that answers.
            task: Digest of its task contract.

        Raises:
            IntegrityError: It was fitted on another file or another task.
        """
        for subject, fitted, served in (("GGUF file", self.gguf, gguf), ("task", self.task, task)):
            fitted, served = fitted.removeprefix("sha256:"), served.removeprefix("sha256:")
            if fitted != served:
                raise IntegrityError(
                    f"the policy is for another {subject}: fitted on {fitted[:12]}, and "
                    f"{served[:12]} answers here",
                    hint="slmctl calibrate, with what is served: the file, or the file in its sum",
                )

    def score(self, answer: Mapping[str, Any]) -> float:
        """The linear score of an answer; raises what `signals` raises."""
        return linear(self.weights, self.bias, signals(answer, out_of_scope=self.out_of_scope))

    def p_correct(self, score: float) -> float:
        """The probability that an answer of this score is right."""
        scores = [knot[0] for knot in self.knots]
        at = bisect.bisect_right(scores, score)
        if at in (0, len(scores)):
            return self.knots[min(at, len(scores) - 1)][1]
        x0, p0 = self.knots[at - 1]
        x1, p1 = self.knots[at]
        return p0 + (p1 - p0) * (score - x0) / (x1 - x0)

    def judge(self, answer: Mapping[str, Any], text: str) -> Decision:
        """Decide whether an answer is kept.

        Args:
            answer: See `signals`.

        Raises:
            ValueError: The answer has no confidence, or is of another kind than the policy's.
        """
        score = self.score(answer)
        most = UNSURE ** (1 / self.figures["rows"]) if self.figures.get("rows") else 1.0
        # n right answers show no more than this share
        p_correct = round(min(self.p_correct(score), most), 4)
        if self.out_of_scope and text.strip() == self.out_of_scope:
            return Decision(False, p_correct, "out-of-scope")
        keep = score >= self.threshold
        return Decision(keep, p_correct, "kept" if keep else "unsure")


def linear(weights: Mapping[str, float], bias: float, values: Mapping[str, float]) -> float:
    """The score of some signals, to twelve digits: the same sum wherever it is made.

    Raises:
        ValueError: The signals are others than those that the weights are for.
    """
    if weights.keys() != values.keys():
        raise ValueError("the answer is of another kind than those that the policy was fitted on")
    return float(f"{bias + math.fsum(weights[name] * values[name] for name in weights):.12g}")
