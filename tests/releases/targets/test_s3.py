"""S3 beyond what all targets do: large files, who comes first, and what the secret is seen by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.released import contents, release, send

from slmctl.errors import IntegrityError, NetworkError, UsageError
from slmctl.releases import targets
from slmctl.releases.targets import Settings

boto3 = pytest.importorskip("boto3")

from botocore.exceptions import ClientError  # noqa: E402

from slmctl.releases.targets import s3 as module  # noqa: E402

SECRET = "never-to" + "-be-seen"


@pytest.fixture
def bucket(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> module.Bucket:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    return module.open(f"s3://models/{tmp_path.name}", Settings())


def test_a_large_file_whose_upload_is_refused_is_not_there(
    bucket: module.Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(tmp_path, weights=os.urandom(12 << 20))  # more than boto3 sends as one part

    def refused(**asked: Any) -> Any:
        told = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
        raise ClientError(told, "UploadPart")

    shipment = targets.shipment(made)
    with monkeypatch.context() as broken:
        broken.setattr(bucket._client, "upload_part", refused)
        with pytest.raises(NetworkError, match="refused UploadPart: SlowDown"):
            send(bucket, made)
    assert made.files(".gguf")[0].path not in bucket.holds(shipment)
    assert targets.published(bucket, "desk", "1.0") is None
    send(bucket, made)
    assert contents(targets.fetch(bucket, "", None, into=tmp_path).path) == contents(made.path)


def test_of_two_who_publish_a_version_the_first_one_stays(
    bucket: module.Bucket, tmp_path: Path
) -> None:
    ours, theirs = (
        targets.shipment(release(tmp_path, weights=one)) for one in (b"ours", b"theirs")
    )
    # neither sees the other
    plans = [targets.plan(bucket, "s3://models", one) for one in (ours, theirs)]
    targets.deliver(bucket, plans[0])
    with pytest.raises(IntegrityError, match=r"already holds another desk 1\.0"):
        targets.deliver(bucket, plans[1])
    assert contents(targets.fetch(bucket, "", None, into=tmp_path).path) == contents(
        ours.release.path
    )


def test_a_refusal_is_one_sentence_without_the_secret(
    bucket: module.Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = module.open("s3://no-such-bucket/x", Settings())
    with pytest.raises(NetworkError, match="s3://no-such-bucket refused") as caught:
        targets.plan(nowhere, "s3:", targets.shipment(release(tmp_path)))
    assert SECRET not in f"{caught.value} {caught.value.hint} {bucket.__dict__}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    gone = module.open("s3://models/x", Settings())
    gone._client.meta.config.retries = {"max_attempts": 0}
    with pytest.raises(NetworkError, match="cannot be reached"):
        targets.published(gone, "desk", "1.0")


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_the_hosts_are_known_before_they_are_asked(
    monkeypatch: pytest.MonkeyPatch, region: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_REGION", region)
    amazon = module.open("s3://models/x", Settings())
    asked = amazon._client.generate_presigned_url("get_object", {"Bucket": "models", "Key": "x"})
    assert amazon.hosts == (urlsplit(asked).hostname,)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://storage.example:9000")
    own = Settings(hosts=("sts.example",))
    assert module.open("s3://models/x", own).hosts == ("storage.example", "sts.example")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AWS_ENDPOINT_URL", "https://me:pw@storage.example", "no address"),
        ("AWS_ENDPOINT_URL", "http://[", "no address"),
        ("AWS_ENDPOINT_URL", "storage.example", "no address"),
        ("AWS_ENDPOINT_URL", "http://a b", "no address"),
        ("AWS_ENDPOINT_URL", "http://host:port", "no address"),
        ("AWS_REGION", "../evil", "no name of a region"),
        ("AWS_REGION", "us-east-1.evil.example/", "no name of a region"),
        ("AWS_REGION", "a" * 300, "no name of a region"),
    ],
)
def test_a_variable_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=words):
        module.open("s3://models/x", Settings())
