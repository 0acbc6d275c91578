"""An HF folder as tokenizer and model: only safetensors, no code from the folder, no noise.

The one place that loads with transformers; it is imported by stages only.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from slmctl.errors import DataError

# The libraries' deprecations are addressed to who calls them, which is slmctl and not its user.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\.")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


# Keys of a model folder's JSON that have a loader import code which the folder, or a repository, brings.
VOCABULARIES = ("tokenizer.json", "vocab.json")  # large, and data to every loader
CODE = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "parent_library")


def refuse_code(folder: Path) -> None:
    """Refuse a model folder that could run code when it is loaded.

    Raises:
        DataError: Its config names Python code (`auto_map`), or its weights are pickles.
    """
    _refuse_named_code(folder)
    if not any(folder.glob("*.safetensors")):
        pickles = [
            path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")
        ]
        found = f"only pickles ({', '.join(pickles)}), which can run code" if pickles else "no weights"
        raise DataError(f"the base has {found}", hint="take a base with .safetensors, or a .gguf file")


def _refuse_named_code(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        if path.name not in VOCABULARIES and (key := _names_code(path)):
            raise DataError(
                f"{path.name} of the base has '{key}': it would run the model author's Python code",
                hint="take a base whose architecture transformers knows",
            )


def refuse_code_of_adapter(settings: dict[str, Any]) -> None:
    """Refuse an adapter whose settings have PEFT import a module that they name.

    What a plain LoRA of PEFT says of its base (`auto_mapping`) and the name that it gives Megatron are not imported.

    Raises:
        DataError: They do, or would have another loader do it.
    """
    mapping = settings.get("auto_mapping") or {}
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    named = {
        "auto_mapping": library and str(library).partition(".")[0] != "transformers",
        "megatron_config": settings.get("megatron_config"),
        "megatron_core": settings.get("megatron_core") not in (None, "megatron.core"),
        "tokenizer_kwargs": settings.get("tokenizer_kwargs"),
    }
    for key in [key for key, value in named.items() if value]:
        raise DataError(
            f"adapter_config.json of the adapter has '{key}': it would run the author's Python code",
            hint="take an adapter that PEFT saved for a model of transformers",
        )


def _names_code(path: Path) -> str:
    """The key of a JSON file that names code to load: of the model's folder, or of the hub."""
    try:
        left: list[Any] = [json.loads(path.read_bytes())]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} of the base is not readable JSON: {error}") from None
    while left:
        value = left.pop()
        for key, inner in value.items() if isinstance(value, dict) else ():
            if (key in CODE and inner) or (key.endswith("attn_implementation") and "/" in str(inner)):
                return str(key)
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ""


def load_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; it looks nowhere else."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **options
    )
    return tokenizer


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """The model in a folder, ready to be read from (no dropout).

    Raises:
        DataError: Its config names code.
    """
    _refuse_named_code(folder)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
    )
    return model.eval()


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write safetensors, the same bytes for the same tensors.

    The library's own writer makes an error of its own of a full or a broken disk, and a file that only its owner reads.

    Raises:
        OSError: It cannot be written.
    """
    path.write_bytes(safetensors.torch.save(dict(sorted(tensors.items())), metadata={"format": "pt"}))
