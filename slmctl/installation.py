"""This installation: the pip command for an extra, and the folders for
files that are kept outside of projects.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from slmctl.errors import MissingError

ROOT = Path(__file__).resolve().parent.parent  # the root of a checkout, or else site-packages
WITHOUT_MODEL = "without a language model: slmctl run --until encode, or publish: {model: linear}"


def is_installed(package: str) -> bool:
    """True if a package can be imported, which is not tried."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # half of one
        return False


def require(what: str, extra: str, *packages: str) -> None:
    """Refuse what needs packages of an extra; raises a MissingError if one is not installed."""
    for package in packages:
        if not is_installed(package):
            raise MissingError(
                f"{what} needs the package '{package}', which is not installed",
                hint=pip_line(extra),
            )


def pip_line(*extras: str) -> str:
    """The pip command that installs extras from the origin of slmctl: a
    checkout, a wheel or a package index.
    """
    extra = ",".join(extras)
    if not (ROOT / "pyproject.toml").is_file():
        package = _wheel() or "slmctl"
        return f"pip install {shlex.quote(f'{package}[{extra}]')}"
    try:
        here = Path.cwd() == ROOT
    except OSError:  # the working folder is gone
        here = False
    return (
        f"pip install -e '.[{extra}]'"
        if here
        else f"pip install -e {shlex.quote(f'{ROOT}[{extra}]')}"
    )


def _wheel() -> str:
    """The path of the wheel that slmctl was installed from, by pip's
    record (PEP 610); '' for an index.
    """
    noted = importlib.metadata.distribution("slmctl").read_text("direct_url.json") or "{}"
    address = urlsplit(str(json.loads(noted).get("url", "")))
    return (
        unquote(address.path) if address.scheme == "file" and address.path.endswith(".whl") else ""
    )


def user_cache() -> Path | None:
    """The cache folder of this user, which may not exist; None
    without XDG_CACHE_HOME and a home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slmctl"
    except RuntimeError:  # HOME is not set, and the user id is unknown
        return None


def timings_folder() -> str:
    """The folder for the timings of `inference.expansion`, which may not exist; '' for none."""
    folder = user_cache()
    return str(folder / "timings") if folder else ""


def kept_folders() -> list[Path]:
    """Folders for files that are downloaded once, the preferred one first.

    The folder in the environment (`sys.prefix`) is found by every user of this installation, such
    as cron.
    """
    beside, own = Path(sys.prefix) / "share" / "slmctl", user_cache()
    if own is None:
        return [beside]
    return [own, beside] if os.environ.get("XDG_CACHE_HOME") else [beside, own]


def can_write(folder: Path) -> bool:
    """True if a folder can be written, or created if it does not exist."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path("/"))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)  # noqa: PTH112 - pathlib's raises without rights
