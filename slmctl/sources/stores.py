"""Folders and buckets as stores of files: listed by a pattern, brought here, and put there whole or not at all.

An address is a path, or `s3://BUCKET/PREFIX`. A bucket is asked through pyarrow's file system, whose sockets are those
of native code: its host is named and counted among the hosts contacted, and its bytes are counted by nobody.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from slmctl.artifacts import atomic
from slmctl.errors import DataError, MissingError, NetworkError, UsageError
from slmctl.installation import pip_line
from slmctl.network import guard
from slmctl.network.credentials import secret
from slmctl.sources.rows.files import FORMATS, MAX_FILES, files_of, format_of, is_several, pattern_root

S3 = "s3://"
SMALL = 1 << 20  # bytes of a marker, at most
PIECE = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """A file in a store: its name there, its size in bytes, and a text that differs after it was written again."""

    name: str
    size: int
    version: str


class Store(Protocol):
    """A place of files, whose names are relative to it, with slashes."""

    @property
    def title(self) -> str:
        """Its address, as the user named it."""

    def local(self, name: str) -> Path | None:
        """The path of a file on this machine; None where it is not on this machine."""

    def state(self, name: str) -> StoredFile | None:
        """A file there; None where there is none."""

    def fetch(self, file: StoredFile, path: Path) -> None:
        """Bring a file here.

        Raises:
            DataError: It is not what was listed.
        """

    def put(self, name: str, path: Path) -> None:
        """Send a file; it has its name there when all of it is there."""

    def opened(self, file: StoredFile) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file there, to read parts of it."""


def is_store(address: str) -> bool:
    """True for an address in a bucket, a folder, and a pattern of files."""
    return "://" in address or address.endswith("/") or is_several(Path(address))


@contextlib.contextmanager
def listed(address: str, format: str | None = None) -> Iterator[tuple[Store, list[StoredFile]]]:
    """The store of an address with its files: those of a folder or prefix, those that a pattern matches, or one.

    Names begin at the folder, or at the part of the pattern that is no pattern. Names with a part that begins with a
    dot or an underscore are left out, and in a folder those of unknown kinds.

    Raises:
        DataError: There are none, or too many.
        NetworkError: The bucket cannot be reached, or refuses.
        UsageError: The address is malformed, or its pattern matches nothing.
    """
    if "://" in address:
        with _bucket(address, "reading") as (bucket, pattern):
            yield bucket.matching(pattern, format)
        return
    path = Path(address)
    folder = FolderStore(path if path.is_dir() else pattern_root(path), address)
    yield folder, [state for name, _ in files_of(path, format) if (state := folder.state(name)) is not None]


@contextlib.contextmanager
def writable(address: str) -> Iterator[Store]:
    """The store of an address that files are to be put into.

    Raises:
        NetworkError: The bucket cannot be reached, or refuses.
        UsageError: The address names a file, or is malformed.
    """
    suffixes = PurePosixPath(address.rstrip("/")).suffixes[-2:]
    if not address.endswith("/") and not Path(address).is_dir() and {*suffixes} & {*FORMATS, ".gz"}:
        raise UsageError(
            f"the answers to several files go to a folder, and {address} names a file",
            hint=f"--output {address.rpartition('/')[0]}/",
        )
    if "://" in address:
        with _bucket(address, "writing") as (bucket, prefix):
            if glob.has_magic(prefix):
                raise UsageError(
                    f"{address} is a pattern, and answers go to a folder", hint="--output s3://BUCKET/out/"
                )
            yield bucket.below(prefix.strip("/"))
        return
    folder = Path(address)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{address} is not a folder", hint="--output FOLDER/")
    yield FolderStore(folder, address)


class FolderStore:
    """A folder of this machine as a store."""

    def __init__(self, root: Path, title: str) -> None:
        self.root, self.title = root.resolve(), title

    def local(self, name: str) -> Path | None:
        return self.root / name

    def state(self, name: str) -> StoredFile | None:
        try:
            now = (self.root / name).stat()
        except FileNotFoundError:
            return None
        return StoredFile(name, now.st_size, f"{now.st_mtime_ns}")

    def fetch(self, file: StoredFile, path: Path) -> None:
        shutil.copyfile(self.root / file.name, path)
        _require_same(file, path.stat().st_size, self.state(file.name))

    def put(self, name: str, path: Path) -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(target) as draft:
            shutil.copyfile(path, draft)

    def opened(self, file: StoredFile) -> contextlib.AbstractContextManager[IO[bytes]]:
        return (self.root / file.name).open("rb")


class BucketStore:
    """A prefix of a bucket as a store, through pyarrow's file system.

    Args:
        files: pyarrow's file system.
        bucket: The bucket's name.
        prefix: The prefix in it, without slashes at its ends; empty for all of the bucket.
    """

    def __init__(self, files: Any, bucket: str, prefix: str = "") -> None:
        self._files, self.bucket, self.prefix = files, bucket, prefix
        self.title = f"{S3}{bucket}/{prefix}".rstrip("/")

    def below(self, prefix: str) -> BucketStore:
        """A prefix of this bucket."""
        return BucketStore(self._files, self.bucket, prefix)

    def matching(self, pattern: str, format: str | None) -> tuple[BucketStore, list[StoredFile]]:
        """The prefix before the first part of a pattern, and the files there that it matches; see `listed`."""
        parts = [part for part in pattern.split("/") if part]
        plain = next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts))
        if plain == len(parts) and parts and (parent := self.below("/".join(parts[:-1]))).state(parts[-1]):
            states = [parent.state(parts[-1])]
            return parent, [state for state in states if state is not None]
        root, wanted_parts = self.below("/".join(parts[:plain])), parts[plain:]
        entries = root._below(recursive=not wanted_parts or len(wanted_parts) > 1 or "**" in wanted_parts)
        files = []
        for entry in entries:
            names = entry.name.split("/")
            hidden = any(name.startswith((".", "_")) for name in names)
            fits = _matches(names, wanted_parts) if wanted_parts else format is not None or _is_known(entry.name)
            if fits and not hidden:
                files.append(entry)
        if len(files) > MAX_FILES:
            raise DataError(f"{root.title} has more than {MAX_FILES:,} such files", hint="name fewer by a pattern")
        if not files:
            raise DataError(f"{S3}{self.bucket}/{pattern} holds no data file", hint=f"known: {', '.join(FORMATS)}")
        return root, sorted(files, key=lambda file: file.name)

    def local(self, name: str) -> Path | None:
        return None

    def state(self, name: str) -> StoredFile | None:
        with _spoken(self.title):
            entry = self._files.get_file_info(self._path(name))
        return _stored(name, entry) if entry.is_file else None

    def fetch(self, file: StoredFile, path: Path) -> None:
        with (
            _spoken(self.title),
            self._files.open_input_stream(self._path(file.name)) as stream,
            path.open("wb") as out,
        ):
            shutil.copyfileobj(stream, out, PIECE)
        _require_same(file, path.stat().st_size, self.state(file.name))

    def put(self, name: str, path: Path) -> None:
        # the object appears when its stream is closed, and a process that is killed closes none
        with (
            path.open("rb") as source,
            _spoken(self.title),
            self._files.open_output_stream(self._path(name)) as stream,
        ):
            shutil.copyfileobj(source, stream, PIECE)

    @contextlib.contextmanager
    def opened(self, file: StoredFile) -> Iterator[IO[bytes]]:
        with _spoken(self.title), self._files.open_input_file(self._path(file.name)) as stream:
            yield stream

    def _path(self, name: str) -> str:
        return "/".join(filter(None, (self.bucket, self.prefix, name)))

    def _below(self, *, recursive: bool) -> Iterator[StoredFile]:
        from pyarrow import fs

        with _spoken(self.title):
            selector = fs.FileSelector(self._path(""), recursive=recursive, allow_not_found=True)
            entries = self._files.get_file_info(selector)
        start = len(self._path("")) + 1
        yield from (_stored(entry.path[start:], entry) for entry in entries if entry.is_file)


def _stored(name: str, entry: Any) -> StoredFile:
    return StoredFile(name, int(entry.size or 0), f"{entry.mtime_ns}")


def _require_same(listed_file: StoredFile, size: int, now: StoredFile | None) -> None:
    if now != listed_file or size != listed_file.size:
        raise DataError(f"{listed_file.name} has changed while it was read", hint="run it again when it is complete")


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """True if the parts of a name fit those of a pattern; `**` stands for any number of parts, also for none."""
    if not pattern or not names:
        return not names and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _matches(names, pattern[1:]) or _matches(names[1:], pattern)
    return fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _is_known(name: str) -> bool:
    try:
        return bool(format_of(Path(name)))
    except DataError:
        return False


# S3


@contextlib.contextmanager
def _bucket(address: str, purpose: str) -> Iterator[tuple[BucketStore, str]]:
    """The bucket of an address, and the rest of the address, with the network open for its host."""
    if not address.startswith(S3):
        raise UsageError(f"'{address}' names no store of files", hint="a path, or s3://BUCKET/PREFIX")
    name, _, rest = address.removeprefix(S3).partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name):
        raise UsageError(f"'{address}' names no bucket", hint="s3://BUCKET/PREFIX")
    try:
        from pyarrow import fs
    except ModuleNotFoundError:
        raise MissingError("s3:// needs the package 'pyarrow', which is not installed", hint=pip_line("data")) from None
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    url = urlsplit(endpoint or f"https://{name}.s3.{region}.amazonaws.com")
    if endpoint and (url.username or not url.hostname or url.scheme not in ("http", "https") or url.path.strip("/")):
        raise UsageError("AWS_ENDPOINT_URL is no address such as https://storage.example", hint="without a password")
    hosts = guard.on_the_way(url.geturl())
    with guard.network(f"{purpose} {S3}{name}", hosts):
        remote = {host for host in hosts if not guard.is_local(host)}
        guard.contacted.update(remote)
        guard.uncounted.update(remote)  # its sockets are those of native code
        key, hidden = secret("AWS_ACCESS_KEY_ID"), secret("AWS_SECRET_ACCESS_KEY")
        signed: dict[str, Any] = {"anonymous": True}  # and never the credentials of a file or host
        if key and hidden:
            signed = {"access_key": key, "secret_key": hidden, "session_token": secret("AWS_SESSION_TOKEN")}
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # else the library asks the host for a region
        with _spoken(f"{S3}{name}"):
            files = fs.S3FileSystem(
                **signed, region=region, scheme=url.scheme, endpoint_override=url.netloc if endpoint else None,
                proxy_options=_proxy(url.scheme, url.hostname or ""),
            )  # fmt: skip
        yield BucketStore(files, name), rest


def _proxy(scheme: str, host: str) -> str | None:
    """The proxy that this machine is told to ask, which the library does not look for."""
    proxies = {} if proxy_bypass(host) else getproxies()
    return proxies.get(scheme) or proxies.get("all")


@contextlib.contextmanager
def _spoken(what: str) -> Iterator[None]:
    """Turn what pyarrow raises into a sentence; its own words can hold the key's id."""
    try:
        yield
    except OSError as error:
        match = re.search(r"AWS Error (\w+) during (\w+)", str(error))
        if match is None and error.errno is not None:
            raise  # of this machine's disk
        reason = f"{match[2]}: {match[1]}" if match else type(error).__name__
        raise NetworkError(
            f"{what} refused or cannot be reached ({reason})",
            hint="AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, and that the bucket exists",
        ) from None
