"""Keep data on this machine: switches for the libraries that phone home, and a guard on sockets.

The switches act on the Hugging Face libraries only when set before their first import, so `cli`
calls `seal` before any stage module is loaded. The guard is a second, independent line: CPython's
audit events see what is made through the `socket` module, whichever library makes it: every
connection and datagram, and every name look-up but the one inside `connect` to a bare name, whose
connection is then refused.

What does leave is counted: every host, and every byte that Python hands to a socket which leads elsewhere
(under TLS the bytes before encryption, for asynchronous clients after it). The receipt of a stage
stands in its manifest.
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

# Which library each switch silences is listed in docs/privacy.md.
SWITCHES = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_XET": "1",  # native code that opens sockets of its own, which the guard would not see
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
_openings: list[tuple[str, frozenset[str] | None]] = []  # those that last; the latest one counts
_addresses: set[str] = set()  # what their names stand for
_learning = threading.local()
_installed = False
_forbidden = False  # by --offline
_counting = threading.Lock()
contacted: set[str] = set()  # since the last receipt
uncounted: set[str] = set()  # of these, hosts that native code talks to, whose bytes nobody counts
refused: set[str] = set()  # hosts that the guard has kept from being asked, though the network was open for others
_bytes_out = 0
_whole: dict[str, Any] = {"hosts": set(), "bytes_out": 0}  # of this process, for `summary`


class Receipt(TypedDict, total=False):
    """The network use of a stage or a process.

    Attributes:
        hosts_contacted: Names of the hosts, in order.
        bytes_out: Bytes sent to them.
        not_counted: Those of the hosts that native code talks to, whose bytes nobody counts.
    """

    hosts_contacted: list[str]
    bytes_out: int
    not_counted: list[str]


def seal() -> None:
    """Turn every switch off and raise the guard, for this process and the children it starts."""
    global _installed
    os.environ.update(SWITCHES)
    if not _installed:
        sys.addaudithook(_audit)
        _installed = True


def forbid() -> None:
    """Have every use of the network be refused before it begins, also those that a command is asked for."""
    global _forbidden
    _forbidden = True


def is_forbidden() -> bool:
    """True if `--offline` was given."""
    return _forbidden


def require(purpose: str, *, hint: str = "") -> None:
    """Refuse what will need the network, before any work is done for it.

    Raises:
        NetworkError: `--offline` was given.
    """
    if _forbidden:
        raise NetworkError(f"{purpose} needs the network, and --offline forbids it", hint=hint or "leave --offline out")


@contextlib.contextmanager
def network(purpose: str, hosts: Iterable[str] | None = None, *, hub: bool = False) -> Iterator[None]:
    """Let this process use the network inside the block, because the user asked for `purpose`.

    Args:
        purpose: What was asked, for the message of a refusal.
        hosts: It is open for those alone; `*.example.com` stands for all names below. None: for all.
        hub: The Hub may be asked. Else the libraries' switches stay off, where hosts are named.

    Raises:
        NetworkError: `--offline` was given, and not all of the hosts are this machine.
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
        _openings.remove(opening)  # not always the last one: a server opens a release before it closes the one before
        _open_for, _only = _openings[-1] if _openings else ("", None)


@contextlib.contextmanager
def _hub_switches() -> Iterator[None]:
    """Let the Hub be asked. Its client reads its switch when it is imported, and transformers may have imported
    it long ago: its own copy of the switch is turned too."""
    kept = {name: os.environ.pop(name, None) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    client: Any = sys.modules.get("huggingface_hub.constants")
    client_kept = client.HF_HUB_OFFLINE if client else True
    if client:
        client.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in kept.items() if value is not None})
        client = client or sys.modules.get("huggingface_hub.constants")  # imported inside the block: back on too
        if client:
            client.HF_HUB_OFFLINE = client_kept


def on_the_way(url: str) -> set[str]:
    """The hosts that a request to an address goes to: its own, or the proxy that this machine is told to ask."""
    from urllib.parse import urlsplit

    return {name for name in (urlsplit(url).hostname or "", urlsplit(proxy_of(url)).hostname or "") if name}


def proxy_of(url: str) -> str:
    """The address of the proxy that this machine is told to ask for an address; empty for none."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxies = {} if proxy_bypass(parts.hostname or "") else getproxies()
    return proxies.get(parts.scheme) or proxies.get("all") or ""


def receipt() -> Receipt:
    """The hosts contacted and the bytes sent since the last receipt."""
    counts: Receipt = {"hosts_contacted": sorted(contacted), "bytes_out": _bytes_out}
    if uncounted:
        counts["not_counted"] = sorted(uncounted)
    return counts


def begin_receipt() -> None:
    """Forget what was counted: another stage begins."""
    global _bytes_out
    _whole["hosts"] |= contacted
    _whole["bytes_out"] += _bytes_out
    contacted.clear()
    uncounted.clear()
    _bytes_out = 0


@contextlib.contextmanager
def written_down(root: Path | None, command: str) -> Iterator[None]:
    """Keep the receipt of a command that makes no artifact: below `runs/` of a project, where it contacted anybody.

    Args:
        root: The project's folder; None keeps nothing.
        command: What was asked.
    """
    try:
        yield
    finally:
        counts, now = receipt(), time.gmtime()
        if root is not None and counts["hosts_contacted"]:
            path = root / "runs" / ".receipts" / f"{time.strftime('%Y%m%dT%H%M%SZ', now)}-{os.getpid()}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = {**counts, "command": command, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", now)}
            path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def add_receipt(counts: Receipt) -> None:
    """Take over what a child process has counted."""
    global _bytes_out
    contacted.update(counts.get("hosts_contacted", []))
    uncounted.update(counts.get("not_counted", []))
    _bytes_out += counts.get("bytes_out", 0)


def summary() -> tuple[list[str], int]:
    """The hosts that this process has contacted in all, and the bytes that it has sent to them."""
    return sorted(_whole["hosts"] | contacted), _whole["bytes_out"] + _bytes_out


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
            hint="only `slmctl pull`, `label`, `publish`, `fetch`, `doctor --fix`, `evaluate --against URL`, "
            "`predict` with `--engine-url URL` or `--ray HOST:PORT`, `serve --generalist URL` and sources "
            "that name a host use the network",
        )
    if not _may(host):
        refused.add(host)
        raise NetworkError(
            f"refused a connection to '{host}': the network is open for {', '.join(sorted(_only or ()))} alone"
        )
    contacted.add(host)


def _may(host: str) -> bool:
    """True if the network is open for a host, or for the address that its name stands for."""
    if _only is None or host in _addresses or getattr(_learning, "on", False):
        return True
    if any(fnmatchcase(host, name) for name in _only):
        _learn(host)
        return True
    for name in _only:  # a name may stand for other addresses than a minute ago
        if "*" not in name:
            _learn(name)
    return host in _addresses


def _learn(name: str) -> None:
    """Find out which addresses a name stands for, since a connection says no more than an address."""
    _learning.on = True
    try:
        with contextlib.suppress(OSError):
            _addresses.update(str(counts[4][0]) for counts in socket.getaddrinfo(name, None))
    finally:
        _learning.on = False


def _count_sockets() -> None:
    """Count what Python sends from now on: plainly, and through TLS."""
    import ssl

    if getattr(socket.socket.send, "counts", False):
        return
    for kind, names in ((socket.socket, ("send", "sendall", "sendto", "sendmsg")), (ssl.SSLSocket, ("send", "write"))):
        for name in names:
            setattr(kind, name, _counted(getattr(kind, name), under_tls=kind is ssl.SSLSocket))


def _counted(send: Callable[..., Any], *, under_tls: bool) -> Callable[..., Any]:
    @functools.wraps(send)
    def counting(self: Any, data: Any, *more: Any, **named: Any) -> Any:
        global _bytes_out
        sent = send(self, data, *more, **named)
        if _open_for and (not under_tls or getattr(self, "_sslobj", None) is not None) and _leads_out(self, more):
            with _counting:
                _bytes_out += memoryview(data).nbytes if sent is None else sent
        return sent

    counting.counts = True  # type: ignore[attr-defined]
    return counting


def _leads_out(sock: socket.socket, more: tuple[Any, ...]) -> bool:
    """True if data of a socket leaves this machine: to its peer, else to the address that the call names."""
    try:
        peer: object = sock.getpeername()
    except OSError:
        peer = more[-1] if more else ""
    return not is_local(_host(peer))


def _host(address: object) -> str:
    """The host of an address as `socket.connect` takes it; a Unix socket has none."""
    return str(address[0]) if isinstance(address, tuple) and address else ""


def is_local(host: str) -> bool:
    """True if a host is this machine; a Unix socket has no host."""
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback or host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
    except ValueError:
        return False
