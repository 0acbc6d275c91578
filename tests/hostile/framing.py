"""Requests as a hostile client writes them: a form of HTTP/1.1 that is
right, wrong or endless, in any segments.
"""

from __future__ import annotations

import json
from random import Random

PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/feedback",
    "/healthz",
    "/readyz",
    "/metrics",
    "/",
    "/x",
]
ODD = [
    b"\x00",
    b"\r",
    b"\n",
    b"\xff",
    b" ",
    b"\t",
    b":",
    b"\xf0\x9f\x92\xa9",
    b"%00",
    b"%ff",
    b"../",
    b"#",
    b"?a=b",
]
NAMES = [
    b"Host",
    b"Content-Length",
    b"Transfer-Encoding",
    b"Expect",
    b"Upgrade",
    b"Connection",
    b"X-Request-Id",
    b"Authorization",
    b"Content-Type",
    b"X-Slmctl-Sensitive",
    b"Origin",
    b"Cookie",
    b"",
    b"X-\xff",
]
NUMBERS = [
    b"0",
    b"5",
    b"-1",
    b"+5",
    b"5, 5",
    b"0x5",
    b"5 ",
    b"9" * 20,
    b"1" * 401,
    b"\xd9\xa5",
    b"5.0",
    b"",
]
SIZES = [0, 1, 7, 100, 4000, 4096, 5000, 65_000, 66_000, 70_000, 300_000]


def noise(random: Random) -> bytes:
    """A few bytes, a long run of one byte, or random ones."""
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(ODD)
    if kind == 1:
        return random.choice([b"a", b"\r\n", b"x: y\r\n", b"0", b";"]) * random.choice(SIZES)
    return bytes(random.randrange(256) for _ in range(random.randrange(40)))


def number(random: Random) -> bytes:
    """A length, as it should not be written."""
    return random.choice(NUMBERS)


def header(random: Random) -> bytes:
    name = random.choice(NAMES)
    value = {
        b"Content-Length": number(random),
        b"Transfer-Encoding": random.choice(
            [b"chunked", b"gzip", b"chunked, chunked", b"identity", b"xchunked"]
        ),
        b"Expect": random.choice([b"100-continue", b"200-ok"]),
        b"Upgrade": random.choice([b"websocket", b"h2c"]),
        b"Connection": random.choice([b"upgrade", b"close", b"keep-alive", b"Content-Length"]),
        b"Content-Type": random.choice(
            [b"application/json", b"text/plain", b"application/json; charset=utf-16"]
        ),
    }.get(name, noise(random))
    return (
        name
        + random.choice([b": ", b":", b" : ", b"\t:"])
        + value
        + random.choice([b"\r\n", b"\n", b"\r\n "])
    )


def chunked(random: Random, body: bytes) -> bytes:
    """A body in chunks, with extensions and trailers of any length."""
    parts = []
    while body:
        size = random.randint(1, len(body))
        extension = random.choice(
            [b"", b"", b";a=b", b";" + noise(random), b";x=" + b"y" * random.choice(SIZES)]
        )
        parts.append(
            b"%x" % size
            + extension
            + b"\r\n"
            + body[:size]
            + random.choice([b"\r\n", b"\r\n", b"", b"zz"])
        )
        body = body[size:]
    trailers = b"".join(header(random) for _ in range(random.choice([0, 0, 1, 3, 200])))
    return (
        b"".join(parts)
        + random.choice([b"0\r\n", b"0;a\r\n", b"", b"-1\r\n", b"f" * 20 + b"\r\n"])
        + trailers
        + b"\r\n"
    )


def request(random: Random) -> bytes:
    """One request; about a third of them are right."""
    body = json.dumps(
        {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    ).encode()
    if random.randrange(3) == 0:
        body = noise(random)
    method = random.choice(
        [b"POST"] * 4 + [b"GET", b"OPTIONS", b"HEAD", b"CONNECT", b"PUT", b"FOO", b""]
    )
    path = random.choice(PATHS).encode() + (noise(random) if random.randrange(6) == 0 else b"")
    version = random.choice([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1111", b""])
    head = (
        method
        + b" "
        + path
        + b" "
        + version
        + b"\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    )
    head += b"".join(header(random) for _ in range(random.choice([0, 0, 0, 1, 2, 500])))
    if random.randrange(2):
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(random, body)
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def stream(random: Random) -> list[bytes]:
    """Segments of one connection: one request or several in a
    row, cut anywhere, sometimes cut off.
    """
    raw = b"".join(request(random) for _ in range(random.choice([1, 1, 1, 2, 5])))
    if random.randrange(20) == 0:
        raw = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * random.choice([50, 3000])
    if random.randrange(4) == 0:
        raw = raw[: random.randint(0, len(raw))]
    cuts = sorted(random.randint(0, len(raw)) for _ in range(random.choice([0, 0, 1, 3, 9])))
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
