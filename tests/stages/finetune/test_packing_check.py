"""Packed batches are given to the models that compute every record as
if it were alone, and to no other.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks import architectures  # noqa: E402
from slmctl.stages.finetune import packing, packing_check  # noqa: E402


def test_the_model_stays_as_it_was() -> None:
    model = architectures.model("gemma3-text").bfloat16()
    before, layers = model.state_dict(), list(model.model.layers)
    settings = model.config.to_dict() | {"attention": model.config._attn_implementation}
    assert packing_check.supports_packing(model)
    after = model.state_dict()
    assert all(after[name].data_ptr() == tensor.data_ptr() for name, tensor in before.items())
    assert all(after[name].dtype == torch.bfloat16 for name in before)
    assert list(model.model.layers) == layers
    assert model.config.to_dict() | {"attention": model.config._attn_implementation} == settings
    assert not any(module._forward_hooks for module in model.modules())


def test_a_window_that_is_lost_shows_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = architectures.model("gemma3-text")
    for owner in (model.config, *model.modules()):
        if getattr(owner, "sliding_window", None):
            owner.sliding_window = 4096
    assert packing_check.supports_packing(model)
    whole = packing.causal_bias
    monkeypatch.setattr(
        packing, "causal_bias", lambda prefix, length, window: whole(prefix, length, None)
    )
    assert not packing_check.supports_packing(model)
    assert packing_check.supports_packing(architectures.model("llama"))


def test_records_that_see_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own, model = packing.attention, architectures.model("llama")

    def leaking(*args: Any, **kwargs: Any) -> Any:
        mixed, _ = own(*args, **kwargs)
        return mixed + 1e-3 * mixed.mean(dim=1, keepdim=True), None

    monkeypatch.setitem(packing.AttentionInterface._global_mapping, packing.ATTENTION_NAME, leaking)
    assert not packing_check.supports_packing(model)


def test_a_record_that_another_one_changes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # the leak shows in the batch with the changed record alone, so that comparing with each record
    # alone misses it
    own, model, calls = packing.attention, architectures.model("llama"), itertools.count()

    def leaking(*args: Any, **kwargs: Any) -> Any:
        mixed, _ = own(*args, **kwargs)
        return mixed + (next(calls) % 2) * mixed.mean(dim=1, keepdim=True), None

    monkeypatch.setitem(packing.AttentionInterface._global_mapping, packing.ATTENTION_NAME, leaking)
    assert not packing_check.supports_packing(model)
    assert next(calls) == 2  # one layer of one kind, in two batches


def test_layers_are_of_one_kind_by_their_settings() -> None:
    layers = architectures.model("gemma3-text").model.layers
    kinds = [packing_check.layer_kind(layer) for layer in layers]
    assert len(set(kinds)) == 2
    assert [kind == kinds[0] for kind in kinds] == [True] * 5 + [False]


@pytest.mark.parametrize(
    "strange", [{"s_aux": torch.ones(4)}, {"position_bias": torch.ones(4)}, {"is_causal": False}]
)
def test_attention_of_another_form_is_refused(strange: dict[str, Any]) -> None:
    query = torch.randn(1, 4, 8, 16)
    packing.attention(
        torch.nn.Identity(), query, query, query, None, layout=(2, 3), use_cache=False, s_aux=None
    )
    with pytest.raises(ValueError, match="cannot be packed"):
        packing.attention(torch.nn.Identity(), query, query, query, None, layout=(2, 3), **strange)
    with pytest.raises(ValueError, match="a mask of its own cannot be packed"):
        packing.attention(torch.nn.Identity(), query, query, query, torch.ones(8, 8), layout=(2, 3))
