"""The jobs in `examples/ci/`: the same steps for GitHub and GitLab, run as a runner does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import ROOT, tiny

CI = ROOT / "examples" / "ci"
GATE = "gates:\n  - {metric: accuracy, model: Q8_0, against: production, max_drop: 0.5}\n"
IMPOSSIBLE = "  - {metric: accuracy, model: Q8_0, min: 1.01}\n"


def github() -> list[str]:
    """The commands of the Action between the one that installs and the one that comments."""
    steps = yaml.safe_load((CI / "github.yml").read_text(encoding="utf-8"))["jobs"]["measure"][
        "steps"
    ]
    named = {step["name"]: step["run"] for step in steps if "name" in step}
    assert list(named) == ["install", "prepare", "evaluate", "comment"]
    return [named["prepare"], named["evaluate"]]


def gitlab() -> list[str]:
    script: list[str] = yaml.safe_load((CI / "gitlab.yml").read_text(encoding="utf-8"))["model"][
        "script"
    ]
    return script


def test_both_jobs_do_the_same() -> None:
    assert [step.strip() for step in github()] == [step.strip() for step in gitlab()]


def test_both_keep_what_was_made_where_a_gate_fails() -> None:
    # actions/cache saves after a success alone, so a change of a gate cost another training
    steps = yaml.safe_load((CI / "github.yml").read_text(encoding="utf-8"))["jobs"]["measure"][
        "steps"
    ]
    restore, save = (step for step in steps if "actions/cache" in step.get("uses", ""))
    assert (restore["uses"], save["uses"]) == ("actions/cache/restore@v4", "actions/cache/save@v4")
    assert save["if"] == "always()" and steps.index(save) > [
        step.get("name") for step in steps
    ].index("evaluate")
    assert save["with"].items() <= restore["with"].items()
    cache = yaml.safe_load((CI / "gitlab.yml").read_text(encoding="utf-8"))["model"]["cache"]
    assert (cache["paths"], cache["when"]) == (["runs"], "always")


@pytest.mark.slow
def test_gates_are_the_exit_code_and_the_report_is_there_all_the_same(
    tiny_run: Path, tmp_path: Path
) -> None:
    desk = Path(shutil.copytree(tiny_run, tmp_path / "desk"))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "slmctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m slmctl "$@"\n')
    (programs / "slmctl").chmod(0o755)
    env = tiny.environment(PATH=f"{programs}:/usr/bin:/bin", REGISTRY=str(desk / "registry"))
    config = (desk / "slmctl.yaml").read_text(encoding="utf-8")
    for gates, code in ((GATE, 0), (GATE + IMPOSSIBLE, 5)):
        (desk / "slmctl.yaml").write_text(config + gates, encoding="utf-8")
        (desk / "report.md").unlink(missing_ok=True)
        for step in github():
            done = subprocess.run(
                ["bash", "-e", "-o", "pipefail", "-c", step],
                cwd=desk,
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == code, done.stderr
        assert "| Q8_0 |" in (desk / "report.md").read_text(encoding="utf-8")
