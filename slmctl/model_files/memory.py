"""Memory: estimates of what work takes, and its refusal if it cannot fit.

Pages of mapped files are left out everywhere: the kernel drops them when memory runs short.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterable
from pathlib import Path

from slmctl.config.quant_type import QuantType
from slmctl.console import size
from slmctl.errors import FullError
from slmctl.hardware import available_bytes, cpu_flags, held_bytes, usable_cores
from slmctl.model_files import gguf_header

SAMPLE_S = 0.05
AMX = "amx_int8"  # processors on which llama.cpp copies all quantized weights into another layout
# processors on which `inference.expansion` holds weights in 16 bits
BF16 = frozenset({"avx512_bf16", "amx_bf16"})
LEAST_EXPANDED = 32 << 20  # bytes of the smallest file that it expands
REPACKED_SCALES = 0.6  # bits of a weight
REPACKED_BYTES = 0.6  # of a weight in 4 bits, which llama.cpp copies on every processor
ENGINE_BYTES = 200_000_000  # of llama.cpp's process, without weights, keys and values
# of ONNX Runtime and a tokenizer, and per core
ENCODER_BYTES, ENCODER_CORE_BYTES = 80_000_000, 70_000_000
# of the processes that follow a schema, and per token
GRAMMAR_BYTES, GRAMMAR_TOKEN_BYTES = 60_000_000, 700


def require(needed: int, work: str, *, hint: str, processes: int = 1) -> None:
    """Refuse work of `processes` on this machine, each with a peak of `needed` bytes, that cannot
    fit.

    Args:
        work: Subject of the message, such as `training`.

    Raises:
        FullError: The peak is more than the free memory and the memory that the processes hold
            already.
    """
    if not fits(needed, processes):
        have = available_bytes() + processes * held_bytes()
        each = f" in {processes} processes" if processes > 1 else ""
        raise FullError(
            f"{work} needs about {size(processes * needed)} of memory{each}, and {size(have)} are "
            "free",
            hint=hint,
        )


def fits(needed: int, processes: int = 1) -> bool:
    """True if `processes` on this machine, each with a peak of `needed`
    bytes, fit into the available memory.
    """
    return processes * needed <= available_bytes() + processes * held_bytes()


def require_engine(
    path: Path, *, sequences: int, context: int, encoders: Iterable[Path] = ()
) -> None:
    """Refuse to load a GGUF file whose weights, with the keys and values of all sequences, cannot
    fit.

    Args:
        encoders: ONNX files of sentence encoders that are loaded with it.

    Raises:
        FullError: They cannot fit.
    """
    needed = held_bytes() + engine_bytes(path, sequences=sequences, context=context)
    needed += sum(map(encoder_bytes, encoders))
    require(
        needed,
        f"{path.name} with room for {sequences} requests",
        hint="a smaller file, or a machine with more",
    )


def engine_bytes(
    path: Path, *, sequences: int, context: int, mostly_reads: bool = False, grammars: bool = False
) -> int:
    """Upper bound of the bytes of llama.cpp's process for a GGUF file, with the keys and values of
    all sequences.

    Args:
        mostly_reads: Quantized weights may be held in 16 bits, if this processor multiplies those
            faster.
        grammars: Answers follow a schema, which takes processes that hold the vocabulary.
    """
    head = gguf_header.read(path)
    weights = path.stat().st_size
    if mostly_reads and BF16 & cpu_flags() and weights >= LEAST_EXPANDED:
        weights = max(weights, 2 * sum(tensor.weights for tensor in head.tensors))
    vocabulary = head.metadata.get("tokenizer.ggml.tokens")
    tokens = len(vocabulary) if isinstance(vocabulary, list) else 0
    more = GRAMMAR_BYTES + GRAMMAR_TOKEN_BYTES * tokens if grammars else 0
    return weights + sequences * context * cell_bytes(head) + ENGINE_BYTES + more


WORDS_BYTES = 150_000_000  # of scikit-learn, which hashes words


def encoder_bytes(file: Path) -> int:
    """Bytes that a sentence encoder holds, with texts of 512 tokens on every core."""
    return file.stat().st_size + ENCODER_BYTES + usable_cores() * ENCODER_CORE_BYTES


def repacked_bytes(types: Iterable[str]) -> float:
    """Upper bound of the bytes that llama.cpp copies of a weight, on top of the mapped file, in the
    largest type.

    Args:
        types: Names of quantization types, such as `Q4_K_M`.
    """
    if AMX not in cpu_flags():
        return REPACKED_BYTES
    quantized = [kind for kind in map(QuantType, types) if kind.is_quantized]
    return max([REPACKED_BYTES, *((kind.bits + REPACKED_SCALES) / 8 for kind in quantized)])


def cell_bytes(head: gguf_header.GgufHeader) -> int:
    """Bytes of a token's keys and values in 16 bits, over all layers with attention."""
    kind = str(head.metadata.get("general.architecture", ""))
    heads = head.metadata.get(f"{kind}.attention.head_count")
    width = head.metadata.get(f"{kind}.embedding_length")
    blocks = head.metadata.get(f"{kind}.block_count")
    pairs = head.metadata.get(f"{kind}.attention.head_count_kv", heads)
    if isinstance(blocks, int) and isinstance(pairs, int):
        pairs = [pairs] * blocks
    if not isinstance(pairs, list):
        return 0
    query = max(heads, default=0) if isinstance(heads, list) else heads
    each = width // query if isinstance(width, int) and isinstance(query, int) and query else 0
    sizes = [
        head.metadata.get(f"{kind}.attention.{part}_length", each) for part in ("key", "value")
    ]
    cell = sum(length for length in sizes if isinstance(length, int))
    return 2 * cell * sum(pair for pair in pairs if isinstance(pair, int))


def trim_heap() -> None:
    """Return free heap to the system, since batches of varying shapes fragment it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's own
        libc.malloc_trim(0)


class PeakMeter(contextlib.AbstractContextManager["PeakMeter"]):
    """Highest anonymous memory of this process while the meter is open; the
    kernel's own peak counts file pages too.
    """

    def __init__(self) -> None:
        self.bytes = held_bytes()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMeter:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(SAMPLE_S):
            self.bytes = max(self.bytes, held_bytes())
