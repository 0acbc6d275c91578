"""How much is tried: samples by default, all of it under `make torture`."""

from __future__ import annotations

import os

FULL = bool(os.environ.get("SLMCTL_TORTURE"))
