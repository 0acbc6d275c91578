"""ollama:NAME: the model of an Ollama on this machine, made by `ollama create` from the release's Modelfile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from slmctl.artifacts.artifact import MANIFEST, FileEntry
from slmctl.errors import IntegrityError, MissingError, StageError, UsageError
from slmctl.releases.targets import Settings, Shipment, ShipmentFile

MODELFILE = "Modelfile"
# What the program may know of the environment: no token of ours is among it.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "OLLAMA_HOST", "OLLAMA_MODELS")
_FROM = re.compile(r"^FROM (\S+)", re.MULTILINE)


def open(to: str, settings: Settings) -> Ollama:
    """The model of an address."""
    name = to.removeprefix("ollama:")
    if not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)*", name):
        raise UsageError(f"'{to}' names no model", hint="ollama:NAME; the version becomes its tag")
    program = shutil.which("ollama")
    if program is None:
        raise MissingError(
            "ollama is not installed here",
            hint="publish to a folder, and there: ollama create NAME -f Modelfile",
        )
    return Ollama(program, name)


class Ollama:
    """One model of an Ollama as a target. It keeps the model file and what the Modelfile says, nothing else."""

    visibility = "who may ask this Ollama"

    def __init__(self, program: str, name: str) -> None:
        self.program, self.name = program, name
        host = os.environ.get("OLLAMA_HOST", "127.0.0.1")
        self.hosts = (urlsplit(host if "://" in host else f"//{host}").hostname or "127.0.0.1",)

    def where(self, shipment: Shipment, item: ShipmentFile) -> str:
        goes = item.name == MODELFILE or item.name == _model(shipment).name
        return f"ollama:{self.name}:{shipment.version}" if goes else "stays here: Ollama does not keep it"

    def published(self, project: str, version: str, *, like: Shipment | None = None) -> bytes | None:
        """Ollama keeps no manifest; that of the release stands for it where the model file is the release's.

        Raises:
            IntegrityError: Another model has the name.
            UsageError: Somebody wants the release back.
        """
        if like is None:
            raise UsageError("Ollama keeps the model file alone", hint="fetch the release from where it lies whole")
        shown = self._run("show", "--modelfile", f"{self.name}:{version}", may_fail=True)
        if shown is None:
            return None
        match = _FROM.search(shown)
        if match is None or _model(like).sha256 not in match[1]:
            raise IntegrityError(
                f"ollama:{self.name}:{version} is another model already",
                hint="a published version never changes: increase 'version' in slmctl.yaml",
            )
        return like.release.path.joinpath(MANIFEST).read_bytes()

    def holds(self, shipment: Shipment) -> set[str]:
        names = {item.name for item in shipment.items}
        if self.published(shipment.project, shipment.version, like=shipment) is not None:
            return names
        return names - {MODELFILE, _model(shipment).name}

    def put(self, shipment: Shipment, missing: Sequence[ShipmentFile]) -> None:
        """Ollama takes a file in when it makes the model of it."""

    def finish(self, shipment: Shipment) -> None:
        path = shipment.release.file(MODELFILE)
        self._run("create", f"{self.name}:{shipment.version}", "-f", str(path), folder=path.parent)

    def find(self, name: str) -> tuple[str, str]:
        return "", name

    def get(self, project: str, version: str, entry: FileEntry, path: Path) -> None:
        raise UsageError("Ollama keeps the model file alone", hint="fetch the release from where it lies whole")

    def _run(self, *args: str, folder: Path | None = None, may_fail: bool = False) -> str | None:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        done = subprocess.run(
            [self.program, *args], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return done.stdout
        if may_fail and "not found" in done.stderr:
            return None
        reasons = done.stderr.strip().splitlines() or ["it gave no reason"]
        raise StageError(f"ollama {args[0]} failed: {reasons[-1]}", hint="ollama serve")


def _model(shipment: Shipment) -> ShipmentFile:
    """The model file that the Modelfile names."""
    text = shipment.release.file(MODELFILE).read_text(encoding="utf-8")
    named = _FROM.search(text)
    name = named[1].removeprefix("./") if named else ""
    return next(item for item in shipment.items if item.name == name)
