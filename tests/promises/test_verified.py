"""Verified before use: no damage to any artifact goes unseen, none is seen where there is none, and
a bare GGUF with a mutated header is refused or is what it says.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support import TESTS
from support.scale import FULL

from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.inference.decoding_model import Item
from slmctl.inference.engine import Engine, Request
from slmctl.inference.llama_child import LlamaModel
from slmctl.inference.supervised_child import EngineError
from slmctl.pipeline import LEAVES, named

gguf = pytest.importorskip("gguf")

KINDS = [*LEAVES.values()]
KEPT = TESTS / "fixtures"


def flip(path: Path, choose: random.Random, _: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[choose.randrange(len(raw))] ^= 1 << choose.randrange(8)
    path.write_bytes(raw)


def truncate(path: Path, choose: random.Random, _: Path) -> None:
    os.truncate(path, choose.randrange(path.stat().st_size))


def delete(path: Path, _: random.Random, __: Path) -> None:
    path.unlink()


def add(path: Path, choose: random.Random, _: Path) -> None:
    folder = path.parent if choose.random() < 0.7 else path.parent / "deeper"
    folder.mkdir(exist_ok=True)
    (folder / f"added-{choose.randrange(100)}.{choose.choice(['json', 'bin', 'py'])}").write_bytes(
        b"x"
    )


def swap(path: Path, choose: random.Random, elsewhere: Path) -> None:
    """The same bytes by way of a link: they could change unseen,
    in a place that nothing protects.
    """
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


HOW: tuple[Callable[[Path, random.Random, Path], None], ...] = (flip, truncate, delete, add, swap)


def artifacts_of(desk: Path) -> list[Path]:
    """Every artifact, and every release in the registry."""
    releases = [path.parent for path in sorted(desk.glob("registry/[!.]*/[!.]*/manifest.json"))]
    return [*lineage.folders(desk), *releases]


def test_every_corruption_is_found_and_nothing_else(tiny_run: Path, tmp_path: Path) -> None:
    """250 of five sorts, over artifacts of every kind and the release in the registry."""
    choose = random.Random(250)
    folders = [
        *artifacts_of(tiny_run),
        *(
            kept
            for kind in ("policy", "labelled", "encoder", "sum")
            for kept in KEPT.glob(f"*/{kind}")
        ),
    ]
    assert {artifact.load(folder).kind for folder in folders} == set(KINDS)
    found, missed, alarms = dict.fromkeys(folders, 0), [], []
    for number, how in zip(range(250), itertools.cycle(HOW), strict=False):
        original = folders[number // len(HOW) % len(folders)]
        folder = Path(shutil.copytree(original, tmp_path / "copy"))
        alarms += artifact.verify_folder(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        damaged = choose.choice(files)
        how(damaged, choose, tmp_path / "elsewhere")
        if artifact.verify_folder(folder):
            found[original] += 1
        else:
            missed.append((how.__name__, damaged.relative_to(folder), original))
        shutil.rmtree(folder)
        (tmp_path / "elsewhere").unlink(missing_ok=True)
    assert not missed
    assert not alarms
    assert sum(found.values()) == 250
    assert min(found.values()) > 0


def test_what_is_no_damage_raises_no_alarm(tiny_run: Path, tmp_path: Path) -> None:
    for original in artifacts_of(tiny_run):
        folder = Path(shutil.copytree(original, tmp_path / "somewhere else" / original.name))
        for path in folder.rglob("*"):
            os.utime(path, (0, 0))
            if path.is_file():
                path.chmod(0o400)
        assert artifact.verify_folder(folder) == []
        assert artifact.load(folder).digest == artifact.load(original).digest
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("model", "damaged"),
    # an adapter answers on its base
    [("gguf", "gguf/[!.]*/*Q8_0.gguf"), ("adapter", "base/[!.]*/model.safetensors")],
)
def test_a_damaged_model_answers_no_file(
    desk: Path, preparing: Any, model: str, damaged: str
) -> None:
    # predict --input once looked at names and sizes alone
    (path,) = desk.glob(f"runs/{damaged}")
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    (desk / "in.csv").write_text("text\nhello\n")
    done = preparing.run(
        desk, "predict", model, "--input", str(desk / "in.csv"), "--output", str(desk / "out.csv")
    )
    assert done.code == 7
    assert f"changed: {path.name}" in done.stderr
    assert not (desk / "out.csv").exists()


# A bare GGUF whose header was mutated


def mutate(raw: bytes, end: int, choose: random.Random) -> bytes:
    """Another header: bits, bytes, lengths, places, ends."""
    at = choose.randrange(end - 8)
    how = choose.randrange(7)
    if how == 0:
        return raw[:at] + bytes([raw[at] ^ (1 << choose.randrange(8))]) + raw[at + 1 :]
    if how == 1:
        return raw[:at] + choose.randbytes(choose.randrange(1, 9)) + raw[at + 8 :]
    if how == 2:  # a length that promises more than there is
        return (
            raw[:at]
            + struct.pack("<Q", choose.choice([2**63, 2**40, 2**31, 2**64 - 1]))
            + raw[at + 8 :]
        )
    if how == 3:
        return raw[: choose.randrange(end)]
    if how == 4:
        return raw[:at] + raw[at + choose.randrange(1, 5) :]
    if how == 5:
        return raw[:at] + b"\0" + raw[at:]
    return raw[:8] + choose.randbytes(16) + raw[24:]  # the counts of tensors and keys


def facts(path: Path) -> dict[str, Any] | None:
    """What the gguf package, another reader, finds in a header; None where it finds none."""
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = [
            (t.name, [int(n) for n in t.shape], int(t.tensor_type), t.data.tobytes())
            for t in reader.tensors
        ]
    except (
        ValueError,
        OSError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
        TypeError,
        AssertionError,
    ):
        return None
    return {"fields": fields, "tensors": tensors}


def look(path: Path, link: Connection) -> None:
    """Load a file as the engine's child does, compute a little, and send what it holds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    model = LlamaModel(str(path), sequences=1, context=64, threads=1, adapters={})
    tokens = model.tokenize("hello please invoice")[:8]
    items = [Item(token, k, 0, needed=k == len(tokens) - 1) for k, token in enumerate(tokens)]
    rows = model.decode(items)
    logits = b"".join(logits.tobytes() for _, logits in rows)
    link.send({"vocabulary": model.n_vocab, "template": model.chat_template(), "logits": logits})


def loaded(path: Path) -> dict[str, Any] | None:
    """What a file holds, looked at in a process of its own; None where that refused or died."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=look, args=(path, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(120), f"{path} was neither refused nor loaded"
        with contextlib.suppress(EOFError):
            found: dict[str, Any] = ours.recv()
            return found
        return None
    finally:
        process.kill()
        process.join()
        ours.close()


def bare(tiny_run: Path) -> Path:
    return next(tiny_run.glob("runs/gguf/*/*F16.gguf"))


@pytest.mark.slow
def test_a_mutated_header_is_refused_or_loads_equal(tiny_run: Path, tmp_path: Path) -> None:
    """1,000 of them at full size. What loads has the vocabulary, template and name that another
    reader finds; where nothing but a description changed, it computes the same to the bit.
    """
    original = bare(tiny_run)
    raw, end, known = original.read_bytes(), gguf.GGUFReader(original).data_offset, facts(original)
    wanted = loaded(original)
    assert wanted is not None and known is not None
    choose, refused, equal, other = random.Random(1000), 0, 0, 0
    for _ in range(1000 if FULL else 150):
        path = tmp_path / "mutated.gguf"
        path.write_bytes(mutate(raw, end, choose))
        answer, read = loaded(path), facts(path)
        if answer is None:
            refused += 1
            continue
        # llama.cpp takes what the other reader does not, such as a name that is no text
        if read is None:
            other += 1
            continue
        fields = read["fields"]
        assert answer["vocabulary"] == len(fields["tokenizer.ggml.tokens"])
        template = fields.get("tokenizer.chat_template", "")
        # where every program in C ends a text
        assert answer["template"] == template.partition("\0")[0]
        if calculates(read) == calculates(known):
            assert answer["logits"] == wanted["logits"]
            equal += 1
        else:
            other += 1  # a header that says something else, which llama.cpp then does
    assert refused > 50 or not FULL
    assert equal + other + refused == (1000 if FULL else 150)


def calculates(read: dict[str, Any]) -> list[Any]:
    """Of a header what answers depend on."""
    described = ("general.", "quantize.", "tokenizer.chat_template")
    return [
        {k: v for k, v in read["fields"].items() if not k.startswith(described)},
        read["tensors"],
    ]


def test_the_process_that_asks_survives_bad_headers(tiny_run: Path, tmp_path: Path) -> None:
    raw = bare(tiny_run).read_bytes()
    for head in (
        b"GGUF" + b"\xff" * 60,
        raw[:200],
        raw[:8] + struct.pack("<QQ", 2**40, 2**40) + raw[24:],
    ):
        path = tmp_path / "bad.gguf"
        path.write_bytes(head)
        with pytest.raises(EngineError, match=r"bad\.gguf cannot be loaded"):
            Engine(path, sequences=1, context=64)
    with Engine(bare(tiny_run), sequences=1, context=64) as engine:
        assert engine.ask(Request("hello", max_tokens=1)).completion_tokens == 1


def test_a_bare_file_is_the_one_that_was_opened(tiny_run: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(bare(tiny_run), tmp_path / "bare.gguf"))
    found: Artifact = named.open_model(path, ("gguf",))
    assert artifact.verify(found) == []
    flip(path, random.Random(1), tmp_path)
    assert artifact.verify(found) == ["changed: bare.gguf"]
