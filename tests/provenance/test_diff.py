"""`slmctl diff`: config, data and metrics of two artifacts, releases or projects."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from support import handmade, tiny
from support.forks import Forks
from support.reported import small_report

from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.errors import IntegrityError, UsageError
from slmctl.metrics.statistics import mcnemar
from slmctl.provenance.diff import Comparison, FieldChange, Place, diff, lines


def make(
    root: Path, kind: str, name: str, files: dict[str, bytes] | None = None, **fields: Any
) -> Artifact:
    """An artifact below runs/ of a project that no stage has made."""
    stage = {"prepared": "prepare", "adapter": "finetune", "report": "evaluate"}[kind]
    known = {"stage": f"{stage}/1", "environment": {"torch": "2.13", "hosts_contacted": []}}
    return handmade.make(
        root / "runs" / kind / name, files, **{"started": "2026-01-01T00:00:00Z"} | known | fields
    )


def data(root: Path, name: str, rows: int) -> Artifact:
    metrics = {
        "train": rows,
        "test": 40,
        "labels": {"a": rows},
        "sources": [{"file": "t.csv", "sha256": f"{rows:064d}"}],
    }
    return make(root, "prepared", name, config={"near_duplicate": 0.85}, metrics=metrics)


def adapter(root: Path, name: str, prepared: Artifact, **config: Any) -> Artifact:
    settings = {"epochs": 2, "lora": {"rank": 16}} | config
    return make(
        root,
        "adapter",
        name,
        config=settings,
        inputs={"prepared": prepared.digest},
        metrics={"loss": 0.5},
    )


def report(
    root: Path,
    name: str,
    right: dict[str, list[bool]],
    ids: list[str] | None = None,
    *,
    task: str = "classify",
    started: str = "2026-01-01T00:00:00Z",
    groups: int = 0,
    numbered: bool = True,
) -> Artifact:
    n = len(next(iter(right.values())))
    primary = {"classify": "accuracy", "generate": "token_f1"}[task]
    more = {"groups": groups} if groups else {}
    entries = {who: {"metrics": {primary: sum(found) / n}, **more} for who, found in right.items()}
    whole = small_report(entries, task=task, primary_metric=primary)
    head = {"participants": list(right)}
    rows = [
        {
            "id": (ids or [f"r{k}" for k in range(n)])[k],
            "source": ["tickets.csv", k + 1],
            "length": 9,
            "sensitive": False,
            "expected": 0,
            "answers": [[0, int(r[k]), None, float(r[k])] for r in right.values()],
            # no ends of lines
            "texts": {"input": "a\u2028b", "expected": "c\x85", "answers": ["d"] * len(right)},
        }
        | ({"group": k % groups} if groups and numbered else {})
        for k in range(n)
    ]
    raw = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (head, *rows)).encode()
    return make(
        root,
        "report",
        name,
        files={"report.json": canonical(whole), "rows.jsonl": raw},
        metrics=whole,
        started=started,
    )


def changed(found: dict[str, Any], section: str) -> dict[str, tuple[Any, Any]]:
    return {one["key"]: (one["first"], one["second"]) for one in found[section]}


def test_the_same_is_the_same(tmp_path: Path) -> None:
    one = data(tmp_path, "one", 100)
    found = diff(one.path, one.path)
    assert found["same"]
    assert not any(
        found[section]
        for section in ("config", "data", "environment", "files", "metrics", "models")
    )
    assert "the same content" in "\n".join(lines(found))


def test_config_and_data_of_all_that_came_before_are_compared(tmp_path: Path) -> None:
    one = adapter(tmp_path, "one", data(tmp_path, "small", 100))
    two = adapter(
        tmp_path, "two", data(tmp_path, "large", 200), epochs=3, lora={"rank": 8}, dora=True
    )
    found = diff(one.path, two.path)
    assert changed(found, "config") == {
        "finetune.epochs": (2, 3),
        "finetune.lora.rank": (16, 8),
        "finetune.dora": (None, True),
    }
    facts = changed(found, "data")
    assert facts["rows train"] == (100, 200)
    assert facts["label a"] == (100, 200)
    assert facts["source t.csv"] == (f"sha256:{100:064d}", f"sha256:{200:064d}")
    assert set(facts) == {"prepared", "rows train", "label a", "source t.csv"}
    assert not found["same"]
    text = "\n".join(lines(found))
    assert "  finetune.epochs: 2 -> 3" in text
    assert "  finetune.dora: (none) -> True" in text


def test_what_matters_of_two_data_sets_comes_first(tmp_path: Path) -> None:
    first, second = (data(tmp_path, f"rows{rows}", rows) for rows in (100, 200))
    heads = [line.partition(":")[0] for line in lines(diff(first.path, second.path))][2:]
    assert heads[:4] == ["data", "  rows train", "  source t.csv", "  label a"]
    assert heads.index("metrics") < heads.index("files")


def test_two_kinds_are_not_compared(tmp_path: Path) -> None:
    one = data(tmp_path, "one", 100)
    with pytest.raises(UsageError, match=r"is of kind 'prepared'.* of kind 'adapter'"):
        diff(one.path, adapter(tmp_path, "two", one).path)
    with pytest.raises(IntegrityError, match="is no artifact and holds none"):
        diff(one.path, tmp_path / "runs")


def test_reports_are_compared_row_by_row(tmp_path: Path) -> None:
    chance = random.Random(1)
    first = [chance.random() < 0.6 for _ in range(200)]
    second = [right or k % 3 == 0 for k, right in enumerate(first)]
    one = report(tmp_path, "one", {"Q8_0": first, "old": first})
    two = report(tmp_path, "two", {"Q8_0": second, "new": first})
    found = diff(one.path, two.path)
    (model,) = found["models"]
    won = sum(b and not a for a, b in zip(first, second, strict=True))
    paired = model["paired"]
    assert (model["model"], paired["n"], paired["only_first"], paired["only_second"]) == (
        "Q8_0",
        200,
        0,
        won,
    )
    assert paired["p"] == mcnemar(0, won) < 0.001
    assert paired["difference"] == pytest.approx(won / 200)
    assert 0 < paired["interval"][0] < won / 200 < paired["interval"][1]
    assert model["metrics"]["accuracy"]["difference"] == pytest.approx(won / 200)
    text = "\n".join(lines(found))
    assert f"on 200 rows in common: +{won / 2:.1f} points" in text
    assert f"0 rows lost, {won} won): more than chance" in text


def test_a_release_that_answers_by_another_model_is_compared_with_the_one_before(
    tmp_path: Path,
) -> None:
    right = [k % 4 > 0 for k in range(200)]
    one = report(tmp_path, "one", {"Q8_0": [k % 2 > 0 for k in range(200)]})
    two = report(tmp_path, "two", {"Q8_0": right, "Q8_0+sum": [True] * 200})
    found = diff(one.path, two.path)
    assert (
        found["release"]["model"] == "Q8_0 -> Q8_0+sum"
        and found["release"]["paired"]["difference"] == 0.5
    )
    told = list(lines(found))
    assert told.index("release Q8_0 -> Q8_0+sum") < told.index("model Q8_0")
    assert "release" not in diff(two.path, two.path)


def test_rows_are_matched_by_id(tmp_path: Path) -> None:
    """Two data sets that share some rows: only those are compared, wherever they stand."""
    one = report(tmp_path, "one", {"Q8_0": [True] * 10}, [f"r{k}" for k in range(10)])
    two = report(
        tmp_path,
        "two",
        {"Q8_0": [k < 4 for k in range(10)]},
        [f"r{k}" for k in range(9, -1, -1)][:5] + list("abcde"),
    )
    paired = diff(one.path, two.path)["models"][0]["paired"]
    assert (paired["n"], paired["only_first"], paired["only_second"]) == (5, 1, 0)
    other = report(tmp_path, "other", {"Q8_0": [True] * 3}, list("xyz"))
    found = diff(one.path, other.path)
    assert found["models"][0]["paired"] is None
    assert "no row in common" in "\n".join(lines(found))


def test_texts_are_compared_by_their_score(tmp_path: Path) -> None:
    one = report(tmp_path, "one", {"Q8_0": [False] * 50}, task="generate")
    two = report(tmp_path, "two", {"Q8_0": [k % 2 == 0 for k in range(50)]}, task="generate")
    paired = diff(one.path, two.path)["models"][0]["paired"]
    assert paired["metric"] == "token_f1"
    assert paired["difference"] == 0.5
    assert 0.3 < paired["interval"][0] < 0.5 < paired["interval"][1] < 0.7
    assert paired["p"] < 0.01


@pytest.mark.parametrize("task", ["classify", "generate"])
def test_rows_of_one_group_tell_less(tmp_path: Path, task: str) -> None:
    # three customers of thirty answered better were "more than chance": in two thirds of the draws
    # of equal models
    first = [k % 30 > 5 for k in range(450)]
    second = [k % 30 > 2 for k in range(450)]

    def told(*numbered: bool, groups: int = 30) -> tuple[dict[str, Any], str]:
        one, two = (
            report(
                tmp_path / f"{numbered}{groups}",
                f"{k}",
                {"Q8_0": right},
                task=task,
                groups=groups,
                numbered=own,
            )
            for k, (right, own) in enumerate(zip((first, second), numbered, strict=True))
        )
        found = diff(one.path, two.path)
        return found["models"][0]["paired"] or {}, list(lines(found))[-1]

    alone, as_independent = told(True, True, groups=0)
    assert (
        alone["p"] < 0.001 and "groups" not in alone and as_independent.endswith("more than chance")
    )
    for numbered in ((True, True), (True, False), (False, True)):
        paired, said = told(*numbered)
        assert (
            paired["groups"] == 30 and "on 450 rows in common, of 30 groups: +10.0 points" in said
        )
        assert paired["p"] > 10 * alone["p"]
        assert paired["interval"][1] - paired["interval"][0] > 2 * (
            alone["interval"][1] - alone["interval"][0]
        )
        assert task == "generate" or (paired["p"] > 0.2 and said.endswith("may be chance"))
    paired, said = told(False, False)
    assert "p" not in paired and said.endswith(
        "rows come in groups, which neither report tells: not tested"
    )


def test_a_project_stands_for_its_last_report(tmp_path: Path) -> None:
    for name, day in (("old", 1), ("new", 2)):
        report(
            tmp_path / "a",
            name,
            {"Q8_0": [name == "new"] * 10},
            started=f"2026-01-0{day}T00:00:00Z",
        )
    report(tmp_path / "b", "only", {"Q8_0": [True] * 10})
    found = diff(tmp_path / "a", tmp_path / "b")
    assert found["first"]["path"].endswith("new")
    assert found["models"][0]["paired"]["changed"] == 0
    # wrong answers may differ
    assert list(lines(found))[-1] == "  the same rows right of those in common (10)"


def test_a_part_that_one_lacks_is_data_and_no_change_of_config(tmp_path: Path) -> None:
    prepared = data(tmp_path, "one", 100)
    whole = adapter(tmp_path, "whole", prepared)
    alone = make(
        tmp_path,
        "adapter",
        "alone",
        config={"epochs": 2, "lora": {"rank": 16}},
        metrics={"loss": 0.25},
    )
    found = diff(whole.path, alone.path)
    assert changed(found, "config") == {}
    assert changed(found, "data")["prepared"] == (prepared.digest, None)
    assert changed(found, "metrics") == {"loss": (0.5, 0.25)}


def test_answers_of_several_models_are_a_line() -> None:
    # a line a model, whose digest follows from the other changes, hid what had changed
    part: FieldChange = {"key": "adapter", "first": "sha256:1", "second": "sha256:2"}
    data: list[FieldChange] = [
        part,
        *({**part, "key": f"predictions {name}"} for name in ("base", "Q8_0")),
    ]
    place: Place = {"path": "p", "digest": "d", "started": "now"}
    nothing: dict[str, Any] = {
        key: [] for key in ("config", "environment", "files", "metrics", "models")
    }
    found = Comparison(kind="report", first=place, second=place, same=False, data=data, **nothing)
    said = list(lines(found))[2:]
    assert said == ["data", "  adapter: sha256:1 -> sha256:2", "  predictions of 2 models differ"]


@pytest.mark.slow
def test_the_command_on_releases(stages: Forks, desk: Path, tmp_path: Path) -> None:
    """A release made twice with another rule: its manifest, its report and all that led to it."""
    (first,) = (desk / "runs" / "published").iterdir()
    rule = ("--set", "confidence=0.9", "--set", 'version="1.1"')
    second = tiny.ok(stages.run(desk, "run", "--yes", *rule))
    found = json.loads(tiny.ok(stages.run(desk, "diff", str(first), second, "--json")))
    assert found["kind"] == "published"
    assert changed(found, "config")["evaluate.confidence"] == (0.95, 0.9)
    assert changed(found, "config")["publish.version"] == ("1.0", "1.1")
    assert all(model["paired"]["p"] == 1.0 for model in found["models"])
    text = tiny.ok(stages.run(desk, "diff", str(desk), str(first)))
    assert "evaluate.confidence: 0.9 -> 0.95" in text
    # a release by itself: nothing of what it came from is here
    registry = desk / "registry" / "tiny-desk"
    alone = json.loads(
        tiny.ok(
            stages.run(tmp_path, "diff", str(registry / "1.0"), str(registry / "1.1"), "--json")
        )
    )
    assert changed(alone, "config") == {"publish.version": ("1.0", "1.1")}
    assert len(alone["models"]) == len(found["models"]) == 6
