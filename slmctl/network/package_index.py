"""Downloads from the package index, by pip in a child process (`pip_child`) with guarded sockets.

pip knows the company's mirror, proxy and certificates. The hosts that it may contact are read from
its settings, printed, and enforced.
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
# A file of a package may unpack to MAX_EXPANSION times its compressed bytes, or to SMALL; weights
# hardly compress.
MAX_EXPANSION, SMALL = 20, 64 << 20
_NEEDS = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NETRC")


def download(
    requirement: str,
    folder: Path,
    *options: str,
    purpose: str,
    largest: int = LARGEST,
    named: bool = False,
) -> list[Path]:
    """Let pip download one pinned requirement without its dependencies; returns the new files.

    Args:
        requirement: Such as `name==1.0`.
        options: Further options of `pip download`.
        purpose: The command that needs it, for the message of a refusal.
        largest: Largest size of a file in bytes, whatever the index says.
        named: True where the hosts have been printed.

    Raises:
        NetworkError: pip failed, was redirected to a host that is not the index's, or `--offline`
            was given.
    """
    guard.require(purpose, hint="name the base by a path, or run this once without --offline")
    allowed = hosts()
    if not named:
        console.say(f"  contacting {', '.join(sorted(allowed)) or 'no host'}, as pip is set up")
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    arguments = ["download", "--no-deps", "--quiet", *options, "--dest", str(folder), requirement]
    reason = ""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        limits = report.name, json.dumps(sorted(allowed)), str(largest)
        try:
            child.run(
                "slmctl.network.pip_child",
                *limits,
                *arguments,
                env=child_environment.without_secrets(*_NEEDS),
            )
        except child.DiedError as death:
            reason = str(death)
        receipt = json.loads(report.read() or "{}")
    guard.add_receipt(receipt)
    came = sorted(set(folder.iterdir()) - before)
    if receipt.get("refused"):
        other = receipt["refused"][0]
        raise NetworkError(
            f"the package index sends pip to {other}, and it was to contact "
            f"{', '.join(sorted(allowed))} alone",
            hint=f"if {other} belongs to your index: pip config set global.find-links "
            f"https://{other}/",
        )
    if reason or not came:
        raise NetworkError(
            f"pip could not fetch {requirement}: {reason or 'nothing came'}",
            hint="pip config list shows which index is asked",
        )
    return came


def most_bytes(entry: ZipInfo) -> int:
    """The largest number of bytes that a file of a package may unpack to."""
    return max(MAX_EXPANSION * entry.compress_size, SMALL)


def hosts() -> set[str]:
    """The hosts that pip will contact: of the index, of its file storage, and of the proxy."""
    env = child_environment.without_secrets(*_NEEDS)
    done = child.run("pip", "--disable-pip-version-check", "config", "list", env=env)
    return hosts_of(done.stdout.splitlines())


def standard_index() -> tuple[str, str]:
    """Returns (address of pip's default index, host of its files)."""
    from pip._internal.models.index import PyPI  # pip has no public name for these

    return PyPI.simple_url, PyPI.file_storage_domain


def hosts_of(settings: Sequence[str]) -> set[str]:
    """`hosts` from the lines of `pip config list`."""
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
            names |= guard.on_the_way(url) | {
                files if host == urlsplit(standard).hostname else host
            }
            names |= {f"*.{_domain(host)}"} if _domain(host) else set()
    return {host for host in names if host}


def _domain(host: str) -> str:
    """The domain that an index shares with its file storage:
    `example.com` of `pypi.example.com`.
    """
    parts = host.split(".")
    return ".".join(parts[-2:]) if len(parts) > 2 and not re.fullmatch(r"[0-9.]+", host) else ""


def _read(written: str) -> str:
    try:
        return str(ast.literal_eval(written))
    except (ValueError, SyntaxError):
        return written
