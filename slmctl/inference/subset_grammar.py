"""The grammar of a JSON array that holds some of a few texts: each once at
most, in their order, or none of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

# of such a schema; others beside them leave it to llguidance
KEYWORDS = {"type", "items", "uniqueItems"}


def choices(schema: Any) -> tuple[str, ...]:
    """Returns the enum's texts if a JSON Schema is an array of unique
    items of an enum of texts; else ().
    """
    if (
        not isinstance(schema, dict)
        or schema.keys() != KEYWORDS
        or schema["uniqueItems"] is not True
    ):
        return ()
    items = schema["items"]
    if (
        schema["type"] != "array"
        or not isinstance(items, dict)
        or not {"enum"} <= items.keys() <= {"enum", "type"}
    ):
        return ()
    texts = items["enum"]
    fits = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return tuple(dict.fromkeys(texts)) if fits and items.get("type", "string") == "string" else ()


def lark(texts: Sequence[str]) -> str:
    """The grammar in llguidance's Lark, a rule for each text: it and
    one after it, or one after it alone.
    """
    lines = ['start: "[]" | "[" r0 "]"']
    for k, text in enumerate(texts):
        literal = json.dumps(json.dumps(text, ensure_ascii=False), ensure_ascii=False)
        after = f' (", " r{k + 1})? | r{k + 1}' if k + 1 < len(texts) else ""
        lines.append(f"r{k}: {literal}{after}")
    return "\n".join(lines) + "\n"
