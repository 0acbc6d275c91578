"""Chat templates made at random, and messages to render them with."""

from __future__ import annotations

import random
from typing import Any

NAMES = (
    "messages",
    "tools",
    "bos_token",
    "x",
    "y",
    "loop",
    "messages[0].content",
    "range(9999)",
    "'ab'",
    "7",
    "namespace",
    "messages[0]",
    "add_generation_prompt",
    "cycler",
    "lipsum",
    "dict",
    "joiner",
    "''.__class__",
)
FILTERS = (
    "tojson",
    "list",
    "string",
    "join",
    "length",
    "upper",
    "trim",
    "reverse",
    "sort",
    "unique",
    "batch(2)",
    "map('string')",
    "center(99999)",
    "indent(999)",
    "replace('a', 'aaaa')",
    "tojson(indent=9)",
    "pprint",
    "items",
    "urlencode",
    "escape",
    "groupby('role')",
    "attr('__class__')",
    "first",
    "wordwrap(1)",
    "sum",
    "slice(3)",
)


def values(choose: random.Random) -> dict[str, Any]:
    contents: Any = (
        "hello",
        "x" * 2000,
        "",
        None,
        7,
        [{"type": "text", "text": "a"}],
        {"a": [1]},
        "{{ x }}",
    )
    messages = [
        {
            "role": choose.choice(("user", "assistant", "system", "tool")),
            "content": choose.choice(contents),
        }
        for _ in range(choose.randint(0, 6))
    ]
    return {
        "messages": messages,
        "tools": choose.choice((None, [{"name": "f"}])),
        "add_generation_prompt": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
    }


def _expression(choose: random.Random, depth: int) -> str:
    text = "|".join(
        [
            choose.choice(NAMES),
            *(choose.choice(FILTERS) for _ in range(choose.choice((0, 1, 2, 8)))),
        ]
    )
    if depth and choose.random() < 0.4:
        other = _expression(choose, depth - 1)
        form = choose.choice(
            ("({} {} {})", "({0})[{2}]", "({0}) if ({2}) else x", "[{0}, {2}]", "({0})({2})")
        )
        text = form.format(text, choose.choice(("+", "~", "*", "**", "%", "//", "in", "==")), other)
    return text


def body(choose: random.Random, depth: int) -> str:
    value = _expression(choose, 2)
    if depth == 0 or choose.random() < 0.2:
        return choose.choice(
            ("{{ " + value + " }}", "text", "{{", "{% raw %}{{{% endraw %}", "{{ x")
        )
    inner = body(choose, depth - 1)
    return choose.choice(
        (
            f"{{% for x in {value} %}}{inner}{{% endfor %}}",
            f"{{% for x in {value} recursive %}}{inner}{{{{ loop(x) }}}}{{% endfor %}}",
            f"{{% if {value} %}}{inner}{{% else %}}{inner}{{% endif %}}",
            f"{{% set y = {value} %}}{inner}",
            f"{{% set y %}}{inner}{{% endset %}}{{{{ y }}}}",
            f"{{% macro m(x) %}}{inner}{{% endmacro %}}{{{{ m(m(1)) }}}}",
            f"{{% set n = namespace(x='a') %}}{{% for z in range(99) %}}{{% set n.x = n.x ~ n.x "
            f"%}}{{% endfor %}}{inner}",
            inner + body(choose, depth - 1),
        )
    )
