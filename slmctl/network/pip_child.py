"""The child process of `package_index`: pip, whose sockets are guarded and whose bytes are counted.

    python -m slmctl.network.pip_child RECEIPT.json HOSTS LARGEST ARGUMENT...

The receipt tells the parent which hosts were contacted, how many bytes went out, and which hosts pip was kept from.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from slmctl.child import bound
from slmctl.network import guard

MEMORY = 4 << 30  # bytes that pip may take


def main() -> None:
    place, hosts, largest, arguments = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    bound(data=MEMORY, file_bytes=largest)  # an index may send a page or a file without end
    guard.seal()
    sys.argv = ["pip", *arguments]
    try:
        with guard.network("the package index", hosts=hosts):
            runpy.run_module("pip", run_name="__main__", alter_sys=True)
    finally:
        place.write_text(json.dumps(guard.receipt() | {"refused": sorted(guard.refused)}), encoding="utf-8")


if __name__ == "__main__":
    main()
