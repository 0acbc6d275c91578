"""The names that a model goes by when it is served."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.released import release

from slmctl.artifacts import artifact
from slmctl.pipeline.model_lookup import served_name


def test_a_release_goes_by_the_name_of_its_project_which_stays(tmp_path: Path) -> None:
    for version in ("1.0", "1.1"):
        made = release(tmp_path, version)
        file = f"tiny-1M-desk-v{version}-Q8_0.gguf"
        assert served_name(made, made.path / file) == ("desk", version)


@pytest.mark.parametrize(
    ("name", "version"),
    [("a-1B-desk-v1.0-Q8_0", "1.0"), ("a-v2", "2"), ("tiny-v1.2.3", "1.2.3"), ("x-vi-1", "")],
)
def test_a_bare_file_goes_by_its_own_name(name: str, version: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(b"GGUF")
    bare = artifact.foreign(path, "gguf")
    assert served_name(bare, path) == (name, version)
