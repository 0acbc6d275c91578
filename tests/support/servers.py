"""Servers of tests on the loopback: HTTP in a thread of this process, and
programs, ended by their process ids.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WAIT_S = 60


def settles(condition: Callable[[], object]) -> bool:
    """True as soon as a condition is true; False after a minute."""
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class QuietHandler(BaseHTTPRequestHandler):
    """Requests of whom nothing is logged."""

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["content-length"]))

    def reply(self, raw: bytes, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """One that answers in threads, however many clients come at once."""

    daemon_threads = True
    request_queue_size = 128  # a client beyond socketserver's 5 tries again after a second


@contextlib.contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server of this handler, for the length of a block; yields its address."""
    with answering(Server(("127.0.0.1", 0), handler)) as url:
        yield url


@contextlib.contextmanager
def answering(server: Server) -> Iterator[str]:
    """Have a server answer in threads, for the length of a block; yields its address."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    with server:
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# Programs


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], port: int, log: Path) -> Iterator[int]:
    """A program that listens on a port of the loopback, until the block ends."""

    def listens() -> bool:
        assert child.poll() is None, "the server did not start"
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", port)) == 0

    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as child:
        try:
            assert settles(listens), "the server did not listen"
            yield port
        finally:
            child.kill()


@contextlib.contextmanager
def s3_service(folder: Path) -> Iterator[str]:
    """The address of an S3 service with a bucket `models`: moto's server."""
    import boto3

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, port, folder / "log"):
        url = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="id",
            aws_secret_access_key="key",
        )
        client.create_bucket(Bucket="models")
        yield url
