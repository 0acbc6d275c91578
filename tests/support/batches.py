"""An endpoint on the loopback that takes batches: files in, batches that end, expire or are forgotten, files out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from support import endpoint

Result = tuple[int, dict[str, Any]]  # status and body of one answer


@dataclass
class BatchServer:
    """What was asked of the server.

    Attributes:
        answers: Status and body for the body of one request.
        polls: Questions for a batch's state before it is over.
        fates: Of each batch in order, `completed`, `expired` (only every second request is answered), `failed` (none
            is) or `forgotten` (404); the last one is that of all further ones.
    """

    answers: Callable[[dict[str, Any]], Result]
    polls: int = 1
    fates: list[str] = field(default_factory=lambda: ["completed"])
    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    served: list[dict[str, Any]] = field(default_factory=list)  # bodies of requests that were answered
    asked_for: list[str] = field(default_factory=list)  # ids of batches whose state was asked

    def create(self, file: str) -> dict[str, Any]:
        number = len(self.batches)
        batch = {"id": f"batch_{number}", "status": "in_progress", "file": file, "left": self.polls,
                 "fate": self.fates[min(number, len(self.fates) - 1)]}  # fmt: skip
        self.batches[batch["id"]] = batch
        return batch

    def state(self, id: str) -> dict[str, Any] | None:
        self.asked_for.append(id)
        batch = self.batches[id]
        batch["left"] -= 1
        if batch["left"] < 0 and batch["fate"] == "forgotten":
            return None
        if batch["left"] < 0 and batch["status"] == "in_progress":
            batch |= {"status": batch["fate"]} | self._results(batch)
        return batch

    def _results(self, batch: dict[str, Any]) -> dict[str, Any]:
        if batch["fate"] == "failed":
            return {"errors": {"message": "the file is not valid"}}
        good, bad = [], []
        for k, line in enumerate(self.files[batch["file"]].splitlines()):
            request = json.loads(line)
            if batch["fate"] == "expired" and k % 2:
                error = {"code": "batch_expired", "message": "This request could not be executed in time."}
                bad.append({"custom_id": request["custom_id"], "response": None, "error": error})
                continue
            status, body = self.answers(request["body"])
            self.served.append(request["body"])
            response = {"status_code": status, "body": body}
            good.append({"custom_id": request["custom_id"], "response": response, "error": None})
        found = {}
        for name, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                id = f"file-{batch['id']}-{name[:3]}"
                self.files[id] = "".join(json.dumps(line) + "\n" for line in lines).encode()
                found[name] = id
        return found


@contextmanager
def serving(answers: Callable[[dict[str, Any]], Result], **more: Any) -> Iterator[BatchServer]:
    """Run the server for the length of a block."""
    server, lock = BatchServer(answers, **more), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            with lock:
                if self.path.endswith("/files"):
                    boundary = self.headers["content-type"].partition("boundary=")[2].encode()
                    (part,) = [part for part in raw.split(b"--" + boundary) if b'name="file"' in part]
                    id = f"file-{len(server.files)}"
                    server.files[id] = part.partition(b"\r\n\r\n")[2].rstrip(b"\r\n") + b"\n"
                    self._say({"id": id})
                else:
                    self._say(server.create(json.loads(raw)["input_file_id"]))

        def do_GET(self) -> None:
            with lock:
                name = self.path.rpartition("/batches/")[2]
                if name in server.batches:
                    self._say(server.state(name))
                else:
                    self._send(200, server.files[self.path.split("/")[-2]])

        def _say(self, fields: dict[str, Any] | None) -> None:
            self._send(
                404 if fields is None else 200, json.dumps(fields or {"error": {"message": "no batch"}}).encode()
            )

        def _send(self, status: int, raw: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args: Any) -> None:
            pass

    with endpoint.listening(Handler) as server.url:
        yield server
