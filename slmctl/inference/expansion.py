"""Expands the weights of a quantized GGUF file to BF16 in memory, if this processor multiplies
these faster.

A question is read as one batch of tokens, in which some processors multiply 16-bit weights faster
than 8-bit blocks. A text is written token by token, each of which reads all weights once, so the
smaller file is faster. Whoever chooses labels, or answers about documents, mostly reads: the engine
then expands the file at loading, if a timing of both on this processor says so and the memory
suffices.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import llama_cpp as lc

from slmctl import hardware
from slmctl.artifacts import atomic
from slmctl.inference import model_loading

FLAGS = frozenset({"avx512_bf16", "amx_bf16"})  # of processors that multiply in BF16 themselves
LEAST_BYTES = 32 << 20  # of weights: a smaller file has nothing to gain
SHARE = 0.5  # of the free memory that the expanded weights may take
GAIN = 1.15  # in speed, below which the file stays as it is
BATCHES = (16, 128)  # tokens of a batch: one client's question, and many clients' questions
REPEATS, LONG_S = 3, 5.0  # of a timing, and seconds after which it is not repeated
WORKING_BYTES = 64 << 20  # of rows that llama.cpp converts at once


def faster(model: Any, path: str, *, threads: int, cache: str) -> Any:
    """The model with its weights expanded, where that is faster here and fits; else None, and
    `model` is kept.

    Args:
        model: The file, loaded by llama.cpp.
        cache: Folder for timings, by shapes, types and processor; empty for none.
    """
    size, weights = lc.llama_model_size(model), lc.llama_model_n_params(model)
    quantized = LEAST_BYTES <= size < 1.9 * weights
    able = FLAGS & hardware.cpu_flags() and not lc.llama_supports_gpu_offload()
    if not quantized or not able or 2 * weights > SHARE * hardware.available_bytes():
        return None
    kept = _kept(model, threads, cache)
    gain = _read(kept)
    if gain is not None and gain < GAIN:
        return None
    larger = expand(path, threads=threads)
    if larger is None:
        return None
    if gain is None:
        own, expanded = _seconds_by_turns((model, larger), threads)
        gain = (math.prod(own) / math.prod(expanded)) ** (1 / len(BATCHES))
        _write(kept, gain)
    if gain >= GAIN:
        return larger
    lc.llama_model_free(larger)
    return None


def expand(path: str, *, threads: int) -> Any:
    """Load a file with its weights as BF16, from a copy in memory that ends
    with the process; None where it fails.
    """
    copy = os.memfd_create("weights")
    try:
        params = lc.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = lc.LLAMA_FTYPE_MOSTLY_BF16, True
        params.nthread, params.max_buf_size = threads, WORKING_BYTES
        place = f"/proc/self/fd/{copy}"
        if lc.llama_model_quantize(path.encode(), place.encode(), params):
            return None
        return model_loading.load(place)
    finally:
        os.close(copy)  # the loaded model keeps its pages


def _seconds_by_turns(models: tuple[Any, Any], threads: int) -> list[list[float]]:
    """Shortest time of a batch of each size with each model, timed by turns."""
    shortest = [[math.inf] * len(BATCHES) for _ in models]
    begun = time.monotonic()
    for _ in range(REPEATS):
        for which, model in enumerate(models):
            for place, seconds in enumerate(_seconds(model, threads)):
                shortest[which][place] = min(shortest[which][place], seconds)
        if time.monotonic() - begun > LONG_S:
            break
    return shortest


def _seconds(model: Any, threads: int) -> list[float]:
    """Seconds for a batch of each of BATCHES, after one that nobody times."""
    settings = lc.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(BATCHES)
    settings.n_threads = settings.n_threads_batch = threads
    context = lc.llama_init_from_model(model, settings)
    if not context:
        return [math.inf] * len(BATCHES)
    batch = lc.llama_batch_init(max(BATCHES), 0, 1)
    times = []
    for count in (BATCHES[0], *BATCHES):
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        batch.n_tokens = count
        for k in range(count):
            batch.token[k] = k
            batch.pos[k] = k
            batch.n_seq_id[k] = 1
            batch.seq_id[k][0], batch.logits[k] = 0, int(k == count - 1)
        begun = time.perf_counter()
        failed = lc.llama_decode(context, batch)
        lc.llama_synchronize(context)
        times.append(math.inf if failed else time.perf_counter() - begun)
    lc.llama_batch_free(batch)
    lc.llama_free(context)
    return times[1:]


def _kept(model: Any, threads: int, cache: str) -> Path | None:
    """The file that keeps the timing: of all models of these shapes and
    types, on this processor, with this build.
    """
    if not cache:
        return None
    name = ctypes.create_string_buffer(128)
    lc.llama_model_desc(model, name, len(name))  # such as `llama 135M Q8_0`
    sizes = lc.llama_model_size(model), lc.llama_model_n_params(model), threads
    key = json.dumps([name.value.decode(), *sizes, lc.__version__, sorted(hardware.cpu_flags())])
    return Path(cache) / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(kept: Path | None) -> float | None:
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return float(json.loads(kept.read_bytes())["gain"]) if kept else None
    return None


def _write(kept: Path | None, gain: float) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        if kept is not None and math.isfinite(gain):
            atomic.write(kept, json.dumps({"gain": round(gain, 3)}).encode())
