"""Which library trains, and what doctor says of the processor:
decided from what is here, without torch.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from slmctl import child, hardware
from slmctl.cli import doctor_checks, matmul_rates
from slmctl.errors import MissingError
from slmctl.installation import pip_line
from slmctl.stages.finetune import backend


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev, and no variable that hides what is in it."""
    moved = {str(tmp_path / Path(node).name): kind for node, kind in hardware.DEVICE_NODES.items()}
    monkeypatch.setattr(hardware, "DEVICE_NODES", moved)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("node", "kind"),
    [("nvidia0", "cuda"), ("nvidiactl", "cuda"), ("dxg", "cuda"), ("kfd", "rocm"), ("null", "")],
)
def test_an_accelerator_is_known_by_its_device_node(nodes: Path, node: str, kind: str) -> None:
    assert hardware.accelerator() == ""
    (nodes / node).touch()
    assert hardware.accelerator() == kind


@pytest.mark.parametrize(
    ("visible", "kind"),
    [("", ""), ("-1", ""), (" -1 ", ""), ("0", "cuda"), ("1,0", "cuda"), ("GPU-1f", "cuda")],
)
def test_one_that_is_hidden_is_none(
    nodes: Path, monkeypatch: pytest.MonkeyPatch, visible: str, kind: str
) -> None:
    # torch sees none then, and unsloth cannot be imported without one
    (nodes / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.accelerator() == kind


@pytest.mark.parametrize(
    ("wanted", "installed", "gpu", "chosen"),
    [
        ("auto", True, True, "unsloth"),
        ("auto", True, False, "transformers"),
        ("auto", False, True, "transformers"),
        ("transformers", True, True, "transformers"),
        ("unsloth", True, True, "unsloth"),
        ("unsloth", False, True, f"backend unsloth is not installed: {pip_line('cuda')}"),
        (
            "unsloth",
            True,
            False,
            "backend unsloth needs a GPU, and none is here: --set finetune.backend=transformers",
        ),
    ],
)
def test_who_trains(
    nodes: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    installed: bool,
    gpu: bool,
    chosen: str,
) -> None:
    found = importlib.util.find_spec("json") if installed else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    if gpu:
        (nodes / "nvidia0").touch()
    if chosen in ("transformers", "unsloth"):
        assert backend.choose(wanted) == chosen
        return
    with pytest.raises(MissingError) as caught:
        backend.choose(wanted)
    assert f"{caught.value.message}: {caught.value.hint}" == chosen


def products(
    monkeypatch: pytest.MonkeyPatch,
    chosen: str,
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> doctor_checks.Check:
    """What doctor says of the products when they were timed like this."""
    monkeypatch.setattr(doctor_checks, "_version", lambda name: "2.13.0")
    monkeypatch.setattr(doctor_checks, "resolve_matmul_dtype", lambda wanted: chosen)
    monkeypatch.setattr(child, "run", run)
    monkeypatch.setattr(matmul_rates, "load", lambda: "")  # other work slows no product here
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # these rates are no machine's
    (finding,) = doctor_checks._matmul()
    return finding


@pytest.mark.parametrize(
    ("chosen", "rates", "remedy"),
    [
        (
            "float32",
            {"float32": 100.0, "bfloat16": 900.0},
            "--set finetune.matmul_dtype=bfloat16 is faster here",
        ),
        (
            "bfloat16",
            {"float32": 100.0, "bfloat16": 40.0},
            "--set finetune.matmul_dtype=float32 is faster here",
        ),
        ("bfloat16", {"float32": 100.0, "bfloat16": 900.0}, ""),
        ("bfloat16", {"float32": 100.0, "bfloat16": 90.0}, ""),  # too little to say
    ],
)
def test_doctor_says_when_the_other_products_are_faster(
    monkeypatch: pytest.MonkeyPatch, chosen: str, rates: dict[str, float], remedy: str
) -> None:
    done = subprocess.CompletedProcess[str]([], 0, json.dumps(rates), "")
    found = products(monkeypatch, chosen, lambda *args, **kwargs: done)
    assert found.ok
    assert found.remedy == remedy
    figures = ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in rates.items())
    assert found.result == f"{figures}; auto takes {chosen}"


def test_doctor_names_why_torch_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> NoReturn:
        raise child.DiedError(1, "Traceback\nImportError: libgomp.so.1 is missing\n")

    found = products(monkeypatch, "float32", broken)
    assert not found.ok
    assert found.result == "torch does not work: ImportError: libgomp.so.1 is missing"
