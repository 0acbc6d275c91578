"""The loss as a GPU computes it: packed or padded batches through the model's own layers, the head in blocks."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from peft import LoraConfig, get_peft_model  # noqa: E402

from slmctl.stages.finetune import answer_loss, packing, packing_check  # noqa: E402
from slmctl.stages.finetune.batches import PackedBatches, PaddedBatches  # noqa: E402
from slmctl.stages.finetune.packing import IGNORED, EncodedRecord  # noqa: E402

SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {  # class, settings, plain head
    "Llama": ("LlamaConfig", {}, True),
    "Llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}, True),
    "Granite, scaled logits": ("GraniteConfig", {"logits_scaling": 8.0}, False),
    "Gemma 2, capped logits": ("Gemma2Config", {"final_logit_softcapping": 5.0}, False),
}


def adapted(name: str, targets: Any = "all-linear") -> Any:
    kind, settings, _ = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**SMALL, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def records() -> list[EncodedRecord]:
    choose = torch.Generator().manual_seed(1)
    head = torch.randint(3, 300, (6,), generator=choose).tolist()
    made = []
    for length, answer in ((14, 3), (20, 9), (20, 1)):
        ids = head + torch.randint(3, 300, (length - 6,), generator=choose).tolist()
        labels = [IGNORED] * (length - answer) + ids[-answer:]
        made.append(
            EncodedRecord(
                input_ids=ids, labels=labels, weights=[0.0] * (length - answer) + [0.5] + [1.0] * (answer - 1)
            )
        )
    return made


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packed", [True, False])
def test_it_is_the_models_own_and_so_is_every_gradient(name: str, packed: bool) -> None:
    plain, installed = adapted(name), adapted(name)
    (padded,) = PaddedBatches(0)(records())
    wanted = answer_loss.padded_loss(plain, padded, 0.1)
    if packed:
        packing_check.core_model(installed).config._attn_implementation = packing.ATTENTION_NAME
    core = packing_check.core_model(installed)
    assert answer_loss.is_plain_head(core, core.base_model) == MODELS[name][2]
    answer_loss.install(installed, 0.1)
    (batch,) = PackedBatches()(records()) if packed else [padded]
    assert ("layout" in batch) == packed
    got = installed.train()(**batch).loss
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=0)
    expected, actual = gradients(plain, wanted), gradients(installed, got)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=1e-5, msg=key)


def test_a_head_with_an_update_of_its_own_is_trained() -> None:
    model = adapted("Llama", ["q_proj", "lm_head"])
    answer_loss.install(model)
    (batch,) = PaddedBatches(0)(records())
    found = gradients(model, model(**batch).loss)
    assert len(found) == 6
    assert all(bool((grad != 0).any()) for grad in found.values())


def test_mixed_precision_does_not_reach_into_the_sum() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(20, 16, requires_grad=True), torch.randn(300, 16)
    targets, weights = torch.randint(0, 300, (20,)), torch.rand(20)
    wanted = answer_loss.BlockwiseCrossEntropy.apply(hidden, head, targets, weights, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        got = answer_loss.BlockwiseCrossEntropy.apply(hidden, head, targets, weights, 0.1)
    assert got.dtype == torch.float32
    assert torch.equal(got, wanted)
