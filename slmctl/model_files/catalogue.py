"""The catalogue of bases: known facts of each, and the shape of a base in a folder or file."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slmctl.artifacts import bounded_json
from slmctl.errors import DataError, IntegrityError, UsageError
from slmctl.model_files import gguf_header, memory, safetensors_header
from slmctl.model_files.base_model import Base
from slmctl.model_files.model_shape import ModelShape, Training

FILE = Path(__file__).with_name("catalogue.yaml")
MANY_LANGUAGES = 100  # a base with so many is assumed to know any language


@dataclass(frozen=True)
class CatalogueEntry(ModelShape):
    """One base.

    Attributes:
        name: `ORG/NAME` on the hub.
        commit: A commit of its repository there; empty if none is known.
        package: A pinned source that needs no hub, whose weights are dequantised; empty for none.
        sha256: Of the package's model file.
        package_bytes: Size of the package; 0 if it is not known.
        license: SPDX id, or the vendor's name for its terms.
        languages: Codes that its model card names; may be empty.
        language_count: Number of its languages.
        tools: True if it was trained for tool calls, None if that is not known.
        context: Tokens that it was trained for.
        architecture, model_class: Name in the catalogue, and class of transformers.
        weights: True if it was tried with its real weights, false if by its class alone.
        note: A sentence on its terms or parts; empty for none.
    """

    name: str
    license: str
    languages: tuple[str, ...]
    language_count: int
    context: int
    architecture: str
    model_class: str
    commit: str = ""
    package: str = ""
    sha256: str = ""
    package_bytes: int = 0
    tools: bool | None = None
    weights: bool = False
    note: str = ""

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def hub_source(self) -> str:
        """`hf:ORG/NAME@COMMIT`; without a known commit `hf:ORG/NAME`,
        and pull prints the commit to add.
        """
        return f"hf:{self.name}" + (f"@{self.commit}" if self.commit else "")

    @property
    def source(self) -> str:
        """Its value of `base` in slmctl.yaml."""
        return self.package or self.hub_source

    def speaks(self, language: str) -> bool:
        """True if its card names a language code, or counts MANY_LANGUAGES and more."""
        return language.lower() in self.languages or self.language_count >= MANY_LANGUAGES


@functools.cache
def entries() -> tuple[CatalogueEntry, ...]:
    """All bases, the smallest first."""
    content = yaml.load(FILE.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    bases = [
        _entry(content["architectures"][base["architecture"]], **base) for base in content["bases"]
    ]
    return tuple(sorted(bases, key=lambda entry: entry.parameters))


def _entry(
    architecture: Mapping[str, Any], /, *, languages: list[str] | int = 0, **fields: Any
) -> CatalogueEntry:
    codes = () if isinstance(languages, int) else tuple(languages)
    return CatalogueEntry(
        languages=codes,
        language_count=languages if isinstance(languages, int) else len(codes),
        model_class=architecture["class"],
        training=architecture["training"],
        copied="package" in fields,
        **fields,
    )


def of_source(source: str) -> CatalogueEntry | None:
    """The base that a pinned source names; None if it is not in the catalogue."""
    if source.startswith("pypi:"):
        return next((entry for entry in entries() if entry.package == source), None)
    return _named(source.removeprefix("hf:").partition("@")[0])


def without_hub(language: str) -> CatalogueEntry:
    """The smallest base of the package index that knows a language, by its
    code; the smallest one where none does.
    """
    offline = [entry for entry in entries() if entry.package]
    return next((entry for entry in offline if entry.speaks(language or "en")), offline[0])


def of_folder(folder: Path, base: Base | None = None) -> ModelShape | None:
    """The shape of the model in a folder, read from its config; None if the config has other keys.

    Args:
        base: Its description by `pull`, whose rehearsal shows how it trains; without it, the
            catalogue is asked.
    """
    try:
        settings = bounded_json.read_object(folder / "config.json")
        text = settings.get("text_config")
        sizes = text if isinstance(text, dict) else settings
        hidden, layers = int(sizes["hidden_size"]), int(sizes["num_hidden_layers"])
        intermediate, vocabulary = int(sizes["intermediate_size"]), int(sizes["vocab_size"])
        tensors = safetensors_header.read_folder(folder)
        largest = max(tensors, key=lambda tensor: tensor.elements)  # the embedding, as a rule
    except (DataError, IntegrityError, OSError, LookupError, TypeError, ValueError):
        return None
    tied = bool(sizes.get("tie_word_embeddings", settings.get("tie_word_embeddings", True)))
    return ModelShape(
        parameters=sum(tensor.elements for tensor in tensors),
        embedding=(1 if tied else 2) * vocabulary * hidden,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        training=_training(settings, base.rehearsal if base is not None else {}),
        copied=largest.dtype != "BF16",
        cache=_cache(sizes, layers, hidden),
    )


def of_gguf(path: Path) -> ModelShape | None:
    """The shape of the model in a GGUF file, whose weights `pull`
    dequantises; None if it cannot be read.
    """
    try:
        head = gguf_header.read(path)
        kind = str(head.metadata["general.architecture"])
        layers = int(str(head.metadata[f"{kind}.block_count"]))
        hidden = int(str(head.metadata[f"{kind}.embedding_length"]))
        intermediate = int(str(head.metadata[f"{kind}.feed_forward_length"]))
    except (DataError, IntegrityError, OSError, LookupError, ValueError):
        return None
    lookup = sum(
        tensor.weights
        for tensor in head.tensors
        if tensor.name in ("token_embd.weight", "output.weight")
    )
    alike = [
        entry.training for entry in entries() if entry.architecture.replace("-text", "") == kind
    ]
    return ModelShape(
        parameters=sum(tensor.weights for tensor in head.tensors),
        embedding=lookup,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        training=alike[0] if alike else "slow",
        copied=True,
        cache=memory.cell_bytes(head) // 2,
    )


def _cache(sizes: Mapping[str, Any], layers: int, hidden: int) -> int:
    """Elements of a token's keys and values in all layers, by a config; 0 if it names no heads."""
    heads = sizes.get("num_attention_heads")
    pairs = sizes.get("num_key_value_heads") or heads
    if not isinstance(heads, int) or not isinstance(pairs, int) or heads < 1:
        return 0
    width = sizes.get("head_dim")
    return 2 * layers * pairs * (width if isinstance(width, int) else hidden // heads)


def _training(settings: Mapping[str, Any], rehearsal: Mapping[str, Any]) -> Training:
    """The way in which a base trains, by its rehearsal, else by
    the catalogue's entry for its class.
    """
    if rehearsal:
        packed = bool(rehearsal.get("packed"))
        fast = packed and rehearsal.get("fast_layers") == rehearsal.get("layers")
        return "fast" if fast else "packed" if packed else "slow"
    classes = settings.get("architectures") or ()
    return next((entry.training for entry in entries() if entry.model_class in classes), "slow")


def find(name: str) -> CatalogueEntry:
    """The base of a name: `ORG/NAME`, or NAME alone, in any case.

    Raises:
        UsageError: There is none; the hint lists similar names.
    """
    entry = _named(name.removeprefix("hf:").partition("@")[0])
    if entry is not None:
        return entry
    near = " or ".join(other.name for other in _near(name))
    raise UsageError(
        f"the catalogue has no base '{name[:200]}'",
        hint=f"did you mean {near}?"
        if near
        else "slmctl bases lists all; pull takes others of the hub, too",
    )


def require_source(base: str, path: Path) -> None:
    """Refuse the name of a model where a source is expected, with the line that was meant.

    Args:
        base: `base` as slmctl.yaml has it.
        path: `base` as a path, if it is not a source of the hub or the package index.

    Raises:
        UsageError: It names no file or folder, and looks like the name of a model.
    """
    name, _, commit = base.partition("@")
    if base.startswith(("hf:", "pypi:", ".", "/", "~")) or name.endswith(".gguf") or path.exists():
        return
    is_full = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    entry = _named(name) or (None if is_full else next(iter(_near(name)), None))
    if entry is None and not is_full:
        return
    source = f"hf:{entry.name if entry else name}@{commit}" if commit or not entry else entry.source
    source = source.removesuffix("@")
    then = (
        ""
        if "@" in source or source.startswith("pypi:")
        else "; slmctl pull then says the commit to add"
    )
    raise UsageError(
        f"base '{base[:200]}' is no file or folder here; the name of a model on the hub begins "
        "with hf:",
        hint=f"put this line into slmctl.yaml: base: {source}{then}",
    )


def require_own_hash(base: str, sha256: str | None) -> None:
    """Refuse a pinned hash that is known to be another base's, such as one left behind when `base`
    was changed.

    Args:
        base: A source of the hub or the package index; the content of a path is not known here.
        sha256: `pull.sha256` of slmctl.yaml.

    Raises:
        UsageError: The catalogue has another hash for this base, or another base for this hash.
    """
    if sha256 is None or not base.startswith(("hf:", "pypi:")):
        return
    own = next((entry for entry in entries() if base == entry.package), None)
    owner = next((entry for entry in entries() if sha256 == entry.sha256), None)
    if own is owner:
        return
    of = f"the hash of {owner.package}" if owner else "not its hash"
    raise UsageError(
        f"base is {base[:200]}, and pull.sha256 is {of}",
        hint=f"in slmctl.yaml: pull: {{sha256: {own.sha256}}}"
        if own
        else "remove pull.sha256 from slmctl.yaml",
    )


def _named(name: str) -> CatalogueEntry | None:
    """The base of exactly this name, with or without ORG, in any case."""
    key = name.casefold()
    return next(
        (
            entry
            for entry in entries()
            if key in (entry.name.casefold(), entry.short_name.casefold())
        ),
        None,
    )


def _near(name: str) -> list[CatalogueEntry]:
    """Up to three bases whose names begin with this name or are similar to it."""
    short = name.casefold().rpartition("/")[2]
    by_name = {entry.short_name.casefold(): entry for entry in entries()}
    begin = [key for key in by_name if short and key.startswith(short)]
    close = difflib.get_close_matches(short, by_name, n=3, cutoff=0.7)
    return [by_name[key] for key in dict.fromkeys([*begin, *close])][:3]
