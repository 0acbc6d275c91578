"""A sentence encoder in a GGUF file, run by llama.cpp in a child process: texts -> vectors."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from slmctl.errors import MissingError
from slmctl.hardware import usable_cores
from slmctl.inference.supervised_child import Supervised
from slmctl.installation import pip_line

TOGETHER = 64  # texts of a message


class Encoder(Supervised):
    """A loaded encoder; it may be asked from several threads.

    Args:
        threads: CPU threads; the cores that this process may use, by default.

    Raises:
        MissingError: llama-cpp-python is not installed.
        EngineError: The file cannot be loaded, or is not a sentence encoder.
    """

    name, purpose, stuck_s = "the encoder", " as a sentence encoder", 120.0  # that TOGETHER texts may take

    def __init__(self, gguf: Path, *, threads: int | None = None) -> None:
        if importlib.util.find_spec("llama_cpp") is None:
            raise MissingError(
                "running an encoder needs the package 'llama_cpp', which is not installed", hint=pip_line("gguf")
            )
        self._threads = threads or usable_cores()
        super().__init__(gguf)

    def command(self) -> tuple[str, ...]:
        return "slmctl.models.encoder_child", str(self.gguf), str(self._threads)

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return int(self.info["size"])

    def encode(self, texts: Sequence[str], *, together: int = TOGETHER) -> npt.NDArray[np.float32]:
        """The vectors (texts, size) of some texts, each of length 1.

        Args:
            together: Texts that may share a batch, in which sums are rounded otherwise; with 1 the vector of a text
                follows from that text alone.

        Raises:
            EngineError: The process ended.
        """
        messages = [{"texts": list(texts[k : k + together])} for k in range(0, len(texts), together)]
        raw = b"".join(base64.b64decode(reply["vectors"]) for reply in self.replies(messages))
        return np.frombuffer(raw, np.float32).reshape(-1, self.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
