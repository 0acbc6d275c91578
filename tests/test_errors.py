"""Every expected failure has its exit code, and each code one failure."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import get_args

import pytest
from support import ROOT

from slmctl import errors
from slmctl.errors import Reason, SlmctlError

CODES = {
    "UsageError": 2,
    "DataError": 3,
    "MissingError": 4,
    "GateError": 5,
    "StageError": 6,
    "IntegrityError": 7,
    "LockedError": 8,
    "NetworkError": 9,
    "DifferentError": 104,
}


def test_codes_are_the_documented_ones() -> None:
    assert {one.__name__: one.code for one in SlmctlError.__subclasses__()} == CODES


def test_docstring_draws_the_tree_with_its_codes() -> None:
    drawn = re.findall(r"[├└]── (\w+) +(\d+) ", errors.__doc__ or "")
    assert {name: int(code) for name, code in drawn} == CODES


@pytest.mark.parametrize("kind", SlmctlError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_each_carries_a_sentence_and_a_hint(kind: type[SlmctlError]) -> None:
    with pytest.raises(SlmctlError, match="it is so") as caught:
        raise kind("it is so", hint="do this")
    assert (caught.value.message, caught.value.hint, str(caught.value)) == (
        "it is so",
        "do this",
        "it is so",
    )
    assert kind("no advice").hint == ""
    assert kind.__doc__


# Reasons of exit code 5


def said_reasons() -> Iterator[tuple[str, ast.expr | None]]:
    """(place, the reason) of every GateError and every doubt about a stage in slmctl/."""
    texts = {
        path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "slmctl").rglob("*.py"))
    }
    for path, text in texts.items():
        for node in ast.walk(ast.parse(text if "GateError(" in text or "Doubt(" in text else "")):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                if node.func.id == "GateError":
                    yield (
                        place,
                        next((word.value for word in node.keywords if word.arg == "reason"), None),
                    )
                elif node.func.id == "Doubt":
                    yield place, node.args[1]


def test_a_script_that_asks_why_a_check_failed_gets_a_word_of_the_closed_list() -> None:
    reasons = dict(said_reasons())
    constants = {
        place: said.value for place, said in reasons.items() if isinstance(said, ast.Constant)
    }
    others = {
        place: ast.unparse(said) if said else ""
        for place, said in reasons.items()
        if place not in constants
    }
    assert set(constants.values()) == set(get_args(Reason))
    # that of a Doubt, which is among the constants
    assert set(others.values()) == {"doubt.reason"}, others


def test_whoever_looks_a_reason_up_in_the_docs_finds_each_once() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    section = page.partition("## Reasons of exit code 5\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(get_args(Reason))
