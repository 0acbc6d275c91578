"""A config section -> its values in a recipe, and back."""

from __future__ import annotations

import stat
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ValidationError,
)

from slmctl.artifacts.artifact import fingerprint
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config.fields import Content, Outside, WhenSet, bare_type, is_remote, marks, section_in
from slmctl.errors import UsageError


def recipe(section: BaseModel) -> dict[str, Any]:
    """The JSON values of a section in a recipe; a path marked `Content` becomes the hash of its
    content.

    Raises:
        UsageError: A file of the section does not exist.
    """
    result: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if any(isinstance(mark, Outside) for mark in field.metadata):
            continue
        value = getattr(section, name)
        unset = value == field.get_default(call_default_factory=True)
        if unset and any(isinstance(mark, WhenSet) for mark in field.metadata):
            continue
        marked = any(isinstance(mark, Content) for mark in marks(field))
        result[name] = _recipe_value(value, marked=marked)
    return result


def _recipe_value(value: Any, *, marked: bool) -> Any:
    if isinstance(value, BaseModel):
        return recipe(value)
    if isinstance(value, list):
        return [_recipe_value(item, marked=marked) for item in value]
    if isinstance(value, dict):
        return {
            key: _recipe_value(item, marked=marked and isinstance(item, Path))
            for key, item in value.items()
        }
    if marked and value is not None and not is_remote(str(value)):
        path = Path(value)
        require_path(path)
        return fingerprint(path)
    return str(value) if isinstance(value, Path) else value


def require_path(path: Path) -> None:
    """Refuse a path that cannot be hashed: reading a pipe would block, and reading a device would
    not end.

    Raises:
        UsageError: The path does not exist, or is neither a file nor a folder.
    """
    hint = "paths are relative to the folder of slmctl.yaml"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", hint=hint) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path} cannot be read: {reason.lower()}", hint=hint) from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(f"{path} is neither a file nor a folder", hint=hint)


def changed_keys(model: type[BaseModel], recipe: JsonObject, other: JsonObject) -> JsonObject:
    """Dotted keys of `slmctl.yaml` in which two recipes of a section differ -> the value in
    `other`.

    A list counts as one value.
    """
    changed: JsonObject = {}
    for name, field in model.model_fields.items():
        mine, its = recipe.get(name), other.get(name)
        if mine == its:
            continue
        inner = section_in(field.annotation)
        if inner is not None and isinstance(mine, dict) and isinstance(its, dict):
            below = changed_keys(inner, mine, its)
            changed |= {f"{field.alias or name}.{part}": value for part, value in below.items()}
        else:
            changed[field.alias or name] = its
    return changed


def contents(section: BaseModel) -> Iterator[Path]:
    """The files and folders of a section that enter its recipe by their content."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        marked = any(isinstance(mark, Content) for mark in marks(field))
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, BaseModel):
                yield from contents(item)
            elif marked and item and isinstance(item, str | Path) and not is_remote(str(item)):
                yield Path(item)


def restored(model: type[Any], recorded: Mapping[str, Any], find: Callable[[str], Path]) -> Any:
    """A section from its values in a recipe; keys that this version does not know are left out, and
    missing ones get their defaults.

    Args:
        model: Class of the section.
        recorded: Its values in a recipe.
        find: Returns the path of a file or folder with this content hash.

    Raises:
        UsageError: The recipe holds values that this version does not know.
    """
    try:
        return model.model_validate(_restored(model, recorded, find))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"this slmctl cannot read a config of {model.__name__} that was recorded: {where}: "
            f"{first['msg']}",
            hint="install the version of slmctl that the manifest names",
        ) from None


def _restored(
    model: type[BaseModel], recorded: Mapping[str, Any], find: Callable[[str], Path]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name in recorded:
            marked = any(isinstance(mark, Content) for mark in marks(field))
            values[field.alias or name] = _restored_value(
                field.annotation, recorded[name], find, marked=marked
            )
    return values


def _restored_value(
    annotation: Any, value: Any, find: Callable[[str], Path], *, marked: bool
) -> Any:
    if marked and isinstance(value, str) and value.startswith("sha256:"):
        return str(find(value))
    if isinstance(value, list):
        return [_restored_value(annotation, item, find, marked=marked) for item in value]
    bare = bare_type(annotation)
    if typing.get_origin(bare) is dict and isinstance(value, dict):
        inner = typing.get_args(bare)[1]
        return {
            key: _restored_value(inner, item, find, marked=marked) for key, item in value.items()
        }
    section = section_in(annotation)
    return (
        _restored(section, value, find)
        if section is not None and isinstance(value, dict)
        else value
    )
