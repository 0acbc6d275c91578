"""`/v1/decisions` (OpenAI's) and `/v1/systemone` (TypeSafe's): typed questions about a text,
answered by a classifier.

A request is checked as the chat with its text. Every option of a question gets its probability.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from slmctl.artifacts.bounded_json import JsonObject, is_deeper
from slmctl.config import ServeConfig
from slmctl.server.forms import options, responses
from slmctl.server.forms.chat import CHAT, text_of
from slmctl.server.forms.request import (
    CheckedRequest,
    Form,
    Option,
    Question,
    ReplyChoice,
    ServedModel,
    WholeReply,
)
from slmctl.server.request_errors import RequestError
from slmctl.task.contract import Task

MOST_QUESTIONS, MOST_OPTIONS = 400, 255
LONGEST = 1 << 15  # characters of the instructions of one question
DEPTH = 32  # levels of lists and objects in an input
# branches that are likelier are looked at, so that less is left to be shared out among their labels
LITTLE = 0.02
ANSWERS = (("true", "false"), ("yes", "no"), ("y", "n"))
PAIRS = (("1", "0"), ("positive", "negative"))
_NOT = ("not", "no", "non")  # before a label, they make its opposite
_BUT = ("but", "except", "without", "nicht", "kein", "keine")
_WORD = re.compile(r"[^\W_]+")
# of options in OpenAI's form, and of each
LISTS = {"choice": ("choices", "value"), "score": ("levels", "label")}


@dataclass(frozen=True)
class ModelPart:
    """The part of a request that one model answers, as a request.

    Attributes:
        places: The place of each of its questions among all.
    """

    body: JsonObject
    places: tuple[int, ...]


class DecisionForm(Form):
    """OpenAI's form of questions and answers; `SystemOneForm` overrides the
    parts that TypeSafe writes differently.
    """

    path, question = "/v1/decisions", "input"
    reads = frozenset({"model", "input", "questions"})
    by_name: ClassVar[bool] = False
    types: ClassVar[tuple[str, ...]] = ("predicate", "choice", "score")

    def read(self, body: JsonObject, model: ServedModel, settings: ServeConfig) -> CheckedRequest:
        listed = options.sort(body, self.reads, model.task, calls=self.calls)
        items = read_questions(listed.read, self, model.name, model.task)
        try:
            checked = CHAT.checked(
                {"messages": self.messages(listed.read)}, listed, model, settings
            )
        except RequestError as error:
            raise responses.in_own_names(error, {"messages": self.question}) from None
        rest = _rest(items, model.task)
        ignored = {*checked.ignored, *_ignored(listed.read, self)}
        return replace(
            checked,
            form=self,
            questions=items,
            ignored=tuple(sorted(ignored)),
            requests=tuple(replace(request, rest=rest) for request in checked.requests),
        )

    def messages(self, body: JsonObject) -> list[JsonObject]:
        """The conversation that is asked about.

        Raises:
            RequestError: It is missing, or holds other parts than texts and JSON.
        """
        conversation = body.get("input")
        if isinstance(conversation, list):
            conversation = [_with_texts(item, f"input[{k}]") for k, item in enumerate(conversation)]
        return responses.messages_of(conversation)

    def options_field(self, typed: str) -> str:
        return LISTS[typed][0] if typed in LISTS else ""

    def options_in(self, value: Any, typed: str) -> tuple[Option, ...] | None:
        """The options of a list of objects, each with a value and, if need be, a description."""
        field = LISTS[typed][1]
        kinds = (str, bool) if typed == "choice" else (str,)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            return None
        fits = all(
            entry.keys() <= {field, "description"}
            and isinstance(entry.get(field), kinds)
            and isinstance(entry.get("description"), str | None)
            for entry in value
        )
        return tuple(entry[field] for entry in value) if fits else None

    def instructions_in(self, value: Any, where: str) -> str | None:
        if isinstance(value, list):
            value = text_of(_texts(value, where), responses.TEXTS)
        elif isinstance(value, dict):
            value = _json(value, where)
        return value if isinstance(value, str) and value else None

    def whole(self, answer: WholeReply) -> JsonObject:
        checked = answer.checked
        choice = answer.choices[0]
        extra = answer.extras[0]
        shares = choice.last["distribution"]
        # the generalist tells its label, and no probability of others
        if extra["route"] != "local":
            shares = {choice.text: 1.0}
        answers = [
            self._answer(question, shares, choice, checked) for question in checked.questions
        ]
        usage = self.used(checked.usage([choice.last]))
        return {
            "model": answer.name,
            "answers": self.listed(checked.questions, answers),
            "usage": usage,
            "slmctl": extra,
        }

    def _answer(
        self,
        question: Question,
        shares: dict[str, float],
        choice: ReplyChoice,
        checked: CheckedRequest,
    ) -> JsonObject:
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
        return {**self.written(question, each, best), **({"slmctl": own} if own else {})}

    def written(self, question: Question, each: Sequence[float], best: int) -> JsonObject:
        """An answer with its `type`: the probability of each option,
        and the place of the likeliest one.
        """
        if question.kind == "predicate":
            answer: JsonObject = {"type": "predicate", "probability": each[0]}
        elif question.kind == "choice":
            listed = [
                {"value": option, "probability": share} for option, share in _zipped(question, each)
            ]
            answer = {**_chosen(question, each, best), "probabilities": listed}
        else:
            levels = [
                {"value": level, "label": option, "probability": share}
                for level, (option, share) in enumerate(_zipped(question, each))
            ]
            answer = {**_rated(each, best), "probabilities": levels}
        return {**answer, "name": question.name}

    def listed(self, items: Sequence[Question], answers: Sequence[JsonObject]) -> Any:
        """The answers as the questions came: in a list, or by name."""
        return list(answers)

    def used(self, usage: dict[str, int]) -> JsonObject:
        """Tokens by the names of the API."""
        return responses.usage_of(usage)


class SystemOneForm(DecisionForm):
    """TypeSafe's form of the same."""

    path, question = "/v1/systemone", "state"
    reads = frozenset({"model", "state", "questions"})
    by_name, types = True, ("noul", "choice", "score")

    def messages(self, body: JsonObject) -> list[JsonObject]:
        state = body.get("state")
        if not isinstance(state, str | dict | list):
            raise RequestError("'state' must be a text, or a JSON object or list", "state")
        return [
            {"role": "user", "content": state if isinstance(state, str) else _json(state, "state")}
        ]

    def options_field(self, typed: str) -> str:
        return "criteria"

    def options_in(self, value: Any, typed: str) -> tuple[Option, ...] | None:
        """The options of a choice, an object of descriptions by option, or of a score, a list."""
        if typed == "choice":
            return tuple(value) if isinstance(value, dict) else None
        fits = isinstance(value, list) and all(isinstance(level, str) for level in value)
        return tuple(value) if fits else None

    def instructions_in(self, value: Any, where: str) -> str | None:
        if isinstance(value, dict | list):
            return _json(value, where)
        return "" if value is None else value if isinstance(value, str) else None

    def written(self, question: Question, each: Sequence[float], best: int) -> JsonObject:
        if question.kind == "predicate":
            return {"type": "noul", "noul": each[0]}
        if question.kind == "choice":
            return {**_chosen(question, each, best), "probabilities": dict(_zipped(question, each))}
        legend = {str(level): option for level, option in enumerate(question.options)}
        shares = {str(level): share for level, share in enumerate(each)}
        return {**_rated(each, best), "legend": legend, "probabilities": shares}

    def listed(self, items: Sequence[Question], answers: Sequence[JsonObject]) -> Any:
        return {str(question.name): answer for question, answer in zip(items, answers, strict=True)}

    def used(self, usage: dict[str, int]) -> JsonObject:
        return {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}


DECISIONS, SYSTEM_ONE = DecisionForm(), SystemOneForm()


# Questions


def read_questions(
    body: JsonObject, api: DecisionForm, model: str, task: Task
) -> tuple[Question, ...]:
    """The questions of a request to a model of this name and task.

    Raises:
        RequestError: There are none or too many, one has no valid form, or the model was not
            trained to answer it.
    """
    if not task.rules.chooses:
        raise RequestError(
            f"model '{model}' has a task of kind '{task.kind}': decisions are made by models of "
            "task.kind classify",
            "model",
        )
    forms = [_form(name, value, where, api) for name, value, where in _listed(body, api)]
    named = [form.name for form in forms if form.name is not None]
    if len(set(named)) < len(named):
        raise RequestError("'questions' has two questions of one name", "questions")
    return tuple(_bound(form, model, task) for form in forms)


def _ignored(body: JsonObject, api: DecisionForm) -> set[str]:
    """The parts of checked questions that change no answer: the model has its own instruction."""
    questions = [question for _, question, _ in _listed(body, api)]
    names = (
        {"instructions"} if any(question.get("instructions") for question in questions) else set()
    )
    return names | ({"descriptions"} if any(map(_described, questions)) else set())


def _rest(questions: Sequence[Question], task: Task) -> float:
    """Returns the largest probability of a branch of labels that need not
    be evaluated; see `engine.Request.rest`.
    """
    whole = all(
        question.kind == "choice" and len(question.labels) == len(task.labels)
        for question in questions
    )
    return LITTLE if whole else 0.0


def by_model(
    body: JsonObject, api: DecisionForm, models: Collection[str], find: Callable[[object], str]
) -> list[ModelPart]:
    """Split a request by model: a question goes to the model of its name, if one is served, else to
    `model`.

    Args:
        models: The names of those that the client may name.
        find: Returns the model's name for the value of `model`.
    """
    questions = body.get("questions")
    if not isinstance(questions, list | dict) or len(models) < 2:
        return [ModelPart(body, ())]
    places: dict[str, list[int]] = {}
    for place, (name, _, _) in enumerate(listed := list(_listed(body, api))):
        model = name if isinstance(name, str) and name in models else find(body.get("model"))
        places.setdefault(model, []).append(place)
    parts = []
    for model, those in places.items():
        mine = {listed[place][0]: listed[place][1] for place in those}
        part = mine if api.by_name else [listed[place][1] for place in those]
        parts.append(ModelPart({**body, "model": model, "questions": part}, tuple(those)))
    return parts


def _listed(body: JsonObject, api: DecisionForm) -> Iterator[tuple[Any, JsonObject, str]]:
    """The name of each question, the question, and where it stands."""
    questions = body.get("questions")
    kept: type[dict[Any, Any] | list[Any]] = dict if api.by_name else list
    if not isinstance(questions, kept) or not 1 <= len(questions) <= MOST_QUESTIONS:
        form = "an object" if api.by_name else "a list"
        raise RequestError(
            f"'questions' must be {form} of 1 to {MOST_QUESTIONS} questions", "questions"
        )
    entries: Any = questions.items() if isinstance(questions, dict) else enumerate(questions)
    for key, question in entries:
        where = f"questions['{key[:100]}']" if api.by_name else f"questions[{key}]"
        if not isinstance(question, dict):
            raise _wrong(where, "must be an object with a type")
        name = key if api.by_name else question.get("name")
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


def _form(name: Any, question: JsonObject, where: str, api: DecisionForm) -> _Form:
    types, typed = api.types, question.get("type")
    if not isinstance(typed, str) or typed not in types:
        raise _wrong(where, f"needs a type: {', '.join(types[:-1])} or {types[-1]}")
    held = api.options_field(typed)
    for key in question:
        if key not in ("type", "instructions", held, "" if api.by_name else "name"):
            raise _wrong(where, f"of type {typed} has no field '{key[:100]}'")
    instructions = _instructions(question.get("instructions"), where, api)
    if typed == types[0]:
        criteria = question.get(held) if held else None
        if not isinstance(criteria, dict | None) or not {"true", "false"}.issuperset(
            criteria or ()
        ):
            raise _wrong(where, "has criteria that are no object of true and false")
        truth = (criteria or {}).get("true")
        return _Form(
            where,
            "predicate",
            name,
            (),
            (*([truth] if isinstance(truth, str) else []), instructions),
        )
    options = api.options_in(question.get(held), typed)
    if options is None:
        raise _wrong(where, f"needs {held} in the form of a {typed}")
    if not 2 <= len(options) <= MOST_OPTIONS:
        raise _wrong(where, f"has {len(options)} of its 2 to {MOST_OPTIONS} {held}")
    if len({(type(option), option) for option in options}) < len(options):
        raise _wrong(where, f"has equal {held}")
    return _Form(where, typed, name, options, (instructions,))


def _instructions(value: Any, where: str, api: DecisionForm) -> str:
    text = api.instructions_in(value, where)
    if text is None:
        raise _wrong(where, "needs instructions: a text that is not empty")
    if len(text) > LONGEST:
        raise _wrong(where, f"has instructions of {len(text)} characters: at most {LONGEST}")
    return text


def _described(question: JsonObject) -> bool:
    """True where options have descriptions."""
    held = question.get("criteria", question.get("choices", question.get("levels")))
    entries = held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()
    return any(
        entry.get("description") is not None
        if isinstance(entry, dict)
        else isinstance(held, dict) and bool(entry)
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
        raise _wrong(
            form.where,
            f"asks for a score, and the labels of '{model}' have no order: ask for a choice",
        )
    sides: tuple[str, ...] = ()
    if any(isinstance(option, bool) for option in form.options):
        sides = _sides(form, model, labels)
    mine = tuple(
        option if isinstance(option, str) else sides[not option] for option in form.options
    )
    places = {label: place for place, label in enumerate(labels)}
    for label in mine:
        if label not in places:
            some = ", ".join(f"'{each}'" for each in labels[:5]) + (" …" if len(labels) > 5 else "")
            raise _wrong(
                form.where,
                f"has the option '{label[:100]}', which is no label of '{model}': {some}",
            )
    if len(set(mine)) < len(mine):
        raise _wrong(form.where, "has two options of one label")
    if form.kind == "score" and sorted(mine, key=places.__getitem__) != list(mine):
        raise _wrong(
            form.where,
            f"has levels in another order than the labels of '{model}', which is low to high",
        )
    return Question(form.kind, form.name, form.options, mine)


def _sides(form: _Form, model: str, labels: Sequence[str]) -> tuple[str, str]:
    """Returns the labels that mean true and false: by the question, if it names one of them, else
    by their names.

    Where the question names the label that is false by the names, neither is taken for true.
    """
    if len(labels) != 2:
        raise _wrong(
            form.where,
            f"asks for true or false, and '{model}' has {len(labels)} labels: ask for a choice",
        )
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
        if len(named) == 1 and not any(
            f" {no}{_words(named[0])}" in _words(text) for no in (*_NOT, *_BUT)
        ):
            sides = named[0], second if named[0] == first else first
            # criteria.true decides whatever the names
            if by_name in (None, sides) or place < len(form.truth) - 1:
                return sides
        if named and by_name is not None and named != [by_name[0]]:
            break  # "Is it legitimate, and not spam?"
    else:
        if by_name is not None:
            return by_name
    raise _wrong(
        form.where,
        f"does not say which label means true: name one of '{first}' and '{second}' in it",
    )


def _words(text: str) -> str:
    """The words of a text, each between spaces."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


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


# Answers


def merged(parts: Sequence[ModelPart], bodies: Sequence[JsonObject]) -> JsonObject:
    """Merge the answers of several models into one, in the questions'
    order; each answer names its model.
    """
    by_place: dict[int, tuple[str, JsonObject]] = {}
    for part, body in zip(parts, bodies, strict=True):
        answers = body["answers"]
        items = (
            answers.items() if isinstance(answers, dict) else (("", answer) for answer in answers)
        )
        for place, (name, answer) in zip(part.places, items, strict=True):
            by_place[place] = (
                name,
                {**answer, "slmctl": {**body["slmctl"], **answer.get("slmctl", {})}},
            )
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


def _with_texts(item: Any, where: str) -> Any:
    """A message with its JSON parts written as texts."""
    content = item.get("content") if isinstance(item, dict) else None
    return {**item, "content": _texts(content, where)} if isinstance(content, list) else item


def _texts(parts: Sequence[Any], where: str) -> list[Any]:
    return [
        {"type": "input_text", "text": _json(part.get("data"), where)}
        if isinstance(part, dict) and part.get("type") == "input_json"
        else part
        for part in parts
    ]


def _zipped(question: Question, each: Sequence[float]) -> zip[tuple[Option, float]]:
    """The options of a question with their probabilities."""
    return zip(question.options, each, strict=True)


def _chosen(question: Question, each: Sequence[float], best: int) -> JsonObject:
    return {"type": "choice", "choice": question.options[best], "confidence": each[best]}


def _rated(each: Sequence[float], best: int) -> JsonObject:
    score = _rounded(math.fsum(level * share for level, share in enumerate(each)))
    return {"type": "score", "score": score, "confidence": each[best]}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
