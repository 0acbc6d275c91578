"""Calls of tools: the tools on offer, an answer that is one call or none, and the form in which a
base writes a call.

Records, predictions and policies hold an answer in one form, whatever the base: `{"arguments": {…},
"name": "…"}` with sorted keys, or `none`. The model writes it in the form of its own chat template,
if that has one (`CallForm`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import ConfigDict

from slmctl.artifacts.bounded_json import JsonObject, is_deeper
from slmctl.errors import DataError
from slmctl.inference import call_grammar
from slmctl.metrics import answer_metrics
from slmctl.task.records import Message, RowRejectedError, with_instruction

if TYPE_CHECKING:  # as in contract
    import jsonschema

# the answer where no tool fits; a call holds a brace, so neither is taken for the other
NO_CALL = "none"
MAX_TOOLS = 128  # that one request may offer, as OpenAI's API has it
MAX_DEPTH = 32  # of parameters and arguments
EXAMPLE = '{"type": "function", "function": {"name": "…", "description": "…", "parameters": {…}}}'
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_APPLIED_BESIDE = (
    "allOf",
    "anyOf",
    "oneOf",
    "$ref",
    "if",
    "patternProperties",
    "unevaluatedProperties",
)

# messages, tools, open an answer
Render = Callable[[Sequence[Message], "Sequence[JsonObject] | None", bool], str]


@dataclass(frozen=True)
class Tool:
    """A function that may be called.

    Attributes:
        parameters: The JSON Schema of its arguments, with sorted keys.
    """

    name: str
    description: str
    parameters: JsonObject

    def to_json(self) -> JsonObject:
        """The tool in OpenAI's form, with its keys in the order that models know."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}

    @property
    def schema(self) -> JsonObject:
        """The schema that arguments must satisfy: an object that
        lists its properties has no others.
        """
        return cast(JsonObject, _closed(self.parameters))


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool."""

    name: str
    arguments: JsonObject

    @property
    def answer(self) -> str:
        """The call as answers are kept."""
        return json.dumps(
            {"arguments": self.arguments, "name": self.name}, ensure_ascii=False, sort_keys=True
        )


def answer_of(call: ToolCall | None) -> str:
    """The answer of a call, or NO_CALL for None, as answers are kept."""
    return call.answer if call else NO_CALL


def read_answer(text: str) -> ToolCall | None:
    """The call in an answer as it is kept; None for NO_CALL.

    Raises:
        DataError: It is neither.
    """
    if text.strip() == NO_CALL:
        return None
    value = _json(text)
    if not isinstance(value, dict) or value.keys() != {"arguments", "name"}:
        raise DataError(
            f"'{text[:60]}' is neither a call with 'name' and 'arguments' nor '{NO_CALL}'"
        )
    return _call(value["name"], value["arguments"])


def answer_of_openai(calls: Sequence[Any]) -> str:
    """The answer in `tool_calls` of OpenAI's form, as it is kept;
    '' unless they are one valid call.
    """
    function = calls[0].get("function") if len(calls) == 1 and isinstance(calls[0], dict) else None
    if isinstance(function, dict):
        with contextlib.suppress(DataError):
            return _call(function.get("name"), _values(function.get("arguments") or {})).answer
    return ""


def read_tools(values: Sequence[Any]) -> tuple[Tool, ...]:
    """Tools in OpenAI's form, `{"type": "function", "function": {…}}`, or as the functions alone.

    Raises:
        DataError: One is not a function with a name and a schema of its arguments, or two have the
            same name.
    """
    if not isinstance(values, list | tuple) or not values:
        raise DataError("the tools are not a list with at least one function")
    if len(values) > MAX_TOOLS:
        raise DataError(f"there are {len(values)} tools, and at most {MAX_TOOLS} may be offered")
    try:
        return _read_tools(json.dumps(values, allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        raise DataError("the tools are not JSON") from None


@functools.lru_cache(maxsize=64)
def _read_tools(text: str) -> tuple[Tool, ...]:
    tools = tuple(_tool(value, at) for at, value in enumerate(json.loads(text), 1))
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two tools have the name '{name}'")
    return tools


def _tool(value: Any, at: int) -> Tool:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or value.get("type", "function") != "function":
        raise DataError(f"tool {at} is not a function", hint=EXAMPLE)
    name, description = function.get("name"), function.get("description") or ""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == NO_CALL:
        raise DataError(
            f"tool {at} has the name {str(name)[:40]!r}",
            hint="1 to 64 letters, digits, '_', '.' and '-'",
        )
    if not isinstance(description, str):
        raise DataError(f"the description of the tool '{name}' is not a text")
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, dict) or is_deeper(parameters, MAX_DEPTH):
        raise DataError(
            f"the parameters of the tool '{name}' are not a JSON Schema of at most {MAX_DEPTH} "
            "levels"
        )
    parameters = {"type": "object", "properties": {}, **parameters}
    if parameters["type"] != "object":
        raise DataError(
            f"the parameters of the tool '{name}' are of type '{parameters['type']}', not 'object'"
        )
    if fault := schema_fault(parameters):
        raise DataError(f"the parameters of the tool '{name}' are no JSON Schema: {fault}")
    return Tool(name, description, json.loads(json.dumps(parameters, sort_keys=True)))


def schema_fault(schema: Any) -> str:
    """The reason why a value is no JSON Schema, or ''."""
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        return str(error.message[:200])
    except RecursionError:
        return "it is nested too deeply"
    return ""


def _closed(schema: Any) -> Any:
    """A schema whose objects allow only the properties that they list, unless it says otherwise."""
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    if isinstance(result.get("properties"), dict):
        result["properties"] = {name: _closed(part) for name, part in result["properties"].items()}
        if not any(keyword in result for keyword in _APPLIED_BESIDE):
            result.setdefault("additionalProperties", False)
    if isinstance(result.get("items"), dict):
        result["items"] = _closed(result["items"])
    return result


def require_offered(call: ToolCall | None, tools: Sequence[Tool]) -> None:
    """Refuse a call of a tool that is not offered, or with arguments that its schema does not
    allow.

    Raises:
        RowRejectedError: It is such a call, or the schema cannot be applied.
    """
    if call is None:
        return
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        offered = ", ".join(tool.name for tool in tools)
        raise RowRejectedError(
            "unknown tool", f"'{call.name[:60]}' is none of the tools: {offered[:200]}"
        )
    from jsonschema.exceptions import UnknownType, best_match
    from referencing.exceptions import Unresolvable

    try:
        fault = best_match(_validator(json.dumps(tool.schema)).iter_errors(call.arguments))
    except (Unresolvable, UnknownType, RecursionError):
        text = (
            f"the parameters of the tool '{tool.name}' refer to a schema that is not in them, "
            "or to themselves"
        )
        raise RowRejectedError("bad tools", text) from None
    if fault is not None:
        where = "".join(f".{part}" for part in fault.absolute_path)
        raise RowRejectedError("wrong arguments", f"{call.name}{where}: {fault.message[:200]}")


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    import jsonschema
    import referencing

    # an empty registry, since jsonschema would fetch the documents that references name
    return jsonschema.Draft202012Validator(json.loads(schema), registry=referencing.Registry())


def from_function(function: Any) -> ToolCall:
    """A call in OpenAI's form: `{"name": "…", "arguments": "{…}"}`, its arguments as a text or as
    an object.

    Raises:
        DataError: It has no name, or no arguments that are an object.
    """
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise DataError(
            "a call needs the name of a function: 1 to 64 letters, digits, '_', '.' and '-'"
        )
    return _call(name, _values(function.get("arguments", {})))


def _values(arguments: Any) -> Any:
    """Arguments as a value; a text is parsed as JSON."""
    return _json(arguments) if isinstance(arguments, str) else arguments


def _call(name: Any, arguments: Any) -> ToolCall:
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise DataError("a call has a name, and arguments that are an object")
    if is_deeper(arguments, MAX_DEPTH):
        raise DataError(f"the arguments are nested more than {MAX_DEPTH} deep")
    return ToolCall(name, arguments)


def _json(text: str) -> Any:
    value = answer_metrics.parse(text)
    if value is answer_metrics.INVALID:
        raise DataError(f"'{text[:60]}' is not JSON")
    return value


# The form that the model writes


@dataclass(frozen=True)
class CallForm:
    """The texts around the name and the arguments of a call, as a model writes it.

    Attributes:
        before, between, after: The texts before the name, between the two, and after the arguments.
        own: True where the base's chat template lists no tools or writes no calls, so that both are
            done here.
        control: The base's control tokens in these texts, which a decoded answer does not show.
    """

    # of a file that is read
    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid", "strict": True}

    before: str
    between: str
    after: str
    own: bool = False
    control: tuple[str, ...] = ()

    def write(self, call: ToolCall | None, *, safe: Callable[[str], str] = str) -> str:
        """The text that a model is trained to write; `safe` breaks
        up control tokens in the arguments.
        """
        if call is None:
            return NO_CALL
        return (
            f"{self.before}{call.name}{self.between}{safe(_arguments(call.arguments))}{self.after}"
        )

    def shown(self, call: ToolCall | None) -> str:
        """The text of a call as it is decoded, without control tokens."""
        return self._shown_form.write(call)

    @property
    def _shown_form(self) -> CallForm:
        return CallForm(self.bare(self.before), self.bare(self.between), self.bare(self.after))

    def read(self, text: str) -> ToolCall | None:
        """The call that a model has written, its control tokens shown or not; None for no call.

        Raises:
            DataError: It is neither, or incomplete.
        """
        text = self.bare(text)
        if text == NO_CALL:
            return None
        form = self._shown_form
        name = NAME.match(text, len(form.before))
        if name is None or not text.startswith(form.before) or not text.endswith(form.after):
            raise DataError(f"'{text[:60]}' is no call")
        rest = text[name.end() : len(text) - len(form.after)].lstrip()
        if not rest.startswith(form.between):
            raise DataError(f"'{text[:60]}' is no call")
        return _call(name.group(), _json(rest.removeprefix(form.between)))

    def bare(self, text: str) -> str:
        """A text as it is decoded: without the form's control tokens,
        and without white space around it.
        """
        for token in self.control:
            text = text.replace(token, "")
        return text.strip()

    def rules(self, tools: Sequence[Tool], *, must_call: bool = False) -> str:
        """The grammar of an answer, for `Request.schema`: one call of an offered tool with its
        arguments, or none.

        Args:
            tools: The tools that may be called; without one the answer is NO_CALL.
            must_call: One of them has to be called.
        """
        return call_grammar.CallGrammar(
            {tool.name: tool.schema for tool in tools},
            self.before,
            self.between,
            self.after,
            none="" if must_call and tools else NO_CALL,
            control=self.control,
        ).text


OWN = CallForm('{"name": "', '", "arguments": ', "}", own=True)
LISTED = (
    "You may call one of these functions:\n{tools}\n"
    'Answer with one call as {{"name": "…", "arguments": {{…}}}} and nothing else, '
    "or with {none} where no function fits."
)


def with_listed(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """A conversation with the tools at the end of its system prompt, for
    a template that has no place for them.
    """
    lines = "\n".join(json.dumps(tool.to_json()["function"], ensure_ascii=False) for tool in tools)
    return with_instruction(messages, "\n\n" + LISTED.format(tools=lines, none=NO_CALL))


def _arguments(arguments: JsonObject) -> str:
    """Arguments as every form writes them, and as the grammar allows them."""
    return json.dumps(arguments, ensure_ascii=False, sort_keys=True)


_QUESTION: Message = {"role": "user", "content": "A question."}
_PROBES = (
    ToolCall("probe_tool", {"probe_key": "probe value"}),
    ToolCall("other-probe", {"a": [1, True, None], "b": {"c": 'ä "quoted"'}, "d": 2.5}),
    ToolCall("third_probe", {}),
)
_TOOL = Tool(
    "probe_tool",
    "A probed tool.",
    {"properties": {"probe_key": {"type": "string"}}, "type": "object"},
)


def form_of(render: Render, *, end: str, special_tokens: Sequence[str]) -> CallForm:
    """The form in which a chat template writes calls, found by rendering some; OWN if none is
    found.

    A form is taken only if it writes the calls as they were rendered and reads them, and the
    template shows the tools.
    """
    # templates want arguments as values or as text, and the content empty or null
    for as_text, content in itertools.product((False, True), ("", None)):
        messages = [_message(call, as_text=as_text, content=content) for call in _PROBES]
        texts = [_written(render, message, end) for message in messages]
        if None in texts or not _shows_tools(render):
            continue
        form = _form_in(str(texts[0]), special_tokens)
        if form is not None and [form.write(call) for call in _PROBES] == texts and _reads(form):
            return form
    return OWN


def _form_in(text: str, special_tokens: Sequence[str]) -> CallForm | None:
    """The form in which a text writes the first probe; None if it cannot be told from others."""
    name, arguments = _PROBES[0].name, _arguments(_PROBES[0].arguments)
    match = re.fullmatch(f"(.*?){re.escape(name)}(.*?){re.escape(arguments)}(.*)", text, re.DOTALL)
    if match is None or not match[1] or NO_CALL.startswith(match[1][0]):
        return None
    control = tuple(token for token in special_tokens if token in "".join(match.groups()))
    return CallForm(match[1], match[2], match[3], control=control)


def _reads(form: CallForm) -> bool:
    """True where the calls that a form writes are read again,
    with and without its control tokens.
    """
    try:
        texts = [(call, form.write(call)) for call in _PROBES]
        return all(form.read(text) == form.read(form.bare(text)) == call for call, text in texts)
    except DataError:
        return False


def _message(call: ToolCall, *, as_text: bool, content: str | None) -> Message:
    arguments: Any = _arguments(call.arguments) if as_text else call.arguments
    # some templates insist on an id, of nine characters
    calls = [
        {
            "id": "call00000",
            "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        }
    ]
    return cast(Message, {"role": "assistant", "content": content, "tool_calls": calls})


def _written(render: Render, message: Message, end: str) -> str | None:
    """The text of a rendered call, without the opening of every answer,
    such as empty thoughts; None if refused.
    """
    tools = [_TOOL.to_json()]
    try:
        head = render([_QUESTION], tools, True)
        whole = render([_QUESTION, message], tools, False)
        plain = render([_QUESTION, {"role": "assistant", "content": "PLAIN-ANSWER"}], tools, False)
    except DataError:
        return None
    if not whole.startswith(head) or end not in whole[len(head) :]:
        return None
    opening = plain[len(head) :].partition("PLAIN-ANSWER")[0] if plain.startswith(head) else ""
    return whole[len(head) :].removeprefix(opening).rpartition(end)[0].strip()


def _shows_tools(render: Render) -> bool:
    """True where a prompt holds a tool's name, description and
    arguments, with a system prompt and without.
    """
    system: Message = {"role": "system", "content": "A system prompt."}
    for messages in ([_QUESTION], [system, _QUESTION]):
        try:
            text = render(messages, [_TOOL.to_json()], True)
        except DataError:
            continue  # a base without system prompts
        if not all(
            part in text
            for part in ("probe_tool", "A probed tool.", "probe_key", messages[0]["content"])
        ):
            return False
    return True
