"""Every expected failure has its exit code, and each code one failure."""

from __future__ import annotations

import re

import pytest

from slmctl import errors
from slmctl.errors import SlmctlError

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
    assert (caught.value.message, caught.value.hint, str(caught.value)) == ("it is so", "do this", "it is so")
    assert kind("no advice").hint == ""
    assert kind.__doc__
