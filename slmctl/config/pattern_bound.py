"""An upper bound on the steps that Python's regular expression engine can take by backtracking from
one start.

The bound follows from the syntax alone and holds for any text. For each part of a pattern, `ways`
counts the ways in which it can match, each of which the rest of the pattern may have to try;
`steps` counts the characters that are read to try all of them. A possessive repetition, an atomic
group and a look-around have one way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from re import _constants as codes  # type: ignore[attr-defined]  # the parser of `re` has no public name
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

UNBOUNDED = 1 << 62
MAX_STEPS = 2_000  # of a pattern in the config, from one start of a match
MOST = 100_000  # repetitions; a higher limit counts as unbounded
MAX_PATTERN = 500  # characters of a pattern, and of a replacement


def fault_of(pattern: str, replacement: str = "") -> str:
    """The reason why a pattern and its replacement are refused, as a sentence; '' for accepted
    ones.

    A server replaces in texts of any client, so the time may depend only on the text's length.
    """
    if max(len(pattern), len(replacement)) > MAX_PATTERN:
        return f"a pattern and its replacement have at most {MAX_PATTERN} characters each"
    try:
        compiled = re.compile(pattern)
        compiled.sub(replacement, "")
    except (re.error, OverflowError, RecursionError) as error:
        return f"'{pattern}' is no regular expression: {error}"
    except IndexError:
        return f"'{replacement}' names a group that '{pattern}' has not"
    if compiled.search(""):
        return (
            f"'{pattern}' also matches an empty text, so that something would stand between "
            "all letters"
        )
    steps = bound(compiled)
    if steps >= UNBOUNDED:
        return (
            f"'{pattern}' can take very long: a repetition without a limit stands before something "
            "else, "
            "or a group is matched again; write {0,80} in place of *, and {1,80} in place of +"
        )
    if steps > MAX_STEPS:
        return (
            f"'{pattern}' can take {steps:,} steps from one place, more than {MAX_STEPS:,}: "
            "lower its limits"
        )
    return ""


def bound(pattern: re.Pattern[str]) -> int:
    """Steps from one start of a match; UNBOUNDED if they grow with the text.

    An unlimited repetition is allowed where nothing after it can fail: it ends the match, and the
    next search starts after it.
    """
    return _sequence(list(parser.parse(pattern.pattern, pattern.flags)), tail=True)[1]


def _sequence(items: Sequence[Any], *, tail: bool) -> tuple[int, int]:
    ways, steps = 1, 0
    for k, item in enumerate(items):
        ends = tail and all(_may_be_empty(follows) for follows in items[k + 1 :])
        item_ways, item_steps = _item(item, tail=ends)
        steps += ways * item_steps
        ways *= item_ways
    return min(ways, UNBOUNDED), min(max(steps, 1), UNBOUNDED)


def _item(item: Any, *, tail: bool) -> tuple[int, int]:
    code, value = item
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        low, high = value[:2]
        body = list(value[2])
        is_possessive = code is codes.POSSESSIVE_REPEAT
        return _repeat(low, high, body, is_possessive=is_possessive, tail=tail)
    if code is codes.SUBPATTERN:
        return _sequence(list(value[3]), tail=tail)
    if code is codes.ATOMIC_GROUP:
        return 1, _sequence(list(value), tail=False)[1]
    if code in (codes.ASSERT, codes.ASSERT_NOT):
        return 1, _sequence(list(value[1]), tail=False)[1]
    if code is codes.BRANCH:
        parts = [_sequence(list(part), tail=tail) for part in value[1]]
        return sum(ways for ways, _ in parts), sum(steps for _, steps in parts)
    if code is codes.GROUPREF_EXISTS or code is codes.GROUPREF:
        return 1, UNBOUNDED
    return 1, 1


def _may_be_empty(item: Any) -> bool:
    code, value = item
    return code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT) and value[0] == 0


def _repeat(
    low: int, high: int, body: list[Any], *, is_possessive: bool, tail: bool
) -> tuple[int, int]:
    if tail:
        # further rounds only lengthen a match, and the next search starts after it
        high = min(high, low + 1)
    if high is codes.MAXREPEAT or high > MOST:
        return 1, UNBOUNDED
    ways, steps = _sequence(body, tail=False)
    if is_possessive:  # each round is settled before the next begins
        return 1, min(high * steps, UNBOUNDED)
    total_ways = total_steps = 0
    for rounds in range(high + 1):
        total_ways += ways**rounds if rounds >= low else 0
        total_steps += steps * ways**rounds if rounds < high else 0
        if total_steps > UNBOUNDED or total_ways > UNBOUNDED:
            return UNBOUNDED, UNBOUNDED
    return max(total_ways, 1), max(total_steps, 1)
