"""llama.cpp's HF-to-GGUF converter, from the source package of the installed llama-cpp-python.

The wheel has no converter; its source package holds the one of exactly the commit that was built.
`slmctl doctor --fix` fetches it once; `quantize` only runs the fetched files, after checking every
hash.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from slmctl import child, child_environment, console, installation
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import canonical, scan, sha256_file
from slmctl.errors import IntegrityError, MissingError, StageError
from slmctl.installation import pip_line
from slmctl.network import guard, package_index

PACKAGE = "llama-cpp-python"
SCRIPT, LORA_SCRIPT = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
SEAL_FILE = "seal.json"  # sha256 of every file, and of the source package they came from
KEPT_PATHS = (
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "conversion/",
    "gguf-py/gguf/",
    "LICENSE",
)
LLAMA_CPP_FOLDER = "vendor/llama.cpp"
# of a conversion, and bytes of the model that it then reads a second
LIMIT_S, LEAST_A_SECOND = 1200, 1e6

# sha256 of source packages that were reviewed; another version is trusted as the package index
# serves it.
SOURCE_SHA256 = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}


def version() -> str:
    """The installed version of llama-cpp-python.

    Raises:
        MissingError: It is not installed.
    """
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise MissingError(f"{PACKAGE} is not installed", hint=pip_line("gguf")) from None


def folder() -> Path:
    """The folder of the converter of the installed version, or the one that `fetch` would make."""
    places = [place / f"converter-{version()}" for place in installation.kept_folders()]
    there = next((place for place in places if os.path.exists(place / SEAL_FILE)), None)  # noqa: PTH110 - see can_write
    return there or next((place for place in places if installation.can_write(place)), places[0])


def state() -> str:
    """`ready`, `missing` or `damaged: …`."""
    place = folder()
    if not os.path.exists(place / SEAL_FILE):  # noqa: PTH110 - see can_write
        return "missing"
    try:
        whole = json.loads((place / SEAL_FILE).read_bytes())["files"] == _hashes(place)
    except (OSError, ValueError, LookupError, TypeError):
        whole = False
    return "ready" if whole else f"damaged: {place} has changed since it was fetched"


def source_hash() -> str:
    """sha256 of the source package that holds the converter."""
    return str(json.loads((folder() / SEAL_FILE).read_bytes())["source"])


def require() -> Path:
    """The folder of the converter, verified.

    Raises:
        MissingError: It was never fetched.
        IntegrityError: A file has changed since.
    """
    status = state()
    if status == "missing":
        raise MissingError(
            f"the GGUF converter of {PACKAGE} {version()} is missing", hint="slmctl doctor --fix"
        )
    if status != "ready":
        raise IntegrityError(
            f"the GGUF converter is {status}", hint=f"rm -r {folder()} && slmctl doctor --fix"
        )
    return folder()


def fetch() -> Path:
    """Download the source package with pip and keep its converter; nothing of it is installed or
    run.

    Raises:
        MissingError: No folder for it can be written.
        NetworkError: pip could not fetch it.
        IntegrityError: Its sha256 is not the one in SOURCE_SHA256.
    """
    number, place = version(), folder()
    if not installation.can_write(place):
        places = " nor ".join(str(folder) for folder in installation.kept_folders())
        raise MissingError(
            f"the GGUF converter cannot be kept: neither {places} can be written",
            hint="XDG_CACHE_HOME=FOLDER slmctl doctor --fix, with the same variable wherever "
            "slmctl runs; or let the "
            "owner of this environment run slmctl doctor --fix",
        )
    with atomic.folder(place) as out:
        options = ("--no-binary", PACKAGE)
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            packages = package_index.download(
                f"{PACKAGE}=={number}",
                Path(scratch),
                *options,
                purpose="doctor --fix",
                largest=1 << 30,
            )
            digest = sha256_file(packages[0]).removeprefix("sha256:")
            if SOURCE_SHA256.get(number, digest) != digest:
                raise IntegrityError(
                    f"the source of {PACKAGE} {number} has sha256 {digest}, expected "
                    f"{SOURCE_SHA256[number]}"
                )
            _unpack(packages[0], out)
        (out / SEAL_FILE).write_bytes(canonical({"source": digest, "files": _hashes(out)}))
    return place


def convert(model: Path, target: Path, *, dtype: str, metadata: dict[str, str]) -> None:
    """Write an HF folder as one GGUF file of a dtype (f32, f16, bf16), with further metadata by
    GGUF key.

    Raises:
        StageError: The converter does not know the architecture or the tokenizer, or failed.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        sheet = Path(scratch) / "metadata.json"
        sheet.write_bytes(canonical(metadata))
        _run(SCRIPT, [str(model), "--outtype", dtype, "--metadata", str(sheet)], target)


def convert_lora(adapter: Path, target: Path, *, base: Path) -> None:
    """Write an adapter in PEFT's format as its own GGUF file in float16; the folder `base` gives
    the architecture.

    Raises:
        StageError: The converter does not know the architecture, or failed.
    """
    _run(LORA_SCRIPT, [str(adapter), "--base", str(base), "--outtype", "f16"], target)


def _run(script: str, arguments: list[str], target: Path) -> None:
    """Run one of the converter's scripts in a child process."""
    # Without PYTHONPATH the script imports the gguf package of its own folder, which fits it.
    kept = {
        key: value
        for key, value in child_environment.bare(**guard.SWITCHES).items()
        if key != "PYTHONPATH"
    }
    try:
        done = child.run(
            Path(__file__).with_name("gguf_converter_child.py"),
            str(require()),
            script,
            *arguments,
            "--outfile",
            str(target),
            env=kept | {"PYTHONDONTWRITEBYTECODE": "1", "TQDM_DISABLE": "1"},
            timeout_s=LIMIT_S
            + sum(entry.size for entry in scan(Path(arguments[0]))) / LEAST_A_SECOND,
        )
    except child.LateError:
        raise StageError(
            "the GGUF converter does not end",
            hint="does the model's config.json say what its weights hold?",
        ) from None
    except child.DiedError as death:
        # on a full disk, numpy reports only how many items of an array it wrote
        full = re.search(
            r"No space left|Disk quota|File too large|\d+ requested and \d+ written", death.log
        )
        raise StageError(
            f"the GGUF converter failed: {death}",
            hint="the disk is full: df -h ." if full else "slmctl -v quantize shows what it said",
        ) from None
    for line in done.stderr.splitlines():
        console.detail(line)
    if not target.exists():
        raise StageError(
            "the GGUF converter wrote no file", hint="slmctl -v quantize shows what it said"
        )


def _hashes(place: Path) -> dict[str, str]:
    return {
        entry.path: entry.sha256
        for entry in scan(place)
        if entry.path != SEAL_FILE and "__pycache__" not in entry.path
    }


def _unpack(package: Path, out: Path) -> None:
    with tarfile.open(package) as archive:
        for member in archive:
            _, _, name = member.name.partition(LLAMA_CPP_FOLDER + "/")
            if (
                not (member.isfile() and name.startswith(KEPT_PATHS))
                or ".." in PurePosixPath(name).parts
            ):
                continue
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            stream = archive.extractfile(member)
            assert stream is not None
            target.write_bytes(stream.read())
    if not (out / SCRIPT).exists():
        raise IntegrityError(f"the source package {package.name} holds no {SCRIPT}")
