"""report_to: a tracker that keeps its records in files follows a run, and contacts nobody."""

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
from slmctl.errors import SlmctlError

pytest.importorskip("torch")

from support.training import trained

FEW = ("--set", "finetune.max_steps=6")


def test_tensorboard_follows_a_run_without_changing_it(stages: Forks, desk: Path) -> None:
    # its files once went into the folder of checkpoints, which is removed when the training ends
    protocol = pytest.importorskip("tensorboardX.proto.event_pb2")
    plain = artifact.load(Path(tiny.ok(stages.run(desk, "finetune", *FEW))))
    shutil.rmtree(plain.path)
    done = stages.run(desk, "finetune", *FEW, "--set", "finetune.report_to=[tensorboard]", cwd=desk)
    adapter = artifact.load(Path(tiny.ok(done)))
    assert adapter.manifest.environment["hosts_contacted"] == []
    assert adapter.digest == plain.digest
    (written,) = desk.glob(f"tensorboard/{adapter.path.name}/events.out.tfevents.*")
    raw, seen, at = written.read_bytes(), [], 0
    while at < len(raw):  # length (8 bytes) and its sum (4), the event, its sum (4)
        (length,) = struct.unpack_from("<Q", raw, at)
        event = protocol.Event.FromString(raw[at + 12 : at + 12 + length])
        seen += [value.simple_value for value in event.summary.value if value.tag == "eval/loss"]
        at += 12 + length + 4
    entries = [json.loads(line) for line in adapter.file("metrics.jsonl").read_text().splitlines()]
    losses = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    assert seen == pytest.approx([adapter.metrics["validation_loss_before"], *losses], rel=1e-5)


@pytest.mark.parametrize(
    ("tracker", "code", "message", "hint"),
    [
        ("mlfow", 2, "finetune.report_to: 'mlfow' is no tracker that transformers knows", "mlflow"),
        ("wandb", 4, "finetune.report_to: wandb needs the package 'wandb', ", "pip install wandb"),
        (
            "tensorboard",
            4,
            "finetune.report_to: tensorboard needs the package 'tensorboardX', ",
            "tensorboardX",
        ),
    ],
)
def test_a_tracker_that_cannot_follow_is_refused_before_anything_is_loaded(
    artifacts: dict[str, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tracker: str,
    code: int,
    message: str,
    hint: str,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SlmctlError) as caught:
        trained(artifacts, tmp_path / "one", report_to=[tracker])
    assert caught.value.code == code
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint
