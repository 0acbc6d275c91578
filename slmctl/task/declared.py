"""The task that a config declares: its schema, its tools and its
labels, checked before rows are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import TaskConfig
from slmctl.errors import DataError
from slmctl.inference import grammar_pool
from slmctl.installation import is_installed
from slmctl.sources.rows import require_file
from slmctl.task import documents, tool_calls

MAX_FILE = 1 << 20  # bytes of a JSON Schema, or of a list of tools


def schema_of(config: TaskConfig) -> JsonObject | None:
    """The JSON Schema that the config names; None without one.

    Raises:
        DataError: It is not a JSON Schema, or no grammar can be made of it.
    """
    path = config.json_schema
    if path is None:
        return None
    try:
        schema = _read(path, "a JSON Schema")
    except RecursionError:
        raise DataError(f"{path.name} is not a JSON Schema: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} is not a readable JSON Schema: {error}") from None
    if fault := tool_calls.schema_fault(schema):
        raise DataError(f"{path.name} is not a JSON Schema: {fault}")
    if not isinstance(schema, dict):
        raise DataError(f"{path.name} is not a JSON Schema of objects: it is {schema!r:.20}")
    if fault := grammar_fault(json.dumps(schema)):
        raise DataError(f"{path.name}: {fault}", hint="change that part of the schema")
    if config.document is not None:
        documents.resolved(schema)
    return schema


def tools_of(config: TaskConfig) -> tuple[JsonObject, ...]:
    """The tools that the config lists or names, in OpenAI's form.

    Raises:
        DataError: They are not valid tools, or no grammar can be made of their schemas.
    """
    listed, name = config.tools, "task.tools"
    if isinstance(listed, Path):
        name = listed.name
        try:
            value = _read(listed, "a list of tools")
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{name} is not readable JSON: {error}") from None
        listed = value.get("tools", value) if isinstance(value, dict) else value
    if listed is None:
        return ()
    try:
        tools = tool_calls.read_tools(listed)
    except DataError as error:
        raise DataError(f"{name}: {error.message}", hint=error.hint or tool_calls.EXAMPLE) from None
    for tool in tools:
        if fault := grammar_fault(tool_calls.OWN.rules([tool])):
            raise DataError(
                f"{name}: the tool '{tool.name}': {fault}",
                hint="change that part of its parameters",
            )
    return tuple(tool.to_json() for tool in tools)


def labels_of(config: TaskConfig, found: Iterable[str]) -> tuple[str, ...]:
    """The labels that the config names, else those `found` in the data; () for a task without
    labels.

    Raises:
        DataError: The config describes a label that is not among them.
    """
    if not config.has_labels:
        return ()
    labels = config.label_names or tuple(sorted(found))
    try:
        config.require_described(labels)
    except ValueError as error:
        raise DataError(f"task.{error}", hint="task.descriptions") from None
    return labels


def grammar_fault(rules: str) -> str:
    """The reason why answers cannot follow a grammar, or ''; '' also without llguidance."""
    if not is_installed("llguidance"):  # of the extra gguf; without it no model answers here anyway
        return ""
    return grammar_pool.fault_of(rules)


def _read(path: Path, what: str) -> Any:
    require_file(path)
    if path.stat().st_size > MAX_FILE:
        raise DataError(f"{path.name} is not {what}: it has more than {MAX_FILE >> 20} MiB")
    return json.loads(path.read_text(encoding="utf-8"))
