"""Packed attention as flex_attention computes it: the same as by the products that a CPU uses."""

from __future__ import annotations

import types
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn.attention.flex_attention import create_block_mask  # noqa: E402

from slmctl.stages.finetune import flex_packing, packing  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")

CPU = torch.device("cpu")
LAYOUTS = [
    (5, 3, 15, None),
    (200, 5, 70, None),
    (0, 3, 100, None),
    (130, 4, 129, 64),
    (40, 1, 300, None),
]


@pytest.mark.parametrize(("prefix", "count", "length", "window"), LAYOUTS)
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_it_gives_what_the_other_way_gives(
    prefix: int, count: int, length: int, window: int | None, softcap: float | None
) -> None:
    torch.manual_seed(0)
    tokens = prefix + count * length
    query, key, value = (torch.randn(1, heads, tokens, 16) for heads in (4, 2, 2))
    module: Any = types.SimpleNamespace(is_causal=True)
    wanted, _ = packing.attention(
        module,
        query,
        key,
        value,
        None,
        layout=(prefix, count),
        scaling=0.25,
        sliding_window=window,
        softcap=softcap,
    )
    got = flex_packing.attend(
        query, key, value, (prefix, count), scaling=0.25, window=window, softcap=softcap
    )
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("prefix", "count", "length", "window"), LAYOUTS)
def test_no_block_that_is_seen_is_skipped_and_few_are_read_in_vain(
    prefix: int, count: int, length: int, window: int | None
) -> None:
    tokens = prefix + count * length
    own = flex_packing.block_mask(prefix, count, length, window, CPU)
    sees = flex_packing.visible(prefix, length, window)
    exact = create_block_mask(
        sees, 1, 1, tokens, tokens, device="cpu", BLOCK_SIZE=flex_packing.BLOCK
    )
    read, needed = own.to_dense().bool(), exact.to_dense().bool()
    assert not (needed & ~read).any()
    # a window's blocks are masked, not skipped
    assert window is not None or torch.equal(read, needed)


def test_a_processor_and_dropout_go_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.zeros(1, 1, 1, 16)
    assert not flex_packing.serves(query, 0.0)
    monkeypatch.setattr(flex_packing.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu: Any = types.SimpleNamespace(is_cuda=True, device=CPU)
    assert flex_packing.serves(gpu, 0.0)
    assert not flex_packing.serves(gpu, 0.1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not flex_packing.serves(gpu, 0.0)
