"""The compiled kernels give what torch's operations give, and nothing depends on a compiler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from slmctl import hardware  # noqa: E402
from slmctl.stages.finetune import attention_kernels, cpu_kernels, fused_kernels  # noqa: E402

ROWS = (1, 7, 130)
# where a product gives bfloat16, torch rounds at each operation
NEAR = {torch.float32: 1e-5, torch.bfloat16: 6e-3}


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if not hardware.cpp_compiler():
        pytest.skip("no C++ compiler")
    assert fused_kernels.load() is not None


def both_ways(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], Any], x: Any
) -> list[list[Any]]:
    """Outputs and the gradient of x, by the compiled kernels and by torch's operations."""
    ways = []
    for load in (fused_kernels.load, lambda: None):
        monkeypatch.setattr(fused_kernels, "load", load)
        own = x.clone().requires_grad_()
        outputs = run(own)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = torch.Generator().manual_seed(1)
        sum(
            (out.float() * torch.randn(out.shape, generator=weights)).sum() for out in outputs
        ).backward()
        ways.append([*(out.detach() for out in outputs), own.grad])
    return ways


def assert_equal(ways: list[list[Any]], near: float) -> None:
    for got, wanted in zip(*ways, strict=True):
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        assert float((got.float() - wanted.float()).norm() / wanted.float().norm()) < near


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [5, 64])
def test_a_norm(rows: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.randn(size)
    ways = both_ways(
        monkeypatch,
        lambda x: cpu_kernels.RmsNorm.apply(x, weight, 1e-6),
        torch.randn(2, rows, size),
    )
    assert_equal(ways, NEAR[torch.float32])


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("kind", ["silu", "gelu"])
@pytest.mark.parametrize("rows", ROWS)
def test_a_gate(rows: int, kind: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    both = (torch.randn(rows, 2 * 30) * 4).to(dtype)
    assert_equal(
        both_ways(monkeypatch, lambda x: cpu_kernels.GatedActivation.apply(x, kind), both),
        NEAR[dtype],
    )


@pytest.mark.parametrize("kind", ["silu", "gelu"])
def test_a_gate_far_from_zero(kind: str) -> None:
    gate = torch.tensor([[-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30]])
    fused = fused_kernels.load()
    assert fused is not None
    both = torch.cat([gate, torch.ones_like(gate)], dim=1)
    torch.testing.assert_close(fused.gated(both, kind), gate.clamp_min(0), rtol=1e-6, atol=1e-7)
    slopes = fused.gated_backward(both, torch.ones_like(gate), kind)[:, : gate.shape[1]]
    torch.testing.assert_close(
        slopes[:, 1:6], torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize(
    ("rotation", "late", "wide"),
    list(itertools.product(["halves", "interleaved", None], [None, False, True], [False, True])),
)
def test_heads(
    rotation: Any, late: bool | None, wide: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)

    def norm(heads: int) -> Any:
        weight = torch.randn(16 * (heads if wide else 1))
        return None if late is None else fused_kernels.HeadNorm(weight, 1e-5, late)

    groups = [
        fused_kernels.HeadGroup(heads, turned, norm(heads))
        for heads, turned in ((4, rotation), (2, rotation), (2, None))
    ]
    angles, x = torch.randn(9, 1, 6), torch.randn(9, 8 * 16).to(dtype)  # 12 of 16 values are turned
    ways = both_ways(
        monkeypatch,
        lambda x: attention_kernels.SplitHeads.apply(x, groups, angles.cos(), angles.sin()),
        x,
    )
    assert_equal(ways, NEAR[dtype])


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("compiled", [True, False])
def test_dropout(compiled: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(fused_kernels, "load", lambda: None)
    x = torch.ones(400, 130, dtype=dtype)[:, :100]  # columns side by side, rows apart
    dropped = fused_kernels.dropout(x, 0.2, seed=7)
    # as the backward pass needs it
    assert torch.equal(dropped, fused_kernels.dropout(x, 0.2, seed=7))
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    gone = (dropped == 0).float()
    other = (fused_kernels.dropout(x, 0.2, seed=8) == 0).float()
    assert gone.mean() == pytest.approx(0.2, abs=0.01)
    assert (gone * other).mean() == pytest.approx(0.04, abs=0.005)
    # over 400 rows a column's share has a standard deviation of 0.02, over 100 columns a row's of
    # 0.04
    assert gone.mean(dim=0).std() == pytest.approx(0.02, abs=0.005)
    assert gone.mean(dim=1).std() == pytest.approx(0.04, abs=0.008)
    for shift in ((0, 1), (1, 0)):
        beside = gone[shift[0] :, shift[1] :] * gone[: 400 - shift[0], : 100 - shift[1]]
        assert beside.mean() == pytest.approx(0.04, abs=0.005)


def test_what_is_not_finite_is_seen() -> None:
    fused = fused_kernels.load()
    assert fused is not None
    broken = torch.ones(2, 8)
    broken[0, 3] = math.nan
    assert torch.isnan(fused.norm(broken, torch.ones(8), 1e-6)[0]).all()
    for kind in fused_kernels.ACTIVATIONS:
        for dtype in NEAR:
            assert torch.isnan(fused.gated(broken.to(dtype), kind)).any()
            assert torch.isnan(
                fused.gated_backward(broken.to(dtype), torch.ones(2, 4, dtype=dtype), kind)
            ).any()


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The kernels as a process loads them whose user's cache is a folder, compiled in less time."""
    monkeypatch.setattr(
        fused_kernels, "FLAGS", tuple(flag for flag in fused_kernels.FLAGS if flag != "-O3")
    )

    def load(cache: str) -> Any:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        return fused_kernels.load.__wrapped__()

    return load


def test_built_once_and_again_where_the_kept_file_is_no_library(
    tmp_path: Path, built: Callable[[str], Any]
) -> None:
    assert built("first") is not None
    (kept,) = (tmp_path / "first" / "slmctl" / "kernels").iterdir()
    built_at = kept.stat().st_mtime_ns
    assert built("first") is not None
    assert kept.stat().st_mtime_ns == built_at
    # under a name that is not loaded yet
    broken = tmp_path / "second" / "slmctl" / "kernels" / kept.name
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"cut off")
    assert built("second") is not None
    assert broken.read_bytes()[:4] == b"\x7fELF"


@pytest.mark.parametrize("missing", ["compiler", "cache", "source"])
def test_without(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Callable[[str], Any]
) -> None:
    if missing == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif missing == "source":
        (tmp_path / "broken.cpp").write_text("no C++", encoding="utf-8")
        monkeypatch.setattr(fused_kernels, "SOURCE", tmp_path / "broken.cpp")
    else:
        (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    assert (built("cache") is None) == (missing != "cache")
