"""A sentence encoder in a GGUF file, run by llama.cpp in a child process: texts -> vectors."""

from __future__ import annotations

import base64
import importlib.util
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from slmctl.child import DiedError, LateError, LineChild
from slmctl.errors import MissingError, StageError
from slmctl.hardware import usable_cores
from slmctl.installation import pip_line

LOAD_S, BATCH_S = 120.0, 120.0
TOGETHER = 64  # texts of a line, which a large encoder reads in that time too


class EncoderError(StageError):
    """The encoder could not be loaded, or its process ended."""


class Encoder:
    """A loaded encoder; it may be asked from several threads, which wait for each other.

    Args:
        gguf: Its file.
        threads: CPU threads; the cores that this process may use, by default.

    Raises:
        MissingError: llama-cpp-python is not installed.
        EncoderError: The file cannot be loaded, or is no sentence encoder.
    """

    def __init__(self, gguf: Path, *, threads: int | None = None) -> None:
        if importlib.util.find_spec("llama_cpp") is None:
            raise MissingError(
                "running an encoder needs the package 'llama_cpp', which is not installed", hint=pip_line("gguf")
            )
        self.gguf = gguf
        self._child = LineChild("slmctl.models.encoder_child", str(gguf), str(threads or usable_cores()))
        self._lock = threading.Lock()
        try:
            ready = json.loads(self._child.start(LOAD_S))
        except (DiedError, LateError, OSError) as error:
            self._child.close()
            raise EncoderError(f"{gguf.name} cannot be loaded as a sentence encoder: {_reason(error)}") from None
        self.size: int = ready["size"]  # of a vector
        self.build: str = ready["build"]

    def encode(self, texts: Sequence[str], *, together: int = TOGETHER) -> npt.NDArray[np.float32]:
        """The vectors (texts, size) of some texts, each of length 1.

        Args:
            together: Texts that may share a batch, in which sums are rounded otherwise; with 1 the vector of a text
                follows from that text alone.

        Raises:
            EncoderError: The process ended, or took longer than BATCH_S for TOGETHER texts.
        """
        parts = [texts[k : k + together] for k in range(0, len(texts), together)]
        if not parts:
            return np.zeros((0, self.size), np.float32)
        lines = "".join(json.dumps(list(part)) + "\n" for part in parts).encode()
        with self._lock:
            try:
                if not self._child.alive:
                    self._child.start(LOAD_S)
                answers = list(self._child.answers(lines, len(parts), BATCH_S))
            except (DiedError, LateError, OSError) as error:
                raise EncoderError(f"the encoder {self.gguf.name} ended: {_reason(error)}") from None
        raw = b"".join(base64.b64decode(json.loads(answer)["vectors"]) for answer in answers)
        return np.frombuffer(raw, np.float32).reshape(-1, self.size)

    @property
    def pid(self) -> int:
        """The id of its process; 0 without one."""
        return self._child.pid

    def close(self) -> None:
        """End its process."""
        self._child.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reason(error: Exception) -> str:
    return error.words if isinstance(error, DiedError) and error.code > 0 else str(error) or "it took too long"
