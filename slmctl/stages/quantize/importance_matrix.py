"""How much each input of a linear layer matters: its mean square over the company's own training records.

llama.cpp weighs the rounding errors of a row by these numbers (an importance matrix), so that the
weights that the task's own texts use most are kept best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gguf
import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from slmctl import console
from slmctl.errors import StageError
from slmctl.model_files.gguf_header import Head
from slmctl.stages.quantize.gguf_files import Matrix

BATCH = 8  # records of like length computed together
LONGEST = 1024  # tokens of a record that are read


def measure(model: Any, records: Sequence[Sequence[int]], head: Head) -> Matrix:
    """Mean squared inputs of every linear layer, by the name of its tensor in a GGUF.

    Args:
        model: The merged model of transformers.
        records: Token ids of prompts with their answers.
        head: The head of its lossless GGUF: which tensors there are, and how long their rows.

    Returns:
        Vectors as long as a row of the tensor.

    Raises:
        StageError: An activation is no number.
    """
    names = _names(model, head)
    squares: dict[str, torch.Tensor] = {}
    mask = torch.ones(0)
    handles = []
    for name, module in model.named_modules():
        if name in names:
            handles.append(module.register_forward_pre_hook(_adder(squares, name, lambda: mask)))
    tokens = 0
    try:
        with torch.inference_mode(), console.progress("importance", len(records), "records") as meter:
            for batch in _batches(records):
                ids, mask = _padded(batch)
                tokens += int(mask.sum())
                model.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
                meter.advance(len(batch))
    finally:
        for handle in handles:
            handle.remove()
    found = {names[name]: (total / tokens).float().numpy() for name, total in squares.items()}
    broken = sorted(name for name, values in found.items() if not np.isfinite(values).all())
    if broken:
        raise StageError(f"the inputs of '{broken[0]}' are no numbers on the training records", hint="train again")
    return found


def _names(model: Any, head: Head) -> dict[str, str]:
    """Linear layers of the model, and the tensors of a GGUF that hold their weights."""
    architecture = head.metadata["general.architecture"]
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(number, int(head.metadata[f"{architecture}.block_count"]))
    rows = {tensor.name: tensor.shape[0] for tensor in head.tensors if len(tensor.shape) == 2}
    inside = {id(module) for module in model.base_model.modules()}  # the output head is left out, as llama.cpp does
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | Conv1D) or id(module) not in inside:
            continue
        tensor = known.get_name(f"{name}.weight", try_suffixes=(".weight",))
        inputs = module.in_features if isinstance(module, torch.nn.Linear) else module.nx
        if tensor is not None and rows.get(tensor) == inputs:
            found[name] = tensor
    return found


def _adder(squares: dict[str, torch.Tensor], name: str, mask: Any) -> Any:
    def add(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        kept = inputs[0].reshape(-1, inputs[0].shape[-1])[mask().reshape(-1)].float()
        total = kept.square().sum(dim=0).double()
        squares[name] = squares[name] + total if name in squares else total

    return add


def _batches(records: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    ordered = sorted((record[:LONGEST] for record in records), key=len)
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]


def _padded(batch: list[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (records, length), padded on the right."""
    length = max(map(len, batch))
    ids = torch.tensor([[*record, *[0] * (length - len(record))] for record in batch])
    mask = torch.tensor([[True] * len(record) + [False] * (length - len(record)) for record in batch])
    return ids, mask
