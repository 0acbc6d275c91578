"""`/v1/completions`: prompts, each a user's message; raw text for a bare `.gguf`."""

from __future__ import annotations

from collections.abc import Sequence

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference.events import TokenInfo
from slmctl.server.forms.chat import chat_prompt
from slmctl.server.forms.completions import (
    CHOICES,
    READ,
    CompletionForm,
    Fits,
    PromptedTurns,
    RenderedPrompt,
)
from slmctl.server.forms.options import number
from slmctl.server.forms.request import CheckedRequest, ReplyChoice, ServedModel
from slmctl.server.forms.tool_requests import Offer
from slmctl.server.request_errors import RequestError
from slmctl.task.records import Message

ALTERNATIVES = 5  # as OpenAI has them


class TextCompletionForm(CompletionForm):
    """Completions of prompts."""

    path, question = "/v1/completions", "prompt"
    reads = READ | {"prompt"}
    calls, several = False, True
    kinds, prefix = ("text_completion", "text_completion"), "cmpl"

    def prompted(
        self, body: JsonObject, model: ServedModel, offer: Offer | None, fits: Fits
    ) -> PromptedTurns:
        sent: list[Message] = [{"role": "user", "content": text} for text in _texts(body)]
        return PromptedTurns((), sent, [_prompt(model, message, offer, fits) for message in sent])

    def alternatives(self, body: JsonObject) -> int:
        return (
            int(number(body, "logprobs", -1, 0, ALTERNATIVES, whole=True))
            if "logprobs" in body
            else -1
        )

    def fields(self, checked: CheckedRequest, index: int, choice: ReplyChoice) -> JsonObject:
        return {"text": choice.text}

    def logprobs(self, tokens: Sequence[TokenInfo], offset: int) -> JsonObject:
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token["token"])
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [
                {alternative["token"]: alternative["logprob"] for alternative in token["top"]}
                for token in tokens
            ],
            "text_offset": offsets,
        }


def _texts(body: JsonObject) -> list[str]:
    prompt = body.get("prompt")
    texts = [prompt] if isinstance(prompt, str) else prompt
    if (
        not isinstance(texts, list)
        or not 1 <= len(texts) <= CHOICES
        or not all(isinstance(t, str) for t in texts)
    ):
        raise RequestError(f"'prompt' must be a text or up to {CHOICES} texts", "prompt")
    return texts


def _prompt(
    model: ServedModel, message: Message, offer: Offer | None, fits: Fits
) -> RenderedPrompt:
    """The prompt of a completion: raw text for a bare model; for any
    other a user's message, as in chat.
    """
    if model.bare:
        return RenderedPrompt(model.opening + message["content"], "", ())
    return chat_prompt(model, [message], offer, fits)


TEXT = TextCompletionForm()
