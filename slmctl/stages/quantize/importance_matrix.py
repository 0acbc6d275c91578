"""The importance matrix: mean squared input of every linear layer over training records.

llama.cpp weighs rounding errors by it, so that the weights that matter most for the task's texts
lose least.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from transformers.pytorch_utils import Conv1D

from slmctl import console
from slmctl.errors import StageError
from slmctl.model_files.gguf_header import GgufHeader
from slmctl.stages.quantize import parity
from slmctl.stages.quantize.gguf_files import ImportanceMatrix

MAX_RECORD_TOKENS = 1024  # of a record, counted from its start
# Granite 4: the converter splits this layer's fused weight, and names its parts by themselves.
_SHARED_MLP = {"input_linear": ("ffn_gate", "ffn_up"), "output_linear": ("ffn_down",)}


def measure(model: Any, records: Sequence[Sequence[int]], head: GgufHeader) -> ImportanceMatrix:
    """Mean squared inputs of every linear layer, by the name of its tensor in a GGUF.

    Args:
        records: Token ids of prompts with their answers.
        head: The header of its lossless GGUF file: names of tensors, and lengths of their rows.

    Returns:
        A float32 vector (columns,) for each tensor.

    Raises:
        StageError: An activation is not finite.
    """
    records = [record[:MAX_RECORD_TOKENS] for record in records]
    names = _names(model, head)
    squares: dict[str, torch.Tensor] = {}
    mask = torch.ones(0)
    handles = []
    for name, module in model.named_modules():
        if name in names:
            handles.append(
                module.register_forward_pre_hook(_square_sum_hook(squares, name, lambda: mask))
            )
    tokens = 0
    try:
        with (
            torch.inference_mode(),
            console.progress("importance", len(records), "records") as meter,
        ):
            for batch in parity.batches(records):
                ids, mask = parity.padded([records[index] for index in batch])
                tokens += int(mask.sum())
                model.base_model(input_ids=ids, use_cache=False)
                meter.advance(len(batch))
    finally:
        for handle in handles:
            handle.remove()
    matrix = {
        tensor: _columns(model, tensor, (total / tokens).float().numpy())
        for name, total in squares.items()
        for tensor in names[name]
    }
    broken = sorted(name for name, values in matrix.items() if not np.isfinite(values).all())
    if broken:
        raise StageError(
            f"the inputs of '{broken[0]}' are not finite on the training records",
            hint="train again",
        )
    return matrix


def _names(model: Any, head: GgufHeader) -> dict[str, list[str]]:
    """Names of the linear layers of the model -> names of the
    GGUF tensors that hold their weights.
    """
    architecture = head.metadata["general.architecture"]
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    tensor_names = gguf.get_tensor_name_map(
        number, int(head.metadata[f"{architecture}.block_count"])
    )
    rows = {tensor.name: tensor.shape[0] for tensor in head.tensors if len(tensor.shape) == 2}
    # the output head is left out, as llama.cpp does
    inside = {id(module) for module in model.base_model.modules()}
    names = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | Conv1D) or id(module) not in inside:
            continue
        inputs = module.in_features if isinstance(module, torch.nn.Linear) else module.nx
        tensors = [tensor_names.get_name(f"{name}.weight", try_suffixes=(".weight",))]
        if fused := re.search(r"\.(\d+)\.shared_mlp\.(\w+)$", name):
            parts = _SHARED_MLP.get(fused[2], ())
            tensors = [
                f"blk.{fused[1]}.{part}{kind}.weight" for part in parts for kind in ("", "_shexp")
            ]
        if held := [
            tensor for tensor in tensors if tensor is not None and rows.get(tensor) == inputs
        ]:
            names[name] = held
    return names


def _columns(model: Any, tensor: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Values of a layer's inputs in the order of its tensor's columns.

    The converter orders the value heads of Qwen3.5's gated delta net as llama.cpp broadcasts its
    key heads over them.
    """
    config = model.config.get_text_config()
    if not (config.model_type.startswith("qwen3_5") and tensor.endswith(".ssm_out.weight")):
        return values
    keys = config.linear_num_key_heads
    return (
        values.reshape(keys, config.linear_num_value_heads // keys, -1).swapaxes(0, 1).reshape(-1)
    )


def _square_sum_hook(squares: dict[str, torch.Tensor], name: str, mask: Any) -> Any:
    def add(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        kept = inputs[0].reshape(-1, inputs[0].shape[-1])[mask().reshape(-1)].float()
        total = kept.square().sum(dim=0).double()
        squares[name] = squares[name] + total if name in squares else total

    return add
