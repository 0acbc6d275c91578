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
    # later ones are damaged: this run would have resumed from them
    later = [path for path in folder.glob("step-*") if path.name > final.name]
    upto = sorted(path for path in folder.glob("step-*") if path.name <= final.name)
    for old in [*later, *upto[:-KEPT_CHECKPOINTS]]:
        shutil.rmtree(old)
    return final


def _fill(place: Path, trainer: Any, random_states: dict[str, torch.Tensor], reached: Any) -> None:
    """Write the files of a checkpoint, the hashes of the others last."""
    weights = trainer.trained()
    _write(weights, place / "weights.safetensors")
    _write(trainer.best_weights, place / "best.safetensors")
    tensors = dict(random_states)
    for name, parameter in weights.items():
        for key, value in trainer.optimizer.state[parameter].items():
            tensors[f"{name}/{key}"] = torch.as_tensor(value)
    _write(tensors, place / "optimizer.safetensors")
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
    by_age = sorted(folder.glob("step-*"), reverse=True)
    return next(filter(is_whole, by_age), None)


def newer_than(folder: Path, resumed: Path | None) -> list[str]:
    """Names of the checkpoints newer than the one to resume from, all
    damaged; of all if `resumed` is None.
    """
    names = sorted(path.name for path in folder.glob("step-*"))
    if resumed is None:
        return names
    return [name for name in names if name > resumed.name]


def require_shared(resumed: Path | None) -> None:
    """Make sure that all processes resume from the same checkpoint.

    Raises:
        StageError: They do not, since a machine does not share the folder of checkpoints.
    """
    own = resumed.name if resumed else "the beginning"
    names = set(gather_object([own]))
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
    weights = trainer.trained()
    with torch.no_grad():
        for name, value in load_file(path / "weights.safetensors").items():
            weights[name].copy_(value)
    best = load_file(path / "best.safetensors")
    trainer.best_weights = {name: value.to(trainer.args.device) for name, value in best.items()}
    progress = json.loads((path / "progress.json").read_bytes())["progress"]
    if progress["best"] is None:
        del progress["best"]
    trainer.progress = dataclasses.replace(trainer.progress, **progress)


def load_optimizer(trainer: Any, path: Path) -> None:
    """Load the optimizer's moments and the position in the schedule."""
    tensors = load_file(path / "optimizer.safetensors")
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
    groups = optimizer.param_groups
    steps_on_device = any(group.get("fused") or group.get("capturable") for group in groups)
    for name, parameter in trainer.trained().items():
        state = _below(f"{name}/", tensors)
        for key, value in state.items():
            # torch keeps `step` on the host, except for fused and capturable optimizers
            if key != "step" or steps_on_device:
                state[key] = value.to(parameter.device)
        optimizer.state[parameter] = state
    schedule = json.loads((path / "progress.json").read_bytes())["schedule"]
    scheduler = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
    scheduler.last_epoch = schedule["last_epoch"]
    scheduler._last_lr = schedule["rates"]
    for group, rate in zip(groups, schedule["rates"], strict=True):
        group["lr"] = rate


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors[name] for name in names}


def gather_random() -> dict[str, torch.Tensor]:
    """The states of all processes' random generators as
    `random/RANK/GENERATOR`; a collective call of all processes.
    """
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()  # a process has one device
    everyone: dict[str, torch.Tensor] = {}
    for rank, states in enumerate(gather_object([own])):
        everyone |= {f"random/{rank}/{name}": state for name, state in states.items()}
    return everyone


def load_random(path: Path, accelerator: Any) -> bool:
    """Set this process's random generators, so that dropout continues as without the interruption.

    Returns:
        False if another number of processes wrote the checkpoint. A process without a saved state
        keeps its own.
    """
    states = _below("random/", load_file(path / "optimizer.safetensors"))
    own = _below(f"{accelerator.process_index}/", states)
    if "cpu" in own:
        torch.set_rng_state(own["cpu"])
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])
    processes = sum(name.endswith("/cpu") for name in states)
    return processes == accelerator.num_processes


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    hf_folder.save(plain, path)
