"""Files that people run elsewhere: words as a shell reads them, and scripts that may be executed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path


def label(name: str) -> str:
    """A name as Kubernetes, image names and slmctl.yaml allow it: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")


def shell_words(words: str | Sequence[str]) -> str:
    """Words as a shell reads them again."""
    return shlex.quote(words) if isinstance(words, str) else shlex.join(words)


def write(path: Path, text: str) -> None:
    """Write a file and the folders above it; one that ends in `.sh` may be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if path.suffix == ".sh":
        path.chmod(0o755)
