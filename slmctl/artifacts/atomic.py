"""Files and folders that appear under their name when they are whole and on the disk, or not at all.

What is being written is a draft beside its place, `.draft-NAME`. A kill leaves nothing but that; the next writer of the
same name removes it, and so does `slmctl gc`. No other module renames a draft or makes up a temporary name.
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
TRASH = ".trash-"  # of a folder that is being removed
LONGEST_NAME = 255  # bytes, on every file system that we know


def draft_of(path: Path) -> Path:
    """The place where `path` is written before it has its name."""
    name = DRAFT + path.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = DRAFT + hashlib.sha256(os.fsencode(path.name)).hexdigest()
    return path.with_name(name)


@contextlib.contextmanager
def file(path: Path, mode: int = 0o666, *, replace: bool = True) -> Iterator[Path]:
    """An empty file to write; it gets the name `path` when the block ends well, and is removed otherwise.

    Writers of one path take turns, whether they are threads or processes. A link at the draft's name is not followed.

    Args:
        path: The name that the file will have. Its folder must exist.
        mode: Permissions, less the umask, from the file's first moment.
        replace: False keeps a file that another writer has put there.
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


@contextlib.contextmanager
def folder(path: Path, *, replace: bool = False, resume: bool = False) -> Iterator[Path]:
    """An empty folder to fill; it gets the name `path` when the block ends well, and is removed otherwise.

    The caller holds a lock on `path`, so a draft that is already there belongs to a dead process. Scratch files belong
    inside the draft, so that a kill leaves nothing else.

    Args:
        path: The name that the folder will have. Folders above it are made.
        replace: Remove what has that name, right before.
        resume: Keep the draft when the block fails, and go on with the one that is there.

    Raises:
        OSError: A folder that is not empty has the name, and `replace` is false.
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
    """Give a file another name on the same file system, in place of what has it; content and name are on the disk."""
    sync(source)
    os.replace(source, target)
    sync(target.parent)


def remove(path: Path) -> None:
    """Remove a folder; it loses its name first, so that one that is half gone never lies where a whole one would."""
    trash = path.with_name(TRASH + path.name)
    _remove(trash)
    path.rename(trash)
    shutil.rmtree(trash)


def sync(path: Path) -> None:
    """Have a file's or a folder's content on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(draft: Path, mode: int) -> int:
    """An open descriptor of a new file that this writer alone holds: the lock on the file that has the draft's name."""
    while True:
        try:
            descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode | 0o600)
        except FileExistsError:
            _wait_for_draft(draft)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.lstat(draft), os.fstat(descriptor)):
                return descriptor
        except (BlockingIOError, FileNotFoundError):  # another writer took it for one that a kill had left
            pass
        except OSError:  # such as no locks on this file system
            draft.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)


def _wait_for_draft(draft: Path) -> None:
    """Wait for the writer that holds a draft; one that nobody holds is removed."""
    kind = _kind(draft)
    if not kind:  # its writer has ended; what has the name by now is the next one's
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
    """The type bits of what has a name, a link being a link; 0 where nothing has it."""
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
    """Have every file below a folder on the disk, then every folder, the deepest first."""
    for root, _, names in os.walk(place, topdown=False):
        for name in names:
            if stat.S_ISREG(_kind(Path(root, name))):
                sync(Path(root, name))
        sync(Path(root))
