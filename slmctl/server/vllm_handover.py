"""A model -> a hand-over: a folder from which others run it in vLLM, behind slmctl's gateway.

vLLM gets the merged weights, or the base with the adapter on it;
the gateway in front of it keeps the name, the task contract, the keys and the limits that `slmctl serve`
has. The folder needs nothing but the public images and packages that its README names, and holds no
secret: keys are referred to, by a variable or a file of those who run it.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from slmctl import __version__, console
from slmctl.artifacts import artifact, atomic
from slmctl.artifacts.artifact import Artifact
from slmctl.config import FILENAME, ServeConfig
from slmctl.errors import UsageError
from slmctl.task.contract import Task

VLLM = "v0.33.0"  # the image's tag; its arguments are those that tests/server/vllm_serve.txt lists
PYTHON = "3.12-slim"  # of the gateway's image
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM reserves room for; it takes no others
ENGINE_PORT, GATEWAY_PORT = 8000, 8080
KEYS = "/run/keys"  # where the folder with the hashes of the clients' keys is mounted
KEY_ENV = "VLLM_API_KEY"  # what vLLM reads its key from, and the gateway too
KINDS = ("compose", "kubernetes", "vllm")
# Settings that stay here: a policy is fitted on one GGUF file, others are of no use without it, and files of this
# machine are none of another.
LEFT_OUT = {"policy", "generalist", "prices", "decision_log", "collect"}
STOP_S = 10  # that a process has to end beyond the time that its running answers get
FILES = {
    "compose": ("compose.yaml", ".env", "gateway/Dockerfile", "gateway/wheels/README"),
    "kubernetes": (
        "kustomization.yaml", "vllm.yaml", "gateway.yaml", "network.yaml", "vllm/Dockerfile", "gateway/Dockerfile",
        "gateway/wheels/README",
    ),
    "vllm": ("vllm.sh", "gateway.sh"),
}  # fmt: skip


@dataclass(frozen=True)
class Handover:
    """A model with its task contract and the gateway's settings, for the folder that `write` makes.

    Attributes:
        name: The model's name for clients, the same as in `slmctl serve`.
        model: The weights that vLLM loads: a merged model, or the base of an adapter.
        adapter: The adapter on it, if it is not merged.
        task: The contract that the gateway holds answers to.
        settings: The gateway's limits.
        origin: The digest of what was asked for, such as a release.
    """

    name: str
    model: Artifact
    adapter: Artifact | None
    task: Task
    settings: ServeConfig
    origin: str


def write(handover: Handover, kind: str, out: Path) -> None:
    """Write the folder, whole or not at all.

    Raises:
        UsageError: The folder exists, or vLLM cannot run this model with these settings.
        IntegrityError: The weights are not what their manifest says.
    """
    if out.exists():
        raise UsageError(f"{out} exists already", hint="name a new folder with --output")
    _check(handover)
    if isinstance(handover.settings.policy, Path) or handover.settings.generalist is not None:
        console.say("left out: serve.policy and what belongs to it, since a policy is for one GGUF file")
    with atomic.folder(out) as draft:
        _copy(handover, draft)
        _contract(handover, kind, draft / "contract")
        for place, text in _rendered(handover, kind):
            _write(draft / place, text)
        _sums(draft)


def vllm_arguments(handover: Handover, root: str) -> list[str]:
    """The arguments of `vllm serve`; `root` stands before `/model`, `/adapter` and `/contract`."""
    served = [f"{handover.name}-base"] if handover.adapter else [handover.name]
    arguments = [
        f"{root}/model", "--served-model-name", *served,
        "--max-model-len", str(handover.settings.context_length), "--seed", "0",
        "--chat-template", f"{root}/contract/chat_template.jinja", "--load-format", "safetensors",
        "--generation-config", "vllm", "--allowed-origins", "[]", "--disable-fastapi-docs",
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if handover.adapter:
        rank = min(allowed for allowed in RANKS if allowed >= _adapter_config(handover.adapter)["r"])
        modules = ["--lora-modules", f"{handover.name}={root}/adapter"]
        arguments += ["--enable-lora", "--max-lora-rank", str(rank), *modules]
    return arguments


# Checks


def _check(handover: Handover) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", handover.name):
        raise UsageError(
            f"'{handover.name}' cannot be the name of a model in vLLM",
            hint="letters, digits, dots, hyphens, underscores",
        )
    if handover.task.rules.calls:
        raise UsageError(
            "calls are held to the form of their base by slmctl's own engine, which vLLM does not do",
            hint="slmctl serve",
        )
    for part in (handover.model, handover.adapter):
        if part is not None:
            artifact.require_whole(part)
    if not handover.model.files(".safetensors"):
        raise UsageError(
            f"{handover.model.path} holds no .safetensors, and vLLM serves no GGUF", hint="slmctl merge makes them"
        )
    config = json.loads(handover.model.file("config.json").read_bytes())
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and handover.settings.context_length > longest:
        length = handover.settings.context_length
        raise UsageError(
            f"serve.context_length is {length}, and this model reads at most {longest} tokens",
            hint=f"--set serve.context_length={longest}",
        )
    if handover.adapter:
        _check_adapter(_adapter_config(handover.adapter))


def _check_adapter(config: dict[str, Any]) -> None:
    """Refuse the forms of LoRA that vLLM does not run; merged they are weights like any other."""
    forms = {
        "DoRA": config.get("use_dora"),
        "trained biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "whole layers": config.get("modules_to_save"),
        "a rank that differs by layer": config.get("rank_pattern") or config.get("alpha_pattern"),
        f"a rank over {RANKS[-1]}": config["r"] > RANKS[-1],
    }
    if unknown := [name for name, is_there in forms.items() if is_there]:
        raise UsageError(
            f"vLLM does not run this adapter on its base: it has {' and '.join(unknown)}", hint="--weights merged"
        )


def _adapter_config(adapter: Artifact) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(adapter.file("adapter_config.json").read_bytes())
    return config


# Files


def _copy(handover: Handover, out: Path) -> None:
    """The weights with all that came with them, their licence and their manifest too."""
    for name, part in (("model", handover.model), ("adapter", handover.adapter)):
        if part is None:
            continue
        listed = [entry.path for entry in part.manifest.files]
        listed += [artifact.MANIFEST] if (part.path / artifact.MANIFEST).exists() else []
        size = console.size(sum(entry.size for entry in part.manifest.files))
        console.say(f"copying {size} of {part.kind} to {name}/")
        for path in listed:
            target = out / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(part.path / path, target)


def _contract(handover: Handover, kind: str, folder: Path) -> None:
    """Write the gateway's task contract and config, and the chat template, which vLLM gets too."""
    folder.mkdir()
    handover.task.write(folder)
    _write(folder / "chat_template.jinja", handover.task.chat_template)
    local = kind == "vllm"
    host = {"compose": "vllm", "kubernetes": f"{_label(handover.name)}-vllm", "vllm": "127.0.0.1"}[kind]
    serve = handover.settings.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=LEFT_OUT) | {
        "host": "127.0.0.1" if local else "0.0.0.0",  # noqa: S104 - inside a container, and with keys alone
        "port": GATEWAY_PORT,
        "keys": "../keys/keys.json" if local else f"{KEYS}/keys.json",
        "adapters": {},
        "engine": {"url": f"http://{host}:{ENGINE_PORT}/v1", "model": handover.name, "key_env": KEY_ENV},
    }
    config = {"project": _label(handover.name), "base": "none", "serve": serve}
    _write(folder / FILENAME, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _rendered(handover: Handover, kind: str) -> Iterator[tuple[str, str]]:
    """Place and text of every file that a template makes."""
    environment = jinja2.Environment(  # noqa: S701 - YAML, shell and Markdown; values are quoted by the filters
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)  # JSON is YAML without surprises
    environment.filters["shell"] = lambda words: shlex.quote(words) if isinstance(words, str) else shlex.join(words)
    values = _values(handover, kind)
    for place in ("README.md", *FILES[kind]):
        name = place if place.startswith(("README", "gateway/")) else f"{kind}/{place}"
        source = resources.files("slmctl.templates").joinpath("serve", *name.split("/")).read_text(encoding="utf-8")
        text = environment.from_string(source).render(values)
        if place.endswith(".yaml"):
            list(yaml.safe_load_all(text))  # what does not parse is a bug here, and is found here
        yield place, text


def _values(handover: Handover, kind: str) -> dict[str, Any]:
    weights = sum(
        entry.size for part in (handover.model, handover.adapter) if part for entry in part.files(".safetensors")
    )
    root = "." if kind == "vllm" else ""
    return {
        "kind": kind,
        "name": handover.name,
        "label": _label(handover.name),
        "task": handover.task,
        "settings": handover.settings,
        "stop_s": math.ceil(handover.settings.grace_s) + STOP_S,
        "adapter": handover.adapter is not None,
        "origin": handover.origin,
        "weights": console.size(weights),
        "version": __version__,
        "weights_id": (handover.adapter or handover.model).digest.removeprefix("sha256:")[:12],
        "vllm": VLLM,
        "python": PYTHON,
        "arguments": vllm_arguments(handover, root),
        "memory_gb": math.ceil(2 * weights / (1 << 30)) + 8,  # the weights twice while they are read, and vLLM itself
        "keys": KEYS,
        "engine_port": ENGINE_PORT,
        "gateway_port": GATEWAY_PORT,
    }


def _sums(folder: Path) -> None:
    """`SHA256SUMS` over all of it, which `sha256sum --check` reads."""
    lines = [f"{entry.sha256}  {entry.path}\n" for entry in artifact.scan(folder)]
    _write(folder / "SHA256SUMS", "".join(lines))


def _label(name: str) -> str:
    """A name as Kubernetes, image names and slmctl.yaml allow it: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")


def _write(path: Path, text: str) -> None:
    """Write a file and the folders above it; one that ends in `.sh` may be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if path.suffix == ".sh":
        path.chmod(0o755)
