"""Types of the lines that a server writes: collected answers, feedback and decisions.

`serve.collect` writes `collected/DAY.jsonl` and `collected/feedback.jsonl`, both append-only. A
collected row holds the probability with which it was chosen, so that shares of all traffic can be
estimated from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.artifacts.json_lines import Line
from slmctl.sources.reviewed import Choice
from slmctl.task.records import Message, question_of

FEEDBACK = "feedback.jsonl"
MOST_TOKENS = 1 << 32  # of a request; a line with a larger number is damaged


@dataclass(frozen=True)
class CollectedRow(Line):
    """One answer that a server gave.

    Attributes:
        id: Id of the request; feedback has it too.
        time: Time of the answer, in UTC, `2026-11-25T09:30:00Z`.
        digest: `sha256:…` of the model file that answered.
        model, version: Name of the model, and version of its release.
        messages: The conversation of the client, after `serve.collect.sensitive`, without system
            messages that the model does not get.
        answer: The answer that the client got.
        local_answer: The local model's answer, if the client got the generalist's; else ''.
        general_answer: The generalist's answer, if there was one, whether the client got it or not.
        route, reason: The model that answered and the reason, as in `x-slmctl-route`.
        p_correct: Probability that the local answer is right, by the policy, 0 to 1; None without a
            policy.
        confidence: Confidence of the local label, 0 to 1; None without one.
        labels: The likeliest labels with their probabilities, likeliest first.
        chosen: Reason for which it was collected: `uniform`, `escalated` or `unsure`.
        probability: Probability with which an answer of this kind is collected, 0 to 1.
        uniform: True if it is also in the uniform share, which is drawn at random from all answers.
        uniform_probability: Probability with which any answer is in the uniform share, 0 to 1.
        tools: The tools that the client sent; empty if the task's own were used.
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
    tools: list[JsonObject] = field(default_factory=list)

    @property
    def text(self) -> str:
        return text_of(self.messages)

    @property
    def turns(self) -> list[Message]:
        """The conversation as texts."""
        return [
            Message(role=str(turn.get("role")), content=str(turn.get("content") or ""))
            for turn in self.messages
        ]

    @property
    def question(self) -> str:
        """The contents of all turns, as `Record.input` has them."""
        return question_of(self.turns)

    @property
    def local(self) -> str:
        return self.local_answer or self.answer


@dataclass(frozen=True)
class DecisionLine(Line):
    """A line of `serve.decision_log`, or of the server's own log: the model that answered a
    request, and the reason.

    Attributes:
        time: Time in UTC.
        route, reason, p_correct: See CollectedRow.
        prompt_tokens, completion_tokens: Numbers of tokens of the answer that the client got.
        event: Kind of the line, in the server's own log.
    """

    time: str
    route: str
    reason: str
    p_correct: Annotated[float, Field(ge=0, le=1)] | None = None
    prompt_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 0
    completion_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 0
    event: Literal["decision"] = "decision"


@dataclass(frozen=True)
class Feedback(Line):
    """A client's feedback on an answer: right or wrong, or the right answer.

    Attributes:
        id: Id of the request.
        time: Time in UTC.
        ok: True for a right answer; None if the client sent only `answer`.
        answer: The right answer; None if the client did not send it.
        key: Name of the client's API key; '' if the server requires none.
    """

    id: str
    time: str
    ok: bool | None = None
    answer: str | None = None
    key: str = ""


def text_of(messages: Iterable[Mapping[str, object]]) -> str:
    """The texts of the user's messages, a paragraph each."""
    return "\n\n".join(
        str(message.get("content", "")) for message in messages if message.get("role") == "user"
    )


def collected_files(paths: Iterable[Path]) -> list[Path]:
    """The files of collected rows in folders and among files, the oldest
    day of a folder first; without feedback.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    # a file may lie in a folder
    each = {path.resolve(): path for path in reversed(files) if path.name != FEEDBACK}
    return [*reversed(each.values())]


def last_feedback(paths: Iterable[Path]) -> dict[str, Feedback]:
    """The last feedback on each request by its id, from the feedback files in folders.

    Raises:
        OSError: A file cannot be read.
    """
    last: dict[str, Feedback] = {}
    for path in paths:
        folder = path if path.is_dir() else path.parent
        if (folder / FEEDBACK).exists():
            last |= {line.id: line for line in Feedback.read(folder / FEEDBACK)}
    return last
