"""The element-wise parts of a layer in one pass each, compiled once by this machine's C++ compiler.

torch computes a norm or a rotation in many small operations, each of which reads and writes the
whole batch; together they take a fifth of a training's time. `fused_kernels.cpp` is built for this
processor at first use, in a second, and kept in the user's cache. Where there is no compiler, the
autograd functions use torch's operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from slmctl import child_environment, hardware
from slmctl.artifacts import atomic
from slmctl.installation import user_cache

# the pairs that are turned: k and k + half, or 2 k and 2 k + 1
Rotation = Literal["halves", "interleaved"]

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fopenmp",
    "-shared",
    "-fPIC",
    # not -ffast-math: NaN has to be seen
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
)
COMPILE_S = 120
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ROTATIONS = {None: 0, "halves": 1, "interleaved": 2}
ACTIVATIONS = {"silu": 0, "gelu": 1}  # GELU in its tanh form


@dataclass(frozen=True)
class HeadNorm:
    """RMS norm over each head, weight (size,), or over all heads
    together, weight (heads * size,).
    """

    weight: torch.Tensor
    eps: float
    after_rotation: bool = False


@dataclass(frozen=True)
class HeadGroup:
    """The heads of a layer's queries, keys or values, with their rotation and norm."""

    heads: int
    rotation: Rotation | None = None
    norm: HeadNorm | None = None


class _Group(ctypes.Structure):
    """A `HeadGroup`, as the source declares it."""

    _fields_ = (
        ("heads", ctypes.c_long),
        ("rotation", ctypes.c_long),
        ("norm_place", ctypes.c_long),
        ("norm_size", ctypes.c_long),
        ("eps", ctypes.c_float),
        ("weight", ctypes.c_void_p),
    )


class FusedKernels:
    """The functions of the compiled library, on tensors in float32, or
    bfloat16 where a product reads or writes it.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMS norm of x (…, n) float32 with weight (n,)."""
        x = x.contiguous()
        out = torch.empty(x.shape)
        epsilon, sizes = ctypes.c_float(eps), _long(_rows(x), x.shape[-1])
        self._library.norm_forward(_at(x), _at(weight), epsilon, _at(out), *sizes)
        return out

    def norm_backward(
        self, g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Gradient of x from g, the gradient of the result of `norm`."""
        g = g.contiguous()
        x = x.contiguous()
        out = torch.empty(x.shape)
        epsilon, sizes = ctypes.c_float(eps), _long(_rows(x), x.shape[-1])
        self._library.norm_backward(_at(g), _at(x), _at(weight), epsilon, _at(out), *sizes)
        return out

    def split(
        self, x: torch.Tensor, groups: Sequence[HeadGroup], cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """x (T, heads of all groups * size) -> states (T, heads,
        size) of each group, see `SplitHeads`.
        """
        x = x.contiguous()
        size = x.shape[1] // sum(group.heads for group in groups)
        outs = [torch.empty(len(x), group.heads, size) for group in groups]
        run = self._of_type("split_forward", x.dtype)
        described, angles = _described(groups, size), _angles(cos, sin)
        run(_at(x), *described, *angles, _all(outs), ctypes.c_long(len(x)))
        return tuple(outs)

    def split_backward(
        self,
        grads: Sequence[torch.Tensor],
        x: torch.Tensor | None,
        groups: Sequence[HeadGroup],
        cos: torch.Tensor,
        sin: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Gradient of x (T, heads of all groups * size) in `dtype`; x
        itself is needed where a group is normed.
        """
        grads = [g.contiguous() for g in grads]
        size = grads[0].shape[2]
        width = size * sum(group.heads for group in groups)
        out = torch.empty(len(grads[0]), width, dtype=dtype)
        states = ctypes.c_void_p()
        if x is not None:
            x = x.contiguous()
            states = _at(x)
        run = self._of_type("split_backward", dtype)
        described, angles = _described(groups, size), _angles(cos, sin)
        run(_all(grads), states, *described, *angles, _at(out), ctypes.c_long(len(out)))
        return out

    def gated(self, both: torch.Tensor, kind: str) -> torch.Tensor:
        """activation(gate) * up, from both (T, 2 n): gate and up side by side -> (T, n)."""
        both = both.contiguous()
        n = both.shape[1] // 2
        out = torch.empty(len(both), n, dtype=both.dtype)
        activation = ctypes.c_long(ACTIVATIONS[kind])
        run = self._of_type("gated_forward", both.dtype)
        run(activation, _at(both), _at(out), *_long(len(both), n))
        return out

    def gated_backward(self, both: torch.Tensor, g: torch.Tensor, kind: str) -> torch.Tensor:
        """Gradient of both (T, 2 n) from g (T, n)."""
        both = both.contiguous()
        g = g.to(both.dtype).contiguous()
        out = torch.empty(both.shape, dtype=both.dtype)
        activation = ctypes.c_long(ACTIVATIONS[kind])
        run = self._of_type("gated_backward", both.dtype)
        run(activation, _at(both), _at(g), _at(out), *_long(len(both), g.shape[1]))
        return out

    def dropout(self, x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
        """See the function `dropout`; x has a column stride of 1."""
        out = torch.empty(x.shape, dtype=x.dtype)
        threshold = min(round(share * 2**32), 2**32 - 1)
        draw = (ctypes.c_uint32(seed), ctypes.c_uint32(threshold))
        scale = ctypes.c_float(1 / (1 - share))
        run = self._of_type("dropout", x.dtype)
        run(_at(x), ctypes.c_long(x.stride(0)), _at(out), *_long(*x.shape), *draw, scale)
        return out

    def _of_type(self, name: str, dtype: torch.dtype) -> Any:
        """The library's function for tensors of a type."""
        return getattr(self._library, f"{name}_{NAMES[dtype]}")


def dropout(x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """x (T, n) with a share of its values set to 0 and the rest scaled
    up; the same seed drops the same places.
    """
    fused = load()
    if fused:
        return fused.dropout(x, share, seed)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.empty(x.shape, dtype=x.dtype).bernoulli_(1 - share, generator=generator)
    return kept.div_(1 - share).mul_(x)


def _at(x: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _all(tensors: Sequence[torch.Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))


def _long(*values: int) -> tuple[ctypes.c_long, ...]:
    return tuple(map(ctypes.c_long, values))


def _rows(x: torch.Tensor) -> int:
    return x.numel() // x.shape[-1]


def _angles(cos: torch.Tensor, sin: torch.Tensor) -> tuple[Any, ...]:
    """Pointers to cosine and sine, each (T, 1, half), contiguous and
    kept alive by the caller; and half.
    """
    return _at(cos), _at(sin), ctypes.c_long(cos.shape[-1])


def _described(groups: Sequence[HeadGroup], size: int) -> tuple[Any, ...]:
    """Returns the arguments (array of `_Group`, number of groups, size of a head)."""
    described = (_Group * len(groups))()
    for fields, group in zip(described, groups, strict=True):
        fields.heads = group.heads
        fields.rotation = ROTATIONS[group.rotation]
        norm = group.norm
        if norm is not None:
            fields.norm_place = 2 if norm.after_rotation else 1
            fields.norm_size = len(norm.weight)
            fields.eps = norm.eps
            fields.weight = norm.weight.data_ptr()
    return described, *_long(len(groups), size)


@functools.cache
def load() -> FusedKernels | None:
    """The kernels, built now if this machine has not built them
    before; None if they cannot be built.
    """
    if platform.system() != "Linux":  # elsewhere compilers come without OpenMP
        return None
    name = f"{_build_id()}.so"
    cache = user_cache()
    with contextlib.suppress(OSError):  # not built yet, or not readable
        if cache:
            return FusedKernels(ctypes.CDLL(str(cache / "kernels" / name)))
    compiler = hardware.cpp_compiler()
    if not compiler:
        return None
    try:
        # a loaded library needs its file no more
        with tempfile.TemporaryDirectory(prefix="slmctl-") as scratch:
            built = Path(scratch) / name
            _compile(compiler, built)
            if cache:
                _keep(built, cache / "kernels")
            return FusedKernels(ctypes.CDLL(str(built)))
    except (OSError, subprocess.SubprocessError):  # the compiler fails on the source
        return None


def _build_id() -> str:
    """16 digits that follow from the source, the flags and this processor."""
    source = SOURCE.read_text(encoding="utf-8")
    key = json.dumps([source, FLAGS, platform.machine(), sorted(hardware.cpu_flags())])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _compile(compiler: str, built: Path) -> None:
    subprocess.run(
        [compiler, *FLAGS, str(SOURCE), "-o", str(built)],
        env=child_environment.bare(),
        check=True,
        capture_output=True,
        timeout=COMPILE_S,
    )


def _keep(built: Path, folder: Path) -> None:
    with contextlib.suppress(OSError):  # without a writable cache, the next process builds again
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.file(folder / built.name) as draft:
            shutil.copyfile(built, draft)
