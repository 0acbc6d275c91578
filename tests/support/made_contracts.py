"""The archive of the made contracts."""

import tarfile
from pathlib import Path

from support import EXAMPLES


def files(archive: Path = EXAMPLES / "contract-terms.tar.xz") -> dict[str, bytes]:
    """The files of the archive of contracts, by name."""
    with tarfile.open(archive) as held:
        return {entry.name: held.extractfile(entry).read() for entry in held}  # type: ignore[union-attr] # all are files
