"""The lines that a server leaves: collected answers, feedback and decisions.

`serve.collect` writes `collected/DAY.jsonl` and `collected/feedback.jsonl`, both append-only. A collected row says with
which probability it was chosen, so that shares of all traffic can be estimated from it.
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

FEEDBACK = "feedback.jsonl"
MOST_TOKENS = 1 << 32  # of a request; a line with more is damaged


@dataclass(frozen=True)
class CollectedRow(Line):
    """One answer that a server gave.

    Attributes:
        id: The request's, under which feedback comes.
        time: Of the answer, in UTC, `2026-11-25T09:30:00Z`.
        digest: `sha256:…` of the file that answered.
        model, version: Its name and the version of its release.
        messages: The conversation as the client sent it, after `serve.collect.sensitive`, without system messages that
            the model does not get.
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
    tools: list[JsonObject] = field(default_factory=list)

    @property
    def text(self) -> str:
        return text_of(self.messages)

    @property
    def local(self) -> str:
        return self.local_answer or self.answer


@dataclass(frozen=True)
class DecisionLine(Line):
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
class Feedback(Line):
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
