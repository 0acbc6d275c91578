"""The rules of `slmctl.sensitive`: recall, precision, false alarms and speed; phone numbers beside
libphonenumber.

    python -m benchmarks.detectors DATA

DATA holds public data sets as `../shared/data/` does. All else that is searched is seeded: lines
with phone numbers of 12 countries (`benchmarks.phone_lines`), prompts of invented people with a
value of each kind (`tests/support/disguises.py`), and the same values in every encoding of its
tables. A value counts as found where findings cover its place; an alarm is false where it covers no
value.
"""

from __future__ import annotations

import json
import random
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import phone_lines, program, result
from slmctl.sensitive import find
from tests.support import disguises

KINDS = ("email", "phone", "card", "iban", "ip", "secret")
PROMPTS, ENCODED = 3000, 120  # prompts with a value as it is, and for each encoding
SLOW = "a-at-dot-" * 2000
PHONES, LIBRARY = "phone numbers of 12 countries", "libphonenumber (VALID, 12 regions)"
Span = tuple[str, int, int]  # kind, start, end


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path)
    data: Path = parser.parse_args().data
    library = libphonenumber()
    rows = [
        result.single(f"{PHONES}: {name}", value, LIBRARY, library[name])
        for name, value in of_phones(lambda text: find(text, ["phone"])).items()
    ]
    rows += [
        result.single(name, value, "all", 1)
        for name, value in of_kinds(disguises.prompts(PROMPTS, seed=7))
    ]
    everyday, hidden = of_encodings(disguises.EVERYDAY), of_encodings(disguises.HIDDEN)
    whole = sum(set(shares.values()) == {1.0} for shares in everyday.values())
    rows.append(result.single("everyday encodings that hide no value", whole, "all", len(everyday)))
    sentences = list(ordinary(data))
    alarms, usual = timed(sentences)
    rows.append(
        result.single("ordinary sentences with a false alarm", alarms, "all", len(sentences))
    )
    _, slow = timed([SLOW])
    rows.append(
        result.single(
            "a text that makes patterns go back: us/KB", slow, "ordinary sentences", usual
        )
    )
    encodings = {"everyday encodings": everyday, "hidden encodings": hidden}
    result.write(
        "detectors", "python -m benchmarks.detectors DATA", rows, ("phonenumbers",), **encodings
    )


def spans(text: str) -> list[Span]:
    return [(finding.kind, finding.start, finding.end) for finding in find(text)]


def timed(texts: Sequence[str]) -> tuple[int, float]:
    """The texts in which something is found, and the microseconds
    of the processor for each kilobyte.
    """
    begun = time.process_time()
    count = sum(bool(find(text)) for text in texts)
    return count, 1e9 * (time.process_time() - begun) / sum(map(len, texts))


def of_phones(search: Callable[[str], Any]) -> dict[str, float]:
    """Recall of numbers and precision of findings over the lines; a search
    gives objects with `start` and `end`.
    """
    hits = numbers = right = findings = 0
    for line in phone_lines.lines():
        spans = {(match.start, match.end) for match in search(line.text)}
        numbers += len(line.spans)
        hits += sum(
            any(start <= first + 1 and end >= last for start, end in spans)
            for first, last in line.spans
        )
        findings += len(spans)
        right += sum(
            any(start < last and end > first for first, last in line.spans) for start, end in spans
        )
    return {"recall": hits / numbers, "precision": right / max(1, findings)}


def libphonenumber() -> dict[str, float]:
    """The figures of libphonenumber's matcher, asked for each of the 12 countries."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    def search(text: str) -> list[Any]:
        return [
            match
            for country in phone_lines.NATIONAL
            for match in PhoneNumberMatcher(text, country, leniency=Leniency.VALID)
        ]

    return of_phones(search)


def of_kinds(prompts: list[tuple[str, str, str]]) -> Iterator[tuple[str, float]]:
    """Recall by kind over prompts with a value; precision of each kind's
    findings over them and lines of decoys.
    """
    values, hits, right, findings = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for kind, text, value in prompts:
        start = text.index("{value}")
        end = start + len(value)
        values[kind] += 1
        found = spans(text.replace("{value}", value))
        hits[kind] += any(k == kind and s <= start and e >= end for k, s, e in found)
        for k, s, e in found:
            findings[k] += 1
            right[k] += k == kind and s < end and e > start
    for line in phone_lines.lines():
        for k, _, _ in spans(line.text):
            findings[k] += 1
            right[k] += k == "phone" and bool(line.spans)
    for kind in KINDS:
        yield f"{kind}: recall", hits[kind] / values[kind]
        yield f"{kind}: precision", right[kind] / max(1, findings[kind])


def of_encodings(encodings: dict[str, Callable[[str], str]]) -> dict[str, dict[str, float]]:
    """For each encoding and kind, the share of values in which something is found."""
    choose = random.Random(11)
    table: dict[str, dict[str, float]] = {}
    prompts = disguises.prompts(ENCODED, seed=5)
    keys = ["sk" + "-" + "".join(choose.choices(string.ascii_letters, k=23)) + "7" for _ in prompts]
    for name, encode in encodings.items():
        hits, values = Counter[str](), Counter[str]()
        for (kind, text, value), key in zip(prompts, keys, strict=True):
            values[kind] += 1
            hits[kind] += bool(
                find(text.replace("{value}", encode(key if kind == "secret" else value)))
            )
        table[name] = {kind: round(hits[kind] / values[kind], 3) for kind in KINDS}
    return table


def ordinary(data: Path) -> Iterator[str]:
    """Requests of the public data sets: 47,487 sentences in which people ask for something."""
    yield from (text for text, _ in program.read_csv(data / "banking77" / "train.csv"))
    clinc = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    yield from (text for rows in clinc.values() for text, _ in rows)
    yield from (row["utterance"] for row in program.read_jsonl(data / "snips" / "train.jsonl"))


if __name__ == "__main__":
    main()
