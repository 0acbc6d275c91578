"""Personal data and secrets in a text: find, redact, pseudonymise, count.

Rules find e-mail addresses, phone numbers, cards, IBANs, IP addresses and secrets, also through what people do to
hide them (`unmask`). Names of people, addresses and descriptions are not found. No value is kept, printed or counted:
findings are positions, tallies are numbers.

A search takes time linear in the text (`rules`); texts longer than WINDOW are read in windows, so its memory is that of
a window and the findings. `search_process` runs it in a process with a deadline.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypedDict

from slmctl.errors import UsageError
from slmctl.sensitive.phones import phones
from slmctl.sensitive.rules import SAID_AT, Rule, RuleMatch, cards, digit_count, emails, holds, ibans, ips
from slmctl.sensitive.secrets import FOREIGN, secrets
from slmctl.sensitive.secrets import NAMES as SECRET_NAMES
from slmctl.sensitive.stand_ins import KINDS as HAVE_STAND_INS
from slmctl.sensitive.stand_ins import stand_in
from slmctl.sensitive.unmask import FOLDS, TWO_NUMBERS, is_encoded, views

Action = Literal["keep", "redact", "pseudonymise", "drop", "refuse"]
Fate = Literal["keep", "drop", "refuse"]  # of a row; refuse ends the run
FATES: tuple[Fate, ...] = ("keep", "drop", "refuse")  # from the mildest
RULES: dict[str, Rule] = {
    "email": emails, "phone": phones, "card": cards, "iban": ibans, "ip": ips, "secret": secrets,
}  # fmt: skip
MIN_KEY = 16  # bytes; a shorter key could be found by trying
# Characters that are read in all ways at once, those after them that a finding may reach into, and those before them
# that may say what it is. The longest findings are private keys of some 20,000 characters.
WINDOW, OVERLAP, CONTEXT = 1 << 17, 1 << 15, 1 << 9
PASSES = 4  # text beside a replaced value may be a value itself now
KINDS = tuple(RULES)


@dataclass(frozen=True)
class Finding:
    """A sensitive span, `text[start:end]`, with its kind and the rule that matched; never the value itself."""

    kind: str
    rule: str
    start: int
    end: int


@dataclass(frozen=True)
class Applied:
    """A text after a policy.

    Attributes:
        text: The text with the policy's replacements; the original text for a row to drop or a run to refuse.
        findings: In order, as positions in the original text.
        action: The fate of the row: `keep` it, `drop` it, or `refuse` the run.
        sensitive: The text still holds a finding.
    """

    text: str = field(repr=False)
    findings: tuple[Finding, ...] = ()
    action: Fate = "keep"
    sensitive: bool = False


def find(text: str, kinds: Iterable[str] = KINDS) -> list[Finding]:
    """The findings of some kinds in a text, in order and without overlap; of those that overlap, the longest."""
    return [candidate.finding for candidate in _candidates(text, kinds)]


@dataclass(frozen=True)
class SensitivePolicy:
    """An action for each kind of finding.

    Attributes:
        actions: Action by kind; a kind left out is not looked for.
        key: Secret that stand-ins are made with, at least MIN_KEY bytes; needed when a kind is pseudonymised.
    """

    actions: Mapping[str, Action]
    key: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        for kind, action in self.actions.items():
            if kind not in KINDS:
                raise UsageError(f"'{kind}' is not a kind of sensitive data", hint=f"kinds: {', '.join(KINDS)}")
            if action == "pseudonymise" and kind not in HAVE_STAND_INS:
                raise UsageError(f"there are no stand-ins for '{kind}'", hint=f"{kind}: redact")
            if action == "pseudonymise" and len(self.key) < MIN_KEY:
                raise UsageError(
                    f"{kind}: pseudonymise needs a key of at least {MIN_KEY} bytes",
                    hint="leave prepare.sensitive.pseudonym_key out, and one is made",
                )

    def apply(self, text: str) -> Applied:
        """The text with the findings of each kind kept or replaced, and the fate of its row."""
        candidates = _candidates(text, self.actions)
        if not candidates:
            return Applied(text)
        findings = tuple(candidate.finding for candidate in candidates)
        actions = {self.actions[finding.kind] for finding in findings}
        fate = max((fate for fate in FATES if fate == "keep" or fate in actions), key=FATES.index)
        if fate != "keep":
            return Applied(text, findings, fate, sensitive=True)
        replaced = self._replaced(text, candidates)
        for _ in range(PASSES):
            if replaced == text:
                break
            text, replaced = replaced, self._replaced(replaced, _candidates(replaced, self.actions))
        return Applied(replaced, findings, "keep", sensitive="keep" in actions)

    def _replaced(self, text: str, candidates: list[Candidate]) -> str:
        pieces, done = [], 0
        for start, end, match, form in candidates:
            action = self.actions[match.kind]
            if action == "keep":
                continue
            mark = f"[{match.kind.upper()}]"
            pieces += [text[done:start], mark if action == "redact" else stand_in(match, form, self.key, _is_clean)]
            done = end
        return "".join([*pieces, text[done:]])


class TallyJson(TypedDict):
    """A tally as JSON; `by_column` is column: rule: action: count."""

    total: int
    texts: dict[str, int]
    by_kind: dict[str, int]
    by_column: dict[str, dict[str, dict[str, int]]]


@dataclass(frozen=True)
class Tally:
    """Number of findings by column or role, rule and action. Sums add up across processes."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (column, rule, action)
    texts: Counter[str] = field(default_factory=Counter)  # column: texts with at least one finding

    def add(self, where: str, applied: Applied, policy: SensitivePolicy) -> None:
        """Count one text of the column or role `where`."""
        for finding in applied.findings:
            self.counts[where, finding.rule, policy.actions[finding.kind]] += 1
        if applied.findings:
            self.texts[where] += 1

    def merge(self, other: Tally) -> None:
        """Add the counts of another process."""
        self.counts.update(other.counts)
        self.texts.update(other.texts)

    def to_json(self) -> TallyJson:
        """The tally as JSON: findings in all, by kind, by column, rule and action; texts with a finding by column."""
        by_column: dict[str, dict[str, dict[str, int]]] = {}
        by_kind: Counter[str] = Counter()
        for (where, rule, action), count in sorted(self.counts.items()):
            by_column.setdefault(where, {}).setdefault(rule, {})[action] = count
            by_kind[rule.partition("/")[0]] += count
        return {
            "total": by_kind.total(),
            "texts": dict(sorted(self.texts.items())),
            "by_kind": dict(sorted(by_kind.items())),
            "by_column": by_column,
        }


# Searching


class Candidate(NamedTuple):
    """A match, as a span of the original text, and how the value was written, disguises undone."""

    start: int
    end: int
    match: RuleMatch
    form: str

    @property
    def finding(self) -> Finding:
        return Finding(self.match.kind, self.match.rule, self.start, self.end)


_SIGNS = b"0123456789@:=_-%&\\<[({"
_INVISIBLE = bytes([*range(9), *range(14, 32), 127])
_OTHERS = bytes(set(range(256)) - set(_SIGNS + _INVISIBLE))
_PREFIXES = ("sk-", "xox", "glpat-", "-begin ", "xapp-", "gocspx-", "xai-", "key-", "npm_", "pypi-", "slm-", " -u ",
             "--user", " -p")  # fmt: skip
_BRACKETED = ("(a)", "at)", "at]", "at}", "at>", "at )", "at ]", "(@", "[@", "-at-", "*at*", "_at_", "(ät", "arroba")
_FOREIGN = tuple(filter(str.isascii, FOREIGN))  # that a text of ASCII may hold
_PERCENT = re.compile(r"%[0-9a-f]{2}")
_SAID_IS = re.compile(r"(?:is|was|ist|lautet|to|=):? |: |(?:\bpwd?|p/w|code|wor[dt]) |[\"'] ?,? ?[\"']")


def _may_hold(text: str) -> bool:
    """True if a rule could match: a cheap look at the signs and words that every match holds at least one of."""
    folded = text if text.isascii() else text.translate(FOLDS)
    low = folded.lower()
    signs = low.encode(errors="replace").translate(None, _OTHERS)
    return (bool(signs) and _signs_tell(low, signs)) or _words_tell(low) or is_encoded(folded)


def _signs_tell(text: str, signs: bytes) -> bool:
    if b"@" in signs or b"_" in signs or b"\\" in signs or (b"%" in signs and _PERCENT.search(text)):
        return True
    if len(signs) > 2 and digit_count(text) > 2:
        return True
    assigns = b":" in signs or b"=" in signs or b"<" in signs
    if assigns and (text.count(":") > 3 or holds(text, SECRET_NAMES) or "=40" in text):
        return True
    if b"-" in signs and holds(text, _PREFIXES):
        return True
    if (b"&" in signs and (";" in text or "&#" in text)) or holds(text, _BRACKETED):
        return True
    return bool(signs.translate(None, _SIGNS))  # a control character hides something


def _words_tell(text: str) -> bool:
    """Written out one by one: a loop over the words would cost more than all the rest."""
    if text.count(" ") * 4 > len(text):  # s p a c e d
        return True
    if "at " in text and SAID_AT.search(text):
        return True
    named = "pass" in text or "key" in text or "token" in text or "kennwort" in text or "pw" in text or "p/w" in text
    if named and _SAID_IS.search(text):
        return True
    if holds(text, _FOREIGN if text.isascii() else FOREIGN):
        return True
    if "akia" in text or "asia" in text or "eyj" in text or "aiza" in text or "sg." in text or "bearer" in text:
        return True
    return (
        "one" in text or "two" in text or "three" in text or "four" in text or "five" in text or "six" in text
        or "seven" in text or "eight" in text or "nine" in text or "zero" in text
    ) and TWO_NUMBERS.search(text) is not None  # fmt: skip


def _candidates(text: str, kinds: Iterable[str]) -> list[Candidate]:
    """The findings of some kinds in order, without overlap."""
    searched = frozenset(kinds)
    candidates = _in_windows(text) if len(text) > WINDOW else _in_window(text)
    return [candidate for candidate in candidates if candidate.match.kind in searched]


def _in_window(text: str) -> list[Candidate]:
    if not _may_hold(text):
        return []
    return _without_overlap(
        [
            Candidate(*view.origin(match.start, match.end), match, view.text[match.start : match.end])
            for view in views(text)
            for rule in RULES.values()
            for match in rule(view.text)
        ]
    )


def _in_windows(text: str) -> Iterator[Candidate]:
    """The findings in a text that is too long to be read in all ways at once.

    Each window decides on the findings that begin in it, with CONTEXT characters before it and OVERLAP behind it in
    view, so what is shorter than these is found as in one piece.
    """
    first, done = 0, 0  # where the window begins to decide, and the end of the last finding
    while first < len(text):
        start = max(0, first - CONTEXT)
        end = min(len(text), first + WINDOW + OVERLAP)
        after = len(text) if end == len(text) else first + WINDOW
        for candidate in _in_window(text[start:end]):
            begin, stop = max(start + candidate.start, done), start + candidate.end
            if stop > max(done, first) and begin < after:
                yield candidate._replace(start=begin, end=stop)
                done = stop
        first = after


def _without_overlap(candidates: list[Candidate]) -> list[Candidate]:
    """Of candidates that overlap, the longest, widened by what the others cover beyond it, lest that be left.

    Candidates are taken from the longest on, each unless it overlaps one that was taken, so the time is that of
    sorting them.
    """
    taken: list[Candidate] = []  # by start
    covered: dict[int, tuple[int, int]] = {}  # start of a candidate that was taken: the span it has to cover
    for candidate in sorted(candidates, key=lambda each: (each.start - each.end, -len(each.form), each.start)):
        at = bisect.bisect_left(taken, candidate.end, key=lambda each: each.start)
        if at and taken[at - 1].end > candidate.start:
            start, end = covered[taken[at - 1].start]
            covered[taken[at - 1].start] = min(start, candidate.start), max(end, candidate.end)
            continue
        taken.insert(at, candidate)
        covered[candidate.start] = candidate.start, candidate.end
    return _widened(taken, covered)


def _widened(taken: list[Candidate], covered: dict[int, tuple[int, int]]) -> list[Candidate]:
    """Candidates in order, each with the span that it has to cover as far as its neighbours leave it free."""
    result, before = list[Candidate](), 0
    for k, candidate in enumerate(taken):
        start, end = covered[candidate.start]
        limit = taken[k + 1].start if k + 1 < len(taken) else end
        result.append(candidate._replace(start=max(start, before), end=min(end, max(limit, candidate.end))))
        before = result[-1].end
    return result


def _is_clean(text: str) -> bool:
    return not find(text)
