"""Estimates of a plan, corrected by what artifacts of this machine took."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support.handmade import opened

from slmctl import hardware
from slmctl.artifacts import artifact, atomic
from slmctl.artifacts.artifact import MANIFEST, Artifact
from slmctl.cli import run_plan
from slmctl.cli.group import CHAIN
from slmctl.pipeline import plan
from slmctl.pipeline.plan import StagePlan

RATES = {"float32": 100.0, "bfloat16": 400.0}
ANEW = ("finetune.epochs=3", "quantize.types=[Q8_0]")  # finetune and all after it run anew


def stages(desk: Path, *sets: str) -> dict[str, StagePlan]:
    return {
        stage.name: stage for stage in plan.plan(opened(desk, *(sets or ANEW)), CHAIN, RATES).stages
    }


def rewritten(made: Artifact, **fields: object) -> None:
    """Change a manifest: neither recipe nor digest knows the fields that measure."""
    manifest = dataclasses.replace(made.manifest, **fields)  # type: ignore[arg-type]
    assert (manifest.recipe_id, manifest.digest) == (made.manifest.recipe_id, made.manifest.digest)
    atomic.write(made.path / MANIFEST, manifest.to_bytes())


def only(desk: Path, kind: str) -> Artifact:
    (path,) = (desk / "runs" / kind).iterdir()
    return artifact.load(path)


def elsewhere(desk: Path) -> None:
    """Let all artifacts be of another machine."""
    for path in (desk / "runs").glob("[!.]*/[!.]*"):
        made = artifact.load(path)
        rewritten(made, environment=made.manifest.environment | {"processor": "another"})


def test_artifacts_say_what_made_them(desk: Path) -> None:
    assert only(desk, "adapter").manifest.environment["processor"] == hardware.processor()
    assert f"{hardware.usable_cores()} cores" in hardware.processor()
    (release,) = (desk / "runs" / "published").iterdir()
    assert hardware.processor() not in (release / "lineage.intoto.json").read_text()


def test_an_estimate_is_scaled_by_what_the_stage_took_here(desk: Path) -> None:
    made, environment = only(desk, "adapter"), only(desk, "adapter").manifest.environment
    elsewhere(desk)
    unmeasured = stages(desk)
    assert not any(stage.measured for stage in unmeasured.values())
    # as long as the one that is here
    own = plan.plan(opened(desk, "finetune.seed=1"), CHAIN, RATES).stages
    (estimated,) = (stage.seconds for stage in own if stage.name == "finetune")
    longer = unmeasured["finetune"].seconds
    assert estimated and longer and longer < estimated
    rewritten(made, seconds=1000.0)
    scaled = stages(desk)
    assert scaled["finetune"].measured and scaled["finetune"].seconds == pytest.approx(
        1000 * longer / estimated
    )
    assert scaled["merge"] == unmeasured["merge"]  # of another machine
    printed = list(run_plan.lines(plan.plan(opened(desk, *ANEW), CHAIN, RATES)))
    assert "time       of finetune as measured here" in printed
    for fields in (
        {"stage": "finetune/1"},
        {"seconds": 0.001, "metrics": {}},  # linked from another one
        {"metrics": made.metrics | {"interrupted": True}},
        {"environment": environment | {"processor": "another"}},
    ):
        rewritten(made, **({"seconds": 1000.0} | fields))
        assert stages(desk)["finetune"] == unmeasured["finetune"], fields


def test_a_training_that_went_on_took_the_time_of_all_its_steps(desk: Path) -> None:
    made = only(desk, "adapter")
    facts = made.metrics | {"tokens_per_s": 0.5, "record_tokens": 500}
    rewritten(made, seconds=10.0, metrics=facts)  # of the last steps
    whole = stages(desk)["finetune"].seconds
    rewritten(made, seconds=1000.0)
    assert whole == stages(desk)["finetune"].seconds


def test_a_report_takes_the_time_of_its_predictions(desk: Path) -> None:
    elsewhere(desk)
    before = stages(desk, "confidence=0.9")["evaluate"]
    made = only(desk, "report")
    rewritten(
        made,
        seconds=4.0,
        environment=made.manifest.environment | {"processor": hardware.processor()},
    )
    answered = [artifact.load(path) for path in (desk / "runs" / "predictions").iterdir()]
    for each in answered:
        rewritten(each, seconds=100.0)
    after = stages(desk, "confidence=0.9")["evaluate"]
    assert after.seconds == pytest.approx(4 + 100 * len(answered)) and not before.measured
    fewer = {"predictions": made.manifest.inputs["predictions"][:1]}
    rewritten(
        made, inputs=made.manifest.inputs | fewer, environment={"processor": hardware.processor()}
    )
    assert stages(desk, "confidence=0.9")["evaluate"] == before
