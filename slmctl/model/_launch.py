"""finetune in more than one process: accelerate starts them, the first of them writes.

Run as a module, this is one of those processes.
"""

from __future__ import annotations

import json
import os
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
        SlmctlError: What the first process raised.
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
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
        "--mixed_precision", "no", "--dynamo_backend", "no",
        "--num_processes", str(config.processes * config.machines), "--num_machines", str(config.machines),
        "--machine_rank", str(config.machine_rank), "--main_process_ip", config.address,
        "--main_process_port", str(config.port), *([] if backend.accelerator() else ["--cpu"]),
        "-m", __name__, str(job),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=sys.stderr)
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


def _work(job: Path) -> int:
    """Do one process's share; returns its exit code."""
    offline.seal()
    from slmctl.model import finetune  # after the switches are set

    told = json.loads(job.read_text(encoding="utf-8"))
    leads = os.environ.get("RANK", "0") == "0"
    if not leads:
        console.set_level(-1)
    answer = Path(told["answer"])
    try:
        metrics = finetune.run(
            FinetuneConfig.model_validate(told["config"]), base=_opened(told["base"], "merged"),
            prepared=_opened(told["prepared"], "prepared"), out=Path(told["out"]), keep=Path(told["keep"]),
        )  # fmt: skip
    except SlmctlError as error:
        if leads:
            said = [type(error).__name__, error.message, error.hint]
            answer.write_text(json.dumps({"error": said}), encoding="utf-8")
        return error.code
    if leads:
        answer.write_text(json.dumps({"metrics": metrics}), encoding="utf-8")
    return 0


def _opened(path: str, kind: str) -> Artifact:
    """An artifact, whose hashes were checked by whoever started this process."""
    folder = Path(path)
    return artifact.load(folder) if (folder / artifact.MANIFEST).exists() else artifact.foreign(folder, kind)


if __name__ == "__main__":
    raise SystemExit(_work(Path(sys.argv[1])))
