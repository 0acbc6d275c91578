"""The planted faults still fit the code: each stands for one place, and its tests are there."""

from __future__ import annotations

import pytest
from support import ROOT, mutations


def test_there_are_sixty_faults_with_names_of_their_own() -> None:
    names = [fault.name for fault in mutations.read()]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize("fault", mutations.read(), ids=lambda fault: fault.name)
def test_a_fault_can_be_planted(fault: mutations.Fault) -> None:
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.find) == 1
    assert fault.find != fault.replace
    assert fault.tests and all((ROOT / test).is_file() for test in fault.tests)
