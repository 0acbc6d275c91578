"""Data-parallel training: torchrun, `accelerate launch` or `srun` starts the processes, rank 0
writes the adapter.

Machines that train together share the project's folder.
"""

from __future__ import annotations

import gc
import os
import re


def join_slurm() -> None:
    """Set torchrun's variables from Slurm's, where `srun` started
    this process as one task of several.
    """
    variables = os.environ
    tasks = int(variables.get("SLURM_STEP_NUM_TASKS") or variables.get("SLURM_NTASKS") or 1)
    if "RANK" in variables or "SLURM_STEP_ID" not in variables or tasks < 2:
        return
    variables.update(
        RANK=variables["SLURM_PROCID"], WORLD_SIZE=str(tasks), LOCAL_RANK=variables["SLURM_LOCALID"]
    )
    # equal on all nodes
    per_node = variables.get("SLURM_STEP_TASKS_PER_NODE", "")
    if each := re.fullmatch(r"(\d+)(\(x\d+\))?", per_node):
        variables["LOCAL_WORLD_SIZE"] = each[1]
    variables.setdefault("MASTER_ADDR", "127.0.0.1")
    variables.setdefault("MASTER_PORT", "29500")


def world_size() -> int:
    """Number of processes that train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """Number of processes that train on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def leave_group() -> None:
    """End gloo's threads: one that still holds a tensor while the
    interpreter ends aborts the process.
    """
    import torch  # the functions above run before torch is known to be installed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # the trainer, whose reference cycles keep the group
