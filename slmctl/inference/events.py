"""The types that the engine answers with: events of an answer,
tokens, the description of a model.
"""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict  # of typing's own, pydantic can check none

# after a build, since expanded weights give slightly other probabilities
EXPANDED = ", weights as BF16"


class TokenText(TypedDict):
    """A token of the vocabulary: its text, with half characters replaced, and its bytes."""

    token: str
    bytes: list[int]


class TokenAlternative(TokenText):
    """A token that could have stood in a place, and its log probability there."""

    logprob: float


class TokenInfo(TokenAlternative):
    """A token of an answer, and the likeliest tokens in its place."""

    top: list[TokenAlternative]


class ValuePlace(TypedDict):
    """The place of a value of an answer in the document that it is taken from.

    Attributes:
        path: Of the value in the answer, such as `items[].name`; empty for the answer itself.
        start, end: The first character, and the one behind the last.
        page: From 1; form feeds stand between pages.
        around: The text around it.
        conflict: True for a value that is likely too, but was not taken.
    """

    path: str
    value: object
    start: int
    end: int
    page: int
    around: str
    conflict: NotRequired[bool]


class Event(TypedDict, total=False):
    """One step of an answer: pieces, then one event with `finish` or with `error`.

    Attributes:
        piece: The next part of the answer's text.
        tokens: Those of a piece or of the end, for a request with `alternatives`.
        finish, prompt_tokens, completion_tokens, confidence, logprobs, labels, raw_logprobs: As in
            an Answer.
        evidence: As in an Answer.
        first: Of a sum, the end of the answer that its linear members give alone.
        p_correct: Probability that the answer is right, by the first step of a policy that kept it.
        places: The places of the answer's values in a document.
        distribution: Every label with its probability, for a request with `rest`.
        error: One sentence, in place of an answer.
        refused: True where the request is at fault.
        died: True where the engine's process ended.
    """

    piece: str
    tokens: list[TokenInfo]
    finish: str
    prompt_tokens: int
    completion_tokens: int
    confidence: float | None
    logprobs: list[float]
    labels: dict[str, float]
    raw_logprobs: list[float]
    evidence: float
    first: Event
    p_correct: float
    distribution: dict[str, float]
    places: list[ValuePlace]
    error: str
    refused: bool
    died: bool


def places_of(event: Event) -> list[ValuePlace]:
    """The places of an answer by its last event: those of its
    values, or that of the likeliest label.
    """
    label = next(iter(event.get("labels", {})), None)
    return [place for place in event.get("places", []) if place["path"] or place["value"] == label]


class EngineInfo(TypedDict):
    """The loaded model, as its process describes it.

    Attributes:
        build: llama.cpp's, with EXPANDED where the file was expanded.
        expanded: The weights are held as BF16 (`expansion`).
    """

    chat_template: str
    trained_context: int
    build: str
    expanded: bool


class ControlTokens(TypedDict):
    """The texts of the control tokens; `adds_bos` where a prompt begins with `bos`."""

    tokens: list[str]
    bos: str
    eos: str
    adds_bos: bool
