"""memory: what is free, what is held, and what is refused."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from support.servers import settles

from slmctl import hardware
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import StageError
from slmctl.model_files import memory


def test_processes_need_memory_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 3 * 10**9)
    monkeypatch.setattr(memory, "held_bytes", lambda: 10**9)
    memory.require(4 * 10**9, "training", hint="less")
    memory.require(2 * 10**9, "training", hint="less", processes=2)
    with pytest.raises(
        StageError,
        match=r"training needs about 6\.00 GB of memory in 2 processes, and 5\.00 GB are",
    ):
        memory.require(3 * 10**9, "training", hint="less", processes=2)


def test_pages_of_files_are_free_memory_in_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a base that was read a moment ago lies in the page cache, which counted as memory in use
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   16000000 kB\n")
    monkeypatch.setattr(hardware, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    assert hardware.available_bytes() == 16_000_000 * 1024
    (tmp_path / "memory.max").write_text("8000000000\n")
    (tmp_path / "memory.current").write_text("7000000000\n")
    (tmp_path / "memory.stat").write_text(
        "anon 2000000000\nactive_file 1000000000\ninactive_file 4000000000\n"
    )
    assert hardware.available_bytes() == 5_000_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert hardware.available_bytes() == 16_000_000 * 1024


def test_the_peak_is_seen_after_it_is_over() -> None:
    gc.collect()  # what earlier tests left is freed before, not while the block is held
    memory.trim_heap()
    before = hardware.held_bytes()
    with memory.PeakMeter() as peak:
        block = bytearray(b"x" * 200_000_000)
        assert settles(lambda: peak.bytes > before + 100_000_000)
        del block
        memory.trim_heap()
        assert settles(lambda: hardware.held_bytes() < before + 100_000_000)
    assert peak.bytes > before + 100_000_000


def test_an_engine_needs_its_file_and_room_for_what_it_holds(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifacts["gguf"]
    path = made.file(made.metrics["files"]["F16"]["file"])
    monkeypatch.setattr(memory, "held_bytes", lambda: 0)
    # layers, heads, width
    needed = path.stat().st_size + 16 * 2048 * (2 * 2 * 2 * 16 * 2) + memory.ENGINE_BYTES
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    memory.require_engine(path, sequences=16, context=2048)
    with pytest.raises(
        StageError, match=r"with room for 17 requests needs about \S+ MB of memory"
    ) as caught:
        memory.require_engine(path, sequences=17, context=2048)
    assert "a smaller file" in caught.value.hint
