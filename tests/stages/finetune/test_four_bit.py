"""Frozen weights in 4 bits: NF4's own values, and layers that compute with exactly those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import adapted, compare, packed_loss, some_rows, trained

from slmctl.artifacts.artifact import Artifact
from slmctl.stages.finetune import (
    answer_loss,
    cpu_kernels,
    four_bit,
    layer_replacement,
    packing_check,
)
from slmctl.stages.finetune.batches import PaddedBatches
from slmctl.stages.finetune.four_bit import BLOCK, VALUES, FourBitWeight

from .test_cpu_kernels import FAST


def test_what_nf4_can_say_comes_back_as_it_was() -> None:
    choose = torch.Generator().manual_seed(0)
    blocks = torch.tensor(VALUES, dtype=torch.bfloat16)[
        torch.randint(0, 16, (33, 4, BLOCK), generator=choose)
    ]
    blocks[:, :, 0] = 1  # the largest magnitude of its block
    weight = (blocks * torch.tensor(0.375, dtype=torch.bfloat16)).flatten(1)
    assert torch.equal(FourBitWeight(weight).whole(torch.bfloat16), weight)


def test_random_weights_lose_what_nf4_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(130, 256, generator=torch.Generator().manual_seed(0))
    packed = FourBitWeight(weight)
    whole = packed.whole(torch.float32)
    assert 0.08 < float((whole - weight).norm() / weight.norm()) < 0.1
    monkeypatch.setattr(four_bit, "AT_ONCE", 7 * 256)  # in parts, of which the last is short
    assert torch.equal(FourBitWeight(weight).whole(torch.float32), whole)
    room = torch.zeros(130, 300)
    packed.write(room[:, :256])
    assert torch.equal(room[:, :256], whole)
    assert not room[:, 256:].any()


def test_a_block_of_zeros_and_a_tiny_one_stay_finite() -> None:
    weight = torch.zeros(2, 2 * BLOCK)
    weight[1, :BLOCK] = 1e-38
    assert torch.isfinite(FourBitWeight(weight).whole(torch.float32)).all()
    assert not FourBitWeight(weight).whole(torch.float32)[0].any()


def both(name: str, lora: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """A model whose layers hold their weights in 4 bits, and one with these weights in float32."""
    kind, settings, _ = FAST[name]
    plain, packed = adapted(kind, settings, lora, wild=0), adapted(kind, settings, lora, wild=0)
    layer_replacement.hold_in_4bit(packed, torch.float32)
    layers = [
        module for module in packed.modules() if isinstance(module, cpu_kernels.FourBitLinear)
    ]
    assert len(layers) >= 3
    for path, module in packed.named_modules():
        if isinstance(module, cpu_kernels.FourBitLinear):
            plain.get_submodule(path).weight.data = module.weight
    return plain, packed


@pytest.mark.parametrize(
    "name", ["Llama", "Qwen2, biases", "LFM2, convolutions", "Phi 3, fused projections"]
)
def test_fast_layers_compute_with_the_weights_that_are_held(name: str) -> None:
    plain, packed = both(name)
    assert packing_check.supports_packing(packed)
    assert layer_replacement.install_kernels(packed) == {"layers": 3, "fast_layers": 3}
    compare(plain, packed)


@pytest.mark.parametrize("lora", [{}, {"dora": True}])
def test_so_do_the_layers_of_transformers(lora: dict[str, Any]) -> None:
    plain, packed = both("Llama", lora)
    (batch,) = PaddedBatches(0)(some_rows())
    answer_loss.install(packed)
    compare(plain, packed, lambda model: model(**batch).loss, near=1e-3)


def test_a_matrix_made_for_one_product_is_not_read_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The layers share their room: each product makes its matrix anew, backward too."""
    _, packed = both("Llama")
    assert packing_check.supports_packing(packed)
    layer_replacement.install_kernels(packed)
    made = 0
    write = FourBitWeight.write

    def counted(self: FourBitWeight, room: torch.Tensor) -> None:
        nonlocal made
        made += 1
        write(self, room)

    monkeypatch.setattr(FourBitWeight, "write", counted)
    packed_loss(packed).backward()
    held = sum(isinstance(module, cpu_kernels.FourBitLinear) for module in packed.modules())
    assert made == 2 * held


def test_a_training_learns_with_weights_in_4_bits(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    metrics = trained(artifacts, tmp_path / "one", load_in_4bit=True, max_steps=12)
    assert metrics["learned"]
    assert metrics["fast_layers"] == metrics["layers"] == 2
