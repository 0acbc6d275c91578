"""s3://BUCKET/PREFIX: objects of any S3 service, laid out like a registry in a folder.

    PREFIX/.blobs/<sha256>                       every file once
    PREFIX/<project>/<version>/manifest.json     written last: with it the release is visible
    PREFIX/<project>/<version>/model.sig         if it was signed

A file named by its hash can be written by several processes at once. A version is visible only when
all its files are there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from slmctl.artifacts.artifact import MANIFEST, SIGNATURE
from slmctl.errors import IntegrityError, NetworkError, UsageError
from slmctl.network import guard
from slmctl.network.credentials import secret
from slmctl.releases.targets import Settings, Shipment, ShipmentFile, gather

LARGEST_LISTING = 1000  # pages of 1,000 objects
# stored under the version; all other files are stored under their hash
_BY_NAME = (MANIFEST, SIGNATURE)


def open(to: str, settings: Settings) -> Bucket:
    """The bucket of an address.

    Raises:
        UsageError: The address, or a variable of the environment, is none.
    """
    bucket, _, prefix = to.removeprefix("s3://").partition("/")
    if "@" in bucket:
        raise UsageError(
            "an s3:// address takes no user and password: s3://BUCKET/PREFIX",
            hint="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY hold them",
        )
    return Bucket(bucket, prefix.strip("/"), settings)


class Bucket:
    """A place in a bucket as a target."""

    visibility = "who may read the bucket"

    def __init__(self, bucket: str, prefix: str, settings: Settings) -> None:
        self.bucket, self.prefix = bucket, prefix
        key, hidden = secret("AWS_ACCESS_KEY_ID"), secret("AWS_SECRET_ACCESS_KEY")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        if not re.fullmatch(r"[A-Za-z0-9-]{1,63}", region):
            raise UsageError("AWS_REGION is no name of a region", hint="AWS_REGION=us-east-1")
        try:
            url = urlsplit(endpoint or "https://amazonaws.com")
            if url.username or not url.hostname or url.port == 0:  # the port is read here
                raise ValueError
            self._client: Any = boto3.client(
                "s3",
                endpoint_url=endpoint,
                region_name=region,
                aws_access_key_id=key,
                aws_secret_access_key=hidden,
                aws_session_token=secret("AWS_SESSION_TOKEN") if key else None,
                config=Config(
                    # no credentials of a file or of the host
                    signature_version=None if key and hidden else UNSIGNED,
                    s3={"addressing_style": "path" if endpoint else "virtual"},
                    # services other than AWS support only MD5
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        except ValueError:  # botocore says the same with one
            raise UsageError(
                "AWS_ENDPOINT_URL is no address such as https://storage.example",
                hint="without a password",
            ) from None
        except BotoCoreError as error:
            raise UsageError(
                f"boto3 takes no variable of AWS_* as it is: {type(error).__name__}"
            ) from None
        _bound(self._client)
        url = urlsplit(self._client.meta.endpoint_url)
        arguments = f"{url.scheme}://{'' if endpoint else f'{bucket}.'}{url.netloc}"
        self.hosts = (*sorted(guard.on_the_way(arguments)), *settings.hosts)

    def where(self, shipment: Shipment, item: ShipmentFile) -> str:
        key = self._key(shipment.project, shipment.version, item.name, item.sha256)
        return f"s3://{self.bucket}/{key}"

    def holds(self, shipment: Shipment) -> set[str]:
        held = set()
        with _spoken(self.bucket):
            for item in shipment.items:
                if self._has(
                    self._key(shipment.project, shipment.version, item.name, item.sha256), item
                ):
                    held.add(item.name)
        return held

    def put(self, shipment: Shipment, missing: Sequence[ShipmentFile]) -> None:
        with _spoken(self.bucket):
            for item in missing:
                if item.name != MANIFEST:
                    key = self._key(shipment.project, shipment.version, item.name, item.sha256)
                    about = {"Metadata": {"sha256": item.sha256}}
                    self._client.upload_file(str(item.path), self.bucket, key, ExtraArgs=about)

    def finish(self, shipment: Shipment) -> None:
        """Write the manifest, unless another process has written one meanwhile."""
        item = shipment.manifest
        body = item.path.read_bytes()
        key = self._key(shipment.project, shipment.version, MANIFEST, "")
        about = {"sha256": item.sha256}
        arguments: dict[str, Any] = {
            "Bucket": self.bucket,
            "Key": key,
            "Body": body,
            "Metadata": about,
        }
        with _spoken(self.bucket):
            try:
                self._client.put_object(**arguments, IfNoneMatch="*")
            except ClientError as error:
                # a service without conditions
                if error.response["Error"]["Code"] in ("NotImplemented", "501"):
                    self._client.put_object(**arguments)
                elif error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
                    raise

    def find(self, name: str) -> tuple[str, str]:
        project, _, version = name.rpartition("@")
        releases = self._releases()
        answer = sorted(
            entry for entry in releases if version in ("", entry[1]) and project in ("", entry[0])
        )
        if len(answer) == 1:
            return answer[0]
        listed = ", ".join("@".join(entry) for entry in sorted(releases)) or "none"
        if not answer:
            raise IntegrityError(
                f"s3://{self.bucket}/{self.prefix} holds no release '{name}'",
                hint=f"there: {listed}",
            )
        raise UsageError(f"'{name}' may mean several releases", hint=f"#PROJECT@VERSION: {listed}")

    @contextlib.contextmanager
    def read(
        self, project: str, version: str, name: str, sha256: str
    ) -> Iterator[Iterator[bytes] | None]:
        key = self._key(project, version, name, sha256)
        with _spoken(self.bucket):
            answer = _unless_missing(lambda: self._client.get_object(Bucket=self.bucket, Key=key))
            if answer is None:
                yield None
            else:
                with contextlib.closing(answer["Body"]) as body:
                    yield body.iter_chunks(1 << 20)

    def _key(self, project: str, version: str, name: str, sha256: str) -> str:
        inner = f"{project}/{version}/{name}" if name in _BY_NAME else f".blobs/{sha256}"
        return f"{self.prefix}/{inner}" if self.prefix else inner

    def _releases(self) -> set[tuple[str, str]]:
        start = f"{self.prefix}/" if self.prefix else ""
        answer = set()
        with _spoken(self.bucket):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=start
            )
            for number, page in enumerate(pages):
                if number == LARGEST_LISTING:
                    raise IntegrityError(
                        f"s3://{self.bucket}/{self.prefix} lists too many objects for a registry"
                    )
                for entry in page.get("Contents", []):
                    parts = entry["Key"].removeprefix(start).split("/")
                    if len(parts) == 3 and parts[2] == MANIFEST:
                        answer.add((parts[0], parts[1]))
        return answer

    def _has(self, key: str, item: ShipmentFile) -> bool:
        head = _unless_missing(lambda: self._client.head_object(Bucket=self.bucket, Key=key))
        return head is not None and (head["ContentLength"], head["Metadata"].get("sha256")) == (
            item.size,
            item.sha256,
        )


def _bound(client: Any) -> None:
    """Limit the size of every response except a file's content:
    botocore reads responses without a bound.
    """
    session = client._endpoint.http_session
    send = session.send

    def bounded(request: Any) -> Any:
        streamed, request.stream_output = request.stream_output, True
        answer = send(request)
        if not streamed or answer.status_code >= 300:
            try:
                answer._content = gather(answer.raw.stream(1 << 16), "an answer of the service")
            except IntegrityError:
                answer.raw.close()
                raise
        return answer

    session.send = bounded


def _unless_missing(ask: Any) -> Any:
    try:
        return ask()
    except ClientError as error:
        if (
            error.response["ResponseMetadata"]["HTTPStatusCode"] == 404
            and "Bucket" not in error.response["Error"]["Code"]
        ):
            return None
        raise


@contextlib.contextmanager
def _spoken(bucket: str) -> Iterator[None]:
    """Convert errors of boto3 to NetworkError, without its message,
    which can hold the id of the key.
    """
    try:
        yield
    except (ClientError, S3UploadFailedError) as error:
        refusal: Any = error if isinstance(error, ClientError) else error.__context__
        raise NetworkError(
            f"s3://{bucket} refused {refusal.operation_name}: {refusal.response['Error']['Code']}",
            hint="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that the bucket exists",
        ) from None
    except BotoCoreError as error:
        raise NetworkError(
            f"s3://{bucket} cannot be reached: {str(error).splitlines()[0]}"
        ) from None
