"""Suspected label errors: found where they were planted, named
without a text, and never changed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support import tiny
from support.reported import bare_prepare_facts

from slmctl.stages.prepare import report_findings, suspects
from slmctl.task.records import Record, write_jsonl

OTHER = {"billing": "delivery", "delivery": "account", "account": "billing"}


def written(out: Path, pairs: list[tuple[str, str]]) -> suspects.SuspectFacts | None:
    """What is suspected of the training records in `out`."""
    records = [
        Record(
            id=f"{k:016x}",
            messages=(
                {"role": "system", "content": tiny.SYSTEM},
                {"role": "user", "content": text},
                {"role": "assistant", "content": label, "weight": 0.5},
            ),
            source={"file": "tickets.csv", "row": k + 2},
            label=label,
        )
        for k, (text, label) in enumerate(pairs)
    ]
    write_jsonl(out / "train.jsonl", (record.to_json() for record in records))
    return suspects.find(out, train=len(pairs), labels=len({label for _, label in pairs}))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / suspects.FILENAME).read_text().splitlines()]


def test_planted_errors_are_found_with_the_label_that_was_there(tmp_path: Path) -> None:
    pairs = tiny.rows(240)
    planted = set(random.Random(1).sample(range(len(pairs)), 12))
    noisy = [
        (text, OTHER[label] if k in planted else label) for k, (text, label) in enumerate(pairs)
    ]
    facts = written(tmp_path, noisy)
    assert facts is not None
    named = {int(line["id"], 16): line for line in lines(tmp_path)}
    assert planted <= set(named)
    assert len(named) <= 14
    for k in planted:
        text, label = pairs[k]
        assert named[k] == {
            "id": f"{k:016x}",
            "split": "train",
            "label": OTHER[label],
            "proposed": label,
            "score": named[k]["score"],
            "messages": [
                {"role": "system", "content": tiny.SYSTEM},
                {"role": "user", "content": text},
            ],
        }
    scores = [line["score"] for line in lines(tmp_path)]
    assert scores == sorted(scores, reverse=True)
    assert all(0.5 < score <= 1 for score in scores)
    assert facts["rows"] == len(named) == sum(pair["rows"] for pair in facts["pairs"])
    assert facts["examples"][0]["row"] == {
        "file": "tickets.csv",
        "row": int(lines(tmp_path)[0]["id"], 16) + 2,
    }
    words = {word for text, _ in pairs for word in text.split()} - set(tiny.WORDS)
    # the manifest holds no text
    assert not words & set(json.dumps(facts["examples"]).replace('"', " ").split())
    (notice,) = report_findings.notices(bare_prepare_facts(suspects=facts))
    assert notice.text.startswith(f"{len(named)} labels look wrong: “")
    weak = facts | {"agreement": 0.75}
    assert not list(report_findings.notices(bare_prepare_facts(suspects=weak)))


def test_clean_labels_are_left_in_peace(tmp_path: Path) -> None:
    facts = written(tmp_path, tiny.rows(200))
    assert facts is not None
    assert (facts["rows"], facts["measured"], facts["train"]) == (0, 200, 200)
    assert lines(tmp_path) == []
    assert not list(report_findings.notices(bare_prepare_facts(suspects=facts)))


def test_labels_that_follow_from_nothing_are_not_doubted(tmp_path: Path) -> None:
    choose = random.Random(0)
    facts = written(tmp_path, [(text, choose.choice(list(OTHER))) for text, _ in tiny.rows(200)])
    assert facts is not None
    assert facts["agreement"] < suspects.CREDIBLE
    assert facts["rows"] == 0


def test_a_label_with_few_rows_is_neither_doubted_nor_proposed(tmp_path: Path) -> None:
    rare = [(f"zebra {k} in the street", "zoo") for k in range(suspects.FEWEST - 1)]
    facts = written(tmp_path, [*tiny.rows(200), *rare])
    assert facts is not None
    assert facts["measured"] == 200
    assert written(tmp_path, [("one word", "a"), ("other", "b")] * 5) is None


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    pairs = [
        (text, OTHER[label] if k % 17 == 0 else label)
        for k, (text, label) in enumerate(tiny.rows(240))
    ]
    written(tmp_path, pairs)
    first = (tmp_path / suspects.FILENAME).read_bytes()
    written(tmp_path, pairs)
    assert first and (tmp_path / suspects.FILENAME).read_bytes() == first
