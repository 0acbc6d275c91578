"""Answers that may call a function, taken apart in pieces."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.server.forms.call_reader import CallReader, Part
from slmctl.task.tool_calls import OWN, CallForm, ToolCall

FORMS = {
    "tags": CallForm('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>"),
    "own": OWN,
    "list": CallForm(
        '[TOOL_CALLS] [{"name": "', '", "arguments": ', "}]", control=("[TOOL_CALLS]",)
    ),
    "control": CallForm("[TOOL_CALLS]", "[ARGS]", "", control=("[TOOL_CALLS]", "[ARGS]")),
}


def read(form: CallForm, *pieces: str) -> list[Part]:
    reader = CallReader(form)
    return [*itertools.chain.from_iterable(map(reader.feed, pieces)), *reader.close()]


def joined(parts: list[Part]) -> dict[str, str]:
    kinds = {part.kind for part in parts}
    return {kind: "".join(part.text for part in parts if part.kind == kind) for kind in kinds}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(
    form=st.sampled_from(list(FORMS)),
    arguments=st.dictionaries(st.text(), values, max_size=3),
    name=st.sampled_from(["find", "n", "none-2", "no", "a.b_c"]),
    cuts=st.lists(st.integers(0, 200), max_size=5),
)
@settings(max_examples=60)
def test_a_call_is_its_name_and_its_arguments_wherever_it_is_cut(
    form: str, arguments: dict[str, Any], name: str, cuts: list[int]
) -> None:
    whole = FORMS[form].shown(ToolCall(name, arguments))
    places = [0, *sorted(cuts), len(whole)]
    parts = read(FORMS[form], *(whole[a:b] for a, b in itertools.pairwise(places)))
    assert joined(parts) == {
        "name": name,
        "arguments": json.dumps(arguments, ensure_ascii=False, sort_keys=True),
    }
    assert parts[0].kind == "name"


@given(
    form=st.sampled_from(["tags", "own", "list"]), text=st.text(min_size=1), cut=st.integers(0, 40)
)
def test_what_is_no_call_is_a_text(form: str, text: str, cut: int) -> None:
    if text.strip()[:1] not in "[{<":
        assert (
            joined(read(FORMS[form], text[:cut], text[cut:])).get("text", "").strip()
            == text.strip()
        )


@pytest.mark.parametrize("form", FORMS)
def test_no_call_is_shown_as_it_is_written(form: str) -> None:
    assert joined(read(FORMS[form], "no", "ne")) == {"text": "none"}


def test_arguments_are_shown_as_they_come() -> None:
    pieces = ['{"name": "fi', 'nd", "argu', 'ments": {"a": ', '"x}', '"', "}", "}"]
    assert read(OWN, *pieces) == [
        Part("name", "find"),
        Part("arguments", '{"a": '),
        Part("arguments", '"x}'),
        Part("arguments", '"'),
        Part("arguments", "}"),
    ]


@pytest.mark.parametrize(
    ("cut", "shown"),
    [
        ('{"na', {"text": '{"na'}),
        ('{"name": "fin', {"text": '{"name": "fin'}),
        ('{"name": "find", "arguments": {"a', {"name": "find", "arguments": '{"a'}),
    ],
)
def test_a_call_that_was_cut_is_no_more_than_what_is_known(cut: str, shown: dict[str, str]) -> None:
    assert joined(read(OWN, cut)) == shown
