"""Every fuzz target for a few seconds; for the record `python tests/hostile/fuzz.py TARGET --seconds 1200`."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from support.scale import FULL

TARGETS = sorted(path.stem for path in Path(__file__).parent.glob("fuzz_*.py"))


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_breaks(target: str) -> None:
    outcome = importlib.import_module(f"hostile.{target}").run(1200 if FULL else 2, 1)
    assert outcome.cases > 0
    assert outcome.faults == []
