"""runs/report.html: the latest report with what the project says around it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from support import TESTS

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.pipeline.graph import Project
from slmctl.stages.evaluate import report_view

KEPT = TESTS / "fixtures" / "0.1.0"
GATES = """
gates:
  - {metric: accuracy, model: F16, min: 0.1}
  - {metric: accuracy, model: F16, against: tfidf_logistic, max_drop: 0.02}
  - {metric: accuracy, model: chosen, min: 0.1}
"""


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Artifact]:
    """A project whose artifacts the release 0.1.0 has made, and its report."""
    for folder in KEPT.iterdir():
        shutil.copytree(folder, tmp_path / "runs" / folder.name / "0123456789ab")
    return tmp_path, artifact.load(tmp_path / "runs" / "report" / "0123456789ab")


def words(root: Path, report: Artifact, gates: str = "") -> str:
    settings = config.parse(f"project: kept\nversion: 1.0\nbase: base\n{gates}")
    path = report_view.write(Project(root, settings), report)
    assert path == root / "runs" / "report.html"
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", path.read_text(encoding="utf-8"))).split())


def test_the_page_reaches_base_data_and_training_by_lineage(kept: tuple[Path, Artifact]) -> None:
    root, report = kept
    text = words(root, report)
    trained = artifact.load(root / "runs" / "adapter" / "0123456789ab")
    assert "Project kept 1.0 Base base Data " in text
    assert f"Measured {report.manifest.started[:10]}" in text
    assert f"Training {trained.metrics['steps']} steps in" in text
    assert "Loss of training and validation" in text
    assert "Gates none is set" in text


def test_a_line_separator_in_a_shown_text_ends_no_line(kept: tuple[Path, Artifact]) -> None:
    # `evaluate.shown_characters` with U+2028 in a held-out text: `run` ended in a traceback after
    # `evaluate`
    root, report = kept
    path = report.path / "rows.jsonl"
    head, first, rest = path.read_text(encoding="utf-8").split("\n", 2)
    texts = {"input": "above\u2028below", "expected": "a", "answers": [None, "next\x85line", "b"]}
    first = json.dumps(json.loads(first) | {"texts": texts}, ensure_ascii=False)
    path.write_text("\n".join((head, first, rest)), encoding="utf-8")
    assert "above below" in words(root, report)


def test_gates_are_those_of_today_and_one_that_cannot_be_checked_failed(
    kept: tuple[Path, Artifact],
) -> None:
    root, report = kept
    before = artifact.verify(report)
    text = words(root, report, GATES)
    assert "Gates 2 of 3 failed: it is not published" in text
    assert "Gate passed: accuracy of F16 is 16.7 % (at least 10.0 % required)." in text
    assert (
        "Gate failed: a gate names the model 'chosen' (evaluate.choose: {smallest_within: 0.01} "
        "picks one)." in text
    )
    assert "Gates none is set" in words(root, report)  # written anew, without a new measurement
    assert before == artifact.verify(report) == []


def test_a_page_of_the_same_report_gates_and_artifacts_is_not_written_again(
    kept: tuple[Path, Artifact],
) -> None:
    root, report = kept
    text, before = words(root, report, GATES), (root / "runs" / "report.html").stat()
    assert words(root, report, GATES) == text
    assert (root / "runs" / "report.html").stat() == before


@pytest.mark.parametrize(
    ("max_error", "kept_share"), [(0.4, 0.25), (0.3, 0.5), (0.1, 0.5), (None, 0.5)]
)
def test_the_policy_of_the_page_is_the_one_for_the_share_of_errors_that_is_configured(
    kept: tuple[Path, Artifact], max_error: float | None, kept_share: float
) -> None:
    # the newest stood there, whatever the config asks for
    first = artifact.load(kept[0] / "runs" / "policy" / "0123456789ab")
    made = {}
    for day, allowed, share in ((1, 0.4, 0.25), (2, 0.3, 0.5)):
        figures = first.metrics | {"max_error": allowed, "kept": share}
        manifest = dataclasses.replace(
            first.manifest, metrics=figures, started=f"2026-11-0{day}T00:00:00Z"
        )
        made[str(day)] = Artifact(first.path, manifest)
    shares = report_view._policy(made, first.metrics["sha256"], max_error)
    assert shares is not None and shares.kept == kept_share


def test_what_is_gone_or_changed_is_left_out(kept: tuple[Path, Artifact]) -> None:
    root, report = kept
    history = root / "runs" / "adapter" / "0123456789ab" / "metrics.jsonl"
    history.write_bytes(b"{" + history.read_bytes()[1:].replace(b"}", b" ", 1))  # of the same size
    text = words(root, report)
    assert "Loss of training and validation" not in text
    shutil.rmtree(root / "runs" / "adapter")
    assert "Training" not in words(root, report)
