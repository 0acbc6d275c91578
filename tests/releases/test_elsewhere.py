"""The commands of docs/publish.md that bring a release to an OCI
registry and back, against Debian's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import tiny
from support.released import contents, release
from support.servers import free_port, serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "publish.md"


@pytest.mark.skipif(
    not (shutil.which("oras") and shutil.which("docker-registry")), reason="apt-get install oras"
)
def test_a_release_goes_to_an_oci_registry_and_comes_back(tmp_path: Path) -> None:
    (push,) = re.findall(r"^ +(oras push .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    (pull,) = re.findall(
        r"^ +(oras pull .*) && slmctl verify FOLDER$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    made, port = release(tmp_path), free_port()
    (tmp_path / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with serving(
        ["docker-registry", "serve", str(tmp_path / "config.yml")], port, tmp_path / "log"
    ):
        for command in (push, pull):
            words = command.replace("HOST", f"localhost:{port}").replace(
                "FOLDER", str(tmp_path / "here")
            )
            subprocess.run(
                words,
                shell=True,
                cwd=made.path,
                check=True,
                timeout=60,
                env=tiny.environment(HOME=str(tmp_path)),
            )
    assert contents(tmp_path / "here") == contents(made.path)
