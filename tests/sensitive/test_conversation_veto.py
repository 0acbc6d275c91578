"""What is sensitive never leaves, however it is hidden; what is redacted comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from support import disguises, endpoint
from support.endpoint import Fake, says

from slmctl.config import GeneralistConfig as Settings
from slmctl.config import ServeConfig
from slmctl.inference.escalation_policy import Policy
from slmctl.sensitive import conversation_veto
from slmctl.server import router
from slmctl.server.forms.chat import CHAT
from slmctl.server.forms.request import CheckedRequest, ServedModel, read_body
from slmctl.server.generalist import Generalist
from slmctl.server.routed import Escalation
from slmctl.server.router import Router
from slmctl.task.contract import Task

pytest.importorskip("httpx")

TASK = Task("generate", "{% for m in messages %}{{ m['content'] }}{% endfor %}", "<|im_end|>")
UNSURE = Policy(
    "f" * 64,
    TASK.digest,
    "generate",
    "the same words",
    "",
    {"mean": 1.0, "least": 0.0, "choices": 0.0},
    0.0,
    ((-1.0, 0.1),),
    0.0,
)
EVENT = {
    "text": "from here",
    "finish": "stop",
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "confidence": 0.1,
    "logprobs": [-3.0],
}
MODEL = ServedModel("small", TASK)
ALL = disguises.MUTATIONS | disguises.MORE


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A general model that keeps all it gets, and repeats what it was asked."""
    with endpoint.serving(
        lambda body, before: says("You said: " + body["messages"][-1]["content"])
    ) as found:
        yield found


def routed(
    fake: Fake,
    conversations: list[disguises.Messages],
    *,
    unread: tuple[str, ...] = (),
    **more: Any,
) -> list[router.Routed]:
    """Route conversations about each of which the local model is unsure, one after the other."""

    async def local() -> dict[str, Any]:
        return EVENT

    async def work() -> list[router.Routed]:
        router = Router(
            UNSURE,
            TASK,
            "small",
            Escalation(Generalist(Settings(url=fake.url, model="large", **more))),
        )
        try:
            asked = [
                CheckedRequest(CHAT, MODEL, (), (), tuple(messages), {}, unread=unread)
                for messages in conversations
            ]
            return [await router.route(checked, {}, local) for checked in asked]
        finally:
            await router.escalation.close()
            await asyncio.sleep(0)  # transports close in the next turn of the loop

    return asyncio.run(work())


def leaked(fake: Fake, count: int, seed: int) -> list[str]:
    """How sensitive prompts and their mutations that were not held back look."""
    conversations = [
        change(text, value)
        for _, text, value in disguises.prompts(count, seed)
        for change in ALL.values()
    ]
    found = routed(fake, conversations)
    assert len(found) == count * len(ALL)
    assert len(disguises.MUTATIONS) == 12
    let_go = [
        json.dumps(asked)
        for asked, one in zip(conversations, found, strict=True)
        if one.reason != "sensitive"
    ]
    return let_go + [json.dumps(body) for body in fake.bodies]


def test_no_sensitive_prompt_reaches_the_general_model(fake: Fake) -> None:
    assert leaked(fake, 30, seed=1) == []


@pytest.mark.slow
def test_of_a_thousand_sensitive_prompts_in_every_mutation_none_reaches_it(fake: Fake) -> None:
    assert leaked(fake, 1000, seed=0) == []


def test_a_conversation_without_a_message_is_a_doubt() -> None:
    assert conversation_veto.clear([]).reason == "doubt"


@pytest.mark.parametrize(
    "extra",
    [
        {
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "send", "arguments": "{}"}}
            ]
        },
        {"function_call": {"name": "send", "arguments": "{}"}},
        {"audio": {"id": "a"}},
        {"refusal": "no"},
        {"reasoning_content": "hm"},
    ],
)
def test_message_with_more_than_its_text_is_a_doubt(extra: dict[str, Any]) -> None:
    turns = [
        {"role": "assistant", "content": "Yes?", **extra},
        {"role": "user", "content": "go on"},
    ]
    assert conversation_veto.clear(turns).reason == "doubt"
    body = json.dumps({"messages": turns}).encode()
    checked = CHAT.read(read_body(body), MODEL, ServeConfig(context_length=4096))
    assert checked.unread == tuple(extra)


def test_fields_that_hold_nothing_are_no_doubt() -> None:
    turns = [
        {
            "role": "assistant",
            "content": "Yes?",
            "tool_calls": None,
            "refusal": None,
            "annotations": [],
        }
    ]
    turns.append({"role": "user", "content": "go on", "name": "jane"})
    assert conversation_veto.clear(turns).messages == [
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "go on"},
    ]


def test_fields_that_the_server_did_not_read_keep_a_conversation_here(fake: Fake) -> None:
    (one,) = routed(fake, [[{"role": "user", "content": "go on"}]], unread=("tool_calls",))
    assert (one.reason, fake.bodies) == ("doubt", [])


@pytest.mark.parametrize("seed", [5, 11])
@pytest.mark.parametrize("between", ["\n", " \n"])
def test_a_value_spelled_over_the_lines_of_one_text_stays(between: str, seed: int) -> None:
    """An IP address that was broken after a space at the end of a line,
    or had a line a character, went out.
    """
    ways = [*ALL.values()]
    for k, (_, text, value) in enumerate(disguises.prompts(66, seed=seed)):
        parts = [
            turn["content"] for turn in ways[k % len(ways)](text, value) if turn["role"] == "user"
        ]
        row = [{"role": "user", "content": between.join(parts)}]
        assert conversation_veto.clear(row, timeout_s=30).reason == "sensitive", row


def test_prompts_that_are_not_sensitive_do_reach_it(fake: Fake) -> None:
    """The same prompts with a word for the value, in the same mutations:
    what is held back above is the value.
    """
    plain = {
        "card": "blue one",
        "iban": "bank",
        "email": "address",
        "phone": "doorbell",
        "ip": "router",
        "secret": "hint",
    }
    harmless = [
        change(text.replace("password", "question"), plain[kind])
        for kind, text, _ in disguises.prompts(18, seed=2)
        for change in ALL.values()
    ]
    found = routed(fake, harmless)
    assert {one.route for one in found} == {"generalist"}
    assert len(fake.bodies) == len(harmless) == 18 * len(ALL)
    assert [body["messages"] for body in fake.bodies] == harmless


# Redaction


MAIL, CALL = "jane.doe@example.org", "+44 20 7946 0958"


def test_what_is_redacted_leaves_as_a_mark_and_comes_back(fake: Fake) -> None:
    asked = [{"role": "user", "content": f"Write to {MAIL}, or call {CALL}; I repeat, {MAIL}."}]
    (one,) = routed(fake, [asked], redact=["email", "phone"])
    sent = fake.bodies[0]["messages"][0]["content"]
    assert sent == "Write to [EMAIL_1], or call [PHONE_1]; I repeat, [EMAIL_1]."
    assert (one.route, one.text) == ("generalist", f"You said: {asked[0]['content']}")


@pytest.mark.parametrize(
    "content",
    [
        f"{MAIL} and 4111 1111 1111 1111",  # a kind that is not listed
        "jane.doe@exam",  # the rest stands in the next message
        "password: hunter2x",
    ],
)
def test_what_a_mark_cannot_hide_stays(fake: Fake, content: str) -> None:
    asked = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes?"}]
    asked.append(
        {
            "role": "user",
            "content": "ple.org is my address" if content.endswith("exam") else "go on",
        }
    )
    (one,) = routed(fake, [asked], redact=["email", "phone"])
    assert (one.reason, fake.bodies) == ("sensitive", [])


def test_every_mutation_of_a_redacted_value_is_marked_or_stays(fake: Fake) -> None:
    cases = [case for case in disguises.prompts(24, seed=3) if case[0] in ("email", "phone")]
    conversations = [change(text, value) for _, text, value in cases for change in ALL.values()]
    found = routed(fake, conversations, redact=["email", "phone"])
    assert {one.route for one in found} == {"local", "generalist"}
    sent = json.dumps(fake.bodies)
    for _, _, value in cases:
        assert value not in sent
    for body in fake.bodies:
        assert conversation_veto.clear(body["messages"]).reason == ""


def test_a_mark_that_the_conversation_itself_holds_is_not_used(fake: Fake) -> None:
    asked = [{"role": "user", "content": f"What does [EMAIL_1] or [email_2] mean? Mine is {MAIL}."}]
    (one,) = routed(fake, [asked], redact=["email"])
    assert fake.bodies[0]["messages"][0]["content"].endswith("Mine is [EMAIL_3].")
    assert one.text == f"You said: {asked[0]['content']}"


def test_marks_are_restored_in_any_case_and_inside_json() -> None:
    marks = {"[EMAIL_1]": MAIL, "[EMAIL_10]": 'a "quoted"\\name', "[PHONE_1]": CALL}
    assert (
        conversation_veto.restore("To [email_1]; [EMAIL_10]; [PHONE_2]", marks)
        == f'To {MAIL}; a "quoted"\\name; [PHONE_2]'
    )
    found = json.loads(
        conversation_veto.restore(
            '{"to": ["[EMAIL_1]", {"cc": "<[EMAIL_10]>"}], "n": 1}', marks, is_json=True
        )
    )
    assert found == {"to": [MAIL, {"cc": '<a "quoted"\\name>'}], "n": 1}
    with pytest.raises(ValueError, match="Expecting"):
        conversation_veto.restore("no json", marks, is_json=True)
    assert conversation_veto.restore("[EMAIL_1]", {}) == "[EMAIL_1]"


def test_names_and_numbers_of_arguments_are_searched_too() -> None:
    values = {"card": 4111111111111111, "to": [MAIL, {"cc": None}], "sent": True}
    assert [*conversation_veto.texts_in(values)] == [
        "card",
        "4111111111111111",
        "to",
        MAIL,
        "cc",
        "sent",
    ]
