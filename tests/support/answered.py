"""Files of answers compared: the same rows in the same order, with the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from slmctl.sources.rows import read_rows

TOGETHER = 1e-3  # of a confidence: what is computed together decides its last digits


def require_same(paths: Sequence[Path], whole: Path) -> None:
    """Hold files, one after the other, to what one file holds."""
    ours = [row.columns for path in paths for row in read_rows(path)]
    theirs = [row.columns for row in read_rows(whole)]
    sure = [[float(str(row.pop("confidence"))) for row in rows] for rows in (ours, theirs)]
    assert ours == theirs
    assert sure[0] == pytest.approx(sure[1], abs=TOGETHER)
