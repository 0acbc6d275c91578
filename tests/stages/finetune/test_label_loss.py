"""The loss on labels: at each token among those that the labels allow
there, as the label search chooses it.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from support.training import adapted, trained  # noqa: E402

from slmctl.artifacts.artifact import Artifact  # noqa: E402
from slmctl.errors import DataError  # noqa: E402
from slmctl.inference.label_search import LabelTrie  # noqa: E402
from slmctl.stages.finetune import answer_loss, finetune, label_loss, packing, packing_check  # noqa: E402
from slmctl.stages.finetune.batches import PaddedBatches  # noqa: E402
from slmctl.stages.finetune.label_loss import LabelTokens  # noqa: E402
from slmctl.stages.finetune.packing import IGNORED, EncodedRecord  # noqa: E402
from slmctl.task.contract import Task  # noqa: E402

LABELS = [[20, 21, 2], [20, 22, 2], [30, 2]]  # two of them begin alike
PROMPTS = [[5, 6, 7], [5, 6, 8, 9], [5, 7]]


def row(prompt: list[int], answer: list[int], weight: float = 1.0) -> EncodedRecord:
    labels, weights = [IGNORED] * len(prompt) + answer, [0.0] * len(prompt) + [weight] * len(answer)
    return EncodedRecord(input_ids=prompt + answer, labels=labels, weights=weights)


ROWS = [
    row(prompt, label, weight)
    for prompt, label, weight in zip(PROMPTS, LABELS, (1.0, 0.5, 2.0), strict=True)
]


@pytest.fixture
def tokens() -> LabelTokens:
    return LabelTokens(LabelTrie(["refund", "repair", "setup"], LABELS))


@pytest.mark.parametrize(
    ("kind", "packed"), [("Llama", True), ("Llama", False), ("Gemma2", True), ("Gemma2", False)]
)
def test_it_is_the_label_searchs_own_probability(
    kind: str, packed: bool, tokens: LabelTokens
) -> None:
    settings: dict[str, Any] = (
        {"final_logit_softcapping": 5.0, "head_dim": 16} if kind == "Gemma2" else {}
    )
    plain, model = adapted(f"{kind}Config", settings), adapted(f"{kind}Config", settings)
    if packed:
        packing_check.core_model(model).config._attn_implementation = packing.ATTENTION_NAME
    answer_loss.install(model)
    (batch,) = [packing.pack(ROWS)] if packed else PaddedBatches(0)(ROWS)
    over_all = model(**batch).loss
    loss = model(**batch, choices=tokens.choices(batch["labels"])).loss
    among = torch.zeros(())
    for prompt, label, each in zip(PROMPTS, LABELS, ROWS, strict=True):
        logits = plain(torch.tensor([prompt + label])).logits[0, len(prompt) - 1 :].float()
        # where the labels part
        first = torch.log_softmax(logits[0, [20, 30]], 0)[[20, 30].index(label[0])]
        second = torch.log_softmax(logits[1, [21, 22]], 0)[label[1] - 21] if label[0] == 20 else 0.0
        among = among - (first + second) * each["weights"][-1]
    wanted = label_loss.SHARE * over_all + (1 - label_loss.SHARE) * among
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    gradient = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    assert all(torch.isfinite(each).all() for each in gradient) and any(
        each.any() for each in gradient
    )


def test_labels_of_the_same_tokens_are_refused() -> None:
    # two Unicode forms of one word ended in a traceback
    task = Task("classify", "", "", labels=("\u00c4nderung", "A\u0308nderung"))
    with pytest.raises(DataError, match="begins or equals") as caught:
        finetune._label_tokens(task, lambda text, **_: SimpleNamespace(input_ids=[1, 2]), [])
    assert "task.labels.map" in caught.value.hint


def test_answers_that_are_no_labels_are_learned_as_texts(tokens: LabelTokens) -> None:
    assert tokens.spell(ROWS)
    assert tokens.spell([row([5], [20, 21, 2, 30, 2])])  # two turns of one conversation
    assert not tokens.spell([*ROWS, row([5], [30, 21, 2])])
    assert not tokens.spell([row([5], [20, 21])])  # a label that was cut


def test_labels_are_learned_so_and_validated_as_any_text(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, training = label_loss.mixed, list[bool]()

    def noted(losses: Any, *args: Any) -> Any:
        training.append(losses.requires_grad)
        return own(losses, *args)

    monkeypatch.setattr(label_loss, "mixed", noted)
    metrics = trained(artifacts, tmp_path / "labels", max_steps=3)
    assert len(training) >= 3 and all(training)
    monkeypatch.setattr(LabelTokens, "spell", lambda *_: False)
    assert (
        trained(artifacts, tmp_path / "texts", max_steps=3)["validation_loss_before"]
        == metrics["validation_loss_before"]
    )
    assert metrics["validation_loss_before"] > metrics["validation_loss"]
