"""Checkpoints of a training: written atomically, without pickles, and resumed exactly.

    step-00000120/ weights.safetensors optimizer.safetensors best.safetensors
                   trainer_state.json progress.json hashes.json

A checkpoint is written as a draft, synced and renamed; `hashes.json`, written last, holds the
sha256 of every file. Resuming takes the newest one whose hashes agree, else the one before.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file

from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import canonical, sha256_file
from slmctl.errors import StageError
from slmctl.model_files import hf_folder

KEPT_CHECKPOINTS = 2  # checkpoints; an older one serves when the newest is damaged
HASHES = "hashes.json"


def save(trainer: Any, random_states: dict[str, torch.Tensor], reached: Any) -> Path:
    """Write a checkpoint of a trainer's present state; returns its folder.

    Args:
        random_states: Of the random generators of all processes, see `gather_random`.
        reached: The trainer's `Progress`, with the losses since the last log entry.
    """
    folder: Path = trainer.checkpoints
    final = folder / f"step-{trainer.state.global_step:08d}"
    with atomic.folder(final, replace=True) as place:
        _fill(place, trainer, random_states, reached)
    kept = sorted(folder.glob("step-*"))
    later = kept.index(final) + 1  # later ones are damaged: this run would have resumed from them
    for old in [*kept[later:], *kept[:later][:-KEPT_CHECKPOINTS]]:
        shutil.rmtree(old)
    return final


def _fill(place: Path, trainer: Any, random_states: dict[str, torch.Tensor], reached: Any) -> None:
    """Write the files of a checkpoint, the hashes of the others last."""
    weights = trainer.trained()
    _write(weights, place / "weights.safetensors")
    _write(trainer.best_weights, place / "best.safetensors")
    states = trainer.optimizer.state
    tensors = {
        f"{name}/{key}": torch.as_tensor(value)
        for name, p in weights.items()
        for key, value in states[p].items()
    }
    _write(tensors | random_states, place / "optimizer.safetensors")
    trainer.state.save_to_json(str(place / "trainer_state.json"))
    schedule = {
        "last_epoch": trainer.lr_scheduler.last_epoch,
        "rates": trainer.lr_scheduler.get_last_lr(),
    }
    progress = dataclasses.asdict(reached)
    progress["best"] = progress["best"] if trainer.best_weights else None  # JSON has no infinity
    (place / "progress.json").write_bytes(canonical({"progress": progress, "schedule": schedule}))
    hashes = {path.name: sha256_file(path) for path in sorted(place.iterdir())}
    (place / HASHES).write_bytes(canonical(hashes))


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose hashes agree; None without one."""
    return next(
        (path for path in sorted(folder.glob("step-*"), reverse=True) if is_whole(path)), None
    )


def newer_than(folder: Path, resumed: Path | None) -> list[str]:
    """Names of the checkpoints newer than the one to resume from, all
    damaged; of all if `resumed` is None.
    """
    return [
        path.name
        for path in sorted(folder.glob("step-*"))
        if resumed is None or path.name > resumed.name
    ]


def require_shared(resumed: Path | None) -> None:
    """Make sure that all processes resume from the same checkpoint.

    Raises:
        StageError: They do not, since a machine does not share the folder of checkpoints.
    """
    names = set(gather_object([resumed.name if resumed else "the beginning"]))
    if len(names) > 1:
        raise StageError(
            f"the machines would go on from {' and '.join(sorted(names))}",
            hint="put the project into a folder that all machines share",
        )


def is_whole(path: Path) -> bool:
    """True if every file of a checkpoint is there with the hash that was written."""
    try:
        hashes = json.loads((path / HASHES).read_bytes())
        return all(sha256_file(path / name) == value for name, value in hashes.items())
    except (OSError, ValueError):
        return False


def load_weights(trainer: Any, path: Path) -> None:
    """Load the adapter's weights, its best weights so far, and the progress."""
    with torch.no_grad():
        for name, value in load_file(path / "weights.safetensors").items():
            trainer.trained()[name].copy_(value)
    trainer.best_weights = {
        name: value.to(trainer.args.device)
        for name, value in load_file(path / "best.safetensors").items()
    }
    progress = json.loads((path / "progress.json").read_bytes())["progress"]
    if progress["best"] is None:
        del progress["best"]
    trainer.progress = dataclasses.replace(trainer.progress, **progress)


def load_optimizer(trainer: Any, path: Path) -> None:
    """Load the optimizer's moments and the position in the schedule."""
    tensors = load_file(path / "optimizer.safetensors")
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
    own_step = any(
        group.get("fused") or group.get("capturable") for group in optimizer.param_groups
    )
    for name, p in trainer.trained().items():
        prefix = f"{name}/"
        # torch keeps `step` on the host, except for fused and capturable optimizers
        optimizer.state[p] = {
            key.removeprefix(prefix): value
            if key == f"{prefix}step" and not own_step
            else value.to(p.device)
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
    schedule = json.loads((path / "progress.json").read_bytes())["schedule"]
    scheduler = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
    scheduler.last_epoch = schedule["last_epoch"]
    scheduler._last_lr = schedule["rates"]
    for group, rate in zip(optimizer.param_groups, schedule["rates"], strict=True):
        group["lr"] = rate


def gather_random() -> dict[str, torch.Tensor]:
    """The states of all processes' random generators as
    `random/RANK/GENERATOR`; a collective call of all processes.
    """
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()  # a process has one device
    everyone = gather_object([own])
    return {
        f"random/{rank}/{name}": state
        for rank, states in enumerate(everyone)
        for name, state in states.items()
    }


def load_random(path: Path, accelerator: Any) -> bool:
    """Set this process's random generators, so that dropout continues as without the interruption.

    Returns:
        False if another number of processes wrote the checkpoint. A process without a saved state
        keeps its own.
    """
    states = load_file(path / "optimizer.safetensors")
    prefix = f"random/{accelerator.process_index}/"
    if f"{prefix}cpu" in states:
        torch.set_rng_state(states[f"{prefix}cpu"])
    if f"{prefix}cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"{prefix}cuda"])
    return (
        sum(name.startswith("random/") and name.endswith("/cpu") for name in states)
        == accelerator.num_processes
    )


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    hf_folder.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
