"""The notebook in `examples/`: its cells run in order, on tiny files
in place of those that are fetched.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, tiny

NOTEBOOK = ROOT / "examples" / "first_model.ipynb"


def cells() -> list[str]:
    """The source of each cell of code."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in found if cell.get("outputs")], "clear the outputs before a commit"
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_cells_lead_from_rows_to_a_served_answer(tiny_base: Path, tmp_path: Path) -> None:
    tiny.write_csv(tmp_path / "tickets.csv", tiny.rows(600))
    words = tiny.build_encoder(tmp_path / "words", size=16)
    settings, *others = cells()
    run = ["--offline", "--set", f"encode.encoder={words}", "--set", "pull.rehearse=false"]
    init = ["--base", str(tiny_base)]
    settings = re.sub(r'^ROWS = "(.+?)"', "ROWS = 'tickets.csv'", settings)
    settings = re.sub(
        r"^INIT, RUN = .*", f"INIT, RUN = {init!r}, {run!r}", settings, flags=re.MULTILINE
    )
    (tmp_path / "cells.py").write_text("\n".join([settings, *others]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "cells.py"],
        cwd=tmp_path,
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    *_, last = done.stdout.splitlines()
    label, confidence = last.split()
    assert label in tiny.WORDS and 0 < float(confidence) <= 1
    assert len(re.findall(r"rows +[\d.]+% \(TF-IDF", done.stdout)) >= 2


def test_the_rows_of_the_notebook_are_there() -> None:
    (rows,) = re.findall(r'^ROWS = "(.+?)"', cells()[0])
    assert (NOTEBOOK.parent / rows).is_file()
