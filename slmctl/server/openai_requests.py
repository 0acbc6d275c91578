"""Requests in OpenAI's form, every option checked; `openai_replies` has the answers.

An option that is not supported is refused by its name. A model's task comes from its release:
in task mode a client chooses neither system prompt nor template, labels or schema.
"""

from __future__ import annotations

import functools
import json
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from slmctl.errors import DataError
from slmctl.inference.engine import Request
from slmctl.sensitive.conversation_veto import unread_fields
from slmctl.server import client_schemas, request_options
from slmctl.server.request_options import Function, SortedOptions
from slmctl.task.contract import Task
from slmctl.task.records import Message

CHOICES = 8  # ceiling of `n`, and of the prompts of one completion
STOPS = 4
ALTERNATIVES = {"chat": 20, "text": 5}  # as OpenAI has them
SCHEMA_BYTES = 1 << 16  # of a client's own schema or choices, as JSON
FORMS = ("response_format", "structured_outputs")  # what a client may hold answers to
RENDER_S = 2.0  # seconds that the chat template may take for one prompt
CACHED = 8192  # characters of a system prompt whose rendered head is kept
BYTES_A_TOKEN = 64  # a prompt with more of them, on the average, is refused before it is read token by token
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class BadRequestError(Exception):
    """A request that cannot be served: message, option at fault and status, in OpenAI's form."""

    def __init__(self, message: str, param: str = "", *, status: int = 400, code: str = "") -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One model that clients can ask for, by its name or another one.

    Attributes:
        name: The project's, which stays while releases change.
        aliases: Other names that mean it, such as `default`.
        version: The release's; empty where none is known.
        file: The name of the file that answers; empty where another server answers.
        digest: `sha256:…` of that file; empty where it is not known.
        task: The task contract of the release.
        adapter: The engine's LoRA adapter that answers; empty for the model itself.
        bare: It is a `.gguf` that carries no task: any system prompt, and completions of raw text.
        opening: The token that raw text must begin with for this model.
    """

    name: str
    task: Task
    adapter: str = ""
    bare: bool = False
    opening: str = ""
    aliases: tuple[str, ...] = ()
    version: str = ""
    file: str = ""
    digest: str = ""

    @property
    def held(self) -> bool:
        """True where every answer must be one that the task allows."""
        return bool(self.task.labels or self.task.constraint)


@dataclass(frozen=True)
class Ceilings:
    """The largest request, in tokens."""

    max_tokens: int
    max_prompt: int


@dataclass(frozen=True)
class CheckedRequest:
    """A request that has been checked.

    Attributes:
        kind: `chat`, `text` (completions) or `response`.
        requests: The engine's requests, one a choice.
        turns: The conversation of each; empty where raw text is continued.
        sent: The conversation as the client sent it.
        unread: Fields of its messages that are not part of `sent`, such as `tool_calls`.
        options: The sampling options that it set and the form of its answer, for the router.
        ignored: Its options that have no effect on a model of this task.
        repeated: Its options that the answer of the Responses API repeats.
        label_property: The property of a JSON object in which the client wants a label; empty for the bare label.
        function: The function whose arguments the answer is; empty where it is a message.
    """

    kind: str
    model: ServedModel
    requests: tuple[Request, ...]
    turns: tuple[tuple[Message, ...], ...]
    sent: tuple[Message, ...]
    options: dict[str, Any]
    unread: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    stream: bool = False
    with_usage: bool = False
    schema: dict[str, Any] | None = None  # the client's own, to be checked before it is asked under
    repeated: dict[str, Any] = field(default_factory=dict)
    label_property: str = ""
    function: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tells_tokens(self) -> bool:
        return self.requests[0].alternatives >= 0

    @property
    def form_option(self) -> str:
        """The option that holds the client's own schema."""
        if self.function:
            return "tools"
        return "text.format" if self.kind == "response" else "response_format"

    @property
    def question(self) -> str:
        """The text by which a data set would know the conversation: its messages without the system prompt, cleaned."""
        turns = self.turns[0] or self.sent
        return "\n".join(message["content"] for message in turns if message["role"] != "system")

    @property
    def text(self) -> str:
        """The whole request, for a log that is to hold it."""
        return "\n".join(message["content"] for message in self.sent) or "\n".join(
            request.prompt for request in self.requests
        )


def read(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body; a value of null is as good as left out.

    Raises:
        BadRequestError: It is none, or holds text that is no Unicode.
    """
    try:
        # as text: bytes would be read as UTF-16 too, and with halves of surrogate pairs let through
        body = json.loads(raw.decode(), parse_constant=_no_number)
        if b"\\u" in raw:
            json.dumps(body, ensure_ascii=False).encode()  # half of a surrogate pair can be spelled, but never written
    except (ValueError, RecursionError):
        raise BadRequestError("the body is not valid JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise BadRequestError("the body is not a JSON object")
    return {key: value for key, value in body.items() if value is not None}


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def check(body: dict[str, Any], kind: str, models: Mapping[str, ServedModel], ceilings: Ceilings) -> CheckedRequest:
    """A request of `/v1/chat/completions` (`chat`) or `/v1/completions` (`text`), every option checked.

    Raises:
        BadRequestError: An option is unknown or out of bounds; it is named.
    """
    model = model_of(body, models)
    options = supported(body, kind, model)
    body, ignored = dict(options.read), options.ignored
    if options.function is not None:
        body["response_format"] = _form_of(body, options.function)
    common, schema = _options(body, kind, model, ceilings)
    place, satisfied = _held_form(body, model, "tools" if options.function else "response_format")
    prompts, sent, dropped = [], list[Message](), list[str]()
    if kind == "chat":
        sent = _messages(body)
        prompt, dropped = _chat_prompt(model, sent)
        prompts.append(prompt)
    else:
        sent = [{"role": "user", "content": text} for text in _texts(body)]
        prompts = [_text_prompt(model, message) for message in sent]
    if max(len(prompt.text) for prompt in prompts) > BYTES_A_TOKEN * ceilings.max_prompt:
        raise BadRequestError(
            f"the prompt does not fit: it has more than {BYTES_A_TOKEN} times as many characters as the "
            f"{ceilings.max_prompt} tokens allowed",
            "messages" if kind == "chat" else "prompt",
        )
    count = int(_number(body, "n", 1, 1, CHOICES, whole=True))
    if count * len(prompts) > CHOICES:
        raise BadRequestError(f"'n' times the prompts must be at most {CHOICES}", "n")
    requests = [
        replace(common, prompt=prompt.text, prefix=prompt.prefix, seed=(common.seed + k) % 2**63)
        for prompt in prompts
        for k in range(count)
    ]
    names = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", *FORMS)
    return CheckedRequest(
        kind=kind,
        model=model,
        requests=tuple(requests),
        turns=tuple(prompt.turns for prompt in prompts for _ in range(count)),
        sent=tuple(sent),
        unread=tuple(sorted({name for message in body.get("messages", ()) for name in unread_fields(message)})),
        options={name: body[name] for name in names if name in body},
        ignored=(*dropped, *sorted({*ignored, *satisfied})),
        stream=_flag(body, "stream"),
        with_usage=_stream_options(body),
        schema=schema,
        label_property=place,
        function=options.function.name if options.function else "",
    )


def for_other(checked: CheckedRequest, model: ServedModel, ceilings: Ceilings) -> CheckedRequest:
    """A request of one choice as another model is asked: the same conversation and options in its own template.

    Raises:
        BadRequestError: Its template refuses the conversation, or the prompt does not fit.
    """
    body = {**checked.options, "messages": [dict(message) for message in checked.sent]}
    return check(body, "chat", {model.name: model}, ceilings)


def supported(body: dict[str, Any], kind: str, model: ServedModel) -> SortedOptions:
    """The options of a body, sorted by what they do to the answers of a model.

    Raises:
        BadRequestError: One of them is not supported; it is named.
    """
    options = request_options.sort_options(body, kind, model.task)
    if options.refused:
        name = options.refused[:100]
        raise BadRequestError(f"option '{name}' is not supported" + (options.reason and f": {options.reason}"), name)
    return options


def _form_of(body: dict[str, Any], function: Function) -> dict[str, Any]:
    """The form of an answer that is the arguments of a function."""
    if body.get("response_format", {"type": "text"}) != {"type": "text"}:
        raise BadRequestError("'response_format' cannot be kept to where a function is called", "response_format")
    if _size(function.parameters) > SCHEMA_BYTES:
        raise BadRequestError(f"'tools' has parameters of more than {SCHEMA_BYTES} bytes", "tools")
    return {"type": "json_schema", "json_schema": {"name": function.name, "schema": function.parameters}}


def find_model(models: Mapping[str, ServedModel], name: object) -> ServedModel | None:
    """The model that goes by a name, its own or another one; None where none does."""
    own = models.get(name) if isinstance(name, str) else None
    return own or next((model for model in models.values() if name in model.aliases), None)


def model_of(body: dict[str, Any], models: Mapping[str, ServedModel]) -> ServedModel:
    """The model that a request names, the first one by default.

    Raises:
        BadRequestError: None goes by that name.
    """
    name = body.get("model", next(iter(models)))
    model = find_model(models, name)
    if model is None:
        raise BadRequestError(
            f"model '{str(name)[:100]}' is not served here; served: {', '.join(models)}",
            "model",
            status=404 if isinstance(name, str) else 400,
            code="model_not_found",
        )
    return model


def _options(
    body: dict[str, Any], kind: str, model: ServedModel, ceilings: Ceilings
) -> tuple[Request, dict[str, Any] | None]:
    """The request that all choices share, and the client's own schema."""
    task = model.task
    length_name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    length = _number(body, length_name, ceilings.max_tokens, 1, ceilings.max_tokens, whole=True)
    temperature = _number(body, "temperature", 0.0, 0, 2)
    schema, labels = _form(body, model)
    stops = _stops(body)
    request = Request(
        prompt="",
        labels=task.labels or labels,
        end=task.end,
        max_tokens=int(length),
        temperature=0.0 if task.labels or labels else temperature,
        top_p=_number(body, "top_p", 1.0, 0, 1),
        seed=int(_number(body, "seed", secrets.randbits(31) if temperature else 0, 0, 2**63 - 1, whole=True)),
        stop=(*stops, *([task.end] if task.end else [])),
        schema=task.constraint or (json.dumps(schema) if schema is not None else ""),
        adapter=model.adapter,
        alternatives=_alternatives(body, kind),
        max_prompt=ceilings.max_prompt,
        shorten=length_name not in body,
    )
    return request, schema


def _form(body: dict[str, Any], model: ServedModel) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The form that a client asks answers in: a JSON Schema, or a list of choices as vLLM has it."""
    form = body.get("response_format", {"type": "text"})
    kind = form.get("type") if isinstance(form, dict) else None
    choices = body.get("structured_outputs")
    if model.held:
        if choices is not None:
            raise _unheld("structured_outputs", model)
        return None, ()
    if choices is not None:
        listed = choices.get("choice") if isinstance(choices, dict) and set(choices) == {"choice"} else None
        texts = listed if isinstance(listed, list) and 1 <= len(listed) <= 1000 else [None]
        if not all(isinstance(text, str) and text for text in texts) or len(set(texts)) < len(texts):
            raise BadRequestError(
                "'structured_outputs' must be {\"choice\": [texts that differ]}", "structured_outputs"
            )
        if _size(texts) > SCHEMA_BYTES:
            raise BadRequestError(
                f"'structured_outputs' has choices of more than {SCHEMA_BYTES} bytes together", "structured_outputs"
            )
        return None, tuple(map(str, texts))
    if kind == "text":
        return None, ()
    if kind == "json_object":
        return {"type": "object"}, ()
    if kind != "json_schema":
        raise BadRequestError("'response_format' must have type text, json_object or json_schema", "response_format")
    return _schema_of(form), ()


def _schema_of(form: dict[str, Any]) -> dict[str, Any]:
    """The client's own schema in a `response_format` of type json_schema."""
    schema = form["json_schema"].get("schema") if isinstance(form.get("json_schema"), dict) else None
    if not isinstance(schema, dict) or _size(schema) > SCHEMA_BYTES:
        raise BadRequestError(
            f"'response_format' of type json_schema needs a schema: an object of at most {SCHEMA_BYTES} bytes",
            "response_format",
        )
    return schema


def _held_form(body: dict[str, Any], model: ServedModel, name: str) -> tuple[str, tuple[str, ...]]:
    """The property that a label is wanted in, and the option where the task's own answers satisfy it anyway.

    Args:
        name: The option that the form came from, for errors.
    """
    form = body.get("response_format", {"type": "text"})
    task, kind = model.task, form.get("type") if isinstance(form, dict) else None
    if kind == "text" or not model.held:
        return "", ()
    if task.labels and kind == "json_schema":
        place, reason = client_schemas.label_property(json.dumps(_schema_of(form)), task.labels)
        if not place:
            raise _unheld(name, model, reason)
        return place, ()
    if task.constraint and task.schema:
        satisfied = kind == "json_object" and task.schema.get("type") == "object"
        if satisfied or (kind == "json_schema" and client_schemas.is_task_schema(_schema_of(form), task.schema)):
            return "", (name,) if name == "response_format" else ()
    raise _unheld(name, model)


def _unheld(name: str, model: ServedModel, reason: str = "its release says what form answers have") -> BadRequestError:
    return BadRequestError(f"option '{name}' is not supported by a model of kind '{model.task.kind}': {reason}", name)


def _size(value: Any) -> int:
    """Bytes of a value as JSON; of one that is nested too deeply to be written, more than any bound."""
    try:
        return len(json.dumps(value))
    except RecursionError:
        return sys.maxsize


def _stops(body: dict[str, Any]) -> list[str]:
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not (isinstance(stops, list) and len(stops) <= STOPS and all(isinstance(s, str) and s for s in stops)):
        raise BadRequestError(f"'stop' must be a text or up to {STOPS} texts", "stop")
    return stops


def _alternatives(body: dict[str, Any], kind: str) -> int:
    """Number of likeliest tokens to report in the place of each; -1 reports no token."""
    most = ALTERNATIVES[kind]
    if kind == "text":
        return int(_number(body, "logprobs", -1, 0, most, whole=True)) if "logprobs" in body else -1
    if not _flag(body, "logprobs"):
        if "top_logprobs" in body:
            raise BadRequestError("'top_logprobs' needs 'logprobs' to be true", "top_logprobs")
        return -1
    return int(_number(body, "top_logprobs", 0, 0, most, whole=True))


def _stream_options(body: dict[str, Any]) -> bool:
    options = body.get("stream_options", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise BadRequestError("'stream_options' may hold include_usage alone", "stream_options")
    return _flag(options, "include_usage", "stream_options")


def _messages(body: dict[str, Any]) -> list[Message]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("'messages' must be a list that is not empty", "messages")
    result: list[Message] = []
    for k, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise BadRequestError(f"messages[{k}] needs a role: system, user or assistant", "messages")
        content = message.get("content")
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
            content = "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
        if not isinstance(content, str):
            raise BadRequestError(f"messages[{k}] needs content: a text", "messages")
        result.append({"role": ROLES[role], "content": content})
    if result[-1]["role"] != "user":
        raise BadRequestError("the last message must be the user's", "messages")
    return result


@dataclass(frozen=True)
class _Prompt:
    """A rendered prompt, the text at its start that other requests share, and the conversation that it is made of."""

    text: str
    prefix: str
    turns: tuple[Message, ...]


def _chat_prompt(model: ServedModel, sent: Sequence[Message]) -> tuple[_Prompt, list[str]]:
    """The rendered prompt of a conversation, and what was left out of it."""
    task, turns, dropped = model.task, tuple(model.task.cleaned(sent)), list[str]()
    if not model.bare and (task.system or model.held):  # it was trained with that system prompt: no other is of use
        own: list[Message] = [{"role": "system", "content": task.system}] if task.system else []
        turns = (*own, *(message for message in turns if message["role"] != "system"))
        dropped = ["system"] if any(message["role"] == "system" for message in sent) else []
    system = turns[0]["content"] if turns[0]["role"] == "system" else None
    try:
        find = _prefix if system is None or len(system) < CACHED else _prefix.__wrapped__
        return _Prompt(task.prompt(turns, budget_s=RENDER_S), find(model, system), turns), dropped
    except DataError as error:
        raise BadRequestError(error.message, "messages") from None


@functools.lru_cache(maxsize=64)
def _prefix(model: ServedModel, system: str | None) -> str:
    """The opening that all prompts with this system prompt share."""
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": "\x00"})
    return model.task.prompt(turns, budget_s=RENDER_S).partition("\x00")[0]


def _texts(body: dict[str, Any]) -> list[str]:
    """The prompts of a completion, as they were sent."""
    prompt = body.get("prompt")
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list) or not 1 <= len(texts) <= CHOICES or not all(isinstance(t, str) for t in texts):
        raise BadRequestError(f"'prompt' must be a text or up to {CHOICES} texts", "prompt")
    return texts


def _text_prompt(model: ServedModel, message: Message) -> _Prompt:
    """The prompt of a completion: raw text for a bare model; for any other a user's message, as in chat."""
    return _Prompt(model.opening + message["content"], "", ()) if model.bare else _chat_prompt(model, [message])[0]


def _number(body: dict[str, Any], name: str, default: float, low: float, high: float, *, whole: bool = False) -> float:
    value = body.get(name, default)
    if whole and isinstance(value, float):
        raise BadRequestError(f"'{name}' must be a whole number", name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequestError(f"'{name}' must be a number from {low} to {high}", name)
    return value


def _flag(body: dict[str, Any], name: str, param: str = "") -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise BadRequestError(f"'{name}' must be true or false", param or name)
    return value
