"""The rows that linear members learn: none nearly measured, and
none judged by a member of its like.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import handmade

from slmctl.models import learned_rows

DAYS = "friday", "fridays"
LONG = (
    "the {} that i bought on {} is broken and it leaks on the floor of our kitchen in the "
    "second storey of the house"
)


APART = [
    ({"splits": {"by": "time"}}, True),
    ({"sources": [{"split": None}, {"split": "validation"}]}, True),
    ({"splits": {"by": "content"}, "sources": [{"split": "train"}, {"split": None}]}, False),
]


def rows(split: str, *texts: str, group: str | None = None) -> list[dict[str, object]]:
    return [
        {
            "id": f"{split}{k}",
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}],
            "source": {"file": "f", "row": k},
        }
        | ({"group": group} if group else {})
        for k, text in enumerate(texts)
    ]


def test_a_validation_row_that_is_nearly_measured_is_not_learned_and_likes_share_a_fold(
    tmp_path: Path,
) -> None:
    kettle = [LONG.format("kettle", day) for day in ("monday", "mondays", "monday.", "mondayy")]
    other = [
        f"{word} refund address parcel courier {word} invoice"
        for word in ("where", "whose", "could", "might")
    ]
    lamp = [
        f"My lamp from last {day} went dark after two evenings, can somebody send one more?"
        for day in DAYS
    ]
    splits = {
        "train": rows("t", *kettle[:3], *other[:2])
        + rows("g", "quite unlike all", "no likeness at all", group="x"),
        "validation": rows("v", lamp[0], kettle[3], other[2]),
        "calibration": rows("c", other[3] + " some more words that nobody has"),
        "test": rows("s", lamp[1]),
    }
    files = {
        f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in each).encode()
        for name, each in splits.items()
    }
    found = learned_rows.read(handmade.make(tmp_path / "prepared", files, kind="prepared"))
    assert len(found.train) == 7 and len(found.validation) == 3
    assert found.places.tolist() == [*range(7), 8, 9]  # the lamp is nearly a test row
    assert len({int(found.fold[k]) for k in (0, 1, 2, 7)}) == 1  # kettles, of both splits
    assert found.fold[5] == found.fold[6]  # of one group
    assert len(set(found.fold.tolist())) > 1


@pytest.mark.parametrize(("facts", "apart"), APART)
def test_validation_rows_of_another_time_or_source_are_judged_without_their_like(
    tmp_path: Path, facts: dict[str, object], apart: bool
) -> None:
    # in random folds a member that had learned the later period judged it, and its score fell on
    # test rows
    words = "kettle lamp refund parcel invoice courier address window"
    texts = [f"{word} {word}{word} {k}" for k, word in enumerate(words.split())]
    files = {
        "train": rows("t", *texts[:5]),
        "validation": rows("v", *texts[5:]),
        "calibration": [],
        "test": [],
    }
    raw = {
        f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in each).encode()
        for name, each in files.items()
    }
    found = learned_rows.read(
        handmade.make(tmp_path / "prepared", raw, kind="prepared", metrics=facts)
    )
    assert found.places.tolist() == [*range(8)]
    assert (found.fold.tolist() == [-1] * 5 + [0] * 3) == apart
