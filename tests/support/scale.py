"""How much is tried: samples by default, more in the slow tests, all of it under `make torture`."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from typing import Any

import pytest

FULL = bool(os.environ.get("SLMCTL_TORTURE"))


def sampled(cases: Iterable[Any], quick: Container[Any]) -> list[Any]:
    """Cases of `pytest.mark.parametrize`: those in `quick` for
    every run, the others as slow tests.
    """
    return [
        case
        if case in quick
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]
