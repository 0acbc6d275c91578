"""A sentence encoder in an ONNX file, run by ONNX Runtime: texts -> vectors."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from slmctl.hardware import usable_cores
from slmctl.inference import ENCODER, INPUTS, OUTPUTS, TOKENIZER
from slmctl.inference.supervised_child import EngineError
from slmctl.installation import require

TOKENS = 256  # of a batch, padded ones too: larger ones leave the processor's caches
LONGEST = 1 << 16  # characters that are read of a text; its first tokens, 512 at most, count
Floats = npt.NDArray[np.float32]
Taken = TypeVar("Taken")


class Encoder:
    """A loaded encoder; it may be asked from several threads.

    Args:
        folder: Holds ENCODER and TOKENIZER.
        threads: Batches that are computed at once; by default one a core that this process may use.

    Raises:
        EngineError: The files cannot be loaded, or are not those of a sentence encoder.
        MissingError: A package is not installed.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        require("running an encoder", "encoder", "onnxruntime", "tokenizers")
        self._session, self._tokenizer = (
            _session(folder / ENCODER),
            load_tokenizer(folder / TOKENIZER),
        )
        shapes = {output.name: output.shape for output in self._session.get_outputs()}
        inputs = {value.name for value in self._session.get_inputs()}
        if inputs != {*INPUTS} or OUTPUTS[1] not in shapes:
            raise EngineError(
                f"{folder / ENCODER} is no sentence encoder: it reads {', '.join(sorted(inputs))} "
                "and "
                f"gives {', '.join(sorted(shapes))}"
            )
        self._pool = ThreadPoolExecutor(threads or usable_cores())
        self.size = self._compute([[0]]).shape[1]

    @property
    def build(self) -> str:
        """The release of ONNX Runtime."""
        return f"onnxruntime {importlib.metadata.version('onnxruntime')}"

    def encode(self, texts: Sequence[str]) -> Floats:
        """The vectors (texts, size) of some texts, each of length 1; they do not depend on each
        other.

        Raises:
            EngineError: ONNX Runtime failed, such as for want of memory.
        """
        with _Spoken("a text cannot be made tokens"):
            tokens = [self._tokenizer.encode(_readable(text)).ids for text in texts]
        vectors = np.zeros((len(texts), self.size), np.float32)

        def compute(batch: list[int]) -> None:
            vectors[batch] = self._compute([tokens[k] for k in batch])

        list(self._pool.map(compute, _batches([len(ids) for ids in tokens])))
        return vectors

    def read(
        self, rows: Sequence[Sequence[int]], take: Callable[[Floats, Floats], Taken]
    ) -> list[Taken]:
        """The part that is taken of each row of tokens.

        Args:
            take: Is called in several threads with the vectors of the tokens (tokens, size) and
                that of the row.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        parts: dict[int, Taken] = {}

        def compute(batch: list[int]) -> None:
            states, vectors = self._run([rows[k] for k in batch], OUTPUTS)
            for place, k in enumerate(batch):
                parts[k] = take(states[place, : len(rows[k])], vectors[place])

        list(self._pool.map(compute, _batches([len(row) for row in rows])))
        return [parts[k] for k in range(len(rows))]

    def _compute(self, rows: Sequence[Sequence[int]]) -> Floats:
        (vectors,) = self._run(rows, OUTPUTS[1:])
        return vectors

    def _run(self, rows: Sequence[Sequence[int]], outputs: Sequence[str]) -> list[Floats]:
        padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(padded)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = row
            mask[place, : len(row)] = 1
        with _Spoken("the encoder failed"):
            result: list[Floats] = self._session.run(
                [*outputs], dict(zip(INPUTS, (padded, mask), strict=True))
            )
        return result

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Spoken(contextlib.AbstractContextManager[None]):
    """Turns errors of ONNX Runtime and tokenizers, which have no
    class in common, into an EngineError.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, MemoryError | FileNotFoundError):
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise EngineError(f"{self.what}: {reason}") from error


def _session(path: Path) -> Any:
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # of builds for Windows
    options = onnxruntime.SessionOptions()
    # each thread computes its own batch
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # it would keep the room of the longest texts
    with _Spoken(f"{path} cannot be loaded as a sentence encoder"):
        return onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a file; raises an EngineError if it cannot be loaded."""
    from tokenizers import Tokenizer

    with _Spoken(f"{path} cannot be loaded as a tokenizer"):
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # control tokens that a text spells out are text
    return tokenizer


def _readable(text: str) -> str:
    """The part of a text that is read, without halves of characters."""
    return text[:LONGEST].encode(errors="replace").decode()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts that are computed together, short ones first; padding is little between texts
    of like length.

    A text without a token has the vector of zeros.
    """
    batch: list[int] = []
    places = [place for place, length in enumerate(lengths) if length]
    for place in sorted(places, key=lengths.__getitem__):
        if batch and lengths[place] * (len(batch) + 1) > TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
