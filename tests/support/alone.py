"""Commands in a namespace with nothing but the loopback, and a DNS server that writes down what it
is asked for.

    unshare --net --mount python alone.py ORDER.json REPORT.json

The order holds commands and their environment; each is run under strace, which sees every address
that is connected or sent to, and every program that is started. `names` are names that stand for
192.0.2.1, which then lies on the loopback too, with a server that counts what it is sent and
answers as a chat endpoint.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIOCSIFFLAGS, SIOCSIFADDR, UP = 0x8914, 0x8916, 0x1
OUTSIDE = "192.0.2.1"  # RFC 5737: it belongs to nobody
PORT = 8080
UNSHARE = ["unshare", *(["--map-root-user"] if os.getuid() else []), "--net", "--mount"]
SECRETS = {
    "HF_TOKEN": "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",
    "HUGGING_FACE_HUB_TOKEN": "hf_canaryHHHHIIIIJJJJKKKKLLLLMMMM",
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY1234",
    "AWS_SECRET_ACCESS_KEY": "canary/aws/secret/0123456789abcdefghijkl",
    "AWS_SESSION_TOKEN": "canary-session-token",
    "OPENAI_API_KEY": "sk-canary-openai-0123456789",
    "GITHUB_TOKEN": "ghp_canary0123456789",
    "WANDB_API_KEY": "canary-wandb-0123456789",
    "DB_PASSWORD": "canary-db-password",
    "DATABASE_URL": "postgresql://me:canary-in-url@db.invalid/x",
    "SLMCTL_TEST_PRIVATE_KEY": "canary-private-key",
}
ANSWER = json.dumps(
    {"choices": [{"message": {"content": "billing"}, "finish_reason": "stop"}]}
).encode()


def can_be_alone() -> bool:
    """True where the system lets a test make a namespace, and strace is installed."""
    if shutil.which("strace") is None or shutil.which("unshare") is None:
        return False
    return (
        subprocess.run([*UNSHARE, "mount", "--make-rprivate", "/"], capture_output=True).returncode
        == 0
    )


def bare(**more: str) -> dict[str, str]:
    """An environment in which nothing helps: no CI, no switch of any library."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "HOME", "LANG", "XDG_CACHE_HOME")
        if name in os.environ
    }
    return kept | {"OMP_NUM_THREADS": "1"} | more


def run_alone(
    place: Path, steps: Sequence[dict[str, Any]], names: Sequence[str] = ()
) -> dict[str, Any]:
    """Run commands in a namespace of their own; the report."""
    place.mkdir()
    order, report = place / "order.json", place / "report.json"
    order.write_text(json.dumps({"steps": list(steps), "names": list(names)}))
    done = subprocess.run(
        [*UNSHARE, sys.executable, __file__, str(order), str(report)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert isinstance(found, dict)
    return found


# In the namespace


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
            head = (
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
                f"{len(ANSWER)}\r\n\r\n"
            )
            self.wfile.write(head.encode() + ANSWER)


def reached(trace: str) -> list[str]:
    """Addresses outside of the loopback that a process connected or sent to."""
    address = r'sa_family=AF_INET6?,.*?(?:inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)")'
    found = re.findall(address, trace)
    addresses = {v4 or v6 for v4, v6 in found}
    return sorted(
        one
        for one in addresses
        if not one.startswith("127.") and one not in ("::1", "0.0.0.0", "::")
    )


def traced(command: list[str], log: Path) -> list[str]:
    calls = "trace=connect,sendto,sendmsg,sendmmsg,execve"
    return [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-v",
        "-s",
        "100000",
        "-e",
        calls,
        "-o",
        str(log),
        *command,
    ]


def run(step: dict[str, Any], log: Path) -> dict[str, Any]:
    """Run a command; one that serves is asked a question, and ended."""
    options: dict[str, Any] = {
        "env": step["env"],
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    child = subprocess.Popen(traced(step["command"], log), **options)
    said = ""
    if step.get("serves"):
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            said = reply.read().decode()
        for path in Path("/proc").glob(f"{child.pid}/task/*/children"):
            for pid in path.read_text().split():  # strace's child: the program
                signal.pidfd_send_signal(os.pidfd_open(int(pid)), signal.SIGTERM)
    out, err = child.communicate(timeout=900)
    trace = log.read_text(errors="replace")
    started = [line for line in trace.splitlines() if "execve(" in line]
    return {
        "code": child.returncode,
        "stdout": out + said,
        "stderr": err,
        "reached": reached(trace),
        "started": started,
    }


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
