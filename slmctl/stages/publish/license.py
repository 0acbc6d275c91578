"""The base model's license: its id, a check that the stated id can be
right, and the files that it requires.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.artifact import Artifact
from slmctl.errors import GateError
from slmctl.inference import ENCODER
from slmctl.model_files.base_model import Base
from slmctl.stages.publish.leak_scan import CARRIED

_GEMMA = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms."
)
_LLAMA = (
    "Llama {0} is licensed under the Llama {0} Community License, Copyright © Meta "
    "Platforms, Inc. All Rights Reserved."
)
_META = ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4")


@dataclass(frozen=True)
class Family:
    """A family of models that is published under its own terms, whatever a base states.

    Attributes:
        pattern: Matches their names and sources.
        architectures: Values of `model_type` in `config.json` that no other family has.
        licenses: The license ids that can be right.
    """

    name: str
    pattern: re.Pattern[str]
    architectures: frozenset[str]
    licenses: tuple[str, ...]


FAMILIES = (
    # Gemma 4 came under Apache 2.0
    Family(
        "Gemma",
        re.compile(r"gemma(?![-_ ]?4)", re.IGNORECASE),
        frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"}),
        ("gemma",),
    ),
    Family(
        "Llama",
        # no size, such as that of OpenLLaMA 3B
        re.compile(r"(?<![a-z])llama[-_ ]?[234](?![\d.]*b(?![a-z]))|meta-llama", re.IGNORECASE),
        frozenset({"llama4", "llama4_text"}),
        _META,
    ),
)
_LLAMA_3_VOCABULARY = range(128_256, 128_321)  # tokens; no other family has so many
# Phrases that identify the text of a license.
_TEXTS = (
    ("gemma", re.compile(r"gemma terms of use", re.IGNORECASE)),
    ("llama", re.compile(r"llama \d(?:\.\d)? community license", re.IGNORECASE)),
    ("apache-2.0", re.compile(r"apache license\s+version 2\.0", re.IGNORECASE)),
    (
        "mit",
        re.compile(r"\bmit license\b|permission is hereby granted, free of charge", re.IGNORECASE),
    ),
)
_SPELLINGS = dict.fromkeys(
    ("apache 2.0", "apache2.0", "apache2", "apache license 2.0", "apache"), "apache-2.0"
)


def license_of(base: Artifact, stated: str | None) -> str:
    """The id of the license of models made from a base; '' if none is stated.

    Args:
        stated: `publish.license`, used if the base's files state none.

    Raises:
        GateError: The stated id cannot be right.
    """
    facts = Base.read(base.path)
    own = _id(facts.license)
    label = own or _id(stated or "")
    if own and stated and _id(stated) != own:
        raise GateError(
            f"publish.license is {_id(stated)}, and the base {facts.name} states {own}",
            reason="license",
            hint="leave publish.license out: the base's own license holds",
        )
    family = _family(base, facts)
    if label and family is not None and label not in family.licenses:
        raise GateError(
            f"the base {facts.name} is a {family.name} model, which cannot be under {label}",
            reason="license",
            hint="the base's own license field is wrong: take another base"
            if own
            else f"set publish.license to one of {', '.join(family.licenses)}",
        )
    for entry in base.manifest.files:
        text_id = (
            _license_of_text(base.path / entry.path) if entry.path.startswith("LICENSE") else None
        )
        comparable = label in dict(_TEXTS) or label in _META
        if text_id is not None and comparable and not label.startswith(text_id):
            text = f"the base states {label}, and its {entry.path} is the text of {text_id}"
            raise GateError(text, reason="license")
    return label


def carry(base: Artifact, label: str, changes: str, out: Path) -> None:
    """Write the files that the license requires: the base's own,
    and a NOTICE that states the changes.
    """
    for entry in base.manifest.files:
        if entry.path.startswith(CARRIED):
            shutil.copyfile(base.file(entry.path), out / entry.path)
    facts = Base.read(base.path)
    terms = {"gemma": _GEMMA} | {name: _LLAMA.format(name.removeprefix("llama")) for name in _META}
    lines = [
        f"This model is a modification of {facts.public_name}. {changes}",
        f"License of the original: {label}." if label else "The original states no license.",
        *([terms[label]] if label in terms else []),
        *(["Built with Llama."] if label in _META else []),
    ]
    _add_notice(lines, out)
    _add_apache(label, out)


def carry_encoder(source: str, weights: str, label: str, out: Path) -> None:
    """Write the files that the license of a sentence encoder requires;
    `weights` says if they were changed.
    """
    text = f"{ENCODER} is the sentence encoder {source} as ONNX, its weights {weights}."
    terms = f"License of the original: {label}." if label else "The original states no license."
    # beside a base, LICENSE is that of the base
    name = "LICENSE.encoder" if (out / "NOTICE").exists() else "LICENSE"
    _add_notice([text, terms], out)
    _add_apache(label, out, name)


def _add_notice(lines: Sequence[str], out: Path) -> None:
    path = out / "NOTICE"
    before = path.read_text(encoding="utf-8").rstrip() + "\n\n" if path.exists() else ""
    path.write_text(before + "\n".join(lines) + "\n", encoding="utf-8")


def _add_apache(label: str, out: Path, name: str = "LICENSE") -> None:
    carried = {_license_of_text(path) for path in out.glob("LICENSE*")}
    if label == "apache-2.0" and label not in carried and not (out / name).exists():
        # Apache 2.0 requires a copy of itself, and slmctl's own is the same text
        # a build's leftovers may stand before the real one
        installed = importlib.metadata.distributions(name="slmctl")
        texts = [text for package in installed if (text := package.read_text("licenses/LICENSE"))]
        if texts:
            (out / name).write_text(texts[0], encoding="utf-8")


def _id(text: str) -> str:
    text = " ".join(text.lower().split())
    return _SPELLINGS.get(text, text)


def _family(base: Artifact, facts: Base) -> Family | None:
    path = base.path / "config.json"
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    inner = config.get("text_config") or config
    kinds = {str(config.get("model_type", "")), str(inner.get("model_type", ""))}
    for family in FAMILIES:
        if kinds & family.architectures or any(
            family.pattern.search(text) for text in (facts.name, facts.source)
        ):
            return family
    if "llama" in kinds and inner.get("vocab_size") in _LLAMA_3_VOCABULARY:
        return FAMILIES[1]
    return None


def _license_of_text(path: Path) -> str | None:
    """The id of the license whose text is in a file; None if it is not a known one."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return next((name for name, pattern in _TEXTS if pattern.search(text)), None)
