"""The files of a source: one file, the files of a folder, or the files that
match a pattern; and the format of each.
"""

from __future__ import annotations

import glob
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from slmctl.errors import DataError, UsageError

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".xlsb": "xlsx",
    ".xls": "xlsx",
    ".ods": "ods",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".db": "sqlite",
}
# text formats: they have an encoding, and may be packed with gzip
TEXTS = ("csv", "tsv", "jsonl", "json")
MAX_FILES = 10_000  # of one source
_MAX_ENTRIES = 50_000  # files and folders that are listed to find them


def format_of(path: Path) -> str:
    """The format of a file, by its name: one of the values of FORMATS.

    Raises:
        DataError: The name ends in no known suffix.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        suffix = Path(path.stem).suffix.lower()
        if FORMATS.get(suffix) in TEXTS:
            return FORMATS[suffix]
        suffix += ".gz"
    if suffix not in FORMATS:
        hint = f"known: {', '.join(FORMATS)}; texts also as .gz"
        raise DataError(f"{path.name} has an unknown kind '{suffix}'", hint=hint)
    return FORMATS[suffix]


def require_file(path: Path) -> None:
    """Refuse a path that is not a regular file: reading a pipe would block, and reading a device
    would not end.

    Raises:
        DataError: The path is not a regular file, or does not exist.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path} is not a file: {(error.strerror or str(error)).lower()}") from None
    except ValueError:  # a NUL in a name
        raise DataError(f"{str(path)!r} is not a file: its name holds a NUL") from None
    if stat.S_ISREG(mode):
        return
    what = (
        "a folder"
        if stat.S_ISDIR(mode)
        else "a pipe"
        if stat.S_ISFIFO(mode)
        else "a device or socket"
    )
    raise DataError(
        f"{path} is not a file: it is {what}", hint="write the rows to a file first: cat > rows.csv"
    )


def is_several(path: Path) -> bool:
    """True for a folder, and for a pattern such as `exports/*.parquet`,
    unless a file has exactly that name.
    """
    try:
        pattern = path.relative_to(_existing(path))
        return path.is_dir() or (glob.has_magic(str(pattern)) and not os.path.lexists(path))
    except (OSError, ValueError):
        return False


def _existing(path: Path) -> Path:
    """The longest beginning of a path that exists, which is no part of
    a pattern: `p [1]` of `p [1]/*.csv`.
    """
    return next((each for each in path.parents if each.exists()), path)


def files_below(path: Path, *, skipped: bool = False) -> tuple[Path, dict[str, Path]]:
    """Returns (the folder, the files in it at any depth or that match the pattern, by name).

    Names are relative to the folder, or to the part of the pattern that exists. Skipped, or with
    `skipped` alone given, are files with a dot or an underscore at the start of any part of the
    name, and those of Office beside an open file.

    Raises:
        DataError: There are too many, or a folder cannot be read.
    """
    is_folder = path.is_dir()
    root = path if is_folder else _existing(path)
    pattern = Path(glob.escape(str(root))) / path.relative_to(root)
    # pathlib's `**` follows no link to a folder
    paths = _below(path) if is_folder else map(Path, glob.iglob(str(pattern), recursive=True))  # noqa: PTH207
    seen = list(itertools.islice(paths, _MAX_ENTRIES + 1))
    if len(seen) > _MAX_ENTRIES:
        raise _too_many(path)
    inside = {file: file.relative_to(root) for file in seen if file.is_file()}
    return root, {
        name.as_posix(): file
        for file, name in inside.items()
        if any(part.startswith((".", "_", "~$")) for part in name.parts) is skipped
    }


def _too_many(path: Path) -> DataError:
    return DataError(
        f"{path} has more than {MAX_FILES:,} files",
        hint="join them, or name fewer: path: FOLDER/*.csv",
    )


def files_of(path: Path, format: str | None = None) -> list[tuple[str, Path]]:
    """(name, path) of each file in a folder, at any depth, or of each match of a pattern; sorted by
    name.

    See `files_below`; skipped are in a folder files of unknown kinds, too.

    Raises:
        DataError: The folder has no data file, or there are too many files or several kinds.
        UsageError: The pattern matches nothing.
    """
    is_folder = path.is_dir()
    root, files = files_below(path)
    kinds: dict[str, str | None] = {
        name: format or known_format(file) for name, file in files.items()
    }
    names = sorted(name for name, kind in kinds.items() if kind or not is_folder)
    if len(names) > MAX_FILES:
        raise _too_many(path)
    if not names:
        if is_folder:
            raise DataError(
                f"{path} is a folder without a data file", hint=f"known: {', '.join(FORMATS)}"
            )
        raise UsageError(
            f"{path} matches no file", hint="paths are relative to the folder of slmctl.yaml"
        )
    for name in names:
        if kinds[name] is None:
            format_of(files[name])  # says which kinds are known
    counted = Counter(kinds[name] for name in names).most_common()
    if len(counted) > 1:
        first = next(name for name in names if kinds[name] == counted[0][0])
        pattern = f"{root.name}/{'**/' if '/' in first else ''}*{Path(first).suffix}"
        raise DataError(
            f"{path} has files of several kinds: "
            f"{', '.join(f'{count} {kind}' for kind, count in counted)}",
            hint=f"name those of one, such as path: {pattern}",
        )
    return [(name, files[name]) for name in names]


def known_format(path: Path) -> str | None:
    """The format of a file of rows, by its name; None for another file."""
    try:
        return format_of(path)
    except DataError:
        return None


def _below(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None

    for place, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        yield from (Path(place) / name for name in [*folders, *names])
