"""Read `slmctl.yaml`: every fault at once, each with its line, and paths made absolute."""

from __future__ import annotations

import difflib
import itertools
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ValidationError,
)

from slmctl.config.fields import (
    Content,
    is_inherited,
    is_remote,
    marks,
    named_section_in,
    section_in,
)
from slmctl.config.sections import FILENAME, PSEUDONYM_KEY, Config, inherited_keys
from slmctl.config.strict_yaml import StrictYaml
from slmctl.errors import UsageError
from slmctl.hardware import cpu_flags
from slmctl.network.credentials import mask

MAX_BYTES = 1_000_000  # of slmctl.yaml
MOST_FAULTS = 100  # that are told


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, with `section.key=value` overrides on top.

    Raises:
        UsageError: Every fault in the file and in the overrides, one line each.
    """
    text = _read(path)
    return parse(text, overrides, name=path.name, root=path.parent)


def _read(path: Path) -> str:
    """The text of a config file, at most MAX_BYTES.

    Raises:
        UsageError: It is missing, too large, not UTF-8, or not a regular file (reading a named pipe
            would block).
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is not a regular file", hint="slmctl init FILE writes one")
        if status.st_size > MAX_BYTES:
            raise UsageError(
                f"{path} has {status.st_size:,} bytes; a config has at most {MAX_BYTES:,}"
            )
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist",
            hint="slmctl init FILE makes one of your rows; or name the folder with -C",
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} cannot be read: byte {error.start} is not UTF-8",
            hint=f"iconv -f latin1 -t utf-8 {path}",
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def parse(
    text: str, overrides: Sequence[str] = (), *, name: str = FILENAME, root: Path = Path()
) -> Config:
    """`load` for a text; relative paths in it start at `root`."""
    lines = StrictYaml(name)
    values = lines.read(text)
    if not isinstance(values, dict):
        raise UsageError(
            f"{name} does not hold a mapping of sections", hint="slmctl init shows one"
        )
    for override in overrides:
        lines.override(values, override)
    faults = lines.faults + list(_misplaced(values, lines))
    try:
        config = Config.model_validate(_inherit(values))
    except ValidationError as error:
        # each is looked for among all keys
        first = itertools.islice(filter(_own, error.errors()), MOST_FAULTS)
        faults += [lines.fault(item["loc"], _explain(item, values)) for item in first]
    if faults:
        raise UsageError(
            "\n".join(dict.fromkeys(faults)), hint="slmctl config schema describes every key"
        )
    root = root.resolve()
    return _settle(_absolute(config, root), root)


def _misplaced(values: Mapping[str, Any], lines: StrictYaml) -> Iterator[str]:
    for section, key in inherited_keys():
        if isinstance(values.get(section), dict) and key in values[section]:
            yield lines.fault(
                (section, key), f"'{key}' belongs at the top of the file, not in '{section}'"
            )


def _inherit(values: dict[str, Any]) -> dict[str, Any]:
    """Copy inherited keys from the top of the file into each section; an
    empty section becomes an empty mapping.
    """
    values = {
        key: {} if value is None and key in Config.model_fields else value
        for key, value in values.items()
    }
    for section, key in inherited_keys():
        may_be_left_out = Config.model_fields[section].default is None
        inner = values.get(section) if may_be_left_out else values.setdefault(section, {})
        if isinstance(inner, dict) and key in values:
            values[section] = {**inner, key: values[key]}
    return values


def _own(item: Any) -> bool:
    """False for a fault in an inherited key, since pydantic
    reports it at the top of the file too.
    """
    loc = item["loc"]
    return not (len(loc) > 1 and (loc[0], loc[1]) in set(inherited_keys()))


def below(root: Path, path: Path) -> Path:
    """`path`, relative to `root` unless it is absolute; `~` is the home folder.

    Raises:
        UsageError: The home folder of `~`, or that of the user in `~user`, is not known.
    """
    try:
        return root / path.expanduser()
    except RuntimeError:
        raise UsageError(
            f"{path}: the home folder is not known", hint="write the path without ~, or set HOME"
        ) from None


def _absolute(value: Any, root: Path) -> Any:
    """A section, or a value in one, with absolute paths."""
    if isinstance(value, BaseModel):
        changes = {}
        for name, field in type(value).model_fields.items():
            before = getattr(value, name)
            after = _absolute(before, root)
            # `base`
            if isinstance(before, str) and any(isinstance(mark, Content) for mark in marks(field)):
                after = (
                    str(below(root, Path(before))) if before and not is_remote(before) else before
                )
            # model_copy marks updated fields as set, and `model_fields_set` is read later
            if after != before:
                changes[name] = after
        return value.model_copy(update=changes)
    if isinstance(value, list):
        return [_absolute(item, root) for item in value]
    if isinstance(value, dict):
        return {key: _absolute(item, root) for key, item in value.items()}
    return below(root, value) if isinstance(value, Path) else value


def _settle(config: Config, root: Path) -> Config:
    """Replace `auto`, omitted shares and omitted paths by their values here, for recipes."""
    chosen = config.finetune.model_copy(
        update={"matmul_dtype": resolve_matmul_dtype(config.finetune.matmul_dtype)}
    )
    prepare, sensitive = config.prepare, config.prepare.sensitive
    splits = prepare.splits.beside({source.split for source in prepare.sources})
    if splits != prepare.splits:
        prepare = prepare.model_copy(update={"splits": splits})
    if sensitive.pseudonym_key is None and "pseudonymise" in sensitive.actions.values():
        sensitive = sensitive.model_copy(update={"pseudonym_key": root / PSEUDONYM_KEY})
        prepare = prepare.model_copy(update={"sensitive": sensitive})
    return config.model_copy(update={"finetune": chosen, "prepare": prepare})


def resolve_matmul_dtype(dtype: str) -> str:
    """`finetune.matmul_dtype` on this machine: `auto` becomes `bfloat16`
    if the CPU supports it, else `float32`.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & cpu_flags() else "float32"


_REPLACED = {
    "evaluate.second_opinion": "a section 'encode' adds the encoder where it helps, by 'sum.floor'"
}


def _explain(item: Any, values: Mapping[str, Any]) -> str:
    """A pydantic error as a sentence for the author of the file."""
    loc = item["loc"]
    kind = item["type"]
    context = item.get("ctx", {})
    value = _value_at(values, loc)
    shown = mask(repr(value))
    if kind == "extra_forbidden":
        if replacement := _REPLACED.get(".".join(map(str, loc))):
            return f"is gone since 0.1.0: {replacement}"
        if len(loc) == 1 and (within := list(_paths(Config, str(loc[0])))):
            return f"unknown key; did you mean {' or '.join(within[:3])}?"
        near = difflib.get_close_matches(str(loc[-1]), _keys_at(loc[:-1]), n=1, cutoff=0.6)
        if near:
            return f"unknown key; did you mean '{near[0]}'?"
        return f"unknown key; known here: {', '.join(_keys_at(loc[:-1]))}"
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(context.get("error", item["msg"]))
    if kind == "literal_error":
        near = difflib.get_close_matches(
            str(value), re.findall(r"'([^']*)'", context["expected"]), n=1
        )
        more = f"; did you mean '{near[0]}'?" if near else ""
        return f"found {shown}, expected {context['expected']}{more}"
    if kind == "too_short":
        return "must not be empty"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"found {shown}: {message}" if value is not None else message


def _value_at(values: Any, loc: Sequence[int | str]) -> Any:
    for key in loc:
        inside = (
            key in values
            if isinstance(values, dict)
            else isinstance(values, list) and key in range(len(values))
        )
        if inside:
            values = values[key]
        elif isinstance(values, dict | list):
            return None
    return getattr(values, "raw", values)


def _paths(model: type[BaseModel], name: str, prefix: str = "") -> Iterator[str]:
    """The dotted paths of all keys with this name within sections, such as `finetune.epochs`."""
    for key, field in model.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            yield from _paths(inner, name, f"{prefix}{key}.")
        elif prefix and name == (field.alias or key) and not is_inherited(field):
            yield prefix + name


def _keys_at(loc: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = Config
    for key in loc:
        if isinstance(key, str) and key in model.model_fields:
            annotation = model.model_fields[key].annotation
            model = section_in(annotation) or named_section_in(annotation) or model
    return [
        field.alias or name for name, field in model.model_fields.items() if not is_inherited(field)
    ]
