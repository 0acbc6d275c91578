"""A model folder or a GGUF file, as it came -> the HF folder of a
base, checked, with a chat template.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from slmctl import console, hardware
from slmctl.artifacts import bounded_json
from slmctl.errors import DataError, IntegrityError
from slmctl.model_files import (
    gguf_header,
    hf_folder,
    memory,
    model_card,
    safetensors_header,
    vocabulary,
)
from slmctl.model_files.base_model import ALLOWED_FILES, FILENAME, Base
from slmctl.model_files.gguf_header import GgufHeader
from slmctl.stages.pull import load_check, text_model

SHARD_BYTES = 4_000_000_000  # of the safetensors files of a dequantised base
FIXED_BYTES = 100_000_000  # tokenizer and libraries

# For a base without one. A turn ends with the base's own end token, so every engine stops there.
CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'assistant' %}
{{ 'Answer:\\n' + message['content'] + eos_token + '\\n' }}
{%- elif message['role'] == 'system' %}
{{ message['content'] + '\\n\\n' }}
{%- else %}
{{ 'Message:\\n' + message['content'] + '\\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}{{ 'Answer:\\n' }}{% endif %}
"""


def from_folder(folder: Path, source: str, out: Path, *, foreign: bool) -> Base:
    """Copy the ALLOWED_FILES of an HF folder, or the text model of a multimodal one, and check
    them.

    Files of weights that transformers does not load stay behind.
    """
    hf_folder.refuse_code(folder)
    with _refused():
        text = text_model.find(folder)
    for path in _files_to_load(folder):
        if text is None or not text.replaces(path.name):
            shutil.copyfile(path, out / path.name)
    if text is not None:
        console.say(f"  keeping {text.note}")
        text.write(out)
    with _refused():
        parameters = safetensors_header.parameter_count(out)
    if foreign:
        load_check.require_loadable(out)
    if hf_folder.has_experts(hf_folder.empty_model(out)):
        console.say(
            "  note: a mixture of experts; finetune leaves the experts as they are and adapts the "
            "layers around"
        )
    card = model_card.read(out / "README.md")
    described = _describe(
        out,
        name=source.rpartition("/")[2].partition("@")[0],
        source=source,
        license=card.license,
        parameters=parameters,
        note=text.note if text is not None else "",
        languages=card.languages,
    )
    if not (folder / FILENAME).exists():
        return described
    # the description by `pull` in another project says more than the folder
    with _refused():
        made = Base.read(folder)
    keys = ["name", "source", "license", "note", "languages"]
    if made.chat_template == described.chat_template:
        keys += ["template_origin", "template_date"]
    return dataclasses.replace(described, **{key: getattr(made, key) for key in keys})


def _files_to_load(folder: Path) -> list[Path]:
    """The ALLOWED_FILES of an HF folder but weights that transformers does not load.

    Raises:
        DataError: Of these names, one is no plain file.
    """
    files = [path for pattern in ALLOWED_FILES for path in sorted(folder.glob(pattern))]
    loaded = {path.name for path in safetensors_header.weight_files(folder)}
    if safetensors_header.WHOLE not in loaded:
        loaded.add(safetensors_header.INDEX)
    weights = [path.name for path in files if ".safetensors" in path.name]
    unread = [name for name in weights if name not in loaded]
    if unread:
        names = console.shown(", ".join(unread))
        console.say(f"  left out, since transformers does not load them: {names}")
    for path in files:
        if not path.is_file():
            raise DataError(f"{path.name} of the base is not a plain file")
    return [path for path in files if path.name not in unread]


def from_gguf(path: Path, source: str, out: Path) -> Base:
    """Dequantise a GGUF file into an HF folder; float16 holds the
    values of its blocks almost exactly.
    """
    with _refused():
        head = gguf_header.read(path)
    metadata = head.metadata
    parts = metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise DataError(
            f"{path.name} is one of {parts} parts of a model",
            hint="llama-gguf-split --merge joins them",
        )
    _require_memory(head)
    console.say(f"  step 1 of 3: trying {path.name} in a process of its own")
    load_check.require_loadable(path.parent, path.name)
    tensors = console.count(len(head.tensors), "tensor")
    console.say(f"  step 2 of 3: dequantising {tensors} of {path.name}")
    with hf_folder.gguf_parsed_once():
        tokenizer = hf_folder.load_tokenizer(path.parent, gguf_file=path.name)
        # tensor by tensor
        loaded = hf_folder.load_model(path.parent, dtype=torch.float16, gguf_file=path.name)
    pre_tokenizer = _pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "")))
    if pre_tokenizer is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    model = _without_gguf(loaded)
    console.say("  step 3 of 3: writing them as float16")
    model.save_pretrained(out, max_shard_size=SHARD_BYTES)
    tokenizer.save_pretrained(out)
    for weights in out.glob("*.safetensors"):
        weights.chmod(0o644)
    name = re.sub(r"\.(I?Q\d\w*|F16|F32|BF16)$", "", path.stem)
    parameters = sum(weight.numel() for weight in model.parameters())
    return _describe(
        out,
        name=name,
        source=source,
        license=model_card.license_of(metadata.get("general.license")),
        parameters=parameters,
        note=f"dequantised from {path.name} to float16; a little worse than the original weights",
        languages=model_card.languages_of(metadata.get("general.languages")),
    )


def _require_memory(head: GgufHeader) -> None:
    """Refuse a GGUF file that does not fit into memory in float16, with one tensor expanded."""
    sizes = [tensor.weights for tensor in head.tensors]
    model = 2 * sum(sizes) + 8 * max(sizes, default=0)
    needed = hardware.held_bytes() + FIXED_BYTES + model
    memory.require(
        needed, "dequantising", hint="the base as safetensors (hf:), or a machine with more"
    )


def _without_gguf(loaded: Any) -> Any:
    """A model loaded from a GGUF file, with the same weights, as one that can be saved."""
    # with it, transformers refuses to save what it has dequantised
    del loaded.config.quantization_config
    with torch.device("meta"):
        # a fresh model of the same config has no memory of the GGUF
        model = type(loaded)(loaded.config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.config.dtype = torch.float16
    return model


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Turn an IntegrityError on a base's files into a DataError:
    they are input, not an artifact yet.
    """
    try:
        yield
    except IntegrityError as error:
        raise DataError(
            error.message, hint="download the base again, or take another one"
        ) from None


def _pre_tokenizer(kind: str) -> PreTokenizer | None:
    """The pre-tokenizer of a GGUF's vocabulary where transformers takes another one, else None.

    transformers 5.24 gives every BPE vocabulary of a GGUF the rules of GPT-2; SmolLM's splits
    digits first, so `\\n 2` was three tokens in training and others in llama.cpp. Ends when
    transformers reads `tokenizer.ggml.pre`.
    """
    if kind != "smollm":
        return None
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _describe(
    out: Path,
    *,
    name: str,
    source: str,
    license: str,
    parameters: int,
    note: str,
    languages: tuple[str, ...],
) -> Base:
    """The description of a base in `out`; a base without a chat template gets CHAT_TEMPLATE."""
    rows = bounded_json.read_object(out / "config.json").get("vocab_size")
    dropped = vocabulary.drop_tokens_without_weights(out, rows) if isinstance(rows, int) else []
    if dropped:
        names = console.shown(", ".join(dropped))
        console.say(f"  left out of the tokenizer, for want of weights: {names}")
    tokenizer = hf_folder.load_tokenizer(out)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # one of several by name
        template = template.get("default")
    origin = "base" if template else "slmctl"
    template = template or CHAT_TEMPLATE
    tokenizer.chat_template = template
    vocabulary.save(out, tokenizer)
    eos = str(tokenizer.eos_token or "")
    if not eos:
        raise DataError(f"the base {name} has no end token, so an answer of it would never end")
    special = vocabulary.control_tokens(out, tokenizer)
    return Base(
        name=name,
        source=source,
        license=license,
        parameters=parameters,
        chat_template=str(template),
        template_origin=origin,
        bos_token=str(tokenizer.bos_token or ""),
        eos_token=eos,
        special_tokens=tuple(sorted(special)),
        normal_form=vocabulary.normal_form(tokenizer),
        note=note,
        languages=languages,
    )
