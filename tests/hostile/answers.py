"""An HTTP server in a thread that sends whatever a test says, such as what an S3 service would."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact

PIECE = bytes(1 << 20)


@dataclass
class Answer:
    """What is sent: a body, then `more` bytes of zeros; `headers` beside, in place of a length."""

    body: bytes = b""
    more: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


class Server(ThreadingHTTPServer):
    """Answers by the end of a path; `sent` counts the bytes of bodies."""

    daemon_threads = True
    answers: dict[str, Answer]
    sent = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        answer = next(
            (one for end, one in self.server.answers.items() if path.endswith(end)),
            Answer(status=404),
        )
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
def running(answers: dict[str, Answer]) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Handler) as server:
        server.answers = answers
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


TO = "s3://models/acme"
LISTING = "/models"
MANIFEST = "/acme/desk/1.0/manifest.json"


def listed(*keys: str) -> bytes:
    """The answer to a listing of objects."""
    entries = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in keys)
    return f"<ListBucketResult>{entries}</ListBucketResult>".encode()


def blob(made: Artifact, name: str) -> str:
    """The end of the path of a file."""
    return f"/acme/.blobs/{artifact.sha256_file(made.path / name).removeprefix('sha256:')}"


def answers_of(made: Artifact) -> dict[str, Answer]:
    """What an honest S3 service answers of a release in TO."""
    files = {blob(made, entry.path): made.file(entry.path) for entry in made.manifest.files}
    return {
        LISTING: Answer(listed(MANIFEST[1:])),
        MANIFEST: Answer((made.path / "manifest.json").read_bytes()),
        **{end: Answer(path.read_bytes()) for end, path in files.items()},
    }
