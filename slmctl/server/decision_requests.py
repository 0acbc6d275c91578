"""Requests for decisions, OpenAI's and TypeSafe's, as chat requests with typed questions: from there on all go one way.

A model is asked once, with its own instruction, and tells the probability of each of its labels; every question about
the input is answered from these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject, is_deeper
from slmctl.server import responses_requests
from slmctl.server.request_errors import RequestError
from slmctl.task.contract import Task

PLACES = {"decision": "input", "systemone": "state"}  # of the text that is asked about, by the kind of request
NAMES = {kind: {"messages": place} for kind, place in PLACES.items()}  # of chat options, for errors
KINDS = {"predicate": "predicate", "noul": "predicate", "choice": "choice", "score": "score"}
TYPES = {"decision": ("predicate", "choice", "score"), "systemone": ("noul", "choice", "score")}
LISTS = {"choice": ("choices", "value"), "score": ("levels", "label")}  # of options in OpenAI's form, and of each
MOST_QUESTIONS, MOST_OPTIONS = 400, 255
LONGEST = 1 << 15  # characters of the instructions of one question
DEPTH = 32  # levels of lists and objects in an input
LITTLE = 0.02  # branches that are likelier are looked at, so that less is left to be shared out among their labels
ANSWERS = (("true", "false"), ("yes", "no"), ("y", "n"))
PAIRS = (("1", "0"), ("positive", "negative"))
_NOT = ("not", "no", "non")  # before a label, they make its opposite
_BUT = ("but", "except", "without", "nicht", "kein", "keine")
_WORD = re.compile(r"[^\W_]+")
Option = str | bool


@dataclass(frozen=True)
class Question:
    """One question about the input.

    Attributes:
        kind: `choice`, `predicate` or `score`.
        name: The client's name for it; None where it gave none.
        options: The values to choose from as the client names them: of a predicate true and false.
        labels: The model's label of each.
    """

    kind: str
    name: str | None
    options: tuple[Option, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class ModelPart:
    """The questions of a request that one model answers, as a request of their own.

    Attributes:
        body: The request.
        places: The place of each of its questions among all.
    """

    body: JsonObject
    places: tuple[int, ...]


def read(body: JsonObject, kind: str, model: str, task: Task) -> tuple[Question, ...]:
    """The questions of a request to a model of this name and task.

    Raises:
        RequestError: There are none or too many, one has no valid form, or the model was not trained to answer it.
    """
    if not task.rules.chooses:
        raise RequestError(
            f"model '{model}' has a task of kind '{task.kind}': decisions are made by models of task.kind classify",
            "model",
        )
    forms = [_form(name, value, where, kind) for name, value, where in _listed(body, kind)]
    named = [form.name for form in forms if form.name is not None]
    if len(set(named)) < len(named):
        raise RequestError("'questions' has two questions of one name", "questions")
    return tuple(_bound(form, model, task) for form in forms)


def ignored(body: JsonObject, kind: str) -> set[str]:
    """The parts of checked questions that change no answer: the model has its own instruction."""
    questions = [question for _, question, _ in _listed(body, kind)]
    names = {"instructions"} if any(question.get("instructions") for question in questions) else set()
    return names | ({"descriptions"} if any(map(_described, questions)) else set())


def rest(questions: Sequence[Question], task: Task) -> float:
    """The largest share of a branch of labels that may stay unlooked at; see `engine.Request.rest`."""
    whole = all(question.kind == "choice" and len(question.labels) == len(task.labels) for question in questions)
    return LITTLE if whole else 0.0


def as_chat(body: JsonObject, kind: str) -> JsonObject:
    """The chat request with the input of a request.

    Raises:
        RequestError: It has none, or none of texts and JSON.
    """
    if kind == "systemone":
        state = body.get("state")
        if not isinstance(state, str | dict | list):
            raise RequestError("'state' must be a text, or a JSON object or list", "state")
        return {"messages": [{"role": "user", "content": state if isinstance(state, str) else _json(state, "state")}]}
    conversation = body.get("input")
    if isinstance(conversation, list):
        conversation = [_with_texts(item, f"input[{k}]") for k, item in enumerate(conversation)]
    return {"messages": responses_requests.messages_of(conversation)}


def by_model(body: JsonObject, kind: str, models: Collection[str], find: Callable[[object], str]) -> list[ModelPart]:
    """The request cut into one for each model: that of a question's name, where a model has it, or else of `model`.

    Args:
        body, kind: The request.
        models: The names of those that may be form.
        find: Tells the name of the one that `model` means.
    """
    questions = body.get("questions")
    if not isinstance(questions, list | dict) or len(models) < 2:
        return [ModelPart(body, ())]
    places: dict[str, list[int]] = {}
    for place, (name, _, _) in enumerate(listed := list(_listed(body, kind))):
        model = name if isinstance(name, str) and name in models else find(body.get("model"))
        places.setdefault(model, []).append(place)
    parts = []
    for model, those in places.items():
        mine = {listed[place][0]: listed[place][1] for place in those}
        part = mine if kind == "systemone" else [listed[place][1] for place in those]
        parts.append(ModelPart({**body, "model": model, "questions": part}, tuple(those)))
    return parts


def _listed(body: JsonObject, kind: str) -> Iterator[tuple[Any, JsonObject, str]]:
    """The name of each question, the question, and where it stands."""
    questions = body.get("questions")
    kept = {"decision": list, "systemone": dict}[kind]
    if not isinstance(questions, kept) or not 1 <= len(questions) <= MOST_QUESTIONS:
        form = "a list" if kept is list else "an object"
        raise RequestError(f"'questions' must be {form} of 1 to {MOST_QUESTIONS} questions", "questions")
    entries = enumerate(questions) if isinstance(questions, list) else questions.items()
    for key, question in entries:
        where = f"questions[{key}]" if isinstance(questions, list) else f"questions['{key[:100]}']"
        if not isinstance(question, dict):
            raise _wrong(where, "must be an object with a type")
        name = question.get("name") if isinstance(questions, list) else key
        if name is not None and not isinstance(name, str):
            raise _wrong(where, "needs a name that is a text, or none")
        yield name, question, where


@dataclass(frozen=True)
class _Form:
    """A question as it was sent; `truth` are texts that may say which label means true."""

    where: str
    kind: str
    name: str | None
    options: tuple[Option, ...]
    truth: tuple[str, ...]


def _form(name: Any, question: JsonObject, where: str, kind: str) -> _Form:
    types, typed = TYPES[kind], question.get("type")
    if not isinstance(typed, str) or typed not in types:
        raise _wrong(where, f"needs a type: {', '.join(types[:-1])} or {types[-1]}")
    held = "criteria" if kind == "systemone" else LISTS[typed][0] if typed in LISTS else ""
    for key in question:
        if key not in ("type", "instructions", held, "" if kind == "systemone" else "name"):
            raise _wrong(where, f"of type {typed} has no field '{key[:100]}'")
    instructions = _instructions(question.get("instructions"), where, kind)
    if typed in ("predicate", "noul"):
        criteria = question.get(held) if held else None
        if not isinstance(criteria, dict | None) or not {"true", "false"}.issuperset(criteria or ()):
            raise _wrong(where, "has criteria that are no object of true and false")
        truth = (criteria or {}).get("true")
        return _Form(where, "predicate", name, (), (*([truth] if isinstance(truth, str) else []), instructions))
    options = _criteria(question.get(held), typed) if kind == "systemone" else _options(question.get(held), typed)
    if options is None:
        raise _wrong(where, f"needs {held} in the form of a {typed}")
    if not 2 <= len(options) <= MOST_OPTIONS:
        raise _wrong(where, f"has {len(options)} of its 2 to {MOST_OPTIONS} {held}")
    if len({(type(option), option) for option in options}) < len(options):
        raise _wrong(where, f"has equal {held}")
    return _Form(where, typed, name, options, (instructions,))


def _instructions(text: Any, where: str, kind: str) -> str:
    """The text of instructions, which must be there in OpenAI's form."""
    if isinstance(text, list) and kind == "decision":
        text = responses_requests.text_of(_texts(text, where), responses_requests.TEXTS)
    elif isinstance(text, dict | list):
        text = _json(text, where)
    elif text is None and kind == "systemone":
        text = ""
    if not isinstance(text, str) or (kind == "decision" and not text):
        raise _wrong(where, "needs instructions: a text that is not empty")
    if len(text) > LONGEST:
        raise _wrong(where, f"has instructions of {len(text)} characters: at most {LONGEST}")
    return text


def _options(listed: Any, typed: str) -> tuple[Option, ...] | None:
    """The options in OpenAI's form: a list of objects, each with a value and, if need be, a description."""
    field = LISTS[typed][1]
    kinds = (str, bool) if typed == "choice" else (str,)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        return None
    fits = all(
        entry.keys() <= {field, "description"} and isinstance(entry.get(field), kinds)
        and isinstance(entry.get("description"), str | None)
        for entry in listed
    )  # fmt: skip
    return tuple(entry[field] for entry in listed) if fits else None


def _criteria(criteria: Any, typed: str) -> tuple[Option, ...] | None:
    """The options in TypeSafe's form: of a choice an object of descriptions by option, of a score a list."""
    if typed == "choice":
        return tuple(criteria) if isinstance(criteria, dict) else None
    fits = isinstance(criteria, list) and all(isinstance(level, str) for level in criteria)
    return tuple(criteria) if fits else None


def _described(question: JsonObject) -> bool:
    """True where options have descriptions."""
    held = question.get("criteria", question.get("choices", question.get("levels")))
    entries = held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()
    return any(
        entry.get("description") is not None if isinstance(entry, dict) else isinstance(held, dict) and bool(entry)
        for entry in entries
    )


def _bound(form: _Form, model: str, task: Task) -> Question:
    """A question with the label of each option.

    Raises:
        RequestError: The model was not trained to answer it.
    """
    labels = task.labels
    if form.kind == "predicate":
        return Question("predicate", form.name, (True, False), _sides(form, model, labels))
    if form.kind == "score" and not task.ordered:
        raise _wrong(form.where, f"asks for a score, and the labels of '{model}' have no order: ask for a choice")
    sides: tuple[str, ...] = ()
    if any(isinstance(option, bool) for option in form.options):
        sides = _sides(form, model, labels)
    mine = tuple(option if isinstance(option, str) else sides[not option] for option in form.options)
    own = set(labels)
    for label in mine:
        if label not in own:
            some = ", ".join(f"'{each}'" for each in labels[:5]) + (" …" if len(labels) > 5 else "")
            raise _wrong(form.where, f"has the option '{label[:100]}', which is no label of '{model}': {some}")
    if len(set(mine)) < len(mine):
        raise _wrong(form.where, "has two options of one label")
    if form.kind == "score" and sorted(mine, key=labels.index) != list(mine):
        raise _wrong(form.where, f"has levels in another order than the labels of '{model}', which is low to high")
    return Question(form.kind, form.name, form.options, mine)


def _sides(form: _Form, model: str, labels: Sequence[str]) -> tuple[str, str]:
    """The labels that mean true and false: told by the question, which names one of them, or else by their names.

    Where the question names the label that is false by the names, neither is taken for true.
    """
    if len(labels) != 2:
        raise _wrong(form.where, f"asks for true or false, and '{model}' has {len(labels)} labels: ask for a choice")
    first, second = labels
    by_name: tuple[str, str] | None = None
    for label, other in ((first, second), (second, first)):
        plain, negated = _words(label).strip(), _words(other).strip()
        if (plain, negated) in ANSWERS:  # these stand in a question as words of the language
            return label, other
        if (plain, negated) in PAIRS or negated in (f"{no} {plain}" for no in _NOT):
            by_name = label, other
    for place, text in enumerate(form.truth):
        named = [label for label in labels if _words(label) in _words(text)]
        if len(named) == 1 and not any(f" {no}{_words(named[0])}" in _words(text) for no in (*_NOT, *_BUT)):
            sides = named[0], second if named[0] == first else first
            if by_name in (None, sides) or place < len(form.truth) - 1:  # criteria.true decides whatever the names
                return sides
        if named and by_name is not None and named != [by_name[0]]:
            break  # "Is it legitimate, and not spam?"
    else:
        if by_name is not None:
            return by_name
    raise _wrong(form.where, f"does not say which label means true: name one of '{first}' and '{second}' in it")


def _words(text: str) -> str:
    """The words of a text, each between spaces."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def _with_texts(item: Any, where: str) -> Any:
    """A message whose parts of JSON are texts."""
    content = item.get("content") if isinstance(item, dict) else None
    return {**item, "content": _texts(content, where)} if isinstance(content, list) else item


def _texts(parts: Sequence[Any], where: str) -> list[Any]:
    return [
        {"type": "input_text", "text": _json(part.get("data"), where)}
        if isinstance(part, dict) and part.get("type") == "input_json"
        else part
        for part in parts
    ]


def _json(value: Any, where: str) -> str:
    """A JSON object or list as the text that is asked about."""
    if not isinstance(value, dict | list):
        raise _wrong(where, "has JSON that is no object or list")
    if is_deeper(value, DEPTH):
        raise _wrong(where, f"has JSON that is nested deeper than {DEPTH} levels")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise _wrong(where, "has a number that is no JSON") from None


def _wrong(where: str, fault: str) -> RequestError:
    return RequestError(f"{where} {fault}", re.split(r"\W", where)[0])
