"""The tickets that the benchmark of `prepare` reads: the same every
time, and what their head says of them.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from benchmarks import tickets
from slmctl import sensitive

COUNT = 4000
ROWS = list(tickets.rows(COUNT))


def test_a_seed_gives_the_same_rows_and_more_of_them(tmp_path: Path) -> None:
    assert list(tickets.rows(200)) == ROWS[:200]
    assert list(tickets.rows(200, seed=1)) != ROWS[:200]
    with tickets.write(tmp_path / "rows.csv", 50).open(encoding="utf-8", newline="") as stream:
        assert [tuple(row) for row in csv.reader(stream)] == [("text", "label"), *ROWS[:50]]


def test_length_labels_and_repetitions_are_as_promised() -> None:
    texts = [text for text, _ in ROWS if text]
    assert len({label for _, label in ROWS}) == len(tickets.LABELS) == 20
    assert 0 < COUNT - len(texts) < 20
    assert min(map(len, texts)) >= 70  # a repetition may leave a word out
    assert max(map(len, texts)) <= 320
    assert 0.035 < (len(texts) - len(set(texts))) / COUNT < 0.065


def test_personal_data_is_of_every_kind_and_valid() -> None:
    found = Counter(finding.kind for text, _ in ROWS for finding in sensitive.find(text))
    assert set(sensitive.RULES) <= found.keys()
    assert 0.15 < sum(found[kind] for kind in sensitive.RULES) / COUNT < 0.25
