"""A raw row as a conversation: its format is recognised, or its columns are mapped by name or by a
template.

messages           {"messages": [{"role", "content", "weight"?, "tool_calls"?}, …], "tools"?}
sharegpt           {"conversations": [{"from", "value"}, …], "system"?, "tools"?}
alpaca             {"instruction", "input"?, "output", "system"?, "history"?}
prompt-completion  {"prompt", "completion"}: texts, or lists of messages
columns            any columns; `input` and `output` name two of them, or are templates:
                   `{{ NAME }}`, and `{{ row["NAME"] }}` for a column whose name is not valid
                   in Jinja
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from slmctl.artifacts.bounded_json import is_deeper
from slmctl.config import Source
from slmctl.errors import DataError
from slmctl.sources.rows import listed
from slmctl.sources.rows.cells import MAX_DEPTH, as_text
from slmctl.task import chat_template
from slmctl.task.chat_template import TemplateLimitError, TemplateRefusedError
from slmctl.task.chat_template_child import ROW_TEMPLATE
from slmctl.task.records import Message, MessageCall, RowRejectedError

Columns = Mapping[str, Any]
Messages = list[Message]

NEEDS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
}
OPTIONAL = {
    "messages": ("tools",),
    "sharegpt": ("system", "tools"),
    "alpaca": ("system", "input", "history"),
    "prompt-completion": ("tools",),
}
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
MAX_TEMPLATE = 10_000_000  # characters that a template may make of one row
TEMPLATE_S = 5.0  # for one text of one row
ROW = "row"  # in a template: the columns by name, unless a column is called so


@dataclass(frozen=True)
class Conversation:
    """Messages of which the last one is the reference answer, and the
    tools that the assistant may call.
    """

    messages: Messages
    tools: list[Any] | None = None


@dataclass(frozen=True)
class ConversationFormat:
    """The way in which the rows of one source hold their conversations.

    Attributes:
        name: One of the formats above.
        reason: The sign by which it was recognised.
        mapping: (part of a conversation, origin in the row), for the user to check.
        read: Makes the conversation of a row's columns. Raises RowRejectedError for a row that
            holds none.
        fields: The names of `input` and `output` in a report on columns.
    """

    name: str
    reason: str
    mapping: tuple[tuple[str, str], ...]
    read: Callable[[Columns], Conversation]
    fields: tuple[str, str]


def recognise(source: Source, columns: Sequence[str], *, calls: bool = False) -> ConversationFormat:
    """The format of a source with these columns; where answers are `calls`, an empty one says that
    no tool fits.

    Raises:
        DataError: A column that the config names, or that the format needs, is missing; a template
            is not valid; or the config names a column of weights for conversations, which have
            their own.
    """
    name, reason = _name_of(source, columns)
    if name == "columns":
        conversation_format = _from_columns(source, columns, reason, calls=calls)
    else:
        for column in NEEDS[name]:
            require_column(source, columns, column)
        fields = [*NEEDS[name], *(column for column in OPTIONAL[name] if column in columns)]
        mapping = [(column, f"column '{column}'") for column in fields]
        if source.label is not None:
            mapping.append(("answer", f"the label {source.label!r}"))
        read = functools.partial(_READERS[name], calls=calls, label=source.label)
        conversation_format = ConversationFormat(
            name, reason, tuple(mapping), read, ("user", "assistant")
        )
        if source.weight is not None:
            raise DataError(
                f"{source.title} holds conversations ({name}), of which 'weight' is not read",
                hint="a message of the assistant has its weight in 'weight'",
            )
    for column in filter(None, (source.id, source.group, source.time, source.weight)):
        require_column(source, columns, column)
    return conversation_format


def _name_of(source: Source, columns: Sequence[str]) -> tuple[str, str]:
    """The name of a source's format, and the reason for it."""
    if source.conversation_format != "auto":
        return source.conversation_format, "the config says so"
    if {"input", "output"} & source.model_fields_set:
        return "columns", "the config names the columns"
    for name, needs in NEEDS.items():
        if set(needs) <= set(columns):
            return name, f"it has {' and '.join(repr(column) for column in needs)}"
    return "columns", "it has no columns of another format"


def require_column(source: Source, columns: Sequence[str], column: str, *, hint: str = "") -> None:
    """Check that a source has a column; `hint` is the error's, by default the list of its columns.

    Raises:
        DataError: It does not; a similar name is suggested.
    """
    if column not in columns:
        near = difflib.get_close_matches(column, columns, n=1)
        suggestion = f"; did you mean '{listed(near)}'?" if near else ""
        hint = hint or f"its columns: {listed(columns)}"
        raise DataError(f"{source.title} has no column '{column}'{suggestion}", hint=hint)


# Columns by name, and templates


def _from_columns(
    source: Source, columns: Sequence[str], reason: str, *, calls: bool
) -> ConversationFormat:
    make_input, label = text_maker(source, source.input, columns), source.label or ""
    make_answer = (lambda _: label) if label else text_maker(source, source.output, columns)

    def read(row: Columns) -> Conversation:
        text, answer = make_input(row), make_answer(row)
        if not text:
            raise RowRejectedError("empty input", f"'{source.input}' is empty")
        if not answer and not calls:
            raise RowRejectedError("empty answer", f"'{source.output}' is empty")
        reply: Message = {"role": "assistant", "content": answer}
        if source.weight is not None:
            reply["weight"] = _weight(row.get(source.weight), f"'{source.weight}'")
        return Conversation([{"role": "user", "content": text}, reply])

    answer = f"the label {label!r}" if label else _description(source.output)
    mapping = (("input", _description(source.input)), ("output", answer))
    names = (
        "input" if is_template(source.input) else source.input,
        "output" if is_template(source.output) else source.output,
    )
    return ConversationFormat("columns", reason, mapping, read, names)


def is_template(spec: str) -> bool:
    """True if `input` or `output` is a template, not a column."""
    return "{{" in spec or "{%" in spec


def _description(spec: str) -> str:
    return f"template {spec!r}" if is_template(spec) else f"column '{spec}'"


def text_maker(source: Source, spec: str, columns: Sequence[str]) -> Callable[[Columns], str]:
    """A function that returns the text of a row: the cell of a column, or a template filled with
    the row's cells.

    A template is rendered in the bounded process that renders chat templates. The function raises
    DataError if it exceeds its time or memory, as it would for other rows, too.
    """
    if not is_template(spec):
        require_column(source, columns, spec)
        return lambda row: as_text(row.get(spec))
    named, subscripts = names_in(source, spec, columns)
    used = named & set(columns)

    def fill(row: Columns) -> str:
        values: dict[str, Any] = {name: as_text(row.get(name)) for name in used}
        if subscripts:
            values[ROW] = {name: as_text(row.get(name)) for name in subscripts}
        try:
            text = chat_template.render(ROW_TEMPLATE + spec, values, budget_s=TEMPLATE_S).strip()
        except TemplateRefusedError as error:
            reason = error.message.partition(": ")[2]
            raise RowRejectedError(
                "template fails", f"the template {spec!r} fails: {reason}"
            ) from None
        except TemplateLimitError as error:
            reason = error.message.replace("the chat template", "it")
            raise DataError(
                f"{source.title}: the template {spec!r} cannot be filled: {reason}"
            ) from None
        if len(text) > MAX_TEMPLATE:
            raise RowRejectedError(
                "template fails", f"the template {spec!r} makes {len(text)} characters"
            )
        return text

    return fill


def names_in(source: Source, spec: str, columns: Sequence[str]) -> tuple[set[str], set[str]]:
    """Returns (columns that a template names directly, columns that it names as `row["NAME"]`).

    It is parsed and not compiled, since jinja computes constants when it compiles.

    Raises:
        DataError: It is not valid, or names a column that does not exist.
    """
    environment = ImmutableSandboxedEnvironment()
    try:
        tree = environment.parse(spec)
    except jinja2.TemplateSyntaxError as error:
        text = f"{source.title}: the template {spec!r} is not valid: {error.message}"
        raise DataError(text, hint=_written_as(spec, columns)) from None
    except RecursionError:
        raise DataError(f"{source.title}: the template is nested too deeply") from None
    names = list(tree.find_all(jinja2.nodes.Name))
    loaded = {node.name for node in names if node.ctx == "load"}
    assigned = {node.name for node in names if node.ctx != "load"}
    subscripts = {
        name
        for node in tree.find_all(jinja2.nodes.Getitem)
        if (name := _subscript(node)) is not None
    }
    required = (
        loaded
        - assigned
        - set(environment.globals)
        - {"loop", "self", "caller", "varargs", "kwargs"}
    )
    required = required - {ROW} | subscripts if subscripts else required
    for name in sorted(required):
        require_column(source, columns, name, hint=_written_as(spec, set(columns) - subscripts))
    return loaded, subscripts


def _subscript(node: jinja2.nodes.Getitem) -> str | None:
    """NAME of `row["NAME"]`; None for another subscript."""
    of, index = node.node, node.arg
    if (
        isinstance(of, jinja2.nodes.Name)
        and of.name == ROW
        and isinstance(index, jinja2.nodes.Const)
    ):
        return index.value if isinstance(index.value, str) else None
    return None


def reference(column: str) -> str:
    """The expression by which a template names a column: its name, or
    `row["Art.-Nr."]` if Jinja takes no such name.
    """
    if column.isidentifier() and column != ROW:
        # `in` and `is` are identifiers, but not names in Jinja
        with contextlib.suppress(jinja2.TemplateSyntaxError):
            if any(
                ImmutableSandboxedEnvironment()
                .parse(f"{{{{ {column} }}}}")
                .find_all(jinja2.nodes.Name)
            ):
                return column
    return f"{ROW}[{json.dumps(column, ensure_ascii=False)}]"


def _written_as(spec: str, columns: Iterable[str]) -> str:
    """A hint on how a template must name a column that it names otherwise, or ''."""
    odd = sorted(
        (column for column in columns if column in spec and reference(column) != column), key=len
    )
    return f"in a template this column is {{{{ {reference(odd[-1])} }}}}" if odd else ""


def named_cell(columns: Columns, column: str | None) -> str:
    """The cell of a column as text; '' if no column is named."""
    return as_text(columns.get(column)) if column else ""


# Conversations


def _from_messages(columns: Columns, *, calls: bool, label: str | None) -> Conversation:
    return _conversation(
        _list(columns.get("messages"), "messages"), columns.get("tools"), calls=calls, label=label
    )


def _from_sharegpt(columns: Columns, *, calls: bool, label: str | None) -> Conversation:
    turns = _list(columns.get("conversations"), "conversations")
    opening = as_text(columns.get("system"))
    head = [{"role": "system", "content": opening}] if opening else []
    return _conversation([*head, *turns], columns.get("tools"), calls=calls, label=label)


def _from_alpaca(columns: Columns, *, calls: bool, label: str | None) -> Conversation:
    question = "\n\n".join(
        filter(None, (as_text(columns.get("instruction")), as_text(columns.get("input"))))
    )
    if not question:
        raise RowRejectedError("empty input", "'instruction' is empty")
    opening = as_text(columns.get("system"))
    messages: Messages = [{"role": "system", "content": opening}] if opening else []
    for turn in _list(columns.get("history") or [], "history"):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowRejectedError(
                "not a conversation", "'history' does not hold pairs of question and answer"
            )
        messages += [
            {"role": "user", "content": as_text(turn[0])},
            {"role": "assistant", "content": as_text(turn[1])},
        ]
    last = {"role": "assistant", "content": as_text(columns.get("output"))}
    return _conversation(
        [*messages, {"role": "user", "content": question}, last], calls=calls, label=label
    )


def _from_prompt_completion(columns: Columns, *, calls: bool, label: str | None) -> Conversation:
    prompt, completion = _parsed(columns.get("prompt")), _parsed(columns.get("completion"))
    question = (
        prompt if isinstance(prompt, list) else [{"role": "user", "content": as_text(prompt)}]
    )
    answer = (
        completion
        if isinstance(completion, list)
        else [{"role": "assistant", "content": as_text(completion)}]
    )
    return _conversation([*question, *answer], columns.get("tools"), calls=calls, label=label)


_READERS: dict[str, Callable[..., Conversation]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "prompt-completion": _from_prompt_completion,
}


def _parsed(value: Any) -> Any:
    """The value of a table's cell that holds JSON; else the cell itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            parsed = json.loads(value, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            return value
        if is_deeper(parsed, MAX_DEPTH):
            raise RowRejectedError(
                "unreadable", f"a cell holds JSON that is nested more than {MAX_DEPTH} deep"
            )
        return parsed
    return value


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _list(value: Any, name: str) -> list[Any]:
    parsed = _parsed(value)
    if not isinstance(parsed, list):
        raise RowRejectedError("not a conversation", f"'{name}' is not a list")
    return parsed


def _conversation(
    turns: Sequence[Any], tools: Any = None, *, calls: bool = False, label: str | None = None
) -> Conversation:
    """Messages in our form, checked: known roles, texts, and an answer
    at the end, or the label in its place.
    """
    messages = [_message(turn, at) for at, turn in enumerate(turns, 1)]
    if label is not None:
        own = messages[-1:] if messages and messages[-1]["role"] == "assistant" else []
        messages = [*messages[: len(messages) - len(own)], {"role": "assistant", "content": label}]
    if not any(message["role"] == "user" for message in messages):
        raise RowRejectedError("empty input", "no message is of role 'user'")
    last = messages[-1]
    if last["role"] != "assistant":
        raise RowRejectedError(
            "no answer", f"the last message is of role '{last['role']}', not the assistant's"
        )
    if not last["content"] and not last.get("tool_calls") and not calls:
        raise RowRejectedError("empty answer", "the last message is empty")
    question = next(
        message for message in reversed(messages) if message["role"] in ("user", "tool")
    )
    if not question["content"]:
        raise RowRejectedError("empty input", "the question before the answer is empty")
    if not any(message.get("weight", 1) for message in messages if message["role"] == "assistant"):
        raise RowRejectedError(
            "nothing to learn", "every answer has the weight 0, so there is nothing to learn"
        )
    tool_list = _parsed(tools) if tools else None
    if tool_list is not None and not isinstance(tool_list, list):
        raise RowRejectedError("not a conversation", "'tools' is not a list")
    return Conversation(messages, tool_list or None)


def _message(turn: Any, at: int) -> Message:
    if not isinstance(turn, dict):
        raise RowRejectedError("not a conversation", f"message {at} is not an object")
    name = turn.get("role", turn.get("from"))
    role = ROLES.get(str(name).lower())
    if role is None:
        raise RowRejectedError(
            "unknown role", f"message {at} has the unknown role '{str(name)[:40]}'"
        )
    message: Message = {"role": role, "content": _text(turn.get("content", turn.get("value")), at)}
    if name == "function_call":
        message |= {"content": "", "tool_calls": [_tool_call(_parsed(message["content"]), at)]}
    elif turn.get("tool_calls"):
        message["tool_calls"] = [
            _tool_call(call, at) for call in _list(turn["tool_calls"], "tool_calls")
        ]
    elif turn.get("function_call") and role == "assistant":  # OpenAI's form before `tool_calls`
        message["tool_calls"] = [_tool_call(_parsed(turn["function_call"]), at)]
    if role == "tool" and isinstance(turn.get("name"), str):
        message["name"] = turn["name"]
    weight = turn.get("weight")
    if weight is not None and role == "assistant":
        message["weight"] = _weight(weight, f"message {at}")
    return message


def _weight(value: Any, where: str) -> float:
    """The weight of an answer in the loss, 0 to 100; a table's cell may spell it."""
    with contextlib.suppress(ValueError):
        weight = float(value) if isinstance(value, str) else value
        if not isinstance(weight, bool) and isinstance(weight, int | float) and 0 <= weight <= 100:
            return weight
    raise RowRejectedError(
        "bad weight", f"{where} has the weight {str(value)[:20]!r}, not 0 to 100"
    )


def _text(content: Any, at: int) -> str:
    """The text of a message; OpenAI's content may be a list of parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        kinds = {str(part.get("type")) if isinstance(part, dict) else "?" for part in content}
        if kinds - {"text"}:
            raise RowRejectedError(
                "not text", f"message {at} holds more than text: {', '.join(kinds)}"
            )
        return "\n".join(as_text(part.get("text")) for part in content).strip()
    if not isinstance(content, str):
        raise RowRejectedError("not text", f"message {at} has a content that is not a text")
    return content.strip()


def _tool_call(call: Any, at: int) -> MessageCall:
    """One tool call: OpenAI's form has its arguments as JSON in a
    text, templates want them as values.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowRejectedError("not a conversation", f"message {at} has a tool call without a name")
    arguments = _parsed(function.get("arguments", function.get("parameters", {})))
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
