"""finetune: the loss is on the answers, and the shortcuts change nothing but the time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from slmctl.artifact import Artifact
from slmctl.config import FinetuneConfig
from slmctl.records import read_records
from slmctl.task import Task

torch = pytest.importorskip("torch")

from slmctl import weights  # noqa: E402
from slmctl.errors import DataError  # noqa: E402
from slmctl.model import _fast, _trainer, finetune  # noqa: E402
from slmctl.model._packing import IGNORED, Packing  # noqa: E402

# TRL's own config still names `gradient_checkpointing`; ends when it takes transformers' new name
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tokenizer(artifacts: dict[str, Artifact]) -> Any:
    return weights.load_tokenizer(artifacts["base"].path)


@pytest.fixture(scope="module")
def rows(artifacts: dict[str, Artifact], tokenizer: Any) -> list[dict[str, list[int]]]:
    """Eight encoded training records of different lengths."""
    prepared = artifacts["prepared"]
    records = read_records(prepared.file("train.jsonl"))
    encoded, _ = finetune.encode(records, Task.read(prepared.path), tokenizer, FinetuneConfig())
    return list({len(row["input_ids"]): row for row in encoded}.values())[:8]


@pytest.fixture
def model(artifacts: dict[str, Artifact]) -> Any:
    return weights.load_model(artifacts["base"].path)


def loss_of(model: Any, rows: list[Any]) -> Any:
    """Mean loss of an answer token, of rows padded on the left."""
    (batch,) = _trainer.LeftPadded(0)(rows)
    return _trainer.padded_loss(model, batch) / (batch["labels"] != IGNORED).sum()


def test_the_loss_is_on_the_answer_only(artifacts: dict[str, Artifact], tokenizer: Any) -> None:
    prepared = artifacts["prepared"]
    task, record = Task.read(prepared.path), read_records(prepared.file("train.jsonl"))[0]
    (row,), _ = finetune.encode([record], task, tokenizer, FinetuneConfig())
    answer = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.decode(answer) == record.answer + task.end
    assert row["labels"] == [IGNORED] * (len(row["input_ids"]) - len(answer)) + answer
    assert row["input_ids"][-len(answer) :] == answer
    assert tokenizer.decode(row["input_ids"][: -len(answer)]) == task.prompt(record.prompt_messages)


def test_a_record_that_is_too_long_is_named(artifacts: dict[str, Artifact], tokenizer: Any) -> None:
    prepared = artifacts["prepared"]
    records = read_records(prepared.file("train.jsonl"))
    with pytest.raises(DataError, match=rf"record {records[0].id} \(tickets\.csv row \d+\) has \d+ tokens"):
        finetune.encode(records, Task.read(prepared.path), tokenizer, FinetuneConfig(max_length=16))


def test_the_loss_is_that_of_all_logits(model: Any, rows: list[dict[str, list[int]]]) -> None:
    total, count = torch.zeros(()), 0
    with torch.no_grad():
        for row in rows:  # one at a time, no padding, every position through the head
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            wanted = torch.tensor(row["labels"])[1:]
            total += torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
            count += int((wanted != IGNORED).sum())
        ours = loss_of(model, rows)
    torch.testing.assert_close(ours, total / count, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing(model: Any, rows: list[dict[str, list[int]]]) -> None:
    with torch.no_grad():
        padded = [loss_of(model, [row, max(rows, key=lambda one: len(one["input_ids"]))]) for row in rows]
        counts = [sum(token != IGNORED for token in row["labels"]) for row in rows]
        longest = max(rows, key=lambda one: len(one["input_ids"]))
        rest, rest_count = loss_of(model, [longest]), sum(token != IGNORED for token in longest["labels"])
        alone = [
            (loss_of(model, [row]) * n + rest * rest_count) / (n + rest_count)
            for row, n in zip(rows, counts, strict=True)
        ]
    torch.testing.assert_close(torch.stack(padded), torch.stack(alone), rtol=1e-5, atol=1e-5)


def test_left_padding_lays_rows_out() -> None:
    (batch,) = _trainer.LeftPadded(9)(
        [
            {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "weights": [0, 1, 1]},
            {"input_ids": [4], "labels": [4], "weights": [2]},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, -100, 4]]
    assert batch["weights"].tolist() == [[0, 1, 1], [0, 0, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def gradients(model: Any, loss: Any) -> Any:
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("products", "near"), [("float32", 2e-4), ("bfloat16", 0.05)])
@pytest.mark.parametrize("share", [True, False])
def test_the_fast_path_gives_the_plain_gradients(
    artifacts: dict[str, Artifact], rows: list[Any], products: str, near: float, share: bool
) -> None:
    def adapted(products: str) -> Any:
        torch.manual_seed(0)
        config = FinetuneConfig.model_validate({"lora": {"rank": 4, "alpha": 8}, "products": products})
        model = finetune._transformers(config, artifacts["base"].path)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        return model

    plain, fast = adapted("float32"), adapted(products)
    wanted = gradients(plain, loss_of(plain, rows))
    assert _fast.install(fast) == {"layers": 2, "fast_layers": 2}
    batch = Packing(share=share)(rows)
    assert (batch["layout"][0] > 0) == share
    got = gradients(fast, fast(**batch).loss / len(batch["labels"]))
    assert {p.dtype for p in fast.parameters() if p.requires_grad} == {torch.float32}
    assert got.shape == wanted.shape
    assert (got - wanted).norm() / wanted.norm() < near


def run(config: dict[str, Any], artifacts: dict[str, Artifact], out: Path) -> dict[str, Any]:
    out.mkdir(parents=True)
    settings = {"epochs": 1, "learning_rate": 1e-2, "lora": {"rank": 4}, **config}
    return finetune.run(
        FinetuneConfig.model_validate(settings), base=artifacts["base"], prepared=artifacts["prepared"], out=out,
        keep=out.parent / f"keep-{out.name}",
    )  # fmt: skip


def test_two_runs_give_the_same_bytes(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    metrics = [run({}, artifacts, tmp_path / name) for name in ("one", "two")]
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "loss.svg", "metrics.jsonl"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert metrics[0]["learned"]
    assert metrics[0]["validation_loss"] < metrics[0]["validation_loss_before"]
    run({"seed": 1}, artifacts, tmp_path / "three")
    other = (tmp_path / "three" / "adapter_model.safetensors").read_bytes()
    assert other != (tmp_path / "one" / "adapter_model.safetensors").read_bytes()


def test_an_adapter_holds_no_path_and_no_secret(artifacts: dict[str, Artifact], tiny_run: Path) -> None:
    adapter = artifacts["adapter"]
    text = adapter.file("adapter_config.json").read_text()
    assert str(tiny_run) not in text
    assert json.loads(text)["base_model_name_or_path"] == "base"
    assert {path.name for path in adapter.path.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "loss.svg", "manifest.json", "metrics.jsonl", "task.json",
    }  # fmt: skip


def test_the_log_holds_losses_of_training_and_validation(artifacts: dict[str, Artifact]) -> None:
    lines = [json.loads(line) for line in artifacts["adapter"].file("metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[-1] < losses[0]
    assert any("grad_norm" in line for line in lines)
    assert not any("runtime" in key or "per_second" in key for line in lines for key in line)


def test_a_diverged_training_leaves_no_artifact(desk: Path) -> None:
    done = tiny.slmctl(
        desk,
        "finetune",
        "--set",
        "finetune.learning_rate=0.99",
        "--set",
        "finetune.clip=1e30",
        "--set",
        "finetune.lora.alpha=1e25",
    )
    assert done.returncode == 6, done.stderr
    assert "training diverged" in done.stderr
    assert "learning_rate" in done.stderr
    assert done.stdout == ""
    assert len(list((desk / "runs" / "adapter").iterdir())) == 1  # the good one that was there


def test_weights_that_are_not_finite_are_refused(model: Any) -> None:
    next(model.parameters()).data[0] = float("nan")
    from slmctl.errors import StageError

    with pytest.raises(StageError, match=r"1 weights are not finite"):
        finetune._require_finite(model)
