"""The release that gates compare with: which one it is, and that
a promotion makes no report stale.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import TESTS, tiny
from support.forks import Forks
from support.handmade import opened
from support.released import release

from slmctl import config
from slmctl.artifacts.artifact import Artifact, load
from slmctl.config import FILENAME
from slmctl.errors import IntegrityError, UsageError
from slmctl.metrics.baseline import BASELINES
from slmctl.pipeline import plan, project_gates
from slmctl.releases import deliveries, registry, targets
from slmctl.releases.targets.local import FolderTarget

GATE = "{metric: accuracy, model: Q8_0, against: production, max_drop: 0.6}"
CONFIG = f"project: desk\nbase: ./base\nquantize: {{types: [Q8_0]}}\ngates: [{GATE}]\n"


def sent(root: Path, made: Artifact, tag: str | None = None) -> Artifact:
    place = FolderTarget(root / "registry")
    targets.deliver(place, targets.plan(place, "dir:./registry", targets.shipment(made)))
    if tag:
        there = registry.find(root / "registry", str(made.metrics["version"]))
        registry.record_gates(root / "registry", there, [])
        registry.promote(root / "registry", there, tag)
    return made


def of(
    root: Path, text: str = CONFIG, own: frozenset[str] = frozenset()
) -> project_gates.Reference | None:
    return project_gates.reference(config.parse(text), root, own)


def version(known: project_gates.Reference | None) -> str:
    assert known is not None
    assert known.release is not None
    return str(known.release.metrics["version"])


def test_nothing_is_looked_up_where_no_gate_asks(tmp_path: Path) -> None:
    assert of(tmp_path, CONFIG.partition("gates:")[0]) is None


def test_the_first_release_has_nothing_to_compare_with(tmp_path: Path) -> None:
    told = (
        "no production release in dir:./registry yet: nothing to compare, so gates against it pass"
    )
    for prepare in (lambda: None, lambda: sent(tmp_path, release(tmp_path))):
        prepare()
        known = of(tmp_path)
        assert known is not None
        assert (known.release, known.state) == (None, told)
    assert project_gates.checked_gates(config.parse(CONFIG), tmp_path) == []


def test_a_tag_is_followed_and_a_promotion_compares_with_the_version_before(tmp_path: Path) -> None:
    old, new = release(tmp_path, "1.0"), release(tmp_path, "1.1", weights=b"newer")
    files = frozenset(new.metrics["files"].values())
    sent(tmp_path, old, "production")
    sent(tmp_path, new)
    known = of(tmp_path, own=files)
    assert version(known) == "1.0"
    assert known is not None
    assert known.state == "gates compare with production, which is desk 1.0 in dir:./registry"
    assert project_gates.checked_gates(config.parse(CONFIG), tmp_path) == config.parse(CONFIG).gates
    sent(tmp_path, new, "production")
    assert version(of(tmp_path, own=files)) == "1.0"  # as it was measured before the promotion
    assert version(of(tmp_path)) == "1.1"  # of another model
    sent(tmp_path, release(tmp_path, "1.2", weights=b"newer"), "production")
    assert version(of(tmp_path, own=files)) == "1.0"  # 1.1 is the same model
    shutil.rmtree(tmp_path / "registry" / "desk" / "1.0")
    after = of(tmp_path, own=files)
    assert after is not None
    assert after.release is None


def test_another_registry_and_tag_by_address(tmp_path: Path) -> None:
    sent(tmp_path, release(tmp_path, "1.0"), "candidate")
    text = (
        CONFIG.replace("production", "'dir:registry#desk@candidate'")
        + "publish: {to: 'hf:some/where'}\n"
    )
    assert version(of(tmp_path, text)) == "1.0"
    with pytest.raises(
        UsageError,
        match=r"publish.to hf:some/where has no tags; 'dir:REGISTRY#desk@production' names",
    ):
        of(tmp_path, CONFIG + "publish: {to: 'hf:some/where'}\n")


def test_a_registry_that_is_not_mounted_is_not_an_empty_one(tmp_path: Path) -> None:
    made = sent(tmp_path, release(tmp_path), "production")
    deliveries.record(tmp_path / "runs", made, "dir:./registry")
    (tmp_path / "registry").rename(tmp_path / "away")
    with pytest.raises(IntegrityError, match="nobody can say what is in production"):
        of(tmp_path)


@pytest.mark.slow
def test_a_candidate_is_measured_beside_production_and_promoted(stages: Forks, desk: Path) -> None:
    more = f"gates:\n- {GATE}\n- {GATE[:-1]}, rows: old}}\n"
    text = (desk / FILENAME).read_text() + more
    (desk / FILENAME).write_text(text.replace("[base, adapter, gguf]", "[gguf]"))
    first = stages.run(desk, "evaluate")
    tiny.ok(first)
    assert (
        first.stderr.count(
            "gate passed: no production release yet: nothing to compare accuracy of Q8_0"
        )
        == 2
    )
    tiny.ok(stages.run(desk, "promote", "1.0", "--tag", "production"))
    # its own release: still nothing before it
    assert tiny.ok(stages.run(desk, "evaluate")) == first.stdout.strip()

    text = (desk / FILENAME).read_text().replace('version: "1.0"', 'version: "1.1"')
    (desk / FILENAME).write_text(
        text.replace("[Q8_0, F16]", "[Q4_0]").replace("model: Q8_0", "model: Q4_0")
    )
    project = opened(desk)
    (told,) = (
        need
        for need in plan.plan(project, ["quantize", "evaluate"]).requirements
        if need.name == "release"
    )
    assert told.state == "gates compare with production, which is tiny-desk 1.0 in dir:./registry"
    ran = stages.run(desk, "run", "--yes")
    tiny.ok(ran)
    place = newest(desk)
    report = json.loads(place.read_text())
    entry = report["models"]["production"]
    assert (entry["kind"], report["focus"]) == ("release", "Q4_0")
    assert entry["sha256"] == registry.find(desk / "registry", "1.0").metrics["files"]["Q8_0"]
    assert report["release"]["title"] == "tiny-desk 1.0"
    assert (report["release"]["trained_on"], report["release"]["rows"]["new"]["n"]) == (0, 0)
    old = report["release"]["rows"]["old"]
    assert old["n"] == report["n"]
    assert old["values"] == {
        name: report["models"][name]["metrics"] for name in ("Q4_0", "production")
    }
    assert f"on the {report['n']} old rows" in ran.stderr
    page = (place.parent / "report.html").read_text()
    assert "Against production" in page
    assert "tiny-desk 1.0" in page

    tiny.ok(stages.run(desk, "promote", "1.1", "--tag", "production"))
    again = stages.run(desk, "run")
    tiny.ok(again)
    assert newest(desk) == place  # a promotion makes no report stale, so nothing is published anew
    assert "will run" not in again.stderr


def newest(desk: Path) -> Path:
    return max(desk.glob("runs/report/*/report.json"), key=lambda path: path.stat().st_mtime_ns)


def test_a_better_cheap_model_that_no_gate_names_is_told() -> None:
    # the nightly script trains all the same, and released what lost to a linear model, without a
    # word
    kept = load(TESTS / "fixtures" / "0.1.0" / "report")
    report: Any = SimpleNamespace(
        path=Path(), metrics=copy.deepcopy(kept.metrics), is_release=False
    )
    model = report.metrics["focus"]
    (pair,) = (
        names
        for names in report.metrics["pairs"]
        if {*names.split("|")} == {model, "tfidf_logistic"}
    )
    sign = 1 if pair.endswith("tfidf_logistic") else -1

    def told(text: str, difference: float, p: float = 0.01) -> str:
        bounds = sorted((sign * (difference - 0.05), sign * (difference + 0.05)))
        report.metrics["pairs"][pair]["metrics"]["accuracy"] |= {"interval": bounds, "p": p}
        project: Any = SimpleNamespace(config=config.parse(text))
        return project_gates.unguarded(project, report)

    plain = CONFIG.partition("gates:")[0]
    assert told(plain, 0.2).startswith(
        f"tfidf_logistic is surely better than {model}, which is to be released"
    )
    for kind, takes in (
        ("classify", f"{BASELINES['tfidf_logistic'].release} releases that one, and "),
        ("tag", ""),
    ):
        assert f"names tfidf_logistic; {takes}{{metric: " in told(
            f"{plain}task: {{kind: {kind}, labels: [a, b]}}\n", 0.2
        )
    assert not told(plain, 0.0)
    assert not told(plain, 0.2, 0.125)  # four rows won and none lost ended a run with 5
    assert not told(
        plain
        + "gates: [{metric: accuracy, model: Q8_0, against: tfidf_logistic, max_drop: 0.5}]\n",
        0.2,
    )
    linear = (
        f"{plain}task: {{kind: classify, labels: [a, b]}}\npublish: {{model: linear}}\nencode: "
    )
    report.metrics["baselines"]["encoder_logistic"] = report.metrics["baselines"]["tfidf_logistic"]
    report.metrics["pairs"][pair.replace("tfidf", "encoder")] = report.metrics["pairs"][pair]
    assert told(plain, 0.2).startswith("encoder_logistic") and told(
        linear + "{}\n", 0.2
    ).startswith("tfidf_logistic")
    # the command that it named was the one that ran
    assert not told(linear + "{encoder: none}\n", 0.2)
