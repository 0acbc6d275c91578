"""The child process of `package_index`: pip, whose sockets are guarded and whose bytes are counted.

    python -m slmctl._pip RECEIPT.json HOSTS ARGUMENT...

The receipt tells the parent which hosts were contacted, how many bytes went out, and which hosts pip was kept from.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from slmctl import offline


def main() -> None:
    """Be pip."""
    place, hosts, arguments = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    offline.seal()
    sys.argv = ["pip", *arguments]
    try:
        with offline.network("the package index", hosts=hosts):
            runpy.run_module("pip", run_name="__main__", alter_sys=True)
    finally:
        place.write_text(json.dumps(offline.receipt() | {"refused": sorted(offline.refused)}), encoding="utf-8")


if __name__ == "__main__":
    main()
