"""Personal data and secrets in a text: find, redact, pseudonymise, count.

Rules find e-mail addresses, phone numbers, cards, IBANs, IP addresses and secrets, also in
disguised forms (`unmask`). Names of people, postal addresses and descriptions are not found. No
value is stored or printed: findings are positions, tallies are numbers.

A search takes time linear in the text (`rules`). Texts longer than WINDOW are read in windows, so
memory is bounded by a window and the findings. `search_process` runs it in a process with a
deadline.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from slmctl.errors import UsageError
from slmctl.sensitive.phones import phones
from slmctl.sensitive.rules import (
    SAID_AT,
    Rule,
    RuleMatch,
    cards,
    digit_count,
    emails,
    holds,
    ibans,
    ips,
)
from slmctl.sensitive.secrets import NAMES as SECRET_NAMES
from slmctl.sensitive.secrets import secrets
from slmctl.sensitive.stand_ins import KINDS as HAVE_STAND_INS
from slmctl.sensitive.stand_ins import stand_in
from slmctl.sensitive.unmask import BRACKETED, FOLDS, TWO_NUMBERS, is_encoded, views

Action = Literal["keep", "redact", "pseudonymise", "drop", "refuse"]
Fate = Literal["keep", "drop", "refuse"]  # for a row; refuse ends the run
FATES: tuple[Fate, ...] = ("keep", "drop", "refuse")  # from the mildest to the strictest
RANKS: dict[Action, int] = {"refuse": 0, "drop": 1, "redact": 2, "pseudonymise": 2, "keep": 3}
RULES: dict[str, Rule] = {
    "email": emails,
    "phone": phones,
    "card": cards,
    "iban": ibans,
    "ip": ips,
    "secret": secrets,
}
MIN_KEY = 16  # bytes; a shorter key could be found by trying
# Characters of a window, and characters after it into which a finding may reach: the longest are
# private keys of some 20,000 characters.
WINDOW, OVERLAP = 1 << 17, 1 << 15
CONTEXT = 1 << 9  # characters before a window that are read as well
PASSES = 4  # searches after which a value is replaced up to the end of its line
KINDS = tuple(RULES)
NUMBERS = {"card": 0, "iban": 0}  # may hold what looks like a phone number


@dataclass(frozen=True)
class Finding:
    """A sensitive span, `text[start:end]`, with its kind and the rule
    that matched, but without its value.
    """

    kind: str
    rule: str
    start: int
    end: int


@dataclass(frozen=True)
class Applied:
    """A text after a policy.

    Attributes:
        text: The text with replacements; the original text if the action is `drop` or `refuse`.
        findings: The findings in order, then those that show beside a replaced one, with positions
            in that text.
        action: `keep` the row, `drop` it, or `refuse` the run.
        sensitive: True if `text` still holds a finding.
    """

    text: str = field(repr=False)
    findings: tuple[Finding, ...] = ()
    action: Fate = "keep"
    sensitive: bool = False


def find(text: str, kinds: Iterable[str] = KINDS) -> list[Finding]:
    """The findings of these kinds in a text, in order and without
    overlap; of overlapping ones the longest.
    """
    return [candidate.finding for candidate in _candidates(text, dict.fromkeys(kinds, 0))]


@dataclass(frozen=True)
class SensitivePolicy:
    """An action for each kind of finding.

    Attributes:
        actions: Action by kind; a missing kind is not searched.
        key: Secret for stand-ins, at least MIN_KEY bytes; required if a kind is pseudonymised.
    """

    actions: Mapping[str, Action]
    key: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        for kind, action in self.actions.items():
            if kind not in KINDS:
                raise UsageError(
                    f"'{kind}' is not a kind of sensitive data", hint=f"kinds: {', '.join(KINDS)}"
                )
            if action == "pseudonymise" and kind not in HAVE_STAND_INS:
                raise UsageError(f"there are no stand-ins for '{kind}'", hint=f"{kind}: redact")
            if action == "pseudonymise" and len(self.key) < MIN_KEY:
                raise UsageError(
                    f"{kind}: pseudonymise needs a key of at least {MIN_KEY} bytes",
                    hint="leave prepare.sensitive.pseudonym_key out, and one is made",
                )

    def apply(self, text: str) -> Applied:
        """The text with its findings kept or replaced by kind, and the action for its row.

        The text is searched until it shows nothing more, with marks that no rule reads in place of
        values; stand-ins are written last, since a number directly behind digits is none.
        """
        ranks = {kind: RANKS[action] for kind, action in self.actions.items()}
        marked = text
        marks, findings = list[Mark](), list[Finding]()
        for searches in itertools.count():
            candidates = _candidates(marked, ranks)
            replaced = [each for each in candidates if ranks[each.match.kind] < RANKS["keep"]]
            findings += [candidate.finding for candidate in (replaced if searches else candidates)]
            actions = {self.actions[finding.kind] for finding in findings}
            if "refuse" in actions or "drop" in actions:
                return Applied(
                    text,
                    tuple(findings),
                    "refuse" if "refuse" in actions else "drop",
                    sensitive=True,
                )
            if not replaced:
                break
            if searches >= PASSES:
                replaced = _to_line_ends(marked, replaced, whole=searches > PASSES)
            before = marked
            marked, marks = self._marked(before, replaced, marks)
            if marked == before:  # nothing but marks is left
                break
        written = _with_stand_ins(marked, marks)
        left = _candidates(written, ranks) if written != marked else candidates
        # a stand-in and what is beside it
        if any(ranks[each.match.kind] < RANKS["keep"] for each in left):
            written, left = marked, candidates
        return Applied(written, tuple(findings), "keep", sensitive=bool(left))

    def _marked(
        self, text: str, candidates: list[Candidate], marks: list[Mark]
    ) -> tuple[str, list[Mark]]:
        """Returns (text with `[KIND]` in place of each candidate, all marks in it)."""
        spans = [
            (mark.start, mark.end, text[mark.start : mark.end], mark.stand_in) for mark in marks
        ]
        starts = [candidate.start for candidate in candidates]
        ends = [candidate.end for candidate in candidates]
        spans = [
            span
            for span in spans
            if bisect.bisect_left(starts, span[1]) == bisect.bisect_right(ends, span[0])
        ]
        for start, end, match, form in candidates:
            mark, pseudonymised = (
                f"[{match.kind.upper()}]",
                self.actions[match.kind] == "pseudonymise",
            )
            spans.append(
                (
                    start,
                    end,
                    mark,
                    stand_in(match, form, self.key, _is_clean) if pseudonymised else mark,
                )
            )
        pieces, placed = list[str](), list[Mark]()
        done = length = 0
        for start, end, mark, stand in sorted(spans):
            pieces += [text[done:start], mark]
            length += start - done + len(mark)
            placed.append(Mark(length - len(mark), length, stand))
            done = end
        return "".join([*pieces, text[done:]]), placed


def _with_stand_ins(marked: str, marks: list[Mark]) -> str:
    pieces, done = list[str](), 0
    for start, end, written in marks:
        pieces += [marked[done:start], written]
        done = end
    return "".join([*pieces, marked[done:]])


def _to_line_ends(text: str, candidates: list[Candidate], *, whole: bool) -> list[Candidate]:
    """Candidates, each up to the end of its line: of values in a row every search shows one more.

    With `whole` also from its begin, since some show from the last one to the first.
    """
    longer, done = list[Candidate](), 0
    for candidate in candidates:
        if candidate.start >= done:
            line_end = text.find("\n", candidate.end)
            done = line_end if line_end >= 0 else len(text)
            start = text.rfind("\n", 0, candidate.start) + 1 if whole else candidate.start
            longer.append(candidate._replace(start=start, end=done))
    return longer


@dataclass(frozen=True)
class Tally:
    """Number of findings by column or role, rule and action; tallies
    of several processes can be merged.
    """

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (column, rule, action)

    def add(self, where: str, applied: Applied, policy: SensitivePolicy) -> None:
        """Count one text of the column or role `where`."""
        for finding in applied.findings:
            self.counts[where, finding.rule, policy.actions[finding.kind]] += 1

    def merge(self, other: Tally) -> None:
        """Add the counts of another process."""
        self.counts.update(other.counts)


# Searching


class Candidate(NamedTuple):
    """A match with its span in the original text; `form` is the
    written value with disguises undone.
    """

    start: int
    end: int
    match: RuleMatch
    form: str

    @property
    def finding(self) -> Finding:
        return Finding(self.match.kind, self.match.rule, self.start, self.end)


class Mark(NamedTuple):
    """A place in a text where a value was, and what is written there in
    the end: the mark itself, or a stand-in.
    """

    start: int
    end: int
    stand_in: str


_SIGNS = b"0123456789@:=_-%&\\<[({|"
_INVISIBLE = bytes([*range(9), *range(14, 32), 127])
_OTHERS = bytes(set(range(256)) - set(_SIGNS + _INVISIBLE))
_PREFIXES = (
    "sk-",
    "xox",
    "glpat-",
    "-begin ",
    "xapp-",
    "gocspx-",
    "xai-",
    "key-",
    "npm_",
    "pypi-",
    "slm-",
    " -u ",
    "--user",
    " -p",
)
_MARKS = ("-at-", "*at*", "_at_", "/at/", "arroba", "arobase", "klammeraffe", "ät ", "{ssha")
_NAMES = tuple(filter(str.isascii, SECRET_NAMES))  # the words that an ASCII text may hold
_PERCENT = re.compile(r"%[0-9a-f]{2}")


def _may_hold(text: str) -> bool:
    """False if no rule can match: a cheap test for signs and words of
    which every match holds at least one.
    """
    folded = text if text.isascii() else text.translate(FOLDS)
    low = folded.lower()
    signs = low.encode(errors="replace").translate(None, _OTHERS)
    return (bool(signs) and _signs_tell(low, signs)) or _words_tell(low) or is_encoded(folded)


def _signs_tell(text: str, signs: bytes) -> bool:
    if (
        b"@" in signs
        or b"_" in signs
        or b"\\" in signs
        or (b"%" in signs and _PERCENT.search(text))
    ):
        return True
    if len(signs) > 2 and digit_count(text) > 2:
        return True
    if text.count(":") > 3 or "::" in text or (b"=" in signs and "=40" in text):
        return True
    if b"-" in signs and holds(text, _PREFIXES):
        return True
    if b"&" in signs and (";" in text or "&#" in text):
        return True
    if (
        b"(" in signs or b"[" in signs or b"{" in signs or b"<" in signs or b"|" in signs
    ) and BRACKETED.search(text):
        return True
    return bool(signs.translate(None, _SIGNS))  # control characters may hide a value


def _words_tell(text: str) -> bool:
    """True if a word could belong to a match. Written out, since a loop
    over the words would take too long.
    """
    if text.count(" ") * 4 > len(text):  # s p a c e d
        return True
    if ("at " in text and SAID_AT.search(text)) or holds(text, _MARKS):
        return True
    if "phrase" in text or holds(text, _NAMES if text.isascii() else SECRET_NAMES):
        return True
    if "akia" in text or "asia" in text or "eyj" in text or "aiza" in text or "sg." in text:
        return True
    counts = "one" in text or "two" in text or "three" in text or "four" in text or "five" in text
    counts = counts or "six" in text or "seven" in text or "eight" in text or "nine" in text
    return (counts or "zero" in text) and TWO_NUMBERS.search(text) is not None


def _candidates(text: str, ranks: Mapping[str, int]) -> list[Candidate]:
    """The matches of the ranked kinds, in order and without overlap: of
    overlapping ones that of the lowest rank.
    """
    return list(_in_windows(text, ranks)) if len(text) > WINDOW else _in_window(text, ranks)


def _in_window(text: str, ranks: Mapping[str, int]) -> list[Candidate]:
    if not _may_hold(text):
        return []
    candidates = [
        Candidate(*view.origin(match.start, match.end), match, view.text[match.start : match.end])
        for view in views(text)
        for rule in RULES.values()
        for match in rule(view.text)
    ]
    numbers = _without_overlap([each for each in candidates if each.match.kind in NUMBERS], NUMBERS)
    apart = _without_overlap([each for each in candidates if not _is_part(each, numbers)], ranks)
    return [candidate for candidate in apart if candidate.match.kind in ranks]


def _is_part(candidate: Candidate, numbers: list[Candidate]) -> bool:
    """True for a phone number within a longer card or IBAN: digits
    of that one, also where it is kept.
    """
    at = bisect.bisect_right(numbers, candidate.start, key=lambda each: each.start)
    if not at or candidate.match.kind != "phone":
        return False
    number = numbers[at - 1]
    return (
        candidate.end <= number.end and candidate.end - candidate.start < number.end - number.start
    )


def _in_windows(text: str, ranks: Mapping[str, int]) -> Iterator[Candidate]:
    """The matches in a text longer than WINDOW.

    Each window yields the matches that begin in it, and is searched with CONTEXT characters before
    and OVERLAP characters after it, so matches up to these lengths are found as in the whole text.
    """
    first, done = 0, 0  # start of the window, and end of the last match
    while first < len(text):
        start = max(0, first - CONTEXT)
        end = min(len(text), first + WINDOW + OVERLAP)
        after = len(text) if end == len(text) else first + WINDOW
        for candidate in _in_window(text[start:end], ranks):
            begin, stop = max(start + candidate.start, done), start + candidate.end
            if stop > max(done, first) and begin < after:
                yield candidate._replace(start=begin, end=stop)
                done = stop
        first = after


def _without_overlap(candidates: list[Candidate], ranks: Mapping[str, int]) -> list[Candidate]:
    """Of overlapping candidates that of the lowest rank, and of these the longest, widened to cover
    the others too.

    So no part of a value remains. Candidates are taken in that order, unless they overlap a taken
    one; the time is that of sorting.
    """

    def order(each: Candidate) -> tuple[int, int, int, int]:
        return (
            ranks.get(each.match.kind, len(RANKS)),
            each.start - each.end,
            -len(each.form),
            each.start,
        )

    taken: list[Candidate] = []  # sorted by start
    # start of a taken candidate -> the span that it must cover
    covered: dict[int, tuple[int, int]] = {}
    for candidate in sorted(candidates, key=order):
        at = bisect.bisect_left(taken, candidate.end, key=lambda each: each.start)
        if at and taken[at - 1].end > candidate.start:
            start, end = covered[taken[at - 1].start]
            covered[taken[at - 1].start] = min(start, candidate.start), max(end, candidate.end)
            continue
        taken.insert(at, candidate)
        covered[candidate.start] = candidate.start, candidate.end
    return _widened(taken, covered)


def _widened(taken: list[Candidate], covered: dict[int, tuple[int, int]]) -> list[Candidate]:
    """The taken candidates in order, each widened to its covered
    span, but not into its neighbours.
    """
    result, before = list[Candidate](), 0
    for k, candidate in enumerate(taken):
        start, end = covered[candidate.start]
        limit = taken[k + 1].start if k + 1 < len(taken) else end
        result.append(
            candidate._replace(start=max(start, before), end=min(end, max(limit, candidate.end)))
        )
        before = result[-1].end
    return result


def _is_clean(text: str) -> bool:
    return not find(text)
