"""Requests in OpenAI's form, every option checked; `openai_replies` has the answers.

An option that is not supported is refused by its name. A model's task comes from its release:
in task mode a client chooses neither system prompt nor template, labels or schema.
"""

from __future__ import annotations

import functools
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import ServeConfig
from slmctl.errors import DataError
from slmctl.inference.engine import Request
from slmctl.sensitive.conversation_veto import unread_fields
from slmctl.server import client_schemas, decision_requests, responses_requests, tool_requests
from slmctl.server.client_schemas import AnswerForm
from slmctl.server.request_errors import RequestError
from slmctl.server.request_options import SortedOptions, sort_options
from slmctl.server.tool_requests import Offer
from slmctl.task.contract import Task
from slmctl.task.records import Message, question_of

CHOICES = 8  # ceiling of `n`, and of the prompts of one completion
STOPS = 4
ALTERNATIVES = {"chat": 20, "text": 5}  # as OpenAI has them
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
        adapter: The engine's LoRA adapter that answers; empty for the model itself.
        bare: It is a `.gguf` that carries no task: any system prompt, and completions of raw text.
        opening: The token that raw text must begin with for this model.
        aliases: Other names that mean it, such as `default`.
        version: The release's; empty where none is known.
        file: The name of the file that answers; empty where another server answers.
        digest: `sha256:…` of that file; empty where it is not known.
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
    def title(self) -> str:
        """`support 1.0 (SmolLM2-135M-support-v1.0-Q8_0.gguf)`."""
        named = f"{self.name} {self.version}" if self.version else self.name
        return named + (f" ({self.file})" if self.file else "")

    @property
    def held(self) -> bool:
        """True where every answer must be one that the task allows."""
        return bool(self.task.labels or self.task.constraint) or self.calls

    @property
    def calls(self) -> bool:
        """True where an answer may call a function."""
        return self.task.rules.calls


@dataclass(frozen=True)
class CheckedRequest:
    """A request that has been checked.

    Attributes:
        kind: `chat`, `text` (completions), `response`, `decision` or `systemone`.
        requests: The engine's requests, one a choice.
        turns: The conversation of each; empty where raw text is continued.
        sent: The conversation as the client sent it, without system messages that the model does not get.
        unread: Fields of its messages that are not part of `sent`, such as `tool_calls`.
        options: The sampling options that it set and the form of its answer, for the router.
        ignored: Its options that have no effect on a model of this task.
        repeated: Its options that the answer of the Responses API repeats.
        label_property: The property of a JSON object in which the client wants a label; empty for the bare label.
        function: The function whose arguments the answer is; empty where it is a message.
        offer: The functions that the answer may call; None for a model that calls none.
        also: Texts of calls and tools, in which sensitive data is searched for beside the messages.
        questions: What is asked about the conversation, of a decision.
    """

    kind: str
    model: ServedModel
    requests: tuple[Request, ...]
    turns: tuple[tuple[Message, ...], ...]
    sent: tuple[Message, ...]
    options: JsonObject
    unread: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    stream: bool = False
    with_usage: bool = False
    schema: JsonObject | None = None  # the client's own, to be checked before it is asked under
    repeated: JsonObject = field(default_factory=dict)
    label_property: str = ""
    function: str = ""
    offer: Offer | None = None
    also: tuple[str, ...] = ()
    questions: tuple[decision_requests.Question, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tells_tokens(self) -> bool:
        return self.requests[0].alternatives >= 0

    @property
    def may_call(self) -> bool:
        """True where the answer may call a function, or not, so that its text has to be read for it."""
        return self.offer is not None and self.kind != "text"

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
    def text(self) -> str:
        """The whole request, for a log that is to hold it."""
        return "\n".join(message["content"] for message in self.sent) or "\n".join(
            request.prompt for request in self.requests
        )


def read(raw: bytes) -> JsonObject:
    """The JSON object in a body; a value of null is as good as left out.

    Raises:
        RequestError: The body is not a JSON object, or holds text that is not Unicode.
    """
    try:
        # as text: bytes would be read as UTF-16 too, and with halves of surrogate pairs let through
        body = json.loads(raw.decode(), parse_constant=_no_number)
        if b"\\u" in raw:
            json.dumps(body, ensure_ascii=False).encode()  # half of a surrogate pair can be spelled, but never written
    except (ValueError, RecursionError):
        raise RequestError("the body is not valid JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise RequestError("the body is not a JSON object")
    return {key: value for key, value in body.items() if value is not None}


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def check(body: JsonObject, kind: str, model: ServedModel, settings: ServeConfig) -> CheckedRequest:
    """A request for an answer, every option checked.

    Args:
        body: The body of the request, as `read` gives it.
        kind: `chat`, `text` (completions), `response`, `decision` or `systemone`, by its path.
        model: The model that is asked.
        settings: With the largest request.

    Raises:
        RequestError: An option is unknown or out of bounds; it is named.
    """
    options = sort_options(body, kind, model.task)
    if kind in decision_requests.PLACES:
        return _decision(kind, model, options, settings)
    if kind != "response":
        return _checked(options.read, kind, model, options, settings)
    chat = responses_requests.as_chat(options.read, calls=model.calls)
    try:
        checked = _checked(chat, "chat", model, options, settings)
    except RequestError as error:
        raise responses_requests.in_own_names(error) from None
    may_call = model.calls or options.function is not None
    names = responses_requests.REPEATED_OF_CALLS if may_call else responses_requests.REPEATED
    ignored = ("text" if name == "response_format" else name for name in checked.ignored)
    return replace(
        checked, kind="response", ignored=tuple(sorted(ignored)),
        repeated={name: body[name] for name in names if name in body},
    )  # fmt: skip


def _decision(kind: str, model: ServedModel, options: SortedOptions, settings: ServeConfig) -> CheckedRequest:
    """A request whose questions are answered from the probabilities of the model's labels."""
    questions = decision_requests.read(options.read, kind, model.name, model.task)
    try:
        chat = decision_requests.as_chat(options.read, kind)
        checked = _checked(chat, "chat", model, options, settings)
    except RequestError as error:
        raise responses_requests.in_own_names(error, decision_requests.NAMES[kind]) from None
    rest = decision_requests.rest(questions, model.task)
    ignored = {*checked.ignored, *decision_requests.ignored(options.read, kind)}
    return replace(
        checked, kind=kind, questions=questions, ignored=tuple(sorted(ignored)),
        requests=tuple(replace(request, rest=rest) for request in checked.requests),
    )  # fmt: skip


def _checked(
    body: JsonObject, kind: str, model: ServedModel, options: SortedOptions, settings: ServeConfig
) -> CheckedRequest:
    """A request of a chat or of completions, in their own form."""
    if options.function is not None:
        body = body | {"response_format": client_schemas.called_form(body, options.function)}
    offer = tool_requests.offer(body, model.task) if model.calls else None
    option = "tools" if options.function else "response_format"
    form = client_schemas.answer_form(body, model.task, is_held=model.held, option=option)
    common = _common(body, kind, model, settings, form, offer)
    turns = _messages(body, calls=model.calls) if kind == "chat" else []
    if kind == "chat":
        sent = [_as_text(model, turn) for turn in turns]
        prompts = [_chat_prompt(model, sent, offer)]
    else:
        sent = [{"role": "user", "content": text} for text in _texts(body)]
        prompts = [_text_prompt(model, message, offer) for message in sent]
    longest = settings.context_length - 1
    if max(len(prompt.text) for prompt in prompts) > BYTES_A_TOKEN * longest:
        raise RequestError(
            f"the prompt does not fit: it has more than {BYTES_A_TOKEN} times as many characters as the "
            f"{longest} tokens allowed",
            "messages" if kind == "chat" else "prompt",
        )
    count = int(_number(body, "n", 1, 1, CHOICES, whole=True))
    if count * len(prompts) > CHOICES:
        raise RequestError(f"'n' times the prompts must be at most {CHOICES}", "n")
    requests = [
        replace(
            common,
            prompt=prompt.text,
            prefix=prompt.prefix,
            seed=(common.seed + k) % 2**63,
            question=question_of(prompt.turns) if common.labels else "",
        )
        for prompt in prompts
        for k in range(count)
    ]
    dropped = ["system"] if kind == "chat" and prompts[0].drops_system else []
    if dropped:  # neither the model nor the generalist gets them, so they are neither searched nor collected
        sent = [message for message in sent if message["role"] != "system"]
    unread = {name for message in body.get("messages", ()) for name in unread_fields(message)}
    names = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", *FORMS, *CHOICE)
    return CheckedRequest(
        kind=kind,
        model=model,
        requests=tuple(requests),
        turns=tuple(prompt.turns for prompt in prompts for _ in range(count)),
        sent=tuple(sent),
        unread=tuple(sorted(unread.difference(CALL_FIELDS if model.calls else ()))),
        options={name: body[name] for name in names if name in body and (name not in CHOICE or offer is not None)},
        ignored=(*dropped, *sorted({*options.ignored, *form.ignored})),
        stream=_flag(body, "stream"),
        with_usage=_stream_options(body),
        schema=form.schema,
        label_property=form.label_property,
        function=options.function.name if options.function else "",
        offer=offer,
        also=tuple(tool_requests.texts(turns, offer)) if offer is not None else (),
    )


def _common(
    body: JsonObject, kind: str, model: ServedModel, settings: ServeConfig, form: AnswerForm, offer: Offer | None
) -> Request:
    task, labels = model.task, model.task.labels or form.choices
    length_name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    length = _number(body, length_name, settings.max_tokens, 1, settings.max_tokens, whole=True)
    temperature = _number(body, "temperature", 0.0, 0, 2)
    if offer is not None:
        constraint = task.form.rules(offer.callable, must_call=offer.must_call)
    else:
        constraint = task.constraint or (json.dumps(form.schema) if form.schema is not None else "")
    return Request(
        prompt="",
        labels=labels,
        end=task.end,
        max_tokens=int(length),
        temperature=0.0 if labels else temperature,
        top_p=_number(body, "top_p", 1.0, 0, 1),
        seed=int(_number(body, "seed", secrets.randbits(31) if temperature else 0, 0, 2**63 - 1, whole=True)),
        stop=(*_stops(body), *([task.end] if task.end else [])),
        schema=constraint,
        adapter=model.adapter,
        alternatives=_alternatives(body, kind),
        shorten=length_name not in body,
    )


def _stops(body: JsonObject) -> list[str]:
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not (isinstance(stops, list) and len(stops) <= STOPS and all(isinstance(s, str) and s for s in stops)):
        raise RequestError(f"'stop' must be a text or up to {STOPS} texts", "stop")
    return stops


def _alternatives(body: JsonObject, kind: str) -> int:
    """Number of likeliest tokens to report in the place of each; -1 reports no token."""
    most = ALTERNATIVES[kind]
    if kind == "text":
        return int(_number(body, "logprobs", -1, 0, most, whole=True)) if "logprobs" in body else -1
    if not _flag(body, "logprobs"):
        if "top_logprobs" in body:
            raise RequestError("'top_logprobs' needs 'logprobs' to be true", "top_logprobs")
        return -1
    return int(_number(body, "top_logprobs", 0, 0, most, whole=True))


def _stream_options(body: JsonObject) -> bool:
    options = body.get("stream_options", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise RequestError("'stream_options' may hold include_usage alone", "stream_options")
    return _flag(options, "include_usage", "stream_options")


def _messages(body: JsonObject, *, calls: bool = False) -> list[Message]:
    """The conversation; of a model that calls functions, with the calls and their results."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("'messages' must be a list that is not empty", "messages")
    roles = ROLES | ({"tool": "tool"} if calls else {})
    names: dict[str, str] = {}  # of functions, by the id of a call
    result: list[Message] = []
    for k, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in roles:
            raise RequestError(
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
            content = responses_requests.text_of(message.get("content"), ("text",))
            if content is None:
                raise RequestError(f"messages[{k}] needs content: a text", "messages")
            turn["content"] = content
        result.append(turn)
    if result[-1]["role"] not in ("user", "tool"):
        raise RequestError(f"the last message must be the user's{' or a result' if calls else ''}", "messages")
    return result


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
    drops_system: bool = False  # the client's system prompt is no part of it


def _chat_prompt(model: ServedModel, sent: Sequence[Message], offer: Offer | None) -> _Prompt:
    task, turns = model.task, tuple(model.task.cleaned(sent))
    has_own = not model.bare and bool(task.system or model.held)  # trained with it, so no other one is of use
    if has_own:
        own: list[Message] = [{"role": "system", "content": task.system}] if task.system else []
        turns = (*own, *(message for message in turns if message["role"] != "system"))
    drops_system = has_own and any(message["role"] == "system" for message in sent)
    system = turns[0]["content"] if turns[0]["role"] == "system" else None
    try:
        tools = offer.tools if offer is not None and offer.is_clients else None
        written = json.dumps(tools) if tools else ""
        find = _prefix if len(system or "") + len(written) < CACHED else _prefix.__wrapped__
        text = task.prompt(turns, tools=tools, budget_s=RENDER_S)
        return _Prompt(text, find(model, system, written), turns, drops_system)
    except DataError as error:
        raise RequestError(error.message, "messages") from None


@functools.lru_cache(maxsize=64)
def _prefix(model: ServedModel, system: str | None, tools: str) -> str:
    """The opening that all prompts with this system prompt, and these tools of the client's, share."""
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": "\x00"})
    offered = json.loads(tools) if tools else None
    return model.task.prompt(turns, tools=offered, budget_s=RENDER_S).partition("\x00")[0]


def _texts(body: JsonObject) -> list[str]:
    prompt = body.get("prompt")
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list) or not 1 <= len(texts) <= CHOICES or not all(isinstance(t, str) for t in texts):
        raise RequestError(f"'prompt' must be a text or up to {CHOICES} texts", "prompt")
    return texts


def _text_prompt(model: ServedModel, message: Message, offer: Offer | None) -> _Prompt:
    """The prompt of a completion: raw text for a bare model; for any other a user's message, as in chat."""
    if model.bare:
        return _Prompt(model.opening + message["content"], "", ())
    return _chat_prompt(model, [message], offer)


def _number(body: JsonObject, name: str, default: float, low: float, high: float, *, whole: bool = False) -> float:
    value = body.get(name, default)
    if whole and isinstance(value, float):
        raise RequestError(f"'{name}' must be a whole number", name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RequestError(f"'{name}' must be a number from {low} to {high}", name)
    return value


def _flag(body: JsonObject, name: str, param: str = "") -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"'{name}' must be true or false", param or name)
    return value
