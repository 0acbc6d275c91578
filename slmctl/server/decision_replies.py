"""Answers to decisions, in OpenAI's form and in TypeSafe's: every option of a question with its probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.server import openai_replies, responses_replies
from slmctl.server.decision_requests import ModelPart, Option, Question
from slmctl.server.openai_replies import ReplyChoice
from slmctl.server.openai_requests import CheckedRequest


def whole(checked: CheckedRequest, choice: ReplyChoice, extra: JsonObject, name: str) -> JsonObject:
    """The body of an answer, by the model `name`; `extra` is what slmctl adds to it."""
    shares = choice.last["distribution"]
    if extra["route"] != "local":  # the generalist tells its label, and no probability of others
        shares = {choice.text: 1.0}
    answers = [_answer(question, shares, choice, checked) for question in checked.questions]
    used = openai_replies.usage(checked, [choice.last])
    listed: Any = answers
    usage: JsonObject = responses_replies.usage_of(used)
    if checked.kind == "systemone":
        listed = {str(question.name): answer for question, answer in zip(checked.questions, answers, strict=True)}
        usage = {"input_tokens": used["prompt_tokens"], "output_tokens": used["completion_tokens"]}
    return {"model": name, "answers": listed, "usage": usage, "slmctl": extra}


def merged(parts: Sequence[ModelPart], bodies: Sequence[JsonObject]) -> JsonObject:
    """One answer of those of several models, its questions in their order; each answer says which model gave it."""
    by_place: dict[int, tuple[str, JsonObject]] = {}
    for part, body in zip(parts, bodies, strict=True):
        answers = body["answers"]
        items = answers.items() if isinstance(answers, dict) else (("", answer) for answer in answers)
        for place, (name, answer) in zip(part.places, items, strict=True):
            by_place[place] = name, {**answer, "slmctl": {**body["slmctl"], **answer.get("slmctl", {})}}
    ordered = [by_place[place] for place in sorted(by_place)]
    by_name = isinstance(bodies[0]["answers"], dict)
    usage = bodies[0]["usage"]
    for body in bodies[1:]:
        usage = _sum(usage, body["usage"])
    answers = dict(ordered) if by_name else [answer for _, answer in ordered]
    return {**bodies[0], "answers": answers, "usage": usage}


def _sum(first: JsonObject, other: JsonObject) -> JsonObject:
    return {
        name: _sum(value, other[name]) if isinstance(value, dict) else value + other[name]
        for name, value in first.items()
    }


def _answer(question: Question, shares: dict[str, float], choice: ReplyChoice, checked: CheckedRequest) -> JsonObject:
    """The answer to one question.

    Its options share the probability that the model gives to all of them together.
    """
    masses = [shares.get(label, 0.0) for label in question.labels]
    if not (total := math.fsum(masses)):  # the generalist's label is not among the options
        masses = [choice.last["distribution"].get(label, 0.0) for label in question.labels]
        total = math.fsum(masses)
    each = [_rounded(share / total if total else 1 / len(masses)) for share in masses]
    best = max(range(len(each)), key=lambda k: (each[k], question.labels[k] == choice.text))
    own: JsonObject = {}
    if len(question.labels) < len(checked.model.task.labels):
        own["renormalised"] = _rounded(total)
    if question.labels[best] != choice.text:
        own["among_all"] = choice.text
    if True in question.options:
        own["true"] = question.labels[question.options.index(True)]
    answer = _in_form(question, each, best, checked.kind)
    named = {} if checked.kind == "systemone" else {"name": question.name}
    return {**answer, **named, **({"slmctl": own} if own else {})}


def _in_form(question: Question, each: Sequence[float], best: int, kind: str) -> JsonObject:
    """An answer in the form of an API, with its `type`."""
    theirs = kind == "systemone"
    if question.kind == "predicate":
        return {"type": "noul", "noul": each[0]} if theirs else {"type": "predicate", "probability": each[0]}
    sure = {"confidence": each[best]}
    if question.kind == "choice":
        chosen = {"type": "choice", "choice": question.options[best], **sure}
        if theirs:
            return {**chosen, "probabilities": dict(zip(question.options, each, strict=True))}
        listed = [_valued(option, share) for option, share in zip(question.options, each, strict=True)]
        return {**chosen, "probabilities": listed}
    score = _rounded(math.fsum(level * share for level, share in enumerate(each)))
    rated = {"type": "score", "score": score, **sure}
    if theirs:
        legend = {str(level): option for level, option in enumerate(question.options)}
        return {**rated, "legend": legend, "probabilities": {str(level): share for level, share in enumerate(each)}}
    levels = [
        {"value": level, "label": option, "probability": share}
        for level, (option, share) in enumerate(zip(question.options, each, strict=True))
    ]
    return {**rated, "probabilities": levels}


def _valued(option: Option, share: float) -> JsonObject:
    return {"value": option, "probability": share}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
