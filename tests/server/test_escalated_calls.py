"""Calls under a policy: what of a question with tools leaves, and what
of the general model's reply is used.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from support import endpoint
from support.endpoint import Turn, says
from support.fleets import TASKS

from slmctl.config import GeneralistConfig as Settings
from slmctl.config import ServeConfig
from slmctl.inference.escalation_policy import Policy
from slmctl.sensitive import conversation_veto
from slmctl.server.forms.chat import CHAT
from slmctl.server.forms.request import CheckedRequest, ServedModel, read_body
from slmctl.server.generalist import Generalist
from slmctl.server.routed import Escalation, Routed
from slmctl.server.router import Router
from slmctl.task.tool_calls import NO_CALL, ToolCall

TASK = TASKS["errands"]
UNSURE = Policy(
    "f" * 64,
    TASK.digest,
    "call",
    "the same call",
    "",
    {"mean": 1.0, "least": 0.0, "choices": 0.0},
    0.0,
    ((-2.0, 0.1), (0.0, 0.9)),
    -0.5,
)
LOCAL = '{"name": "track_order", "arguments": {"order": "A-1"}}'
EVENT: Any = {
    "text": LOCAL,
    "finish": "stop",
    "prompt_tokens": 20,
    "completion_tokens": 3,
    "confidence": 0.2,
    "logprobs": [-1.0] * 3,
}
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "where is order A-2"}]


def checked(messages: list[dict[str, Any]], **more: Any) -> CheckedRequest:
    body = read_body(json.dumps({"messages": messages, **more}).encode())
    return CHAT.read(body, ServedModel("errands", TASK), ServeConfig(context_length=4000))


def calls(*called: tuple[str, Any]) -> Turn:
    """A reply of the general model that calls functions."""
    listed = [
        {"id": f"c{k}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for k, (name, arguments) in enumerate(called)
    ]
    message = {"role": "assistant", "content": None, "tool_calls": listed}
    return says(None, choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}])


def routed(
    turn: Turn,
    messages: list[dict[str, Any]] | None = None,
    *,
    redact: tuple[str, ...] = (),
    **more: Any,
) -> tuple[Routed, list[dict[str, Any]]]:
    """A request about whose local answer the policy is unsure,
    and what reached the general model.
    """
    request = checked(ASKED if messages is None else messages, **more)

    async def local() -> Any:
        return EVENT

    async def work(url: str) -> Routed:
        settings = Settings(
            url=url, model="large", timeout_s=5, **({"redact": redact} if redact else {})
        )
        router = Router(UNSURE, TASK, "errands", Escalation(Generalist(settings)))
        try:
            return await router.route(request, {}, local)
        finally:
            await router.escalation.close()
            await asyncio.sleep(0)  # transports close in the next turn of the loop

    with endpoint.serving(lambda body, before: turn) as fake:
        return asyncio.run(work(fake.url)), fake.bodies


def test_a_call_of_the_general_model_is_read_like_one_of_the_local_model() -> None:
    found, (body,) = routed(calls(("track_order", '{"order": "A-2"}')))
    assert (found.route, found.reason, found.finish) == ("generalist", "unsure", "stop")
    assert TASK.rules.kept(found.text) == ToolCall("track_order", {"order": "A-2"}).answer
    assert [tool["function"]["name"] for tool in body["tools"]] == ["track_order", "close_account"]
    assert body.keys() == {"model", "messages", "max_tokens", "temperature", "tools"}


@pytest.mark.parametrize("text", [NO_CALL, "None."])
def test_a_reply_without_a_call_is_no_call(text: str) -> None:
    found, _ = routed(says(text))
    assert (found.route, found.text) == ("generalist", NO_CALL)


def test_a_call_in_a_text_is_one_too() -> None:
    found, _ = routed(says(ToolCall("close_account", {}).answer))
    assert (found.route, TASK.rules.kept(found.text)) == (
        "generalist",
        ToolCall("close_account", {}).answer,
    )


@pytest.mark.parametrize(
    "turn",
    [
        calls(("track_order", '{"order": "A-9"}')),
        calls(("track_order", "{")),
        calls(("fly_away", "{}")),
        calls(("close_account", "{}"), ("close_account", "{}")),
        calls(("close_account", '{"more": 1}')),
        says(""),
        says("I cannot help with that."),
    ],
)
def test_a_call_that_was_not_offered_ends_with_the_local_answer(turn: Turn) -> None:
    found, _ = routed(turn)
    assert (found.route, found.reason, found.text) == ("local", "generalist-garbage", LOCAL)


@pytest.mark.parametrize(
    "choice", ["none", "required", {"type": "function", "function": {"name": "track_order"}}]
)
def test_a_choice_that_the_policy_was_not_fitted_for_stays(choice: Any) -> None:
    found, bodies = routed(calls(("close_account", "{}")), tool_choice=choice)
    assert (found.route, found.reason, bodies) == ("local", "doubt", [])


SECRET = "DE89 3704 0044 0532 0130 00"


def call_of(arguments: str) -> list[dict[str, Any]]:
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "track_order", "arguments": arguments},
    }
    result = {"role": "tool", "tool_call_id": "c1", "content": "ok"}
    return [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, result]


def tool_of(**more: Any) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": "pay", "parameters": {"type": "object"}, **more}}
    ]


SENSITIVE: dict[str, dict[str, Any]] = {
    "an argument": {"messages": call_of(json.dumps({"iban": SECRET}))},
    "an argument over lines": {
        "messages": call_of(json.dumps({"iban": SECRET.replace(" ", "\n")}))
    },
    "an argument in escapes": {
        "messages": call_of('{"iban": "' + "".join(f"\\u{ord(c):04x}" for c in SECRET) + '"}')
    },
    "a key of an argument": {"messages": call_of(json.dumps({SECRET: 1}))},
    "an argument backwards": {"messages": call_of(json.dumps({"iban": SECRET[::-1]}))},
    "a result": {
        "messages": [
            *call_of("{}")[:-1],
            {"role": "tool", "tool_call_id": "c1", "content": f"to {SECRET}"},
        ]
    },
    "the name in a result": {
        "messages": [*ASKED, {"role": "tool", "name": "4111111111111111", "content": "ok"}]
    },
    "a description": {"messages": ASKED, "tools": tool_of(description=f"Pays to {SECRET}.")},
    "a schema": {
        "messages": ASKED,
        "tools": tool_of(parameters={"type": "object", "properties": {"to": {"enum": [SECRET]}}}),
    },
}


@pytest.mark.parametrize("place", SENSITIVE)
def test_what_is_sensitive_in_calls_results_and_tools_stays(place: str) -> None:
    found, bodies = routed(calls(("track_order", '{"order": "A-2"}')), **SENSITIVE[place])
    assert (found.route, found.reason, bodies) == ("local", "sensitive", [])


def test_calls_and_results_that_are_not_sensitive_leave_as_texts() -> None:
    found, (body,) = routed(says(NO_CALL), call_of('{"order": "A-1"}'))
    assert found.route == "generalist"
    system, *rest = body["messages"]
    assert system["role"] == "system"
    assert rest == [
        *ASKED,
        {"role": "assistant", "content": LOCAL},
        {"role": "user", "content": "track_order returned: ok"},
    ]


def test_a_mark_in_a_call_is_replaced_by_its_value() -> None:
    tools: Any = [
        {
            "type": "function",
            "function": {
                "name": "mail",
                "parameters": {"type": "object", "properties": {"to": {"type": "string"}}},
            },
        },
    ]
    asked = [{"role": "user", "content": "write to jane.doe@example.com"}]
    found, (body,) = routed(
        calls(("mail", '{"to": "[EMAIL_1]"}')), asked, redact=("email",), tools=tools
    )
    assert "jane.doe" not in json.dumps(body)
    assert TASK.rules.kept(found.text) == ToolCall("mail", {"to": "jane.doe@example.com"}).answer


def test_calls_that_nobody_read_are_a_doubt() -> None:
    turns = [{"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}, *ASKED]
    assert conversation_veto.clear(turns).reason == "doubt"
