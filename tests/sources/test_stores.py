"""Folders and buckets hold the same files under the same names, and a bucket is asked at its own host alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slmctl.errors import DataError, NetworkError, UsageError
from slmctl.network import guard
from slmctl.sources import stores

pytest.importorskip("pyarrow")

FILES = ("in/a.csv", "in/b.jsonl", "in/day=1/c.csv", "in/day=1/x/d.csv", "in/_log/e.csv", "in/.f.csv", "in/g.txt")


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a store with FILES, each holding its own name."""
    if request.param == "folder":
        for name in FILES:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
        yield str(tmp_path)
        return
    boto3 = pytest.importorskip("boto3")
    url = request.getfixturevalue("s3")
    for key, value in {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}.items():
        monkeypatch.setenv(key, value)
    client: Any = boto3.client("s3", region_name="us-east-1")
    for name in FILES:
        client.put_object(Bucket="models", Key=f"{tmp_path.name}/{name}", Body=name.encode())
    yield f"s3://models/{tmp_path.name}"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("in/*.csv", ["a.csv"]),
        ("in/**/*.csv", ["a.csv", "day=1/c.csv", "day=1/x/d.csv"]),
        ("in/day=*/*.csv", ["day=1/c.csv"]),
        ("in/day=1/", ["c.csv", "x/d.csv"]),
        ("in/a.csv", ["a.csv"]),
    ],
)
def test_a_pattern_names_the_same_files_everywhere(place: str, pattern: str, names: list[str]) -> None:
    with stores.listed(f"{place}/{pattern}") as (store, files):
        assert [file.name for file in files] == names
        for file in files:
            with store.opened(file) as stream:
                raw = stream.read()
            assert f"in/{raw.decode().removeprefix('in/')}".endswith(file.name)
            assert len(raw) == file.size


def test_what_is_put_is_there_and_comes_back(place: str, tmp_path: Path) -> None:
    sent = tmp_path / "sent.bin"
    sent.write_bytes(os.urandom(3 << 20))
    with stores.writable(f"{place}/out/") as store:
        assert store.state("deep/er.csv") is None
        store.put("deep/er.csv", sent)
        state = store.state("deep/er.csv")
        assert state is not None and state.size == 3 << 20
        store.fetch(state, tmp_path / "back.bin")
        assert (tmp_path / "back.bin").read_bytes() == sent.read_bytes()
        store.put("deep/er.csv", tmp_path / "back.bin")
        with pytest.raises(DataError, match="has changed while it was read"):
            store.fetch(stores.StoredFile("deep/er.csv", 3, "0"), tmp_path / "back.bin")


def test_what_is_not_there_is_said(place: str) -> None:
    with (
        pytest.raises((DataError, UsageError), match=r"no data file|matches no file"),
        stores.listed(f"{place}/in/*.x"),
    ):
        pass
    with pytest.raises(UsageError, match="go to a folder") as caught, stores.writable(f"{place}/out.csv"):
        pass
    assert caught.value.hint == f"--output {place}/"


@pytest.mark.parametrize("address", ["gs://bucket/in", "s3:///in", "s3://UPPER_case/in", "file:///etc"])
def test_an_address_that_names_no_store(address: str) -> None:
    with pytest.raises(UsageError, match=r"names no (store|bucket)"), stores.listed(address):
        pass


def test_a_bucket_that_refuses_or_is_away_is_one_sentence(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "never-to" + "-be-seen"
    for key, value in {"AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": secret}.items():
        monkeypatch.setenv(key, value)
    with stores.writable("s3://no-such-bucket/out/") as store, pytest.raises(NetworkError, match="refused") as caught:
        store.put("a.csv", Path(__file__))
    assert secret not in f"{caught.value} {caught.value.hint}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://me:pw@storage.example")
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL is no address"), stores.listed("s3://models/in"):
        pass


def test_the_host_is_named_and_offline_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setattr(guard, "contacted", set())
    monkeypatch.setattr(guard, "uncounted", set())
    with contextlib.ExitStack() as stack:
        stack.enter_context(stores.writable("s3://models/out/"))  # which asks nobody yet
        assert guard._only == frozenset({"models.s3.eu-central-1.amazonaws.com"})
        assert guard.receipt()["not_counted"] == ["models.s3.eu-central-1.amazonaws.com"]
    monkeypatch.setattr(guard, "_forbidden", True)
    with pytest.raises(NetworkError, match="--offline forbids it"), stores.writable("s3://models/out/"):
        pass
