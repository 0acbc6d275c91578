"""report_to: trackers that keep their records in files follow a run, and contact nobody."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
from support import tiny
from support.forks import Forks

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.config import FinetuneConfig
from slmctl.errors import MissingError

pytest.importorskip("torch")


def trained(stages: Forks, desk: Path, tracker: str, **settings: str) -> Artifact:
    """The adapter of `desk` made again, watched by a tracker."""
    shutil.rmtree(desk / "runs" / "adapter")
    done = stages.run(desk, "finetune", "--set", f"finetune.report_to=[{tracker}]", env=settings, cwd=desk)
    made = artifact.load(Path(tiny.ok(done)))
    assert made.manifest.environment["hosts_contacted"] == []
    return made


def losses(adapter: Artifact) -> list[float]:
    """The validation losses, from before the first step to the last, as the adapter's own log has them."""
    entries = [json.loads(line) for line in adapter.file("metrics.jsonl").read_text().splitlines()]
    return [adapter.metrics["validation_loss_before"], *(e["eval_loss"] for e in entries if "eval_loss" in e)]


def test_tensorboard_follows_a_run_without_changing_it(
    stages: Forks, desk: Path, artifacts: dict[str, Artifact]
) -> None:
    # its files once went into the folder of checkpoints, which is removed when the training ends
    protocol = pytest.importorskip("tensorboardX.proto.event_pb2")
    adapter = trained(stages, desk, "tensorboard")
    assert adapter.digest == artifacts["adapter"].digest
    (written,) = desk.glob(f"tensorboard/{adapter.path.name}/events.out.tfevents.*")
    raw, seen, at = written.read_bytes(), [], 0
    while at < len(raw):  # length (8 bytes) and its sum (4), the event, its sum (4)
        (length,) = struct.unpack_from("<Q", raw, at)
        event = protocol.Event.FromString(raw[at + 12 : at + 12 + length])
        seen += [value.simple_value for value in event.summary.value if value.tag == "eval/loss"]
        at += 12 + length + 4
    assert seen == pytest.approx(losses(adapter), rel=1e-5)


def test_mlflow_follows_a_run_in_a_folder(stages: Forks, desk: Path, artifacts: dict[str, Artifact]) -> None:
    pytest.importorskip("mlflow")
    store = desk / "mlruns"
    adapter = trained(stages, desk, "mlflow", MLFLOW_TRACKING_URI=store.as_uri(), MLFLOW_ALLOW_FILE_STORE="true")
    assert adapter.digest == artifacts["adapter"].digest
    (written,) = store.glob("*/*/metrics/eval_loss")  # a line holds time, value and step
    seen = [float(line.split()[1]) for line in written.read_text().splitlines()]
    assert seen == pytest.approx(losses(adapter), rel=1e-5)


def test_a_tracker_that_nobody_knows_is_refused(stages: Forks, desk: Path) -> None:
    # it was once a ValueError, after the base had been loaded
    shutil.rmtree(desk / "runs" / "adapter")
    done = stages.run(desk, "finetune", "--set", "finetune.report_to=[mlfow]")
    assert done.returncode == 2, done.stderr
    assert "error: finetune.report_to: 'mlfow' is no tracker that transformers knows" in done.stderr
    assert "mlflow" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((desk / "runs" / "adapter").iterdir())


@pytest.mark.parametrize(("tracker", "package"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_a_tracker_that_is_not_installed_is_named_with_its_package(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, package: str
) -> None:
    from slmctl.stages.finetune import finetune

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=f"{tracker} needs the package '{package}'") as caught:
        finetune.run(
            FinetuneConfig(report_to=[tracker]), base=artifacts["base"], prepared=artifacts["prepared"], out=tmp_path,
            keep=tmp_path,
        )  # fmt: skip
    assert caught.value.hint == f"pip install {package}"
