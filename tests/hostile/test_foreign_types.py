"""Predictions and reports of the wrong types: IntegrityError
(exit 7) with the place, no traceback.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NotRequired, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.reported import evaluate_report, evaluate_rows
from support.scale import FULL

from slmctl.artifacts.artifact import Artifact, FileEntry, Manifest
from slmctl.errors import IntegrityError
from slmctl.metrics.predictions import facts_of, read_predictions
from slmctl.reports.evaluation_report import (
    EvaluationReport,
    ParticipantEntry,
    parse_report,
    parse_rows,
)

FACTS = {"model": "Q8_0", "kind": "gguf", "split": "test", "size": 9, "sha256": "ab", "n": 1}
LINE = {
    "id": "r1",
    "answer": "a",
    "expected": "a",
    "confidence": 0.5,
    "prompt_tokens": 3,
    "completion_tokens": 1,
}
ODD: list[Any] = [None, True, -1.5, "1", "", [], {}, [[]], {"": None}, 10**400]
REPORT_KEYS = get_type_hints(EvaluationReport, include_extras=True)
OPTIONAL_KEYS = {key for key, hint in REPORT_KEYS.items() if get_origin(hint) is NotRequired}


def predictions(folder: Path, raw: bytes, facts: Any) -> Artifact:
    (folder / "predictions.jsonl").write_bytes(raw)
    files = (FileEntry("predictions.jsonl", len(raw), ""),)
    return Artifact(
        folder, Manifest("predictions", "predict/1", "sha256:0", "", {}, {}, files, facts)
    )


@pytest.mark.parametrize("key", ["model", "kind", "split", "sha256"])
@pytest.mark.parametrize(
    "value", [odd for odd in ODD if not isinstance(odd, str)], ids=lambda odd: str(odd)[:20]
)
def test_a_manifest_of_another_type_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(IntegrityError, match=f"the manifest of .*: {key}: "):
        facts_of(predictions(tmp_path, b"", FACTS | {key: value}))
    with pytest.raises(IntegrityError, match=f"{key}: field required"):
        facts_of(
            predictions(tmp_path, b"", {name: fact for name, fact in FACTS.items() if name != key})
        )
    with pytest.raises(IntegrityError):
        facts_of(predictions(tmp_path, b"", value))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"id": "r1"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"id": NaN, "answer": "a", "expected": "a"}',
        b'{"id": 1, "answer": "a", "expected": "a"}',
        b'{"id": "r1", "answer": ["a"], "expected": "a"}',
        b'{"id": "r1", "answer": "a", "expected": null}',
        b'{"id": "r1", "answer": "a", "expected": "a", "confidence": "0.5"}',
        b'{"id": "r1", "answer": "a", "expected": "a", "labels": ["a"]}',
        b'{"id": "r1", "answer": "a", "expected": "a", "prompt_tokens": 1.5}',
    ],
    ids=lambda line: line[:40].decode(errors="replace"),
)
def test_a_line_that_is_no_prediction_is_refused_by_its_number(tmp_path: Path, line: bytes) -> None:
    raw = json.dumps(LINE).encode() + b"\n" + line + b"\n"
    with pytest.raises(IntegrityError, match=r"predictions\.jsonl line 2: "):
        read_predictions(predictions(tmp_path, raw, FACTS))


@settings(
    max_examples=500 if FULL else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=6
    )
)
def test_any_json_is_read_or_refused(tmp_path: Path, value: Any) -> None:
    for key in LINE:
        raw = json.dumps(LINE | {key: value}).encode() + b"\n"
        try:
            (line,) = read_predictions(predictions(tmp_path, raw, FACTS))
        except IntegrityError:
            continue
        assert isinstance(line["id"], str)
        assert isinstance(line["answer"], str | None)


@pytest.mark.parametrize("value", [None, 7, "report", [], [[]], {}])
def test_what_is_no_report_is_refused(value: Any) -> None:
    with pytest.raises(IntegrityError, match=r"^report\.json: "):
        parse_report(value, where="report.json")


@pytest.mark.parametrize("key", sorted(REPORT_KEYS))
def test_every_key_of_a_report_is_checked(key: str) -> None:
    report = evaluate_report()
    without = (
        []
        if key in OPTIONAL_KEYS
        else [{name: inner for name, inner in report.items() if name != key}]
    )
    for broken in (*without, report | {key: object}):
        broken = json.loads(json.dumps(broken, default=lambda _: {"no": ["such", "type"]}))
        with pytest.raises(IntegrityError, match=f"report.json: {key}"):
            parse_report(broken, where="report.json")


@pytest.mark.parametrize("key", sorted(ParticipantEntry.__required_keys__))
def test_every_key_of_a_model_is_checked(key: str) -> None:
    report = copy.deepcopy(evaluate_report())
    report["models"]["Q8_0"][key] = {"no": ["such", "type"]}
    with pytest.raises(IntegrityError, match=rf"models\.Q8_0\.{key}"):
        parse_report(report, where="report.json")


def test_a_row_of_a_report_is_checked() -> None:
    rows = evaluate_rows(evaluate_report(), ("a", "b"))
    for key, value in {"id": 1, "source": ["x"], "answers": [[1, 2]], "sensitive": "no"}.items():
        with pytest.raises(IntegrityError, match=rf"rows\.jsonl: 3\.{key}"):
            parse_rows([*rows[:3], rows[3] | {key: value}, *rows[4:]], where="rows.jsonl")
