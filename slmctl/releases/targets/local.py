"""dir:FOLDER: a registry on this machine, or on a disk that machines share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import MANIFEST
from slmctl.releases import registry
from slmctl.releases.targets import Settings, Shipment, ShipmentFile


def open(to: str, settings: Settings) -> FolderTarget:
    """The registry of an address."""
    return FolderTarget(registry.parse(to, settings.root)[0])


class FolderTarget:
    """A registry as a target."""

    hosts = ()
    visibility = "who may read the folder"

    def __init__(self, root: Path) -> None:
        self.root = root

    def where(self, shipment: Shipment, item: ShipmentFile) -> str:
        return str(self.root / shipment.project / shipment.version / item.name)

    def holds(self, shipment: Shipment) -> set[str]:
        """The files that the visible release has with this content; before it
        is visible, the files among the blobs.
        """
        final = self.root / shipment.project / shipment.version
        if (final / MANIFEST).exists():
            held = {
                item.name
                for item in shipment.items
                if artifact.has_content(final / item.name, item.sha256)
            }
            return held if registry.has_gates(self.root, shipment.release) else held - {MANIFEST}
        return {
            item.name
            for item in shipment.items
            if artifact.has_content(registry.blob(self.root, item.sha256), item.sha256)
        }

    def put(self, shipment: Shipment, missing: Sequence[ShipmentFile]) -> None:
        for item in missing:
            registry.put_blob(self.root, item.path, item.sha256)

    def finish(self, shipment: Shipment) -> None:
        files = {item.name: item.sha256 for item in shipment.items}
        try:
            registry.assemble(self.root, shipment.project, shipment.version, files)
        except FileNotFoundError:  # `gc` of another project takes blobs that are of no release yet
            self.put(shipment, shipment.items)
            registry.assemble(self.root, shipment.project, shipment.version, files)
        registry.record_gates(self.root, shipment.release, shipment.gates)

    def find(self, name: str) -> tuple[str, str]:
        return registry.locate(self.root, name)

    @contextlib.contextmanager
    def read(
        self, project: str, version: str, name: str, sha256: str
    ) -> Iterator[Iterator[bytes] | None]:
        source = self.root / project / version / name
        if source.is_symlink() or not source.is_file():
            yield None
        else:
            with source.open("rb") as stream:
                yield iter(lambda: stream.read(1 << 20), b"")
