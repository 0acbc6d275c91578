"""An OpenAI-compatible endpoint on the loopback whose manners a test decides."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from support.servers import QuietHandler, listening

Turn = tuple[int, dict[str, str], bytes]  # status, headers, body
USAGE = {"prompt_tokens": 11, "completion_tokens": 3}
# what to say to a body, and how often it was asked before
Manners = Callable[[dict[str, Any], int], Turn]


@dataclass
class Fake:
    """What was asked of the endpoint, and where it is."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most_at_once: int = 0

    @property
    def questions(self) -> list[str]:
        return [asked_of(body) for body in self.bodies]


def asked_of(body: dict[str, Any]) -> str:
    """The last text of a request in any form."""
    given = body.get("messages", body.get("input", body.get("state")))
    return str(given if isinstance(given, str) else given[-1]["content"])


def says(text: str | None, **more: Any) -> Turn:
    """A good reply."""
    body = {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        ],
        "usage": USAGE,
    } | more
    return 200, {}, json.dumps(body).encode()


def decides(body: dict[str, Any], label: str, sure: float = 0.9, **more: Any) -> Turn:
    """A good answer to the question for a label, in the form of the
    request; the others share what is left.
    """
    if "state" in body:
        labels = list(body["questions"]["label"]["criteria"])
    else:
        labels = [choice["value"] for choice in body["questions"][0]["choices"]]
    shares = {each: sure if each == label else (1 - sure) / (len(labels) - 1) for each in labels}
    answer: dict[str, Any] = {
        "type": "choice",
        "choice": label,
        "confidence": 0.5,
        "probabilities": shares,
    }
    if "state" not in body:
        answer |= {
            "name": "label",
            "probabilities": [{"value": a, "probability": b} for a, b in shares.items()],
        }
    answer |= more
    usage = {"input_tokens": 40, "output_tokens": 0}
    reply = {
        "model": "a",
        "answers": {"label": answer} if "state" in body else [answer],
        "usage": usage,
    }
    return 200, {}, json.dumps(reply).encode()


def streams(text: str, finish: str = "stop") -> Turn:
    """A good reply as the chunks of a stream."""
    first = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "usage": USAGE}
    lines = (json.dumps(first), json.dumps(last), "[DONE]")
    return (
        200,
        {"content-type": "text/event-stream"},
        "".join(f"data: {line}\n\n" for line in lines).encode(),
    )


def fails(status: int, message: str = "no", **headers: str) -> Turn:
    """A refusal in OpenAI's form."""
    return status, headers, json.dumps({"error": {"message": message}}).encode()


@contextmanager
def serving(manners: Manners) -> Iterator[Fake]:
    """Run the endpoint for the length of a block."""
    fake, lock, now = Fake(), threading.Lock(), [0]
    asked: dict[str, int] = {}
    links: list[socket.socket] = []

    class Handler(QuietHandler):
        # a new connection costs more than an answer
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

        def setup(self) -> None:
            super().setup()
            links.append(self.connection)

        def do_GET(self) -> None:  # of its models, which it does not list
            self.send_error(404)

        def do_POST(self) -> None:
            body = json.loads(self.body())
            key = json.dumps(body.get("messages", asked_of(body)))
            with lock:
                before = asked.get(key, 0)
                asked[key] = before + 1
                fake.bodies.append(body)
                fake.headers.append({name.lower(): value for name, value in self.headers.items()})
                fake.paths.append(self.path)
                now[0] += 1
                fake.most_at_once = max(fake.most_at_once, now[0])
            try:
                status, headers, raw = manners(body, before)
            finally:
                with lock:
                    now[0] -= 1
            kept = status == 200 and not {"content-length", "transfer-encoding"} & headers.keys()
            if status != 0:  # else hang up without a word
                self.reply(raw, status, headers if kept else {"connection": "close", **headers})
            self.close_connection |= not kept

    try:
        with listening(Handler) as url:
            fake.url = f"{url}/v1"
            yield fake
    finally:
        for link in links:
            with contextlib.suppress(OSError):  # it was closed before
                link.shutdown(socket.SHUT_RDWR)
