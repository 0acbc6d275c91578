"""An HF model folder as tokenizer and model of transformers: safetensors only, no code from the
folder.

The one place that loads with transformers; stages import it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from slmctl.artifacts import bounded_json
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError
from slmctl.model_files import safetensors_header, stored_weights

_REFUSALS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    RuntimeError,
    ArithmeticError,
    OSError,
    SafetensorError,
    StrictDataclassError,
)

# The libraries' deprecations are for the calling program, slmctl, not for its user.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\.")
# of an adapter on the output head or the embeddings: `merge` writes a tensor for the head
warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", category=UserWarning)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


# Not searched for code: large vocabularies, and the list of a sentence encoder's parts; loaders
# read them as data.
DATA_FILES = ("tokenizer.json", "vocab.json", "modules.json")
# Keys of a model folder's JSON that make a loader import code from the folder or from a repository.
CODE_KEYS = (
    "auto_map",
    "trust_remote_code",
    "custom_pipelines",
    "custom_generate",
    "parent_library",
)


def refuse_code(folder: Path) -> None:
    """Refuse a model folder that could run code when it is loaded.

    Raises:
        DataError: Its config names Python code (`auto_map`), or it has no weights that transformers
            loads without.
    """
    _refuse_named_code(folder)
    if not safetensors_header.weight_files(folder):
        pickles = [
            path.name
            for path in sorted(folder.iterdir())
            if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")
        ]
        weights = (
            f"only pickles ({', '.join(pickles)}), which can run code" if pickles else "no weights"
        )
        raise DataError(
            f"the base has {weights}",
            hint="take a base with model.safetensors or an index, or a .gguf file",
        )


def _refuse_named_code(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        if path.name not in DATA_FILES and (key := _code_key(path)):
            raise DataError(
                f"{path.name} of the base has '{key}': it would run the model author's Python code",
                hint="take a base whose architecture transformers knows",
            )


def refuse_code_of_adapter(settings: JsonObject) -> None:
    """Refuse an adapter whose settings would make PEFT, or another loader, import a module that
    they name.

    `auto_mapping` of a model of transformers and PEFT's own name of Megatron are harmless: nothing
    is imported.

    Raises:
        DataError: A setting would.
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
            f"adapter_config.json of the adapter has '{key}': it would run the author's Python "
            "code",
            hint="take an adapter that PEFT saved for a model of transformers",
        )


def _code_key(path: Path) -> str:
    """The first key of a JSON file that names code to load, from the folder or the hub, or ''."""
    left: list[Any] = [bounded_json.read_object(path)]
    while left:
        value = left.pop()
        for key, inner in value.items() if isinstance(value, dict) else ():
            if (key in CODE_KEYS and inner) or (
                key.endswith("attn_implementation") and "/" in str(inner)
            ):
                return str(key)
        left += (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        )
    return ""


@contextlib.contextmanager
def gguf_parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once in this block; not for several threads.

    transformers 5.24 parses it for the config, the tokenizer and the weights each, and rebuilds the
    table of tensor names for each module: some 20 s for a vocabulary of 49,000 tokens. Ends when
    transformers caches both.
    """
    import gguf  # of an extra that bases in other formats do not need

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(reader), functools.cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


def load_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder, without the network.

    Raises:
        DataError: transformers cannot read its files.
    """
    with _Refusals(folder, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    return tokenizer


def load_model(
    folder: Path, *, dtype: torch.dtype | str = torch.float32, **options: Any
) -> PreTrainedModel:
    """Load the model of a folder, in evaluation mode (no dropout).

    Args:
        dtype: The type of its weights: those stored in another type are copied, the others stay
            mapped from the files. `stored` takes the type that most of them are stored in, and
            computes in float32 layer by layer, without gradients, see `stored_weights`.

    Raises:
        DataError: Its config names code, transformers cannot read its files, or they lack weights.
    """
    _refuse_named_code(folder)
    model: PreTrainedModel
    kind = _stored_dtype(folder) if dtype == "stored" else dtype
    with _Refusals(folder, "model"):
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=kind,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    weights = {name for name, _ in model.named_parameters()}  # of shared ones, the first name
    # transformers makes them up at random
    _require_whole(folder, sorted(weights & loading["missing_keys"]))
    if dtype == "stored":
        stored_weights.widen(model)
    return model.eval()


def load_encoder(folder: Path, **options: Any) -> PreTrainedModel:
    """Load a sentence encoder in float32, without the head that some have on their first token.

    Raises:
        DataError: As of `load_model`.
    """
    _refuse_named_code(folder)
    model: PreTrainedModel
    with _Refusals(folder, "encoder"):
        model, loading = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    weights = {name for name, _ in model.named_parameters()}
    _require_whole(folder, sorted(weights & loading["missing_keys"]))
    stored = [tensor.name for tensor in safetensors_header.read_folder(folder)]
    if renamed := [name for name in weights if not any(each.endswith(name) for each in stored)]:
        raise DataError(
            f"transformers calls weights of the encoder otherwise, such as '{renamed[0]}'"
        )
    return model


def _stored_dtype(folder: Path) -> torch.dtype:
    halves = {"F16": torch.float16, "BF16": torch.bfloat16}
    return halves.get(safetensors_header.main_type(folder), torch.float32)


class _Refusals(contextlib.AbstractContextManager[None]):
    """Turns errors of transformers, tokenizers and safetensors on files that they cannot read into
    a DataError.

    Errors that are not the files' fault pass: out of memory, a full disk, a missing package.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.folder, self.part = folder, part

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if error is None:
            return
        # tokenizers raises plain Exceptions
        of_rust = type(error) is Exception and "(os error" not in str(error)
        memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
        system = isinstance(error, OSError) and error.errno is not None
        if of_rust or (isinstance(error, _REFUSALS) and not memory and not system):
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise DataError(
                f"the {self.part} in {self.folder.name} cannot be loaded: {reason}",
                hint="take a model that this transformers loads: pip show transformers",
            ) from error


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write safetensors, the same bytes for the same tensors.

    safetensors' own writer raises no OSError on a full disk, and creates a file that only its owner
    can read.

    Raises:
        OSError: It cannot be written.
    """
    path.write_bytes(
        safetensors.torch.save(dict(sorted(tensors.items())), metadata={"format": "pt"})
    )


def empty_model(folder: Path) -> PreTrainedModel:
    """The model that the config of a folder describes, without memory for weights.

    Raises:
        DataError: The config names code, or describes no causal LM of transformers.
    """
    _refuse_named_code(folder)
    with _Refusals(folder, "config"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return _without_weights(config)


def context_of(folder: Path) -> float:
    """The tokens that a model reads at most, infinite where its config names no limit."""
    with _Refusals(folder, "config"):
        config: Any = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf


def has_experts(model: PreTrainedModel) -> bool:
    """True for a mixture of experts."""
    return any(getattr(module, "experts", None) is not None for module in model.modules())


def _without_weights(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def loaded_names(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """{name of a tensor in a file: its name in the model}; the model may be without weights.

    transformers renames tensors on load where an architecture's modules have changed since its
    weights were published, or where a text model lies inside a multimodal one. Several stored
    tensors have the same name if transformers joins them, as it does with experts.
    """
    own = model.state_dict()
    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    return {
        name: name
        if name in own
        else rename_source_key(name, renamings, converters, model.base_model_prefix, own)[0]
        for name in stored
    }


def require_consistent(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], *, gguf: str = ""
) -> None:
    """Build the model that a config describes, without memory for weights, and compare it with
    stored tensors.

    Args:
        shapes: Shapes of the stored tensors by name.
        gguf: The GGUF file in the folder whose metadata is the config; empty for `config.json`.

    Raises:
        DataError: The config describes no model, or layers, names, shapes or sizes that differ from
            the tensors.
    """
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    with _Refusals(folder, "config"):
        config: Any = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
        layers = config.get_text_config().num_hidden_layers
        if not isinstance(layers, int) or not 0 <= layers <= len(shapes):
            raise DataError(
                f"the config in {folder.name} has {layers} layers, and there are {len(shapes)} "
                "tensors"
            )
        model = _without_weights(config)
    stored = sum(math.prod(shape) for shape in shapes.values())
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > 2 * stored:
        raise DataError(
            f"the config in {folder.name} describes {described} weights, and the files hold "
            f"{stored}"
        )
    if gguf:
        return  # its tensors have other names
    for name, parameter in model.state_dict().items():
        if name in shapes and tuple(parameter.shape) != tuple(shapes[name]):
            raise DataError(
                f"the config in {folder.name} describes '{name}' as {tuple(parameter.shape)}, "
                f"and the file holds {tuple(shapes[name])}"
            )
    there = set(loaded_names(model, shapes).values())
    _require_whole(folder, [name for name, _ in model.named_parameters() if name not in there])


def _require_whole(folder: Path, missing: list[str]) -> None:
    if missing:
        raise DataError(
            f"the files in {folder.name} lack {len(missing)} of the weights that the config "
            "describes, "
            f"such as '{missing[0]}'"
        )
