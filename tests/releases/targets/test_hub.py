"""The Hub: private unless asked otherwise, nothing uploaded before that is read back, one commit and its tag.

Its client reads the address when it is imported, hence a child process each time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import hub as hub_server
from support.hub import COMMIT, Repo
from support.released import contents, release

from slmctl.artifacts.artifact import Artifact

TOKEN = "hf_" + "NeverToBeSeen" * 2
CHILD = """
import json, sys
from pathlib import Path
from slmctl.artifacts import artifact
from slmctl.network import guard
from slmctl.releases import targets
from slmctl.errors import SlmctlError
guard.seal()
asked = json.loads(sys.argv[1])
settings = targets.Settings(public=asked.get("public", False))
try:
    with targets.opened("hf:acme/desk", settings, purpose="test") as target:
        if asked["do"] == "fetch":
            found = targets.fetch(target, asked["name"], None, into=Path(asked["into"]))
            print(json.dumps(str(found.path)))
        else:
            signature = Path(asked["signature"]) if asked.get("signature") else None
            sent = targets.shipment(artifact.load(Path(asked["release"])), signature=signature)
            plan = targets.plan(target, "hf:acme/desk", sent)
            if asked["do"] == "publish":
                targets.deliver(target, plan)
            print(json.dumps([plan.size, sorted(item.name for item in plan.missing), target.visibility]))
except SlmctlError as error:
    print(json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint}))
"""


@pytest.fixture
def hub() -> Iterator[hub_server.Hub]:
    pytest.importorskip("huggingface_hub")
    with hub_server.running() as server:
        server.token = TOKEN
        yield server


def ask(hub: hub_server.Hub, folder: Path, **asked: Any) -> tuple[Any, int]:
    """What the child says, and how many bytes of files the hub was sent."""
    before = hub.received
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in asked.items()}
    env = hub_server.environment(hub.url, folder, HF_TOKEN=TOKEN)
    command = [sys.executable, "-c", CHILD, json.dumps(asked)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr + " ".join(command)
    assert done.stderr.startswith("  will contact 127.0.0.1 and no other host\n")
    return json.loads(done.stdout), hub.received - before


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    return release(tmp_path, weights=b"GGUF" * 5000)


def test_a_release_goes_private_and_comes_back_equal(hub: hub_server.Hub, made: Artifact, tmp_path: Path) -> None:
    (size, missing, visibility), sent = ask(hub, tmp_path, do="plan", release=made.path)
    assert (sent, hub.did, visibility) == (0, [], "private: the organisation's members")
    assert set(missing) == set(contents(made.path))
    _, sent = ask(hub, tmp_path, do="publish", release=made.path)
    assert sent == size == sum(map(len, contents(made.path).values()))  # exactly what was planned
    assert hub.did == ["create private", "store", "commit", "tag"]
    repo = hub.repos["models/acme/desk"]
    assert repo.private
    assert repo.at("v1.0") == repo.at("main")
    (size, missing, _), sent = ask(hub, tmp_path, do="publish", release=made.path)
    assert (size, missing, sent, hub.did[4:]) == (0, [], 0, [])  # because the hub was asked
    path, _ = ask(hub, tmp_path, do="fetch", name="1.0", into=tmp_path / "here")
    assert contents(Path(path)) == contents(made.path)
    everything = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert TOKEN.encode() not in everything


def test_nothing_is_uploaded_where_others_would_see_it(hub: hub_server.Hub, made: Artifact, tmp_path: Path) -> None:
    hub.always_public = True  # such as an organisation whose plan has no private repositories
    said, sent = ask(hub, tmp_path, do="publish", release=made.path)
    assert said["error"] == "GateError"
    assert said["message"] == "hf:acme/desk is public, and publish asks for private: nothing was uploaded"
    assert (sent, hub.did, hub.stored) == (0, ["create public"], {})
    (_, _, visibility), _ = ask(hub, tmp_path, do="plan", release=made.path)
    assert visibility == "everybody, and publish asks for private: it would be refused"  # the plan says so too
    _, sent = ask(hub, tmp_path, do="publish", release=made.path, public=True)
    assert sent
    said, _ = ask(hub, tmp_path, do="publish", release=release(tmp_path, "1.1").path)
    assert "is public, and publish asks for private" in said["message"]


@pytest.mark.slow  # the client tries a cut line again for half a minute
def test_an_interrupted_upload_shows_nothing_and_goes_on(hub: hub_server.Hub, tmp_path: Path) -> None:
    made = release(tmp_path, weights=b"GGUF" * 9000, **{"merged/model.safetensors": b"tensors" * 5000})
    hub.stop_after = 1
    said, _ = ask(hub, tmp_path, do="publish", release=made.path)
    assert said["error"] == "NetworkError"
    repo = hub.repos["models/acme/desk"]
    assert list(repo.commits) == [COMMIT]
    assert set(repo.commits[COMMIT]) == {".gitattributes"}
    (kept,) = hub.stored.values()
    hub.stop_after = None
    _, sent = ask(hub, tmp_path, do="publish", release=made.path)
    assert sent == sum(map(len, contents(made.path).values())) - len(kept)
    path, _ = ask(hub, tmp_path, do="fetch", name="", into=tmp_path / "here")
    assert contents(Path(path)) == contents(made.path)


def test_a_version_never_changes_and_the_next_one_replaces_it(
    hub: hub_server.Hub, made: Artifact, tmp_path: Path
) -> None:
    ask(hub, tmp_path, do="publish", release=made.path)
    said, sent = ask(hub, tmp_path, do="publish", release=release(tmp_path, weights=b"other").path)
    assert (said["error"], sent) == ("IntegrityError", 0)
    assert "already holds another desk 1.0" in said["message"]
    second = release(tmp_path, "1.1")
    _, sent = ask(hub, tmp_path, do="publish", release=second.path)
    assert sent < sum(map(len, contents(second.path).values()))  # what both have is there
    repo = hub.repos["models/acme/desk"]
    assert repo.at("main") == repo.at("v1.1")
    assert {name for name in repo.commits[repo.head] if name.endswith(".gguf")} == {"tiny-1M-desk-v1.1-Q8_0.gguf"}
    said, _ = ask(hub, tmp_path, do="fetch", name="", into=tmp_path / "here")
    assert (said["error"], said["hint"]) == ("UsageError", "#VERSION: 1.0, 1.1")
    path, _ = ask(hub, tmp_path, do="fetch", name="v1.0", into=tmp_path / "here")
    assert contents(Path(path)) == contents(made.path)


def test_a_signature_may_come_later(hub: hub_server.Hub, made: Artifact, tmp_path: Path) -> None:
    ask(hub, tmp_path, do="publish", release=made.path)
    (tmp_path / "signature").write_bytes(b"{}")
    ask(hub, tmp_path, do="publish", release=made.path, signature=tmp_path / "signature")
    path, _ = ask(hub, tmp_path, do="fetch", name="1.0", into=tmp_path / "here")
    assert contents(Path(path)) == contents(made.path) | {"model.sig": b"{}"}


def test_whoever_commits_in_between_is_not_overwritten(hub: hub_server.Hub, made: Artifact, tmp_path: Path) -> None:
    hub.meanwhile = {"notes.txt": b"ours"}
    said, _ = ask(hub, tmp_path, do="publish", release=made.path)
    assert said["error"] == "NetworkError", said
    repo = hub.repos["models/acme/desk"]
    assert repo.commits[repo.head]["notes.txt"] == b"ours"
    assert "commit" not in hub.did and not repo.tags
    ask(hub, tmp_path, do="publish", release=made.path)
    assert repo.at("v1.0") == repo.at("main")


def test_a_tag_of_somebody_else_is_no_release(hub: hub_server.Hub, made: Artifact, tmp_path: Path) -> None:
    hub.repos["models/acme/desk"] = Repo(private=True, commits={COMMIT: {"notes.txt": b"ours"}})
    repo = hub.repos["models/acme/desk"]
    repo.tags["v1.0"] = COMMIT
    said, sent = ask(hub, tmp_path, do="publish", release=made.path)
    assert (said["error"], sent) == ("IntegrityError", 0)
    assert "that is no release of slmctl" in said["message"]


def test_without_the_token_nothing_is_there(hub: hub_server.Hub, made: Artifact, tmp_path: Path) -> None:
    hub.token = "another"
    said, sent = ask(hub, tmp_path, do="publish", release=made.path)
    assert (said["error"], sent) == ("NetworkError", 0)
