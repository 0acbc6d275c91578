"""A quantized file is held as BF16 where that was timed to be faster, and is else left as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

import llama_cpp as lc

from slmctl import hardware
from slmctl.artifacts.artifact import Artifact
from slmctl.inference import expansion
from slmctl.inference.decoding_model import Item
from slmctl.inference.llama_child import LlamaModel

SIZES: dict[str, Any] = {"sequences": 2, "context": 64, "threads": 1, "adapters": {}}


def file_of(artifacts: dict[str, Artifact], kind: str) -> str:
    made = artifacts["gguf"]
    return str(made.file(made.metrics["files"][kind]["file"]))


@pytest.fixture
def path(artifacts: dict[str, Artifact]) -> str:
    return file_of(artifacts, "Q8_0")


@pytest.fixture
def lossless(artifacts: dict[str, Artifact]) -> str:
    return file_of(artifacts, "F16")


@pytest.fixture
def model(path: str) -> Iterator[Any]:
    loaded = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
    yield loaded
    lc.llama_model_free(loaded)


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with BF16, for which the tiny file is large enough."""
    monkeypatch.setattr(expansion, "LEAST_BYTES", 0)
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx512_bf16"}))


def timed(monkeypatch: pytest.MonkeyPatch, gain: float) -> list[int]:
    """Have the timing give this gain; returns a list that grows with each timing."""
    calls: list[int] = []

    def seconds(models: tuple[Any, Any], threads: int) -> list[list[float]]:
        calls.append(threads)
        return [[gain] * len(expansion.BATCHES), [1.0] * len(expansion.BATCHES)]

    monkeypatch.setattr(expansion, "_seconds_by_turns", seconds)
    return calls


def test_the_expanded_weights_are_as_close_to_the_lossless_file(
    lossless: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, 2.0)
    whole, quantized = LlamaModel(lossless, **SIZES), LlamaModel(path, **SIZES)
    expanded = LlamaModel(path, **SIZES, mostly_reads=True, timings=str(tmp_path))
    assert [model.expanded for model in (whole, quantized, expanded)] == [False, False, True]
    assert expanded.chat_template() == whole.chat_template()
    text = (
        "hello please, the card was charged twice for one invoice and my parcel is not here, "
        "where is it now?"
    )
    items = [Item(token, k, 1, needed=True) for k, token in enumerate(whole.tokenize(text))]
    assert 30 < len(items) <= 64  # of a few tokens the errors are a matter of chance
    exact, own, larger = (
        np.stack([logits.copy() for _, logits in model.decode(items)])
        for model in (whole, quantized, expanded)
    )
    assert not np.array_equal(own, larger)
    assert 0 < np.square(larger - exact).mean() < 1.2 * np.square(own - exact).mean()


def test_objects_from_a_file_that_is_not_quantized_do_not_depend_on_company(lossless: str) -> None:
    """The fused attention, which is for labels, sums in float16;
    documents were read with it too.
    """
    plain, labels = LlamaModel(lossless, **SIZES), LlamaModel(lossless, **SIZES, mostly_reads=True)
    documents = LlamaModel(lossless, **SIZES, mostly_reads=True, grammars=True)
    items = [
        Item(token, k, 1, needed=True)
        for k, token in enumerate(plain.tokenize("where is my parcel now, please?"))
    ]
    exact, fused, ours = (
        np.stack([logits.copy() for _, logits in model.decode(items)])
        for model in (plain, labels, documents)
    )
    assert np.array_equal(ours, exact) and not np.array_equal(fused, exact)


def test_a_timing_is_kept_for_the_file_and_the_processor(
    path: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = timed(monkeypatch, 2.0)
    for _ in range(2):
        lc.llama_model_free(expansion.faster(model, path, threads=1, cache=str(tmp_path)))
    assert calls == [1]
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_bytes()) == {"gain": 2.0}
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx512_bf16", "amx_int8"}))
    timed(monkeypatch, 0.7)
    assert expansion.faster(model, path, threads=1, cache=str(tmp_path)) is None
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"[]", b'{"gain": null}', b'{"gain": "x"}'])
def test_a_timing_that_cannot_be_read_is_made_again(
    content: bytes, path: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = timed(monkeypatch, 1.0)
    assert expansion.faster(model, path, threads=1, cache=str(tmp_path)) is None
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(content)
    assert expansion.faster(model, path, threads=1, cache=str(tmp_path)) is None
    assert calls == [1, 1]


def test_without_a_place_to_keep_it_a_timing_is_made_each_time(
    path: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = timed(monkeypatch, 1.0)
    for cache in ("", "", "/proc/nowhere"):
        assert expansion.faster(model, path, threads=1, cache=cache) is None
    assert calls == [1, 1, 1]


def test_what_cannot_gain_is_not_timed(
    lossless: str, path: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "expand", None)  # called, it would raise
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "available_bytes", lambda: 3 * lc.llama_model_n_params(model))
        assert expansion.faster(model, path, threads=1, cache="") is None
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx2"}))
        assert expansion.faster(model, path, threads=1, cache="") is None
    with monkeypatch.context() as patch:
        patch.setattr(expansion, "LEAST_BYTES", 32 << 20)
        assert expansion.faster(model, path, threads=1, cache="") is None
    loaded = lc.llama_model_load_from_file(lossless.encode(), lc.llama_model_default_params())
    assert expansion.faster(loaded, lossless, threads=1, cache="") is None
    lc.llama_model_free(loaded)


def test_both_are_timed_by_turns(path: str, model: Any) -> None:
    larger = expansion.expand(path, threads=1)
    own, expanded = expansion._seconds_by_turns((model, larger), 1)
    lc.llama_model_free(larger)
    assert all(0 < seconds < 10 for seconds in (*own, *expanded))
