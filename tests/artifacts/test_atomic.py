"""A file or a folder is there whole, or not at all, whoever else writes
the same and whatever a kill has left.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slmctl.artifacts import atomic

KILLED = """
import os, signal, sys
from pathlib import Path
from slmctl.artifacts import atomic
with getattr(atomic, sys.argv[1])(Path(sys.argv[2])) as draft:
    (draft if draft.is_file() else draft / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is brought to the disk and what gets a name, by its file's name, in order."""
    seen: list[tuple[str, str]] = []
    sync, replace, rename = os.fsync, os.replace, Path.rename

    def note(kind: str, path: str) -> None:
        seen.append((kind, Path(path).name.removeprefix(atomic.DRAFT)))

    def synced(descriptor: int) -> None:
        note("disk", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda old, new: (note("name", str(new)), replace(old, new)))
    monkeypatch.setattr(Path, "rename", lambda old, new: (note("name", str(new)), rename(old, new)))
    return seen


def test_content_is_on_the_disk_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, order: list[tuple[str, str]]
) -> None:
    with atomic.file(tmp_path / "a") as draft:
        draft.write_text("new")
    assert order == [("disk", "a"), ("name", "a"), ("disk", tmp_path.name)]
    order.clear()
    with atomic.folder(tmp_path / "b") as draft:
        (draft / "c").mkdir()
        (draft / "c" / "d").write_text("new")
    assert order == [
        ("disk", "d"),
        ("disk", "c"),
        ("disk", "b"),
        ("name", "b"),
        ("disk", tmp_path.name),
    ]


def test_a_file_is_there_when_the_block_ends_well(tmp_path: Path) -> None:
    with atomic.file(tmp_path / "a") as draft:
        draft.write_text("new")
        assert names(tmp_path) == [".draft-a"]
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "new"


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError, match="diverged"), atomic.file(tmp_path / "a") as draft:
        draft.write_text("half")
        raise RuntimeError("diverged")
    with pytest.raises(RuntimeError, match="diverged"), atomic.folder(tmp_path / "b") as draft:
        (draft / "part").write_text("half")
        raise RuntimeError("diverged")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("wanted", [0o600, 0o640, 0o444, 0o400])
def test_the_caller_chooses_the_mode(tmp_path: Path, wanted: int) -> None:
    (tmp_path / ".draft-a").write_text("left by a kill, open to all")
    (tmp_path / ".draft-a").chmod(0o666)
    with atomic.file(tmp_path / "a", wanted) as draft:
        assert mode(draft) & ~(wanted | 0o600) == 0, "not even the draft is open to others"
        draft.write_text("secret")
    assert mode(tmp_path / "a") == wanted


def test_the_umask_is_heeded(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with atomic.file(tmp_path / "a"):
            pass
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == 0o600


def test_a_file_that_is_there_may_stay(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("first")
    with atomic.file(tmp_path / "a", replace=False) as draft:
        draft.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_writer_removes_what_a_kill_left(tmp_path: Path, kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, kind, str(tmp_path / "a")], check=False)
    assert done.returncode == -9
    assert names(tmp_path) == [".draft-a"], "one naming scheme, and nothing under the name itself"
    with getattr(atomic, kind)(tmp_path / "a") as draft:
        assert not (draft.read_bytes() if draft.is_file() else names(draft)), (
            "nothing of the dead one"
        )
    assert names(tmp_path) == ["a"]


def link_to_file(place: Path) -> None:
    (place.parent / "victim").write_text("precious")
    place.symlink_to(place.parent / "victim")


def link_to_folder(place: Path) -> None:
    (place.parent / "victims").mkdir()
    (place.parent / "victims" / "precious").write_text("precious")
    place.symlink_to(place.parent / "victims")


def a_folder(place: Path) -> None:
    (place / "deep").mkdir(parents=True)


PLANTED = (link_to_file, link_to_folder, a_folder, os.mkfifo, Path.touch)


@pytest.mark.parametrize("kind", ["file", "folder", "resumed"])
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_draft_that_is_none_is_not_followed(
    tmp_path: Path, plant: Callable[[Path], object], kind: str
) -> None:
    plant(tmp_path / ".draft-a")
    before = {path: path.read_text() for path in tmp_path.glob("victim*/*")}
    target = tmp_path / "a"
    with (
        atomic.file(target)
        if kind == "file"
        else atomic.folder(target, resume=kind == "resumed") as draft
    ):
        (draft if kind == "file" else draft / "part").write_text("new")
    assert (target if kind == "file" else target / "part").read_text() == "new"
    assert not target.is_symlink()
    assert {path: path.read_text() for path in tmp_path.glob("victim*/*")} == before
    assert not (tmp_path / "victim").exists() or (tmp_path / "victim").read_text() == "precious"


@pytest.fixture
def often_switched() -> Iterator[None]:
    """Threads that take turns every microsecond, so that one is stopped between any two lines."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often_switched")
def test_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    inside, most = 0, 0

    def write(number: int) -> None:
        nonlocal inside, most
        for _ in range(50):
            with atomic.file(tmp_path / "a") as draft:
                inside += 1
                most = max(most, inside)
                draft.write_text(f"{number}" * 1000)
                inside -= 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert names(tmp_path) == ["a"]
    assert len(set((tmp_path / "a").read_text())) == 1


def test_a_folder_in_the_way_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    a_folder(tmp_path / "a")
    with pytest.raises(OSError, match="not empty"), atomic.folder(tmp_path / "a") as draft:
        (draft / "new").touch()
    assert names(tmp_path / "a") == ["deep"]
    with atomic.folder(tmp_path / "a", replace=True) as draft:
        (draft / "new").touch()
    assert names(tmp_path / "a") == ["new"]


def test_a_draft_may_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic.folder(tmp_path / "a", resume=True) as draft:
        (draft / "first").touch()
        raise RuntimeError
    with atomic.folder(tmp_path / "a", resume=True) as draft:
        (draft / "second").touch()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["first", "second"]


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127, "b" * 249])
def test_the_longest_names_have_a_draft_too(tmp_path: Path, name: str) -> None:
    with atomic.file(tmp_path / name) as draft:
        draft.write_text("x")
    assert names(tmp_path) == [name]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    with atomic.file(path) as draft:
        draft.write_text("x")
    assert path.read_text() == "x"


def test_a_folder_is_removed_under_another_name_first(tmp_path: Path) -> None:
    a_folder(tmp_path / "a")
    a_folder(tmp_path / ".trash-a")  # of a kill
    atomic.remove(tmp_path / "a")
    assert names(tmp_path) == []
