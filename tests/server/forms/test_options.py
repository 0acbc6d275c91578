"""Options of clients: read, without effect, refused; and labels in a schema of the client's."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.serving import GENERATE, chat

from slmctl.config import ServeConfig
from slmctl.server.forms import client_schemas
from slmctl.server.forms.chat import CHAT
from slmctl.server.forms.request import CheckedRequest, ServedModel, read_body
from slmctl.server.forms.responses import RESPONSES
from slmctl.server.forms.text import TEXT
from slmctl.server.request_errors import RequestError
from slmctl.task.contract import Task

LABELS = tuple(tiny.LABELS)
FORMS = {"chat": CHAT, "text": TEXT, "response": RESPONSES}
CLASSIFY = Task("classify", tiny.TEMPLATE, "<|im_end|>", labels=LABELS)
EXTRACT = Task("extract", tiny.TEMPLATE, "<|im_end|>", schema=tiny.SCHEMA)
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = Task("call", tiny.TEMPLATE, "<|im_end|>", tools=(FUNCTION,))
TASKS = {"classify": CLASSIFY, "extract": EXTRACT, "generate": GENERATE, "call": CALL}


def check(kind: str, task: str = "classify", **options: Any) -> CheckedRequest:
    asked: dict[str, Any] = {
        "chat": {"messages": chat("hello")},
        "text": {"prompt": "hello"},
        "response": {"input": "hello"},
    }[kind]
    model = ServedModel("desk", TASKS[task])
    return FORMS[kind].read({**asked, **options}, model, ServeConfig(max_tokens=64))


IDLE = {
    "metadata": {"a": "b"},
    "store": True,
    "user": "u",
    "safety_identifier": "s",
    "service_tier": "flex",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "parallel_tool_calls": False,
}


@pytest.mark.parametrize("task", ["classify", "extract", "generate"])
@pytest.mark.parametrize("kind", ["chat", "text", "response"])
def test_options_about_anything_but_the_answer_are_listed(kind: str, task: str) -> None:
    assert check(kind, task, **IDLE).ignored == tuple(sorted(IDLE))
    quiet = {
        "store": False,
        "metadata": {},
        "service_tier": "auto",
        "tools": [],
        "parallel_tool_calls": True,
    }
    assert check(kind, task, **quiet).ignored == ()


def test_tools_that_no_answer_may_call_are_listed() -> None:
    asked = {"tools": [FUNCTION], "tool_choice": "none", "reasoning_effort": "low"}
    assert check("chat", "generate", **asked).ignored == (
        "reasoning_effort",
        "tool_choice",
        "tools",
    )
    assert check("chat", tool_choice="auto").ignored == ("tool_choice",)
    for choice in ("auto", {"type": "function", "function": {"name": "g"}}):
        with pytest.raises(
            RequestError, match="option 'tools' is not supported: this model calls none unless"
        ):
            check("chat", tools=[FUNCTION], tool_choice=choice)
    with pytest.raises(
        RequestError, match="option 'tools' is not supported: this model calls none unless"
    ):
        check("chat", tools=[FUNCTION, FUNCTION], tool_choice="required")


def test_a_function_that_has_to_be_called_is_a_form_of_the_answer() -> None:
    called = {"name": "file", "parameters": of({"type": "string"})}
    chosen = {"tools": [{"type": "function", "function": called}], "tool_choice": "required"}
    checked = check("chat", **chosen)
    assert (checked.function, checked.label_property, checked.ignored) == ("file", "category", ())
    assert check("chat", "generate", **chosen).schema == called["parameters"]
    with pytest.raises(RequestError, match="its release says what form answers have") as caught:
        check("chat", "extract", **chosen)
    assert caught.value.param == "tools"
    called["parameters"] = tiny.SCHEMA
    assert check("chat", "extract", **chosen).ignored == ()
    with pytest.raises(RequestError, match="'response_format' cannot be kept to"):
        check("chat", "generate", **chosen, response_format={"type": "json_object"})


def test_labels_and_choices_are_searched_in_the_normal_form_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart, composed = ("A\u0308pfel", "x"), ("\u00c4pfel", "x")
    monkeypatch.setitem(TASKS, "classify", replace(CLASSIFY, labels=apart, normal_form="NFC"))
    monkeypatch.setitem(TASKS, "generate", replace(GENERATE, normal_form="NFC"))
    for checked in (
        check("chat"),
        check("chat", "generate", structured_outputs={"choice": list(apart)}),
    ):
        assert [(each.labels, each.written_labels) for each in checked.requests] == [
            (apart, composed)
        ]


PENALTIES = {"frequency_penalty": 0.5, "presence_penalty": 1, "logit_bias": {"7": 3}, "top_k": 4}


def test_sampling_changes_no_label_and_a_text_it_does() -> None:
    sampling = {"temperature": 1, "top_p": 0.5, "seed": 3, "max_tokens": 4, "stop": ["x"]}
    assert check("chat", **sampling, **PENALTIES).ignored == tuple(sorted(sampling | PENALTIES))
    assert check("chat", "generate", **sampling).ignored == ()
    assert check("chat", "extract", **sampling).ignored == ("stop",)
    for name, value in PENALTIES.items():
        for task in ("extract", "generate"):
            with pytest.raises(RequestError, match=f"option '{name}' is not supported") as caught:
                check("chat", task, **{name: value})
            assert caught.value.param == name


@pytest.mark.parametrize(
    "name", ["audio", "web_search_options", "previous_response_id", "ouput", "x" * 300]
)
def test_the_rest_is_refused_by_its_name(name: str) -> None:
    for kind in ("chat", "text", "response"):
        with pytest.raises(RequestError, match=name[:100]) as caught:
            check(kind, **{name: "yes"})
        assert (caught.value.param, caught.value.status) == (name[:100], 400)


REFUSED: dict[str, list[tuple[dict[str, Any], str, str]]] = {
    "chat": [
        ({"tools": [FUNCTION]}, "tools", "calls none unless 'tool_choice' names the only one"),
        (
            {"response_format": {"type": "xml"}},
            "response_format",
            "must have type text, json_object or",
        ),
        ({"logprobs": 3}, "logprobs", "must be true or false"),
        ({"top_logprobs": 3}, "top_logprobs", "needs 'logprobs' to be true"),
        ({"n": 9}, "n", "must be a number from 1 to 8"),
        ({"temperature": 3}, "temperature", "must be a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"max_tokens": 0}, "max_tokens", "must be a number from 1 to 64"),
        ({"max_tokens": 10**9}, "max_tokens", "must be a number from 1 to 64"),
        ({"max_tokens": 1.5}, "max_tokens", "must be a whole number"),
        ({"seed": -1}, "seed", "must be a number from 0"),
        ({"seed": 0.5}, "seed", "must be a whole number"),
        ({"stop": [""]}, "stop", "must be a text or up to 4 texts"),
        ({"stop": ["a"] * 5}, "stop", "must be a text or up to 4 texts"),
        ({"messages": []}, "messages", "must be a list that is not empty"),
        ({"messages": "hello"}, "messages", "must be a list that is not empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "needs a role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "needs content",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            "messages",
            "last message must be the user's",
        ),
    ],
    "response": [
        (
            {"previous_response_id": "resp_1"},
            "previous_response_id",
            "send the whole conversation as 'input'",
        ),
        ({"conversation": "conv_1"}, "conversation", "no response is kept here"),
        ({"background": True}, "background", "every answer is given at once"),
        ({"prompt": {"id": "p"}}, "prompt", "no prompt is kept here"),
        (
            {"tools": [{"type": "web_search"}]},
            "tools",
            "type 'web_search' is run by OpenAI's own servers",
        ),
        (
            {"tools": [{"type": "function", "name": "f"}]},
            "tools",
            "calls none unless 'tool_choice' names the only one",
        ),
        ({"tool_choice": "required"}, "tool_choice", "no 'tools' to choose from"),
        ({"truncation": "auto"}, "truncation", "is not supported"),
        ({"max_output_tokens": 0}, "max_output_tokens", "'max_output_tokens' must be a number"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "'text.format' must have type"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
        ({"input": []}, "input", "a list of messages that is not empty"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "send the item itself"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c"}]},
            "input",
            "not 'function_call_output'",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input",
            "needs content: a text",
        ),
        (
            {"input": [{"role": "assistant", "content": "x"}]},
            "input",
            "the last message must be the user's",
        ),
        ({"messages": chat("hello")}, "messages", "not supported"),
    ],
    "a model of calls": [
        ({"parallel_tool_calls": 7}, "parallel_tool_calls", "must be true or false"),
        ({"functions": [FUNCTION]}, "functions", "send 'tools'"),
        ({"response_format": {"type": "json_object"}}, "response_format", "a model of kind 'call'"),
        (
            {"messages": [{"role": "tool", "tool_call_id": "c", "content": "x"}]},
            "messages",
            "needs a tool_call_id",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            "messages",
            "must be the user's or a result",
        ),
    ],
}


@pytest.mark.parametrize(("to", "row"), [(to, row) for to, rows in REFUSED.items() for row in rows])
def test_what_a_request_cannot_have_is_refused_with_the_reason(
    to: str, row: tuple[dict[str, Any], str, str]
) -> None:
    more, param, said = row
    with pytest.raises(RequestError) as caught:
        check(
            "response" if to == "response" else "chat",
            "call" if to == "a model of calls" else "generate",
            **more,
        )
    assert (caught.value.param, caught.value.status) == (param, 400)
    assert said in caught.value.message


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"",
        b"[" * 100_000,
        # json.loads reads halves of surrogate pairs, and UTF-16
        b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}], "max_tokens": 1}',
        b'{"model": "\xed\xa0\x80", "messages": [{"role": "user", "content": "hello"}]}',
        b'{"messages": [{"role": "user", "content": "hello"}], "stop": "\xed\xbf\xbf"}',
        json.dumps({"messages": chat("hello"), "max_tokens": 1}).encode("utf-16"),
        json.dumps({"messages": chat("\ud800")}).encode("utf-16-le"),
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
    ],
)
def test_a_body_that_is_no_json_object_in_utf_8_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError, match="JSON"):
        read_body(raw)


PLAIN = st.text(max_size=8) | st.integers() | st.none() | st.booleans() | st.floats(allow_nan=False)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
)
READ = {name for form in FORMS.values() for name in form.reads}
NAMES = st.sampled_from(sorted(READ | {"tool_choice", "logit_bias"}))
BODIES = st.dictionaries(NAMES, VALUES, max_size=5).map(lambda body: json.dumps(body).encode())


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["chat", "text", "response"]),
    task=st.sampled_from(sorted(TASKS)),
    raw=BODIES,
)
def test_any_body_is_answered_or_refused(kind: str, task: str, raw: bytes) -> None:
    with contextlib.suppress(RequestError):
        check(kind, task, **read_body(raw))


# A client's schema on a classifier


def place(schema: dict[str, Any], labels: tuple[str, ...] = LABELS) -> tuple[str, str]:
    return client_schemas.label_property(json.dumps(schema), labels)


def of(part: Any, **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"category": part},
        "required": ["category"],
        "additionalProperties": False,
        **more,
    }


@pytest.mark.parametrize(
    "schema",
    [
        of({"type": "string"}),
        of({"enum": [*LABELS, "other"]}),
        of({"type": "string", "maxLength": 20}),
        of({"anyOf": [{"type": "string"}, {"type": "null"}]}),
        of({"type": ["string", "null"]}),
        of(
            {"$ref": "#/$defs/Label"},
            **{"$defs": {"Label": {"enum": list(LABELS), "type": "string"}}},
        ),
        of({"allOf": [{"$ref": "#/definitions/L"}]}, definitions={"L": {"type": "string"}}),
        {
            "type": "object",
            "properties": {"category": {"type": "string"}, "score": {"type": "number"}},
        },
    ],
)
def test_a_label_goes_into_the_one_property_that_all_of_them_fit(schema: dict[str, Any]) -> None:
    assert place(schema) == ("category", "")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (
            of({"enum": ["billing", "delivery"]}),
            "'account' of the task's labels does not fit 'category'",
        ),
        (
            of({"const": "billing"}),
            "'delivery', 'account' of the task's labels do not fit 'category'",
        ),
        (
            of({"type": "string", "maxLength": 3}),
            "'billing', 'delivery', 'account' of the task's labels do not fit",
        ),
        (of({"type": "integer"}), "one string or enum property, and has none"),
        (of({}), "one string or enum property, and has none"),
        (
            of({"$ref": "#/$defs/Self"}, **{"$defs": {"Self": {"$ref": "#/$defs/Self"}}}),
            "and has none",
        ),
        (of({"$ref": "https://x.invalid/a"}), "and has none"),
        ({"properties": {"a": {"type": "string"}, "b": {"type": "string"}}}, "and has 'a', 'b'"),
        (
            {"properties": {"a": {"type": "string"}, "b": {}}, "required": ["a", "b"]},
            "do not fit 'a'",
        ),
        (of({"type": "string", "pattern": "(a+)+$"}), "not compared with a pattern"),
        ({"type": "array"}, "an object with a property for the label"),
        ({"properties": {f"p{k}": {} for k in range(101)}}, "at most 100 of them"),
        (of({"type": "nonsense", "enum": ["billing"]}), "do not fit"),
    ],
)
def test_a_schema_without_such_a_property_is_refused_with_the_reason(
    schema: dict[str, Any], reason: str
) -> None:
    assert place(schema)[0] == ""
    assert reason in place(schema)[1]
    for form in (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        {"type": "json_object"},
    ):
        with pytest.raises(
            RequestError, match="'response_format' is not supported by a model of kind 'classify': "
        ):
            check("chat", response_format=form)


def test_of_many_labels_some_are_named() -> None:
    labels = tuple(f"label {k}" for k in range(1000))
    assert place(of({"enum": ["label 3"]}), labels)[1].startswith(
        "'label 0', 'label 1', 'label 2' and 996 more of"
    )


def test_a_schema_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_schemas, "MAX_STEPS", 5000)
    # every label is compared with every one of the alternatives
    schema = of({"type": "string", "anyOf": [{"minLength": 90}] * 900 + [{}]})
    assert place(schema, tuple(f"label {k}" for k in range(1000))) == (
        "",
        "its schema takes too long to apply",
    )


def test_the_tasks_own_schema_is_no_other_form() -> None:
    def ask(form: Any) -> tuple[str, ...]:
        return check("chat", "extract", response_format=form).ignored

    titled = tiny.SCHEMA | {"title": "Ticket", "required": ["items", "topic"]}
    assert ask({"type": "json_schema", "json_schema": {"name": "x", "schema": titled}}) == (
        "response_format",
    )
    assert ask({"type": "json_object"}) == ("response_format",)
    assert ask({"type": "text"}) == ()
    for other in ({"required": ["topic"]}, {"type": "array"}):
        with pytest.raises(RequestError, match="its release says what form answers have"):
            ask(
                {"type": "json_schema", "json_schema": {"name": "x", "schema": tiny.SCHEMA | other}}
            )
