"""An HF folder as tokenizer and model: only safetensors, no code from the folder, no noise.

The one place that loads with transformers; it is imported by stages only.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from slmctl.errors import DataError

# The libraries' deprecations are addressed to who calls them, which is slmctl and not its user.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\.")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def refuse_code(folder: Path) -> None:
    """Refuse a model folder that could run code when it is loaded.

    Raises:
        DataError: Its config names Python code (`auto_map`), or its weights are pickles.
    """
    for path in sorted(folder.glob("*.json")):
        if re.search(r'"auto_map"\s*:', path.read_text(encoding="utf-8", errors="replace")):
            raise DataError(
                f"{path.name} of the base has 'auto_map': it would run the model author's Python code",
                hint="take a base whose architecture transformers knows",
            )
    if not any(folder.glob("*.safetensors")):
        pickles = [
            path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")
        ]
        found = f"only pickles ({', '.join(pickles)}), which can run code" if pickles else "no weights"
        raise DataError(f"the base has {found}", hint="take a base with .safetensors, or a .gguf file")


def load_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; it looks nowhere else."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **options
    )
    return tokenizer


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """The model in a folder, ready to be read from (no dropout)."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
    )
    return model.eval()
