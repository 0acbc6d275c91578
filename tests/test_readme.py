"""The documentation says what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("terminal", ["80", "200"])
def test_the_pages_are_what_the_code_generates(terminal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", terminal)  # the width of the reader's terminal must not matter
    spec = importlib.util.spec_from_file_location("readme", ROOT / "docs" / "readme.py")
    assert spec is not None and spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    for path in readme.FILES:
        text = path.read_text(encoding="utf-8")
        assert readme.filled(text) == text, f"{path.name}: run make readme"
