"""Keeps data on this machine: environment variables against telemetry of libraries, and a guard on
sockets.

The variables act on the Hugging Face libraries only if set before their first import, so `cli`
calls `seal` before any stage module is loaded. The guard is a second, independent line: by
CPython's audit events it sees every connection, datagram and name look-up through the `socket`
module, whichever library makes it; except the look-up inside `connect` to a host name, whose
connection it then refuses.

Traffic that leaves is counted: every host, and every byte that Python gives to a socket to another
machine (with TLS before encryption, for asynchronous clients after it). The receipt of a stage is
in its manifest.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypedDict

from slmctl.errors import NetworkError

# docs/privacy.md lists the library of each variable.
SWITCHES = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_XET": "1",  # native code with its own sockets, which the guard would not see
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    # for a user who tracks with MLflow; it ignores DO_NOT_TRACK=1
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",  # a fork after its threads have started would warn on stderr
}

_open_for = ""  # the purpose for which the network is open; '': it is closed
_only: frozenset[str] | None = None  # the hosts that may be contacted; None: all
# (purpose, hosts) of open `network` blocks; the last applies
_openings: list[tuple[str, frozenset[str] | None]] = []
_addresses: set[str] = set()  # IP addresses of these hosts
_learning = threading.local()
_installed = False
_forbidden = False  # by --offline
_counting = threading.Lock()
contacted: set[str] = set()  # hosts since the last receipt
# of these, hosts that native code contacts, with bytes that are not counted
uncounted: set[str] = set()
refused: set[str] = set()  # hosts that were refused while the network was open for others
_bytes_out = 0
# totals of this process before the last receipt
_whole: dict[str, Any] = {"hosts": set(), "bytes_out": 0}


class Receipt(TypedDict, total=False):
    """The network use of a stage or a process.

    Attributes:
        hosts_contacted: Names of the hosts, sorted.
        bytes_out: Bytes sent to them.
        not_counted: Hosts that native code contacts, with bytes that are not counted.
    """

    hosts_contacted: list[str]
    bytes_out: int
    not_counted: list[str]


def seal() -> None:
    """Set the environment variables and install the guard, in this
    process; child processes get the variables.
    """
    global _installed
    os.environ.update(SWITCHES)
    if not _installed:
        sys.addaudithook(_audit)
        _installed = True


def forbid() -> None:
    """Refuse every use of the network from now on, also by commands that need it (`--offline`)."""
    global _forbidden
    _forbidden = True


def is_forbidden() -> bool:
    """True if `--offline` was given."""
    return _forbidden


def require(purpose: str, *, hint: str = "") -> None:
    """Refuse something that will need the network, before any work is done.

    Raises:
        NetworkError: `--offline` was given.
    """
    if _forbidden:
        raise NetworkError(
            f"{purpose} needs the network, and --offline forbids it",
            hint=hint or "leave --offline out",
        )


@contextlib.contextmanager
def network(
    purpose: str, hosts: Iterable[str] | None = None, *, hub: bool = False
) -> Iterator[None]:
    """Open the network for this process inside the block, because the user asked for `purpose`.

    Args:
        purpose: The reason, for the message of a refusal.
        hosts: The only hosts that may be contacted; `*.example.com` is every name below. None: any
            host.
        hub: True to let the Hugging Face libraries contact the Hub; also if `hosts` is None.

    Raises:
        NetworkError: `--offline` was given, and not all hosts are this machine.
    """
    global _open_for, _only
    opening = (purpose, None if hosts is None else frozenset(hosts))
    if not (opening[1] and all(map(is_local, opening[1]))):
        require(purpose)
    _addresses.clear()
    _count_sockets()
    _openings.append(opening)
    _open_for, _only = opening
    try:
        with _hub_switches() if hub or hosts is None else contextlib.nullcontext():
            yield
    finally:
        # not always the last: a server opens a new release before it closes the old one
        _openings.remove(opening)
        _open_for, _only = _openings[-1] if _openings else ("", None)
        _addresses.clear()


@contextlib.contextmanager
def _hub_switches() -> Iterator[None]:
    """Unset the offline variables inside the block. The Hub's client copies them when it is
    imported, which may have happened before: its copy is changed too.
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
        # reset it also if the block imported it
        client = client or sys.modules.get("huggingface_hub.constants")
        if client:
            client.HF_HUB_OFFLINE = client_kept


def on_the_way(url: str) -> set[str]:
    """The hosts that a request to an address may contact: its own, and the configured proxy."""
    from urllib.parse import urlsplit

    return {
        name
        for name in (urlsplit(url).hostname or "", urlsplit(proxy_of(url)).hostname or "")
        if name
    }


def proxy_of(url: str) -> str:
    """The address of the configured proxy for an address, with a scheme,
    which variables may lack; '' for none.
    """
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxies = {} if proxy_bypass(parts.hostname or "") else getproxies()
    way = proxies.get(parts.scheme) or proxies.get("all") or ""
    return way if not way or "://" in way else f"http://{way}"


def receipt() -> Receipt:
    """The hosts contacted and the bytes sent since the last receipt."""
    counts: Receipt = {"hosts_contacted": sorted(contacted), "bytes_out": _bytes_out}
    if uncounted:
        counts["not_counted"] = sorted(uncounted)
    return counts


def begin_receipt() -> None:
    """Reset the counts for another stage."""
    global _bytes_out
    _whole["hosts"] |= contacted
    _whole["bytes_out"] += _bytes_out
    contacted.clear()
    uncounted.clear()
    _bytes_out = 0


@contextlib.contextmanager
def written_down(root: Path | None, command: str) -> Iterator[None]:
    """Write the receipt of a command that makes no artifact to `runs/.receipts/`, if it contacted a
    host.

    Args:
        root: The project's folder; None writes nothing.
    """
    try:
        yield
    finally:
        counts, now = receipt(), time.gmtime()
        if root is not None and counts["hosts_contacted"]:
            path = (
                root
                / "runs"
                / ".receipts"
                / f"{time.strftime('%Y%m%dT%H%M%SZ', now)}-{os.getpid()}.json"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = {**counts, "command": command, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", now)}
            path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def add_receipt(counts: Receipt) -> None:
    """Add the counts of a child process."""
    global _bytes_out
    contacted.update(counts.get("hosts_contacted", []))
    uncounted.update(counts.get("not_counted", []))
    _bytes_out += counts.get("bytes_out", 0)


def summary() -> tuple[list[str], int]:
    """Returns (hosts that this process has contacted, bytes sent to them), over its whole life."""
    return sorted(_whole["hosts"] | contacted), _whole["bytes_out"] + _bytes_out


def _audit(event: str, args: tuple[object, ...]) -> None:
    """Audit hook that refuses connections to other machines. It cannot
    be removed again, so it must be fast.
    """
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        host = _host(args[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = (
            args[0].decode(errors="replace") if isinstance(args[0], bytes) else str(args[0] or "")
        )
    else:
        return
    if is_local(host):
        return
    if not _open_for:
        raise NetworkError(
            f"refused a connection to '{host}': nothing leaves this machine unasked",
            hint="only `slmctl pull`, `label`, `publish`, `fetch`, `doctor --fix`, `evaluate "
            "--against URL`, "
            "`predict` with `--engine-url URL` or `--ray HOST:PORT`, `serve --generalist URL` and "
            "sources "
            "that name a host use the network",
        )
    if not _may(host):
        refused.add(host)
        raise NetworkError(
            f"refused a connection to '{host}': the network is open for "
            f"{', '.join(sorted(_only or ()))} alone"
        )
    contacted.add(host)


def _may(host: str) -> bool:
    """True if the network is open for a host, which may be an IP address of an allowed name."""
    if _only is None or host in _addresses or getattr(_learning, "on", False):
        return True
    if any(fnmatchcase(host, name) for name in _only):
        _learn(host)
        return True
    for name in _only:  # look names up again, since their addresses may have changed
        if "*" not in name:
            _learn(name)
    return host in _addresses


def _learn(name: str) -> None:
    """Look up the IP addresses of a name, since a connection event holds only an address."""
    _learning.on = True
    try:
        with contextlib.suppress(OSError):
            _addresses.update(str(counts[4][0]) for counts in socket.getaddrinfo(name, None))
    finally:
        _learning.on = False


def _count_sockets() -> None:
    """Count the bytes that Python sends from now on, plain and through TLS."""
    import ssl

    if getattr(socket.socket.send, "counts", False):
        return
    for kind, names in (
        (socket.socket, ("send", "sendall", "sendto", "sendmsg")),
        (ssl.SSLSocket, ("send", "write")),
    ):
        for name in names:
            setattr(kind, name, _counted(getattr(kind, name), under_tls=kind is ssl.SSLSocket))


def _counted(send: Callable[..., Any], *, under_tls: bool) -> Callable[..., Any]:
    @functools.wraps(send)
    def counting(self: Any, data: Any, *more: Any, **named: Any) -> Any:
        global _bytes_out
        sent = send(self, data, *more, **named)
        if (
            _open_for
            and (not under_tls or getattr(self, "_sslobj", None) is not None)
            and _leads_out(self, more)
        ):
            with _counting:
                _bytes_out += memoryview(data).nbytes if sent is None else sent
        return sent

    counting.counts = True  # type: ignore[attr-defined]
    return counting


def _leads_out(sock: socket.socket, more: tuple[Any, ...]) -> bool:
    """True if a socket sends to another machine: its peer, else
    the address in the call's arguments.
    """
    try:
        peer: object = sock.getpeername()
    except OSError:
        peer = more[-1] if more else ""
    return not is_local(_host(peer))


def _host(address: object) -> str:
    """The host of a socket address; '' for a Unix socket."""
    return str(address[0]) if isinstance(address, tuple) and address else ""


def is_local(host: str) -> bool:
    """True if a host is this machine, or '' (a Unix socket)."""
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback or host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
    except ValueError:
        return False
