"""A registry: versions never change, tags move at once, and writers may come together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import released, tiny
from support.released import contents, release

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.config import Gate
from slmctl.errors import GateError, IntegrityError, UsageError
from slmctl.releases import registry, targets
from slmctl.releases.targets.local import FolderTarget

GATE = {"metric": "accuracy", "model": "Q8_0", "min": 0.8}


def send(root: Path, made: Artifact, *gates: dict[str, object]) -> targets.Plan:
    return released.send(
        FolderTarget(root), made, gates=[Gate.model_validate(gate) for gate in gates]
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def test_a_release_lies_under_its_name_and_every_file_once(root: Path, tmp_path: Path) -> None:
    first, second = release(tmp_path, "1.0"), release(tmp_path, "1.1", weights=b"others")
    assert send(root, first).size == sum(
        path.stat().st_size for path in first.path.rglob("*") if path.is_file()
    )
    sent = send(root, second)
    assert "LICENSE" not in {item.name for item in sent.missing}  # there since the first release
    for made, version in ((first, "1.0"), (second, "1.1")):
        assert contents(root / "desk" / version) == contents(made.path)
        assert artifact.verify_folder(root / "desk" / version) == []
    license_files = {
        (root / "desk" / version / "LICENSE").stat().st_ino for version in ("1.0", "1.1")
    }
    assert len(license_files) == 1
    assert [one.metrics["version"] for one in registry.manifests(root)] == ["1.0", "1.1"]


def test_a_release_under_another_name_is_not_taken(root: Path, tmp_path: Path) -> None:
    send(root, release(tmp_path, "0.9"))
    shutil.copytree(root / "desk" / "0.9", root / "desk" / "1.0")
    with pytest.raises(IntegrityError, match="holds another release than its name says"):
        registry.find(root, "1.0")
    with pytest.raises(IntegrityError, match=r"lies desk 0\.9"):
        targets.fetch(FolderTarget(root), "1.0", None, into=tmp_path / "here")
    assert registry.find(root, "0.9").metrics["version"] == "0.9"


def test_a_damaged_file_is_sent_again(root: Path, tmp_path: Path) -> None:
    made = release(tmp_path)
    send(root, made)
    damaged = root / "desk" / "1.0" / "README.md"
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    assert [item.name for item in send(root, made).missing] == ["README.md"]
    assert artifact.verify_folder(root / "desk" / "1.0") == []


def test_a_file_system_without_links_gets_copies(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    made = release(tmp_path)
    send(root, made)
    assert contents(root / "desk" / "1.0") == contents(made.path)


CHILD = """
import sys
from pathlib import Path
from slmctl.artifacts import artifact
from slmctl.releases import targets
from slmctl.releases.targets.local import FolderTarget
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
place = FolderTarget(root)
targets.deliver(place, targets.plan(place, "dir:", targets.shipment(artifact.load(folder))))
"""


def begin(root: Path, made: Artifact) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(root), str(made.path)]
    tiny.STARTED.append(
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    )
    return tiny.STARTED[-1]


def test_writers_come_together(root: Path, tmp_path: Path) -> None:
    """Six processes, three releases twice, one of them contested:
    each version is whole and one content.
    """
    ours = [
        release(tmp_path / "ours", version, weights=os.urandom(1 << 20))
        for version in ("1.0", "1.1")
    ]
    theirs = release(tmp_path / "theirs", "1.0", weights=os.urandom(1 << 20))
    children = [begin(root, made) for made in (*ours, theirs, *ours, theirs)]
    said = [child.communicate(timeout=120)[1] for child in children]
    winners = [contents(made.path) for made in (ours[0], theirs)]
    assert contents(root / "desk" / "1.0") in winners
    assert contents(root / "desk" / "1.1") == contents(ours[1].path)
    lost = [text for child, text in zip(children, said, strict=True) if child.returncode]
    assert len(lost) == 2
    assert all("IntegrityError" in text and "another desk 1.0" in text for text in lost), lost
    assert not list(root.rglob(".draft-*"))


@pytest.mark.slow
def test_a_killed_writer_shows_nothing_and_the_next_one_goes_on(root: Path, tmp_path: Path) -> None:
    made = release(
        tmp_path,
        weights=os.urandom(4 << 20),
        **{f"report{k}.html": os.urandom(3 << 20) for k in range(5)},
    )
    for delay in range(12):
        child = begin(root, made)
        while not (root / ".blobs").exists() and child.poll() is None:
            time.sleep(0.001)
        time.sleep(delay * 0.004)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        seen = root / "desk" / "1.0"
        assert not seen.exists() or not artifact.verify_folder(seen)
    send(root, made)
    assert contents(root / "desk" / "1.0") == contents(made.path)


# Tags


def test_a_tag_stands_for_the_release_that_it_named_alone(root: Path, tmp_path: Path) -> None:
    send(root, release(tmp_path / "first"), GATE)
    registry.promote(root, registry.find(root, "1.0"), "production")
    shutil.rmtree(root / "desk" / "1.0")
    send(root, release(tmp_path / "other", weights=b"others"), GATE)
    with pytest.raises(IntegrityError, match="stands for another release than lies under"):
        registry.find(root, "desk@production")


def test_a_tag_is_promoted_and_rolled_back(root: Path, tmp_path: Path) -> None:
    for version in ("1.0", "1.1"):
        send(root, release(tmp_path, version, weights=version.encode()), GATE)
    registry.promote(root, registry.find(root, "1.0"), "production")
    made = registry.promote(root, registry.find(root, "desk@1.1"), "production")
    assert (made.version, made.previous) == ("1.1", "1.0")
    assert registry.find(root, "production").metrics["version"] == "1.1"
    send(root, release(tmp_path, "1.2", weights=b"1.1"), GATE)
    same = registry.promote(root, registry.find(root, "1.2"), "production")
    # 1.1 has the same files
    assert (same.version, same.previous, same.another) == ("1.2", "1.1", "1.0")
    registry.promote(root, registry.find(root, "1.1"), "production")
    back = registry.promote(root, registry.find(root, "1.0"), "production")
    assert (back.version, back.previous) == ("1.0", "1.1")
    assert [(tag.project, tag.name, tag.version) for tag in registry.tags(root)] == [
        ("desk", "production", "1.0")
    ]
    assert (
        registry.find(root, "desk@production").digest
        == back.digest
        == registry.tags(root)[0].digest
    )


def test_a_reader_sees_the_old_or_the_new_tag(root: Path, tmp_path: Path) -> None:
    for version in ("1.0", "1.1"):
        send(root, release(tmp_path, version, weights=version.encode()), GATE)
    found = [registry.find(root, version) for version in ("1.0", "1.1")]
    registry.promote(root, found[0], "production")
    code = (
        "import sys\nfrom pathlib import Path\nfrom slmctl.releases import registry\nroot = "
        "Path(sys.argv[1])\n"
        "seen = {registry.find(root, 'production').metrics['version'] for _ in range(300)}\n"
        "print(sorted(seen - {'1.0', '1.1'}))"
    )
    reader = subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True)
    k = 0
    while reader.poll() is None:
        k += 1
        registry.promote(root, found[k % 2], "production")
    assert reader.communicate()[0].strip() == "[]"
    assert reader.returncode == 0


def test_what_fails_its_gates_is_not_promoted(root: Path, tmp_path: Path) -> None:
    # nobody asked the gates here: the registry asks again
    send(root, release(tmp_path, accuracy=0.7), GATE)
    with pytest.raises(
        GateError, match=r"accuracy of Q8_0 is 70\.0 % \(at least 80\.0 % required\)"
    ):
        registry.promote(root, registry.find(root), "production")
    assert registry.tags(root) == []


def test_the_gates_of_today_count_too(root: Path, tmp_path: Path) -> None:
    send(root, release(tmp_path), GATE)
    stricter = Gate(metric="accuracy", model="Q8_0", min=0.95)
    unmeasured = Gate(metric="accuracy", model="Q4_K_M", min=0.95)
    with pytest.raises(GateError, match=r"at least 95\.0 %"):
        registry.promote(root, registry.find(root), "production", beside=[stricter])
    registry.promote(root, registry.find(root), "production", beside=[unmeasured])


def test_a_release_that_came_by_hand_is_not_promoted_until_it_is_published(
    root: Path, tmp_path: Path
) -> None:
    made = release(tmp_path)
    (root / "desk").mkdir(parents=True)
    made.path.rename(root / "desk" / "1.0")
    with pytest.raises(GateError, match=r"nobody recorded what the gates of desk 1\.0 were"):
        registry.promote(root, registry.find(root), "production")
    send(root, registry.find(root), GATE)
    assert registry.promote(root, registry.find(root), "production").version == "1.0"


def test_a_file_that_no_report_measured_is_not_promoted(root: Path, tmp_path: Path) -> None:
    made = release(tmp_path, **{"more.gguf": b"unmeasured"})
    send(root, made, GATE)
    with pytest.raises(GateError, match=r"no report measured more\.gguf"):
        registry.promote(root, registry.find(root), "production")


def test_a_damaged_release_is_not_promoted(root: Path, tmp_path: Path) -> None:
    send(root, release(tmp_path), GATE)
    path = root / "desk" / "1.0" / "LICENSE"
    path.chmod(0o644)
    path.write_bytes(b"TIM")
    with pytest.raises(IntegrityError, match="changed: LICENSE"):
        registry.promote(root, registry.find(root), "production")


@pytest.mark.parametrize("tag", ["1.0", "2", "Production", "", "../x", "a b"])
def test_a_tag_is_a_name(root: Path, tmp_path: Path, tag: str) -> None:
    send(root, release(tmp_path), GATE)
    with pytest.raises(UsageError, match="is no tag"):
        registry.promote(root, registry.find(root), tag)


def test_what_is_meant_must_be_one(root: Path, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="cannot be read: No such file"):
        registry.find(root)
    for version in ("1.0", "1.1"):
        send(root, release(tmp_path, version, weights=version.encode()))
    with pytest.raises(UsageError, match="several releases") as caught:
        registry.find(root)
    assert caught.value.hint == "one of desk@1.0, desk@1.1"
    with pytest.raises(IntegrityError, match=r"holds no release '3\.0'"):
        registry.find(root, "3.0")


def test_a_project_alone_means_what_it_has_in_production(root: Path, tmp_path: Path) -> None:
    send(root, release(tmp_path, "1.0"), GATE)
    assert registry.locate(root, "desk") == ("desk", "1.0")  # the only one
    send(root, release(tmp_path, "1.1", weights=b"others"), GATE)
    with pytest.raises(UsageError, match="several releases that 'desk@' may mean"):
        registry.find(root, "desk")
    registry.promote(root, registry.find(root, "1.0"), "production")
    assert registry.locate(root, "desk") == ("desk", "1.0")
    with pytest.raises(IntegrityError, match="holds no release 'desk@desk'"):
        registry.find(root, "desk@desk")
