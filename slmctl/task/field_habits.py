"""Training rows -> what they tell of each field's values: by it a
marked place of a text is read as a value.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from slmctl.errors import DataError
from slmctl.task.evidence import Evidence, Span, dates, numbers_in, readings
from slmctl.task.spans import COUNTS, NAMED, Field, Targets, fits, leaves

# least share of values that stand in the text, or the whole text decides; enums
STANDING, STANDING_CHOICES = 0.5, 0.9
MOST_CHOICES = 50  # values of a field that is concluded
MOST_KNOWN = 5000  # spellings of a field that are kept
SHARED = 0.5  # least share of a field's texts that stand in several rows, or none of them is kept
LONGEST_WORDS = 40  # mean words of a value that can be tagged
NEARBY = 100  # characters around a mark in which a date or a pattern is looked for
CASES: dict[str, Callable[[str], str]] = {
    "": str,
    "upper": str.upper,
    "lower": str.lower,
    "title": str.title,
}
_CHUNK = re.compile(r"\S+")
_DIGIT_DATE = re.compile(
    r"(?<!\d)(?P<first>\d{1,2})\s?(?P<sign>[./-])\s?(?P<second>\d{1,2})\D+\d+\D*$"
)
_NEAREST = 0.6  # least likeness of a marked text and a value of an enum
Row = tuple[str, Any]  # a text and its answer


@dataclass(frozen=True)
class Habit:
    """Facts that training rows tell of a field.

    Attributes:
        values, standing: Numbers of values, and of those with a place.
        concluded: Values among which the whole text decides, of a field with values that do not
            stand there; null last. Of a text they are those of several rows.
        spellings: Values by the text in place of which they stand.
        shared: Texts of several rows, in lower case, with the number of rows: a marked part of one
            stands for the whole. Empty if fewer than SHARED of the field's texts are such.
        endings: Letters to cut off and to add, by the last letters of a marked text.
        case: One of CASES.
        month_first: The signs in dates of digits before which the month stands.
        decimal: The signs before three digits that are decimals.
        common: The commonest value of an enum or a number; of a text it could be a person's.
        left_out: A missing value is left out, and not null.
        place: Mean place among the values of its item, from 0.
    """

    values: int = 0
    standing: int = 0
    concluded: tuple[Any, ...] = ()
    spellings: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, int] = field(default_factory=dict)
    endings: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    case: str = ""
    month_first: str = ""
    decimal: str = ""
    common: Any = None
    left_out: bool = False
    place: float = 0.0


# Learning


def learn(
    fields: Sequence[Field], rows: Sequence[Row], made: Sequence[Targets]
) -> tuple[Habit, ...]:
    """The habits of each field, in training rows with their targets.

    Of texts they hold those alone that several rows share: a release carries them.

    Raises:
        DataError: The values of a field are too long.
    """
    by_path: dict[str, list[Any]] = {each.path: [] for each in fields}
    rows_with: dict[str, Counter[str]] = {each.path: Counter() for each in fields}
    for _, answer in rows:
        of_row = list(leaves(answer))
        for leaf in of_row:
            by_path.setdefault(leaf.path, []).append(leaf.value)
        for path, text in {(leaf.path, _folded(leaf.value)) for leaf in of_row}:
            rows_with.setdefault(path, Counter())[text] += 1
    missing = Counter(path for each in made for path in each.missing)
    habits = []
    for number, each in enumerate(fields):
        pairs = list(_pairs(each, number, rows, made))
        habit = _habit(each, by_path[each.path], missing[each.path], pairs)
        if habit.concluded and habit.values < len(rows):
            habit = replace(habit, concluded=(*habit.concluded, None))
        if each.kind == "text" and not each.pattern:
            habit = replace(habit, shared=_shared_texts(rows_with[each.path]))
        left_out = _left_out(each.path, [answer for _, answer in rows])
        habits.append(replace(habit, left_out=left_out, place=_place(number, fields, made)))
    return tuple(habits)


def _habit(
    each: Field, values: Sequence[Any], missing: int, pairs: Sequence[tuple[str, Any]]
) -> Habit:
    if each.kind == "text":
        _require_short(each, values)
    counts = Counter(map(key_of, values))
    common = None
    if each.choices or each.is_number:
        common = _commonest(counts)
    habit = Habit(len(values), len(values) - missing, common=common)
    least = STANDING_CHOICES if each.choices else STANDING
    if habit.standing < least * habit.values or set(each.choices) == {True, False}:
        return replace(habit, concluded=_concluded(each, counts))
    if each.kind == "date":
        return replace(habit, month_first=_month_first(pairs))
    if each.is_number:
        return replace(habit, decimal=_decimal(pairs))
    return replace(habit, case=_case(pairs), spellings=_spellings(pairs), endings=_endings(pairs))


def _require_short(each: Field, values: Sequence[Any]) -> None:
    words = sum(len(str(value).split()) for value in values)
    if words > LONGEST_WORDS * len(values):
        raise DataError(f"the values of '{each.path}' are long texts", hint=NAMED)


def _commonest(counts: Counter[str]) -> Any:
    """The commonest value; None without any."""
    return next((json.loads(key) for key, _ in counts.most_common(1)), None)


def _concluded(each: Field, counts: Counter[str]) -> tuple[Any, ...]:
    """The values among which a whole text decides; none if they are too many, or of a list."""
    shared = [key for key, count in counts.items() if count > 1 or each.choices]
    if each.listed or len(counts) > MOST_CHOICES:
        return ()
    return tuple(json.loads(key) for key in sorted(shared))


def _folded(value: Any) -> str:
    return spaced(str(value)).casefold()


def _shared_texts(rows_with: Counter[str]) -> dict[str, int]:
    """The commonest texts of a field that stand in the answers of several rows.

    None if most of its texts stand in one row alone: the others are shared by chance, and a release
    would carry names of persons.
    """
    shared = {text: rows for text, rows in rows_with.most_common(MOST_KNOWN) if rows > 1}
    return shared if sum(shared.values()) >= SHARED * rows_with.total() else {}


def key_of(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _pairs(
    each: Field, number: int, rows: Sequence[Row], made: Sequence[Targets]
) -> Iterator[tuple[str, Any]]:
    """(text of a mark, value) of each place of a field in training rows, each text once a row."""
    for (text, answer), targeted in zip(rows, made, strict=True):
        values = [leaf.value for leaf in leaves(answer) if leaf.path == each.path]
        spans = [mark.span for mark in targeted.marks if mark.field == number]
        for marked in sorted({spaced(text[start:end]) for start, end in spans}):
            yield marked, _likest(values, marked)


def _likest(values: Sequence[Any], marked: str) -> Any:
    """The value of a row that a marked text stands for."""
    if len(values) == 1:
        return values[0]
    evidence = Evidence(marked)
    exact = next((value for value in values if evidence.spans(value)), None)
    if exact is not None:
        return exact
    counted = COUNTS.get(marked.casefold())
    if counted in values:
        return counted
    return max(values, key=lambda value: _likeness(str(value), marked))


def _likeness(first: str, other: str) -> float:
    return difflib.SequenceMatcher(None, first.casefold(), other.casefold(), autojunk=False).ratio()


def spaced(text: str) -> str:
    """A text with one space in place of each white space."""
    return " ".join(text.split())


def _left_out(path: str, answers: Sequence[Any]) -> bool:
    """True for a field that answers leave out more often than they
    have null or an empty list there.
    """
    key, *rest = path.split(".", 1)
    name = key.removesuffix("[]")
    objects = [answer for answer in answers if isinstance(answer, dict)]
    if rest and not key.endswith("[]"):
        return _left_out(rest[0], [each.get(name) for each in objects])
    values = [each[name] for each in objects if name in each]
    empty = sum(value in (None, []) for value in values)
    return len(objects) - len(values) > empty


def _place(number: int, fields: Sequence[Field], made: Sequence[Targets]) -> float:
    """The mean number of marks of the same list before one of a
    field, up to the field's mark before.
    """
    group, places = fields[number].group, list[int]()
    for targeted in made if group else ():
        item: set[int] = set()
        for mark in targeted.marks:
            if fields[mark.field].group != group:
                continue
            item = set() if mark.field in item else item
            if mark.field == number:
                places.append(len(item))
            item.add(mark.field)
    return sum(places) / max(len(places), 1)


def _month_first(pairs: Iterable[tuple[str, Any]]) -> str:
    counts: Counter[tuple[str, bool]] = Counter()
    for marked, value in pairs:
        match = _DIGIT_DATE.search(marked)
        month, day = str(value)[5:7], str(value)[8:10]
        if match and month != day:
            parts = [match["first"].zfill(2), match["second"].zfill(2)]
            counts[match["sign"], parts == [month, day]] += 1
    return "".join(sign for sign in "./-" if counts[sign, True] > counts[sign, False])


def _decimal(pairs: Iterable[tuple[str, Any]]) -> str:
    counts: Counter[tuple[str, bool]] = Counter()
    for marked, value in pairs:
        values = sorted(readings(marked)) if marked[0].isdecimal() else []
        if len(values) == 2 and (sign := re.search(r"[.,]", marked)):
            counts[sign.group(), abs(value) == values[0]] += 1
    return "".join(sign for sign in ".," if counts[sign, True] > counts[sign, False])


def _case(pairs: Sequence[tuple[str, Any]]) -> str:
    texts = [(marked, str(value)) for marked, value in pairs]
    same = [(marked, text) for marked, text in texts if marked.casefold() == text.casefold()]

    def kept(name: str) -> tuple[int, bool]:
        """The number of values that a change of case gives; the same case comes first."""
        return sum(CASES[name](marked) == text for marked, text in same), not name

    return max(CASES, key=kept)


def _spellings(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Counter[str]] = {}
    for marked, value in pairs:
        seen.setdefault(marked.casefold(), Counter())[key_of(value)] += 1
    changed = {}
    for marked, counts in seen.items():
        value = _commonest(counts)
        # of one row they would tell it
        if counts.total() > 1 and str(value).casefold() != marked:
            changed[marked] = value
    return dict(itertools.islice(changed.items(), MOST_KNOWN))


def _alike(first: str, other: str) -> int:
    """The letters with which two texts begin alike."""
    pairs = zip(first, other, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _endings(pairs: Iterable[tuple[str, Any]]) -> dict[str, tuple[int, str]]:
    """The commonest change of an ending by the last one to three
    letters; none where nothing ever changes.
    """
    seen: dict[str, Counter[tuple[int, str]]] = {}
    for marked, value in pairs:
        folded, value_folded = marked.casefold(), str(value).casefold()
        same = _alike(folded, value_folded)
        cut, added = len(folded) - same, value_folded[same:]
        if not same or cut > 3 or len(added) > 3:
            continue
        for length in (1, 2, 3):
            seen.setdefault(folded[-length:], Counter())[cut, added] += 1
    commonest = {ending: counts.most_common(1)[0][0] for ending, counts in seen.items()}
    return commonest if any(change != (0, "") for change in commonest.values()) else {}


# Reading


def read(each: Field, habit: Habit, evidence: Evidence, span: Span) -> tuple[Any, Span]:
    """Returns (the value of a marked place, the place as it was
    read); None for a value that cannot be.
    """
    if each.kind == "date":
        return _date(habit, evidence, span)
    if each.is_number:
        return _number(each, habit, evidence, span)
    span = _whole_text(habit, evidence, _whole_words(evidence, span))
    marked = spaced(evidence.text[span[0] : span[1]])
    value = _spelt(habit, marked)
    if each.kind == "choice":
        return _chosen(each, value), span
    if each.pattern and not fits(each.pattern, str(value)):
        return _patterned(each, habit, evidence.text, span)
    return value, span


def _whole_words(evidence: Evidence, span: Span) -> Span:
    """A place, grown to whole words."""
    touched = evidence.touched(span)
    return (touched[0][0], touched[-1][1]) if touched else span


def _whole_text(habit: Habit, evidence: Evidence, span: Span) -> Span:
    """The place of the longest shared text that holds a marked one; else the place as it is."""
    if not habit.shared:
        return span
    nearby = evidence.touched((span[0] - NEARBY, span[1] + NEARBY))
    starts = [start for start, _ in nearby if start <= span[0]]
    ends = [end for _, end in reversed(nearby) if end >= span[1]]
    holding = sorted(itertools.product(starts, ends), key=lambda place: place[0] - place[1])
    texts = ((place, _folded(evidence.text[slice(*place)])) for place in holding)
    return next((place for place, text in texts if text in habit.shared), span)


def _spelt(habit: Habit, marked: str) -> Any:
    folded = marked.casefold()
    if folded in habit.spellings:
        return habit.spellings[folded]
    endings = [habit.endings.get(folded[-length:]) for length in (3, 2, 1)]
    cut, added = next(filter(None, endings), (0, ""))
    return CASES[habit.case](marked[: len(marked) - cut] + added)


def _chosen(each: Field, value: Any) -> Any:
    """The value of an enum that is spelt most like a text; None if none is like it."""

    def likeness(choice: Any) -> float:
        return _likeness(str(choice).replace("_", " "), str(value))

    best = max(each.choices, key=likeness)
    return best if likeness(best) >= _NEAREST else None


def _patterned(each: Field, habit: Habit, text: str, span: Span) -> tuple[Any, Span]:
    """The part of the surrounding words, without white space, that a
    pattern allows; the longest one first.
    """
    for chunk in _CHUNK.finditer(text, max(0, span[0] - NEARBY), span[1] + NEARBY):
        edges = [match.start() + chunk.start() for match in re.finditer(r"\b", chunk.group())]
        parts = [part for part in itertools.combinations(edges, 2) if _touching(part, span) > 0]
        for part in sorted(parts, key=lambda part: part[0] - part[1]):
            value = str(_spelt(habit, text[slice(*part)]))
            if fits(each.pattern, value):
                return value, part
    return None, span


def _touching(span: Span, other: Span) -> int:
    """The characters that two places share."""
    return min(span[1], other[1]) - max(span[0], other[0])


def _date(habit: Habit, evidence: Evidence, span: Span) -> tuple[Any, Span]:
    shift = max(0, span[0] - NEARBY)
    nearby = evidence.text[shift : span[1] + NEARBY]
    places = [(day, (start + shift, end + shift)) for day, (start, end) in dates(nearby)]

    def rank(reading: tuple[str, Span]) -> tuple[int, int, bool]:
        """A whole date comes before its month alone, and one of
        this time before one a century off.
        """
        day, place = reading
        return _touching(place, span), len(day), "1950" <= day < "2050"

    best = max(map(rank, places), default=(0, 0, False))
    if best[0] <= 0:
        return None, span
    days = [reading for reading in places if rank(reading) == best]
    sign = re.search(r"[./-]", evidence.text[slice(*days[0][1])])
    return days[-1 if sign and sign.group() in habit.month_first else 0]


def _number(each: Field, habit: Habit, evidence: Evidence, span: Span) -> tuple[Any, Span]:
    places = [(start, start + len(digits)) for start, digits in numbers_in(evidence.text)]
    touching = [place for place in places if _touching(place, span) > 0]
    if not touching:
        return COUNTS.get(_folded(evidence.text[slice(*span)])), span
    # of two the shorter one, where a space divides digits
    place = max(touching, key=lambda place: (_touching(place, span), place[0] - place[1]))
    digits = evidence.text[slice(*place)]
    values = sorted(readings(digits))
    if each.kind == "integer":
        values = [value for value in values if value.is_integer()]
    if not values:
        return None, span
    sign = re.search(r"[.,]", digits)
    has_decimals = sign is not None and sign.group() in habit.decimal
    value = values[0] if has_decimals else values[-1]
    return (int(value) if value.is_integer() else value), place
