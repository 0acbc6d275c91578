"""The options that clients send, by what they do to an answer: read, without effect, refused.

An option of OpenAI's that changes no answer here is left out and listed in `ignored`; one that
would change it is refused by its name, and so is one that is not known. Each form names the options
that it reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.server.request_errors import RequestError
from slmctl.task.contract import Task

# read where a text is written
EVERYWHERE = frozenset({"model", "stream", "stream_options", "temperature", "top_p"})
# Values that ask for nothing: clients send them by default.
NEUTRAL: JsonObject = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "echo": False,
    "best_of": 1,
    "suffix": "",
    "store": False,
    "metadata": {},
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "tools": [],
    "functions": [],
    "include": [],
    "truncation": "disabled",
    "verbosity": "medium",
    "background": False,
    "modalities": ["text"],
    "context_management": [],
}
# About storage, price, caches and who asks; about tools and thinking, of which no model here has
# any.
WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "store",
        "user",
        "safety_identifier",
        "service_tier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "max_tool_calls",
        "reasoning",
        "reasoning_effort",
        "prediction",
    }
)
CHOICE = {"tool_choice", "parallel_tool_calls"}  # read with the tools of such a task
SAMPLING = frozenset(
    {"temperature", "top_p", "seed", "max_tokens", "max_completion_tokens", "max_output_tokens"}
)
# They change a text that is drawn token by token, and no label; not one of them is supported for
# texts.
PENALTIES = frozenset(
    {
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "top_k",
        "min_p",
        "verbosity",
    }
)
_NO_STORE = "no response is kept here: send the whole conversation as 'input'"
REASONS = {  # of a refusal
    "previous_response_id": _NO_STORE,
    "conversation": _NO_STORE,
    "prompt": "no prompt is kept here: send 'instructions' and 'input'",
    "background": "every answer is given at once: leave it out, and use 'stream' for a long one",
    "audio": "answers are texts",
    "assets": "images are not read",
    "modalities": "answers are texts",
}
REASONS_OF_CALLS = {"functions": "send 'tools'", "function_call": "send 'tool_choice'"}


@dataclass(frozen=True)
class Function:
    """A function that an answer must call, so that its arguments are the form of the answer.

    Attributes:
        parameters: The JSON Schema of its arguments.
    """

    name: str
    parameters: JsonObject


@dataclass(frozen=True)
class SortedOptions:
    """The options of one request.

    Attributes:
        read: Those that are read, with their values.
        ignored: Names of those without effect on the answer.
        function: The one that every answer must call; None where there is none.
    """

    read: JsonObject
    ignored: frozenset[str]
    function: Function | None


def sort(body: JsonObject, readable: frozenset[str], task: Task, *, calls: bool) -> SortedOptions:
    """Sort the options of a request by what they do to an answer of a task.

    Args:
        body: The request, with its values of null left out.
        readable: Those that the form reads.
        task: The contract of the model that is asked.
        calls: The answers of the form may call functions.

    Raises:
        RequestError: One of them is not supported; it is named.
    """
    options = {name: value for name, value in body.items() if not _asks_nothing(name, value)}
    calls = calls and task.rules.calls
    function = None if calls else forced_function(options)
    unused = (
        set[str]() if calls else {"tool_choice"} if function is not None else _unused_tools(options)
    )
    readable = (readable | (CHOICE if calls else set())) - unused
    dropped = WITHOUT_EFFECT | unused | (PENALTIES if task.labels else set())
    read = {name: value for name, value in options.items() if name in readable}
    for name in options:
        if name not in read and name not in dropped:
            raise _unsupported(
                name, (REASONS_OF_CALLS if calls else {}).get(name, REASONS.get(name, ""))
            )
    ignored = options.keys() - read.keys()
    if task.labels:
        ignored |= read.keys() & (SAMPLING | {"stop"})
    elif task.rules.constraint() or calls:
        ignored |= read.keys() & {"stop"}
    if calls and body.get("parallel_tool_calls") is True:  # one call is made at a time
        ignored.add("parallel_tool_calls")
    return SortedOptions(
        read, frozenset(ignored - ({"tool_choice"} if function is not None else set())), function
    )


def _unsupported(name: str, reason: str) -> RequestError:
    name = name[:100]
    return RequestError(f"option '{name}' is not supported" + (reason and f": {reason}"), name)


def forced_function(options: JsonObject) -> Function | None:
    """The one function that `tool_choice` makes every answer call; None where there is more than
    one, or none.

    A chat names it in `function`, the Responses API in the tool itself.
    """
    tools, choice = options.get("tools"), options.get("tool_choice")
    if not isinstance(tools, list) or len(tools) != 1 or not isinstance(tools[0], dict):
        return None
    (tool,) = tools
    inner = tool.get("function", tool)
    name = inner.get("name") if isinstance(inner, dict) and tool.get("type") == "function" else None
    if isinstance(choice, dict):
        named = choice.get("function", choice)
        forced = (
            choice.get("type") == "function"
            and isinstance(named, dict)
            and named.get("name") == name
        )
    else:
        forced = choice == "required"
    parameters = inner.get("parameters") if isinstance(name, str) and forced else None
    return Function(str(name), parameters) if name and isinstance(parameters, dict) else None


def _asks_nothing(name: str, value: Any) -> bool:
    return (
        name in NEUTRAL and type(value) in (type(NEUTRAL[name]), float) and value == NEUTRAL[name]
    )


def _unused_tools(options: JsonObject) -> set[str]:
    """The options of tools, none of which may be called.

    Raises:
        RequestError: One of them asks for a call.
    """
    for tools, choice in (("tools", "tool_choice"), ("functions", "function_call")):
        if tools in options and options.get(choice) != "none":
            raise _unsupported(tools, _refused_tool(options[tools]))
        if choice in options and tools not in options and options[choice] not in ("none", "auto"):
            raise _unsupported(choice, f"there are no '{tools}' to choose from")
    return {"tools", "tool_choice", "functions", "function_call"}


def _refused_tool(tools: Any) -> str:
    """Why a list of tools is refused: the first one that another
    server would have to run, by its name.
    """
    kinds = (
        [tool.get("type") for tool in tools if isinstance(tool, dict)]
        if isinstance(tools, list)
        else []
    )
    hosted = next(
        (kind for kind in kinds if isinstance(kind, str) and kind not in ("function", "custom")), ""
    )
    if hosted:
        return f"a tool of type '{hosted[:100]}' is run by OpenAI's own servers, and not here"
    return "this model calls none unless 'tool_choice' names the only one; 'none' leaves them out"


def number(
    body: JsonObject, name: str, default: float, low: float, high: float, *, whole: bool = False
) -> float:
    """The number of an option; refuses one out of bounds."""
    value = body.get(name, default)
    if whole and isinstance(value, float):
        raise RequestError(f"'{name}' must be a whole number", name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RequestError(f"'{name}' must be a number from {low} to {high}", name)
    return value


def flag(body: JsonObject, name: str, param: str = "") -> bool:
    """The truth value of an option, false where it is left out; `param` is the option at fault."""
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"'{name}' must be true or false", param or name)
    return value
