"""Requests and replies of decisions APIs, which answer with one of some labels and its probability.

Two APIs are supported: OpenAI's `POST /v1/decisions` and TypeSafe's `POST /v1/systemone`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from slmctl.network.endpoint_replies import (
    BYTES_A_TOKEN,
    Reply,
    count,
    is_text,
    mapping,
    parsed,
    probabilities,
    unreadable,
)

Api = Literal["chat", "decisions", "systemone"]
CHAT: Api = "chat"
PATHS: Mapping[Api, str] = {
    CHAT: "/chat/completions",
    "decisions": "/decisions",
    "systemone": "/systemone",
}
# of a question, by both vendors' documentation; some servers accept fewer and answer 400
MOST_LABELS = 255
FORM = "decision"
NAME = "label"  # name of the only question of a request


@dataclass(frozen=True)
class Choice:
    """A question for one of some labels.

    Attributes:
        instructions: The question in words.
        labels: Label -> description, '' for none.
    """

    instructions: str
    labels: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of the question and its labels as JSON."""
        return len(json.dumps([self.instructions, self.labels], ensure_ascii=False).encode())


def body(api: Api, choice: Choice, messages: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """The body of a request for one label of a conversation; a single
    user message is sent as plain text.
    """
    content = (
        messages[0]["content"]
        if [turn["role"] for turn in messages] == ["user"]
        else list(messages)
    )
    question: dict[str, object] = {"type": "choice", "instructions": choice.instructions}
    if api == "systemone":
        criteria = {label: described or None for label, described in choice.labels.items()}
        return {"state": content, "questions": {NAME: question | {"criteria": criteria}}}
    choices = [
        {"value": label} | ({"description": described} if described else {})
        for label, described in choice.labels.items()
    ]
    return {"input": content, "questions": [question | {"name": NAME, "choices": choices}]}


def read_decision(raw: bytes, seconds: float, choice: Choice) -> Reply:
    """Read the label and its probabilities from a reply of either API.

    `Reply.confidence` is the probability of the label, not the `confidence` in the body, which
    measures how peaked the distribution is. If one probability is invalid, or belongs to an unknown
    label, all are left out.

    Raises:
        EndpointError: The body is not an answer to a question for a label.
    """
    reply = parsed(raw, FORM)
    answers, usage = reply.get("answers"), mapping(reply.get("usage"))
    answer = answers.get(NAME) if isinstance(answers, dict) else _first(answers)
    if not isinstance(answer, dict):
        raise unreadable("without an answer", FORM)
    prompt, completion = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    if answer.get("type") == "refusal":
        return Reply("", "refusal", prompt, completion, seconds)
    label = answer.get("choice")
    if not isinstance(label, str) or not is_text(label):
        raise unreadable("with an answer that is no label", FORM)
    if label not in choice.labels and len(label) > BYTES_A_TOKEN:
        raise unreadable(f"with a label of {len(label)} characters", FORM)
    distribution = answer.get("probabilities")
    if isinstance(distribution, list):
        entries = [
            entry
            for entry in distribution
            if isinstance(entry, dict) and isinstance(entry.get("value"), str)
        ]
        distribution = {entry["value"]: entry.get("probability") for entry in entries}
    shares = probabilities(distribution)
    if not shares.keys() <= choice.labels.keys():
        shares = {}
    labels = dict(sorted(shares.items(), key=lambda entry: -entry[1]))
    return Reply(label, "stop", prompt, completion, seconds, labels.get(label), labels=labels)


def _first(answers: object) -> object:
    return answers[0] if isinstance(answers, list) and answers else None
