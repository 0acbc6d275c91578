"""Load a GGUF file as a llama.cpp model, with its weights in a layout
in which all products are correct.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import llama_cpp as lc

from slmctl.hardware import held_bytes

# share of a file in new memory, above which its weights were repacked and are no longer read from
# it
COPIED = 0.6
LEAST_WIDTH = 64  # of the states, from which on the products in the layout for AMX are right


def load(path: str) -> Any:
    """Returns llama.cpp's model of a file, or None if it cannot be loaded.

    llama.cpp lays the weights out anew for some processors. In the layout for AMX its products are
    wrong in two cases (llama-cpp-python 0.3.36): where an input has a dimension for sequences, as
    those of recurrent layers have, every sequence of a batch but the first gets what lay in the
    memory; and where an input has one block of 32 columns, as in models made for tests. Such models
    keep the layout of the file.
    """
    before = held_bytes()
    model = _load(path, lays_out=True)
    if model and (is_recurrent(model) or lc.llama_model_n_embd(model) < LEAST_WIDTH):
        lc.llama_model_free(model)
        model = _load(path, lays_out=False)
    elif model and held_bytes() - before > COPIED * Path(path).stat().st_size:
        with contextlib.suppress(OSError):  # it saves memory, and is no reason to end a load
            forget(path)
    return model


def forget(path: str) -> None:
    """Release the memory pages of a file after its weights were copied.

    llama.cpp keeps the whole file mapped, and then needs only the embeddings of later tokens, which
    are read again when they are needed.
    """
    libc, file = ctypes.CDLL(None), os.fsencode(Path(path).resolve())
    for line in Path("/proc/self/maps").read_bytes().split(b"\n"):
        place, *_, name = line.split(b" ", 5) if line else [b"", b""]
        if name.lstrip(b" ") == file:
            start, end = (int(part, 16) for part in place.split(b"-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def is_recurrent(model: Any) -> bool:
    """True for a model with a state a sequence: Mamba, and hybrids of such layers and attention."""
    return bool(lc.llama_model_is_recurrent(model) or lc.llama_model_is_hybrid(model))


def _load(path: str, *, lays_out: bool) -> Any:
    params = lc.llama_model_default_params()
    params.n_gpu_layers = -1
    params.use_extra_bufts = lays_out
    return lc.llama_model_load_from_file(path.encode(), params) or None
