"""One process of a data-parallel training, and the launcher of all of them.

Run as a module without WORLD_SIZE it is torchrun; started by torchrun it is one of the processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
from pathlib import Path

from slmctl import console
from slmctl.artifacts import artifact, atomic
from slmctl.artifacts.artifact import Artifact
from slmctl.config import FinetuneConfig
from slmctl.errors import NetworkError, SlmctlError
from slmctl.network import guard
from slmctl.pipeline import stage_log
from slmctl.stages.finetune import backend


def launch(arguments: list[str]) -> int:
    """Run torchrun without its own report on a failed process, which has reported itself; returns the exit code."""
    from torch.distributed import DistNetworkError, run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)
    try:
        run.main(arguments)
    except ChildFailedError as error:
        return next(failure.exitcode for failure in error.failures.values()) or 1
    except DistNetworkError as error:
        order = json.loads(Path(arguments[-1]).read_text(encoding="utf-8"))
        config = FinetuneConfig.model_validate(order["config"])
        reason = str(error).rpartition("message: ")[2].splitlines()[0]
        where = f"{config.main_address}:{config.main_port}"
        return _fail(
            Path(order["answer"]),
            NetworkError(
                f"machine {config.machine_rank} cannot meet the others at {where}: {reason}",
                hint="--set finetune.main_port=PORT, a free one and the same on every machine",
            ),
        )
    return 0


def work(job: Path) -> int:
    """Run one process of the training that a job file describes; returns its exit code."""
    guard.seal()
    order = json.loads(job.read_text(encoding="utf-8"))
    config = FinetuneConfig.model_validate(order["config"])
    backend.import_first(config.backend)
    from slmctl.stages.finetune import finetune  # after the switches are set, and after unsloth

    leads = os.environ.get("RANK", "0") == "0"
    if not leads:
        console.set_level(-1)
    answer = Path(order["answer"])
    try:
        with stage_log.added(Path(order["log"])) if leads else contextlib.nullcontext():
            metrics = finetune.run(
                config, base=_opened(order["base"], "merged"),
                prepared=_opened(order["prepared"], "prepared"), out=Path(order["out"]), keep=Path(order["keep"]),
            )  # fmt: skip
    except KeyboardInterrupt as stop:  # it has saved a checkpoint
        with contextlib.suppress(FileExistsError), answer.open("x", encoding="utf-8") as stream:
            json.dump({"interrupted": str(stop)}, stream)
        return 130
    except SlmctlError as error:
        return _fail(answer, error)
    if leads:
        outcome = {"metrics": metrics, "receipt": guard.receipt()}
        with atomic.file(answer) as draft:
            draft.write_text(json.dumps(outcome), encoding="utf-8")
    return 0


def _fail(answer: Path, error: SlmctlError) -> int:
    """Report a failure to the process that started the training; returns its exit code."""
    failure = [type(error).__name__, error.message, error.hint]
    with contextlib.suppress(FileExistsError), answer.open("x", encoding="utf-8") as stream:
        json.dump({"error": failure}, stream)  # the first failure counts: the others are stopped because of it
    return error.code


def _opened(path: str, kind: str) -> Artifact:
    """An artifact, whose hashes the starting process has checked."""
    folder = Path(path)
    return artifact.load(folder) if (folder / artifact.MANIFEST).exists() else artifact.foreign(folder, kind)


def _end_with_parent() -> None:
    """Have the kernel end this process with its parent: two trainings of one recipe would write into one folder."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):  # Linux
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    _end_with_parent()
    raise SystemExit(work(Path(sys.argv[1])) if "WORLD_SIZE" in os.environ else launch(sys.argv[1:]))
