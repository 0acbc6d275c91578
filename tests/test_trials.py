"""What the trials of training compute: the loss over the labels, and the rows of their table."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from support.training import adapted, assert_same_gradients, gradients, plain_loss, some_rows  # noqa: E402

from benchmarks import trials  # noqa: E402
from slmctl.inference.label_search import LabelTrie  # noqa: E402
from slmctl.stages.finetune import layer_replacement, packing  # noqa: E402


def among_labels(model: Any, rows: list[Any], tokens: list[list[int]]) -> Any:
    """The same by plain torch: each record alone, all logits, those of tokens that no label has there left out."""
    total = torch.zeros(())
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0].float()
        answer = row["input_ids"][-4:]
        for k, token in enumerate(answer):
            allowed = sorted({label[k] for label in tokens if label[:k] == answer[:k]})
            logs = logits[len(row["input_ids"]) - 5 + k][allowed].log_softmax(0)
            total = total - logs[allowed.index(token)] * row["weights"][len(row["input_ids"]) - 4 + k]
    return total


def test_the_loss_over_the_labels_is_that_of_plain_torch() -> None:
    rows = some_rows()
    answers = [row["input_ids"][-4:] for row in rows]
    tokens = [*answers, [*answers[0][:2], 7, 8], [*answers[1][:1], 9, 10], [11, 12]]
    plain, fast = adapted("LlamaConfig", {}), adapted("LlamaConfig", {})
    layer_replacement.install_kernels(fast)
    trials.over_labels(fast, LabelTrie("abcdef", tokens), 0.2)
    plain.train(), fast.train()  # no dropout in either
    wanted = 0.2 * plain_loss(plain, rows) + 0.8 * among_labels(plain, rows, tokens)
    got = fast(**packing.pack(rows)).loss
    torch.testing.assert_close(got, wanted, rtol=5e-4, atol=0)
    assert_same_gradients(gradients(plain, wanted), gradients(fast, got), 1e-3)
    fast.eval()
    torch.testing.assert_close(fast(**packing.pack(rows)).loss, plain_loss(plain, rows), rtol=5e-4, atol=0)


def test_a_trial_is_kept_where_its_gain_is_more_than_its_error() -> None:
    control = [[True, False, False, False] * 25] * 3
    better = [[True, True, False, False] * 25, [True, True, True, False] * 25, [True, True, False, False] * 25]
    found = [{trials.CONTROL: a, "better": b} for a, b in zip(control, better, strict=True)]
    (first, second), seeds = trials.compared(found)
    assert (first.ours, first.theirs, second.ours, second.spread) == (0.25, 0.25, 0.5833, (2.0, 3.0))
    assert second.metric == "better: accuracy (+33.3 points, standard error 8.3)"
    assert [seeds[kind]["kept"] for kind in (trials.CONTROL, "better")] == [False, True]
    assert seeds["better"]["accuracy"] == [0.5, 0.75, 0.5]
