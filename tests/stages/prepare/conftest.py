"""The artifacts that tests of prepare take, as they are kept: no model is trained for them."""

from __future__ import annotations

import pytest
from support import TESTS

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact


@pytest.fixture(scope="session")
def artifacts() -> dict[str, Artifact]:
    """A base and a data set, by kind."""
    return {
        kind: artifact.load(TESTS / "fixtures" / "0.1.0" / kind) for kind in ("base", "prepared")
    }
