"""Checks of a draft: each fault, and what is none."""

from __future__ import annotations

import pytest

from slmctl.artifacts.artifact import canonical
from slmctl.reports.evaluation_report import CHECKS
from slmctl.task.contract import Task
from slmctl.task.draft_checks import faults, repeated
from slmctl.task.records import Message

ASKED = "Hello, when will you send the 3 lamps that I ordered on 2 March? I paid 60 €."


def turns(*texts: str) -> list[Message]:
    return [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)
    ]


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("Hello, your three lamps of 2 March are on their way; 20 € each is what you paid.", {}),
        ("Hello, your four lamps are here.", {"ungrounded": ("number four",)}),
        (
            "Hello, we refund 70 € on 9 March: 70 € in all.",
            {"ungrounded": ("amount 70", "date 9 March")},
        ),
        ("Hallo, die Lampen sind schon auf dem Weg zu Ihnen.", {"other_language": ("German",)}),
        ("D'accord.", {}),  # too short for a language
        ("Hello, we guarantee that it is there.", {"forbidden_pattern": ("We guarantee".lower(),)}),
        ("Good day, the lamps are on their way.", {"missing_pattern": ("^Hel+o|^Hallo|^D",)}),
        ("Hello, the lamps, the lamps, the lamps, the lamps are here.", {}),  # eight words
        ("Hello, on the way, on the way, on the way to you.", {"repetition": ("on the way",)}),
        ("", {"missing_pattern": ("^Hel+o|^Hallo|^D",)}),
    ],
)
def test_faults(answer: str, wrong: dict[str, tuple[str, ...]]) -> None:
    patterns = {"must": ("^Hel+o|^Hallo|^D",), "must_not": ("(?i)we guarantee", "sure")}
    assert faults(answer, turns(ASKED), **patterns) == wrong
    cut = faults(answer, turns(ASKED), **patterns, finish="length")
    assert cut.keys() == {*wrong, "unfinished"} and list(cut) == [
        check for check in CHECKS if check in cut
    ]


def test_a_value_of_the_system_prompt_or_of_an_earlier_turn_is_grounded() -> None:
    assert faults("We are open until 17:00.", [], system="Open 9 to 17:00.") == {}
    assert faults("Yes, 14 days.", turns("How long?", "14 days.", "really?")) == {}
    documents: list[Message] = [{"role": "tool", "content": "price: 9.90 €"}]
    assert faults("It is 9,90 €.", documents) == {}


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("no no no", ""),
        ("no " * 9, "no"),
        ("a b c d " * 3, "d a b c"),
        ("we are sorry " * 2, ""),
        ("", ""),
        (" ".join(map(str, range(3000))), ""),
        ("go " * 50_000, "go"),
        ("x y " * 25_000, "y x"),
    ],
)
def test_repetition(text: str, phrase: str) -> None:
    assert sorted(repeated(text.split()).split()) == sorted(phrase.split())


@pytest.mark.parametrize(
    "piece",
    ["<|im_end|>", "\u0000", "<script>", "1 2 3 ", "nicht wahr ", "{{ x }}", "a" * 900 + " "],
)
def test_a_draft_of_100_kb(piece: str) -> None:
    assert set(faults(piece * (100_000 // len(piece)), turns(ASKED), must=("b{1,9}c",))) <= set(
        CHECKS
    )


def test_terms_of_the_system_prompt_imply_no_other_term() -> None:
    system = "Refunds take 5 days, traces 2 days."
    # it was 5 - 2, by the prompt or by its copy in the conversation
    stated = {"ungrounded": ("number 3",)}
    assert faults("It takes 3 days, a trace 2.", turns("When?"), system=system) == stated
    copied: list[Message] = [{"role": "system", "content": system}, *turns("When?")]
    assert faults("It takes 3 days.", copied, system=system) == stated


def test_the_contract_keeps_its_bytes_without_patterns() -> None:
    task = Task("generate", "", "")
    assert b"must" not in canonical(task._fields())
    assert task.rules.checks == ("ungrounded", "other_language", "repetition", "unfinished")
    assert Task("generate", "", "", must=("a",), must_not=("b",)).rules.checks == CHECKS
    assert Task("classify", "", "", labels=("a",)).rules.checks == ()
    assert Task("classify", "", "", labels=("a",)).rules.faults("17", []) == {}
