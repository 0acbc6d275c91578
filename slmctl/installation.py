"""This installation: the line that adds an extra to it, and the folders for what it keeps outside of projects."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent  # of a checkout; else site-packages


def pip_line(extra: str) -> str:
    """The command that installs an extra from where slmctl came: a checkout, a wheel's file or a package index."""
    if not (ROOT / "pyproject.toml").is_file():
        package = _wheel() or "slmctl"
        return f"pip install {shlex.quote(f'{package}[{extra}]')}"
    try:
        here = Path.cwd() == ROOT
    except OSError:  # the working folder is gone
        here = False
    return f"pip install -e '.[{extra}]'" if here else f"pip install -e {shlex.quote(f'{ROOT}[{extra}]')}"


def _wheel() -> str:
    """The path of the wheel that slmctl was installed from, as pip has noted it (PEP 610); empty for an index."""
    noted = importlib.metadata.distribution("slmctl").read_text("direct_url.json") or "{}"
    address = urlsplit(str(json.loads(noted).get("url", "")))
    return unquote(address.path) if address.scheme == "file" and address.path.endswith(".whl") else ""


def user_cache() -> Path | None:
    """The folder of this user's cache, which may not exist; None where neither XDG_CACHE_HOME nor a home names one."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slmctl"
    except RuntimeError:  # no HOME, and the system knows no user of this number
        return None


def timings_folder() -> str:
    """The folder for the timings of `inference.expansion`, which may not exist; empty for none."""
    folder = user_cache()
    return str(folder / "timings") if folder else ""


def kept_folders() -> list[Path]:
    """Folders for what is fetched once, the preferred one first.

    The one beside the environment is found by whoever runs this slmctl, cron and other users included.
    """
    beside, own = Path(sys.prefix) / "share" / "slmctl", user_cache()
    if own is None:
        return [beside]
    return [own, beside] if os.environ.get("XDG_CACHE_HOME") else [beside, own]


def can_write(folder: Path) -> bool:
    """True if a folder can be written, or made where it does not exist."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path("/"))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)  # noqa: PTH112 - pathlib's raises without rights
