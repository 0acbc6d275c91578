"""Artifacts: whole or not there, and no changed byte goes unseen."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.artifacts import artifact, locks
from slmctl.artifacts.artifact import MANIFEST, Artifact, FileEntry, Manifest, digest_of
from slmctl.errors import IntegrityError, LockedError

FILES = {
    "weights.bin": b"\x00\x01" * 500,
    "task.json": b'{"kind": "classify"}\n',
    "deep/er/note.txt": b"a note\n",
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(max_size=5), json_values, max_size=4)


def describe(files: tuple[FileEntry, ...], digest: str, **more: Any) -> Manifest:
    fields: dict[str, Any] = {
        "kind": "gguf",
        "stage": "quantize/1",
        "recipe_id": artifact.recipe_of(
            "quantize/1", {"types": ["Q8_0"]}, {"merged": "sha256:" + "1" * 64}
        ),
        "config": {"types": ["Q8_0"]},
        "inputs": {"merged": "sha256:" + "1" * 64, "predictions": ["sha256:" + "2" * 64]},
        "metrics": {"Q8_0": {"bits_per_weight": 8.5}, "größe": "ü"},
        "environment": {"slmctl": "0.1.0"},
        "started": "2026-01-02T03:04:05Z",
        "seconds": 1.5,
    }
    return Manifest(files=files, digest=digest, **(fields | more))


def make(final: Path, files: dict[str, bytes] = FILES) -> Artifact:
    with artifact.draft(final) as place:
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return artifact.seal(place, final, describe)


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    return make(tmp_path / "runs" / "gguf" / "abc")


# Canonical JSON and hashes


def test_canonical_is_utf8_in_order_of_keys_with_a_last_newline() -> None:
    assert artifact.canonical({"a": "ü"}) == '{\n "a": "ü"\n}\n'.encode()
    one, other = {"b": 1, "a": [2, {"d": 3, "c": 4}]}, {"a": [2, {"c": 4, "d": 3}], "b": 1}
    assert artifact.canonical(one) == artifact.canonical(other)
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            artifact.canonical({"loss": value})


@given(json_values)
@settings(deadline=None, max_examples=60)
def test_canonical_survives_a_round_trip(value: object) -> None:
    raw = artifact.canonical(value)
    assert artifact.canonical(json.loads(raw)) == raw


def test_hashes_are_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    # FIPS 180-2, B.1
    published = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert artifact.sha256_bytes(b"abc") == artifact.sha256_file(tmp_path / "file") == published
    assert artifact.fingerprint(tmp_path / "file") == published


def test_recipe_holds_stage_config_and_inputs() -> None:
    asked = artifact.recipe_of("merge/1", {"dtype": "base"}, {"base": "x", "adapter": "y"})
    assert asked == artifact.recipe_of("merge/1", {"dtype": "base"}, {"adapter": "y", "base": "x"})
    others = {
        artifact.recipe_of("merge/2", {"dtype": "base"}, {"base": "x", "adapter": "y"}),
        artifact.recipe_of("merge/1", {"dtype": "float16"}, {"base": "x", "adapter": "y"}),
        artifact.recipe_of("merge/1", {"dtype": "base"}, {"base": "y", "adapter": "x"}),
    }
    assert len(others | {asked}) == 4


# The manifest


@given(
    config=json_objects, metrics=json_objects, environment=json_objects, seconds=st.floats(0, 1e9)
)
@settings(deadline=None, max_examples=60)
def test_manifest_round_trip(config: Any, metrics: Any, environment: Any, seconds: float) -> None:
    entries = (FileEntry("a/ü.bin", 3, "0" * 64), FileEntry("b", 0, "f" * 64))
    written = describe(
        entries,
        digest_of(entries),
        config=config,
        metrics=metrics,
        environment=environment,
        seconds=seconds,
    )
    raw = written.to_bytes()
    read = Manifest.from_bytes(raw, where="m")
    assert read == written
    assert read.to_bytes() == raw


WEIGHTS = (FileEntry("weights.bin", 1000, "ab" * 32),)
RAW = describe(WEIGHTS, digest_of(WEIGHTS)).to_bytes()


@pytest.mark.parametrize("flip", [1, 32, 255])
def test_manifest_finds_a_flip_of_any_byte(flip: int) -> None:
    for position in range(len(RAW)):
        changed = RAW[:position] + bytes([RAW[position] ^ flip]) + RAW[position + 1 :]
        with pytest.raises(IntegrityError):
            Manifest.from_bytes(changed, where="m")


@pytest.mark.parametrize(
    "changed",
    [
        RAW + b"\n",
        RAW[:-1],
        b" " + RAW,
        RAW.replace(b"\n ", b"\n  ", 1),
        RAW[:100],
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        artifact.canonical(
            {name: value for name, value in json.loads(RAW).items() if name != "self"}
        ),
        # what can be read, but not written again to compare, once ended in a traceback
        *(RAW.replace(b"8.5", value) for value in (b"NaN", b"1e999", b'"\\ud800"', b"[" * 100_000)),
    ],
    ids=[
        "newline",
        "no newline",
        "space",
        "indent",
        "cut",
        "empty",
        "list",
        "null",
        "not utf-8",
        "no hash",
        "nan",
        "infinity",
        "surrogate",
        "deep",
    ],
)
def test_manifest_must_be_canonical(changed: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"manifest|changed|valid"):
        Manifest.from_bytes(changed, where="a manifest")


@pytest.mark.parametrize("change", [{"unknown": 1}, {"files": [{"path": "x"}]}, {"files": 3}])
def test_manifest_with_a_right_hash_and_wrong_fields_is_refused(change: dict[str, Any]) -> None:
    fields = {key: value for key, value in json.loads(RAW).items() if key != "self"} | change
    fields["self"] = artifact.sha256_bytes(artifact.canonical(fields))
    with pytest.raises(IntegrityError, match="does not hold a manifest"):
        Manifest.from_bytes(artifact.canonical(fields), where="m")


def test_newer_schema_is_refused_with_the_way_out() -> None:
    fields = json.loads(RAW) | {"schema": artifact.SCHEMA + 1}
    with pytest.raises(
        IntegrityError, match=r"m has schema 2, and this slmctl reads up to 1"
    ) as caught:
        Manifest.from_bytes(artifact.canonical(fields), where="m")
    assert caught.value.hint == "pip install --upgrade slmctl"


# Drafts


def test_published_draft_is_whole(made: Artifact) -> None:
    assert listing(made.path) == [
        "deep",
        "deep/er",
        "deep/er/note.txt",
        MANIFEST,
        "task.json",
        "weights.bin",
    ]
    assert [entry.path for entry in made.manifest.files] == sorted(FILES)
    assert listing(made.path.parent)[0] == "abc"  # no draft beside it
    assert artifact.verify(made) == []
    assert artifact.load(made.path) == made


def test_exception_leaves_earlier_artifact_as_it_was(made: Artifact) -> None:
    with pytest.raises(RuntimeError, match="diverged"), artifact.draft(made.path) as place:
        (place / "weights.bin").write_bytes(b"other")
        raise RuntimeError("diverged")
    with pytest.raises(OSError, match="not empty"):  # a finished one is never written over
        make(made.path, {"weights.bin": b"other"})
    assert artifact.verify(artifact.load(made.path)) == []
    assert (made.path / "weights.bin").read_bytes() == FILES["weights.bin"]
    assert listing(made.path.parent)[0] == "abc"


def test_exception_while_the_manifest_is_made_leaves_nothing(tmp_path: Path) -> None:
    def fail(*_: object) -> Manifest:
        raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"), artifact.draft(tmp_path / "abc") as place:
        (place / "half.bin").write_bytes(b"half")
        artifact.seal(place, tmp_path / "abc", fail)
    assert listing(tmp_path) == []


def test_folder_without_a_manifest_gives_way(tmp_path: Path) -> None:
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / "by-hand.bin").write_bytes(b"x")
    assert listing(make(tmp_path / "abc", {"new.bin": b"new"}).path) == [MANIFEST, "new.bin"]


def test_link_cannot_be_published(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    with (
        pytest.raises(IntegrityError, match=r"link is not a plain file"),
        artifact.draft(tmp_path / "abc") as place,
    ):
        (place / "link").symlink_to(tmp_path / "outside")
        artifact.seal(place, tmp_path / "abc", describe)
    assert listing(tmp_path) == ["outside"]


# Digest


def test_digest_ignores_place_and_order_of_writing(tmp_path: Path) -> None:
    one = make(tmp_path / "here", FILES)
    two = make(tmp_path / "far" / "away", dict(reversed(FILES.items())))
    os.utime(two.path / "weights.bin", (1, 1))
    assert one.digest == two.digest
    moved = tmp_path / "moved"
    shutil.copytree(one.path, moved)
    shutil.rmtree(one.path)
    assert artifact.load(moved).digest == two.digest
    assert artifact.verify(artifact.load(moved)) == []


def test_digest_holds_names_and_contents(tmp_path: Path) -> None:
    contents = [{"a": b"x"}, {"b": b"x"}, {"a": b"y"}, {"a": b"x", "b": b""}, {"d/a": b"x"}]
    assert len({make(tmp_path / str(k), files).digest for k, files in enumerate(contents)}) == len(
        contents
    )


# Loading and verifying


def test_load_wants_a_folder_with_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="is missing"):
        artifact.load(tmp_path / "nothing")
    with pytest.raises(IntegrityError, match="unfinished: it has no manifest"):
        artifact.load(tmp_path)


def test_load_names_every_fault(made: Artifact) -> None:
    (made.path / "weights.bin").write_bytes(FILES["weights.bin"][:-1])
    (made.path / "task.json").unlink()
    (made.path / "deep" / "added").write_bytes(b"")
    faults = ["extra: deep/added", "missing: task.json", "changed: weights.bin (size)"]
    with pytest.raises(
        IntegrityError, match=re.escape(f"is damaged: {'; '.join(faults)}")
    ) as caught:
        artifact.load(made.path)
    assert caught.value.hint == f"remove the folder and run the stage again: rm -r {made.path}"
    assert artifact.verify_folder(made.path) == faults


def test_load_finds_a_changed_manifest(made: Artifact) -> None:
    raw = (made.path / MANIFEST).read_bytes()
    (made.path / MANIFEST).write_bytes(raw.replace(b"8.5", b"4.5"))
    with pytest.raises(IntegrityError, match=r"manifest\.json has changed since it was written"):
        artifact.load(made.path)
    assert artifact.verify_folder(made.path) == [
        "changed: manifest.json (manifest.json has changed since it was written)"
    ]


def flip(path: Path) -> None:
    raw = path.read_bytes()
    middle = len(raw) // 2
    path.write_bytes(raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :])


def swap_for_link(path: Path) -> None:
    """The same bytes lie elsewhere, where they can change unseen."""
    elsewhere = path.parents[3] / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere, target_is_directory=elsewhere.is_dir())


@pytest.mark.parametrize(
    ("change", "name", "faults"),
    [
        *((flip, name, [f"changed: {name}"]) for name in FILES),
        (swap_for_link, "weights.bin", ["changed: weights.bin (not a plain file)"]),
        (swap_for_link, "deep", ["extra: deep", "missing: deep/er/note.txt"]),
    ],
)
def test_verify_finds_a_change(
    made: Artifact, change: Callable[[Path], None], name: str, faults: list[str]
) -> None:
    change(made.path / name)
    assert artifact.verify(made) == artifact.verify_folder(made.path) == faults
    if change is swap_for_link:
        with pytest.raises(IntegrityError, match="is damaged"):
            artifact.load(made.path)


def test_verify_finds_two_files_exchanged(tmp_path: Path) -> None:
    made = make(tmp_path / "abc", {"a": b"same size 1", "b": b"same size 2"})
    (made.path / "a").write_bytes(b"same size 2")
    (made.path / "b").write_bytes(b"same size 1")
    assert artifact.verify(artifact.load(made.path)) == ["changed: a", "changed: b"]


def test_verify_finds_a_digest_that_is_not_that_of_the_files(made: Artifact) -> None:
    wrong = describe(made.manifest.files, "sha256:" + "0" * 64)
    (made.path / MANIFEST).write_bytes(wrong.to_bytes())  # its own hash is right
    assert artifact.verify_folder(made.path) == [
        "changed: manifest.json (manifest.json has a digest that is not the one of its files)"
    ]


def test_verify_folder_without_a_manifest(tmp_path: Path) -> None:
    assert artifact.verify_folder(tmp_path) == ["missing: manifest.json"]
    assert artifact.verify_folder(tmp_path / "nothing") == ["missing: manifest.json"]


def test_file_gives_only_what_the_manifest_names(made: Artifact) -> None:
    assert made.file("weights.bin") == made.path / "weights.bin"
    assert [entry.path for entry in made.files(".json")] == ["task.json"]
    with pytest.raises(IntegrityError, match=r"\(gguf\) has no file '\.\./abc/weights\.bin'"):
        made.file("../abc/weights.bin")


# Models that slmctl did not make


def test_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    wrapped = artifact.foreign(path, "gguf")
    assert (wrapped.kind, wrapped.file("model.gguf"), artifact.verify(wrapped)) == (
        "gguf",
        path,
        [],
    )
    path.write_bytes(b"GGUf")
    assert artifact.verify(wrapped) == ["changed: model.gguf"]


def test_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    wrapped = artifact.foreign(tmp_path, "merged")
    assert wrapped.digest == artifact.fingerprint(tmp_path)
    (tmp_path / "added").write_bytes(b"")
    assert artifact.verify(wrapped) == ["extra: added"]


# Locks

HOLD = """
import sys
from collections.abc import Callable
from pathlib import Path
from slmctl.artifacts import locks
with locks.lock(Path(sys.argv[1]), wait=True, on_wait=print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """A process that holds `tmp_path/lock` until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.kill()


def test_second_process_is_told_who_holds_the_lock(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with (
        pytest.raises(
            LockedError, match=rf"lock is locked by pid {holder.pid} on \S+ since \d{{4}}-"
        ) as caught,
        locks.lock(tmp_path / "lock", wait=False, on_wait=pytest.fail),
    ):
        pytest.fail("two processes hold one lock")
    assert "--no-wait" in caught.value.hint


def test_killed_holder_frees_the_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locks.lock(tmp_path / "lock", wait=False, on_wait=pytest.fail):
        assert f"pid {os.getpid()} on " in (tmp_path / "lock").read_text()


def test_waiting_says_for_whom_and_goes_on(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    told = []

    def release(who: str) -> None:
        told.append(who)
        holder.communicate()  # its stdin ends, and so does it

    with locks.lock(tmp_path / "lock", wait=True, on_wait=release):
        assert told[0].startswith(f"pid {holder.pid} on ")


def test_lock_is_free_again_after_an_exception(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="failed"),
        locks.lock(tmp_path / "l", wait=False, on_wait=pytest.fail),
    ):
        raise RuntimeError("failed")
    assert (tmp_path / "l").read_text() == ""
    with locks.lock(tmp_path / "l", wait=False, on_wait=pytest.fail):
        pass
