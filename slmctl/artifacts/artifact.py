"""Artifacts: folders with a manifest of their kind, their recipe and their files.

    runs/<noun>/<recipe12>/manifest.json

The manifest is written last and the folder is renamed into place, so a folder with a manifest is
whole. Two hashes name two things: `recipe_id` says what was asked (schema, stage, config, digests
of the inputs), `digest` says what came out (path, size and sha256 of every file). Neither holds a
path, a date or a host, so a folder that is moved or mailed still verifies and is still reused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmctl.artifacts import atomic, bounded_json
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import IntegrityError

SCHEMA = 1
MANIFEST = "manifest.json"
SHORT_ID = 8  # characters of a recipe id, wherever people read or type one
SIGNATURE = "model.sig"  # signs the manifest of a release, so the manifest cannot list it


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact: path inside the folder, size in bytes,
    sha256 of the content as hex digits.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Kind, recipe and files of an artifact, as its manifest.json holds them."""

    kind: str
    stage: str
    digest: str
    recipe_id: str
    config: JsonObject
    inputs: dict[str, str | list[str]]
    files: tuple[FileEntry, ...]
    metrics: JsonObject = field(default_factory=dict)
    environment: JsonObject = field(default_factory=dict)
    started: str = ""
    seconds: float = 0.0
    schema: int = SCHEMA

    def to_bytes(self) -> bytes:
        """The canonical JSON of this manifest, with its own hash in the field `self`."""
        fields = dataclasses.asdict(self)
        return canonical(fields | {"self": sha256_bytes(canonical(fields))})

    @property
    def short_id(self) -> str:
        """The first SHORT_ID characters of the recipe id, or of the digest
        for a foreign model, which has no recipe.
        """
        return (self.recipe_id or self.digest).removeprefix("sha256:")[:SHORT_ID]

    @property
    def is_release(self) -> bool:
        return self.kind == "published"

    @property
    def parents(self) -> list[tuple[str, str]]:
        """(role, digest) of every input."""
        listed = (
            (role, value if isinstance(value, list) else [value])
            for role, value in self.inputs.items()
        )
        return [(role, digest) for role, digests in listed for digest in digests]

    @classmethod
    def from_bytes(cls, raw: bytes, *, where: str) -> Manifest:
        """Read a manifest and prove that no byte of it has changed.

        Raises:
            IntegrityError: It is not canonical JSON, its own hash or its digest differs, a field
                has another type, or its schema is newer.
        """
        fields = bounded_json.parse(raw, where=where)
        if isinstance(fields.get("schema"), int) and fields["schema"] > SCHEMA:
            raise IntegrityError(
                f"{where} has schema {fields['schema']}, and this slmctl reads up to {SCHEMA}",
                hint="pip install --upgrade slmctl",
            )
        own = fields.get("self")
        # json's fast C encoder cannot indent, so both texts are compared without line breaks and
        # indents
        try:
            flat = json.dumps(
                fields, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ": ")
            )
            same = flat.encode() == b"".join(map(bytes.lstrip, raw.split(b"\n")))
            same = same and own == sha256_bytes(
                raw.replace(f' "self": "{own}",\n'.encode(), b"", 1)
            )
        except (
            ValueError
        ):  # NaN, an infinity or a lone surrogate: json reads these, but slmctl never writes them
            same = False
        if not same:
            raise IntegrityError(f"{where} has changed since it was written")
        del fields["self"]
        try:
            files = tuple(FileEntry(**entry) for entry in fields.pop("files"))
            manifest = cls(files=files, **fields)
        except (TypeError, KeyError) as error:
            raise IntegrityError(f"{where} does not hold a manifest: {error}") from None
        if fault := _wrong_type(manifest):
            raise IntegrityError(f"{where} does not hold a manifest: {fault}")
        if digest_of(files) != manifest.digest:
            raise IntegrityError(f"{where} has a digest that is not the one of its files")
        return manifest

    @classmethod
    def read(cls, folder: Path, *, where: str = "") -> Manifest:
        """The manifest of a folder.

        Raises:
            FileNotFoundError: The folder has no manifest.
            IntegrityError: See `from_bytes`; or the manifest is not a plain file.
        """
        return cls.from_bytes(
            bounded_json.read_bytes(folder / MANIFEST), where=where or str(folder / MANIFEST)
        )


@dataclass(frozen=True)
class Artifact:
    """A finished artifact folder, or a foreign model treated as one
    (a bare `.gguf` file, an HF folder).
    """

    path: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def is_release(self) -> bool:
        return self.manifest.is_release

    @property
    def is_base(self) -> bool:
        return self.kind == "base"

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def short_id(self) -> str:
        return self.manifest.short_id

    @property
    def metrics(self) -> JsonObject:
        return self.manifest.metrics

    def file(self, name: str) -> Path:
        """The path of one file of this artifact.

        Raises:
            IntegrityError: The artifact has no such file.
        """
        if not any(entry.path == name for entry in self.manifest.files):
            raise IntegrityError(f"{self.path} ({self.kind}) has no file '{name}'")
        return self.path / name if self.path.is_dir() else self.path

    def files(self, suffix: str) -> list[FileEntry]:
        """The entries of files with this suffix, in order."""
        return [entry for entry in self.manifest.files if entry.path.endswith(suffix)]


def canonical(value: object) -> bytes:
    """Canonical JSON as UTF-8: equal values give equal bytes.

    Raises:
        ValueError: The value holds NaN or an infinity.
    """
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def sha256_bytes(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def has_content(path: Path, sha256: str) -> bool:
    """True for an existing file with this sha256 (hex digits, without the prefix `sha256:`)."""
    return path.is_file() and sha256_file(path) == "sha256:" + sha256


def fingerprint(path: Path) -> str:
    """`sha256:…` of a file's content, or of a folder's names and contents."""
    return digest_of(scan(path)) if path.is_dir() else sha256_file(path)


def state(*paths: Path) -> tuple[tuple[int, ...], ...]:
    """Numbers of files, and of those below folders, that differ after one was replaced, rewritten,
    cut or appended to.

    A file that is changed twice within one tick of the file system's clock may have the same ones.
    """
    files = [file for path in paths for file in (_walk(path) if path.is_dir() else [path])]
    now = [file.stat() for file in files if file.exists()]
    return tuple(
        (each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in now
    )


def scan(folder: Path) -> tuple[FileEntry, ...]:
    """Hash every file below `folder` except the manifest, sorted by path.

    Raises:
        IntegrityError: An entry is neither a folder nor a plain file. The target of a link could
            change unnoticed.
    """
    entries = []
    for path in _walk(folder):
        if not _is_plain(path):
            raise IntegrityError(f"{path} is not a plain file")
        entries.append(_entry(path, path.relative_to(folder).as_posix()))
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _entry(path: Path, name: str) -> FileEntry:
    return FileEntry(name, path.stat().st_size, sha256_file(path).removeprefix("sha256:"))


def digest_of(files: tuple[FileEntry, ...]) -> str:
    """The digest of an artifact: the hash of path, size and sha256 of every file."""
    return sha256_bytes(canonical([[entry.path, entry.size, entry.sha256] for entry in files]))


def recipe_of(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str | list[str]]) -> str:
    """The recipe id: the hash of schema, stage with its version,
    resolved config and input digests.
    """
    return sha256_bytes(canonical([SCHEMA, stage, config, inputs]))


def load(path: Path) -> Artifact:
    """Open a finished artifact; its names and sizes are checked, its hashes are not (see `verify`).

    Raises:
        IntegrityError: The folder is missing, unfinished, or not what its manifest says.
    """
    try:
        artifact = Artifact(path, Manifest.read(path))
    except FileNotFoundError:
        state = "unfinished: it has no manifest" if path.is_dir() else "missing"
        raise IntegrityError(f"artifact {path} is {state}") from None
    faults = _compare(artifact, hashes=False)
    if faults:
        raise IntegrityError(
            f"artifact {path} is damaged: {'; '.join(faults)}",
            hint=f"remove the folder and run the stage again: rm -r {path}",
        )
    return artifact


def verify(artifact: Artifact) -> list[str]:
    """Hash every file again; returns a phrase for each that is extra, missing
    or changed, none for a whole artifact.
    """
    folder = artifact.path
    if not folder.is_dir():  # a foreign file: compared with its hash at the time when it was opened
        changed = sha256_file(folder) != "sha256:" + artifact.manifest.files[0].sha256
        return [f"changed: {folder.name}"] if changed else []
    return _compare(artifact, hashes=True)


def verify_folder(folder: Path) -> list[str]:
    """`verify` for a folder that may have a damaged manifest."""
    try:
        return verify(Artifact(folder, Manifest.read(folder, where=MANIFEST)))
    except FileNotFoundError:
        return [f"missing: {MANIFEST}"]
    except IntegrityError as error:
        return [f"changed: {MANIFEST} ({error.message})"]


def foreign(path: Path, kind: str) -> Artifact:
    """Wrap a model that slmctl did not make, so that stages can read it like their own."""
    files = scan(path) if path.is_dir() else (_entry(path, path.name),)
    return Artifact(path, Manifest(kind, "foreign/1", digest_of(files), "", {}, {}, files))


def _walk(folder: Path) -> Iterator[Path]:
    """Every file and link below `folder`, at any depth, except the manifest."""
    for root, folders, names in os.walk(folder):
        here = Path(root)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in [*names, *links]:
            if not (here == folder and name == MANIFEST):
                yield here / name


def _compare(artifact: Artifact, *, hashes: bool) -> list[str]:
    """Differences between a manifest and the files on disk, a phrase for each file."""
    faults, present = (
        [],
        {path.relative_to(artifact.path).as_posix(): path for path in _walk(artifact.path)},
    )
    expected = {entry.path: entry for entry in artifact.manifest.files}
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            faults.append(f"missing: {name}")
        elif name not in expected:
            if not (name == SIGNATURE and artifact.is_release and _is_plain(present[name])):
                faults.append(f"extra: {name}")
        elif not _is_plain(present[name]):
            faults.append(f"changed: {name} (not a plain file)")
        elif present[name].stat().st_size != expected[name].size:
            faults.append(f"changed: {name} (size)")
        elif hashes and sha256_file(present[name]) != "sha256:" + expected[name].sha256:
            faults.append(f"changed: {name}")
    return faults


def _wrong_type(manifest: Manifest) -> str:
    """A phrase about the first field of a manifest that has a
    wrong type; '' where all are right.
    """
    for entry in manifest.files:
        if not (
            isinstance(entry.path, str) and isinstance(entry.sha256, str) and _is_count(entry.size)
        ):
            return f"a file is {dataclasses.asdict(entry)}"
    for name, kind in (*_TEXTS, *_TABLES):
        if not isinstance(getattr(manifest, name), kind):
            return f"'{name}' is not a {'text' if kind is str else 'table'}"
    for role, value in manifest.inputs.items():
        if not all(
            isinstance(digest, str) for digest in (value if isinstance(value, list) else [value])
        ):
            return f"the input '{role}' is not a digest or a list of digests"
    seconds = manifest.seconds
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not _is_count(manifest.schema)
    ):
        return "'seconds' or 'schema' is not a number"
    for name, kinds in _METRICS.items():
        if name in manifest.metrics and not isinstance(manifest.metrics[name], kinds):
            return f"the metric '{name}' is a {type(manifest.metrics[name]).__name__}"
    return ""


_TEXTS = tuple((name, str) for name in ("kind", "stage", "digest", "recipe_id", "started"))
_TABLES = tuple((name, dict) for name in ("config", "inputs", "metrics", "environment"))
# Metrics that commands read from artifacts of any kind, with their types.
_METRICS: dict[str, type | tuple[type, ...]] = {
    "project": str,
    "version": str,
    "license": (str, type(None)),
    "files": dict,
    "sources": list,
    "models": (dict, list),
    "baselines": (dict, list),
    "source_sha256": dict,
    "sum": dict,
}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


@contextlib.contextmanager
def draft(final: Path) -> Iterator[Path]:
    """Yield an empty folder to fill and `seal`; it is renamed to `final` if the block raises
    nothing.

    An unfinished folder (without a manifest) at `final` is replaced, a finished artifact never. See
    `atomic.folder`.
    """
    with atomic.folder(final, replace=not (final / MANIFEST).exists()) as place:
        yield place


def seal(
    place: Path, final: Path, make: Callable[[tuple[FileEntry, ...], str], Manifest]
) -> Artifact:
    """Write the manifest of a filled draft, as its last file; returns the artifact with its later
    path.

    Args:
        final: Path of the folder after its block has ended.
        make: Returns the manifest for these files and their digest.
    """
    files = scan(place)
    for entry in files:
        atomic.sync(place / entry.path)
    manifest = make(files, digest_of(files))
    # so that a draft never holds a partial manifest
    atomic.write(place / MANIFEST, manifest.to_bytes())
    return Artifact(final, manifest)


def require_whole(source: Artifact | Path, *, hint: str = "") -> None:
    """Read every byte of an artifact, or of a folder that should be one, before it is used.

    Args:
        hint: Remedy in the error; by default, to remove the folder and run its stage again.

    Raises:
        IntegrityError: Files differ from the manifest.
    """
    path, kind = (
        (source.path, f" ({source.kind})") if isinstance(source, Artifact) else (source, "")
    )
    faults = verify(source) if isinstance(source, Artifact) else verify_folder(source)
    if faults:
        raise IntegrityError(
            f"{path}{kind} is damaged: {'; '.join(faults)}",
            hint=hint or f"remove it and run its stage again: rm -r {path}",
        )
