"""The jobs in `examples/jobs/`: checked by the tools that they are for,
and run by a shell as a node would.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support import ROOT, TESTS, slurm, tiny
from support.answered import require_same
from support.forks import Forks

SBATCH, MANIFEST = (
    ROOT / "examples" / "jobs" / "predict.sbatch",
    ROOT / "examples" / "jobs" / "predict.yaml",
)
KUBERNETES = "1.34.0"


def manifest() -> dict[str, Any]:
    """The one object in the file for Kubernetes."""
    fields: dict[str, Any] = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    return fields


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder as all nodes see it: nine rows, and a registry with a
    release of 7,000 weights that was kept.
    """
    kept = TESTS / "fixtures" / "0.1.0" / "published"
    shutil.copytree(kept, tmp_path / "registry" / "kept" / "1.0")
    rows = [json.dumps({"text": text}) + "\n" for text, _ in tiny.rows(9, seed=3)]
    (tmp_path / "in.jsonl").write_text("".join(rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def node(shared: Path) -> dict[str, str]:
    """The environment of a node, whose `slmctl` is this one; the kept
    release has a column name in no config.
    """
    programs = shared / "bin"
    programs.mkdir()
    (programs / "slmctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m slmctl "$@"\n')
    (programs / "slmctl").chmod(0o755)
    return tiny.environment(PATH=f"{programs}:{os.environ['PATH']}")


def whole(stages: Forks, shared: Path) -> Path:
    """The answers of one process."""
    words = (
        "--column",
        "text",
        "--input",
        str(shared / "in.jsonl"),
        "--output",
        str(shared / "whole.jsonl"),
    )
    tiny.ok(stages.run(shared, "predict", f"dir:{shared}/registry#kept@1.0", *words))
    return shared / "whole.jsonl"


def test_the_parts_of_an_array_are_the_whole(
    stages: Forks, shared: Path, node: dict[str, str]
) -> None:
    subprocess.run(["bash", "-n", SBATCH], check=True)
    # the last is started again alone, and Slurm counts an array of one
    for part in ("1", "2", "2"):
        env = node | {"PARTS": "2", "SLURM_ARRAY_TASK_ID": part, "SLURM_ARRAY_TASK_COUNT": "1"}
        words = [
            f"dir:{shared}/registry#kept@1.0",
            str(shared / "in.jsonl"),
            str(shared / "out it's"),
        ]
        tiny.ok(
            subprocess.run(
                ["bash", SBATCH, *words], env=env, capture_output=True, text=True, check=False
            )
        )
    require_same([shared / f"out it's-000{part}.jsonl" for part in (1, 2)], whole(stages, shared))


def test_the_parts_of_an_indexed_job_are_the_whole(
    stages: Forks, shared: Path, node: dict[str, str]
) -> None:
    (container,) = manifest()["spec"]["template"]["spec"]["containers"]
    *shell, script = container["command"]
    script = script.replace("desk@1.0", "kept@1.0").replace("/8", "/2")
    for index in ("0", "1"):
        env = node | {"JOB_COMPLETION_INDEX": index, "DATA": str(shared)}
        tiny.ok(
            subprocess.run([*shell, script], env=env, capture_output=True, text=True, check=False)
        )
    require_same([shared / f"out-000{part}.jsonl" for part in (1, 2)], whole(stages, shared))


def test_kubernetes_takes_the_job() -> None:
    fields = manifest()
    kubernetes_validate.validate(fields, KUBERNETES, strict=True)
    pod = fields["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (
        pod["securityContext"]["runAsNonRoot"]
        and container["securityContext"]["readOnlyRootFilesystem"]
    )
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    assert f'"$part/{fields["spec"]["completions"]}"' in container["command"][-1]


@pytest.mark.slow
def test_slurm_takes_the_job_and_answers_the_parts(
    stages: Forks, shared: Path, node: dict[str, str]
) -> None:
    if not slurm.is_here():
        pytest.skip("Slurm is not installed, or this is not root: apt-get install slurm-wlm")
    words = [f"dir:{shared}/registry#kept@1.0", str(shared / "in.jsonl"), str(shared / "out")]
    (shared / "slurm").mkdir()
    with slurm.cluster(shared / "slurm") as variables:
        for options, said in (
            (["--test-only"], r"Job \d+ to start at"),
            (["--wait", "--array=1-2"], ""),
            (["--wait", "--array=2"], ""),
        ):
            done = subprocess.run(
                ["sbatch", *options, SBATCH, *words],
                cwd=shared,
                env=node | variables | {"PARTS": "2"},
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            logs = {path.name: path.read_text() for path in shared.glob("*.log")}
            assert done.returncode == 0, (done.stderr, logs)
            assert re.search(said, done.stderr)
    require_same([shared / f"out-000{part}.jsonl" for part in (1, 2)], whole(stages, shared))
