"""Replies as a hostile or broken endpoint gives them: a good one with
a part exchanged, or no HTTP at all.
"""

from __future__ import annotations

import copy
import gzip
import json
import zlib
from random import Random
from typing import Any

from support.endpoint import Turn

BOMB = b"\x00" * 10_000_000
HUGE = 10**400
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2.5,
    HUGE,
    -HUGE,
    float("nan"),
    float("inf"),
    "",
    "\ud800",
    "a\udc00b",
    "x" * 300_000,
    "\x1b[2J",
    [],
    {},
    [[]],
    10**10,
    "```\n" + "\n" * 50_000,
    " " * 50_000 + "billing",
    {"a": 1},
    "billing",
    [None],
    {"content": "billing"},
]
FIELDS = [
    ("choices",),
    ("choices", 0),
    ("choices", 0, "message"),
    ("choices", 0, "message", "content"),
    ("choices", 0, "message", "tool_calls"),
    ("choices", 0, "finish_reason"),
    ("choices", 0, "logprobs"),
    ("choices", 0, "logprobs", "content"),
    ("choices", 0, "logprobs", "content", 0),
    ("usage",),
    ("choices", 0, "logprobs", "content", 0, "logprob"),
    ("choices", 0, "logprobs", "content", 0, "token"),
    ("choices", 0, "logprobs", "content", 0, "bytes"),
    ("choices", 0, "logprobs", "content", 0, "top_logprobs"),
    ("usage", "prompt_tokens"),
    ("usage", "completion_tokens"),
    ("slmctl",),
    ("slmctl", "confidence"),
    ("slmctl", "labels"),
    ("slmctl", "labels", "billing"),
    ("choices", 0, "delta"),
    ("choices", 0, "delta", "content"),
    ("error",),
    ("error", "message"),
]


def good(text: str = "billing") -> dict[str, Any]:
    """A reply that serves whole and as a chunk of a stream."""
    token = {"token": text, "bytes": list(text.encode()), "logprob": -0.1, "top_logprobs": []}
    return {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "delta": {"content": text},
                "finish_reason": "stop",
                "logprobs": {"content": [token]},
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
        "slmctl": {"confidence": 0.9, "labels": {"billing": 0.9, "delivery": 0.1}},
    }


DECIDED = [
    ("answers",),
    ("answers", 0),
    ("answers", 0, "type"),
    ("answers", 0, "choice"),
    ("answers", 0, "confidence"),
    ("answers", 0, "probabilities"),
    ("answers", 0, "probabilities", 0),
    ("answers", 0, "probabilities", 0, "value"),
    ("answers", 0, "probabilities", 0, "probability"),
    ("usage",),
    ("usage", "input_tokens"),
    ("usage", "output_tokens"),
]


def decided() -> dict[str, Any]:
    """A good reply of a decisions API."""
    shares = [{"value": "billing", "probability": 0.9}, {"value": "delivery", "probability": 0.1}]
    answer = {
        "type": "choice",
        "name": "label",
        "choice": "billing",
        "confidence": 0.4,
        "probabilities": shares,
    }
    return {"model": "m", "answers": [answer], "usage": {"input_tokens": 9, "output_tokens": 0}}


def exchanged(body: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The body with one field set, or added where its place is there."""
    place: Any = body
    for step in path[:-1]:
        try:
            place = place[step]
        except (KeyError, IndexError, TypeError):
            return body
    if isinstance(place, dict) or (isinstance(place, list) and path[-1] == 0 and place):
        place[path[-1]] = value
    return body


def compressed(layers: int) -> bytes:
    """A body of 10 MB in a few kilobytes, compressed several times over."""
    raw = BOMB
    for _ in range(layers):
        raw = gzip.compress(raw, mtime=0)
    return raw


NO_COMPLETION: list[Turn] = [
    (200, {"content-encoding": "gzip"}, compressed(1)),
    (200, {"content-encoding": "gzip, gzip"}, compressed(2)),
    (200, {"content-encoding": "gzip, gzip, gzip, gzip"}, compressed(4)),
    (200, {"content-encoding": "deflate"}, zlib.compress(BOMB)),
    (200, {"content-encoding": "br"}, b"\x0b\x02\x80"),
    (200, {"content-encoding": "x" * 5000}, b"{}"),
    (200, {"content-type": "application/json; charset=hex"}, b"zz"),
    (200, {}, b"[" * 1_000_000),
    (200, {}, b'{"choices":' * 100_000),
    (200, {}, b"[" + b"[]," * 2_000_000 + b"[]]"),
    (200, {}, b"\xff\xfe{\x00}\x00"),
    (200, {}, b"\xef\xbb\xbf{}"),
    (200, {}, b"1" * 5000),
    (200, {}, b'"\\ud800"'),
    (200, {}, b"data: " * 1000),
    (200, {"content-length": "-5"}, b"{}"),
    (200, {"transfer-encoding": "chunked"}, b"fffffffffffffffff\r\n"),
    (200, {f"x-{k}": "y" * 1000 for k in range(200)}, b"{}"),
    (204, {}, b""),
    (301, {"location": "http://127.0.0.1:9/"}, b""),
    (307, {"location": "file:///etc/passwd"}, b""),
    (400, {}, json.dumps({"error": {"message": "\ud800\x1b[2J" * 500}}).encode()),
    (429, {"retry-after": "9" * 401}, b""),
    (429, {"retry-after": "Fri, 31 Dec 9999 23:59:59 -2359"}, b""),
    (503, {"retry-after": "-inf"}, b"\xff" * 100_000),
    (999, {}, b"{}"),
    (0, {}, b""),
]


def any_reply(random: Random, *, stream: bool) -> Turn:
    """A reply of any kind; about a third can be used."""
    if random.randrange(4) == 0:
        return random.choice(NO_COMPLETION)
    body = good(random.choice(["billing", "delivery", "I would say billing", "```json\n{}\n```"]))
    for _ in range(random.choice([0, 1, 1, 2])):
        odd = copy.deepcopy(random.choice(ODD))  # the next exchange may go into it
        body = exchanged(body, random.choice(FIELDS), odd)
    raw = json.dumps(body).encode()
    if random.randrange(6) == 0:
        raw = raw[: random.randint(0, len(raw))] + bytes([random.randrange(256)])
    headers = {"set-cookie": f"who={random.random()}"} if random.randrange(2) else {}
    if stream:
        end = random.choice(
            [
                b"data: [DONE]\n\n",
                b"",
                b"data: {}\n\n",
                b"data:" + b"x" * 100_000,
                b": ping\n\n" * 1000,
            ]
        )
        return 200, headers | {"content-type": "text/event-stream"}, b"data: " + raw + b"\n\n" + end
    return 200, headers, raw
