"""A server that several files ask over HTTP, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.serving import begin, end

from slmctl.artifacts.artifact import Artifact


@pytest.fixture(scope="session")
def bare_gguf(artifacts: dict[str, Artifact]) -> str:
    """A bare .gguf file, which has no task."""
    found = artifacts["gguf"]
    return str(found.file(found.files("F16.gguf")[0].path))


@pytest.fixture(scope="session")
def free_url(tiny_run: Path, bare_gguf: str) -> Iterator[str]:
    """A bare .gguf file: free text."""
    child, url = begin(tiny_run, bare_gguf)
    yield url
    end(child)
