"""Nothing that must not leave leaves, wherever in a release it
stands; what is the base's own may.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")

from slmctl import config  # noqa: E402
from slmctl.errors import GateError  # noqa: E402
from slmctl.stages.publish import leak_scan  # noqa: E402

# Eight kinds, spelled so that no scanner of this repository trips over them.
PLANTED = {
    "key": "AKIA" + "IOSFODNN7EXAMPLQ",
    "token": "hf_" + "abcdefghijklmnopqrstuvwxyzABCDEF12",
    "path": "/home/" + "jo/projects/desk/tickets.csv",
    "email": "jo.doe" + "@corp.example",
    "phone": "+49 170 " + "1234567",
    "card": "4111 1111 " + "1111 1111",
    "iban": "DE89 3704 0044 " + "0532 0130 00",
    "ip": "server at 52.29." + "188.77",
}


def write_gguf(
    path: Path, name: str = "desk", tokens: tuple[str, ...] = ("a", "b"), tensor: str = "blk.0"
) -> None:
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.author", name)
    writer.add_array("tokenizer.ggml.tokens", list(tokens))
    writer.add_tensor(tensor, np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_safetensors(path: Path, said: str, tensor: str = "weight") -> None:
    head = {
        "__metadata__": {"note": said},
        tensor: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
    }
    raw = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"AKIAIOSF")


def plant(folder: Path, slot: str, text: str) -> str:
    """Put a text into one place of a release; returns the file's name."""
    if slot == "manifest":
        (folder / "manifest.json").write_text(
            json.dumps({"config": {"intended_use": f"for {text}"}})
        )
    elif slot == "manifest key":
        (folder / "manifest.json").write_text(json.dumps({"metrics": {text: 1}}))
    elif slot == "gguf":
        write_gguf(folder / "x.gguf", text)
    elif slot == "vocabulary":
        write_gguf(folder / "x.gguf", tokens=("a", f"▁{text}"))
    elif slot == "tensor name":
        write_gguf(folder / "x.gguf", tensor=text[:60])
    elif slot == "after tensors":
        write_gguf(folder / "x.gguf")
        with (folder / "x.gguf").open("ab") as stream:
            stream.write(text.encode())
    elif slot == "safetensors":
        write_safetensors(folder / "x.safetensors", text)
    elif slot == "page":
        (folder / "report.html").write_text(f"<p>a</p><td title='{text}'>1.5</td><!-- x -->")
    elif slot == "comment":
        (folder / "report.html").write_text(f"<p>a</p><!-- {text} -->")
    elif slot == "table":
        (folder / "report.md").write_text(
            f"# Report\n\n| model | n |\n|---|---|\n| {text} | 12.5% |\n"
        )
    elif slot == "card":
        (folder / "README.md").write_text(f"# Desk\n\nAsk {text} for more.\n")
    elif slot == "rows":
        (folder / "rows.jsonl").write_text('{"a": 1}\n' + json.dumps({"source": [text, 3]}) + "\n")
    (found,) = [path.name for path in folder.iterdir()]
    return found


SLOTS = (
    "manifest",
    "manifest key",
    "gguf",
    "vocabulary",
    "tensor name",
    "after tensors",
    "safetensors",
    "page",
    "comment",
    "table",
    "card",
    "rows",
)


@pytest.mark.parametrize("slot", SLOTS)
def test_eight_planted_kinds_are_all_caught(tmp_path: Path, slot: str) -> None:
    for kind, text in PLANTED.items():
        folder = tmp_path / kind
        folder.mkdir()
        name = plant(folder, slot, text)
        with pytest.raises(
            GateError, match="the release holds secrets, personal data or paths"
        ) as caught:
            leak_scan.require_clean(folder, [name], base=None)
        assert caught.value.code == 5
        assert name in caught.value.message
        assert text not in caught.value.message + caught.value.hint, "the refusal repeats the value"


TOOL = {
    "type": "function",
    "function": {"name": "find", "description": f"else write to {PLANTED['email']}"},
}
PLACES = {
    "task.system": {"task": {"system": f"for {PLANTED['email']}"}},
    "task.tools.function.description": {"task": {"kind": "call", "tools": [TOOL]}},
    "prepare.replace.pattern": {
        "prepare": {"replace": [{"pattern": PLANTED["email"], "with": "us"}]}
    },
    "publish.intended_use": {"publish": {"intended_use": f"by {PLANTED['email']}"}},
    "tools.json": {"task": {"kind": "call", "tools": "tools.json"}},
    "schema.json": {"task": {"kind": "extract", "schema": "schema.json"}},
}


@pytest.mark.parametrize("place", PLACES)
def test_every_text_of_the_task_is_searched_before_a_training(tmp_path: Path, place: str) -> None:
    # a mail address in the description of a tool was refused by `publish`, after the training
    for name in ("tools.json", "schema.json"):
        (tmp_path / name).write_text(json.dumps({"type": "object", "tools": [TOOL]}))
    text = json.dumps({"project": "desk", "base": "b", **PLACES[place]})
    with pytest.raises(GateError, match=re.escape(place)):
        leak_scan.require_clean_task(config.parse(text, root=tmp_path))
    allowed = f"publish.allowed_texts={json.dumps([PLANTED['email']])}"
    leak_scan.require_clean_task(config.parse(text, [allowed], root=tmp_path))


@pytest.mark.parametrize("key", ["slm-crm-{}", "api_key={}", "Authorization: Bearer {}"])
def test_key_of_hexadecimal_digits_is_caught_and_a_hash_is_not(tmp_path: Path, key: str) -> None:
    digits = hashlib.sha256(b"desk").hexdigest()
    with pytest.raises(GateError, match=r"README\.md: secret/"):
        leak_scan.require_clean(tmp_path, [plant(tmp_path, "card", key.format(digits))], base=None)
    leak_scan.require_clean(
        tmp_path, [plant(tmp_path, "card", f"sha256:{digits} or {digits}")], base=None
    )


@pytest.mark.parametrize(
    "text",
    [
        r"C:\Users\jo\desk",
        r"\\server\share\x",
        "~/desk",
        "file:///srv/x",
        "see /opt/acme/x",
        "--data=/home/jo/x/tickets.csv",
        "data:/home/jo/x",
        "tickets.csv#/home/jo/x",
        "(/home/jo/x)",
        "?/home/jo/x",
        "sqlite:////home/jo/desk.db",
        "https://example.org/a,/home/jo/x",
        "x&/home/jo/x",
    ],
)
def test_paths_of_other_kinds_are_caught(tmp_path: Path, text: str) -> None:
    name = plant(tmp_path, "card", text)
    with pytest.raises(GateError, match="a path of this machine"):
        leak_scan.require_clean(tmp_path, [name], base=None)


@pytest.mark.parametrize(
    "text",
    [
        "/v1",
        "and/or",
        "https://example.org/a/b/c",
        "http://host:8080/a/b",
        "s3://bucket/a/b",
        "https://example.org/?next=/a/b/c#/d/e",
        "1/2/3",
        "</think>",
        "billing/refund",
        "{{a/b}}",
        "+14.6 to +38.1",
        "accuracy 0.4111111111111111",
        "sha256:" + "4111111111111111" * 4,
        "2026-11-25T01:56:38Z",
        "version 0.3.36",
    ],
)
def test_what_looks_alike_passes(tmp_path: Path, text: str) -> None:
    for slot in SLOTS:
        folder = tmp_path / slot.replace(" ", "-")
        folder.mkdir()
        name = plant(folder, slot, text.replace("'", ""))
        leak_scan.require_clean(folder, [name], base=None)


def test_tensors_are_exempt(tmp_path: Path) -> None:
    # whose eight bytes of weights spell half a key
    write_safetensors(tmp_path / "x.safetensors", "nothing")
    leak_scan.require_clean(tmp_path, ["x.safetensors"], base=None)


def test_what_may_go_out_is_named(tmp_path: Path) -> None:
    name = plant(tmp_path, "card", PLANTED["email"])
    leak_scan.require_clean(tmp_path, [name], base=None, allow=[PLANTED["email"]])
    with pytest.raises(GateError):
        leak_scan.require_clean(tmp_path, [name], base=None, allow=["someone@else.example"])


def test_the_license_keeps_its_authors_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text(f"Copyright Jo Doe <{PLANTED['email']}>\n")
    leak_scan.require_clean(tmp_path, ["LICENSE"], base=None)
    (tmp_path / "LICENSE").write_text(f"Copyright {PLANTED['key']}\n")
    with pytest.raises(GateError):
        leak_scan.require_clean(tmp_path, ["LICENSE"], base=None)


def test_a_vocabulary_may_go_out_as_far_as_it_is_the_base_s(tmp_path: Path) -> None:
    from slmctl.artifacts.artifact import foreign

    odd = PLANTED["email"]
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    merges = [["▁a", odd], ["b", "c"]]
    (base / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {odd: 1, "a": 2}, "merges": merges}})
    )
    known = foreign(base, "base")
    write_gguf(tmp_path / "x.gguf", tokens=("a", odd, f"▁a {odd}"))
    leak_scan.require_clean(tmp_path, ["x.gguf"], base=known)
    with pytest.raises(GateError, match=r"x\.gguf \(tokenizer\.ggml\.tokens\): email"):
        leak_scan.require_clean(tmp_path, ["x.gguf"], base=None)
    write_gguf(tmp_path / "y.gguf", tokens=("a", odd, "another." + odd))
    with pytest.raises(GateError, match=r"y\.gguf"):
        leak_scan.require_clean(tmp_path, ["y.gguf"], base=known)
