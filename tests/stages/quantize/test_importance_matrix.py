"""importance: mean squared inputs, whatever the batches, and what llama.cpp makes of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slmctl.artifacts.artifact import Artifact
from slmctl.model_files import hf_folder, quantizer

torch = pytest.importorskip("torch")

from benchmarks import architectures  # noqa: E402
from slmctl.model_files import gguf_header  # noqa: E402
from slmctl.stages.quantize import gguf_files, importance_matrix  # noqa: E402

RECORDS = [[5, 9, 200, 31, 7], [8, 300], [44] * 30, [12, 13, 14], [600, 5, 5, 9, 1, 2, 3, 4, 5]]


@pytest.fixture(scope="module")
def model(artifacts: dict[str, Artifact]) -> Any:
    return hf_folder.load_model(artifacts["merged"].path)


@pytest.fixture(scope="module")
def lossless(artifacts: dict[str, Artifact]) -> Path:
    made = artifacts["gguf"]
    return made.file(made.metrics["files"]["F16"]["file"])


def test_it_is_the_mean_square_of_what_each_layer_is_given(model: Any, lossless: Path) -> None:
    found = importance_matrix.measure(model, RECORDS, gguf_header.read(lossless))
    seen: list[Any] = []
    layer = model.model.layers[1].mlp.down_proj
    handle = layer.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0][0].detach())
    )
    for record in RECORDS:  # one at a time: nothing is padded
        model(torch.tensor([record]))
    handle.remove()
    inputs = torch.cat(seen)
    assert len(inputs) == sum(map(len, RECORDS))
    np.testing.assert_allclose(
        found["blk.1.ffn_down.weight"], inputs.square().mean(0).numpy(), rtol=1e-4
    )


def test_every_matrix_but_the_embedding_is_covered(model: Any, lossless: Path) -> None:
    head = gguf_header.read(lossless)
    found = importance_matrix.measure(model, RECORDS, head)
    matrices = {tensor.name: tensor.shape[0] for tensor in head.tensors if len(tensor.shape) == 2}
    assert found.keys() == matrices.keys() - {"token_embd.weight"}
    assert all(
        values.shape == (matrices[name],) and values.dtype == np.float32
        for name, values in found.items()
    )


def test_llama_cpp_weighs_by_it_and_the_file_says_so(
    model: Any, lossless: Path, tmp_path: Path
) -> None:
    found = importance_matrix.measure(model, RECORDS, gguf_header.read(lossless))
    gguf_files.save(found, tmp_path / "importance.npz")
    targets = [
        quantizer.QuantizedFile("Q4_0", tmp_path / "with.gguf", weighted=True),
        quantizer.QuantizedFile("Q4_0", tmp_path / "without.gguf"),
    ]
    done = list(
        quantizer.quantize_all(
            lossless, targets, importance=tmp_path / "importance.npz", rows=len(RECORDS)
        )
    )
    assert done == ["Q4_0", "Q4_0"]
    with_, without = (gguf_header.read(target.path) for target in targets)
    assert with_.metadata["quantize.imatrix.entries_count"] == len(found)
    assert with_.metadata["quantize.imatrix.chunks_count"] == len(RECORDS)
    assert "quantize.imatrix.entries_count" not in without.metadata
    assert (tmp_path / "with.gguf").read_bytes()[-20_000:] != (
        tmp_path / "without.gguf"
    ).read_bytes()[-20_000:]


def test_a_fused_layer_weighs_every_tensor_that_it_is_split_into() -> None:
    model = architectures.model("granite4-h")
    width, inner = model.config.hidden_size, model.config.shared_intermediate_size
    shapes = {
        "blk.1.ffn_gate": width,
        "blk.1.ffn_up": width,
        "blk.1.ffn_down": inner,
        "blk.1.ffn_up_exps": width,
    }
    head: Any = SimpleNamespace(
        metadata={"general.architecture": "granitehybrid", "granitehybrid.block_count": 2},
        tensors=[
            SimpleNamespace(name=f"{name}.weight", shape=(rows, 8)) for name, rows in shapes.items()
        ],
    )
    found = importance_matrix.measure(model, RECORDS, head)
    assert found.keys() == {"blk.1.ffn_gate.weight", "blk.1.ffn_up.weight", "blk.1.ffn_down.weight"}
    assert np.array_equal(found["blk.1.ffn_gate.weight"], found["blk.1.ffn_up.weight"])


def test_columns_follow_the_converters_order_of_value_heads() -> None:
    model = architectures.model("qwen3.5-text")
    model.config.linear_num_key_heads, model.config.linear_num_value_heads = 2, 4
    # value heads 0 and 1 belong to key head 0
    by_head = np.array([0, 1, 2, 3], np.float32).repeat(3)
    ordered = importance_matrix._columns(model, "blk.0.ssm_out.weight", by_head)
    assert ordered.tolist() == np.repeat([0, 2, 1, 3], 3).tolist()
    assert importance_matrix._columns(model, "blk.0.ffn_up.weight", by_head) is by_head
