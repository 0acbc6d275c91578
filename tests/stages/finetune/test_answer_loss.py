"""The loss on the answers: that of all logits, packed or padded, with the head in blocks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from support.training import (  # noqa: E402
    adapted,
    assert_same_gradients,
    gradients,
    packed_loss,
    plain_loss,
    some_rows,
)
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from slmctl.stages.finetune import answer_loss, layer_replacement, packing, packing_check  # noqa: E402
from slmctl.stages.finetune.batches import PaddedBatches  # noqa: E402
from slmctl.stages.finetune.trainer import AnswerTrainer, Progress  # noqa: E402

MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {  # class, settings, plain head
    "Llama": ("LlamaConfig", {"tie_word_embeddings": False}, True),
    "Llama, tied": ("LlamaConfig", {}, True),
    "Granite, scaled logits": ("GraniteConfig", {"logits_scaling": 8.0}, False),
    "Gemma 2, capped logits": (
        "Gemma2Config",
        {"final_logit_softcapping": 5.0, "head_dim": 16},
        False,
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packed", [True, False])
def test_through_the_models_own_layers_it_is_that_of_all_logits(name: str, packed: bool) -> None:
    # as a GPU computes it
    kind, settings, plain_head = MODELS[name]
    plain, installed = adapted(kind, settings), adapted(kind, settings)
    core = packing_check.core_model(installed)
    if packed:
        core.config._attn_implementation = packing.ATTENTION_NAME
    assert answer_loss.is_plain_head(core, core.base_model) == plain_head
    answer_loss.install(installed)
    (batch,) = [packing.pack(some_rows())] if packed else PaddedBatches(0)(some_rows())
    wanted, got = plain_loss(plain, some_rows()), installed(**batch).loss
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=0)
    assert_same_gradients(gradients(plain, wanted), gradients(installed, got), 1e-3)


@pytest.mark.parametrize("name", ["Llama, tied", "Gemma 2, capped logits"])
def test_smoothed_targets_give_torchs_loss_and_only_in_training(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_loss, "VOCABULARY_BLOCK", 64)
    kind, settings, _ = MODELS[name]
    plain, fast = adapted(kind, settings), adapted(kind, settings)
    layer_replacement.install_kernels(fast, 0.2)
    fast.eval()
    torch.testing.assert_close(packed_loss(fast), plain_loss(plain, some_rows()), rtol=1e-4, atol=0)
    fast.train()  # no dropout in either
    wanted, got = plain_loss(plain, some_rows(), 0.2), packed_loss(fast)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=0)
    assert_same_gradients(gradients(plain, wanted), gradients(fast, got), 1e-3)


class LogitRows(TorchDispatchMode):
    """Counts how many rows of logits the largest tensor over the
    vocabulary holds, in any operation.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.rows = max(
                    self.rows, tensor.numel() // self.vocabulary if tensor.numel() else 0
                )
        return result


def test_training_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"vocab_size": 5000, "hidden_size": 16, "head_dim": 16}
    batch = packing.pack(some_rows() * 6)
    monkeypatch.setattr(answer_loss, "VOCABULARY_BLOCK", 512)

    def rows_of_logits() -> int:
        model = adapted("LlamaConfig", settings)
        layer_replacement.install_kernels(model)
        with LogitRows(5000) as seen:
            model(**batch).loss.backward()
        return seen.rows

    assert rows_of_logits() < len(batch["labels"])
    # the model's own full logits
    monkeypatch.setattr(answer_loss, "is_plain_head", lambda core, trunk: False)
    assert rows_of_logits() >= len(batch["labels"])


def test_a_loss_that_is_far_off_stays_finite() -> None:
    head = torch.randn(50, 8) * 100
    hidden = (torch.randn(4, 8) * 100).requires_grad_()
    targets, weights = torch.tensor([0, 17, 18, 49]), torch.tensor([1.0, 0.5, 0.0, 2.0])
    got = answer_loss.BlockwiseCrossEntropy.apply(hidden, head, targets, weights).sum()
    wanted = (
        torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="none") * weights
    ).sum()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, hidden)[0] for loss in (got, wanted)), atol=1e-3, rtol=1e-4
    )


def test_mixed_precision_does_not_reach_into_the_sum() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(20, 16, requires_grad=True), torch.randn(300, 16)
    targets, weights = torch.randint(0, 300, (20,)), torch.rand(20)
    wanted = answer_loss.BlockwiseCrossEntropy.apply(hidden, head, targets, weights, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        got = answer_loss.BlockwiseCrossEntropy.apply(hidden, head, targets, weights, 0.1)
    assert got.dtype == torch.float32
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.25, 0.25), (0.1, 3.0)])
def test_the_loss_that_is_told_is_nats_a_token_whatever_tokens_weigh(
    weights: tuple[float, float],
) -> None:
    # answers of weight 0.25, such as windows of a document, had a quarter of the loss
    rows = [
        {
            "input_ids": [1, 2, 3, 4],
            "labels": [-100, -100, 3, 4],
            "weights": [0.0, 0.0, weight, weight],
        }
        for weight in weights
    ]
    model = Uniform()
    trainer = SimpleNamespace(
        check=lambda: None,
        model=model,
        validation=rows,
        batches=PaddedBatches(0),
        labels=None,
        control=None,
        args=SimpleNamespace(per_device_train_batch_size=8),
        state=SimpleNamespace(global_step=0),
        accelerator=SimpleNamespace(process_index=0, num_processes=1),
        callback_handler=SimpleNamespace(on_evaluate=lambda *_: None),
        _prepare_inputs=lambda piece: piece,
        log=lambda metrics: None,
        is_interrupted=lambda: False,
        progress=Progress(),
        mean_tokens=2.0,
    )
    assert AnswerTrainer.evaluate(trainer)["eval_loss"] == pytest.approx(2.5)
    assert [block[1] for block in trainer.blocks] == [2 * weight for weight in weights]
    # as manifests have had them
    assert weights[0] != 1 or all(type(block[1]) is int for block in trainer.blocks)
    batch = AnswerTrainer._collate(trainer, rows)
    _, divisor = AnswerTrainer.get_batch_samples(trainer, iter([batch]), 1, "cpu")
    assert divisor == 4.0  # of the gradient, which weights do not change
    loss = sum(model(**piece).losses.sum() for piece in batch["pieces"]) / divisor
    assert float(loss * trainer.step_mean) == pytest.approx(2.5)


class Uniform:
    """A model to which each token costs 2.5 nats."""

    def eval(self) -> None: ...

    def __call__(self, *, weights: Any, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(losses=2.5 * weights)
