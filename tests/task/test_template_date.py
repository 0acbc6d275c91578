"""template_date: a template that asks for today's date renders one day,
in every engine and on every later day.
"""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from slmctl.errors import DataError
from slmctl.task import chat_template, template_date

DAY = datetime.date(2026, 2, 3)
MESSAGES = [{"role": "user", "content": "hello"}]
LLAMA = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- for message in messages %}{{- message.content + "<|eot_id|>" }}{% endfor %}
"""
CASES = {
    "guarded": (LLAMA, "Today Date: 03 Feb 2026\n\nhello<|eot_id|>"),
    "unguarded": (
        "{%- set today = strftime_now( '%d %B %Y' ) -%}\nToday: {{ today }}.",
        "Today: 03 February 2026.",
    ),
    "twice": ("{{ strftime_now('%Y') ~ '/' ~ strftime_now(\"%d\")|int }}", "2026/3"),
    "not ASCII": ("{{ strftime_now('%Y年%-m月') }}", "2026年2月"),
    "quotes": ("{{ strftime_now('%d\"\\'%m') }}", "03\"'02"),
    "in a text": (
        "{{ \"strftime_now('%Y')\" }}{# strftime_now('%Y') #} strftime_now('%Y')",
        "strftime_now('%Y') strftime_now('%Y')",
    ),
    "of another": ("{{ messages[0].strftime_now is defined }}", "False"),
    "stripped blanks": (
        "  a  {{- ' a ' }}  \n  {%- if strftime_now is defined -%}  b {%- endif %} c",
        "  a a b c",
    ),
    "line ends": ("a\r\n{{ strftime_now('%Y') }}\r\nb", "a\n2026\nb"),
    "expanded": ("{% if strftime_now %}x{% endif %}", "x"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_sandbox_and_transformers_render_the_day(name: str) -> None:
    utils: Any = pytest.importorskip("transformers.utils.chat_template_utils")
    source, text = CASES[name]
    frozen = template_date.freeze(source, DAY)
    assert chat_template.render(frozen, {"messages": MESSAGES, "bos_token": ""}) == text
    assert utils.render_jinja_template([MESSAGES], chat_template=frozen, bos_token="")[0] == [text]


def test_a_template_without_a_date_is_left_alone() -> None:
    source = "{{ bos_token }}\r\n{%- for m in messages -%} {{ m.content }} {%- endfor %}\n"
    assert template_date.freeze(source, DAY) is source


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        *(
            (f"{{{{ strftime_now({text}) }}}}", "computes the format")
            for text in ("x", "'%d' ~ x", "")
        ),
        ("{{ strftime_now('%d", "is not valid"),
    ],
)
def test_a_template_whose_date_cannot_be_frozen_is_refused(source: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        template_date.freeze(source, DAY)
