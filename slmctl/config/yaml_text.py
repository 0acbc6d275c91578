"""Parts of YAML texts: the values in a list, and values put into a document whose comments and order stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from slmctl.artifacts import atomic
from slmctl.config.loader import parse
from slmctl.errors import UsageError


def listed(text: str) -> list[str]:
    """The values of `1e-4,[a, b],c`, each as it is written.

    Raises:
        UsageError: It is not a list of YAML values.
    """
    try:
        node = yaml.compose(f"[{text}]", Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    if not isinstance(node, yaml.SequenceNode) or node.end_mark.index != len(text) + 2 or not node.value:
        raise UsageError(f"'{text[:200]}' is not a list of values", hint="such as 2e-4,4e-4,8e-4")
    return [f"[{text}]"[item.start_mark.index : item.end_mark.index].strip() for item in node.value]


def write_values(path: Path, values: Mapping[str, str]) -> None:
    """Set keys of a config file, atomically; its comments and its order stay.

    Args:
        path: The file.
        values: YAML texts by dotted key.

    Raises:
        UsageError: The form of the file leaves no place for a key; nothing is written.
    """
    text = path.read_bytes().decode("utf-8")
    try:
        changed = with_values(text, values)
        expected = parse(text.removeprefix("\ufeff"), [f"{key}={value}" for key, value in values.items()])
        if parse(changed.removeprefix("\ufeff")) != expected:
            raise ValueError("the file would mean something else")
    except (ValueError, UsageError, yaml.YAMLError) as error:
        keys = ", ".join(f"{key}: {value}" for key, value in values.items())
        message = f"{path.name} cannot be changed by a command: {error}"
        raise UsageError(message, hint=f"write it there: {keys}") from None
    with atomic.file(path, mode=path.stat().st_mode & 0o777) as draft:
        draft.write_bytes(changed.encode("utf-8"))


def with_values(text: str, values: Mapping[str, str]) -> str:
    """A document with other values of some dotted keys, and everything else as it was.

    Args:
        text: The document, a mapping of sections.
        values: YAML texts by key, such as `{"finetune.lora.rank": "32"}`.

    Raises:
        ValueError: The document's form leaves no place for a key, such as one below an alias.
    """
    for key, value in values.items():
        text = _with_value(text, key.split("."), value)
    return text


def _with_value(text: str, keys: list[str], value: str) -> str:
    """The document with one key set, in the mapping that is there or in a new one."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise ValueError("it has aliases")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, key in enumerate(keys):
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"'{'.'.join(keys[:depth])}' is not a mapping")
        below = next((inner for name, inner in node.value if name.value == key), None)
        if below is None:
            return _inserted(text, node, _nested(keys[depth:], value), top=depth == 0)
        if depth < len(keys) - 1 and isinstance(below, yaml.ScalarNode) and below.value == "":
            return _replaced(text, below, _nested(keys[depth + 1 :], value, braces=True))
        node = below
    assert node is not None
    return _replaced(text, node, value)


def _nested(keys: list[str], value: str, *, braces: bool = False) -> str:
    """`lora: {rank: 32}` of ["lora", "rank"], or with braces around it."""
    text = f"{keys[0]}: {value}" if len(keys) == 1 else f"{keys[0]}: {_nested(keys[1:], value, braces=True)}"
    return f"{{{text}}}" if braces else text


def _replaced(text: str, node: yaml.Node, value: str) -> str:
    start, end = node.start_mark.index, node.end_mark.index
    space = " " if start == end and text[start - 1 : start] == ":" else ""
    kept = text[start:end]
    return text[:start] + space + value + kept[len(kept.rstrip()) :] + text[end:]


def _inserted(text: str, node: yaml.MappingNode, entry: str, *, top: bool) -> str:
    """The document with one more entry in a mapping: at the end of the file, behind a brace, or above its first key."""
    newline = "\r\n" if "\r\n" in text else "\n"
    if node.flow_style:  # at its beginning: before its end there may be a comment
        start = node.start_mark.index + 1
        return f"{text[:start]}{entry}{', ' if node.value else ''}{text[start:]}"
    if top:
        return f"{text}{'' if text.endswith(newline) else newline}{entry}{newline}"
    start = node.value[0][0].start_mark
    return f"{text[: start.index]}{entry}{newline}{' ' * start.column}{text[start.index :]}"
