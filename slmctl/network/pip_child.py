"""The child process of `package_index`: runs pip with guarded sockets, and counts the bytes that it
sends.

    python -m slmctl.network.pip_child RECEIPT.json HOSTS LARGEST ARGUMENT...

The receipt holds the contacted hosts, the number of bytes sent, and the refused hosts.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from slmctl.child import bound
from slmctl.network import guard

MEMORY = 4 << 30  # limit of pip's memory in bytes


def main() -> None:
    place = Path(sys.argv[1])
    hosts = json.loads(sys.argv[2])
    largest = int(sys.argv[3])
    arguments = sys.argv[4:]
    bound(data=MEMORY, file_bytes=largest)  # an index may send an endless page or file
    guard.seal()
    sys.argv = ["pip", *arguments]
    try:
        with guard.network("the package index", hosts=hosts):
            runpy.run_module("pip", run_name="__main__", alter_sys=True)
    finally:
        place.write_text(
            json.dumps(guard.receipt() | {"refused": sorted(guard.refused)}), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
