"""`slmctl ls`: every artifact below runs/ with what differs between them,
and the leaderboard over all reports.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import TESTS, handmade
from support.reported import small_report

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.cli.main import cli
from slmctl.model_files.gguf_choice import served_sha256
from slmctl.provenance import listing
from slmctl.provenance.listing import Entry, leaderboard, leaderboard_lines, lines, survey

KEPT = TESTS / "fixtures" / "0.1.0"
Make = Callable[..., Artifact]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """An artifact below runs/ that no stage has made, a minute after the one before it."""
    minutes = iter(range(10, 60))

    def made(
        kind: str, stage: str, config: dict[str, Any], inputs: dict[str, Any], **metrics: Any
    ) -> Artifact:
        recipe = artifact.recipe_of(stage, config, inputs)
        return handmade.make(
            tmp_path / "runs" / kind / recipe[7:19],
            {"one": recipe.encode()},
            stage=stage,
            recipe_id=recipe,
            config=config,
            inputs=inputs,
            metrics=metrics,
            started=f"2026-01-01T10:{next(minutes)}:00Z",
        )

    return made


def entry(made: Artifact, entries: list[Entry]) -> Entry:
    return next(one for one in entries if one.path == str(made.path))


def kept(root: Path) -> Path:
    """A project whose artifacts the release 0.1.0 has made."""
    for folder in KEPT.iterdir():
        recipe = artifact.load(folder).manifest.recipe_id
        shutil.copytree(folder, root / "runs" / folder.name / recipe[7:19])
    return root


def test_every_kind_with_its_base_its_loss_and_what_a_report_says_of_it(tmp_path: Path) -> None:
    entries = survey(kept(tmp_path))
    assert [one.kind for one in entries] == list(listing.KINDS)  # in the order of the pipeline
    by_kind = {one.kind: one for one in entries}
    assert {
        one.base for one in entries if one.kind not in ("policy", "labelled", "encoder", "sum")
    } == {("base",)}
    assert (
        by_kind["adapter"].validation_loss
        == artifact.load(KEPT / "adapter").metrics["validation_loss"]
    )
    measured = {one.kind for one in entries if one.metric}
    # the policy's answers are another file's
    assert measured == {"gguf", "predictions", "report", "published"}
    assert by_kind["gguf"].metric is not None
    assert by_kind["gguf"].metric.text == "accuracy 16.7 %"
    assert by_kind["published"].tags == ("1.0",)
    for one in entries:
        assert Path(one.path).name.startswith(one.id)
        assert one.size == sum(
            file.stat().st_size
            for file in Path(one.path).rglob("*")
            if file.is_file() and file.name != "manifest.json"
        )


def test_a_release_has_the_figure_of_what_serve_answers_by_and_its_file_that_of_the_file(
    tmp_path: Path,
) -> None:
    # the two were exactly exchanged: a dashboard showed five points too little for production
    runs = tmp_path / "runs"
    gguf = handmade.make(runs / "gguf" / ("a" * 12), {"desk-Q8_0.gguf": b"file"})
    made = handmade.make(runs / "sum" / ("b" * 12), {"sum.npz": b"members"})
    release = handmade.make(
        runs / "published" / ("c" * 12),
        {"desk-Q8_0.gguf": b"file", "sum.npz": b"members"},
        metrics={"version": "1.0"},
    )
    answers = [
        handmade.make(runs / "predictions" / (letter * 12), inputs={"model": gguf.digest} | more)
        for letter, more in (("d", {}), ("e", {"sum": made.digest}))
    ]
    hashes = [gguf.manifest.files[0].sha256, served_sha256(release)]
    models = {
        name: {"metrics": {"accuracy": value}, "sha256": sha256, "predictions": predictions.digest}
        for name, value, sha256, predictions in zip(
            ("Q8_0", "Q8_0+sum"), (0.912, 0.968), hashes, answers, strict=True
        )
    }
    handmade.make(runs / "report" / ("f" * 12), metrics=small_report(models))
    figures = {
        one.kind: one.metric.value
        for one in survey(tmp_path)
        if one.metric and one.kind != "predictions"
    }
    assert figures == {"gguf": 0.912, "sum": 0.968, "report": 0.968, "published": 0.968}
    told = list(leaderboard_lines(leaderboard(tmp_path)))
    assert [line.split()[:2] for line in told if line.startswith("Q8_0")] == [
        ["Q8_0+sum", "(release)"],
        ["Q8_0", "gguf"],
    ]


def test_what_differs_is_named(make: Make, tmp_path: Path) -> None:
    base = make("base", "pull/3", {}, {}, name="tiny")
    rows = make("prepared", "prepare/5", {}, {"base": base.digest})
    # an old recipe lacks label_smoothing, which acts as its default, 0
    old = make(
        "adapter",
        "finetune/1",
        {"epochs": 2.0, "max_steps": 7},
        {"base": base.digest, "prepared": rows.digest},
    )
    new = make(
        "adapter",
        "finetune/4",
        {"epochs": 3.0, "max_steps": 7, "label_smoothing": 0.0, "lora": {"rank": 8}},
        {"base": base.digest, "prepared": rows.digest},
    )
    entries = survey(tmp_path, ["adapter"])
    assert [one.path for one in entries] == [str(new.path), str(old.path)]  # the newest first
    assert entry(old, entries).changed == {"epochs": "2.0", "lora.rank": "16"}
    assert entry(new, entries).changed == {"epochs": "3.0", "lora.rank": "8"}
    other = make("prepared", "prepare/5", {"seed": 1}, {"base": base.digest})
    make(
        "adapter",
        "finetune/4",
        {"epochs": 3.0, "max_steps": 9},
        {"base": base.digest, "prepared": other.digest},
    )
    changed = entry(old, survey(tmp_path)).changed
    assert changed == {
        "epochs": "2.0",
        "max_steps": "7",
        "lora.rank": "16",
        "prepared": rows.short_id,
    }


def test_a_config_of_another_version_and_a_long_value_are_shown_as_they_are(
    make: Make, tmp_path: Path
) -> None:
    for text in ("be brief " * 30, "be long " * 30):
        make("adapter", "finetune/9", {"of_tomorrow": {"prompt": text}}, {})
    values = [one.changed["of_tomorrow.prompt"] for one in survey(tmp_path)]
    assert len(set(values)) == 2
    assert all(len(value) == 8 for value in values)


def test_a_damaged_or_foreign_folder_is_listed_as_such(make: Make, tmp_path: Path) -> None:
    whole = make("adapter", "finetune/4", {}, {})
    torn = make("adapter", "finetune/4", {"seed": 1}, {})
    (torn.path / "one").unlink()
    flipped = make("adapter", "finetune/4", {"seed": 2}, {})
    raw = (flipped.path / "manifest.json").read_bytes()
    (flipped.path / "manifest.json").write_bytes(raw.replace(b"adapter", b"adaptor"))
    (tmp_path / "runs" / "notes" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "adapter" / "looped").symlink_to(tmp_path / "runs")
    faults = {Path(one.path).name: one.fault for one in survey(tmp_path) if one.fault}
    assert faults.pop(torn.path.name) == "damaged: missing: one"
    assert "has changed since it was written" in faults.pop(flipped.path.name)
    assert faults == dict.fromkeys(("mine", "looped"), "unfinished: it has no manifest")
    text = "\n".join(lines(survey(tmp_path)))
    assert whole.path.name[:8] in text
    assert f"{torn.path}: damaged: missing: one" in text


def test_the_leaderboard_ranks_each_models_answers_once_by_the_rows_they_are_to(
    make: Make, tmp_path: Path
) -> None:
    data, other = (make("prepared", "prepare/5", {"seed": seed}, {}) for seed in (0, 1))

    def report(prepared: Artifact, **right: float) -> Artifact:
        models = {
            name: {
                "metrics": {"accuracy": value},
                "interval": [value - 0.1, value + 0.05],
                "predictions": f"of {name}",
            }
            for name, value in right.items()
        }
        figures = small_report(models) | {"prepared": prepared.digest, "split": "test"}
        return make("report", "evaluate/5", {"of": list(right)}, {}, **figures)

    first, last = report(data, Q8_0=0.9, Q4_K_M=0.8), report(data, Q8_0=0.9, F16=0.95)
    report(other, Q8_0=0.5)
    ranked = leaderboard(tmp_path)
    newest = [(row.data, row.model, row.report) for row in ranked]
    assert newest == [
        (other.short_id, "Q8_0", newest[0][2]),  # other rows: a table of their own
        (data.short_id, "F16", last.short_id),
        (data.short_id, "Q8_0", last.short_id),
        (data.short_id, "Q4_K_M", first.short_id),
    ]
    text = "\n".join(leaderboard_lines(ranked))
    assert text.count("data set") == 2
    assert "95.0 %  85.0 % - 100.0 %" in text


def test_the_command(tmp_path: Path) -> None:
    def ls(*words: str) -> Any:
        return CliRunner().invoke(cli, ["-C", str(tmp_path), "ls", *words])

    assert ls().stdout == ""
    assert json.loads(ls("--json").stdout) == []
    kept(tmp_path)
    assert [line.split()[0] for line in ls("gguf", "report").stdout.splitlines()[2:]] == [
        "gguf",
        "report",
    ]
    entries = json.loads(ls("--json").stdout)
    assert [one["kind"] for one in entries] == list(listing.KINDS)
    ranked = json.loads(ls("--models", "--json").stdout)
    assert next((row["model"], row["n"]) for row in ranked) == ("tfidf_logistic", 6)
    assert "6 rows of test" in ls("--models").stdout
    wrong = ls("modles")
    assert wrong.exception.hint == "kinds: " + ", ".join(listing.KINDS)
