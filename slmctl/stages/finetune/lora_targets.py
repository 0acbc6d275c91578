"""The section `finetune.lora` and a base -> PEFT's settings: the layers that LoRA adapts.

Targets are linear layers of the text decoder that train on every path and merge by name. Left out
are the output head, towers of images and sound, routers and experts of a mixture, and layers whose
weight is used without calling them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from slmctl.config import FinetuneConfig
from slmctl.errors import UsageError
from slmctl.model_files import hf_folder

# In a model with experts joined into one parameter, PEFT 0.21 takes these target names for the
# experts' wherever they occur, and would train the experts through `target_parameters`.
EXPERT_NAMES = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
NAMES_SHOWN = 12


def lora_config(config: FinetuneConfig, model: PreTrainedModel) -> LoraConfig:
    """The section `finetune.lora` as PEFT takes it for a model, with its targets by name.

    Raises:
        UsageError: A target names no layer that can be adapted.
    """
    lora = config.lora
    targets = adapted_layers(model, lora.target_modules)
    stored = {type(model.get_submodule(name)) for name in targets}
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_dora=lora.dora,
        fan_in_fan_out=stored == {Conv1D},  # as GPT-2 stores its layers: (in, out)
        task_type="CAUSAL_LM",
    )


def require(config: FinetuneConfig, folder: Path) -> None:
    """Refuse targets that the base in a folder does not have, before its weights are loaded.

    Raises:
        UsageError: A target names no layer that can be adapted.
    """
    adapted_layers(hf_folder.empty_model(folder), config.lora.target_modules)


def adapted_layers(model: PreTrainedModel, wanted: str | list[str]) -> list[str]:
    """Full names of the layers of a model that LoRA adapts.

    Args:
        wanted: `all-linear`, or names; each matches the layers whose dotted name ends with it.

    Raises:
        UsageError: One of the names matches no layer that can be adapted.
    """
    linear = list(linear_layers(model))
    if wanted == "all-linear":
        if not linear:
            raise UsageError(f"a {type(model).__name__} has no linear layers that LoRA can adapt")
        return linear
    ends = [name for name, module in model.named_modules() if module in _ends(model)]
    chosen: list[str] = []
    for target in wanted:
        matches = _named((*linear, *ends), target)
        if not matches:
            raise UsageError(
                f"finetune.lora.target_modules: {_reason(model, target)}",
                hint=f"all-linear, or some of {_listed(linear)}",
            )
        chosen += matches
    return sorted(set(chosen))


def _named(names: Iterable[str], target: str) -> list[str]:
    """Those dotted names that end with `target`."""
    return [name for name in names if name == target or name.endswith(f".{target}")]


def linear_layers(model: PreTrainedModel) -> Iterator[str]:
    """Names of the linear layers that LoRA can adapt, in the model's order.

    If the model has an adapter, the adapter's linear layers are among them.
    """
    decoder: Any = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    inside.difference_update(id(module) for module in _ends(model))
    mixture = hf_folder.has_experts(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or id(module) not in inside:
            continue
        path, _, own = name.rpartition(".")
        parent = model.get_submodule(path)
        of_experts = "experts" in name.split(".") or hasattr(parent, "experts")
        like_experts = own in EXPERT_NAMES or ".router." in name
        if of_experts or (mixture and like_experts):
            continue
        if not _read_past_adapter(parent, own):
            yield name


def _read_past_adapter(mixer: nn.Module, own: str) -> bool:
    """True for layers of a state-space mixer whose weight its GPU kernels read without calling the
    layer.

    PEFT refuses some of them, and an adapter of the others would train on a CPU only.
    """
    state_space = all(hasattr(mixer, name) for name in ("A_log", "in_proj", "out_proj"))
    return state_space and own in ("out_proj", "dt_proj")


def _ends(model: PreTrainedModel) -> list[nn.Module]:
    ends: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module for module in ends if module is not None]


def _reason(model: PreTrainedModel, target: str) -> str:
    """The reason why no layer of this name can be adapted."""
    matches = _named((name for name, _ in model.named_modules()), target)
    if not matches:
        return f"the base has no layer '{target}'"
    path, _, own = matches[0].rpartition(".")
    module = model.get_submodule(matches[0])
    decoder = model.get_decoder()
    if not any(module is inner for inner in decoder.modules()):
        return f"'{target}' lies outside the text model of the base"
    if not isinstance(module, nn.Linear | Conv1D):
        return f"'{target}' is a {type(module).__name__}, and LoRA here adapts linear layers"
    if _read_past_adapter(model.get_submodule(path), own):
        return f"'{target}' of a state-space layer is multiplied past its adapter"
    return f"'{target}' belongs to a mixture of experts, which stays as it is"


def _listed(names: list[str]) -> str:
    leaves = sorted({name.rpartition(".")[2] for name in names})
    more = ", ..." if len(leaves) > NAMES_SHOWN else ""
    return ", ".join(leaves[:NAMES_SHOWN]) + more
