"""A namespace with nothing but the loopback and a DNS server that writes down every name it is asked for.

    unshare --net --mount python alone.py ORDER.json REPORT.json

The order holds commands and their environment; each is run under strace, which sees every address that is connected
or sent to. `names` are names that stand for 192.0.2.1, which then lies on the loopback too, with a server that
counts what it is sent and answers as a chat endpoint.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

SIOCSIFFLAGS, SIOCSIFADDR, UP = 0x8914, 0x8916, 0x1
OUTSIDE = "192.0.2.1"  # RFC 5737: it belongs to nobody
PORT = 8080
ANSWER = json.dumps({"choices": [{"message": {"content": "billing"}, "finish_reason": "stop"}]}).encode()


def raise_loopback(*, outside: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", UP, b""))
        if outside:
            address = struct.pack("HH4s8s", socket.AF_INET, 0, socket.inet_aton(OUTSIDE), b"")
            fcntl.ioctl(one, SIOCSIFADDR, struct.pack("16s16s", b"lo:1", address))


def use_own_dns(place: Path) -> None:
    """Have every process of this mount namespace ask the server below."""
    path = place / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", str(path), "/etc/resolv.conf"], check=True)


class Dns(threading.Thread):
    """Writes down what it is asked, and knows the names that it was given; no others exist."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(daemon=True)
        self.names, self.asked = names, []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))

    def run(self) -> None:
        while True:
            query, client = self.socket.recvfrom(4096)
            at, labels = 12, []
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode(errors="replace"))
                at += 1 + query[at]
            question, kind = query[12 : at + 5], struct.unpack(">H", query[at + 1 : at + 3])[0]
            name = ".".join(labels)
            self.asked.append(name)
            known, answers = name in self.names, b""
            if known and kind == 1:
                answers = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(OUTSIDE)
            flags = 0x8180 if known else 0x8183
            head = query[:2] + struct.pack(">HHHHH", flags, 1, int(bool(answers)), 0, 0)
            self.socket.sendto(head + question + answers, client)


class Endpoint(socketserver.StreamRequestHandler):
    """Answers a chat request, and counts every byte that came."""

    received = 0
    counting = threading.Lock()

    def handle(self) -> None:
        while line := self.rfile.readline():
            length, count = 0, len(line)
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                count += len(line)
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.rfile.read(length)
            with Endpoint.counting:
                Endpoint.received += count + 2 + length
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(ANSWER)}\r\n\r\n"
            self.wfile.write(head.encode() + ANSWER)


def reached(log: Path) -> list[str]:
    """Addresses outside of the loopback that a process connected or sent to."""
    address = r'sa_family=AF_INET6?,.*?(?:inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)")'
    found = re.findall(address, log.read_text(errors="replace"))
    addresses = {v4 or v6 for v4, v6 in found}
    return sorted(one for one in addresses if not one.startswith("127.") and one not in ("::1", "0.0.0.0", "::"))


def traced(command: list[str], log: Path) -> list[str]:
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    return ["strace", "-f", "--seccomp-bpf", "-s", "0", "-e", calls, "-o", str(log), *command]


def run(step: dict[str, Any], log: Path) -> dict[str, Any]:
    """Run a command; one that serves is asked a question, and ended."""
    options: dict[str, Any] = {"env": step["env"], "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen(traced(step["command"], log), **options)
    said = ""
    if step.get("serves"):
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
        request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as reply:
            said = reply.read().decode()
        for path in Path("/proc").glob(f"{child.pid}/task/*/children"):
            for pid in path.read_text().split():  # strace's child: the program
                signal.pidfd_send_signal(os.pidfd_open(int(pid)), signal.SIGTERM)
    out, err = child.communicate(timeout=900)
    return {"code": child.returncode, "stdout": out + said, "stderr": err, "reached": reached(log)}


def main(order: Path, report: Path) -> None:
    told = json.loads(order.read_text())
    raise_loopback(outside=bool(told["names"]))
    use_own_dns(order.parent)
    dns = Dns(told["names"])
    dns.start()
    if told["names"]:
        server = socketserver.ThreadingTCPServer((OUTSIDE, PORT), Endpoint)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    steps = []
    for number, step in enumerate(told["steps"]):
        before = len(dns.asked)
        done = run(step, order.parent / f"trace-{number}")
        steps.append({**done, "asked": dns.asked[before:]})
    report.write_text(json.dumps({"steps": steps, "received": Endpoint.received}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
