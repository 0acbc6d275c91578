"""What keeps data on this machine: switches for the libraries that phone home, and a guard on sockets.

The switches act on the Hugging Face libraries only when set before their first import, so `cli`
calls `seal` before any stage module is loaded. The guard is a second, independent line: CPython's
audit events see what is made through the `socket` module, whichever library makes it: every
connection and datagram, and every name look-up but the one inside `connect` to a bare name, whose
connection is then refused.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from slmctl.errors import NetworkError

# Which library each switch silences is listed in docs/privacy.md.
SWITCHES = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # of a tracker that the user may name; it reads no DO_NOT_TRACK=1
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",  # a fork after its threads have started would warn on stderr
}

_open_for = ""  # what the user asked that needs the network; empty: the guard is up
_only: frozenset[str] | None = None  # the hosts it is open for; None: all
_addresses: set[str] = set()  # what their names stand for
_learning = threading.local()
_installed = False
contacted: set[str] = set()


def seal() -> None:
    """Turn every switch off and raise the guard, for this process and the children it starts."""
    global _installed
    os.environ.update(SWITCHES)
    if not _installed:
        sys.addaudithook(_audit)
        _installed = True


@contextlib.contextmanager
def network(purpose: str, hosts: Iterable[str] | None = None, *, hub: bool | None = None) -> Iterator[None]:
    """Let this process use the network inside the block, because the user asked for `purpose`.

    With `hosts` it is open for those alone; without, for all. The libraries' switches stay off unless the Hub
    is among them (`hub`), as it is without `hosts`.
    """
    global _open_for, _only
    _open_for, _only = purpose, None if hosts is None else frozenset(hosts)
    _addresses.clear()
    try:
        with _hub_switches() if hub or (hub is None and hosts is None) else contextlib.nullcontext():
            yield
    finally:
        _open_for, _only = "", None


@contextlib.contextmanager
def _hub_switches() -> Iterator[None]:
    """Have the Hub's client ask the Hub.

    It reads its offline switch when it is imported, and transformers may have imported it long ago: its own copy of
    the switch is turned too.
    """
    kept = {name: os.environ.pop(name, None) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    client: Any = sys.modules.get("huggingface_hub.constants")
    client_kept = client.HF_HUB_OFFLINE if client else True
    if client:
        client.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in kept.items() if value is not None})
        client = client or sys.modules.get(
            "huggingface_hub.constants"
        )  # imported inside the block: turn it back on too
        if client:
            client.HF_HUB_OFFLINE = client_kept


def _audit(event: str, args: tuple[object, ...]) -> None:
    """Refuse what leaves the machine. Audit hooks cannot be removed, so this one stays cheap."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        host = _host(args[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0].decode(errors="replace") if isinstance(args[0], bytes) else str(args[0] or "")
    else:
        return
    if is_local(host):
        return
    if not _open_for:
        raise NetworkError(
            f"refused a connection to '{host}': nothing leaves this machine unasked",
            hint="only `slmctl pull`, `publish`, `fetch`, `doctor --fix`, `evaluate --against URL`, "
            "`predict --engine-url URL` and sources that name a host use the network",
        )
    if not _may(host):
        raise NetworkError(
            f"refused a connection to '{host}': the network is open for {', '.join(sorted(_only or ()))} alone"
        )
    contacted.add(host)


def _may(host: str) -> bool:
    """Whether the network is open for a host, or for the address that its name stands for."""
    if _only is None or host in _only or getattr(_learning, "on", False):
        return True
    if host not in _addresses:  # a name may stand for other addresses than a minute ago
        _learning.on = True
        try:
            for name in _only:
                with contextlib.suppress(OSError):
                    _addresses.update(str(found[4][0]) for found in socket.getaddrinfo(name, None))
        finally:
            _learning.on = False
    return host in _addresses


def _host(address: object) -> str:
    """The host of an address as `socket.connect` takes it; a Unix socket has none."""
    return str(address[0]) if isinstance(address, tuple) and address else ""


def is_local(host: str) -> bool:
    """Whether a host is this machine; a Unix socket has no host."""
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback or host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
    except ValueError:
        return False
