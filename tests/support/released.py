"""A release without a model: the files, manifest and report that targets and registries look at."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.releases import targets
from slmctl.releases.targets import Plan, Target
from support import handmade
from support.reported import small_report

CARD = "---\nlicense: mit\nbase_model: tiny\nmodel-index: []\n---\n# Desk\n"


def release(
    folder: Path,
    version: str = "1.0",
    *,
    weights: bytes = b"GGUF weights",
    accuracy: float = 0.9,
    **more: bytes,
) -> Artifact:
    """A finished release below `folder`; `more` are further files by name."""
    path = folder / "published" / hashlib.sha256(weights + version.encode()).hexdigest()[:12]
    sha256 = hashlib.sha256(weights).hexdigest()
    model = {"sha256": sha256, "metrics": {"accuracy": accuracy}}
    report = small_report({"Q8_0": model})
    files = {
        f"tiny-1M-desk-v{version}-Q8_0.gguf": weights,
        "report.json": artifact.canonical(report),
        "README.md": CARD.encode(),
        "Modelfile": f"FROM ./tiny-1M-desk-v{version}-Q8_0.gguf\n".encode(),
        "adapter/adapter_config.json": b"{}",
        "LICENSE": b"MIT",
        **more,
    }

    metrics = {"project": "desk", "version": version, "license": "mit", "files": {"Q8_0": sha256}}
    return handmade.make(path, files, stage="publish/3", recipe_id="sha256:0", metrics=metrics)


def send(target: Target, made: Artifact, **shipped: Any) -> Plan:
    """Send a release to a target as `publish` does, with a signature or gates."""
    plan = targets.plan(target, "there", targets.shipment(made, **shipped))
    targets.deliver(target, plan)
    return plan


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path, the manifest too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def make_key(
    folder: Path, name: str = "key", curve: str = "prime256v1", password: str = ""
) -> tuple[Path, Path]:
    """A private key and its public one, PEM, made by openssl;
    `password` encrypts the private one.
    """
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    subprocess.run(
        ["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", private],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        ["openssl", "ec", "-in", private, "-pubout", "-out", public],
        check=True,
        capture_output=True,
    )
    if password:
        locked = folder / f"{name}-locked.pem"
        subprocess.run(
            [
                "openssl",
                "ec",
                "-in",
                private,
                "-aes256",
                "-passout",
                f"pass:{password}",
                "-out",
                locked,
            ],
            check=True,
            capture_output=True,
        )
        private.unlink()
        private = locked
    return private, public
