"""A raw row as a conversation: its shape is recognised, or its columns are mapped by name or by a template.

messages           {"messages": [{"role", "content", "weight"?, "tool_calls"?}, …], "tools"?}
sharegpt           {"conversations": [{"from", "value"}, …], "system"?, "tools"?}
alpaca             {"instruction", "input"?, "output", "system"?, "history"?}
prompt-completion  {"prompt", "completion"}: texts, or lists of messages
columns            any columns; `input` and `output` name two of them, or are templates
"""

from __future__ import annotations

import difflib
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from slmctl.config import Source
from slmctl.errors import DataError
from slmctl.sources.rows import listed

Columns = Mapping[str, Any]
Messages = list[dict[str, Any]]

NEEDS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
}
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "model": "assistant", "bot": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
MAX_TEMPLATE = 10_000_000  # characters that a template may make of one row


@dataclass(frozen=True)
class Conversation:
    """Messages whose last one is the answer wanted, and the tools that the assistant may call."""

    messages: Messages
    tools: list[Any] | None = None


@dataclass(frozen=True)
class ConversationFormat:
    """How the rows of one source hold their conversations.

    Attributes:
        name: One of the shapes above.
        because: What it was recognised by.
        mapping: (what a row holds, where), for the user to check.
        read: A row's columns -> its conversation. Raises DataError(reason, hint=rule) for a row that holds none.
        fields: What `input` and `output` are called in a report on columns.
    """

    name: str
    because: str
    mapping: tuple[tuple[str, str], ...]
    read: Callable[[Columns], Conversation]
    fields: tuple[str, str]


def recognise(source: Source, known: Sequence[str]) -> ConversationFormat:
    """The shape of a source whose columns are `known`.

    Raises:
        DataError: A column that is named, or that the shape needs, is not there; or a template is not valid.
    """
    name, because = _named(source, known)
    if name == "columns":
        shape = _from_columns(source, known, because)
    else:
        for column in NEEDS[name]:
            _require(source, known, column)
        more = [column for column in ("system", "tools", "input", "history") if column in known]
        used = {"messages": ["tools"], "sharegpt": ["system", "tools"], "alpaca": ["input", "system", "history"]}
        fields = [*NEEDS[name], *(column for column in more if column in used.get(name, ["tools"]))]
        mapping = tuple((column, f"column '{column}'") for column in fields)
        shape = ConversationFormat(name, because, mapping, _READERS[name], ("user", "assistant"))
    for column in filter(None, (source.id, source.group, source.time)):
        _require(source, known, column)
    return shape


def _named(source: Source, known: Sequence[str]) -> tuple[str, str]:
    if source.conversation_format != "auto":
        return source.conversation_format, "the config says so"
    if {"input", "output"} & source.model_fields_set:
        return "columns", "the config names the columns"
    for name, needs in NEEDS.items():
        if set(needs) <= set(known):
            return name, f"it has {' and '.join(repr(column) for column in needs)}"
    return "columns", "it has no columns of another shape"


def _require(source: Source, known: Sequence[str], column: str) -> None:
    if column not in known:
        near = difflib.get_close_matches(column, known, n=1)
        more = f"; did you mean '{listed(near)}'?" if near else ""
        raise DataError(f"{source.title} has no column '{column}'{more}", hint=f"its columns: {listed(known)}")


# Columns by name, and templates


def _from_columns(source: Source, known: Sequence[str], because: str) -> ConversationFormat:
    ask, answer = _text_maker(source, source.input, known), _text_maker(source, source.output, known)

    def read(columns: Columns) -> Conversation:
        text, wanted = ask(columns), answer(columns)
        if not text:
            raise DataError(f"'{source.input}' is empty", hint="empty input")
        if not wanted:
            raise DataError(f"'{source.output}' is empty", hint="empty answer")
        return Conversation([{"role": "user", "content": text}, {"role": "assistant", "content": wanted}])

    told = [(what, _described(spec)) for what, spec in (("input", source.input), ("output", source.output))]
    names = ("input" if _is_template(source.input) else source.input,
             "output" if _is_template(source.output) else source.output)  # fmt: skip
    return ConversationFormat("columns", because, tuple(told), read, names)


def _is_template(spec: str) -> bool:
    return "{{" in spec or "{%" in spec


def _described(spec: str) -> str:
    return f"template {spec!r}" if _is_template(spec) else f"column '{spec}'"


def _text_maker(source: Source, spec: str, known: Sequence[str]) -> Callable[[Columns], str]:
    """What makes a text of a row: the cell of a column, or a template filled with the row."""
    if not _is_template(spec):
        _require(source, known, spec)
        return lambda columns: cell(columns.get(spec))
    try:
        template = _environment().from_string(spec)
        wanted = jinja2.meta.find_undeclared_variables(_environment().parse(spec))
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"{source.title}: the template {spec!r} is not valid: {error.message}") from None
    for name in sorted(wanted - set(_environment().globals)):
        _require(source, known, name)

    def fill(columns: Columns) -> str:
        try:
            text = template.render({name: cell(columns.get(name)) for name in wanted}).strip()
        except (jinja2.TemplateError, ArithmeticError, RecursionError, TypeError, ValueError, MemoryError) as error:
            raise DataError(f"the template {spec!r} fails: {error}", hint="template fails") from None
        if len(text) > MAX_TEMPLATE:
            raise DataError(f"the template {spec!r} makes {len(text)} characters", hint="template fails")
        return text

    return fill


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)  # jinja's own is for HTML
    return environment


def cell(value: Any) -> str:
    """A cell as text; what JSON holds beside texts is written as JSON."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


# Conversations


def _from_messages(columns: Columns) -> Conversation:
    return _conversation(_list(columns["messages"], "messages"), columns.get("tools"))


def _from_sharegpt(columns: Columns) -> Conversation:
    turns = _list(columns["conversations"], "conversations")
    opening = cell(columns.get("system"))
    head = [{"role": "system", "content": opening}] if opening else []
    return _conversation([*head, *turns], columns.get("tools"))


def _from_alpaca(columns: Columns) -> Conversation:
    question = "\n\n".join(filter(None, (cell(columns["instruction"]), cell(columns.get("input")))))
    if not question:
        raise DataError("'instruction' is empty", hint="empty input")
    opening = cell(columns.get("system"))
    messages: Messages = [{"role": "system", "content": opening}] if opening else []
    for turn in _list(columns.get("history") or [], "history"):
        if not isinstance(turn, list) or len(turn) != 2:
            raise DataError("'history' does not hold pairs of question and answer", hint="not a conversation")
        messages += [{"role": "user", "content": cell(turn[0])}, {"role": "assistant", "content": cell(turn[1])}]
    return _conversation(
        [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": cell(columns["output"])}]
    )


def _from_prompt_completion(columns: Columns) -> Conversation:
    prompt, completion = _parsed(columns["prompt"]), _parsed(columns["completion"])
    ask = prompt if isinstance(prompt, list) else [{"role": "user", "content": cell(prompt)}]
    answer = completion if isinstance(completion, list) else [{"role": "assistant", "content": cell(completion)}]
    return _conversation([*ask, *answer], columns.get("tools"))


_READERS: dict[str, Callable[[Columns], Conversation]] = {
    "messages": _from_messages, "sharegpt": _from_sharegpt, "alpaca": _from_alpaca, "prompt-completion": _from_prompt_completion,
}  # fmt: skip


def _parsed(value: Any) -> Any:
    """What a cell of a table holds when it is JSON; else the cell."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _list(value: Any, name: str) -> list[Any]:
    found = _parsed(value)
    if not isinstance(found, list):
        raise DataError(f"'{name}' is not a list", hint="not a conversation")
    return found


def _conversation(turns: Sequence[Any], tools: Any = None) -> Conversation:
    """Messages in our form, checked: known roles, texts, and an answer at the end."""
    messages = [_message(turn, at) for at, turn in enumerate(turns, 1)]
    if not any(message["role"] == "user" for message in messages):
        raise DataError("no message is the user's", hint="empty input")
    last = messages[-1]
    if last["role"] != "assistant":
        raise DataError(f"the last message is of role '{last['role']}', not the assistant's", hint="no answer")
    if not last["content"] and not last.get("tool_calls"):
        raise DataError("the last message is empty", hint="empty answer")
    asked = next(message for message in reversed(messages) if message["role"] in ("user", "tool"))
    if not asked["content"]:
        raise DataError("the question before the answer is empty", hint="empty input")
    if not any(message.get("weight", 1) for message in messages if message["role"] == "assistant"):
        raise DataError("every answer has the weight 0, so there is nothing to learn", hint="nothing to learn")
    listed = _parsed(tools) if tools else None
    if listed is not None and not isinstance(listed, list):
        raise DataError("'tools' is not a list", hint="not a conversation")
    return Conversation(messages, listed or None)


def _message(turn: Any, at: int) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise DataError(f"message {at} is not an object", hint="not a conversation")
    said = turn.get("role", turn.get("from"))
    role = ROLES.get(str(said).lower())
    if role is None:
        raise DataError(f"message {at} has the unknown role '{str(said)[:40]}'", hint="unknown role")
    message: dict[str, Any] = {"role": role, "content": _text(turn.get("content", turn.get("value")), at)}
    if said == "function_call":
        message |= {"content": "", "tool_calls": [_tool_call(_parsed(message["content"]), at)]}
    elif turn.get("tool_calls"):
        message["tool_calls"] = [_tool_call(call, at) for call in _list(turn["tool_calls"], "tool_calls")]
    if role == "tool" and isinstance(turn.get("name"), str):
        message["name"] = turn["name"]
    weight = turn.get("weight")
    if weight is not None and role == "assistant":
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 100:
            raise DataError(f"message {at} has the weight {str(weight)[:20]!r}, not 0 to 100", hint="bad weight")
        message["weight"] = weight
    return message


def _text(content: Any, at: int) -> str:
    """The text of a message; OpenAI's content may be a list of parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        kinds = {part.get("type") if isinstance(part, dict) else "?" for part in content}
        if kinds - {"text"}:
            raise DataError(f"message {at} holds more than text: {', '.join(map(str, kinds))}", hint="not text")
        return "\n".join(cell(part.get("text")) for part in content).strip()
    if not isinstance(content, str):
        raise DataError(f"message {at} has a content that is no text", hint="not text")
    return content.strip()


def _tool_call(call: Any, at: int) -> dict[str, Any]:
    """One tool call: OpenAI's form has its arguments as JSON in a text, templates want them as values."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"message {at} has a tool call without a name", hint="not a conversation")
    arguments = _parsed(function.get("arguments", function.get("parameters", {})))
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
