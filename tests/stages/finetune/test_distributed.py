"""Several processes train as one does: the same losses, one artifact, one voice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.forks import Forks
from support.servers import free_port

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.errors import UsageError

torch = pytest.importorskip("torch")

from slmctl.stages.finetune import distributed, finetune  # noqa: E402

# exact products, so that only the order of sums differs; 84 records make the last batch of an epoch
# half full
SHORT = ("finetune.epochs=2", "finetune.matmul_dtype=float32")
TORCHRUN = (
    "torch.distributed.run",
    "--standalone",
    "--local_addr",
    "127.0.0.1",
    "--nproc_per_node",
    "2",
    "-m",
)


def sets(*given: str) -> list[str]:
    return [word for one in given for word in ("--set", one)]


def start_two(desk: Path, *given: str, path: Path | None = None) -> subprocess.Popen[str]:
    """Start the training of a project in two processes, as a user does with torchrun."""
    return subprocess.Popen(
        [sys.executable, "-m", *TORCHRUN, "slmctl", "-C", str(desk), "finetune", *sets(*given)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=tiny.environment(**({"PYTHONPATH": str(path)} if path else {})),
    )


def in_two(desk: Path, *given: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Train a project in two processes."""
    child = start_two(desk, *given, path=path)
    try:
        out, err = child.communicate(timeout=180)
    finally:
        end(child)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def end(child: subprocess.Popen[str]) -> None:
    """Kill torchrun and its processes, each of which leads a session of its own."""
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
            os.killpg(int(pid), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


@pytest.fixture(scope="module")
def untrained(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "desk"
    folder.mkdir()
    for name in ("slmctl.yaml", "tickets.csv"):
        shutil.copy(tiny_run / name, folder)
    for name in ("base", "runs/base", "runs/prepared"):
        shutil.copytree(tiny_run / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def alone(
    stages: Forks, untrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """The log of a training in one process."""
    folder = tmp_path_factory.mktemp("alone") / "desk"
    shutil.copytree(untrained, folder)
    tiny.ok(stages.run(folder, "finetune", *sets(*SHORT)))
    return log_of(made(folder))


@pytest.fixture
def desk(untrained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained, tmp_path / "desk"))


def made(desk: Path) -> artifact.Artifact:
    """The one adapter of a folder; nothing else may lie beside it."""
    (folder,) = (desk / "runs" / "adapter").iterdir()
    assert not artifact.verify_folder(folder)
    return artifact.load(folder)


def contents(adapter: artifact.Artifact) -> dict[str, str]:
    """The hash of every file but the log."""
    return {
        entry.path: entry.sha256
        for entry in adapter.manifest.files
        if entry.path != "metrics.jsonl"
    }


def log_of(adapter: artifact.Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in adapter.file("metrics.jsonl").read_text().splitlines()]


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [set(entry) for entry in found] == [set(entry) for entry in wanted]
    for entry, own in zip(found, wanted, strict=True):
        assert entry == pytest.approx(own, rel=1e-3)


# What a process of a training prints when its interpreter ends: the threads that are left.
THREADS = """
import atexit, os, pathlib, sys
if "RANK" in os.environ:
    atexit.register(lambda: print(
        "at the end:", sorted(path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")),
        file=sys.stderr,
    ))
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(
    desk: Path, tmp_path: Path, alone: list[dict[str, Any]]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(THREADS)
    done = in_two(desk, *SHORT, path=tmp_path)
    assert tiny.ok(done) == str(made(desk).path)
    assert made(desk).metrics["processes"] == 2
    assert made(desk).metrics["record_tokens"] > 0
    assert_same(log_of(made(desk)), alone)
    assert done.stderr.count("validation loss before training") == 1, "one process speaks"
    assert done.stderr.count(str(made(desk).path)) == 1, "one process speaks"
    assert "Warning" not in done.stderr
    # gloo's threads may abort the process if the interpreter ends before they do
    threads = [line for line in done.stderr.splitlines() if line.startswith("at the end:")]
    assert len(threads) == 2
    assert "gloo" not in "".join(threads)


@pytest.mark.slow
def test_tasks_of_slurm_train_as_one_process_does(desk: Path, alone: list[dict[str, Any]]) -> None:
    # srun once started two trainings, the second of which waited for the first one's lock
    children = [
        tiny.start(
            desk,
            "finetune",
            *sets(*SHORT),
            env=tiny.environment(
                SLURM_STEP_ID="0",
                SLURM_NTASKS="2",
                SLURM_PROCID=str(k),
                SLURM_LOCALID=str(k),
                SLURM_STEP_TASKS_PER_NODE="2",
                MASTER_PORT=port,
            ),
        )
        for port in [str(free_port())]
        for k in range(2)
    ]
    try:
        said = [child.communicate(timeout=180) for child in children]
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                tiny.kill_group(child)
    assert [child.returncode for child in children] == [0, 0], said
    assert "".join(out for out, _ in said).splitlines() == [str(made(desk).path)]
    assert made(desk).metrics["processes"] == 2
    assert_same(log_of(made(desk)), alone)
    assert "".join(err for _, err in said).count("validation loss before training") == 1, (
        "one process speaks"
    )


RANKS = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("slurm", "wanted"),
    [
        ({}, {}),
        ({"SLURM_NTASKS": "4"}, {}),  # inside sbatch or salloc, without srun
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, {}),
        # a shell in an allocation of 4
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, {}),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "RANK": "7"}, {"RANK": "7"}),  # under torchrun
        (
            {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
            {
                "RANK": "3",
                "WORLD_SIZE": "4",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "29500",
            },
        ),
        (
            {
                "SLURM_NTASKS": "4",
                "SLURM_STEP_ID": "0",
                "SLURM_STEP_TASKS_PER_NODE": "3,1",
                "MASTER_ADDR": "node7",
            },
            {
                "RANK": "3",
                "WORLD_SIZE": "4",
                "LOCAL_RANK": "1",
                "MASTER_ADDR": "node7",
                "MASTER_PORT": "29500",
            },
        ),
    ],
)
def test_what_slurm_says_of_a_task_is_said_as_torchrun_would(
    monkeypatch: pytest.MonkeyPatch, slurm: dict[str, str], wanted: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "environ", RANKS | slurm)
    distributed.join_slurm()
    assert {
        name: value for name, value in os.environ.items() if not name.startswith("SLURM")
    } == wanted


@pytest.mark.slow
def test_after_a_kill_or_ctrl_c_the_next_run_ends_with_the_same_bytes(desk: Path) -> None:
    # dropout: only the first process's random state was kept once, and the others went on
    # differently
    dropout = ("finetune.epochs=4", "finetune.lora.dropout=0.3")
    tiny.ok(in_two(desk, *dropout))
    files, log = contents(made(desk)), log_of(made(desk))
    for interrupted in (False, True):  # else all are killed
        shutil.rmtree(desk / "runs" / "adapter")
        child = start_two(desk, *dropout)
        try:
            while len(list(desk.glob("runs/adapter/.resume-*/step-*"))) < 2:
                assert child.poll() is None, child.communicate()
                time.sleep(0.005)
            if interrupted:
                child.send_signal(signal.SIGINT)  # torchrun hands it on to each process once
                assert "interrupted at step" in child.communicate(timeout=60)[1]
        finally:
            end(child)
        done = in_two(desk, *dropout)
        tiny.ok(done)
        assert "going on from step-" in done.stderr
        assert contents(made(desk)) == files
        # the processes' sums of losses since the last entry are rounded apart where a checkpoint
        # falls between entries
        assert_same(log_of(made(desk)), log)


@pytest.mark.slow
def test_a_training_that_diverges_in_two_processes_leaves_nothing(desk: Path) -> None:
    done = in_two(
        desk,
        "finetune.learning_rate=0.99",
        "finetune.max_grad_norm=1e30",
        "finetune.lora.alpha=1e25",
    )
    assert done.returncode != 0
    assert "training diverged: the gradient is" in done.stderr
    assert done.stdout == ""
    assert not list((desk / "runs" / "adapter").iterdir())


def test_a_batch_that_the_processes_cannot_share_is_refused_before_the_base_is_read(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    base = artifact.Artifact(
        tmp_path / "no-base", artifact.load(next((untrained / "runs/base").iterdir())).manifest
    )
    with pytest.raises(UsageError, match="batch_size 16 does not divide by 3 processes") as caught:
        finetune.run(
            config.FinetuneConfig(batch_size=16),
            base=base,
            prepared=base,
            out=tmp_path,
            keep=tmp_path,
        )
    assert caught.value.hint == "--set finetune.batch_size=18"
