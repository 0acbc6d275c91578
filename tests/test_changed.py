"""Slow tests that a change concerns, as `pytest --changed` chooses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import TESTS, changed


@pytest.mark.parametrize(
    ("test", "file", "concerned"),
    [
        ("stages/label/test_label.py", "slmctl/stages/label/journal.py", True),
        ("stages/label/test_label.py", "slmctl/metrics/gates.py", True),
        ("stages/label/test_label.py", "slmctl/server/app.py", False),
        ("stages/label/test_label.py", "tests/stages/label/test_label.py", True),
        ("stages/label/test_label.py", "tests/support/tiny.py", True),
        ("promises/test_secrets.py", "slmctl/server/app.py", True),
        ("promises/test_secrets.py", "docs/design.md", False),
        ("test_examples.py", "examples/client.py", True),  # those of tests/ watched slmctl/ alone
        ("test_tutorial.py", "templates/init/notes.txt.j2", True),
        ("test_architectures.py", "slmctl/stages/merge/merge.py", True),
        ("test_architectures.py", "slmctl/server/app.py", False),
        ("stages/finetune/test_unsloth.py", "slmctl/stages/finetune/trainer.py", True),
        # quick tests hold what it reads of it
        ("stages/finetune/test_unsloth.py", "slmctl/task/contract.py", False),
        ("hostile/test_calibrated_endpoints.py", "slmctl/stages/calibrate/calibrate.py", True),
        ("hostile/test_calibrated_endpoints.py", "slmctl/server/app.py", False),
        ("hostile/test_sources.py", "slmctl/sources/sql.py", True),
        ("hostile/test_sources.py", "slmctl/stages/merge/merge.py", False),
    ],
)
def test_a_change_runs_the_slow_tests_of_what_it_may_break(
    test: str, file: str, *, concerned: bool
) -> None:
    assert (TESTS / test).is_file()
    assert changed._concerned(TESTS / test, [Path(file)]) == concerned
