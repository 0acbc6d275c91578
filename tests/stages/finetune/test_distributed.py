"""Several processes train as one does: the same losses, one artifact, one voice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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

# exact products, so that only the order of sums differs; 84 records make the last batch of an epoch half full
SHORT = ("finetune.epochs=2", "finetune.matmul_dtype=float32")


def sets(*given: str) -> list[str]:
    return [word for one in given for word in ("--set", one)]


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
def alone(stages: Forks, untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
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


def test_two_processes_train_as_one_does(desk: Path, tmp_path: Path, alone: list[dict[str, Any]]) -> None:
    (tmp_path / "sitecustomize.py").write_text(THREADS)
    environment = tiny.environment(PYTHONPATH=str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:  # as where another project trains
        args = sets(*SHORT, "finetune.processes=2", f"finetune.main_port={taken.getsockname()[1]}")
        done = tiny.slmctl(desk, "finetune", *args, env=environment)
    assert tiny.ok(done) == str(made(desk).path)
    assert made(desk).metrics["processes"] == 2
    assert made(desk).metrics["record_tokens"] > 0
    assert_same(log_of(made(desk)), alone)
    assert done.stderr.count("validation loss before training") == 1, "one process speaks"
    assert "Warning" not in done.stderr
    # gloo's threads may abort the process if the interpreter ends before they do
    threads = [line for line in done.stderr.splitlines() if line.startswith("at the end:")]
    assert len(threads) == 2
    assert "gloo" not in "".join(threads)


def test_a_port_that_is_taken_is_one_sentence(stages: Forks, desk: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = stages.run(desk, "finetune", *sets(*SHORT, "finetune.machines=2", f"finetune.main_port={port}"))
    assert done.returncode == 9, done.stderr
    assert f"machine 0 cannot meet the others at 127.0.0.1:{port}: address already in use" in done.stderr
    assert "hint: --set finetune.main_port=PORT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_processes_started_from_outside_train_as_one_does(desk: Path, alone: list[dict[str, Any]]) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
        "--master_port", str(free_port()), "-m", "slmctl", "-C", str(desk), "finetune", *sets(*SHORT),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), timeout=120, check=False)
    assert set(tiny.ok(done).splitlines()) == {str(made(desk).path)}
    assert made(desk).metrics["processes"] == 2
    assert_same(log_of(made(desk)), alone)
    assert done.stderr.count("validation loss before training") == 1, "one process speaks"


@pytest.mark.slow
def test_tasks_of_slurm_train_as_one_process_does(desk: Path, alone: list[dict[str, Any]]) -> None:
    # srun once started two trainings, the second of which waited for the first one's lock
    children = [
        tiny.start(
            desk, "finetune", *sets(*SHORT, f"finetune.main_port={port}"),
            env=tiny.environment(
                SLURM_STEP_ID="0", SLURM_NTASKS="2", SLURM_PROCID=str(k), SLURM_LOCALID=str(k),
                SLURM_STEP_TASKS_PER_NODE="2",
            ),
        )
        for port in [free_port()] for k in range(2)
    ]  # fmt: skip
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
    assert "".join(err for _, err in said).count("validation loss before training") == 1, "one process speaks"


RANKS = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("slurm", "wanted"),
    [
        ({}, {}),
        ({"SLURM_NTASKS": "4"}, {}),  # inside sbatch or salloc, without srun
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, {}),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, {}),  # a shell in an allocation of 4
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "RANK": "7"}, {"RANK": "7"}),  # under torchrun
        (
            {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1",
             "MASTER_PORT": "4711"},
        ),
        (
            {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "3,1", "MASTER_ADDR": "node7"},
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "4711"},
        ),
    ],
)  # fmt: skip
def test_what_slurm_says_of_a_task_is_said_as_torchrun_would(
    monkeypatch: pytest.MonkeyPatch, slurm: dict[str, str], wanted: dict[str, str]
) -> None:
    given = RANKS | slurm
    monkeypatch.setattr(os, "environ", dict(given))
    distributed.join_slurm(config.FinetuneConfig(main_address="node1", main_port=4711))
    assert {name: value for name, value in os.environ.items() if not name.startswith("SLURM")} == wanted


def running(desk: Path) -> list[int]:
    """The processes that were told about a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(desk).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_end_with_the_one_that_started_them(desk: Path, number: signal.Signals) -> None:
    args = sets("finetune.epochs=500", "finetune.patience=null", "finetune.processes=2")
    child = tiny.start(desk, "finetune", *args)
    try:
        while not list(desk.glob("runs/adapter/.resume-*/step-*")):
            assert child.poll() is None, child.communicate()
            time.sleep(0.05)
        assert len(running(desk)) == 4  # slmctl, what starts the others, and they
        child.send_signal(number)
        deadline = time.monotonic() + 20
        while running(desk) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not running(desk)
    finally:
        with contextlib.suppress(ProcessLookupError):
            tiny.kill_group(child)


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on_to_the_same_adapter(stages: Forks, desk: Path) -> None:
    # dropout: only the first process's random state was kept once, and the others went on differently
    dropout = ("finetune.epochs=4", "finetune.lora.dropout=0.3")
    args = ["finetune", *sets(*dropout, "finetune.processes=2")]
    tiny.ok(stages.run(desk, *args))
    wanted = made(desk).digest
    shutil.rmtree(desk / "runs" / "adapter")
    child = tiny.start(desk, *args)
    while len(list(desk.glob("runs/adapter/.resume-*/step-*"))) < 2:
        assert child.poll() is None, child.communicate()
        time.sleep(0.005)
    tiny.kill_group(child)
    done = stages.run(desk, *args)
    tiny.ok(done)
    assert "going on from step-" in done.stderr
    assert made(desk).digest == wanted


@pytest.mark.slow
def test_what_a_process_refuses_is_said_once_and_leaves_nothing(stages: Forks, desk: Path) -> None:
    args = sets("finetune.max_length=16", "finetune.processes=2")
    done = stages.run(desk, "finetune", *args)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("error: record ") == 1
    assert "max_length is 16" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list((desk / "runs" / "adapter").iterdir())


@pytest.mark.slow
def test_a_training_that_diverges_in_two_processes_names_the_step(stages: Forks, desk: Path) -> None:
    wild = ("finetune.learning_rate=0.99", "finetune.max_grad_norm=1e30", "finetune.lora.alpha=1e25")
    args = sets(*wild, "finetune.processes=2")
    done = stages.run(desk, "finetune", *args)
    assert done.returncode == 6, done.stderr
    assert "training diverged: the gradient is" in done.stderr
    assert "at step 1" in done.stderr
    assert not list((desk / "runs" / "adapter").iterdir())


# Several machines: two network namespaces that only a cable joins, over one folder


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Names of two namespaces, whose addresses are 10.87.3.1 and 10.87.3.2."""
    names = [f"slmctl{os.getpid()}n{k}" for k in (0, 1)]
    ends = [f"v{os.getpid()}n{k}" for k in (0, 1)]
    steps = [f"netns add {name}" for name in names]
    steps.append(f"link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}")
    for name, end, number in zip(names, ends, (1, 2), strict=True):
        steps += [f"-n {name} addr add 10.87.3.{number}/24 dev {end}"]
        steps += [f"-n {name} link set {up} up" for up in (end, "lo")]
    if shutil.which("ip") is None:
        pytest.skip("there is no ip(8) here")
    try:
        for step in steps:
            done = subprocess.run(["ip", *step.split()], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"no network namespaces here: ip {step}: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def on_machines(names: list[str], folders: list[Path], *given: str) -> list[subprocess.CompletedProcess[str]]:
    """One `slmctl finetune` on each machine, at the same time."""
    shared = ("finetune.machines=2", "finetune.main_address=10.87.3.1", *given)
    children = [
        subprocess.Popen(
            ["ip", "netns", "exec", name,
             *tiny.command(folder, "finetune", *sets(*shared, f"finetune.machine_rank={rank}"))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=tiny.environment(), start_new_session=True,
        )
        for rank, (name, folder) in enumerate(zip(names, folders, strict=True))
    ]  # fmt: skip
    try:
        said = [child.communicate(timeout=180) for child in children]
        return [
            subprocess.CompletedProcess(child.args, child.returncode, *texts)
            for child, texts in zip(children, said, strict=True)
        ]
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.slow
def test_two_machines_train_as_one_process_does(machines: list[str], desk: Path, alone: list[dict[str, Any]]) -> None:
    # the second machine once waited for the lock that the first one held, and found no result of its own
    first, second = on_machines(machines, [desk, desk], *SHORT)
    assert tiny.ok(first) == tiny.ok(second) == str(made(desk).path)
    assert made(desk).metrics["processes"] == 2
    assert_same(log_of(made(desk)), alone)
    assert (first.stderr + second.stderr).count("validation loss before training") == 1, "one process speaks"


@pytest.mark.slow
def test_a_machine_that_finds_no_way_to_the_first_says_so(machines: list[str], desk: Path) -> None:
    first, second = on_machines(machines, [desk, desk], "finetune.main_address=192.0.2.1")
    assert {first.returncode, second.returncode} == {9}
    assert "there is no way to machine 0 at 192.0.2.1" in first.stderr


def test_a_batch_that_the_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="batch_size 16 does not divide by gradient_accumulation_steps and processes"):
        config.FinetuneConfig.model_validate({"processes": 3})
    monkeypatch.setenv("WORLD_SIZE", "3")  # started from outside, which the config cannot know
    with pytest.raises(
        UsageError, match="batch_size 16 does not divide by gradient_accumulation_steps 1 times 3 processes"
    ) as caught:
        finetune.make_trainer(config.FinetuneConfig(), None, None, [], [], Path("keep"))
    assert caught.value.hint == "--set finetune.batch_size=18"
