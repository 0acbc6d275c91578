"""Search every text of a release for secrets, personal data and paths of this machine.

Each format is parsed: the strings of JSON, the cells of tables, the metadata of GGUF and
safetensors files. Tensors are exempt, and so are the texts of the base's own vocabulary. A leak
names the place and the rule, never the value.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from slmctl import sensitive
from slmctl.artifacts.artifact import Artifact
from slmctl.config import Config
from slmctl.errors import GateError
from slmctl.model_files import gguf_header

SHOWN = 5  # findings named in the refusal
# keys of the task whose texts a release holds, besides those of the files that it names
SAID = {"system", "labels", "descriptions", "tools", "must", "must_not"}
# files of the base that its license requires in every release
CARRIED = ("LICENSE", "NOTICE", "USE_POLICY")
_BINARY = (".model",)  # a sentencepiece vocabulary
_NUMBERS = (".onnx",)  # an encoder: a graph and its weights, which `encode` writes without a note
_PRINTABLE = re.compile(rb"[\x20-\x7e]{6,}")
_HASH = re.compile(r"\b(?:sha256:)?[0-9a-f]{32,}\b")
_DECIMAL = re.compile(r"(?<![\w.])[-+±−]?\d+\.\d+%?(?![\w.]|-\d)")
# A URL, up to the end of its word: its path is not a path of this machine.
_ADDRESS = re.compile(r"\b(?!file:)[A-Za-z][\w+.-]{0,30}://[^\s/\"'<>,;|()][^\s\"'<>,;|()]*")
_PATH = re.compile(
    r"(?<![\w./<{}~%*+-])/(?:[\w.@+%-]+/)+[\w.@+%-]+"  # two parts or more: /home/jo/data
    r"|(?<![\w./])~/[\w.@+-]+"
    r"|(?<![A-Za-z])[A-Za-z]:\\{1,2}[\w.@ $+-]+\\"
    r"|(?<![\\\w])\\\\[\w.-]+\\[\w$.-]+"
    # a URL without a host, such as a database's
    r"|\b(?:file://|[A-Za-z][\w+.-]{0,30}:///)[^\s\"'<>]+"
)


@dataclass(frozen=True)
class Leak:
    """One place that must not be published: the file, the place
    in it, and the rule that matched.
    """

    file: str
    place: str
    rule: str

    def __str__(self) -> str:
        return f"{self.file}{f' ({self.place})' if self.place else ''}: {self.rule}"


def require_clean(
    folder: Path, names: Iterable[str], *, base: Artifact | None, allow: Sequence[str] = ()
) -> None:
    """Search files that are about to be published.

    Args:
        names: Paths of the files in the release's folder.
        base: The base model, whose vocabulary and license may be published as they are.
        allow: Texts that may be published, whatever they look like.

    Raises:
        GateError: A file holds a secret, personal data or a path of this machine.
    """
    vocabulary = _vocabulary(base)
    _require_none(
        [leak for name in sorted(names) for leak in _leaks(folder / name, name, vocabulary, allow)]
    )


def require_clean_task(config: Config) -> None:
    """Search what the config and its files say of the task, which every release holds, before
    anything is trained.

    Raises:
        GateError: A text holds a secret, personal data or a path of this machine.
    """
    files = [
        path for path in (config.task.json_schema, config.task.tools) if isinstance(path, Path)
    ]
    task = config.task.model_dump(
        mode="json", include=SAID - {"tools"} if config.task.tools in files else SAID
    )
    replace = [entry.model_dump() for entry in config.prepare.replace]
    sections = {
        "task": task,
        "prepare.replace": replace,
        "publish.intended_use": config.publish.intended_use,
    }
    texts = [
        ("slmctl.yaml", *each) for name, value in sections.items() for each in _strings(value, name)
    ]
    texts += [(path.name, *each) for path in files if path.is_file() for each in _written(path)]
    allow = config.publish.allowed_texts
    _require_none(
        [
            Leak(name, place, rule)
            for name, place, text in texts
            for rule in _rules(text, sensitive.KINDS, allow)
        ]
    )


def _require_none(leaks: Sequence[Leak]) -> None:
    if leaks:
        listed = "; ".join(dict.fromkeys(map(str, leaks[:SHOWN])))
        more = f"; and {len(leaks) - SHOWN} more" if len(leaks) > SHOWN else ""
        raise GateError(
            f"the release holds secrets, personal data or paths: {listed}{more}",
            reason="leak",
            hint="remove it from the source, or list the text in publish.allowed_texts if it may "
            "be published",
        )


def _leaks(
    path: Path, name: str, vocabulary: frozenset[str], allow: Sequence[str]
) -> Iterator[Leak]:
    """The leaks in one file, called `name` in the release; texts in `vocabulary` are exempt."""
    kinds = ("secret",) if Path(name).name.startswith(CARRIED) else sensitive.KINDS
    for place, text in _texts(path, vocabulary):
        for rule in _rules(text, kinds, allow):
            yield Leak(name, place, rule)


def _rules(text: str, kinds: Sequence[str], allow: Sequence[str]) -> Iterator[str]:
    """The rules that match in a text."""
    for allowed in allow:
        text = text.replace(allowed, " ")
    secrets = sensitive.find(text, ("secret",)) if _HASH.search(text) else []
    keys = [finding for finding in secrets if _HASH.search(text, finding.start, finding.end)]
    text = _DECIMAL.sub(" ", _HASH.sub(" ", text))
    if _PATH.search(_ADDRESS.sub(" ", text)):
        yield "a path of this machine"
    # a key may be all hexadecimal, as a hash is
    for finding in (*keys, *sensitive.find(text, kinds)):
        yield finding.rule


def _vocabulary(base: Artifact | None) -> frozenset[str]:
    """Every text of the base's vocabulary, with its merges as GGUF files spell them."""
    if base is None or not (base.path / "tokenizer.json").is_file():
        return frozenset()
    tokenizer = json.loads((base.path / "tokenizer.json").read_bytes())
    texts = {text for _, text in _strings(tokenizer, "")}
    merges = tokenizer["model"].get("merges", [])
    return frozenset(texts | {" ".join(pair) for pair in merges if isinstance(pair, list)})


# Texts of each form of file


def _texts(path: Path, vocabulary: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(place, text) of every text in a file that is not in `vocabulary`."""
    if path.suffix == ".gguf":
        texts: Iterable[tuple[str, str]] = _gguf(path)
    elif path.suffix == ".safetensors":
        texts = _safetensors(path)
    elif path.suffix == ".npz":
        texts = _arrays(path)
    elif path.suffix in _BINARY:
        texts = [("", raw.decode()) for raw in _PRINTABLE.findall(path.read_bytes())]
    elif path.suffix in _NUMBERS:
        texts = ()
    else:
        texts = _written(path)
    return ((place, text) for place, text in texts if text not in vocabulary)


def _arrays(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the names and text arrays of an `.npz` file; arrays of numbers are exempt."""
    import numpy as np  # here: `run` searches the task at each start

    with np.load(path, allow_pickle=False) as kept:
        for name in kept.files:
            yield name, name
            if kept[name].dtype.kind == "U":
                yield from ((name, str(text)) for text in kept[name].flat)


def _written(path: Path) -> Iterator[tuple[str, str]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json":
        try:
            yield from _strings(json.loads(text), "")
            return
        except (ValueError, RecursionError):
            pass  # not JSON: searched as plain text
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line:
                yield from (
                    (f"line {number} {place}", string)
                    for place, string in _strings(json.loads(line), "")
                )
    elif path.suffix == ".html":
        yield from (("", string) for string in _Page.texts_of(text))
    else:
        lines = text.split("\n")
        rows = [line for line in lines if line.startswith("|")]
        yield "", "\n".join(line for line in lines if not line.startswith("|"))
        yield from (("a table", cell) for row in rows for cell in row.split("|"))


def _strings(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """(place, text) of every key and string in a JSON value."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield f"{place}: a key", key
            yield from _strings(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, place)


def _gguf(path: Path) -> Iterator[tuple[str, str]]:
    head = gguf_header.read(path)
    yield from _strings(head.metadata, "")
    yield from (("a tensor's name", tensor.name) for tensor in head.tensors)
    with path.open("rb") as stream:
        stream.seek(head.end)
        yield from (
            ("after the tensors", raw.decode()) for raw in _PRINTABLE.findall(stream.read())
        )


def _safetensors(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        head = json.loads(stream.read(min(length, 100 << 20)))
    yield from _strings(head.pop("__metadata__", {}), "__metadata__")
    yield from (("a tensor's name", name) for name in head)


class _Page(HTMLParser):
    """The texts and attribute values of an HTML page, each by itself;
    coordinates of drawings are left out.
    """

    DRAWN = frozenset(
        {
            "d",
            "points",
            "transform",
            "viewbox",
            "x",
            "y",
            "x1",
            "x2",
            "y1",
            "y2",
            "cx",
            "cy",
            "width",
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    @classmethod
    def texts_of(cls, page: str) -> list[str]:
        reader = cls()
        reader.feed(page)
        reader.close()
        return reader.texts

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.texts += [value for name, value in attrs if value and name not in self.DRAWN]
