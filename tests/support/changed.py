"""Slow tests that a change concerns: `pytest --changed REV` runs those of
the folders that differ from a commit.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support import ROOT, TESTS

# A folder of tests has the name of the folder of slmctl/ that it tests. Some depend on others as
# well, and a file of tests/ or tests/hostile may depend on some alone.
# whose tests take minutes
TRAINING = ("model_files/hf_folder.py", "network/guard.py", "stages/finetune")
ALSO = {
    "hostile/test_calibrated_endpoints.py": (
        "metrics",
        "network",
        "stages/calibrate",
        "stages/predict",
        "task",
    ),
    "hostile/test_changing_source.py": ("artifacts", "sources", "stages/predict"),
    "hostile/test_engine_processes.py": ("child.py", "inference"),
    "hostile/test_foreign_replies.py": ("network", "server"),
    "hostile/test_sources.py": ("child.py", "config", "network", "sources", "task"),
    "sensitive": ("config/pattern_bound.py",),
    "server": ("inference", "production", "sensitive"),
    "stages/calibrate": ("metrics",),
    "stages/encode": ("inference", "metrics", "models", "server"),
    "stages/evaluate": ("metrics",),
    "stages/finetune": ("config", "model_files/hf_folder.py", "network/guard.py", "task"),
    "stages/finetune/test_distributed.py": TRAINING,
    "stages/finetune/test_unsloth.py": TRAINING,
    "stages/label": ("metrics", "network"),
    "stages/merge": ("model_files",),
    "stages/predict": ("inference", "network"),
    "stages/predict/test_endpoint_predictions.py": (
        "network",
        "server",
        "stages/calibrate",
        "stages/predict",
    ),
    "stages/publish": ("releases",),
    "stages/pull": ("model_files", "stages/quantize"),
    "stages/quantize": ("inference", "model_files"),
    "stages/sum": ("metrics", "models", "releases", "server"),
    "test_architectures.py": (
        "config",
        "inference",
        "model_files",
        "models",
        "pipeline",
        "stages",
        "task",
    ),
}
# Others of tests/promises, tests/hostile and tests/*.py run whole projects; they depend on all of
# these.
PROGRAM = ("slmctl", "templates", "examples")
EVERYTHING = ("pyproject.toml", "Makefile", ".ci", "tests/conftest.py", "tests/support")


def select(config: pytest.Config, items: list[pytest.Item], since: str) -> None:
    """Leave out the slow tests, and those with unsloth, of what has not changed since a commit."""
    for name in (name for names in ALSO.values() for name in names):
        assert (ROOT / "slmctl" / name).exists(), f"slmctl/{name} is watched, and is gone"
    changed = _changed(since)
    marked = {
        item
        for item in items
        if item.get_closest_marker("slow") or item.get_closest_marker("unsloth")
    }
    left_out = [item for item in items if item in marked and not _concerned(item.path, changed)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _changed(since: str) -> list[Path]:
    """The files that differ from a commit; what each change may concern where git cannot tell."""
    command = ["git", "-C", str(ROOT), "diff", "--name-only", since]
    listed = subprocess.run(command, capture_output=True, text=True)
    return (
        [Path(line) for line in listed.stdout.splitlines()]
        if listed.returncode == 0
        else [Path(EVERYTHING[0])]
    )


def _concerned(test: Path, changed: list[Path]) -> bool:
    """True if a test's own file has changed, or something that it depends on."""
    name, folder = test.relative_to(TESTS).as_posix(), test.relative_to(TESTS).parent.as_posix()
    own = (
        (folder, *ALSO.get(folder, ()))
        if folder != "." and (ROOT / "slmctl" / folder).is_dir()
        else ()
    )
    watched = [f"slmctl/{place}" for place in ALSO.get(name, own)]
    places = [test.relative_to(ROOT), *map(Path, EVERYTHING), *map(Path, watched or PROGRAM)]
    return any(path.is_relative_to(place) for path in changed for place in places)
