"""Searching takes time linear in the text: by the syntax of every pattern,
and as measured on adversarial texts.
"""

from __future__ import annotations

import ast
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import hostile
from support.scale import sampled

from slmctl import sensitive
from slmctl.config.pattern_bound import UNBOUNDED, bound
from slmctl.sensitive import unmask

MAX_STEPS = 25_000  # from one start of a match, before the pattern gives up
MODULES = ("", ".phones", ".rules", ".secrets", ".unmask")
SIZE, DOUBLINGS = 4_000, 3  # characters of the shortest text, and how often it is doubled
# a character, on a busy machine; the patterns that went back took 4,000 for 1,000 characters
MICROSECONDS = 400.0
SEARCHES: dict[str, Callable[[str], object]] = {
    "find": sensitive.find,
    "views": unmask.views,
    **{kind: lambda text, rule=rule: list(rule(text)) for kind, rule in sensitive.RULES.items()},  # type: ignore[misc]
}


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Every compiled pattern of the package with its name, also those in tuples and dicts."""
    for module in MODULES:
        for name, value in vars(sys.modules["slmctl.sensitive" + module]).items():
            yield from ((f"{module}.{name}", pattern) for pattern in _within(value))


def _within(value: object) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _within(inner)


PATTERNS = list(patterns())


@pytest.mark.parametrize(
    ("name", "pattern"), PATTERNS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_pattern_gives_up_after_a_bounded_number_of_steps(
    name: str, pattern: re.Pattern[str]
) -> None:
    assert bound(pattern) <= MAX_STEPS, name


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "a*b", r"(?:\w+\s+){1,3}x", r"\d{3,8}(?![\w.,]*\d)", r"(a)\1"]
)
def test_pattern_that_goes_back_without_limit_is_recognised(pattern: str) -> None:
    assert bound(re.compile(pattern)) >= UNBOUNDED


def test_bound_counts_ways_of_nested_repetitions() -> None:
    assert bound(re.compile("[ab]{1,60}[ab]{1,60}[ab]{1,60}c")) > 60**3
    assert bound(re.compile("[ab]{1,2000000000}c")) >= UNBOUNDED  # and is not counted up to it
    assert bound(re.compile("[ab]{1,60}+[ab]{1,60}+[ab]{1,60}+c")) < 200


@pytest.mark.parametrize("module", MODULES)
def test_every_pattern_is_one_of_those_above(module: str) -> None:
    """Patterns are compiled where a module is loaded, and none is made for one use."""
    tree = ast.parse(
        Path(sys.modules["slmctl.sensitive" + module].__file__ or "").read_text(encoding="utf-8")
    )
    uses = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "re"
    }
    assert uses <= {"compile", "escape", "IGNORECASE", "Match", "Pattern"}


def seconds(search: Callable[[str], object], text: str, *, repeats: int = 3) -> float:
    """Least CPU time of some repeats."""
    least = float("inf")
    for _ in range(repeats):
        begun = time.process_time()
        search(text)
        least = min(least, time.process_time() - begun)
    return least


def require_linear(search: Callable[[str], object], fragment: str) -> None:
    """Doubling a text three times costs at most 3 times as much each time
    on the average, and stays in proportion.
    """
    short = seconds(search, (fragment * SIZE)[:SIZE])
    long = seconds(search, (fragment * SIZE * 2**DOUBLINGS)[: SIZE * 2**DOUBLINGS])
    assert long <= max(3**DOUBLINGS * short, 0.05), (fragment, short, long)
    assert long <= MICROSECONDS * 1e-6 * SIZE * 2**DOUBLINGS, (fragment, long)


@pytest.mark.parametrize("fragment", sampled(hostile.FRAGMENTS, hostile.FRAGMENTS[::4]))
def test_twice_the_text_takes_at_most_about_twice_the_time(fragment: str) -> None:
    require_linear(sensitive.find, fragment)


@pytest.mark.parametrize("kind", sampled(SEARCHES, ["find"]))  # which searches by all rules
@settings(max_examples=hostile.EXAMPLES, deadline=None)
@given(data=st.data())
def test_every_rule_is_linear_in_texts_of_its_own_alphabet(kind: str, data: st.DataObject) -> None:
    require_linear(SEARCHES[kind], data.draw(hostile.fragments(kind)))
