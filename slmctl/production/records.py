"""The lines of collected answers, of feedback and of reviews.

`serve.collect` writes `collected/DAY.jsonl` and `collected/feedback.jsonl`, `slmctl review` writes `reviewed.jsonl`;
all are append-only. A collected row says with which probability it was chosen, so that shares of all traffic can be
estimated from it. A reviewed file is a source of `prepare` (`reviews.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from slmctl.artifacts import json_lines
from slmctl.artifacts.bounded_json import JsonObject

FEEDBACK = "feedback.jsonl"
MOST_TOKENS = 1 << 32  # of a request; a line with more is damaged
# The reasons for which a row was looked at. A uniform one was drawn by chance from all traffic, with a probability
# that is known, and nothing else; any other one was picked since it looked difficult.
UNIFORM = "uniform"
Choice = Literal[
    "uniform", "escalated", "unsure", "disagreement", "suspect", "novel", "duplicates", "shadow", "feedback"
]


@dataclass(frozen=True)
class _Line:
    """A line of one of the files. Fields that are not known are passed over: a later version may have written them."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "ignore", "allow_inf_nan": False}

    def to_json(self) -> JsonObject:
        """The line as it is written; fields that are empty are left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", {}, [], ())}

    @classmethod
    def read(cls, path: Path) -> Iterator[Self]:
        """The lines of a file in order; those that are torn, or of another kind, are passed over.

        Raises:
            OSError: The file cannot be read.
        """
        adapter = TypeAdapter(cls)
        for fields in json_lines.read(path):
            try:
                yield adapter.validate_python(fields)
            except ValidationError:
                continue


@dataclass(frozen=True)
class CollectedRow(_Line):
    """One answer that a server gave.

    Attributes:
        id: The request's, under which feedback comes.
        time: Of the answer, in UTC, `2026-11-25T09:30:00Z`.
        digest: `sha256:…` of the file that answered.
        model, version: Its name and the version of its release.
        messages: The conversation as the client sent it, after `serve.collect.sensitive`.
        answer: What the client got.
        local_answer: The local model's, where the client got the general model's; else empty.
        general_answer: The general model's, where one came and the client got it or not.
        route, reason: Who answered and why, as in `x-slmctl-route`.
        p_correct: How likely the local answer is right, by the policy, 0 to 1; None without a policy.
        confidence: Of the local label, 0 to 1; None where there is none.
        labels: The likeliest labels with their probabilities, likeliest first.
        chosen: Why it was collected: `uniform`, `escalated` or `unsure`.
        probability: With which an answer like this one is collected, 0 to 1.
        uniform: It is in the uniform share too: drawn by chance alone, whatever else chose it.
        uniform_probability: With which any answer is in the uniform share, 0 to 1.
        novel: No training row is like the question; None where nobody looked.
        shadow: The answer of the shadow release to the same question; None where there is none.
        shadow_digest: `sha256:…` of its file.
        tools: The tools that the client sent; empty where the task's own were offered.
    """

    id: str
    time: str
    messages: list[JsonObject]
    answer: str
    digest: str = ""
    model: str = ""
    version: str = ""
    local_answer: str = ""
    general_answer: str = ""
    route: str = "local"
    reason: str = ""
    p_correct: float | None = None
    confidence: float | None = None
    labels: dict[str, float] = field(default_factory=dict)
    chosen: Choice = "uniform"
    probability: float = 1.0
    uniform: bool = False
    uniform_probability: float = 0.0
    novel: bool | None = None
    shadow: str | None = None
    shadow_digest: str = ""
    tools: list[JsonObject] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The user's messages, a paragraph each."""
        return text_of(self.messages)

    @property
    def local(self) -> str:
        """The local model's answer."""
        return self.local_answer or self.answer


@dataclass(frozen=True)
class DecisionLine(_Line):
    """A line of `serve.decision_log`, or of the server's own log: who answered a request, and why.

    Attributes:
        time: In UTC.
        route, reason, p_correct: See CollectedRow.
        prompt_tokens, completion_tokens: Of the answer that the client got.
        event: Of the server's own log, the kind of the line.
    """

    time: str
    route: str
    reason: str
    p_correct: Annotated[float, Field(ge=0, le=1)] | None = None
    prompt_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 0
    completion_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 0
    event: Literal["decision"] = "decision"


@dataclass(frozen=True)
class Feedback(_Line):
    """A client's word on an answer: whether it was right, or what would have been.

    Attributes:
        id: Of the request.
        time: In UTC.
        ok: The answer was right; None where only `answer` says more.
        answer: The right answer; None where the client does not say.
        key: Name of the API key that it came with; empty where none is asked for.
    """

    id: str
    time: str
    ok: bool | None = None
    answer: str | None = None
    key: str = ""


@dataclass(frozen=True)
class Review(_Line):
    """A decision of a person on one row.

    Attributes:
        id: Of the row: the request's, or the record's.
        time: Of the decision, in UTC.
        reviewer: The name that was given.
        decision: `accepted` the answer as it was, `corrected` it, `skipped` the row, or `undone` the decision on it.
        messages: The conversation up to the answer; empty for `skipped` and `undone`.
        before: The answer that was shown; empty where the row had none.
        after: The answer that is right.
        chosen: Why the row was looked at.
        probability: Of a uniform row, with which it was drawn from all traffic, 0 to 1.
        digest: `sha256:…` of the file that gave `before`.
        seen: When the row was collected, in UTC; empty for one that was not.
        tools: Those of the collected row.
    """

    id: str
    time: str
    reviewer: str
    decision: Literal["accepted", "corrected", "skipped", "undone"]
    messages: list[JsonObject] = field(default_factory=list)
    before: str = ""
    after: str = ""
    chosen: Choice = "uniform"
    probability: float = 1.0
    digest: str = ""
    seen: str = ""
    tools: list[JsonObject] = field(default_factory=list)

    @property
    def uniform(self) -> bool:
        """Only such a row may become a calibration or a test row."""
        return self.chosen == UNIFORM


def text_of(messages: Iterable[Mapping[str, object]]) -> str:
    """The texts of the user's messages, a paragraph each."""
    return "\n\n".join(str(message.get("content", "")) for message in messages if message.get("role") == "user")


def collected_files(paths: Iterable[Path]) -> list[Path]:
    """The files of collected rows below folders and among files, oldest day first; no feedback."""
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return [path for path in files if path.name != FEEDBACK]


def last_feedback(paths: Iterable[Path]) -> dict[str, Feedback]:
    """By request, the last word of each, of the feedback files in folders.

    Raises:
        OSError: A file cannot be read.
    """
    last: dict[str, Feedback] = {}
    for path in paths:
        folder = path if path.is_dir() else path.parent
        if (folder / FEEDBACK).exists():
            last |= {line.id: line for line in Feedback.read(folder / FEEDBACK)}
    return last


def standing(reviews: Iterable[Review]) -> dict[str, Review]:
    """The decision that stands on each row, by its id: the last one that is not undone."""
    history: dict[str, list[Review]] = {}
    for review in reviews:
        line = history.setdefault(review.id, [])
        if review.decision == "undone":
            del line[-1:]
        else:
            line.append(review)
    return {id: line[-1] for id, line in history.items() if line}


def decided(reviews: Iterable[Review]) -> list[Review]:
    """The decisions that stand and are no skips, in the order of the rows."""
    return [review for review in standing(reviews).values() if review.decision != "skipped"]
