"""A LoRA adapter as low-rank updates of its base's tensors; other
forms are refused with their name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from slmctl.artifacts import bounded_json
from slmctl.errors import DataError, StageError
from slmctl.model_files import safetensors_header

PREFIX = "base_model.model."  # PEFT's prefix of a module's name
WEIGHT_TYPES = ("F32", "F16", "BF16", "F64")
# Bounds of a regular expression in alpha_pattern: within them matching a module's name takes
# milliseconds.
MAX_PATTERN, MAX_QUANTIFIERS = 256, 2
QUANTIFIER, QUANTIFIED_GROUP = re.compile(r"[*+{?]"), re.compile(r"\)[*+{?]")
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# PEFT settings that do not change the merged weight, or that are read here.
SUPPORTED_SETTINGS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
    "velora_config",
}
# Initialisations that leave the base as it is. The others change it, and the adapter fits only the
# changed base.
SUPPORTED_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LowRankUpdate:
    """The update of one stored matrix W: W + scale * left @ right, for DoRA normalised and times a
    magnitude.

    Attributes:
        left: (rows of W, rank).
        right: (rank, columns of W).
        magnitude: DoRA's norm of each output, (out,).
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
        """True if a row of the result depends on no other row."""
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
class LoraAdapter:
    """Updates by the name of the base's tensor, and new tensors by the name
    of the base's tensor that they replace.
    """

    changes: dict[str, LowRankUpdate]
    replaced: dict[str, torch.Tensor]

    @property
    def names(self) -> set[str]:
        return {*self.changes, *self.replaced}


def read(folder: Path) -> LoraAdapter:
    """Read a LoRA adapter as PEFT writes it.

    Raises:
        DataError: Its settings are not PEFT's.
        IntegrityError: Its weights are not a valid safetensors file.
        StageError: It is of a form that cannot be merged.
    """
    settings = bounded_json.read_object(folder / SETTINGS)
    _refuse_other_forms(settings)
    _require_types(settings)
    for entry in safetensors_header.read(folder / WEIGHTS):
        if entry.dtype not in WEIGHT_TYPES:
            raise StageError(
                f"the adapter holds '{entry.name}' as {entry.dtype}, expected "
                f"{', '.join(WEIGHT_TYPES)}"
            )
    sides: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        own = name.removeprefix(PREFIX)
        module, _, side = own.removesuffix(".weight").rpartition(".lora_")
        if side in ("A", "B", "embedding_A", "embedding_B", "magnitude_vector"):
            sides.setdefault(module, {})[side] = tensor.float()
        elif _saved_whole(own, settings):
            replaced[own.replace(".modules_to_save.", ".")] = tensor
        elif ".base_layer." not in own:  # PEFT saves the base's embedding with an adapter on it
            raise StageError(
                f"the adapter holds '{own}', which is neither LoRA nor in its modules_to_save",
                hint="an adapter that adds tokens to the vocabulary cannot be merged",
            )
    changes = {
        f"{module}.weight": _update(module, matrices, settings)
        for module, matrices in sorted(sides.items())
    }
    for module in settings.get("modules_to_save") or []:
        if not any(name.endswith((f"{module}.weight", f"{module}.bias")) for name in replaced):
            raise StageError(
                f"the adapter lists '{module}' in its modules_to_save and holds no weights of it",
                hint="save the adapter again with PEFT, or drop the module from "
                "adapter_config.json",
            )
    return LoraAdapter(changes, replaced)


def _refuse_other_forms(settings: dict[str, Any]) -> None:
    if settings.get("peft_type") != "LORA":
        raise StageError(
            f"an adapter of type {settings.get('peft_type')} cannot be merged",
            hint="LoRA adapters can",
        )
    for form in sorted(settings.keys() - SUPPORTED_SETTINGS):
        if settings[form]:
            raise StageError(f"an adapter with {form} cannot be merged", hint="train it without")
    if settings.get("bias", "none") != "none":
        raise StageError(
            "an adapter with trained biases cannot be merged", hint="train it with bias none"
        )
    if settings.get("init_lora_weights") not in SUPPORTED_INITS:
        raise StageError(
            f"an adapter with init_lora_weights '{settings['init_lora_weights']}' belongs to a "
            "base that was changed",
            hint="save it with PEFT's path_initial_model_for_weight_conversion",
        )


def _require_types(settings: dict[str, Any]) -> None:
    """Raises DataError for a setting of another type than PEFT's, or a
    pattern that could match for very long.
    """
    patterns = settings.get("alpha_pattern") or {}
    modules = settings.get("modules_to_save") or []
    sound = {
        "lora_alpha": _is_number(settings.get("lora_alpha")),
        "alpha_pattern": isinstance(patterns, dict) and all(map(_is_number, patterns.values())),
        "modules_to_save": isinstance(modules, list)
        and all(isinstance(name, str) for name in modules),
    }
    for key in [key for key, is_sound in sound.items() if not is_sound]:
        raise DataError(f"{SETTINGS} of the adapter has a '{key}' that PEFT does not write")
    for pattern in patterns:
        if (
            len(pattern) > MAX_PATTERN
            or len(QUANTIFIER.findall(pattern)) > MAX_QUANTIFIERS
            or QUANTIFIED_GROUP.search(pattern)
        ):
            raise DataError(
                f"{SETTINGS} of the adapter has an alpha_pattern that is too complex: "
                f"'{pattern[:80]}'"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise DataError(
                f"{SETTINGS} of the adapter has an alpha_pattern that is no pattern: {error}"
            ) from None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9


def _saved_whole(name: str, settings: dict[str, Any]) -> bool:
    module = name.replace(".modules_to_save.", ".").rpartition(".")[0]
    listed = settings.get("modules_to_save") or []
    # as PEFT matches: `norm` is also `input_layernorm`
    return any(module.endswith(suffix) for suffix in listed)


def _update(module: str, sides: dict[str, torch.Tensor], settings: dict[str, Any]) -> LowRankUpdate:
    embedding = "embedding_A" in sides
    try:
        a, b = (
            (sides["embedding_A"], sides["embedding_B"]) if embedding else (sides["A"], sides["B"])
        )
    except KeyError:
        raise StageError(f"the adapter holds only a part of '{module}'") from None
    if bool(settings.get("use_dora")) != ("magnitude_vector" in sides):
        raise StageError(
            f"the adapter says use_dora={bool(settings.get('use_dora'))}, and '{module}' was not "
            "trained so"
        )
    if a.dim() != 2 or b.dim() != 2:
        raise StageError(f"the adapter changes '{module}', a convolution, which cannot be merged")
    transposed = embedding or bool(settings.get("fan_in_fan_out"))
    # (rows, rank), (rank, columns)
    left, right = (a.T.contiguous(), b.T.contiguous()) if transposed else (b, a)
    magnitude = sides.get("magnitude_vector")
    outputs = right.shape[1] if transposed else left.shape[0]
    if (
        a.shape[0] != b.shape[1]
        or not a.shape[0]
        or (magnitude is not None and magnitude.shape != (outputs,))
    ):
        raise StageError(f"the adapter's matrices of '{module}' do not fit each other")
    return LowRankUpdate(left, right, _scale(module, a.shape[0], settings), magnitude, transposed)


def _scale(module: str, rank: int, settings: dict[str, Any]) -> float:
    alpha = settings["lora_alpha"]
    for pattern, own in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):  # as PEFT matches
            alpha = own
            break
    return float(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))
