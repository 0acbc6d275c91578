"""An adapter as changes to named tensors of its base; what cannot be written so is refused by name."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from slmctl.errors import StageError

PREFIX = "base_model.model."  # what PEFT puts before a module's own name
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Settings that the merged weight does not depend on, or that are read here.
UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora", "velora_config",
}  # fmt: skip
# Ways of starting that leave the base as it is. The others change it, and the adapter fits only what they left.
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Change:
    """What an adapter does to one stored matrix: W + scale * left right, and for DoRA its direction times a length.

    Attributes:
        left: (rows of W, rank).
        right: (rank, columns of W).
        magnitude: DoRA's length of each output.
        transposed: W is stored as (in, out): an embedding, or GPT-2's layers.
    """

    left: torch.Tensor
    right: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def by_rows(self) -> bool:
        """Whether a row of the result needs no other row."""
        return self.magnitude is None or not self.transposed

    def apply(self, weight: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Rows `first` up to `last` of the merged matrix in float32, from the same rows of W."""
        merged = weight.float().addmm_(self.left[first:last], self.right, alpha=self.scale)
        if self.magnitude is None:
            return merged
        if self.transposed:  # an output is a column
            return merged * (self.magnitude / torch.linalg.norm(merged, dim=0))
        return merged * (self.magnitude[first:last] / torch.linalg.norm(merged, dim=1)).unsqueeze(1)


@dataclass(frozen=True)
class Adapter:
    """Changes by the name of the tensor they are made to, and the tensors that are replaced as a whole."""

    changes: dict[str, Change]
    replaced: dict[str, torch.Tensor]

    @property
    def names(self) -> set[str]:
        return {*self.changes, *self.replaced}


def read(folder: Path) -> Adapter:
    """A LoRA adapter as PEFT writes it.

    Raises:
        StageError: It is of a form that cannot be merged.
    """
    settings = json.loads((folder / SETTINGS).read_bytes())
    _refuse_other_forms(settings)
    sides: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        own = name.removeprefix(PREFIX)
        module, _, side = own.removesuffix(".weight").rpartition(".lora_")
        if side in ("A", "B", "embedding_A", "embedding_B", "magnitude_vector"):
            sides.setdefault(module, {})[side] = tensor.float()
        elif _saved_whole(own, settings):
            replaced[own.replace(".modules_to_save.", ".")] = tensor
        elif ".base_layer." not in own:  # PEFT saves the base's embedding beside an adapter of it
            raise StageError(
                f"the adapter holds '{own}', which is neither LoRA nor in its modules_to_save",
                hint="an adapter that adds tokens to the vocabulary cannot be merged",
            )
    changes = {f"{module}.weight": _change(module, found, settings) for module, found in sorted(sides.items())}
    for module in settings.get("modules_to_save") or []:
        if not any(name.endswith((f"{module}.weight", f"{module}.bias")) for name in replaced):
            raise StageError(f"the adapter lists '{module}' in its modules_to_save and holds no weights of it")
    return Adapter(changes, replaced)


def _refuse_other_forms(settings: dict[str, Any]) -> None:
    if settings.get("peft_type") != "LORA":
        raise StageError(f"an adapter of type {settings.get('peft_type')} cannot be merged", hint="LoRA adapters can")
    for form in sorted(settings.keys() - UNDERSTOOD):
        if settings[form]:
            raise StageError(f"an adapter with {form} cannot be merged", hint="train it without")
    if settings.get("bias", "none") != "none":
        raise StageError("an adapter with trained biases cannot be merged", hint="train it with bias none")
    if settings.get("init_lora_weights") not in STARTS:
        raise StageError(
            f"an adapter with init_lora_weights '{settings['init_lora_weights']}' belongs to a base that was changed",
            hint="save it with PEFT's path_initial_model_for_weight_conversion",
        )


def _saved_whole(name: str, settings: dict[str, Any]) -> bool:
    module = name.replace(".modules_to_save.", ".").rpartition(".")[0]
    listed = settings.get("modules_to_save") or []
    return any(module.endswith(one) for one in listed)  # as PEFT matches: `norm` is also `input_layernorm`


def _change(module: str, sides: dict[str, torch.Tensor], settings: dict[str, Any]) -> Change:
    embedding = "embedding_A" in sides
    try:
        a, b = (sides["embedding_A"], sides["embedding_B"]) if embedding else (sides["A"], sides["B"])
    except KeyError:
        raise StageError(f"the adapter holds only a part of '{module}'") from None
    if bool(settings.get("use_dora")) != ("magnitude_vector" in sides):
        raise StageError(
            f"the adapter says use_dora={bool(settings.get('use_dora'))}, and '{module}' was not trained so"
        )
    if a.dim() != 2 or b.dim() != 2:
        raise StageError(f"the adapter changes '{module}', a convolution, which cannot be merged")
    transposed = embedding or bool(settings.get("fan_in_fan_out"))
    left, right = (a.T.contiguous(), b.T.contiguous()) if transposed else (b, a)
    return Change(left, right, _scale(module, a.shape[0], settings), sides.get("magnitude_vector"), transposed)


def _scale(module: str, rank: int, settings: dict[str, Any]) -> float:
    alpha = settings["lora_alpha"]
    for pattern, own in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):  # as PEFT matches
            alpha = own
            break
    return float(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))
