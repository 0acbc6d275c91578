"""The Hub: private unless asked otherwise, nothing uploaded before that
is read back, one commit and its tag.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import hub as hub_server
from support.hub import COMMIT, Repo
from support.released import contents, release, send

from slmctl.artifacts.artifact import Artifact
from slmctl.errors import GateError, IntegrityError, NetworkError, UsageError
from slmctl.releases import targets
from slmctl.releases.targets import Settings, Target

pytest.importorskip("huggingface_hub")

TOKEN = "hf_" + "NeverToBeSeen" * 2
TO = "hf:acme/desk"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.running() as server:
        server.token = TOKEN
        hub_server.ask_here(server.url, monkeypatch, TOKEN)
        yield server


@pytest.fixture
def target(hub: hub_server.Hub) -> Iterator[Target]:
    with targets.opened(TO, Settings(), purpose="test") as opened:
        yield opened


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    return release(tmp_path, weights=b"GGUF" * 5000)


def size(made: Artifact) -> int:
    return sum(map(len, contents(made.path).values()))


def test_a_release_goes_private_and_only_what_was_planned_is_sent(
    capsys: pytest.CaptureFixture[str],
    hub: hub_server.Hub,
    target: Target,
    made: Artifact,
    tmp_path: Path,
) -> None:
    targets.plan(target, TO, targets.shipment(made))
    assert (hub.received, hub.did, target.visibility) == (
        0,
        [],
        "private: the organisation's members",
    )
    assert send(target, made).size == hub.received == size(made)
    assert hub.did == ["create private", "store", "commit", "tag"]
    repo = hub.repos["models/acme/desk"]
    assert repo.private
    assert repo.at("v1.0") == repo.at("main")
    assert send(target, made).size == 0
    assert hub.did[4:] == []  # because the hub was asked
    said = capsys.readouterr()
    assert said.err.startswith("  will contact 127.0.0.1 and no other host\n")
    assert TOKEN not in said.out + said.err
    assert TOKEN.encode() not in b"".join(
        file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()
    )


def test_nothing_is_uploaded_where_others_would_see_it(
    hub: hub_server.Hub, target: Target, made: Artifact, tmp_path: Path
) -> None:
    hub.always_public = True  # such as an organisation whose plan has no private repositories
    said = "hf:acme/desk is public, and publish asks for private: nothing was uploaded"
    with pytest.raises(GateError, match=said):
        send(target, made)
    assert (hub.received, hub.did, hub.stored) == (0, ["create public"], {})
    # the plan says so too
    assert target.visibility == "everybody, and publish asks for private: it would be refused"
    with targets.opened(TO, Settings(public=True), purpose="test") as public:
        send(public, made)
    assert hub.received
    with pytest.raises(GateError, match=said):
        send(target, release(tmp_path, "1.1"))


@pytest.mark.slow  # the client tries a cut line again for half a minute
def test_an_interrupted_upload_shows_nothing_and_goes_on(
    hub: hub_server.Hub, target: Target, tmp_path: Path
) -> None:
    made = release(
        tmp_path, weights=b"GGUF" * 9000, **{"merged/model.safetensors": b"tensors" * 5000}
    )
    hub.stop_after = 1
    with pytest.raises(NetworkError):
        send(target, made)
    repo = hub.repos["models/acme/desk"]
    assert list(repo.commits) == [COMMIT]
    assert set(repo.commits[COMMIT]) == {".gitattributes"}
    (kept,) = hub.stored.values()
    hub.stop_after, hub.received = None, 0
    send(target, made)
    assert hub.received == size(made) - len(kept)
    assert contents(targets.fetch(target, "", None, into=tmp_path / "here").path) == contents(
        made.path
    )


def test_the_next_version_takes_the_place_of_the_last(
    hub: hub_server.Hub, target: Target, made: Artifact, tmp_path: Path
) -> None:
    send(target, made)
    send(target, release(tmp_path, "1.1"))
    repo = hub.repos["models/acme/desk"]
    assert repo.at("main") == repo.at("v1.1")
    assert {name for name in repo.commits[repo.head] if name.endswith(".gguf")} == {
        "tiny-1M-desk-v1.1-Q8_0.gguf"
    }
    with pytest.raises(UsageError) as caught:
        targets.fetch(target, "", None, into=tmp_path / "here")
    assert caught.value.hint == "#VERSION: 1.0, 1.1"
    assert contents(targets.fetch(target, "v1.0", None, into=tmp_path / "here").path) == contents(
        made.path
    )


def test_whoever_commits_in_between_is_not_overwritten(
    hub: hub_server.Hub, target: Target, made: Artifact
) -> None:
    hub.meanwhile = {"notes.txt": b"ours"}
    with pytest.raises(NetworkError):
        send(target, made)
    repo = hub.repos["models/acme/desk"]
    assert repo.commits[repo.head]["notes.txt"] == b"ours"
    assert "commit" not in hub.did and not repo.tags
    send(target, made)
    assert repo.at("v1.0") == repo.at("main")


def test_a_tag_of_somebody_else_is_no_release(
    hub: hub_server.Hub, target: Target, made: Artifact
) -> None:
    hub.repos["models/acme/desk"] = Repo(
        private=True, commits={COMMIT: {"notes.txt": b"ours"}}, tags={"v1.0": COMMIT}
    )
    with pytest.raises(IntegrityError, match="that is no release of slmctl"):
        send(target, made)
    assert hub.received == 0


def test_without_the_token_nothing_is_there(
    hub: hub_server.Hub, target: Target, made: Artifact
) -> None:
    hub.token = "another"
    with pytest.raises(NetworkError):
        send(target, made)
    assert hub.received == 0
