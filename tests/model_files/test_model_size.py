"""model size: the weights of every architecture are counted, whatever its config calls its parts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import architectures
from slmctl.model_files import model_size

KINDS = ("llama", "gemma4-text", "gemma3-text", "mamba2", "qwen3-moe", "deepseek-v3", "lfm2", "phi3", "bloom", "mpt")


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_is_counted_once(tmp_path: Path, name: str) -> None:
    model = architectures.model(name)
    model.save_pretrained(tmp_path)
    found = model_size.read(tmp_path)
    assert found.weights == sum(parameter.numel() for parameter in model.parameters())
    assert found.channels > 4 * found.hidden * found.layers
    assert found.stored_bytes(100) < found.stored_bytes(1000)
    assert not found.halves
