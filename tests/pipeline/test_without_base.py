"""Linear models of a project whose base was never here: what a run makes,
what it says, and what a later run adds.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny
from support.forks import Done, Forks

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.model_files import catalogue
from slmctl.pipeline import row_estimate
from slmctl.pipeline.graph import Project

Run = Callable[..., Done]
NOBODY = "http://127.0.0.1:9"  # a hub that refuses every connection
HUB = "hf:acme/never-pulled@" + 40 * "0"
GERMAN = "ich habe die {} und bitte um eine Antwort, weil das nicht richtig ist"


def desk_at(
    folder: Path, *, base: str = HUB, rows: list[tuple[str, str]] | None = None, more: str = ""
) -> Path:
    """A project of words alone."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.write_csv(folder / "tickets.csv", rows or tiny.rows())
    settings = (
        tiny.CONFIG.replace("base: ./base", f"base: {base}") + "encode: {encoder: none}\n" + more
    )
    (folder / "slmctl.yaml").write_text(settings, encoding="utf-8")
    return folder


def lengths(desk: Path) -> list[dict[str, object]]:
    return [
        artifact.load(path).metrics["tokens"] for path in sorted(desk.glob("runs/prepared/[!.]*"))
    ]


@pytest.fixture
def blocked(stages: Forks) -> Run:
    """Runs commands on a machine without a hub."""
    return functools.partial(stages.run, env={"HF_ENDPOINT": NOBODY})


def test_who_wants_a_linear_model_of_words_needs_neither_hub_nor_base(
    blocked: Run, tmp_path: Path
) -> None:
    desk = desk_at(tmp_path)
    done = blocked(desk, "run", "--until", "encode")
    tiny.ok(done)
    assert "No base is here, so lengths in tokens are estimated by characters" in done.stderr
    assert "will run: prepare, encode" in done.stderr and "contacting" not in done.stderr
    assert not list(desk.glob("runs/base/*"))
    (told,) = lengths(desk)
    assert told["estimated"] is True and 20 < int(str(told["median"])) < 60
    (page,) = desk.glob("runs/prepared/[!.]*/report.html")
    assert "estimated by characters, since no base was here" in page.read_text(encoding="utf-8")
    (desk / "in.csv").write_text(
        "text\ninvoice refund please\nparcel courier today\n", encoding="utf-8"
    )
    tiny.ok(
        blocked(
            desk,
            "predict",
            "encoder",
            "--input",
            str(desk / "in.csv"),
            "--output",
            str(desk / "out.csv"),
        )
    )
    answers = [
        line.split(",")[1]
        for line in (desk / "out.csv").read_text(encoding="utf-8").splitlines()[1:]
    ]
    assert answers == ["billing", "delivery"]


def test_a_linear_release_is_made_by_who_never_had_the_base(blocked: Run, tmp_path: Path) -> None:
    desk = desk_at(tmp_path, more="publish: {model: linear, to: 'dir:./registry'}\n")
    release = Path(tiny.ok(blocked(desk, "run")))
    assert (
        not list(desk.glob("runs/base/*")) and (desk / "registry/tiny-desk/1.0/sum.npz").is_file()
    )
    (desk / "in.csv").write_text("text\nlogin password please\n", encoding="utf-8")
    answering = (
        "predict",
        str(release),
        "--input",
        str(desk / "in.csv"),
        "--output",
        str(desk / "out.csv"),
    )
    tiny.ok(blocked(desk, *answering))
    assert "login password please,account" in (desk / "out.csv").read_text(encoding="utf-8")
    again = blocked(desk, "run")
    tiny.ok(again)
    assert "will run" not in again.stderr


def test_a_run_that_trains_asks_for_the_base_all_the_same(blocked: Run, tmp_path: Path) -> None:
    desk = desk_at(tmp_path)
    tiny.ok(blocked(desk, "run", "--until", "encode"))
    planned = json.loads(blocked(desk, "run", "--plan", "--until", "merge", "--json").stdout)
    assert {stage["name"]: stage["current"] for stage in planned["stages"]} == dict.fromkeys(
        ("pull", "prepare", "encode", "finetune", "merge"), False
    )
    done = blocked(desk, "run", "--until", "finetune")
    assert done.returncode == 9 and "the hub cannot be reached" in done.stderr
    done = blocked(desk, "finetune")
    assert done.returncode == 7 and "no current artifact 'base'" in done.stderr


def test_who_gets_the_base_later_has_the_tokens_counted_and_keeps_the_linear_model(
    blocked: Run, tiny_base: Path, tmp_path: Path
) -> None:
    desk = desk_at(tmp_path, base="./base")
    tiny.ok(blocked(desk, "run", "--until", "encode"))  # a folder that is not there yet
    shutil.copytree(tiny_base, desk / "base")
    tiny.ok(blocked(desk, "pull"))
    done = blocked(desk, "run", "--until", "encode")
    tiny.ok(done)
    assert "No base is here" not in done.stderr and "so its linear models stay" in done.stderr
    counted, estimated = sorted(lengths(desk), key=lambda each: "estimated" in each)
    assert "estimated" not in counted and counted["total"] != estimated["total"]
    made = [artifact.load(path) for path in desk.glob("runs/encoder/[!.]*")]
    first, second = (
        {e.path: e.sha256 for e in each.manifest.files if e.path != "task.json"} for each in made
    )
    # their task.json names other templates
    assert first == second and len({each.digest for each in made}) == 2
    assert len({each.manifest.inputs["prepared"] for each in made}) == 2


def test_other_rows_are_learned_anew(blocked: Run, tmp_path: Path) -> None:
    desk = desk_at(tmp_path)
    tiny.ok(blocked(desk, "run", "--until", "encode"))
    tiny.write_csv(desk / "tickets.csv", tiny.rows(320))
    done = blocked(desk, "run", "--until", "encode")
    tiny.ok(done)
    assert "so its linear models stay" not in done.stderr


def test_a_german_user_without_a_hub_reads_the_base_that_knows_german(
    blocked: Run, tmp_path: Path
) -> None:
    rows = [(GERMAN.format(word), label) for word, label in tiny.rows()]
    desk = desk_at(tmp_path, rows=rows)
    assert row_estimate.languages_of(Project(desk, config.load(desk / "slmctl.yaml"))).main == "de"
    done = blocked(desk, "pull")
    assert done.returncode == 9 and "the hub cannot be reached" in done.stderr
    line = catalogue.without_hub("de").source
    assert (
        f"without a hub, put this line into slmctl.yaml: base: {line} (it knows German)"
        in done.stderr
    )
    assert line != catalogue.without_hub("en").source
