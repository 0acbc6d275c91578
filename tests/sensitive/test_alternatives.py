"""Every alternative inside an atomic group can match: in
`(?>is|was|ist)` the last one never can, after `is`.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from collections.abc import Iterator, Sequence
from re import _compiler as compiler  # type: ignore[attr-defined]
from re import _constants as codes  # type: ignore[attr-defined]  # the parser of `re` has no public name
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest

from slmctl import sensitive

REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)
BESIDE = (
    "",
    " ",
    "_",
    "a",
    "1",
    "\n",
    '"',
    "123 ",
    "x1,",
)  # before and after a group, for its look-arounds
MOST_TEXTS = 400  # of one alternative that are tried
PLAIN = "a1 _-.:@!A/"  # one of these is in nearly every class of characters
Path = tuple[int, ...]  # the way to a node: positions in nested lists


def modules() -> Iterator[Any]:
    yield sensitive
    for each in pkgutil.iter_modules(sensitive.__path__):
        yield importlib.import_module(f"{sensitive.__name__}.{each.name}")


def patterns(value: Any, name: str) -> Iterator[tuple[str, re.Pattern[str]]]:
    """The compiled patterns in a value with their names, also those in tuples and dicts."""
    if isinstance(value, re.Pattern):
        yield name, value
    elif isinstance(value, dict | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        yield from (found for key, inner in pairs for found in patterns(inner, f"{name}.{key}"))


NAMED = {
    name: pattern
    for module in modules()
    for variable, value in vars(module).items()
    for name, pattern in patterns(value, f"{module.__name__}.{variable}")
}
# each once, in one order for all processes of pytest
PATTERNS = {NAMED[name]: name for name in sorted(NAMED)}


def bodies(items: Any) -> Iterator[tuple[int, Sequence[Any]]]:
    """Returns (position, items) of each part that an item holds; of a
    branch its alternatives are such parts.
    """
    for at, (code, value) in enumerate(items):
        if code in REPEATS:
            yield at, value[2]
        elif code is codes.SUBPATTERN:
            yield at, value[3]
        elif code is codes.ATOMIC_GROUP:
            yield at, value


def atomic(items: Any) -> Iterator[Any]:
    """The bodies of atomic groups and of possessive repetitions at any
    depth: each is settled before what follows.
    """
    for at, body in bodies(items):
        if items[at][0] in (codes.ATOMIC_GROUP, codes.POSSESSIVE_REPEAT):
            yield body
        yield from atomic(body)
    for code, value in items:
        if code is codes.BRANCH:
            yield from (found for part in value[1] for found in atomic(part))
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            yield from atomic(value[1])


def without(items: Any, state: Any, place: list[int], *, only: bool) -> tuple[Any, bool]:
    """Returns (the items with one alternative removed, or with `only` all others, True if it was
    among them).

    `place[0]` counts alternatives, from that which is meant down to 0.
    """
    made, was_here = parser.SubPattern(state), False
    for code, value in items:
        found = False
        if code is codes.BRANCH:
            parts = []
            for part in value[1]:
                is_meant = place[0] == 0
                place[0] -= 1
                inner, found_inside = without(part, state, place, only=only)
                parts.append((inner, is_meant, found_inside))
            found = any(meant or inside for _, meant, inside in parts)
            kept = [
                inner
                for inner, meant, inside in parts
                if not found or (meant or inside if only else not meant)
            ]
            value = (None, kept)
        elif code in REPEATS:
            body, found = without(value[2], state, place, only=only)
            value = (max(value[0], found and only), max(value[1], 1), body)
        elif code is codes.SUBPATTERN:
            body, found = without(value[3], state, place, only=only)
            value = (*value[:3], body)
        elif code is codes.ATOMIC_GROUP:
            value, found = without(value, state, place, only=only)
        made.append((code, value))
        was_here |= found
    return made, was_here


def texts(items: Any) -> Iterator[str]:
    """Some texts that items match, with few and with one round of each
    repetition; look-arounds are left out.
    """
    parts = [list(itertools.islice(each, 60)) for each in map(_texts_of, items)]
    yield from map("".join, itertools.product(*parts))


def _texts_of(item: Any) -> Iterator[str]:
    code, value = item
    if code is codes.LITERAL:
        yield chr(value)
    elif code is codes.BRANCH:
        yield from (text for part in value[1] for text in itertools.islice(texts(part), 8))
    elif code in REPEATS:
        low, high, body = value
        rounds = dict.fromkeys((low, max(low, 1), min(high, max(low, 4))))
        yield from (text * count for text in itertools.islice(texts(body), 8) for count in rounds)
    elif code is codes.SUBPATTERN:
        yield from texts(value[3])
    elif code is codes.ATOMIC_GROUP:
        yield from texts(value)
    elif code in (codes.AT, codes.ASSERT, codes.ASSERT_NOT):
        yield ""
    else:  # a class of characters
        single = compiler.compile(_of([item]))
        yield from [char for char in (*PLAIN, *map(chr, range(33, 127))) if single.match(char)][:2]


def _of(items: Any, state: Any = None) -> Any:
    return parser.SubPattern(state or parser.State(), list(items))


def ends(body: Any, state: Any, text: str, before: str, after: str, flags: int) -> bool:
    """True where an atomic group with this body matches exactly `text`, between other texts."""
    group = compiled(body, state, flags)
    match = group.match(before + text + after, len(before))
    return match is not None and match.end() == len(before + text)


_COMPILED: dict[int, tuple[Any, re.Pattern[str]]] = {}


def compiled(body: Any, state: Any, flags: int) -> re.Pattern[str]:
    if id(body) not in _COMPILED:
        _COMPILED[id(body)] = (
            body,
            compiler.compile(_of([(codes.ATOMIC_GROUP, body)], state), flags),
        )
    return _COMPILED[id(body)][1]


def hidden(pattern: re.Pattern[str]) -> list[str]:
    """The alternatives of atomic groups that never match: without them the
    group matches each text as with them.
    """
    tree = parser.parse(pattern.pattern, pattern.flags)
    never = []
    for body in atomic(tree):
        for number in itertools.count():
            alone, is_one = without(body, tree.state, [number], only=True)
            if not is_one:
                break
            rest, _ = without(body, tree.state, [number], only=False)
            examples = list(itertools.islice(texts(alone), MOST_TEXTS))
            if not any(
                ends(body, tree.state, text, before, after, pattern.flags)
                and not ends(rest, tree.state, text, before, after, pattern.flags)
                for text in examples
                for before, after in itertools.product(BESIDE, BESIDE)
            ):
                never.append(examples[0])
    return never


@pytest.mark.parametrize("pattern", PATTERNS, ids=list(PATTERNS.values()))
def test_every_alternative_of_an_atomic_group_can_match(pattern: re.Pattern[str]) -> None:
    """`Passwort ist` was never found, since `is` stood before `ist`;
    neither was the Polish `jest` after `je`.
    """
    assert hidden(pattern) == []


@pytest.mark.parametrize(
    ("pattern", "never"),
    [
        (r"password (?>is|was|ist|es):?", ["ist"]),
        (r"(?>je|jest|é)\s", ["jest"]),
        (r"(?:(?>a(?:b|bc)|d)x)?", ["abc"]),
        (r"(?:is|ist)++", ["ist"]),
        (r"(?>is\b|ist|is)\s", ["is"]),
        (r"(?>(?<=_)pass|pw|(?:user|u)?name)", []),
        (r"(?>x?|y)", ["y"]),
        (r"(?>is\b|ist)\s(?:is|ist)(?>ist|is)", []),
        (r"(?:(?:is|ist) ){0,3}+", []),  # a round goes back within itself
    ],
)
def test_an_alternative_behind_its_own_beginning_is_seen(pattern: str, never: list[str]) -> None:
    assert hidden(re.compile(pattern)) == never
