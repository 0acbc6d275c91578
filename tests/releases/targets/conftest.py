"""Servers of the kinds that releases go to, each on the loopback and ended by its process id."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def await_port(port: int, child: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        assert child.poll() is None, "the server did not start"
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server did not listen")


def serve(command: list[str], port: int, log: Path) -> Iterator[int]:
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as child:
        try:
            await_port(port, child)
            yield port
        finally:
            child.kill()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 service with a bucket `models`: moto's server."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    for _ in serve(command, port, tmp_path_factory.mktemp("moto") / "log"):
        url = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="id", aws_secret_access_key="key"
        )
        client.create_bucket(Bucket="models")
        yield url


@pytest.fixture(scope="session")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of an OCI registry: Debian's docker-registry."""
    yield from docker_registry(tmp_path_factory.mktemp("oci"))


@pytest.fixture(scope="session")
def locked_oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same, for jo alone, whose password is `open sesame`."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "htpasswd").write_text("jo:$2y$04$abcdefghijklmnopqrstuu/LVz6MZlItEy42I2juLihZ66HnQx/cy\n")
    yield from docker_registry(folder, f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n")


def docker_registry(folder: Path, more: str = "") -> Iterator[str]:
    pytest.importorskip("oras")
    if shutil.which("docker-registry") is None and not tiny.REQUIRED:
        pytest.skip("docker-registry is not installed: apt-get install docker-registry")
    port = free_port()
    (folder / "config.yml").write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n" + more
    )
    for _ in serve(["docker-registry", "serve", str(folder / "config.yml")], port, folder / "log"):
        yield f"127.0.0.1:{port}"
