"""Atomic writes: a file or folder gets its name when it is whole and synced to disk, or not at all.

It is written as a draft, `.draft-NAME`, in the same folder. A killed writer leaves only that; the
next writer of the same name removes it, and so does `slmctl gc`. No other module renames a draft or
makes up a temporary name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

DRAFT = ".draft-"
TRASH = ".trash-"  # prefix of a folder that is being removed
LONGEST_NAME = 255  # bytes; the limit of common file systems


def draft_of(path: Path) -> Path:
    """The path of the draft of `path`: `.draft-NAME`, with a hash
    in place of a name that is too long.
    """
    name = DRAFT + path.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = DRAFT + hashlib.sha256(os.fsencode(path.name)).hexdigest()
    return path.with_name(name)


@contextlib.contextmanager
def file(path: Path, mode: int = 0o666, *, replace: bool = True) -> Iterator[Path]:
    """Yield the path of an empty file to write; it is renamed to `path` if the block raises
    nothing, else removed.

    Writers of one path take turns, threads and processes alike. A link at the draft's name is not
    followed.

    Args:
        path: The final path. Its folder must exist.
        mode: Permissions, minus the umask, from the file's creation on.
        replace: False keeps a file that already exists at `path`.
    """
    draft = draft_of(path)
    descriptor = _create(draft, mode)
    try:
        yield draft
        if replace or not os.path.lexists(path):
            os.fsync(descriptor)
            os.replace(draft, path)
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & mode)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(draft), os.fstat(descriptor)):  # not yet another writer's
                draft.unlink()
        os.close(descriptor)  # and with it the lock


def write(path: Path, raw: bytes, mode: int = 0o666) -> None:
    """Write a small file with `file`; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file(path, mode) as draft:
        draft.write_bytes(raw)


@contextlib.contextmanager
def folder(path: Path, *, replace: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it is renamed to `path` if the block raises nothing, else
    removed.

    The caller holds a lock on `path`, so an existing draft belongs to a dead process. Scratch files
    belong inside the draft, so that a kill leaves nothing else.

    Args:
        path: The final path. Its parent folders are created.
        replace: Remove an existing entry at `path` right before the rename.
        resume: Keep the draft when the block fails, and start from an existing draft.

    Raises:
        OSError: A folder that is not empty exists at `path`, and `replace` is false.
    """
    draft = draft_of(path)
    if not resume or not stat.S_ISDIR(_kind(draft)):
        _remove(draft)
    draft.mkdir(parents=True, exist_ok=resume)
    try:
        yield draft
        _sync_all(draft)
        if replace:
            _remove(path)
        draft.rename(path)
        sync(path.parent)
    finally:
        if not resume:
            shutil.rmtree(draft, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Rename a file within a file system, replacing `target`;
    content and name are synced to disk.
    """
    sync(source)
    os.replace(source, target)
    sync(target.parent)


def remove(path: Path) -> None:
    """Remove a folder; it is renamed first, so that a half-removed
    folder never has the name of a whole one.
    """
    trash = path.with_name(TRASH + path.name)
    _remove(trash)
    path.rename(trash)
    shutil.rmtree(trash)


def sync(path: Path) -> None:
    """Wait until the content of a file or folder is on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(draft: Path, mode: int) -> int:
    """The descriptor of a new draft file, locked for this writer; waits
    while another writer holds the draft.
    """
    while True:
        try:
            descriptor = os.open(
                draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode | 0o600
            )
        except FileExistsError:
            _wait_for_draft(draft)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.lstat(draft), os.fstat(descriptor)):
                return descriptor
        except (
            BlockingIOError,
            FileNotFoundError,
        ):  # another writer locked or removed it as a leftover
            pass
        except OSError:  # such as no locks on this file system
            draft.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)


def _wait_for_draft(draft: Path) -> None:
    """Wait for the writer that holds a draft; remove a draft without a writer."""
    kind = _kind(draft)
    if not kind:  # its writer has ended meanwhile
        return
    if not stat.S_ISREG(kind):
        _remove(draft)
        return
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(draft, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.lstat(draft), os.fstat(descriptor)):
                draft.unlink()
        finally:
            os.close(descriptor)


def _kind(path: Path) -> int:
    """`st_mode` of a path without following links; 0 where nothing exists."""
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    if stat.S_ISDIR(_kind(path)):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_all(place: Path) -> None:
    """Sync every file and folder below `place`, the deepest folder first."""
    for root, _, names in os.walk(place, topdown=False):
        for name in names:
            if stat.S_ISREG(_kind(Path(root, name))):
                sync(Path(root, name))
        sync(Path(root))


def link(source: Path, target: Path, mode: int = 0o666) -> None:
    """Hard-link a file; copy it with `file` where the file system has no
    hard links, or no more of them for it.
    """
    try:
        os.link(source, target)
    except OSError:
        with file(target, mode) as draft:
            shutil.copyfile(source, draft)
