"""A Ray cluster of two nodes answers as one process does, and a node
that is killed takes no row with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import TESTS, tiny
from support.answered import require_same

from slmctl.errors import UsageError
from slmctl.stages.predict import ray_answers, row_answers

pytest.importorskip("ray")

RELEASE = str(TESTS / "fixtures" / "0.1.0" / "published")  # a model of 7,000 weights
ROWS = 4_000  # eight chunks
ON_LOOPBACK = tiny.environment(**ray_answers.LOOPBACK)


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:10001", "127.0.0.1", "", "a b:1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with (
        pytest.raises(UsageError, match="--ray wants HOST:PORT or local"),
        ray_answers.connected(address),
    ):
        pass


@pytest.fixture
def nodes() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "support.ray_nodes"]
    with subprocess.Popen(
        command,
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ON_LOOPBACK,
        text=True,
    ) as child:
        yield child
        assert child.stdin is not None
        child.stdin.close()  # which ends it


def write_rows(path: Path, count: int) -> Path:
    texts = [text for text, _ in tiny.rows(300, seed=9)]
    path.write_text(
        "".join(json.dumps({"id": k, "text": texts[k % len(texts)]}) + "\n" for k in range(count))
    )
    return path


@pytest.mark.slow
def test_two_nodes_answer_as_one_process_and_a_killed_node_costs_no_row(
    nodes: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert nodes.stdout is not None and nodes.stdin is not None
    address = nodes.stdout.readline().strip()
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    words = ["predict", RELEASE, "--input", str(source), "--column", "text", "--output"]
    child = tiny.start(
        tmp_path, *words, str(tmp_path / "ray.jsonl"), "--ray", address, env=ON_LOOPBACK
    )
    journal = tmp_path / ".ray.jsonl.answers"
    for _ in range(6000):  # until a chunk is there
        assert child.poll() is None, child.communicate()
        if journal.exists() and journal.stat().st_size > 100:
            break
        time.sleep(0.05)
    assert len(journal.read_bytes().splitlines()) < ROWS - row_answers.CHUNK, (
        "it was over before a node was killed"
    )
    nodes.stdin.write("kill\n")
    nodes.stdin.flush()
    assert nodes.stdout.readline() == "killed\n"
    _, said = child.communicate(timeout=600)
    assert child.returncode == 0, said
    assert f"{ROWS:,} rows written to {tmp_path / 'ray.jsonl'}, 0 with an error" in said
    tiny.ok(tiny.slmctl(tmp_path, *words, str(tmp_path / "one.jsonl")))
    require_same([tmp_path / "ray.jsonl"], tmp_path / "one.jsonl")


@pytest.mark.slow
def test_a_cluster_of_this_machine_alone_is_started_and_ended(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", 600)
    words = ["predict", RELEASE, "--input", str(source), "--column", "text", "--output"]
    tiny.ok(tiny.slmctl(tmp_path, *words, str(tmp_path / "ray.csv"), "--ray", "local", "--offline"))
    tiny.ok(tiny.slmctl(tmp_path, *words, str(tmp_path / "one.csv")))
    require_same([tmp_path / "ray.csv"], tmp_path / "one.csv")
    done = tiny.slmctl(tmp_path, *words, "out.csv", "--ray", "127.0.0.1:9")
    assert done.returncode == 9
    assert "there is no Ray cluster at 127.0.0.1:9" in done.stderr
