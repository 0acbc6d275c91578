"""Queries, documents and data sets of the hub -> local copies, in `runs/.sources/`.

All later steps read local files and hash their content. The name of a copy is a hash of the source
without passwords. The two parts of a reviewed file are there too (`reviewed.py`).
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import canonical
from slmctl.config import Source, SourceLimits
from slmctl.errors import DataError, IntegrityError, SlmctlError, UsageError
from slmctl.network import hub
from slmctl.network.credentials import mask
from slmctl.sources import bounded_copy, reviewed, sql
from slmctl.sources.documents import folder as folder_of_documents
from slmctl.sources.rows import files_of, form_of, format_of, is_several, require_file


def gather(
    sources: Sequence[Source], folder: Path, limits: SourceLimits, *, root: Path | None = None
) -> list[Source]:
    """Copy every source that is not a file into `folder`; each host is printed before it is
    contacted.

    A data set of the hub at a pinned commit never changes, so it is fetched once. The caller holds
    a lock on `folder`. The path of an SQLite file is relative to `root`, by default the project's
    folder.

    Returns:
        The sources as local files; a data set, a folder or a workbook may become several.

    Raises:
        DataError: A query failed, a source reached a limit, or documents changed while they were
            read.
        IntegrityError: The hash of a file differs from the hub's.
        NetworkError: A host could not be reached.
        UsageError: A data set is not pinned, or has no such data file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        if source.sql is not None:
            console.say(f"  asking {sql.place(source.sql.url)}")
            with atomic.file(copy_of(source, folder), 0o600) as draft, draft.open("wb") as stream:
                count = sql.write_rows(
                    source.sql, stream, root=root or folder.parents[1], limits=limits
                )
            console.detail(f"  {count} rows")
        elif (
            folder_of_documents.is_documents(source)
            and not (copy := copy_of(source, folder)).exists()
        ):
            with atomic.file(copy, 0o600) as draft, draft.open("wb") as stream:
                folder_of_documents.write_rows(source, stream, limits)
                if copy_of(source, folder) != copy:  # they changed before they were read
                    raise folder_of_documents.changed(source)
        elif source.hf is not None and not copy_of(source, folder).exists():
            _fetch(source.hf, source.file, copy_of(source, folder), limits)
    return gathered(sources, folder)


def gathered(sources: Sequence[Source], folder: Path) -> list[Source]:
    """The sources as local files, among them the copies that `gather` made; no host is contacted.

    Raises:
        IntegrityError: A source that is not a file has not been copied.
        DataError: A path is not a file, or a folder has no data files or several kinds of them.
        UsageError: A pattern matches no file.
    """
    return [local for source in sources for local in _local(source, folder)]


def is_file(source: Source) -> bool:
    """True for a source with a path, even if nothing exists there;
    false for documents, which are read once.
    """
    return source.path is not None and not folder_of_documents.is_documents(source)


def host_of(source: Source, folder: Path) -> str:
    """The host that `gather` will contact for a source; '' for a file, or a
    pinned data set that is already copied.
    """
    if source.sql is not None:
        return sql.host(source.sql.url)
    return "the hub" if source.hf is not None and not copy_of(source, folder).exists() else ""


def _local(source: Source, folder: Path) -> Iterator[Source]:
    if is_file(source):
        yield from _files(source, folder)
        return
    copy = copy_of(source, folder)
    if not copy.exists():
        raise IntegrityError(
            f"there is no copy of the source {_shown(source)}", hint="slmctl prepare"
        )
    if source.path is not None:
        yield source.copied(copy)
        return
    if source.hf is None:
        yield from _sheets(
            source.model_copy(update={"path": copy, "sql": None}), copy, source.name, folder
        )
        return
    title = source.name or source.hf.partition("@")[0]
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        yield from _sheets(source, path, f"{title}/{path.relative_to(copy).as_posix()}", folder)


def _files(source: Source, folder: Path) -> Iterator[Source]:
    if is_several(source.local):
        for name, path in files_of(source.local, source.format):
            written = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            yield from _sheets(
                source, path, f"{source.name}/{written}" if source.name else written, folder
            )
    elif _is_there(source.local):
        require_file(source.local)
        yield from _sheets(source, source.local, source.name, folder)
    else:
        yield source  # the recipe hashes the file, and raises if it is missing


def _sheets(source: Source, path: Path, name: str | None, folder: Path) -> Iterator[Source]:
    """A file as one source, as one for each named sheet, or as the parts of a reviewed file."""
    if reviewed.is_reviewed(path, source.format):
        yield from reviewed.parts(source, path, name, folder)
        return
    sheet = source.sheet
    if sheet == "*" and (source.format or format_of(path)) not in ("xlsx", "ods", "sqlite"):
        raise UsageError(
            f"{path.name} is no workbook and no database, and has no sheets",
            hint="leave 'sheet' out",
        )
    if sheet != "*" and not isinstance(sheet, list):
        yield (
            source
            if (path, name) == (source.path, source.name)
            else source.part(path, name, sheet=sheet)
        )
        return
    names = _all_sheets(path, source.format, path.stat().st_mtime_ns) if sheet == "*" else sheet
    for each in names:
        yield source.part(path, name and f"{name}:{each}", sheet=each)


@functools.lru_cache
def _all_sheets(path: Path, format: str | None, mtime_ns: int) -> tuple[str, ...]:
    """The sheets of a workbook or the tables of a database; cached,
    since a project's files are listed often.
    """
    return form_of(path, format=format).sheets


def copy_of(source: Source, folder: Path) -> Path:
    """The path of the copy of a source: its name is a hash of the source without secrets, of
    documents their content.

    Raises:
        DataError: Documents cannot be read.
    """
    if source.path is not None:
        return folder / f"documents-{folder_of_documents.key(source)}.jsonl"
    if source.sql is not None:
        return folder / f"sql-{_key(mask(source.sql.url), source.sql.query)}.jsonl"
    return folder / f"hf-{_key(source.hf, source.file)}"


def copies_of(source: Source, folder: Path) -> set[Path]:
    """The files and folders in `folder` that belong to a source with its present content."""
    places = set()
    with contextlib.suppress(SlmctlError, OSError):
        places |= set() if is_file(source) else {copy_of(source, folder)}
        places |= {
            part.local.parent
            for part in _local(source, folder)
            if part.local.parent.parent == folder
        }
    return places


def reviews_among(sources: Sequence[Source]) -> Iterator[Path]:
    """The reviewed files among the sources."""
    for source in sources:
        if is_file(source):
            with contextlib.suppress(SlmctlError):
                several = is_several(source.local)
                files = (
                    [path for _, path in files_of(source.local, source.format)]
                    if several
                    else [source.local]
                )
                yield from (path for path in files if reviewed.is_reviewed(path, source.format))


def _key(*parts: str | None) -> str:
    return hashlib.sha256(canonical(list(parts))).hexdigest()[:12]


def _is_there(path: Path) -> bool:
    """True for an existing path, and for an invalid one (such as a name
    that is too long), which fails when read.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


def _shown(source: Source) -> str:
    if source.sql is not None:
        return f"'{source.name or mask(source.sql.url)}'"
    return (
        f"'hf: {source.hf}'" if source.hf is not None else f"'{source.name or source.local.name}'"
    )


# The hub


def _fetch(name: str, pattern: str | None, target: Path, limits: SourceLimits) -> None:
    """Fetch the data files of a pinned data set into the folder `target`, atomically."""
    repo, commit = hub.split(name, example="hf: ")
    console.say(f"  asking the hub for {repo}")
    with atomic.folder(target) as draft:
        with hub.asked(
            f"prepare hf:{name}", repo, otherwise="without a hub: export it, and name the file"
        ) as client:
            if not hub.is_pinned(commit):
                pinned = client.dataset_info(repo, revision=commit or None).sha
                raise UsageError(
                    f"source 'hf: {name}' is not pinned: what it names can change",
                    hint=f"put this line into slmctl.yaml: hf: {repo}@{pinned}",
                )
            listed = client.dataset_info(repo, revision=commit, files_metadata=True).siblings or []
            chosen = _choose(repo, listed, pattern)
            if sum(entry.size or 0 for entry in chosen) > limits.size_bytes:
                raise bounded_copy.too_large(f"the data set {repo}", limits)
            end = time.monotonic() + limits.timeout_s
            for entry in chosen:
                if time.monotonic() > end:
                    raise bounded_copy.too_slow(
                        f"the data set {repo}", limits, "fewer files (file: PATTERN)"
                    )
                console.say(f"  fetching {entry.rfilename} of {repo} at {commit[:12]}")
                with bounded_copy.files_of_at_most(limits):
                    client.hf_hub_download(
                        repo, entry.rfilename, repo_type="dataset", revision=commit, local_dir=draft
                    )
                _require_same(draft / entry.rfilename, entry)
        shutil.rmtree(draft / ".cache", ignore_errors=True)  # metadata of huggingface_hub


def _choose(repo: str, listed: Sequence[Any], pattern: str | None) -> list[Any]:
    """The data files that match `pattern`; without a pattern, the only data file."""
    files = [entry for entry in listed if _is_data(entry.rfilename)]
    if pattern is None:
        chosen = files if len(files) == 1 else []
    else:
        chosen = [entry for entry in files if fnmatch.fnmatchcase(entry.rfilename, pattern)]
    if not chosen:
        names = ", ".join(entry.rfilename for entry in files[:20]) or "none"
        more = f" and {len(files) - 20} more" if len(files) > 20 else ""
        what = (
            f"no data file '{pattern}'"
            if pattern
            else f"{len(files)} data files"
            if files
            else "no data file"
        )
        raise UsageError(
            f"{repo} has {what}", hint=f"file: NAME or a pattern chooses among: {names}{more}"
        )
    return chosen


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or any(part.startswith(".") for part in path.parts)
        or path.name == "dataset_infos.json"
    ):
        return False
    try:
        format_of(Path(path.name))
    except DataError:
        return False
    return True


def _require_same(path: Path, entry: Any) -> None:
    """Raise IntegrityError for a file that differs from the commit: by
    sha256 for LFS, else by git's blob hash.
    """
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        made = hashlib.file_digest(
            stream, hashlib.sha256 if entry.lfs is not None else lambda: blob
        ).hexdigest()
    expected = entry.lfs.sha256 if entry.lfs is not None else entry.blob_id
    if made != expected:
        raise IntegrityError(
            f"{entry.rfilename} is not what the hub says it is: expected {expected}, got {made}"
        )
