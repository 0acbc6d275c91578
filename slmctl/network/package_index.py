"""The package index, asked by pip in a child process whose sockets are guarded like this one's.

pip knows the company's mirror, its proxy and its certificates. What it may contact is read from its own
settings before, said, and held: `_pip` is the child.
"""

from __future__ import annotations

import ast
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from zipfile import ZipInfo

from slmctl import child, child_environment, console
from slmctl.errors import NetworkError
from slmctl.network import guard

LARGEST = 64 << 30  # bytes
PINNED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.+!_-]+)")  # a requirement
# How many times its compressed bytes a file of a package may have; weights hardly shrink. A small one may have SMALL.
MAX_EXPANSION, SMALL = 20, 64 << 20
_NEEDS = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NETRC")


def download(requirement: str, folder: Path, *options: str, purpose: str, largest: int = LARGEST) -> list[Path]:
    """Have pip fetch one pinned requirement into `folder`, without what it depends on; the files that came.

    Args:
        requirement: Such as `name==1.0`.
        folder: Where they go.
        options: Further ones of `pip download`.
        purpose: The command that asks, for a refusal.
        largest: Bytes that a file may have, whatever the index says.

    Raises:
        NetworkError: pip could not fetch it, was sent to a host that is not of the index, or `--offline` was given.
    """
    guard.require(purpose, hint="name the base by a path, or run this once without --offline")
    allowed = hosts()
    console.say(f"  contacting {', '.join(sorted(allowed)) or 'no host'}, as pip is set up")
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    arguments = ["download", "--no-deps", "--quiet", *options, "--dest", str(folder), requirement]
    reason = ""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        limits = report.name, json.dumps(sorted(allowed)), str(largest)
        try:
            child.run("slmctl.network.pip_child", *limits, *arguments, env=child_environment.without_secrets(*_NEEDS))
        except child.DiedError as death:
            reason = str(death)
        receipt = json.loads(report.read() or "{}")
    guard.add_receipt(receipt)
    came = sorted(set(folder.iterdir()) - before)
    if receipt.get("refused"):
        other = receipt["refused"][0]
        raise NetworkError(
            f"the package index sends pip to {other}, and it was to contact {', '.join(sorted(allowed))} alone",
            hint=f"if {other} belongs to your index: pip config set global.find-links https://{other}/",
        )
    if reason or not came:
        raise NetworkError(
            f"pip could not fetch {requirement}: {reason or 'nothing came'}",
            hint="pip config list shows which index is asked",
        )
    return came


def most_bytes(entry: ZipInfo) -> int:
    """The most bytes that a file of a package may have."""
    return max(MAX_EXPANSION * entry.compress_size, SMALL)


def hosts() -> set[str]:
    """The hosts that pip will contact: its index, where that keeps its files, and the proxy on the way."""
    env = child_environment.without_secrets(*_NEEDS)
    done = child.run("pip", "--disable-pip-version-check", "config", "list", env=env)
    return hosts_of(done.stdout.splitlines())


def standard_index() -> tuple[str, str]:
    """The index that pip asks where none is set, and the host that this one keeps its files on."""
    from pip._internal.models.index import PyPI  # pip tells neither in another way

    return PyPI.simple_url, PyPI.file_storage_domain


def hosts_of(settings: Sequence[str]) -> set[str]:
    """The same, of lines as `pip config list` prints them."""
    urls: list[str] = []
    names: set[str] = set()
    without, with_index = False, False
    for line in settings:
        name, _, written = line.partition("=")
        key = name.rpartition(".")[2].replace("_", "-")
        value = _read(written)
        if key == "no-index":
            without = value.lower() in ("1", "true", "yes", "on")
        elif key == "proxy":
            names |= {urlsplit(value if "://" in value else f"http://{value}").hostname or ""}
        elif key in ("index-url", "extra-index-url", "find-links"):
            urls += value.split()
            with_index |= key == "index-url"
    standard, files = standard_index()
    urls += [] if without or with_index else [standard]
    for url in urls:
        if url.startswith(("http://", "https://")):
            host = urlsplit(url).hostname or ""
            names |= guard.on_the_way(url) | {files if host == urlsplit(standard).hostname else host}
            names |= {f"*.{_domain(host)}"} if _domain(host) else set()
    return {host for host in names if host}


def _domain(host: str) -> str:
    """The domain that an index shares with where it keeps its files: `example.com` of `pypi.example.com`."""
    parts = host.split(".")
    return ".".join(parts[-2:]) if len(parts) > 2 and not re.fullmatch(r"[0-9.]+", host) else ""


def _read(written: str) -> str:
    try:
        return str(ast.literal_eval(written))
    except (ValueError, SyntaxError):
        return written
