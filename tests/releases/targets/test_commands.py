"""publish and fetch as their user runs them, to real servers of each kind: planned, sent, sent
again, fetched.

All servers are on the loopback, so `--offline` forbids none of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import hub as hub_server
from support import tiny
from support.forks import Forks
from support.released import contents


@pytest.fixture(scope="module")
def sending() -> Iterator[Forks]:
    """Forks that have what sends and fetches, but for the hub's client,
    which reads its address when imported.
    """
    pytest.importorskip("boto3")
    modules = (
        "slmctl.pipeline.runner",
        "slmctl.stages.publish.publish",
        "slmctl.releases.targets.s3",
    )
    with Forks("slmctl.cli.main", *modules) as forks:
        yield forks


@pytest.fixture(params=["s3", "hf"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """An address, and the environment that leads there."""
    if request.param == "s3":
        keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
        yield (
            "s3://models/commands",
            tiny.environment(AWS_ENDPOINT_URL=request.getfixturevalue("s3"), **keys),
        )
    else:
        pytest.importorskip("huggingface_hub")
        with hub_server.running() as server:
            server.token = "hf_" + "NeverToBeSeen" * 2
            yield (
                "hf:acme/desk",
                hub_server.environment(server.url, tmp_path, HF_TOKEN=server.token),
            )


def test_a_release_makes_the_round_trip(
    sending: Forks, place: tuple[str, dict[str, str]], desk: Path, tmp_path: Path
) -> None:
    to, env = place

    def run(folder: Path, *args: str) -> tuple[str, str]:
        done = sending.run(folder, *args, "--offline", env=env)
        return tiny.ok(done), done.stderr

    (made,) = desk.glob("runs/published/[!.]*")
    planned = json.loads(run(desk, "publish", "--to", to, "--plan", "--json")[0])
    assert (planned["there"], planned["hosts"]) == (False, ["127.0.0.1"])
    assert {one["file"] for one in planned["files"] if one["send"]} == set(contents(made))
    assert planned["bytes_to_send"] == sum(map(len, contents(made).values()))
    _, said = run(desk, "publish", "--to", to)
    assert "sent to" in said
    assert "will contact 127.0.0.1 and no other host" in said
    _, said = run(desk, "publish", "--to", to)
    assert "already in" in said
    assert f"0 B to send, 0 of {len(planned['files'])} files" in said
    again = json.loads(run(desk, "publish", "--to", to, "--plan", "--json")[0])
    assert (again["there"], again["bytes_to_send"]) == (True, 0)
    fetched, _ = run(tmp_path, "fetch", f"{to}#1.0", str(tmp_path / "here"))
    assert contents(Path(fetched)) == contents(made)
    done = sending.run(tmp_path, "fetch", f"{to}#7.0", str(tmp_path / "other"), env=env)
    assert done.returncode == 7, done.stderr
    assert not (desk / "runs" / ".receipts").exists()  # nothing has left this machine
