"""Receipts of releases that `publish` has sent, in `runs/.deliveries/`. `gc` requires their targets
to be readable.

A registry on a share that is not mounted looks like an empty one; the receipt distinguishes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from slmctl import console
from slmctl.artifacts import artifact, atomic, bounded_json
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import IntegrityError

FOLDER = ".deliveries"


@dataclass(frozen=True)
class Delivery:
    """A release that a target holds; `to` is its address in the config, relative to the project."""

    to: str
    project: str
    version: str
    digest: str
    at: str


def record(runs: Path, release: Artifact, to: str) -> None:
    """Write a receipt for a release that was sent to `to`."""
    at = console.timestamp()
    sent = Delivery(
        to, str(release.metrics["project"]), str(release.metrics["version"]), release.digest, at
    )
    name = f"{release.digest[7:19]}-{artifact.sha256_bytes(to.encode())[7:19]}.json"
    atomic.write(runs / FOLDER / name, artifact.canonical(asdict(sent)))


def recorded(runs: Path) -> Iterator[tuple[Path, Delivery]]:
    """(file, receipt) of every receipt.

    Raises:
        IntegrityError: A receipt cannot be read.
    """
    for path in sorted((runs / FOLDER).glob("[!.]*.json")):
        values = bounded_json.parse(bounded_json.read_bytes(path), where=f"the receipt {path}")
        if values.keys() != {field.name for field in fields(Delivery)} or not all(
            isinstance(value, str) for value in values.values()
        ):
            raise IntegrityError(
                f"the receipt {path} does not say what was sent where", hint=f"rm {path}"
            )
        yield path, Delivery(**values)
