"""Small model files that are sound, and what a hostile author makes of them."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

EXTREMES = (
    0,
    1,
    7,
    8,
    9,
    13,
    31,
    63,
    64,
    255,
    256,
    1 << 16,
    1 << 24,
    1 << 32,
    *((1 << k) - 1 for k in (31, 63, 64)),
)


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of that header, which may be any JSON or bytes, and that much data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SOUND_SAFETENSORS = safetensors(
    {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [2, 3], [0, 24]),
        "b": entry("BF16", [4], [24, 32]),
    },
    b"\0" * 32,
)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    """A key of a GGUF file; kinds: 4 uint32, 8 text, 9 array."""
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "t", shape: tuple[int, ...] = (2,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    keys: list[bytes],
    tensors: list[bytes],
    data: int = 64,
    *,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A GGUF file of these parts, with a right count of them or another one."""
    tensor_count, key_count = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", 3, tensor_count, key_count) + b"".join(keys + tensors)
    return head + b"\0" * (-len(head) % 32 + data)


SOUND_GGUF = gguf(
    [
        key("general.architecture", 8, text("llama")),
        key("llama.block_count", 4, struct.pack("<I", 2)),
        key(
            "tokenizer.ggml.tokens",
            9,
            struct.pack("<IQ", 8, 3) + text("a") + text("b") + text("▁c"),
        ),
        key("tokenizer.ggml.scores", 9, struct.pack("<IQ3f", 6, 3, 0, 1, 2)),
    ],
    [tensor("token_embd.weight", (2, 3)), tensor("blk.0.attn_q.weight", (32, 2), 8, 32)],
    32 + 68,
)


def mutate(choose: Random, raw: bytes) -> bytes:
    """A few bytes of a file changed, cut, put in or repeated; numbers
    become extreme ones where they may stand.
    """
    changed = bytearray(raw)
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(len(changed)) if changed else 0
        match choose.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([choose.randrange(256)])
            case 1:
                changed[at : at + 8] = struct.pack("<Q", choose.choice(EXTREMES))
            case 2:
                changed[at : at + 4] = struct.pack("<I", choose.choice(EXTREMES) & 0xFFFFFFFF)
            case 3:
                del changed[at:]
            case 4:
                changed[at:at] = changed[at : at + choose.randrange(1, 64)] * choose.randrange(
                    1, 50
                )
            case _:
                number = str(choose.choice(EXTREMES) * choose.choice((1, -1))).encode()
                changed[at : at + choose.randrange(4)] = choose.choice(
                    (number, b"[", b"{", b"null", b'"', b"1e999")
                )
    return bytes(changed)


def any_json(choose: Random, depth: int = 0) -> Any:
    """A value of any shape, some of it as in a model's settings."""
    kinds = 8 if depth < 4 else 5
    match choose.randrange(kinds):
        case 0:
            return choose.choice(EXTREMES) * choose.choice((1, -1))
        case 1:
            return choose.choice((True, False, None, 1.5, 1e308))
        case 2 | 3:
            return choose.choice(
                ("F32", "llama", "LORA", "", "\ud800", "x" * 300, "(a+)+$", "auto_map")
            )
        case 4:
            return [choose.choice(EXTREMES) for _ in range(choose.randrange(4))]
        case 5 | 6:
            return {
                choose.choice(NAMES): any_json(choose, depth + 1)
                for _ in range(choose.randrange(6))
            }
        case _:
            return [any_json(choose, depth + 1) for _ in range(choose.randrange(4))]


NAMES = (
    "dtype",
    "shape",
    "data_offsets",
    "__metadata__",
    "a",
    "b",
    "weight_map",
    "peft_type",
    "lora_alpha",
    "r",
    "alpha_pattern",
    "modules_to_save",
    "special_tokens",
    "languages",
    "parameters",
    "license",
    "language",
)


def any_card(choose: Random) -> bytes:
    """A model card whose front matter is any YAML, whole or not."""
    pieces = (
        "license: ",
        "language: ",
        "- en\n",
        "&a [",
        "*a",
        "]",
        "{",
        "}",
        "\n",
        "  ",
        "? ",
        ": ",
        "!!binary x",
        "|\n",
        "2020-13-45",
        "1:1:1",
        "'",
        '"',
        "\\",
        "\x00",
        "no",
        "<<: ",
        "!!python/object:os.system x",
        "é",
        "---\n",
    )
    body = "".join(choose.choice(pieces) for _ in range(choose.randrange(1, 60)))
    return f"---\n{body}\n---\n".encode()


def peak(of: Any) -> int:
    """Bytes of Python's memory that a call takes at most."""
    tracemalloc.start()
    try:
        of()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path
