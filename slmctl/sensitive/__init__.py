"""Personal data and secrets in a text: find, redact, pseudonymise, count.

Found are e-mail addresses, phone numbers, cards, IBANs, IP addresses and secrets, by rules that also see through
what people do to hide them (`unmask`); with presidio installed and asked for, national identity numbers too.
Names of people, addresses and descriptions are not found. No value is kept, printed or counted: findings are
positions, tallies are numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from slmctl.errors import UsageError
from slmctl.sensitive.phones import phones
from slmctl.sensitive.rules import SAID_AT, Match, Rule, cards, digit_count, emails, ibans, ips
from slmctl.sensitive.secrets import NAMES as SECRET_NAMES
from slmctl.sensitive.secrets import secrets
from slmctl.sensitive.stand_ins import KINDS as HAVE_STAND_INS
from slmctl.sensitive.stand_ins import stand_in
from slmctl.sensitive.unmask import FOLDS, TWO_NUMBERS, View, is_encoded, views

Action = Literal["keep", "redact", "pseudonymise", "drop", "refuse"]
Fate = Literal["keep", "drop", "refuse"]  # of a row; refuse ends the run
FATES: tuple[Fate, ...] = ("keep", "drop", "refuse")  # from the mildest
Engine = Literal["rules", "presidio"]
RULES: dict[str, Rule] = {
    "email": emails, "phone": phones, "card": cards, "iban": ibans, "ip": ips, "secret": secrets,
}  # fmt: skip
MIN_KEY = 16  # bytes; a shorter key could be found by trying
PASSES = 4  # what stood against a value that is replaced may now be one itself
KINDS = (*RULES, "id")  # id: national identity numbers, by presidio alone


@dataclass(frozen=True)
class Finding:
    """That `text[start:end]` is sensitive, by which rule; never the value itself."""

    kind: str
    rule: str
    start: int
    end: int


@dataclass(frozen=True)
class Applied:
    """A text after a policy.

    Attributes:
        text: With what the policy replaces replaced. Of a row to drop or a run to refuse, what was given.
        findings: What was found, positions in the text that was given.
        action: What is to become of the row: `keep` it, `drop` it, or `refuse` the run.
        sensitive: Something was found and left in the text.
    """

    text: str = field(repr=False)
    findings: tuple[Finding, ...] = ()
    action: Fate = "keep"
    sensitive: bool = False


def find(text: str, kinds: Iterable[str] = KINDS, *, engine: Engine = "rules") -> list[Finding]:
    """What is sensitive in a text, in order and without overlap; of what overlaps, the longest.

    Args:
        text: Any text.
        kinds: Which of `KINDS` to look for.
        engine: `presidio` adds its recognisers of national identity numbers.

    Raises:
        ModuleNotFoundError: The engine is presidio and it is not installed.
    """
    return [finding for finding, _, _ in _found(text, kinds, engine)]


@dataclass(frozen=True)
class Policy:
    """What to do with each kind that is found.

    Attributes:
        actions: An action for each kind to look for; a kind left out is not looked for.
        key: Makes stand-ins that nobody can trace back without it; needed when a kind is pseudonymised.
        engine: Who looks.
    """

    actions: Mapping[str, Action]
    key: bytes = field(default=b"", repr=False)
    engine: Engine = "rules"

    def __post_init__(self) -> None:
        for kind, action in self.actions.items():
            if kind not in KINDS:
                raise UsageError(f"'{kind}' is no kind of sensitive data", hint=f"known: {', '.join(KINDS)}")
            if action == "pseudonymise" and kind not in HAVE_STAND_INS:
                raise UsageError(f"there are no stand-ins for '{kind}'", hint=f"{kind}: redact")
            if action == "pseudonymise" and len(self.key) < MIN_KEY:
                raise UsageError(
                    f"{kind}: pseudonymise needs a key of at least {MIN_KEY} bytes",
                    hint="leave prepare.sensitive.pseudonym_key out, and one is made",
                )

    def apply(self, text: str) -> Applied:
        """Find, and do what is to be done in the text."""
        found = _found(text, self.actions, self.engine)
        if not found:
            return Applied(text)
        wanted = {self.actions[finding.kind] for finding, _, _ in found}
        findings = tuple(finding for finding, _, _ in found)
        fate = max((fate for fate in FATES if fate == "keep" or fate in wanted), key=FATES.index)
        if fate != "keep":
            return Applied(text, findings, fate, sensitive=True)
        replaced = self._replaced(text, found)
        for _ in range(PASSES):
            if replaced == text:
                break
            text, replaced = replaced, self._replaced(replaced, _found(replaced, self.actions, self.engine))
        return Applied(replaced, findings, "keep", sensitive="keep" in wanted)

    def _replaced(self, text: str, found: list[Found]) -> str:
        pieces, done = [], 0
        for finding, match, form in found:
            action = self.actions[finding.kind]
            if action == "keep":
                continue
            put = f"[{finding.kind.upper()}]" if action == "redact" else stand_in(match, form, self.key, _is_clean)
            pieces += [text[done : finding.start], put]
            done = finding.end
        return "".join([*pieces, text[done:]])


@dataclass(frozen=True)
class Tally:
    """How often each rule found something, by column or role and by what was done. Sums add up across processes."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (column, rule, action)
    texts: Counter[str] = field(default_factory=Counter)  # column: texts in which something was found

    def add(self, where: str, applied: Applied, policy: Policy) -> None:
        """Count one text of the column or role `where`."""
        for finding in applied.findings:
            self.counts[where, finding.rule, policy.actions[finding.kind]] += 1
        if applied.findings:
            self.texts[where] += 1

    def merge(self, other: Tally) -> None:
        """Add what another process counted."""
        self.counts.update(other.counts)
        self.texts.update(other.texts)

    def to_json(self) -> dict[str, Any]:
        """`{"total": n, "texts": {column: n}, "by_kind": {kind: n}, "by_column": {column: {rule: {action: n}}}}`."""
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


# Finding

Found = tuple[Finding, Match, str]  # with the match and how it was written, disguises undone

_SIGNS = b"0123456789@:=_-%&\\<[({"
_INVISIBLE = bytes([*range(9), *range(14, 32), 127])
_OTHERS = bytes(set(range(256)) - set(_SIGNS + _INVISIBLE))
_PREFIXES = ("sk-", "xox", "glpat-", "-begin ", "xapp-", "gocspx-", "xai-", "key-", "npm_", "pypi-")
_BRACKETED = ("at)", "at]", "at}", "at>", "at )", "at ]", "(@", "[@", "-at-", "*at*", "_at_", "(ät", "arroba")
_PERCENT = re.compile(r"%[0-9a-f]{2}")
_SAID_IS = re.compile(r"(?:is|was|ist|lautet|to|=|:) ")


def _may_hold(text: str) -> bool:
    """Whether anything could be found: a cheap look at the signs and words without which no rule matches."""
    given = text if text.isascii() else text.translate(FOLDS)
    text = given.lower()
    signs = text.encode(errors="replace").translate(None, _OTHERS)
    return (bool(signs) and _signs_tell(text, signs)) or _words_tell(text) or is_encoded(given)


def _signs_tell(text: str, signs: bytes) -> bool:
    if b"@" in signs or b"_" in signs or b"\\" in signs or (b"%" in signs and _PERCENT.search(text)):
        return True
    if len(signs) > 2 and digit_count(text) > 2:
        return True
    assigns = b":" in signs or b"=" in signs or b"<" in signs
    if assigns and (text.count(":") > 3 or any(name in text for name in SECRET_NAMES)):
        return True
    if b"-" in signs and any(prefix in text for prefix in _PREFIXES):
        return True
    if (b"&" in signs and ";" in text) or any(form in text for form in _BRACKETED):
        return True
    return bool(signs.translate(None, _SIGNS))  # a control character hides something


def _words_tell(text: str) -> bool:
    """Written out one by one: a loop over the words would cost more than all the rest."""
    if text.count(" ") * 4 > len(text):  # s p a c e d
        return True
    if "at " in text and SAID_AT.search(text):
        return True
    named = "pass" in text or "key" in text or "token" in text or "kennwort" in text or "pwd" in text
    if named and _SAID_IS.search(text):
        return True
    if "akia" in text or "asia" in text or "eyj" in text or "aiza" in text or "sg." in text or "bearer" in text:
        return True
    return (
        "one" in text or "two" in text or "three" in text or "four" in text or "five" in text or "six" in text
        or "seven" in text or "eight" in text or "nine" in text or "zero" in text
    ) and TWO_NUMBERS.search(text) is not None  # fmt: skip


def _found(text: str, kinds: Iterable[str], engine: Engine) -> list[Found]:
    if not _may_hold(text):
        return []
    candidates = [
        (Finding(kind, rule, *view.origin(start, end)), match, view.text[start:end])
        for view in views(text)
        for match in _matches(view, engine)
        for kind, rule, start, end, _ in (match,)
    ]
    wanted = frozenset(kinds)
    return [found for found in _without_overlap(candidates) if found[0].kind in wanted]


def _matches(view: View, engine: Engine) -> Iterator[Match]:
    if engine == "presidio":
        from slmctl.sensitive import presidio  # an extra, which takes seconds to import

        yield from presidio.identities(view.text)
    for rule in RULES.values():
        yield from rule(view.text)


def _without_overlap(candidates: list[Found]) -> list[Found]:
    """Of candidates that overlap, the longest; it takes over what the others cover beyond it, lest that be left."""
    result: list[Found] = []
    cluster: list[Found] = []
    end = -1
    for candidate in sorted(candidates, key=lambda found: found[0].start):
        if candidate[0].start >= end:
            result += _longest(cluster)
            cluster = []
        cluster.append(candidate)
        end = max(end, candidate[0].end)
    return result + _longest(cluster)


def _longest(cluster: list[Found]) -> list[Found]:
    if not cluster:
        return []
    best, match, form = max(cluster, key=lambda found: (found[0].end - found[0].start, len(found[2])))
    before = [found for found in cluster if found[0].end <= best.start]
    after = [found for found in cluster if found[0].start >= best.end]
    beside = [found[0] for found in cluster if found[0].end > best.start and found[0].start < best.end]
    start = max([min(found.start for found in beside), *(found[0].end for found in before)])
    end = min([max(found.end for found in beside), *(found[0].start for found in after)])
    whole = (Finding(best.kind, best.rule, start, end), match, form)
    return [*_without_overlap(before), whole, *_without_overlap(after)]


def _is_clean(text: str) -> bool:
    return not find(text)
