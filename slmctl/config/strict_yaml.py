"""YAML without surprises, with the line of every key."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import yaml

from slmctl.errors import UsageError
from slmctl.network.credentials import mask

MAX_VALUES = 100_000  # values in one file
MAX_KEY = 1000  # characters of a key
MAX_DEPTH = 20  # levels of lists and mappings


class _BoundedLoader(yaml.SafeLoader):
    """A loader that refuses nodes deeper than MAX_DEPTH; PyYAML recurses
    with them until Python's stack overflows.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH + 2:  # plus the document, and a value in the deepest list
            mark = self.get_mark()
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MAX_DEPTH} deep", problem_mark=mark
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Int(int):
    raw: str


class _Float(float):
    raw: str


class StrictYaml:
    """Reads strict YAML and remembers the line of every key.

    Strict: a repeated key is a fault, `1e-4` is a number, tags are refused. As in YAML 1.2's core
    schema, `no`, `on` and `12:30` are texts.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults: list[str] = []
        self._at: dict[tuple[int | str, ...], int] = {}
        self._flags: set[tuple[int | str, ...]] = set()
        self._values = 0

    def read(self, text: str) -> Any:
        """The value of a YAML document: dicts, lists, texts, numbers, booleans and None.

        Raises:
            UsageError: `text` is not YAML, or exceeds MAX_DEPTH or MAX_VALUES.
        """
        try:
            loader = _BoundedLoader(text)
            node = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UsageError(f"{self.name}{line}: not valid YAML: {error.problem}") from None
        except yaml.reader.ReaderError as error:
            number = text.count("\n", 0, error.position) + 1
            raise UsageError(
                f"{self.name}:{number}: not valid YAML: it holds a control character",
                hint="remove the character",
            ) from None
        except yaml.YAMLError as error:
            raise UsageError(f"{self.name}: not valid YAML: {error}") from None
        except (ValueError, OverflowError):  # of chr(), in PyYAML's scanner
            raise UsageError(
                f"{self.name}:{loader.line + 1}: not valid YAML: an escape \\U names no character",
                hint="\\U00000000 to \\U0010ffff",
            ) from None
        return None if node is None else self._value(node, ())

    def override(self, values: dict[str, Any], assignment: str) -> None:
        """Set a key of `values` from `section.key=value`; raises UsageError for another form."""
        dotted, _, text = assignment.partition("=")
        keys = dotted.strip().encode("utf-8", "backslashreplace").decode().split(".")
        if "=" not in assignment or not all(keys) or len(keys) > MAX_DEPTH:
            raise UsageError(
                f"--set {mask(assignment)[:200]}: expected SECTION.KEY=VALUE",
                hint="--set finetune.epochs=3",
            )
        inner = values
        for key in keys[:-1]:
            if inner.get(key) is None:
                inner[key] = {}
            inner = inner[key]
            if not isinstance(inner, dict):
                raise UsageError(f"--set {mask(assignment)[:200]}: '{key}' is not a section")
        lines = StrictYaml("--set")
        inner[keys[-1]] = lines.read(text)
        self.faults += lines.faults
        self._flags.add(tuple(keys))

    def fault(self, loc: Sequence[int | str], message: str) -> str:
        """`slmctl.yaml:12: finetune.epochs: message`, with the line of the key or of the nearest
        section around it.

        A key that comes from `--set` is reported as `--set: …`.
        """
        place, where = tuple(loc), self.name
        if any(place[: len(flag)] == flag for flag in self._flags):
            where = "--set"
        else:
            # sections of flags
            flagged = {flag[:length] for flag in self._flags for length in range(1, len(flag))}
            while place and place not in self._at and place not in flagged:
                place = place[:-1]
            where = (
                f"{where}:{self._at[place]}" if place in self._at else "--set" if place else where
            )
        dotted = ".".join(str(key) for key in loc if not (isinstance(key, str) and "[" in key))
        return f"{where}: {dotted}: {message}" if dotted else f"{where}: {message}"

    def _value(self, node: yaml.Node, loc: tuple[int | str, ...]) -> Any:
        if len(loc) > MAX_DEPTH:
            raise UsageError(
                f"{self.name}:{node.start_mark.line + 1}: nested more than {MAX_DEPTH} deep"
            )
        self._values += 1
        # aliases of aliases: a short file can stand for a billion values
        if self._values > MAX_VALUES:
            raise UsageError(
                f"{self.name}:{node.start_mark.line + 1}: more than {MAX_VALUES} values"
            )
        self._at.setdefault(loc, node.start_mark.line + 1)
        if node.tag.startswith("!") or "python" in node.tag:
            self.faults.append(self.fault(loc, f"tag '{node.tag}' is not allowed"))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*loc, k)) for k, item in enumerate(node.value)]
        return self._scalar(node, loc)

    def _mapping(self, node: yaml.MappingNode, loc: tuple[int | str, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            text, line = str(key_node.value)[:MAX_KEY], key_node.start_mark.line + 1
            # half a surrogate pair has no other form
            key = text.encode("utf-8", "backslashreplace").decode()
            if key in result:
                first = self._at[(*loc, key)]
                self.faults.append(f"{self.name}:{line}: '{key}' is already set on line {first}")
                continue
            self._at[(*loc, key)] = line
            result[key] = self._value(value_node, (*loc, key))
        return result

    def _scalar(self, node: yaml.Node, loc: tuple[int | str, ...]) -> Any:
        text: str = node.value
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            self.faults.append(
                self.fault(loc, "holds half a surrogate pair, which is no character")
            )
            return "\ufffd"
        if getattr(node, "style", None) is not None:
            return text
        if text in ("", "~", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        number: _Int | _Float
        if re.fullmatch(r"[-+]?[0-9]+", text) and len(text) < 20:
            number = _Int(text)
        elif re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text):
            number = _Float(text)
            if math.isinf(number):
                self.faults.append(self.fault(loc, f"{text[:40]} is beyond the range of numbers"))
        else:
            return text
        number.raw = text
        return number
