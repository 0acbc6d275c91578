"""Data-parallel training in several processes: torch starts them, rank 0 writes the adapter.

Machines that train together share the project's folder; each has its own `finetune.machine_rank`, and
machine 0 makes the artifact.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from slmctl import child_environment, errors
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import Artifact
from slmctl.config import FinetuneConfig
from slmctl.errors import NetworkError, StageError
from slmctl.network import guard
from slmctl.pipeline import stage_log
from slmctl.stages.finetune.interruption import STOP_FILE, FirstInterrupt

WORKER = "slmctl.stages.finetune.distributed_worker"  # by name: it imports finetune, which imports this
SIOCGIFADDR = 0x8915  # Linux: the address of an interface


def run_workers(config: FinetuneConfig, *, base: Artifact, prepared: Artifact, out: Path, keep: Path) -> dict[str, Any]:
    """Train in `config.processes` processes on each of `config.machines` machines.

    Returns:
        The manifest's metrics on machine 0, nothing on the others.

    Raises:
        SlmctlError: The failure of the process that failed first.
        StageError: A process ended without reporting one.
    """
    keep.mkdir(parents=True, exist_ok=True)  # another machine may be here first
    job, answer = keep / f"job-{config.machine_rank}.json", keep / "answer.json"
    leads = config.machine_rank == 0
    if leads:
        answer.unlink(missing_ok=True)
    order = {
        "config": config.model_dump(mode="json"), "base": str(base.path), "prepared": str(prepared.path),
        "out": str(out), "keep": str(keep), "answer": str(answer),
        "log": str(stage_log.path_of(keep.with_name(keep.name.removeprefix(".resume-")))),
    }  # fmt: skip
    with atomic.file(job) as draft:
        draft.write_text(json.dumps(order), encoding="utf-8")
    command = [
        sys.executable, "-m", WORKER, "--nproc_per_node", str(config.processes),
        *_meeting_point(config), "-m", WORKER, str(job),
    ]  # fmt: skip
    threads = os.environ.get("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // config.processes, 1)))
    settings = {"OMP_NUM_THREADS": threads} | _interface(config) | _environment(config)
    returncode = _wait_for(command, settings, keep)
    outcome = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
    job.unlink(missing_ok=True)
    if leads:
        answer.unlink(missing_ok=True)
    if "interrupted" in outcome:
        raise KeyboardInterrupt(outcome["interrupted"])
    if "error" in outcome:
        kind, message, hint = outcome["error"]
        raise getattr(errors, kind)(message, hint=hint)
    if returncode != 0 or (leads and "metrics" not in outcome):
        raise StageError(f"a training process ended with code {returncode}", hint="slmctl -v finetune shows more")
    guard.add_receipt(outcome.get("receipt", {}))
    metrics: dict[str, Any] = outcome.get("metrics", {})
    return metrics


def _meeting_point(config: FinetuneConfig) -> list[str]:
    """The arguments that tell torchrun where its processes meet: on one machine at a port that is free."""
    if config.machines == 1:
        return ["--standalone", "--local_addr", "127.0.0.1"]
    return [
        "--nnodes", str(config.machines), "--node_rank", str(config.machine_rank),
        "--master_addr", config.main_address, "--master_port", str(config.main_port),
    ]  # fmt: skip


def _wait_for(command: list[str], settings: dict[str, str], keep: Path) -> int:
    """Run the processes to their end; the first Ctrl-C lets them save a checkpoint. Returns the exit code.

    They are in a session of their own: the terminal sends Ctrl-C to this process alone, and torchrun would end them.
    """
    stop = keep / STOP_FILE
    stop.unlink(missing_ok=True)
    child = subprocess.Popen(
        command, env=settings, stdout=subprocess.DEVNULL, stderr=sys.stderr, start_new_session=True
    )
    try:
        with FirstInterrupt(stop.touch):
            return child.wait()
    finally:
        stop.unlink(missing_ok=True)
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def join_slurm(config: FinetuneConfig) -> None:
    """Set torchrun's variables from Slurm's, where `srun` started this process as one task of several."""
    variables = os.environ
    tasks = int(variables.get("SLURM_STEP_NUM_TASKS") or variables.get("SLURM_NTASKS") or 1)
    if "RANK" in variables or "SLURM_STEP_ID" not in variables or tasks < 2:
        return
    variables.update(RANK=variables["SLURM_PROCID"], WORLD_SIZE=str(tasks), LOCAL_RANK=variables["SLURM_LOCALID"])
    if each := re.fullmatch(r"(\d+)(\(x\d+\))?", variables.get("SLURM_STEP_TASKS_PER_NODE", "")):  # equal on all nodes
        variables["LOCAL_WORLD_SIZE"] = each[1]
    variables.setdefault("MASTER_ADDR", config.main_address)
    variables.setdefault("MASTER_PORT", str(config.main_port))


def _environment(config: FinetuneConfig) -> dict[str, str]:
    """The environment of the training processes: without secrets, unless trackers need keys of their own."""
    return dict(os.environ) if config.report_to else child_environment.without_secrets()


def _interface(config: FinetuneConfig) -> dict[str, str]:
    """gloo's variable for the network interface that leads to machine 0.

    By default gloo takes the interface of the host's own name, which on many machines is the loopback.
    """
    if config.machines == 1:
        return {}
    with (
        guard.network("finetune.machines", hosts={config.main_address}),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
    ):
        try:
            probe.connect((config.main_address, config.main_port))  # of a datagram socket: finds the way, sends nothing
        except OSError as error:
            raise NetworkError(
                f"there is no way to machine 0 at {config.main_address}: {error.strerror or error}",
                hint="--set finetune.main_address=ADDRESS, the same on every machine",
            ) from None
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # one without an address
                address = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))[20:24]
                if socket.inet_ntoa(address) == own:
                    return {"GLOO_SOCKET_IFNAME": name}
    return {}
