"""Plant each fault in a copy of the project and run its tests: a table of what was caught, by which
test.

.venv/bin/python tests/support/mutations/run.py [PART OF A NAME]...
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests"))

from support import mutations  # noqa: E402 - found by the line above

COPIED = (
    "slmctl",
    "tests",
    "templates",
    "examples",
    "docs",
    "benchmarks",
    "pyproject.toml",
    "README.md",
)
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def catching(fault: mutations.Fault, folder: Path) -> str:
    """The first test that fails with a fault planted; empty where all pass."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    fault.plant(folder)
    options = ("-x", "-q", "-n0", "-p", "no:cacheprovider")
    env = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", *options, *fault.tests]
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if ran.returncode not in (0, 1):
        raise SystemExit(f"{fault.name}: pytest ended with {ran.returncode}\n{ran.stdout[-2000:]}")
    return FAILED.findall(ran.stdout)[0] if ran.returncode else ""


def main(wanted: list[str]) -> int:
    faults = [
        fault
        for fault in mutations.read()
        if not wanted or any(part in fault.name for part in wanted)
    ]
    missed = 0
    for fault in faults:
        with tempfile.TemporaryDirectory() as folder:
            test = catching(fault, Path(folder))
        missed += not test
        sys.stdout.write(f"{fault.kind:<10} {fault.name:<60} {test or 'NOT CAUGHT'}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(faults) - missed} of {len(faults)} faults caught\n")
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
