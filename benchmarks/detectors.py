"""The rules of `slmctl.sensitive`, beside those of an older slmctl and libphonenumber: recall, precision, speed.

    python -m benchmarks.detectors DATA --before FOLDER

DATA holds public data sets as `../shared/data/` does; FOLDER a checkout of slmctl whose rules are the peer's. All that
is searched is seeded: lines with phone numbers of 12 countries (`benchmarks.phone_lines`), prompts of invented people
with a value of each kind (`tests/support/disguises.py`), and the same values in every encoding of its tables. A value
counts as found where findings cover its place; an alarm is false where it covers no value.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import phone_lines, result

KINDS = ("email", "phone", "card", "iban", "ip", "secret")
PROMPTS, ENCODED = 3000, 120  # prompts with a value as it is, and for each encoding
SLOW = "a-at-dot-" * 20  # takes 30 times as long where a pattern goes back; longer ones take minutes
PHONES, LIBRARY = "phone numbers of 12 countries", "libphonenumber (VALID, 12 regions)"
ENCODINGS, ALARMS = "everyday encodings that hide no value, of all", "false alarms in 10,000 ordinary sentences"
ORDINARY, BACK = "ordinary sentences: us/KB", "a text that made a pattern go back: us/KB"
METRICS = (
    *(f"{group}: {figure}" for group in (PHONES, *KINDS) for figure in ("recall", "precision")),
    ENCODINGS, ALARMS, ORDINARY, BACK,
)  # fmt: skip
Span = tuple[str, int, int]  # kind, start, end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--before", type=Path, required=True, help="checkout of an older slmctl")
    parser.add_argument("--figures", type=Path, help="be the child that measures the package in this folder")
    options = parser.parse_args()
    if options.figures:
        sys.path.insert(0, str(options.figures.resolve()))
        json.dump(figures(options.data), sys.stdout)
        return
    here = Path(__file__).resolve().parents[1]
    ours, before = (_measured(options.data, folder) for folder in (here, options.before))
    peer = "the rules before"
    rows = [
        result.compared(metric, [ours["rows"][metric]], [before["rows"][metric]], peer=peer, digits=4)
        for metric in METRICS
    ]
    rows += [
        result.compared(f"{PHONES}: {name}", [ours["rows"][f"{PHONES}: {name}"]], [value], peer=LIBRARY, digits=4)
        for name, value in libphonenumber().items()
    ]
    more = {name: {"ours": ours[name], "before": before[name]} for name in ("everyday encodings", "hidden encodings")}
    result.write("detectors", "python -m benchmarks.detectors DATA --before FOLDER", rows, ("phonenumbers",), **more)


def _measured(data: Path, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.detectors", str(data), "--before", ".", "--figures", str(folder)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def figures(data: Path) -> dict[str, Any]:
    """Every figure of the package that is imported."""
    from slmctl.sensitive import find
    from tests.support import disguises

    def spans(text: str) -> list[Span]:
        return [(finding.kind, finding.start, finding.end) for finding in find(text)]

    rows = {f"{PHONES}: {k}": v for k, v in of_phones(lambda t: find(t, ["phone"])).items()}
    rows |= dict(of_kinds(spans, disguises.prompts(PROMPTS, seed=7)))
    everyday, hidden = (of_encodings(spans, table) for table in (disguises.EVERYDAY, disguises.HIDDEN))
    whole = sum(set(shares.values()) == {1.0} for shares in everyday.values())
    rows[ENCODINGS] = whole / len(everyday)
    sentences = list(ordinary(data))
    begun = time.process_time()
    alarms = sum(bool(find(text)) for text in sentences)
    spent = time.process_time() - begun
    rows[ALARMS] = 1e4 * alarms / len(sentences)
    rows[ORDINARY] = 1e9 * spent / sum(map(len, sentences))
    begun = time.process_time()
    find(SLOW)
    rows[BACK] = 1e9 * (time.process_time() - begun) / len(SLOW)
    return {"rows": rows, "everyday encodings": everyday, "hidden encodings": hidden}


def of_phones(search: Callable[[str], Any]) -> dict[str, float]:
    """Recall of numbers and precision of findings over the lines; a search gives objects with `start` and `end`."""
    hits = numbers = right = findings = 0
    for line in phone_lines.lines():
        spans = {(match.start, match.end) for match in search(line.text)}
        numbers += len(line.spans)
        hits += sum(any(start <= first + 1 and end >= last for start, end in spans) for first, last in line.spans)
        findings += len(spans)
        right += sum(any(start < last and end > first for first, last in line.spans) for start, end in spans)
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


def of_kinds(search: Callable[[str], list[Span]], prompts: list[tuple[str, str, str]]) -> Iterator[tuple[str, float]]:
    """Recall by kind over prompts with a value; precision of each kind's findings over them and lines of decoys."""
    values, hits, right, findings = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for kind, text, value in prompts:
        start = text.index("{value}")
        end = start + len(value)
        values[kind] += 1
        hits[kind] += any(k == kind and s <= start and e >= end for k, s, e in search(text.replace("{value}", value)))
        for k, s, e in search(text.replace("{value}", value)):
            findings[k] += 1
            right[k] += k == kind and s < end and e > start
    for line in phone_lines.lines():
        for k, _, _ in search(line.text):
            findings[k] += 1
            right[k] += k == "phone" and bool(line.spans)
    for kind in KINDS:
        yield f"{kind}: recall", hits[kind] / values[kind]
        yield f"{kind}: precision", right[kind] / max(1, findings[kind])


def of_encodings(
    search: Callable[[str], list[Span]], encodings: dict[str, Callable[[str], str]]
) -> dict[str, dict[str, float]]:
    """For each encoding and kind, the share of values in which something is found."""
    from tests.support import disguises

    choose = random.Random(11)
    table: dict[str, dict[str, float]] = {}
    prompts = disguises.prompts(ENCODED, seed=5)
    keys = ["sk" + "-" + "".join(choose.choices(string.ascii_letters, k=23)) + "7" for _ in prompts]
    for name, encode in encodings.items():
        hits, values = Counter[str](), Counter[str]()
        for (kind, text, value), key in zip(prompts, keys, strict=True):
            values[kind] += 1
            hits[kind] += bool(search(text.replace("{value}", encode(key if kind == "secret" else value))))
        table[name] = {kind: round(hits[kind] / values[kind], 3) for kind in KINDS}
    return table


def ordinary(data: Path) -> Iterator[str]:
    """Requests of the public data sets: 47,487 sentences in which people ask for something."""
    banking = io.StringIO((data / "banking77" / "train.csv").read_text(encoding="utf-8"))
    yield from (row["text"] for row in csv.DictReader(banking))
    clinc = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    yield from (text for rows in clinc.values() for text, _ in rows)
    for line in (data / "snips" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["utterance"]


if __name__ == "__main__":
    main()
