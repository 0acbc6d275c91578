"""S3 beyond what all targets do: parts of large files, who comes first, and what the secret is seen by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.released import contents, release

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
    return module.open(f"s3://models/{tmp_path.name}", Settings(endpoint=s3))


def test_a_large_file_goes_on_where_it_was_cut(
    bucket: module.Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 5 << 20)  # the least that S3 takes
    made = release(tmp_path, weights=os.urandom(12 << 20))
    sent: list[int] = []
    upload = bucket._client.upload_part

    def counted(**asked: Any) -> Any:
        if len(sent) == 1:
            raise ConnectionError("cut")
        sent.append(asked["PartNumber"])
        return upload(**asked)

    monkeypatch.setattr(bucket._client, "upload_part", counted)
    shipment = targets.shipment(made)
    with pytest.raises(ConnectionError):
        targets.deliver(bucket, targets.plan(bucket, "s3:", shipment))
    assert made.files(".gguf")[0].path not in bucket.holds(shipment)
    sent.append(0)
    targets.deliver(bucket, targets.plan(bucket, "s3:", shipment))
    assert sent == [1, 0, 2, 3]
    assert contents(targets.fetch(bucket, "", None, into=tmp_path).path) == contents(made.path)


@pytest.mark.parametrize("completed", [True, False])
def test_another_publisher_may_end_the_upload_that_both_took_up(
    bucket: module.Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, completed: bool
) -> None:
    """As S3 answers then; moto takes an upload that has ended."""
    monkeypatch.setattr(module, "PART", 5 << 20)
    shipment = targets.shipment(release(tmp_path, weights=os.urandom(6 << 20)))
    complete = bucket._client.complete_multipart_upload

    def late(**asked: Any) -> Any:
        if completed:
            complete(**asked)
        told = {"Error": {"Code": "NoSuchUpload"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
        raise ClientError(told, "CompleteMultipartUpload")

    monkeypatch.setattr(bucket._client, "complete_multipart_upload", late)
    if completed:
        targets.deliver(bucket, targets.plan(bucket, "s3:", shipment))
        found = targets.fetch(bucket, "", None, into=tmp_path)
        assert contents(found.path) == contents(shipment.release.path)
    else:
        with pytest.raises(NetworkError, match="NoSuchUpload"):
            targets.deliver(bucket, targets.plan(bucket, "s3:", shipment))


def test_of_two_who_publish_a_version_the_first_one_stays(bucket: module.Bucket, tmp_path: Path) -> None:
    ours, theirs = (targets.shipment(release(tmp_path, weights=one)) for one in (b"ours", b"theirs"))
    plans = [targets.plan(bucket, "s3://models", one) for one in (ours, theirs)]  # neither sees the other
    targets.deliver(bucket, plans[0])
    with pytest.raises(IntegrityError, match=r"already holds another desk 1\.0"):
        targets.deliver(bucket, plans[1])
    assert contents(targets.fetch(bucket, "", None, into=tmp_path).path) == contents(ours.release.path)


def test_a_refusal_is_one_sentence_without_the_secret(s3: str, tmp_path: Path, bucket: module.Bucket) -> None:
    nowhere = module.open("s3://no-such-bucket/x", Settings(endpoint=s3))
    with pytest.raises(NetworkError, match="s3://no-such-bucket refused") as caught:
        targets.plan(nowhere, "s3:", targets.shipment(release(tmp_path)))
    assert SECRET not in f"{caught.value} {caught.value.hint} {bucket.__dict__}"
    gone = module.open("s3://models/x", Settings(endpoint="http://127.0.0.1:9"))
    gone._client.meta.config.retries = {"max_attempts": 0}
    with pytest.raises(NetworkError, match="cannot be reached"):
        gone.published("desk", "1.0")


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_the_hosts_are_known_before_they_are_asked(monkeypatch: pytest.MonkeyPatch, region: str) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_REGION", region)
    amazon = module.open("s3://models/x", Settings())
    asked = amazon._client.generate_presigned_url("get_object", {"Bucket": "models", "Key": "x"})
    assert amazon.hosts == (urlsplit(asked).hostname,)
    own = Settings(endpoint="https://storage.example:9000", hosts=("sts.example",))
    assert module.open("s3://models/x", own).hosts == ("storage.example", "sts.example")
    with pytest.raises(UsageError, match="no address"):
        module.open("s3://models/x", Settings(endpoint="https://me:pw@storage.example"))
