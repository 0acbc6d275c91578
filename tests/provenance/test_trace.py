"""Who saw a row: what was trained on it or measured by it, what did
not see it, what cannot be ruled out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import handmade
from support.forks import Forks

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import MANIFEST, Artifact
from slmctl.cli.main import cli
from slmctl.deduplication.row_fingerprints import FILENAME, FingerprintWriter
from slmctl.errors import IntegrityError, UsageError
from slmctl.provenance.trace import Standing, Trace, lines, trace
from slmctl.releases import deliveries
from slmctl.task.records import read_records

STRANGER = "Wholly unrelated sentence about gardening, violins and the weather in autumn"


# Made by hand: each way in which an artifact can follow from a data set


def fingerprinted(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """A `rows.bin` of (side, id, text)."""
    with FingerprintWriter(path) as writer:
        for side, id, text in rows:
            writer.add_texts(side, [id], [text])


def make(
    root: Path, kind: str, name: str, fill: Callable[[Path], object] | None = None, **fields: Any
) -> Artifact:
    return handmade.make(root / "runs" / kind / name, fill, **fields)


ROWS = [
    ("train", "a" * 16, "the kettle i bought on monday is broken and leaks"),
    ("validation", "b" * 16, "please change the bank account of my invoice"),
    ("test", "c" * 16, "the courier left my parcel with a neighbour nobody knows"),
    ("rejected", "d" * 16, "the kettle i bought on monday is broken and leaks water"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = make(tmp_path, "base", "base")
    prepared = make(
        tmp_path,
        "prepared",
        "rows",
        lambda out: fingerprinted(out / FILENAME, ROWS),
        inputs={"base": base.digest},
    )
    adapter = make(
        tmp_path, "adapter", "adapter", inputs={"base": base.digest, "prepared": prepared.digest}
    )
    merged = make(
        tmp_path, "merged", "merged", inputs={"base": base.digest, "adapter": adapter.digest}
    )
    for name, model in (("of-base", base), ("of-merged", merged)):
        make(
            tmp_path,
            "predictions",
            name,
            inputs={"model": model.digest, "prepared": prepared.digest},
            config={"split": "test"},
        )
    return tmp_path


def standings(found: Trace) -> dict[str, Standing]:
    return {Path(one.path).name: one.standing for one in found.artifacts}


def test_a_training_row_is_in_all_that_was_trained(root: Path) -> None:
    found = trace(root, text=ROWS[0][2].upper())
    assert [(row.split, row.exact) for row in found.data_sets[0].rows] == [
        ("train", True),
        ("rejected", False),
    ]
    assert standings(found) == {
        "base": Standing.CLEAR,
        "rows": Standing.TRAINED,
        "adapter": Standing.TRAINED,
        "merged": Standing.TRAINED,
        "of-base": Standing.CLEAR,
        "of-merged": Standing.TRAINED,
    }
    assert found.found
    assert found.sure


def test_an_encoder_and_its_sum_have_learned_the_validation_rows(root: Path) -> None:
    prepared = artifact.load(root / "runs" / "prepared" / "rows")
    encoder = make(root, "encoder", "encoder", inputs={"prepared": prepared.digest})
    make(root, "sum", "sum", inputs={"encoder": encoder.digest, "prepared": prepared.digest})
    for row, standing in zip(ROWS[1:3], (Standing.TRAINED, Standing.CLEAR), strict=True):
        found = standings(trace(root, text=row[2]))
        assert (found["encoder"], found["sum"]) == (standing, standing)


def test_a_row_that_chose_or_measured_was_not_trained_on(root: Path) -> None:
    assert standings(trace(root, text=ROWS[1][2])) == {
        "base": Standing.CLEAR,
        "rows": Standing.HELD_OUT,
        "adapter": Standing.HELD_OUT,  # the step that is kept is the best on validation
        "merged": Standing.HELD_OUT,
        "of-base": Standing.CLEAR,
        "of-merged": Standing.HELD_OUT,
    }
    found = standings(trace(root, text=ROWS[2][2]))
    assert [name for name, one in found.items() if one == Standing.HELD_OUT] == [
        "of-base",
        "of-merged",
        "rows",
    ]
    assert Standing.TRAINED not in found.values()


def test_the_id_of_a_rejected_row_leads_to_the_row_it_resembles(root: Path) -> None:
    found = trace(root, id="d" * 16)
    assert {row.split: row.exact for row in found.data_sets[0].rows} == {
        "train": False,
        "rejected": True,
    }
    assert standings(found)["adapter"] == Standing.TRAINED
    strict = trace(root, id="d" * 16, similarity=0.99)
    assert not strict.found
    assert (
        next(lines(strict))
        == "no data set here holds it or nearly the same, and these rejected it:"
    )
    unknown = next(lines(trace(root, id="contract 17.pdf")))
    assert unknown.startswith(
        "no row here has this id: an id is a record's own (16 hexadecimal digits"
    )


def test_what_is_gone_cannot_be_ruled_out(root: Path) -> None:
    assert trace(root, text=STRANGER).sure
    shutil.rmtree(root / "runs" / "adapter")
    found = trace(root, text=STRANGER)
    assert not found.found
    assert not found.sure
    unknown = {
        Path(one.path).name: one.missing
        for one in found.artifacts
        if one.standing == Standing.UNKNOWN
    }
    assert unknown.keys() == {"merged", "of-merged"}
    assert all(
        "adapter sha256:" in one and one.endswith("is not here") for (one,) in unknown.values()
    )


def test_weights_that_were_removed_do_not_break_the_lineage(root: Path) -> None:
    (root / "runs" / "adapter" / "adapter" / "content").unlink()
    assert standings(trace(root, text=ROWS[0][2]))["merged"] == Standing.TRAINED
    assert trace(root, text=STRANGER).sure


@pytest.mark.parametrize("name", [FILENAME, MANIFEST])
def test_a_changed_data_set_is_not_believed(root: Path, name: str) -> None:
    path = root / "runs" / "prepared" / "rows" / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = standings(trace(root, text=ROWS[0][2]))
    assert found.pop("base") == Standing.CLEAR
    assert set(found.values()) == {Standing.UNKNOWN}


def test_a_data_set_of_before_cannot_be_asked(tmp_path: Path) -> None:
    make(tmp_path, "prepared", "old")
    (one,) = trace(tmp_path, text=STRANGER).artifacts
    assert one.standing == Standing.UNKNOWN
    assert "made before rows could be traced" in one.missing[0]


def test_a_base_that_was_made_here_brings_its_rows_along(root: Path) -> None:
    merged = artifact.load(root / "runs" / "merged" / "merged")
    source = {"source_sha256": {"content": merged.manifest.files[0].sha256}}
    second = make(root, "base", "second", metrics=source)
    make(root, "predictions", "second-answers", inputs={"model": second.digest})
    found = standings(trace(root, text=ROWS[0][2]))
    assert found["second"] == found["second-answers"] == Standing.TRAINED


def test_a_remote_model_was_shown_what_it_was_asked_and_given_as_examples(root: Path) -> None:
    prepared = artifact.load(root / "runs" / "prepared" / "rows")
    inputs = {"model": "sha256:" + "1" * 64, "prepared": prepared.digest}
    for shots in (0, 4):
        metrics = {"kind": "endpoint", "shots": shots}
        make(
            root,
            "predictions",
            f"remote-{shots}",
            inputs=inputs,
            config={"split": "test"},
            metrics=metrics,
        )
    train, test, stranger = (
        standings(trace(root, text=text)) for text in (ROWS[0][2], ROWS[2][2], STRANGER)
    )
    assert (train["remote-0"], train["remote-4"]) == (Standing.CLEAR, Standing.HELD_OUT)
    assert test["remote-0"] == test["remote-4"] == Standing.HELD_OUT
    assert set(stranger.values()) == {Standing.CLEAR}


def test_a_release_is_not_what_it_was_measured_beside(root: Path) -> None:
    base = artifact.load(root / "runs" / "base" / "base")
    prepared = artifact.load(root / "runs" / "prepared" / "rows")
    trained = artifact.load(root / "runs" / "predictions" / "of-merged")
    foreign = make(
        root,
        "predictions",
        "foreign",
        inputs={"model": "sha256:" + "2" * 64, "prepared": prepared.digest},
    )
    listed = {"predictions": [trained.digest, foreign.digest], "prepared": prepared.digest}
    report = make(root, "report", "report", inputs=listed)
    make(root, "published", "release", inputs={"gguf": base.digest, "report": report.digest})
    found = standings(trace(root, text=ROWS[0][2]))
    assert (found["report"], found["release"]) == (Standing.TRAINED, Standing.CLEAR)
    found = standings(trace(root, text=STRANGER))
    assert (found["foreign"], found["report"], found["release"]) == (
        Standing.UNKNOWN,
        Standing.UNKNOWN,
        Standing.CLEAR,
    )


def test_releases_of_a_registry_are_asked_too(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    merged = artifact.load(root / "runs" / "merged" / "merged")
    release = make(root, "published", "release", inputs={"gguf": merged.digest})
    registry = tmp_path_factory.mktemp("registry")
    shutil.copytree(release.path, registry / "desk" / "1.0")
    foreign = make(registry, "published", "x", inputs={"gguf": "sha256:" + "0" * 64})
    shutil.move(foreign.path, registry / "desk" / "2.0")
    (registry / "desk" / "3.0").mkdir()
    (registry / "desk" / "3.0" / MANIFEST).write_text("{}")
    found = trace(root, text=ROWS[0][2], registries=[registry])
    assert {Path(one.path).name: one.standing for one in found.releases} == {
        "1.0": Standing.TRAINED,
        "2.0": Standing.UNKNOWN,
        "3.0": Standing.UNKNOWN,
    }


def test_registries_of_the_config_and_of_receipts_are_searched(root: Path) -> None:
    # a release that went to the registry of an earlier config was passed over; `~user` unknown was
    # a traceback
    merged = artifact.load(root / "runs" / "merged" / "merged")
    metrics = {"project": "acme", "version": "1.0"}
    release = make(root, "published", "release", inputs={"gguf": merged.digest}, metrics=metrics)
    shutil.copytree(release.path, root / "earlier" / "acme" / "1.0")
    deliveries.record(root / "runs", release, "dir:earlier")
    (root / "slmctl.yaml").write_text(
        "{project: acme, base: ./base, publish: {to: 'dir:~nobody-here/registry'}}"
    )
    done = CliRunner().invoke(cli, ["-C", str(root), "trace", "--text", ROWS[0][2], "--json"])
    assert done.exit_code == 105, done.output
    assert [entry["path"] for entry in json.loads(done.stdout)["releases"]] == ["earlier/acme/1.0"]
    assert "~nobody-here/registry is missing, so its releases are not searched" in done.stderr


# A deletion request that is answered from the wrong folder must not be told that all is clear


def test_where_nothing_is_held_there_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"is no project: it has neither slmctl\.yaml nor runs/"
    ) as caught:
        trace(tmp_path, text=STRANGER)
    assert "slmctl -C PROJECT trace" in caught.value.hint
    make(tmp_path, "base", "base")
    with pytest.raises(IntegrityError, match="there is no data set below"):
        trace(tmp_path, text=STRANGER)
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "slmctl.yaml").write_text("project: acme\nbase: ./base\n")
    with pytest.raises(IntegrityError, match="so nothing can be said about the row"):
        trace(tmp_path, id="a" * 16)
    make(tmp_path, "adapter", "adapter", inputs={"prepared": "sha256:" + "0" * 64})
    assert not trace(tmp_path, text=STRANGER).sure  # its data set is gone, which exit code 106 says


# Collected and reviewed files, which hold texts

KEPT = "my neighbour Jane Doe of Bristol got the parcel"
CONFIG = "project: acme\nbase: ./base\nserve: {collect: {to: answers}}\n"


def collected(folder: Path, *texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "2026-11-25.jsonl"
    asked = [
        {"id": f"r{k}", "messages": [{"role": "user", "content": text}]}
        for k, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in asked))
    return path


def test_a_row_that_is_only_collected_is_found_and_forgotten(stages: Forks, root: Path) -> None:
    (root / "slmctl.yaml").write_text(CONFIG)
    path = collected(root / "answers", KEPT, "where is my kettle")
    found = stages.run(root, "trace", "--text", "Jane Doe of Bristol")
    assert found.returncode == 105, found.stderr
    assert "collected and reviewed files that hold it:\n" in found.stdout
    assert "1  line of answers/2026-11-25.jsonl\n" in found.stdout
    gone = stages.run(root, "trace", "--text", "Jane Doe of Bristol", "--forget", "--json")
    assert gone.returncode == 0, gone.stderr  # no model saw it
    assert json.loads(gone.stdout)["collected"] == [
        {"path": "answers/2026-11-25.jsonl", "lines": 1, "forgotten": 1}
    ]
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["r1"]


def test_a_forgotten_row_that_models_saw_is_still_said_to_be_there(
    root: Path, tmp_path: Path
) -> None:
    path = collected(tmp_path / "answers", ROWS[0][2])
    found = trace(root, text=ROWS[0][2], collected=[path.parent], forget=True)
    assert (path.read_text(), found.found) == ("", True)
    assert standings(found)["merged"] == Standing.TRAINED
    assert any("1 of them removed" in line for line in lines(found))


def test_files_alone_say_nothing_of_a_model(tmp_path: Path) -> None:
    found = trace(tmp_path, text=STRANGER, collected=[collected(tmp_path / "answers", KEPT)])
    assert (found.found, found.sure) == (False, False)


# As users run it


def rows_of(desk: Path, side: str) -> list[Any]:
    (place,) = (desk / "runs" / "prepared").iterdir()
    return read_records(place / f"{side}.jsonl")


def by_kind(shown: dict[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in shown["artifacts"]:
        found.setdefault(one["kind"], set()).add(one["standing"])
    return found


def test_from_the_data_down_to_the_release(stages: Forks, desk: Path) -> None:
    record = rows_of(desk, "train")[0]
    changed = record.input[:-1] + "x"
    for text, exact in ((record.input, True), (changed, False)):
        done = stages.run(desk, "trace", "--text", text, "--json", "--similarity", "0.8")
        assert done.returncode == 105, done.stderr
        assert text not in done.stdout
        shown = json.loads(done.stdout)
        (data_set,) = shown["data_sets"]
        assert {"side": "train", "id": record.id, "exact": exact} in [
            {key: row[key] for key in ("side", "id", "exact")} for row in data_set["rows"]
        ]
        found = by_kind(shown)
        for kind in ("prepared", "adapter", "merged", "gguf", "report", "published"):
            assert found[kind] == {"trained"}, kind
        assert found["predictions"] == {"trained", "clear"}  # the base's answers are to test rows
        assert found["base"] == {"clear"}
        assert [(one["standing"], one["path"]) for one in shown["releases"]] == [
            ("trained", "registry/tiny-desk/1.0")
        ]
    done = stages.run(desk, "trace", "--id", record.id)
    assert done.returncode == 105
    assert f"train        {record.id}  the same" in done.stdout
    assert "trained on it:" in done.stdout
    assert "release      registry/tiny-desk/1.0" in done.stdout


def test_a_row_of_the_test_side_and_one_of_nowhere(stages: Forks, desk: Path) -> None:
    record = rows_of(desk, "test")[0]
    done = stages.run(
        desk, "trace", "--text", "-", "--json", "--similarity", "0.9", input=record.input + "\n"
    )
    assert done.returncode == 105, done.stderr
    shown = json.loads(done.stdout)
    assert [row["side"] for row in shown["data_sets"][0]["rows"]] == ["test"]
    found = by_kind(shown)
    assert found["adapter"] == found["merged"] == {"clear"}
    assert found["predictions"] == found["report"] == found["published"] == {"held out"}
    assert shown["releases"][0]["standing"] == "held out"

    done = stages.run(desk, "trace", "--text", STRANGER)
    assert done.returncode == 0
    assert done.stdout.startswith("no data set here holds it or nearly the same\ndid not see it:\n")
    shutil.rmtree(desk / "runs" / "merged")
    done = stages.run(desk, "trace", "--text", STRANGER)
    assert done.returncode == 106
    assert "cannot be ruled out:\n  gguf" in done.stdout
    assert "merged sha256:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "trace takes one of --text and --id"),
        (["--text", "a", "--id", "b"], "trace takes one of --text and --id"),
        (["--text", "  "], "the text to trace is empty"),
        (["--text", "-"], "the text to trace is empty"),
        (["--text", "a", "--registry", "nowhere"], "does not exist"),
        (["--text", "a", "--forget"], "there is no file to forget it in"),
    ],
    ids=str,
)
def test_wrong_use(stages: Forks, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = stages.run(tmp_path, "trace", *arguments, input="\n")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def letters(out: Path, name: str, text: str = "Signed: Jöran\nBeispiel") -> None:
    record = {"id": "f" * 16, "messages": [{"role": "user", "content": text}]}
    record["source"] = {"file": "letters/may.pdf", "row": 3}
    (out / name).write_text(json.dumps(record) + "\n")


def test_rows_that_contain_a_name_are_told_by_their_texts(tmp_path: Path) -> None:
    make(tmp_path, "prepared", "rows", partial(letters, name="test.jsonl"))
    found = trace(tmp_path, text="jöran beispiel", contains=True)
    (row,) = found.data_sets[0].rows
    assert (row.split, row.id, row.place) == ("test", "f" * 16, "letters/may.pdf")
    assert "    test         ffffffffffffffff  letters/may.pdf" in lines(found)
    assert trace(tmp_path, text="Jöran", contains=True).found
    strange = trace(tmp_path, text="another person", contains=True)
    assert (strange.found, strange.sure) == (False, True)
    with pytest.raises(UsageError, match="fewer than 4 characters"):
        trace(tmp_path, text="Jo", contains=True)


def test_a_short_name_is_listed_in_collected_files_and_never_forgotten(tmp_path: Path) -> None:
    # "Jöran" was "in no collected file", which held a letter of Jöran Beispiel
    make(tmp_path, "prepared", "rows", partial(letters, name="test.jsonl"))
    place = collected(tmp_path / "collected", "a letter of Jöran Beispiel", "another letter")
    (file,) = trace(tmp_path, text="jöran", contains=True, collected=[place]).collected
    assert (file.lines, file.forgotten) == (1, 0)
    with pytest.raises(UsageError, match="fewer than 8 characters"):
        trace(tmp_path, text="jöran", contains=True, collected=[place], forget=True)


def test_texts_that_are_gone_or_changed_rule_no_name_out(root: Path) -> None:
    # `gc` by hand: train.jsonl removed, and a name in it was "in no data set here", with exit code
    # 0
    for name in ("train.jsonl", "test.jsonl"):
        data_set = make(root, "prepared", name, partial(letters, name=name))
        make(root, "adapter", f"of-{name}", inputs={"prepared": data_set.digest})
    (root / "runs/prepared/train.jsonl/train.jsonl").unlink()
    (root / "runs/prepared/test.jsonl/test.jsonl").write_text('{"torn')
    found = trace(root, text="Beispiel", contains=True)
    reasons = {
        Path(each.path).name: each.missing
        for each in found.artifacts
        if each.standing == Standing.UNKNOWN
    }
    assert (found.found, found.sure) == (False, False)
    assert {"of-train.jsonl", "of-test.jsonl"} < reasons.keys()
    assert [
        reasons[name][0].rpartition(": ")[2]
        for name in ("of-train.jsonl", "of-test.jsonl", "adapter")
    ] == [
        "its train.jsonl is missing or has changed",
        "its test.jsonl is missing or has changed",
        "it has no texts",
    ]


@pytest.mark.parametrize("name", ["review", "refused"])
def test_a_name_in_rows_that_no_teacher_labelled_is_listed(tmp_path: Path, name: str) -> None:
    make(tmp_path, "labelled", "rows", partial(letters, name=f"{name}.jsonl"))
    found = trace(tmp_path, text="Beispiel", contains=True)
    assert not found.found
    assert (
        next(lines(found)) == "no data set here holds it or nearly the same, and these rejected it:"
    )
    assert "    rejected     ffffffffffffffff  letters/may.pdf" in lines(found)
