"""Slurm on the loopback: a controller and one node, ended by their process ids."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.servers import free_port, settles

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "sinfo")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/slurm
CredType=cred/slurm
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def is_here() -> bool:
    """True where Slurm's programs are installed and may be run as its user, root."""
    return os.geteuid() == 0 and all(shutil.which(name) for name in PROGRAMS)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The variables by which Slurm's commands find a cluster of one node, until the block ends."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIG.format(host=host, controller=free_port(), node=free_port(), folder=folder)
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (folder / "slurm.key").write_bytes(os.urandom(1024))
    (folder / "slurm.key").chmod(0o600)
    env = {"SLURM_CONF": str(folder / "slurm.conf")}
    with contextlib.ExitStack() as stack:
        for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            log = stack.enter_context((folder / f"{command[0]}.log").open("wb"))
            child = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | env)
            stack.callback(_end, child)
        look: Any = {"env": os.environ | env, "capture_output": True, "text": True}
        ready = settles(
            lambda: (
                subprocess.run(["sinfo", "--noheader", "--format=%T"], **look).stdout == "idle\n"
            )
        )
        assert ready, "".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
        yield env


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=20)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
