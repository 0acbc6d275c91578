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
from slmctl.server import client_schemas, request_options, tool_requests
from slmctl.server.bad_requests import BadRequestError
from slmctl.server.call_reader import CallReader
from slmctl.server.request_options import Function, SortedOptions
from slmctl.server.tool_requests import Offer
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
CHOICE = ("tools", "tool_choice")  # options of a model that calls functions
CALL_FIELDS = ("tool_calls", "tool_call_id")  # of messages to a model that calls functions
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


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
        return bool(self.task.labels or self.task.constraint) or self.calls

    @property
    def calls(self) -> bool:
        """True where an answer may call a function."""
        return self.task.kind == request_options.CALL


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
        offer: The functions that the answer may call; None for a model that calls none.
        also: Texts of calls and tools, in which sensitive data is searched for beside the messages.
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
    offer: Offer | None = None
    also: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tells_tokens(self) -> bool:
        return self.requests[0].alternatives >= 0

    @property
    def may_call(self) -> bool:
        """True where the answer may call a function, or not, so that its text has to be read for it."""
        return self.offer is not None and self.kind != "text"

    def call_reader(self) -> CallReader:
        """A reader of one answer of a model that may call."""
        return CallReader(self.model.task.form)

    def kept(self, text: str) -> str:
        """The text of an answer as files keep it: a call in one form, whatever the model writes."""
        return self.model.task.kept(text)

    @property
    def form_option(self) -> str:
        """The option that holds the client's own schema."""
        if self.function or self.offer is not None:
            return "tools"
        return "text.format" if self.kind == "response" else "response_format"

    @property
    def client_form(self) -> str:
        """The client's own schema as JSON, or the grammar of its tools, to be checked; empty for none."""
        if self.schema is not None:
            return json.dumps(self.schema)
        return self.offer.checked_rules if self.offer is not None else ""

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
    offer = tool_requests.offer(body, model.task) if model.calls else None
    common, schema = _options(body, kind, model, ceilings, offer)
    place, satisfied = _held_form(body, model, "tools" if options.function else "response_format")
    prompts, sent, turns, dropped = [], list[Message](), list[Message](), list[str]()
    if kind == "chat":
        turns = _messages(body, calls=model.calls)
        sent = [_as_text(model, turn) for turn in turns]
        prompt, dropped = _chat_prompt(model, sent, offer)
        prompts.append(prompt)
    else:
        sent = [{"role": "user", "content": text} for text in _texts(body)]
        prompts = [_text_prompt(model, message, offer) for message in sent]
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
    names = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", *FORMS, *CHOICE)
    return CheckedRequest(
        kind=kind,
        model=model,
        requests=tuple(requests),
        turns=tuple(prompt.turns for prompt in prompts for _ in range(count)),
        sent=tuple(sent),
        unread=_unread(body, read=CALL_FIELDS if model.calls else ()),
        options={name: body[name] for name in names if name in body and (name not in CHOICE or offer is not None)},
        ignored=(*dropped, *sorted({*ignored, *satisfied})),
        stream=_flag(body, "stream"),
        with_usage=_stream_options(body),
        schema=schema,
        label_property=place,
        function=options.function.name if options.function else "",
        offer=offer,
        also=tuple(tool_requests.texts(turns, offer)) if offer is not None else (),
    )


def _unread(body: dict[str, Any], *, read: Sequence[str]) -> tuple[str, ...]:
    """The fields of the messages that hold a part of the conversation and are not read."""
    names = {name for message in body.get("messages", ()) for name in unread_fields(message)}
    return tuple(sorted(names.difference(read)))


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
    body: dict[str, Any], kind: str, model: ServedModel, ceilings: Ceilings, offer: Offer | None
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
        schema=_constraint(task, schema, offer),
        adapter=model.adapter,
        alternatives=_alternatives(body, kind),
        max_prompt=ceilings.max_prompt,
        shorten=length_name not in body,
    )
    return request, schema


def _constraint(task: Task, schema: dict[str, Any] | None, offer: Offer | None) -> str:
    """The schema, or the grammar of calls, that an answer is held to; empty for none."""
    if offer is not None:
        return task.form.rules(offer.callable, must_call=offer.must_call)
    return task.constraint or (json.dumps(schema) if schema is not None else "")


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


def _messages(body: dict[str, Any], *, calls: bool = False) -> list[Message]:
    """The conversation; of a model that calls functions, with the calls and their results."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("'messages' must be a list that is not empty", "messages")
    roles = ROLES | ({"tool": "tool"} if calls else {})
    names: dict[str, str] = {}  # of functions, by the id of a call
    result: list[Message] = []
    for k, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in roles:
            raise BadRequestError(
                f"messages[{k}] needs a role: system, user{', assistant or tool' if calls else ' or assistant'}",
                "messages",
            )
        turn: Message = {"role": roles[role], "content": ""}
        if calls and role == "assistant" and message.get("tool_calls"):
            turn["tool_calls"] = tool_requests.calls_in(message, f"messages[{k}]")
            names |= tool_requests.ids_in(message)
        elif role == "tool":
            turn["name"] = tool_requests.name_of_result(message, names, f"messages[{k}]")
        if "tool_calls" not in turn or message.get("content") is not None:
            turn["content"] = _content(message.get("content"), f"messages[{k}]")
        result.append(turn)
    if result[-1]["role"] not in ("user", "tool"):
        raise BadRequestError(f"the last message must be the user's{' or a result' if calls else ''}", "messages")
    return result


def _content(content: Any, where: str) -> str:
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        content = "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
        raise BadRequestError(f"{where} needs content: a text", "messages")
    return content


def _as_text(model: ServedModel, turn: Message) -> Message:
    """A message with its calls as the text that the model was trained with."""
    if not turn.get("tool_calls"):
        return turn
    written = model.task.with_calls_as_text((), turn, None)
    return {**written, "content": "\n".join(filter(None, (turn["content"], written["content"])))}


@dataclass(frozen=True)
class _Prompt:
    """A rendered prompt, the text at its start that other requests share, and the conversation that it is made of."""

    text: str
    prefix: str
    turns: tuple[Message, ...]


def _chat_prompt(model: ServedModel, sent: Sequence[Message], offer: Offer | None) -> tuple[_Prompt, list[str]]:
    """The rendered prompt of a conversation, and what was left out of it."""
    task, turns, dropped = model.task, tuple(model.task.cleaned(sent)), list[str]()
    if not model.bare and (task.system or model.held):  # it was trained with that system prompt: no other is of use
        own: list[Message] = [{"role": "system", "content": task.system}] if task.system else []
        turns = (*own, *(message for message in turns if message["role"] != "system"))
        dropped = ["system"] if any(message["role"] == "system" for message in sent) else []
    system = turns[0]["content"] if turns[0]["role"] == "system" else None
    try:
        tools = offer.tools if offer is not None and offer.is_clients else None
        written = json.dumps(tools) if tools else ""
        find = _prefix if len(system or "") + len(written) < CACHED else _prefix.__wrapped__
        text = task.prompt(turns, tools=tools, budget_s=RENDER_S)
        return _Prompt(text, find(model, system, written), turns), dropped
    except DataError as error:
        raise BadRequestError(error.message, "messages") from None


@functools.lru_cache(maxsize=64)
def _prefix(model: ServedModel, system: str | None, tools: str) -> str:
    """The opening that all prompts with this system prompt, and these tools of the client's, share."""
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": "\x00"})
    offered = json.loads(tools) if tools else None
    return model.task.prompt(turns, tools=offered, budget_s=RENDER_S).partition("\x00")[0]


def _texts(body: dict[str, Any]) -> list[str]:
    """The prompts of a completion, as they were sent."""
    prompt = body.get("prompt")
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list) or not 1 <= len(texts) <= CHOICES or not all(isinstance(t, str) for t in texts):
        raise BadRequestError(f"'prompt' must be a text or up to {CHOICES} texts", "prompt")
    return texts


def _text_prompt(model: ServedModel, message: Message, offer: Offer | None) -> _Prompt:
    """The prompt of a completion: raw text for a bare model; for any other a user's message, as in chat."""
    if model.bare:
        return _Prompt(model.opening + message["content"], "", ())
    return _chat_prompt(model, [message], offer)[0]


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
