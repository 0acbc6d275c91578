"""Packed batches give the loss and the gradients that each record gives alone, on weights as classes draw them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from peft import LoraConfig, get_peft_model  # noqa: E402

from benchmarks import architectures  # noqa: E402
from slmctl.stages.finetune import layer_replacement, packing_check  # noqa: E402
from slmctl.stages.finetune.packing import IGNORED, BatchPacker  # noqa: E402

# of packages that would make some architectures faster, and of tied weights that PEFT unties
pytestmark = pytest.mark.filterwarnings("ignore")
NEAR = 1e-3


def rows() -> list[Any]:
    """Records of three lengths, longer than the windows of the small models, that open with the same tokens."""
    choose = torch.Generator().manual_seed(3)
    head = torch.randint(3, 600, (9,), generator=choose).tolist()
    made = []
    for length in (35, 40, 47):
        ids = head + torch.randint(3, 600, (length - 9,), generator=choose).tolist()
        labels = [IGNORED] * (length - 4) + ids[-4:]
        made.append({"input_ids": ids, "labels": labels, "weights": [0.0] * (length - 4) + [1.0, 1.0, 0.5, 1.0]})
    return made


def adapted(name: str, targets: Any = "all-linear") -> Any:
    model = architectures.model(name)
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.03)  # more makes much of every rounding
    return model


def alone(model: Any) -> Any:
    """Each record alone, all its logits, by transformers and PEFT."""
    total = torch.zeros(())
    for record in rows():
        logits = model(input_ids=torch.tensor([record["input_ids"]]), use_cache=False).logits[0, :-1].float()
        labels, weights = torch.tensor(record["labels"])[1:], torch.tensor(record["weights"])[1:]
        losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        total = total + (losses * weights).sum()
    return total


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def require_parity(model: Any, near: float = NEAR, half: bool = False) -> None:
    plain = copy.deepcopy(model)
    if half:  # the frozen weights as `finetune` loads them where products are in bfloat16
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    assert packing_check.supports_packing(model)
    layer_replacement.install_kernels(model)
    batch = BatchPacker()(rows())
    assert batch["layout"] == (9, 3)
    loss, expected = model(**batch).loss, alone(plain)
    torch.testing.assert_close(loss, expected, rtol=near, atol=0)
    found, wanted = gradients(model, loss), gradients(plain, expected)
    assert all(gradient is not None for gradient in wanted.values())
    assert all(gradient is not None for gradient in found.values())
    flat, flat_wanted = (torch.cat([g.flatten() for g in part.values()]) for part in (found, wanted))
    assert (flat - flat_wanted).norm() / flat_wanted.norm() < near


DENSE = sorted(
    {"llama", "smollm3", "qwen2", "qwen3", "mistral", "granite", "granite4", "olmo2", "olmo3", "exaone4", "apertus",
     "gemma2", "gemma3-text", "gemma4-text", "phi3", "lfm2", "hunyuan", "ernie4.5", "glm4", "cohere2"}
)  # fmt: skip


@pytest.mark.parametrize("name", DENSE)
def test_packed_records_train_as_each_alone(name: str) -> None:
    # Gemma 4 does not scale scores down: in float64, embeddings that are off by 2e-7 change its gradients by 2e-3
    require_parity(adapted(name), near=1e-2 if name == "gemma4-text" else NEAR)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("targets", [["lm_head", "q_proj"], ["lm_head", "embed_tokens"]])
@pytest.mark.parametrize("name", ["llama", "gemma3-text", "granite"])
def test_updates_of_head_and_embeddings_are_trained(name: str, targets: list[str], half: bool) -> None:
    # the head's frozen weight alone was multiplied, and its update stayed at zero
    require_parity(adapted(name, targets), near=0.1 if half else NEAR, half=half)


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3-text"])
def test_dropout_of_attention_is_honoured_in_training_only(name: str) -> None:
    model = adapted(name)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    layer_replacement.install_kernels(model)
    batch = BatchPacker()(rows())
    assert float(model.eval()(**batch).loss) == float(model(**batch).loss)
    model.train()
    assert len({float(model(**batch).loss) for _ in range(3)}) == 3
