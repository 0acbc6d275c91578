"""The place of the GGUF converter: beside the environment where that can
be written, else in the user's cache.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types
from pathlib import Path

import pytest
from click.testing import CliRunner

from slmctl import installation
from slmctl.cli.main import cli
from slmctl.errors import MissingError, NetworkError
from slmctl.model_files import gguf_converter
from slmctl.network import guard

NAME = "converter-9.9"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folders beside an environment and in a home, neither of which exists."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(gguf_converter, "version", lambda: "9.9")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return (
        tmp_path / "env" / "share" / "slmctl" / NAME,
        tmp_path / "home" / ".cache" / "slmctl" / NAME,
    )


def leave(place: Path) -> None:
    place.mkdir(parents=True)
    (place / gguf_converter.SEAL_FILE).write_text(json.dumps({"source": "", "files": {}}))


def test_whoever_runs_this_environment_finds_the_converter(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, own = places
    assert gguf_converter.folder() == beside
    leave(own)
    assert gguf_converter.require() == own  # fetched by an earlier release
    leave(beside)
    assert gguf_converter.require() == beside
    monkeypatch.setenv("HOME", "/dev/null")  # as cron and service users may have it
    assert gguf_converter.require() == beside
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert gguf_converter.require() == beside
    leave(tmp_path / "cache" / "slmctl" / NAME)
    assert gguf_converter.require() == tmp_path / "cache" / "slmctl" / NAME


def test_where_nothing_can_be_written_doctor_says_what_to_do(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", "/dev/null")
    assert gguf_converter.folder() == places[1]
    monkeypatch.setenv("HOME", "/dev/null")
    done = CliRunner().invoke(cli, ["doctor", "--fix"])
    assert isinstance(done.exception, MissingError)
    assert (
        "neither /dev/null/share/slmctl nor /dev/null/.cache/slmctl can be written"
        in done.exception.message
    )
    assert "XDG_CACHE_HOME=FOLDER slmctl doctor --fix" in done.exception.hint


def test_a_user_without_a_home_has_no_cache(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    # a container's user with no name
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert installation.user_cache() is None
    assert gguf_converter.folder() == places[0]


def test_a_seal_that_cannot_be_read_is_damage(places: tuple[Path, Path]) -> None:
    leave(places[0])
    (places[0] / gguf_converter.SEAL_FILE).write_text("{")
    assert gguf_converter.state().startswith("damaged: ")


def test_offline_nothing_is_fetched(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_forbidden", True)
    with pytest.raises(
        NetworkError, match="doctor --fix needs the network, and --offline forbids it"
    ):
        gguf_converter.fetch()
    assert not places[0].exists()


def test_the_pip_line_is_that_of_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "ROOT", tmp_path)
    noted = types.SimpleNamespace(read_text=lambda name: None)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: noted)
    assert installation.pip_line("gguf") == "pip install 'slmctl[gguf]'"
    noted.read_text = lambda name: (
        '{"url": "file:///a%20b/slmctl-0.1.0-py3-none-any.whl", "archive_info": {}}'
    )
    assert installation.pip_line("gguf") == "pip install '/a b/slmctl-0.1.0-py3-none-any.whl[gguf]'"
    (tmp_path / "pyproject.toml").touch()
    assert installation.pip_line("gguf") == f"pip install -e '{tmp_path}[gguf]'"
    monkeypatch.chdir(tmp_path)
    assert installation.pip_line("gguf") == "pip install -e '.[gguf]'"
