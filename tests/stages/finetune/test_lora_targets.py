"""lora_targets: linear layers of the text decoder that train on every
path, and a refusal for anything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText  # noqa: E402

from benchmarks import architectures  # noqa: E402
from slmctl.config import FinetuneConfig  # noqa: E402
from slmctl.errors import UsageError  # noqa: E402
from slmctl.stages.finetune import lora_targets  # noqa: E402


def empty(name: str) -> Any:
    config = architectures.config(name, vocabulary=640)
    factory = (
        AutoModelForImageTextToText
        if architectures.ARCHITECTURES[name].multimodal
        else AutoModelForCausalLM
    )
    with torch.device("meta"):
        return factory.from_config(config)


@pytest.mark.parametrize("name", ["gemma3", "gemma4", "ministral3", "qwen3.5"])
def test_towers_are_left_alone(name: str) -> None:
    targets = lora_targets.adapted_layers(empty(name), ["q_proj", "down_proj"])
    assert targets
    assert all(target.startswith("model.language_model.") for target in targets)


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        ("llama", "query", "the base has no layer 'query'"),
        (
            "llama",
            "input_layernorm",
            "'input_layernorm' is a LlamaRMSNorm, and LoRA here adapts linear layers",
        ),
        ("gemma3", "fc1", "'fc1' lies outside the text model of the base"),
        (
            "falcon-h1",
            "out_proj",
            "'out_proj' of a state-space layer is multiplied past its adapter",
        ),
        ("qwen3-moe", "experts", "'experts' is a Qwen3MoeExperts"),
        ("deepseek-v3", "gate_proj", "'gate_proj' belongs to a mixture of experts"),
        ("mamba2", "conv1d", "'conv1d' is a Conv1d"),
    ],
)
def test_a_target_that_cannot_be_adapted_is_refused_with_what_can(
    name: str, target: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        lora_targets.adapted_layers(empty(name), [target])
    assert caught.value.hint.startswith("all-linear, or some of ")
    assert target not in caught.value.hint.split()


def test_targets_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    architectures.config("llama", vocabulary=640).save_pretrained(tmp_path)  # there are no weights
    config = FinetuneConfig.model_validate({"lora": {"target_modules": ["q_proj", "c_attn"]}})
    with pytest.raises(UsageError, match="'c_attn'") as caught:
        lora_targets.require(config, tmp_path)
    assert (
        caught.value.hint
        == "all-linear, or some of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def test_head_and_embedding_are_targets_only_by_name() -> None:
    model = empty("llama")
    assert lora_targets.adapted_layers(model, ["lm_head", "q_proj"])[0] == "lm_head"
    assert lora_targets.adapted_layers(model, ["embed_tokens"]) == ["model.embed_tokens"]
