"""A missing package, a full memory or a full disk as an expected failure."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Collection, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path

from slmctl.errors import FullError, MissingError
from slmctl.installation import pip_line

_SERVES = ("starlette", "uvicorn", "httptools", "prometheus_client")
_LOADS = ("torch", "transformers", "safetensors", "tokenizers")
# Packages that an extra brings. Extras that need no compiler stand first: of two that bring a
# package these are named.
EXTRAS = {
    "evaluate": ("sklearn", "httpx"),
    "serve": (*_SERVES, "httpx"),
    "encoder": (*_SERVES, *_LOADS, "onnx", "onnxruntime", "sklearn", "httpx"),
    "gguf": (
        "llama_cpp",
        "llguidance",
        "gguf",
        "sentencepiece",
        "sklearn",
        "onnxruntime",
        "tokenizers",
    ),
    "train": (*_LOADS, "trl", "peft", "datasets", "accelerate", "huggingface_hub", "llguidance"),
    "data": ("pyarrow", "python_calamine", "sqlalchemy", "psycopg"),
    "documents": ("pypdfium2",),
    "ocr": ("rapidocr", "onnxruntime"),
    "publish": ("boto3", "huggingface_hub"),
    "sign": ("model_signing", "OpenSSL"),
    "cuda": ("unsloth",),
    "ray": ("ray",),
}


def extras_of(packages: Collection[str]) -> tuple[str, ...]:
    """The fewest extras that bring these packages."""
    sizes = range(1, len(EXTRAS) + 1)
    choices = itertools.chain.from_iterable(itertools.combinations(EXTRAS, size) for size in sizes)
    return next(
        extras
        for extras in choices
        if {*packages} <= {name for extra in extras for name in EXTRAS[extra]}
    )


def missing(error: ModuleNotFoundError, what: str) -> MissingError | ModuleNotFoundError:
    """Turn a package that an extra brings into a sentence; anything else stays the bug it is."""
    package = (error.name or "").partition(".")[0]
    if not any(package in brought for brought in EXTRAS.values()):
        return error
    text = f"{what} needs the package '{package}', which is not installed"
    return MissingError(text, hint=pip_line(*extras_of([package])))


@contextlib.contextmanager
def spoken(what: str, place: Path) -> Iterator[None]:
    """Turn errors of the machine into expected ones: a missing
    package, a full memory, a full disk.
    """
    try:
        with _RustErrors():
            yield
    except ModuleNotFoundError as error:
        raise missing(error, what) from error
    except BrokenExecutor:
        raise FullError(
            f"a process that {what} started ended abruptly, most often because memory ran out",
            hint="close other programs, or --set prepare.workers=1",
        ) from None
    except (MemoryError, RuntimeError) as error:
        # torch's own is a RuntimeError, on a CPU with nothing but its words
        named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not named and "can't allocate memory" not in str(error):
            raise
        raise FullError(
            f"{what} ran out of memory", hint="a smaller batch or a smaller base"
        ) from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise FullError(
                f"{what}: a file grew larger than this process may write ({place})",
                hint="ulimit -f unlimited",
            ) from None
        if error.errno in _FULL:
            raise FullError(f"{what}: the disk is full ({place})", hint="df -h .") from None
        if error.errno == errno.EIO:
            raise FullError(
                f"{what}: the disk could not be read or written ({place})", hint="dmesg | tail"
            ) from None
        raise


_FULL = (errno.ENOSPC, errno.EDQUOT)


class _RustErrors(contextlib.AbstractContextManager[None]):
    """Convert the plain Exception that Rust libraries raise for an I/O
    error ("… (os error 28)") to OSError.
    """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        match = re.search(r"\(os error (\d+)\)", str(error)) if type(error) is Exception else None
        if match and int(match[1]) in (*_FULL, errno.EFBIG, errno.EIO):
            raise OSError(int(match[1]), os.strerror(int(match[1]))) from error
