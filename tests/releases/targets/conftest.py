"""Servers of the kinds that releases go to, each on the loopback and ended by its process id."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny
from support.servers import free_port, serving


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
    with serving(["docker-registry", "serve", str(folder / "config.yml")], port, folder / "log"):
        yield f"127.0.0.1:{port}"
