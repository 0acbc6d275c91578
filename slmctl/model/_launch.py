"""finetune in more than one process: torch starts them, the first of them writes.

Run as a module, this starts them; started by that, it is one of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from slmctl import artifact, backend, console, errors, offline
from slmctl.artifact import Artifact
from slmctl.config import FinetuneConfig
from slmctl.errors import SlmctlError, StageError


def several(config: FinetuneConfig, *, base: Artifact, prepared: Artifact, out: Path, keep: Path) -> dict[str, Any]:
    """Train in `config.processes` processes on each of `config.machines` machines; returns the metrics.

    Raises:
        SlmctlError: What a process raised.
        StageError: A process ended without a word.
    """
    job, answer = keep / "job.json", keep / "answer.json"
    answer.unlink(missing_ok=True)
    told = {
        "config": config.model_dump(mode="json"), "base": str(base.path), "prepared": str(prepared.path),
        "out": str(out), "keep": str(keep), "answer": str(answer),
    }  # fmt: skip
    job.write_text(json.dumps(told), encoding="utf-8")
    command = [
        sys.executable, "-m", __name__, "--nproc_per_node", str(config.processes),
        "--nnodes", str(config.machines), "--node_rank", str(config.machine_rank),
        "--master_addr", config.address, "--master_port", str(config.port), "-m", __name__, str(job),
    ]  # fmt: skip
    threads = os.environ.get("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // config.processes, 1)))
    settings = os.environ | {"OMP_NUM_THREADS": threads}
    done = subprocess.run(command, check=False, env=settings, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    said = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
    job.unlink()
    answer.unlink(missing_ok=True)
    if "error" in said:
        kind, message, hint = said["error"]
        raise getattr(errors, kind)(message, hint=hint)
    if done.returncode != 0 or "metrics" not in said:
        raise StageError(f"a training process ended with code {done.returncode}", hint="slmctl -v finetune shows more")
    metrics: dict[str, Any] = said["metrics"]
    return metrics


def _start(arguments: list[str]) -> int:
    """Be torchrun, without its report on a process that failed: that process has said why."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)
    try:
        run.main(arguments)
    except ChildFailedError as error:
        return next(failure.exitcode for failure in error.failures.values()) or 1
    return 0


def _work(job: Path) -> int:
    """Do one process's share; returns its exit code."""
    offline.seal()
    told = json.loads(job.read_text(encoding="utf-8"))
    config = FinetuneConfig.model_validate(told["config"])
    backend.import_first(config.backend)
    from slmctl.model import finetune  # after the switches are set, and after unsloth

    leads = os.environ.get("RANK", "0") == "0"
    if not leads:
        console.set_level(-1)
    answer = Path(told["answer"])
    try:
        metrics = finetune.run(
            config, base=_opened(told["base"], "merged"),
            prepared=_opened(told["prepared"], "prepared"), out=Path(told["out"]), keep=Path(told["keep"]),
        )  # fmt: skip
    except SlmctlError as error:
        said = [type(error).__name__, error.message, error.hint]
        with contextlib.suppress(FileExistsError), answer.open("x", encoding="utf-8") as stream:
            json.dump({"error": said}, stream)  # whoever fails first says why: the others are stopped
        return error.code
    if leads:
        answer.write_text(json.dumps({"metrics": metrics}), encoding="utf-8")
    return 0


def _opened(path: str, kind: str) -> Artifact:
    """An artifact, whose hashes were checked by whoever started this process."""
    folder = Path(path)
    return artifact.load(folder) if (folder / artifact.MANIFEST).exists() else artifact.foreign(folder, kind)


def _end_with_parent() -> None:
    """Ask the kernel to end this process with the one that started it, whatever ends that: two trainings of one
    recipe would write into the same folder."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):  # Linux
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    _end_with_parent()
    raise SystemExit(_work(Path(sys.argv[1])) if "WORLD_SIZE" in os.environ else _start(sys.argv[1:]))
