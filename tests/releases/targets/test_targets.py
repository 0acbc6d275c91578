"""What holds of every target: the second time sends nothing, half is
invisible, what comes back is equal.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import hub
from support.released import contents, release, send

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact, FileEntry, Manifest
from slmctl.errors import IntegrityError, NetworkError, StageError, UsageError
from slmctl.releases import targets
from slmctl.releases.targets import Settings, ShipmentFile, Target
from slmctl.releases.targets.local import FolderTarget

Open = Callable[[], Target]


@pytest.fixture(params=["dir", "s3", "hf"])
def address(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A target of each kind, empty."""
    if request.param == "dir":
        yield f"dir:{tmp_path / 'registry'}"
    elif request.param == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
        yield f"s3://models/{tmp_path.name}"
    else:
        pytest.importorskip("huggingface_hub")
        with hub.running() as server:
            hub.ask_here(server.url, monkeypatch)
            yield "hf:acme/desk"


@pytest.fixture
def target(address: str) -> Iterator[Target]:
    with targets.opened(address, Settings(), purpose="test") as opened:
        yield opened


def test_a_round_trip_is_bit_exact_and_the_second_time_sends_nothing(
    target: Target, tmp_path: Path
) -> None:
    signature = tmp_path / "signature"
    signature.write_bytes(b'{"signed": true}')
    made = release(tmp_path, weights=os.urandom(300_000))
    plan = send(target, made, signature=signature)
    assert len(plan.missing) == 8
    again = targets.plan(target, "there", targets.shipment(made, signature=signature))
    assert (again.there, again.missing, again.size) == (True, (), 0)
    found = targets.fetch(target, "desk@1.0", None, into=tmp_path / "here")
    assert found.path == tmp_path / "here" / "desk-1.0"
    assert contents(found.path) == contents(made.path) | {"model.sig": b'{"signed": true}'}
    assert artifact.verify_folder(found.path) == []
    with pytest.raises(UsageError, match="'@' names no release"):
        targets.fetch(target, "@", None, into=tmp_path / "here")
    # a second fetch finds it there
    assert targets.fetch(target, "", None, into=tmp_path / "here").path == found.path


# on the Hub all small files come with the commit
@pytest.mark.parametrize("address", ["dir", "s3"], indirect=True)
def test_an_interrupted_delivery_shows_nothing_and_goes_on(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, put, sent = release(tmp_path, weights=os.urandom(50_000)), target.put, set[str]()
    plan = targets.plan(target, "there", targets.shipment(made))

    def cut(shipment: targets.Shipment, missing: tuple[ShipmentFile, ...]) -> None:
        for item in missing[:4]:
            put(shipment, [item])
            sent.add(item.name)
        raise ConnectionError("cut")

    with monkeypatch.context() as cuts, pytest.raises(ConnectionError):
        cuts.setattr(target, "put", cut)
        targets.deliver(target, plan)
    assert targets.published(target, "desk", "1.0") is None
    with pytest.raises((IntegrityError, UsageError, NetworkError)):
        targets.fetch(target, "", None, into=tmp_path / "here")
    assert not (tmp_path / "here" / "desk-1.0").exists()
    left = send(target, made)
    assert {item.name for item in left.missing} == {item.name for item in plan.missing} - sent
    assert contents(targets.fetch(target, "", None, into=tmp_path / "here").path) == contents(
        made.path
    )


@pytest.mark.parametrize("address", ["dir"], indirect=True)
def test_a_target_that_loses_a_file_has_no_delivery(
    target: FolderTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = target.finish

    def lose(shipment: targets.Shipment) -> None:
        finish(shipment)
        (target.root / "desk" / "1.0" / "LICENSE").unlink()

    monkeypatch.setattr(target, "finish", lose)
    with pytest.raises(StageError, match="there does not hold LICENSE after it was sent"):
        send(target, release(tmp_path))


def test_a_version_never_changes_and_another_one_shares_its_files(
    target: Target, tmp_path: Path
) -> None:
    first = release(tmp_path)
    send(target, first)
    with pytest.raises(IntegrityError, match=r"already holds another desk 1\.0"):
        send(target, release(tmp_path, weights=b"other weights"))
    second = send(target, release(tmp_path, "1.1"))
    assert not {"LICENSE", "report.json"} & {item.name for item in second.missing}
    with pytest.raises(UsageError, match=r"releases|tags"):
        targets.fetch(target, "", None, into=tmp_path)
    for version in ("1.0", "1.1"):
        assert (
            targets.fetch(target, version, None, into=tmp_path / "here").metrics["version"]
            == version
        )
    assert contents(tmp_path / "here" / "desk-1.0") == contents(first.path)


def test_a_signature_may_come_later(target: Target, tmp_path: Path) -> None:
    made, signature = release(tmp_path), tmp_path / "signature"
    send(target, made)
    signature.write_bytes(b"{}")
    assert [item.name for item in send(target, made, signature=signature).missing] == ["model.sig"]
    assert (
        targets.fetch(target, "1.0", None, into=tmp_path).path / "model.sig"
    ).read_bytes() == b"{}"


def another_run(folder: Path) -> Artifact:
    """The same release, made once more: equal files, and a manifest that tells of another time."""
    made = release(folder)
    (made.path / "manifest.json").write_bytes(hostile(made, started="2026-11-25T14:00:00Z"))
    return artifact.load(made.path)


def test_a_signature_is_not_dropped_where_the_manifest_is_of_another_run(
    target: Target, tmp_path: Path
) -> None:
    made, signature = release(tmp_path), tmp_path / "signature"
    send(target, made)
    again = another_run(tmp_path / "again")
    assert send(target, again).missing == ()  # unsigned, it is there
    signature.write_bytes(b"{}")
    with pytest.raises(
        IntegrityError, match=r"already holds desk 1\.0 with the manifest of another run"
    ) as caught:
        send(target, again, signature=signature)
    assert "increase 'version'" in caught.value.hint
    assert contents(targets.fetch(target, "1.0", None, into=tmp_path / "here").path) == contents(
        made.path
    )


def test_another_release_under_a_version_is_refused(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validly made, perhaps signed, and not what was asked for."""
    send(target, release(tmp_path, "0.9"))
    with pytest.raises(IntegrityError):
        targets.fetch(target, "other@0.9", None, into=tmp_path / "here")
    read = target.read
    monkeypatch.setattr(target, "find", lambda name: ("desk", "1.0"))
    monkeypatch.setattr(target, "read", lambda project, version, *file: read(project, "0.9", *file))
    with pytest.raises(IntegrityError, match=r"under '1\.0' lies desk 0\.9, another release"):
        targets.fetch(target, "1.0", None, into=tmp_path / "here")
    assert not list(tmp_path.glob("here/*"))


def test_of_two_fetches_at_once_the_second_finds_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, made = FolderTarget(tmp_path / "registry"), release(tmp_path)
    send(place, made)
    begun, waits = threading.Event(), threading.Event()
    monkeypatch.setattr(
        targets.console, "say", lambda text="": waits.set() if text.startswith("pid ") else None
    )

    def slowly(project: str, version: str, name: str, sha256: str) -> Any:
        if sha256:
            begun.set()
            assert waits.wait(30), "the second one did not wait for the first"
        return place.read(project, version, name, sha256)

    slow = FolderTarget(tmp_path / "registry")
    monkeypatch.setattr(slow, "read", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(targets.fetch, slow, "1.0", None, into=tmp_path)
        assert begun.wait(30)
        second = pool.submit(targets.fetch, place, "1.0", None, into=tmp_path)
        assert first.result().path == second.result().path == tmp_path / "desk-1.0"
    assert contents(tmp_path / "desk-1.0") == contents(made.path)
    assert not list(tmp_path.glob(".*desk-1.0*"))


@pytest.mark.parametrize("to", ["hf:acme/desk", "s3://models/x"])
def test_a_proxy_on_the_way_is_among_the_hosts(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "NO_PROXY",
        "no_proxy",
        "https_proxy",
        "HF_ENDPOINT",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    ):
        monkeypatch.delenv(name, raising=False)
    before = set(targets._open(to, Settings()).hosts)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert set(targets._open(to, Settings()).hosts) == before | {"proxy.example"}


def test_an_interrupted_fetch_goes_on(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(tmp_path, weights=os.urandom(50_000))
    send(target, made)
    read, got = target.read, list[str]()
    last = 3

    def half() -> Iterator[bytes]:
        yield b"h"
        raise ConnectionError("cut")

    def cut(project: str, version: str, name: str, sha256: str) -> Any:
        if sha256:
            if len(got) == last:
                return contextlib.nullcontext(half())
            got.append(name)
        return read(project, version, name, sha256)

    monkeypatch.setattr(target, "read", cut)
    with pytest.raises(ConnectionError):
        targets.fetch(target, "1.0", None, into=tmp_path)
    assert not (tmp_path / "desk-1.0").exists()
    last = 100
    found = targets.fetch(target, "1.0", None, into=tmp_path)
    assert len(got) == len(set(got)) == len(made.manifest.files)  # each was brought once
    assert contents(found.path) == contents(made.path)
    assert not list(tmp_path.glob(".draft-*"))


def test_what_came_damaged_is_not_kept(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(target, release(tmp_path))
    read, damaged = target.read, contextlib.nullcontext(iter([b"TIM"]))
    monkeypatch.setattr(target, "read", lambda *file: damaged if "LICENSE" in file else read(*file))
    with pytest.raises(IntegrityError, match="LICENSE came otherwise than its manifest says"):
        targets.fetch(target, "1.0", None, into=tmp_path)
    assert not (tmp_path / "desk-1.0").exists()


def hostile(made: Artifact, **changes: Any) -> bytes:
    fields = {**made.manifest.__dict__, **changes}
    fields["digest"] = artifact.digest_of(fields["files"])
    return Manifest(**fields).to_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "/etc/passwd",
        "a\0b",
        "a\nb",
        "a/../../b",
        "manifest.json",
        ".hidden",
        "a\\b",
        "model.sig",
        "",
        "a//b",
    ],
)
def test_a_manifest_from_elsewhere_writes_nowhere_else(tmp_path: Path, path: str) -> None:
    raw = hostile(release(tmp_path), files=(FileEntry(path, 1, "0" * 64),))

    class Hostile:
        def find(self, name: str) -> tuple[str, str]:
            return "desk", "1.0"

        def read(self, project: str, version: str, name: str, sha256: str) -> Any:
            assert name == "manifest.json", "nothing else is asked for"
            return contextlib.nullcontext(iter([raw]))

    with pytest.raises(IntegrityError, match="outside its folder"):
        targets.fetch(Hostile(), "1.0", None, into=tmp_path / "here")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{"kind": "gguf"}, {"metrics": {"project": "../x", "version": "1"}}, {"metrics": {}}]
)
def test_what_is_no_release_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    manifest = Manifest.from_bytes(hostile(release(tmp_path), **changes), where="here")
    with pytest.raises(IntegrityError):
        targets._require_release(manifest)


@pytest.mark.parametrize("to", ["", "dir:", "ftp://x", "registry", "hf:"])
def test_an_unknown_target_is_refused(to: str) -> None:
    with pytest.raises(UsageError, match="names no target"):
        targets.prefix(to)


@pytest.mark.parametrize("to", ["hf:name", "hf:a/b@c"])
def test_a_malformed_address_is_refused(to: str) -> None:
    with pytest.raises(UsageError), targets.opened(to, Settings(), purpose="test"):
        pass
