"""The grammar of a tool call: one of the tools with arguments that its schema allows, in a given
form, or no call.

It travels as one text in place of a JSON Schema. The text is no JSON, so no schema that a client
sends is taken for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError

if TYPE_CHECKING:  # a contract is read without it
    import llguidance
    from llguidance._lib import JsonCompileOptions

MARK = "call:"  # first characters of the text of such a grammar
# as answers are written
WHITESPACE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_PARTS = (
    "items",
    "prefixItems",
    "additionalProperties",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "contains",
    "propertyNames",
    "if",
    "then",
    "else",
)


@dataclass(frozen=True)
class CallGrammar:
    """The grammar of an answer that calls one of some tools.

    Attributes:
        tools: The schema of the arguments of each tool, by its name.
        before, between, after: The texts before the name, between it and the arguments, and after
            these.
        none: The answer that calls no tool; empty where one has to be called.
        control: Texts in these that are control tokens of the model.
    """

    tools: dict[str, JsonObject]
    before: str
    between: str
    after: str
    none: str
    control: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return MARK + json.dumps(asdict(self))


def lark(text: str, tokenizer: llguidance.LLTokenizer) -> str:
    """The grammar of such a text in llguidance's Lark.

    Raises:
        DataError: The model has no such control token.
    """
    rules = CallGrammar(**json.loads(text.removeprefix(MARK)))
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
        lines.append(f"a{k}: %json {json.dumps({**ordered(schema), 'x-guidance': WHITESPACE})}")
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


def ordered(schema: Any) -> Any:
    """Returns the schema with its properties in alphabetical order, at every depth."""
    if isinstance(schema, list):
        return [ordered(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for key in _MAPS:
        if isinstance(result.get(key), dict):
            result[key] = {name: ordered(part) for name, part in sorted(result[key].items())}
    for key in _PARTS:
        if key in result:
            result[key] = ordered(result[key])
    for key in ("enum", "const"):
        if key in result:
            result[key] = json.loads(json.dumps(result[key], sort_keys=True))
    return result
