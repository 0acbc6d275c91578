"""Ollama, by a program of its name that keeps models as it does: by content, in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.released import release

from slmctl.errors import IntegrityError, MissingError, StageError, UsageError
from slmctl.releases import targets
from slmctl.releases.targets import Settings

PROGRAM = """\
#!/bin/sh
# create NAME -f FILE, show --modelfile NAME; keeps what it was asked in $HOME/asked
echo "$@" >> "$HOME/asked"; env > "$HOME/env"
case $1 in
  create) from=$(sed -n 's/^FROM //p' "$4"); [ -f "$from" ] || { echo "Error: no such file" >&2; exit 1; }
          sum=$(sha256sum "$from" | cut -d' ' -f1); mkdir -p "$HOME/blobs"; cp "$from" "$HOME/blobs/sha256-$sum"
          echo "FROM $HOME/blobs/sha256-$sum" > "$HOME/model-$2" ;;
  show) [ -f "$HOME/model-$3" ] || { echo "Error: model '$3' not found" >&2; exit 1; }; cat "$HOME/model-$3" ;;
esac
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ollama").write_text(PROGRAM)
    (folder / "ollama").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("HF_TOKEN", "never" + "-to-be-seen")
    return folder


def test_a_model_is_made_once(home: Path, tmp_path: Path) -> None:
    made = targets.shipment(release(tmp_path))
    with targets.opened("ollama:acme/desk", Settings(), purpose="test") as target:
        plan = targets.plan(target, "ollama:acme/desk", made)
        assert {item.name for item in plan.missing} == {"Modelfile", "tiny-1M-desk-v1.0-Q8_0.gguf"}
        (home / "model-acme").mkdir()  # for a name with a namespace
        targets.deliver(target, plan)
        again = targets.plan(target, "ollama:acme/desk", made)
        assert (again.there, again.missing) == (True, ())
        targets.deliver(target, again)
        with pytest.raises(IntegrityError, match=r"acme/desk:1\.0 is another model already"):
            targets.plan(target, "ollama:acme/desk", targets.shipment(release(tmp_path, weights=b"other")))
        with pytest.raises(UsageError, match="keeps the model file alone"):
            targets.fetch(target, "1.0", None, into=tmp_path)
    assert (home / "asked").read_text().count("create acme/desk:1.0") == 1
    assert "HF_TOKEN" not in (home / "env").read_text()


def test_what_it_says_is_passed_on(home: Path, tmp_path: Path) -> None:
    made = targets.shipment(release(tmp_path))
    with targets.opened("ollama:desk", Settings(), purpose="test") as target:
        plan = targets.plan(target, "ollama:desk", made)
        made.release.file("tiny-1M-desk-v1.0-Q8_0.gguf").unlink()
        with pytest.raises(StageError, match="ollama create failed: Error: no such file"):
            targets.deliver(target, plan)


def test_without_ollama_the_command_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError) as caught, targets.opened("ollama:desk", Settings(), purpose="test"):
        pass
    assert "ollama create NAME -f Modelfile" in caught.value.hint
