"""The grammar of a tool call: one of the tools with arguments that its schema allows, in a given form, or no call.

It travels as one text in place of a JSON Schema. The text is no JSON, so no schema that a client sends is taken for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError

if TYPE_CHECKING:  # a contract is read without it
    import llguidance

MARK = "call:"  # what the text of such a grammar begins with
WHITESPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as answers are written


@dataclass(frozen=True)
class _Rules:
    """A form and its tools; see `tool_calls.CallForm`."""

    tools: dict[str, JsonObject]
    before: str
    between: str
    after: str
    none: str
    control: list[str]


def rules(
    tools: Mapping[str, JsonObject], *, before: str, between: str, after: str, none: str, control: Sequence[str] = ()
) -> str:
    """The text of a grammar.

    Args:
        tools: The schema of the arguments of each tool, by its name.
        before, between, after: The texts before the name, between it and the arguments, and after these.
        none: The answer that calls no tool; empty where one has to be called.
        control: Texts in these that are control tokens of the model.
    """
    return MARK + json.dumps(asdict(_Rules(dict(tools), before, between, after, none, list(control))))


def lark(text: str, tokenizer: llguidance.LLTokenizer, order: Callable[[JsonObject], JsonObject]) -> str:
    """The grammar of such a text in llguidance's Lark; `order` sorts the properties of a schema.

    Raises:
        DataError: The model has no such control token.
    """
    rules = _Rules(**json.loads(text.removeprefix(MARK)))
    if not rules.tools:
        return f"start: {json.dumps(rules.none)}\n"
    ids = {token: _control_id(tokenizer, token) for token in rules.control}
    lines = [
        f"start: {json.dumps(rules.none)} | call" if rules.none else "start: call",
        f"call: {' '.join([*_parts(rules.before, ids), 'tool', *_parts(rules.after, ids)])}",
        f"tool: {' | '.join(f't{k}' for k in range(len(rules.tools)))}",
    ]
    for k, (name, schema) in enumerate(rules.tools.items()):
        lines.append(f"t{k}: {' '.join(_parts(name + rules.between, ids))} a{k}")
        lines.append(f"a{k}: %json {json.dumps({**order(schema), 'x-guidance': WHITESPACE})}")
    return "\n".join(lines) + "\n"


def _parts(text: str, ids: Mapping[str, int]) -> list[str]:
    """A text as literals, and as control tokens by their ids."""
    if not ids:
        return [json.dumps(text)] if text else []
    pieces = re.split("(" + "|".join(map(re.escape, ids)) + ")", text)
    return [f"<[{ids[piece]}]>" if piece in ids else json.dumps(piece) for piece in pieces if piece]


def _control_id(tokenizer: llguidance.LLTokenizer, text: str) -> int:
    for token in range(tokenizer.vocab_size):
        if tokenizer.is_special_token(token) and text in tokenizer.dbg_tokens([token]):
            return token
    raise DataError(f"no grammar can be made of the call: the model has no control token '{text}'")
