"""An OCI registry in a thread that sends whatever a test says."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from slmctl.artifacts.artifact import Artifact, canonical

PIECE = bytes(1 << 20)


@dataclass
class Answer:
    """What is sent: a body, then `more` bytes of zeros; `headers` beside, in place of a length."""

    body: bytes = b""
    more: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


class Registry(ThreadingHTTPServer):
    """Answers by the end of a path; `sent` counts the bytes of bodies."""

    daemon_threads = True
    answers: dict[str, Answer]
    sent = 0

    @property
    def address(self) -> str:
        return f"oci://127.0.0.1:{self.server_address[1]}/acme/desk"


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        answer = next((one for end, one in self.server.answers.items() if path.endswith(end)), Answer(status=404))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(answer.body)
            self.server.sent += len(answer.body)
            for _ in range(answer.more >> 20):
                self.wfile.write(PIECE)
                self.server.sent += len(PIECE)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def running(answers: dict[str, Answer]) -> Iterator[Registry]:
    with Registry(("127.0.0.1", 0), _Handler) as server:
        server.answers = answers
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def digest(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def layers_of(made: Artifact) -> list[dict[str, Any]]:
    names = [*(entry.path for entry in made.manifest.files), "manifest.json"]
    return [
        {"digest": digest((made.path / name).read_bytes()), "annotations": {"org.cncf.model.filepath": name}}
        for name in names
    ]


def answers_of(made: Artifact) -> dict[str, Answer]:
    """What an honest registry answers of a release."""
    blobs = {path: path.read_bytes() for path in made.path.rglob("*") if path.is_file()}
    return {
        "/manifests/1.0": Answer(canonical({"layers": layers_of(made)})),
        "/tags/list": Answer(b'{"tags": ["1.0"]}'),
        **{f"/blobs/{digest(raw)}": Answer(raw) for raw in blobs.values()},
    }
