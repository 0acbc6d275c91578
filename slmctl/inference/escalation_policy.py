"""When to keep a small model's answer: what it says of itself -> how likely it is right -> keep or escalate.

`calibrate` fits a policy on predictions and `serve` asks it about every answer: both read the answer's
signals here, from the same fields, so what was measured is what decides. A policy is plain JSON, bound to
one GGUF file and one task, and needs nothing to be asked.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmctl.artifacts.artifact import canonical
from slmctl.errors import IntegrityError

FILENAME = "policy.json"
SCHEMA = 1
LABELS = 5  # the likeliest ones that predictions hold, and no more of an answer's are looked at
FLOOR = 1e-7  # probabilities below it are taken for it: predictions hold six digits


def signals(answer: Mapping[str, Any], *, out_of_scope: str = "") -> dict[str, float]:
    """What an answer's probabilities say of it, as numbers for a linear score.

    Of labels: the log odds of the one that was taken against all others, those that the model wanted to say a label
    at all and not something else of its vocabulary, and how likely the out-of-scope label is. The second tells what
    belongs elsewhere: a model that was never shown such questions is as sure of a label, but wants one less. Of
    other answers: the mean and the least log probability of a choice, and their number.

    Args:
        answer: A line of predictions, or the engine's last event: `confidence` and `logprobs` and, of labels,
            `raw_logprobs` and `labels` with their probabilities, likeliest first.
        out_of_scope: The label of questions that belong elsewhere, where the task has one.

    Raises:
        ValueError: It does not say how sure the model was, or says it in no numbers.
    """
    sure, choices = answer.get("confidence"), [_logprob(value) for value in answer.get("logprobs") or ()]
    if isinstance(sure, bool) or not isinstance(sure, int | float) or not 0 <= sure <= 1:
        raise ValueError("the answer has no confidence")
    if not choices:
        raise ValueError("the answer has no log probabilities")
    listed = list((answer.get("labels") or {}).items())[:LABELS]
    if not listed:
        return {"mean": math.fsum(choices) / len(choices), "least": min(choices), "choices": math.log(len(choices))}
    among_all = [_logprob(value) for value in answer.get("raw_logprobs") or ()]
    if len(among_all) != len(choices):
        raise ValueError("the answer has no log probabilities among the whole vocabulary")
    wanted = math.fsum(raw - choice for raw, choice in zip(among_all, choices, strict=True))
    found = {"odds": _log_odds(sure), "allowed": _log_odds(math.exp(min(0.0, wanted)))}
    if out_of_scope:
        found["out_of_scope"] = math.log(max(dict(listed).get(out_of_scope, 0.0), 1e-4))
    return found


def _log_odds(p: float) -> float:
    return math.log(max(p, FLOOR) / max(1 - p, FLOOR))


def _logprob(value: Any) -> float:
    """A log probability, cut where it says no more than never.

    Raises:
        ValueError: It is no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError("a log probability is no number")
    return min(0.0, max(float(value), -20.0))


@dataclass(frozen=True)
class Verdict:
    """What a policy says of one answer.

    Attributes:
        keep: Answer here; else escalate.
        p_correct: How likely the answer is right.
        reason: `confident`, `unsure`, or `out-of-scope`: the model itself says that the question belongs elsewhere.
    """

    keep: bool
    p_correct: float
    reason: str


@dataclass(frozen=True)
class Policy:
    """A fitted policy.

    Attributes:
        gguf: sha256 of the file whose answers it judges.
        task: Digest of the task contract that the answers were given under.
        kind: classify, extract or generate.
        correct: What counted as a right answer, in words.
        out_of_scope: The label of questions that belong elsewhere; empty for none.
        weights, bias: The linear score over the signals.
        knots: (score, P(correct)), both rising; between them P is interpolated, beyond them it is that of the end.
        threshold: Score from which on an answer is kept.
        figures: What was measured when it was fitted.
    """

    gguf: str
    task: str
    kind: str
    correct: str
    out_of_scope: str
    weights: dict[str, float]
    bias: float
    knots: tuple[tuple[float, float], ...]
    threshold: float
    figures: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @classmethod
    def read(cls, path: Path) -> Policy:
        """The policy in an artifact's folder, or in a file of its own.

        Raises:
            IntegrityError: There is none, or it is none that this version reads.
        """
        path = path / FILENAME if path.is_dir() else path
        try:
            fields = json.loads(path.read_bytes())
            if fields["schema"] != SCHEMA:
                raise IntegrityError(f"{path} has schema {fields['schema']}, and this slmctl reads {SCHEMA}")
            found = cls(**fields | {"knots": tuple((float(x), float(p)) for x, p in fields["knots"])})
            numbers = [found.bias, found.threshold, *found.weights.values()]
            if not found.knots or not all(math.isfinite(number) for number in numbers):
                raise ValueError("a figure is missing")
        except OSError:
            raise IntegrityError(f"there is no policy at {path}", hint="slmctl calibrate makes one") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise IntegrityError(f"{path} holds no policy", hint="slmctl calibrate makes one") from None
        return found

    def write(self, folder: Path) -> None:
        """Write it as `policy.json`."""
        (folder / FILENAME).write_bytes(canonical(dataclasses.asdict(self)))

    def require(self, gguf: str, task: str) -> None:
        """Refuse to judge what it was not fitted on.

        Args:
            gguf: sha256 of the file that answers.
            task: Digest of its task contract.

        Raises:
            IntegrityError: It was fitted on another file or another task.
        """
        for what, wanted, given in (("GGUF file", self.gguf, gguf), ("task", self.task, task)):
            wanted, given = wanted.removeprefix("sha256:"), given.removeprefix("sha256:")
            if wanted != given:
                raise IntegrityError(
                    f"the policy is for another {what}: it was fitted on {wanted[:12]}, and {given[:12]} answers here",
                    hint="slmctl calibrate, with the file that is served",
                )

    def score(self, answer: Mapping[str, Any]) -> float:
        """The linear score of an answer; raises what `signals` raises."""
        found = signals(answer, out_of_scope=self.out_of_scope)
        return linear(self.weights, self.bias, found)

    def p_correct(self, score: float) -> float:
        """How likely an answer of this score is right."""
        scores = [knot[0] for knot in self.knots]
        at = bisect.bisect_right(scores, score)
        if at in (0, len(scores)):
            return self.knots[min(at, len(scores) - 1)][1]
        (x0, p0), (x1, p1) = self.knots[at - 1], self.knots[at]
        return p0 + (p1 - p0) * (score - x0) / (x1 - x0)

    def judge(self, answer: Mapping[str, Any], text: str) -> Verdict:
        """Whether to keep an answer.

        Args:
            answer: See `signals`.
            text: The answer itself.

        Raises:
            ValueError: The answer has no confidence, or is of another kind than the policy's.
        """
        score = self.score(answer)
        p_correct = round(self.p_correct(score), 4)
        if self.out_of_scope and text.strip() == self.out_of_scope:
            return Verdict(False, p_correct, "out-of-scope")
        keep = score >= self.threshold
        return Verdict(keep, p_correct, "confident" if keep else "unsure")


def linear(weights: Mapping[str, float], bias: float, found: Mapping[str, float]) -> float:
    """The score of some signals, to twelve digits: the same sum wherever it is made.

    Raises:
        ValueError: The signals are others than those that the weights are for.
    """
    if weights.keys() != found.keys():
        raise ValueError("the answer is of another kind than those that the policy was fitted on")
    return float(f"{bias + math.fsum(weights[name] * found[name] for name in weights):.12g}")
