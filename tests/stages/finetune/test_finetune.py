"""finetune: the loss is on the answers, and the shortcuts change nothing but the time."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import math
import random
import re
import shutil
import types
import weakref
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support import tiny
from support.forks import Forks

from slmctl import config
from slmctl.artifacts.artifact import Artifact
from slmctl.config import FinetuneConfig
from slmctl.errors import DataError, StageError
from slmctl.pipeline import resolve, runner, system_errors
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records

torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from slmctl.model_files import hf_folder, memory, model_shape  # noqa: E402
from slmctl.stages.finetune import (  # noqa: E402
    answer_loss,
    batches,
    checkpoint,
    device_plan,
    encoding,
    finetune,
    layer_replacement,
    loss_curve,
    memory_estimate,
    packing_check,
    trainer,
)
from slmctl.stages.finetune.batches import PaddedBatches  # noqa: E402
from slmctl.stages.finetune.encoding import share_of  # noqa: E402
from slmctl.stages.finetune.packing import IGNORED, BatchPacker  # noqa: E402

# TRL's own config still names `gradient_checkpointing`; ends when it takes transformers' new name
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tokenizer(artifacts: dict[str, Artifact]) -> Any:
    return hf_folder.load_tokenizer(artifacts["base"].path)


@pytest.fixture(scope="module")
def rows(artifacts: dict[str, Artifact], tokenizer: Any) -> list[dict[str, list[int]]]:
    """Eight encoded training records of different lengths."""
    prepared = artifacts["prepared"]
    records = read_records(prepared.file("train.jsonl"))
    encoded, _ = encoding.encode(records, Task.read(prepared.path), tokenizer, FinetuneConfig())
    return list({len(row["input_ids"]): row for row in encoded}.values())[:8]


@pytest.fixture
def model(artifacts: dict[str, Artifact]) -> Any:
    return hf_folder.load_model(artifacts["base"].path)


def loss_of(model: Any, rows: list[Any]) -> Any:
    """Mean loss of an answer token, of rows padded on the left."""
    (batch,) = PaddedBatches(0)(rows)
    return answer_loss.padded_loss(model, batch) / len(batch["labels"])


def test_the_loss_is_on_the_answer_only(artifacts: dict[str, Artifact], tokenizer: Any) -> None:
    prepared = artifacts["prepared"]
    task, record = Task.read(prepared.path), read_records(prepared.file("train.jsonl"))[0]
    (row,), _ = encoding.encode([record], task, tokenizer, FinetuneConfig())
    answer = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.decode(answer) == record.answer + task.end
    assert row["labels"] == [IGNORED] * (len(row["input_ids"]) - len(answer)) + answer
    assert row["input_ids"][-len(answer) :] == answer
    assert tokenizer.decode(row["input_ids"][: -len(answer)]) == task.prompt(record.prompt_messages)


def test_a_control_token_in_an_answer_is_learned_as_text(task: Task, tokenizer: Any) -> None:
    # it was once a real end of turn, though prompt, predict and serve would show it broken up
    answer = "Type <|im_end|> to stop"
    record = conversation(("user", "card price"), ("assistant", answer), ("user", "and"), ("assistant", "billing"))
    (row,), _ = encoding.encode([record], task, tokenizer, FinetuneConfig())
    end = tokenizer.convert_tokens_to_ids(task.end)
    assert [label for label in row["labels"] if label != IGNORED].count(end) == 2
    assert learned(row, tokenizer) == f"{task.defused(answer)}{task.end}billing{task.end}"


def test_a_record_that_is_too_long_is_named(artifacts: dict[str, Artifact], tokenizer: Any) -> None:
    prepared = artifacts["prepared"]
    records = read_records(prepared.file("train.jsonl"))
    with pytest.raises(DataError, match=rf"record {records[0].id} \(tickets\.csv line \d+\) has \d+ tokens"):
        encoding.encode(records, Task.read(prepared.path), tokenizer, FinetuneConfig(max_length=16))


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
    (batch,) = PaddedBatches(9)(
        [
            {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "weights": [0, 1, 1]},
            {"input_ids": [4], "labels": [4], "weights": [2]},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch["labels"].tolist() == [2, 3, 4]
    assert batch["weights"].tolist() == [1, 1, 2]
    assert batch["keep"].tolist() == [0, 1, 4]  # of six places, row by row
    assert batch["columns"] == 3
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_padded_rows_come_in_pieces_that_fit(model: Any, rows: list[Any]) -> None:
    whole, parts = PaddedBatches(0), PaddedBatches(0, 2 * max(len(row["input_ids"]) for row in rows))
    made = parts(rows)
    assert len(made) == math.ceil(len(rows) / 2)
    assert max(batch["input_ids"].numel() for batch in made) <= parts.limit
    assert parts.filled - parts.padded == sum(len(row["input_ids"]) for row in rows)
    with torch.no_grad():
        total = sum(answer_loss.padded_loss(model, batch) for batch in made)
        torch.testing.assert_close(total, answer_loss.padded_loss(model, whole(rows)[0]), rtol=1e-5, atol=1e-5)


def test_a_model_that_cannot_be_packed_is_computed_in_pieces_too(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the estimate counts on it, and a batch of 64 was once computed as a whole
    sizes, whole = [], trainer.AnswerTrainer.compute_loss

    def measured(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        sizes.append(inputs["input_ids"].numel())
        return whole(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(packing_check, "supports_packing", lambda model: False)
    monkeypatch.setattr(trainer.AnswerTrainer, "compute_loss", measured)
    assert run({"max_steps": 2, "batch_size": 64}, artifacts, tmp_path / "one")["learned"]
    assert model_shape.PIECE_TOKENS / 2 < max(sizes) <= model_shape.PIECE_TOKENS


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
        config = FinetuneConfig.model_validate({"lora": {"rank": 4, "alpha": 8}, "matmul_dtype": products})
        model = finetune.load_transformers(config, artifacts["base"].path)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        return model

    plain, fast = adapted("float32"), adapted(products)
    wanted = gradients(plain, loss_of(plain, rows))
    assert layer_replacement.install_kernels(fast) == {"layers": 2, "fast_layers": 2}
    batch = BatchPacker(share=share)(rows)
    assert (batch["layout"][0] > 0) == share
    got = gradients(fast, fast(**batch).loss / len(batch["labels"]))
    assert {p.dtype for p in fast.parameters() if p.requires_grad} == {torch.float32}
    assert got.shape == wanted.shape
    assert (got - wanted).norm() / wanted.norm() < near


def run(given: dict[str, Any], artifacts: dict[str, Artifact], out: Path) -> dict[str, Any]:
    out.mkdir(parents=True)
    settings = {"epochs": 1, "learning_rate": 1e-2, "lora": {"rank": 4}, **given}
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
    records, tokens, nats = (sum(column) for column in zip(*metrics[0]["validation_blocks"], strict=True))
    assert records == len(read_records(artifacts["prepared"].file("validation.jsonl")))
    assert nats / tokens == pytest.approx(metrics[0]["validation_loss"], abs=1e-5)  # of the step that is kept


def test_a_share_of_the_records_follows_from_their_content(artifacts: dict[str, Artifact]) -> None:
    records = read_records(artifacts["prepared"].file("train.jsonl"))
    shares = {share: share_of(records, share) for share in (1.0, 0.5, 0.25, 0.0001)}
    assert shares[1.0] == records
    assert 0.35 < len(shares[0.5]) / len(records) < 0.65
    assert all(record in shares[0.5] for record in shares[0.25])
    assert len(shares[0.0001]) == 1
    assert share_of(records[::-1], 0.25) == shares[0.25][::-1]


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


def test_a_diverged_training_leaves_no_artifact(stages: Forks, desk: Path) -> None:
    done = stages.run(
        desk,
        "finetune",
        "--set",
        "finetune.learning_rate=0.99",
        "--set",
        "finetune.max_grad_norm=1e30",
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
    with pytest.raises(StageError, match=r"1 weights are not finite"):
        finetune._require_finite(model)


# What diverges

EIGHT = ("finetune.max_steps=8", "finetune.validate_every=2", "finetune.batch_size=8")


def stopped(desk: Path) -> tuple[str, Path]:
    """The message of a training that must stop, and the folder its checkpoints are kept in."""
    project = resolve.Project(root=desk, config=config.load(desk / config.FILENAME, EIGHT))
    asked = resolve.resolve_stage(project, "finetune")
    with pytest.raises(StageError) as caught:
        runner.run(project, asked)
    assert caught.value.code == 6
    assert caught.value.hint == "--set finetune.learning_rate=1e-4"
    assert not asked.path.exists()
    assert not list(asked.path.parent.glob(".draft-*"))
    return caught.value.message, runner.resume_folder(asked)


@pytest.mark.parametrize(("step", "value"), [(1, "nan"), (3, "nan"), (3, "inf"), (8, "nan")])
@pytest.mark.parametrize("where", ["loss", "gradient", "weight"])
def test_a_training_that_diverges_stops_at_that_step(
    desk: Path, monkeypatch: pytest.MonkeyPatch, where: str, step: int, value: str
) -> None:
    whole_step, whole_loss = trainer.AnswerTrainer.training_step, trainer.AnswerTrainer.compute_loss

    def broken_loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = whole_loss(self, model, *args, **kwargs)
        now = where == "loss" and model.training and self.state.global_step == step - 1
        return loss * float(value) if now else loss

    def broken_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        parameter = next(parameter for name, parameter in self.trained().items() if "lora_B" in name)
        if self.state.global_step == step - 1 and where == "weight":
            parameter.data[0, 0] = float(value)
        loss = whole_step(self, *args, **kwargs)
        if self.state.global_step == step - 1 and where == "gradient":
            parameter.grad[0, 0] = float(value)
        return loss

    monkeypatch.setattr(trainer.AnswerTrainer, "compute_loss", broken_loss)
    monkeypatch.setattr(trainer.AnswerTrainer, "training_step", broken_step)
    message, keep = stopped(desk)
    seen = "loss" if where == "weight" else where
    assert re.match(rf"training diverged: the {seen} is -?(nan|inf) at step {step}\b", message)
    if step < 3:  # nothing was validated, so nothing is worth keeping
        assert not keep.exists()
        return
    last = keep / f"step-{(step - 1) // 2 * 2:08d}"
    assert message.endswith(f"the last good checkpoint is {last}")
    assert checkpoint.newest(keep) == last
    for name in ("weights.safetensors", "best.safetensors"):
        assert all(bool(torch.isfinite(t).all()) for t in load_file(last / name).values())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_device_that_is_looked_at_every_few_steps_saves_nothing_broken(
    desk: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    whole_plan, whole_step = device_plan.for_cpu, trainer.AnswerTrainer.training_step
    taken = []

    def broken_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        taken.append(self.state.global_step)
        loss = whole_step(self, *args, **kwargs)
        if self.state.global_step == 2:
            broken = loss if where == "loss" else next(iter(self.trained().values())).grad
            broken.fill_(float("nan"))
        return loss

    monkeypatch.setattr(device_plan, "for_cpu", lambda *args: dataclasses.replace(whole_plan(*args), check_every=100))
    monkeypatch.setattr(trainer.AnswerTrainer, "training_step", broken_step)
    message, keep = stopped(desk)
    assert message.startswith(f"training diverged: the {where} is nan at step 3;")
    assert taken == [0, 1, 2, 3]  # the validation after step 4 looks
    assert [path.name for path in keep.glob("step-*")] == ["step-00000002"]


def test_weights_that_break_in_the_last_update_are_seen(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trainer.TrainingMonitor.on_step_end

    def broken(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 8:
            next(iter(self.trainer.trained().values())).data.fill_(float("nan"))
        whole(self, args, state, control, **kwargs)

    monkeypatch.setattr(trainer.TrainingMonitor, "on_step_end", broken)
    message, keep = stopped(desk)
    assert message.startswith("training diverged: the validation loss is nan at step 8;")
    assert checkpoint.newest(keep) == keep / "step-00000006"


# Settings reach the training


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def settings_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "adapter_config.json").read_text())
    return found


def test_the_shape_of_the_adapter_is_the_one_asked_for(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    lora = {"rank": 2, "alpha": 6, "target_modules": ["q_proj", "down_proj"], "rslora": True, "dropout": 0.25}
    metrics = run({"max_steps": 2, "lora": lora}, artifacts, tmp_path / "one")
    found = settings_of(tmp_path / "one")
    assert (found["r"], found["lora_alpha"], found["lora_dropout"]) == (2, 6, 0.25)
    assert (found["use_rslora"], found["use_dora"]) == (True, False)
    assert {name.rpartition(".")[2] for name in found["target_modules"]} == {"down_proj", "q_proj"}
    tensors = load_file(tmp_path / "one" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in tensors} == {"q_proj", "down_proj"}
    assert {min(tensor.shape) for tensor in tensors.values()} == {2}
    assert (metrics["steps"], metrics["fast_layers"]) == (2, 2)


def test_dora_learns_lengths_with_pefts_own_layers(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    metrics = run({"max_steps": 4, "lora": {"rank": 2, "dora": True}}, artifacts, tmp_path / "one")
    assert metrics["fast_layers"] == 0
    assert metrics["learned"]
    names = load_file(tmp_path / "one" / "adapter_model.safetensors")
    assert any("lora_magnitude_vector" in name for name in names)


def test_rslora_and_dropout_change_what_is_learned(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    shapes: list[dict[str, Any]] = [{}, {"rslora": True}, {"dropout": 0.5}]
    losses = [
        run({"max_steps": 6, "lora": {"rank": 4, "alpha": 8} | shape}, artifacts, tmp_path / str(k))["train_loss"]
        for k, shape in enumerate(shapes)
    ]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_and_falls_as_the_schedule_says(
    artifacts: dict[str, Artifact], tmp_path: Path, schedule: str
) -> None:
    settings = {"max_steps": 40, "warmup_ratio": 0.25, "lr_scheduler": schedule, "validate_every": 10, "batch_size": 4}
    run(settings, artifacts, tmp_path / "one")
    rates = {entry["step"]: entry["learning_rate"] for entry in log_of(tmp_path / "one") if "loss" in entry}
    assert list(rates) == [10, 20, 30, 40]
    share = (29 - 10) / 30  # of the way down, before the 30th step
    wanted = {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "constant": 1.0}[schedule]
    assert rates[10] == pytest.approx(1e-2 * 9 / 10)
    assert rates[30] == pytest.approx(1e-2 * wanted)


def test_a_batch_in_two_parts_gives_the_same_losses(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    logs = []
    for parts in (1, 2):
        out = tmp_path / str(parts)
        # more than an epoch, whose last batch is not full
        settings = {"max_steps": 26, "batch_size": 8, "gradient_accumulation_steps": parts, "matmul_dtype": "float32"}
        run(settings, artifacts, out)
        logs.append(log_of(out))
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    for one, two in zip(*logs, strict=True):
        for key in {"loss", "eval_loss"} & set(one):
            assert two[key] == pytest.approx(one[key], abs=1e-4)


def test_every_answer_token_of_an_epoch_counts_the_same(
    artifacts: dict[str, Artifact], rows: list[Any], model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # records of like length share a step, and each step had divided by its own tokens: those of short answers won
    short, long = rows[0], rows[-1]
    more = [token for token in long["labels"] if token != IGNORED] * 6
    longer = {
        "input_ids": long["input_ids"] + more, "labels": long["labels"] + more,
        "weights": long["weights"] + [1.0] * len(more),
    }  # fmt: skip
    records = [*[short] * 4, *[longer] * 4]
    trained_on = iter([records])  # in place of what is encoded first; the validation rows come after it

    def encode(*args: Any, **options: Any) -> Any:
        encoded, cut = encoding.encode(*args, **options)
        return next(trained_on, encoded), cut

    steps = []
    compute = trainer.AnswerTrainer.compute_loss

    def compute_loss(*args: Any, **options: Any) -> Any:
        loss = compute(*args, **options)
        if "num_items_in_batch" in options:
            steps.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(finetune, "encode", encode)
    monkeypatch.setattr(trainer.AnswerTrainer, "compute_loss", compute_loss)
    run({"learning_rate": 1e-12, "batch_size": 4, "matmul_dtype": "float32"}, artifacts, tmp_path / "one")
    with torch.no_grad():
        assert sum(steps) / 2 == pytest.approx(float(loss_of(model, records)), abs=1e-4)
        by_step = sorted(float(loss_of(model, part)) for part in (records[:4], records[4:]))
    logged = sorted(entry["loss"] for entry in log_of(tmp_path / "one") if "loss" in entry)
    assert logged == pytest.approx(by_step, abs=1e-4)  # what is shown is the mean over the step's own tokens


def test_the_tokenizer_is_gone_before_the_first_step(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one of 262,144 tokens takes a quarter of a gigabyte
    load, step = hf_folder.load_tokenizer, trainer.AnswerTrainer.training_step
    loaded: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    def load_tokenizer(*args: Any, **options: Any) -> Any:
        found = load(*args, **options)
        loaded.append(weakref.ref(found))
        return found

    def training_step(*args: Any, **options: Any) -> Any:
        alive.extend(each() is not None for each in loaded)
        return step(*args, **options)

    monkeypatch.setattr(hf_folder, "load_tokenizer", load_tokenizer)
    monkeypatch.setattr(trainer.AnswerTrainer, "training_step", training_step)
    run({"max_steps": 1}, artifacts, tmp_path / "one")
    assert alive == [False] * len(loaded)
    assert loaded


def test_weight_decay_draws_weights_to_zero(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    norms = []
    for decay in (0.0, 0.9):
        out = tmp_path / str(decay)
        run({"max_steps": 10, "weight_decay": decay, "lr_scheduler": "constant", "warmup_ratio": 0.0}, artifacts, out)
        tensors = load_file(out / "adapter_model.safetensors")
        norms.append(sum(float(t.norm()) for name, t in tensors.items() if "lora_A" in name))
    assert norms[1] / norms[0] == pytest.approx((1 - 1e-2 * 0.9) ** 10, rel=0.05)


def test_a_gradient_that_is_clipped_away_teaches_nothing(
    artifacts: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = run({"max_steps": 4, "max_grad_norm": 1e-13, "learning_rate": 1e-6}, artifacts, tmp_path / "one")
    assert metrics["validation_loss"] == pytest.approx(metrics["validation_loss_before"], abs=1e-3)
    assert log_of(tmp_path / "one")[0]["grad_norm"] > 0.01  # as it was before it was clipped


# Records that are too long, or have several turns


def conversation(*turns: tuple[str, str] | tuple[str, str, float]) -> Record:
    messages = tuple(
        {"role": turn[0], "content": turn[1]} | ({"weight": turn[2]} if len(turn) > 2 else {})  # type: ignore[misc]
        for turn in turns
    )
    return Record(id="abc", messages=messages, source={"file": "chats.jsonl", "row": 7})


@pytest.fixture(scope="module")
def task(artifacts: dict[str, Artifact]) -> Task:
    return Task.read(artifacts["prepared"].path)


def learned(row: Any, tokenizer: Any) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != IGNORED]))


def test_too_long_records_are_dropped_or_truncated_and_counted(
    artifacts: dict[str, Artifact], task: Task, tokenizer: Any
) -> None:
    records = read_records(artifacts["prepared"].file("train.jsonl"))
    sizes = [len(encoding.encode([record], task, tokenizer, FinetuneConfig())[0][0]["input_ids"]) for record in records]
    limit = sorted(sizes)[len(sizes) // 2]
    long = sum(size > limit for size in sizes)
    assert 0 < long < len(records)
    dropping, cutting = (FinetuneConfig(max_length=limit, too_long=policy) for policy in ("drop", "truncate"))
    rows, cut = encoding.encode(records, task, tokenizer, dropping)
    assert (len(rows), cut) == (len(records) - long, {"dropped": long, "truncated": 0})
    rows, cut = encoding.encode(records, task, tokenizer, cutting)
    assert (len(rows), cut) == (len(records), {"dropped": 0, "truncated": long})
    assert max(len(row["input_ids"]) for row in rows) == limit
    for row, record in zip(rows, records, strict=True):
        assert learned(row, tokenizer) == record.answer + task.end  # never cut
        text = tokenizer.decode(row["input_ids"])
        before, question, after = task.prompt(record.prompt_messages).partition(record.input)
        assert text.startswith(before)
        assert text.endswith(after + record.answer + task.end)
        middle = text.removeprefix(before).removesuffix(after + record.answer + task.end)
        assert question.startswith(middle)


def test_what_became_of_long_records_is_in_the_metrics(
    artifacts: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = run({"max_steps": 1, "max_length": 28, "too_long": "truncate"}, artifacts, tmp_path / "one")
    count = metrics["too_long"]["train"]["truncated"]
    assert count > 0
    assert metrics["too_long"]["validation"]["truncated"] > 0
    assert f"note: {count} records longer than max_length were truncated" in capsys.readouterr().err


def test_a_record_that_cannot_be_cut_to_fit_is_named(task: Task, tokenizer: Any) -> None:
    record = conversation(("user", "please help"), ("assistant", "billing " * 40))
    settings = FinetuneConfig(max_length=16, too_long="truncate")
    with pytest.raises(DataError, match=r"record abc \(chats\.jsonl line 7\) is longer than max_length 16 whatever"):
        encoding.encode([record], task, tokenizer, settings)
    settings = FinetuneConfig(max_length=16, too_long="drop")
    with pytest.raises(DataError, match="no record is left: all 1 are longer than max_length 16"):
        encoding.encode([record], task, tokenizer, settings)


@pytest.mark.parametrize("limit", range(16, 45))
def test_a_cut_inside_a_character_takes_all_of_it(task: Task, tokenizer: Any, limit: int) -> None:
    # the mark of half a character was once more tokens than had been cut off, and so for ever
    record = conversation(("user", "🙂" * 8), ("assistant", "billing"))
    (row,), cut = encoding.encode([record], task, tokenizer, FinetuneConfig(max_length=limit, too_long="truncate"))
    assert cut["truncated"] == 1
    assert limit - 4 < len(row["input_ids"]) <= limit
    text = tokenizer.decode(row["input_ids"])
    assert text == task.prompt([{"role": "user", "content": "🙂" * text.count("🙂")}]) + f"billing{task.end}"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_without_records_is_named(artifacts: dict[str, Artifact], tmp_path: Path, split: str) -> None:
    # "all 0 are longer than max_length" was said of it
    prepared = Path(shutil.copytree(artifacts["prepared"].path, tmp_path / "prepared"))
    (prepared / f"{split}.jsonl").write_text("")
    without = artifacts | {"prepared": dataclasses.replace(artifacts["prepared"], path=prepared)}
    word = {"train": "training", "validation": "validation"}[split]
    with pytest.raises(DataError, match=f"there are no {word} records") as caught:
        run({}, without, tmp_path / "one")
    assert {"train": "rejected.jsonl", "validation": "prepare.splits.validation: 0.1"}[split] in caught.value.hint


def test_every_answer_of_a_conversation_is_learned(task: Task, tokenizer: Any) -> None:
    turns = [("system", "Name the category."), ("user", "card price"), ("assistant", "billing")]
    record = conversation(*turns, ("user", "parcel late"), ("assistant", "delivery"))
    (row,), _ = encoding.encode([record], task, tokenizer, FinetuneConfig())
    assert learned(row, tokenizer) == f"billing{task.end}delivery{task.end}"
    whole = task.render(record.messages, add_generation_prompt=False)
    assert tokenizer.decode(row["input_ids"]) == whole.rstrip("\n")
    assert {w for w, label in zip(row["weights"], row["labels"], strict=True) if label != IGNORED} == {1.0}


def test_an_answer_of_weight_0_is_read_and_not_learned(task: Task, tokenizer: Any) -> None:
    record = conversation(
        ("user", "card price"), ("assistant", "billing", 0), ("user", "parcel late"), ("assistant", "delivery", 1)
    )
    (row,), _ = encoding.encode([record], task, tokenizer, FinetuneConfig())
    assert learned(row, tokenizer) == f"delivery{task.end}"
    assert "billing" in tokenizer.decode(row["input_ids"])


def test_an_answer_of_weight_one_half_counts_half(model: Any, task: Task, tokenizer: Any) -> None:
    rows = []
    for weight in (1, 0.5):
        record = conversation(("user", "card price"), ("assistant", "billing", weight))
        rows += encoding.encode([record], task, tokenizer, FinetuneConfig())[0]
    with torch.no_grad():
        full, half = (float(answer_loss.padded_loss(model, PaddedBatches(0)([row])[0])) for row in rows)
        assert half == pytest.approx(full / 2)
        layer_replacement.install_kernels(model)
        assert float(model(**BatchPacker()([rows[1]])).loss) == pytest.approx(full / 2, rel=1e-4)
        assert float(model(**BatchPacker()(rows)).loss) == pytest.approx(full * 1.5, rel=1e-4)


def test_records_without_anything_to_learn_are_named(task: Task, tokenizer: Any) -> None:
    record = conversation(("user", "card price"), ("assistant", "billing", 0))
    with pytest.raises(DataError, match=r"nothing to learn in chats\.jsonl line 7, .*, chats\.jsonl line 7 and 2 more"):
        encoding.encode([record] * 5, task, tokenizer, FinetuneConfig())


def test_a_preview_shows_what_the_model_sees(stages: Forks, tiny_run: Path, artifacts: dict[str, Artifact]) -> None:
    lines = tiny.ok(stages.run(tiny_run, "finetune", "--preview", "2")).splitlines()
    records = read_records(artifacts["prepared"].file("train.jsonl"))[:2]
    heads = [k for k, line in enumerate(lines) if line.startswith(tuple(record.id for record in records))]
    assert len(heads) == 2
    for head, record, end in zip(heads, records, [heads[1], len(lines)], strict=True):
        body = lines[head + 1 : end]
        marked = [line for line in body if line.startswith("*")]
        place = f"{record.id} (tickets.csv line {record.source['row']})"
        assert lines[head] == f"{place}: {len(body)} tokens, {len(marked)} to learn"
        assert body[0].endswith("'<|im_start|>'")
        assert marked == body[-len(marked) :]
        assert marked[-1].endswith("'<|im_end|>'")
        assert "".join(ast.literal_eval(line.split(maxsplit=2)[2]).strip() for line in marked[:-1]) == record.answer


def test_a_preview_says_what_becomes_of_a_long_record(artifacts: dict[str, Artifact]) -> None:
    def head(**settings: Any) -> str:
        config = FinetuneConfig.model_validate(settings)
        base, prepared = artifacts["base"], artifacts["prepared"]
        return encoding.preview(config, base=base, prepared=prepared, count=1).splitlines()[0]

    whole = head()
    size = int(re.findall(r"(\d+) tokens", whole)[0])
    assert whole.endswith(" to learn")
    assert head(max_length=size) == whole
    assert head(max_length=size - 1) == f"{whole}; longer than max_length {size - 1}, which finetune refuses"
    assert head(max_length=size - 1, too_long="drop").endswith(f"; longer than max_length {size - 1}, so it is dropped")
    cut = head(max_length=size - 1, too_long="truncate")
    assert cut.endswith(f"; cut from {size} to fit max_length {size - 1}")
    assert int(re.findall(r"(\d+) tokens", cut)[0]) < size


# Stopping, and what the run says of itself


@pytest.fixture(scope="module")
def overfitted(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A training of far too many epochs at far too high a rate."""
    out = tmp_path_factory.mktemp("overfitted") / "one"
    settings = {"epochs": 40, "learning_rate": 5e-2, "patience": 8, "lr_scheduler": "constant", "batch_size": 8}
    return run(settings, artifacts, out), out


def test_a_training_that_no_longer_helps_stops_and_keeps_the_best(
    overfitted: tuple[dict[str, Any], Path], artifacts: dict[str, Artifact], tokenizer: Any, task: Task
) -> None:
    metrics, out = overfitted
    validations = {entry["step"]: entry["eval_loss"] for entry in log_of(out) if "eval_loss" in entry}
    best = min(validations, key=validations.__getitem__)
    assert metrics["best_step"] == best
    assert metrics["validation_loss"] == pytest.approx(validations[best], abs=1e-5)
    assert metrics["stopped_early"]
    assert min(list(validations.values())[-8:]) > validations[best]  # one that may be luck does not count
    assert metrics["steps"] == list(validations)[-1]
    # what was saved is the best step's: transformers and PEFT find its loss in it
    model = PeftModel.from_pretrained(hf_folder.load_model(artifacts["base"].path), out)
    records = read_records(artifacts["prepared"].file("validation.jsonl"))
    rows, _ = encoding.encode(records, task, tokenizer, FinetuneConfig())
    with torch.no_grad():
        assert float(loss_of(model.eval(), rows)) == pytest.approx(validations[best], rel=0.02)
        rows = iter(sorted(rows, key=lambda row: len(row["input_ids"])))
        for records, tokens, nats in metrics["validation_blocks"]:
            block = list(itertools.islice(rows, records))
            assert tokens == sum(map(trainer.answer_tokens, block))
            alone = [float(answer_loss.padded_loss(model, batch)) for batch in PaddedBatches(0)(block)]
            assert sum(alone) == pytest.approx(nats, rel=0.05, abs=0.02)


@pytest.mark.parametrize(
    ("best", "last", "earlier", "is_surely_worse"),
    [
        ([1.0, 1.2, 1.1, 1.3], [1.0, 1.2, 1.1, 1.3], 1, False),
        ([1.0, 1.2, 1.1, 1.3], [1.12, 1.33, 1.21, 1.44], 5, True),  # a little worse on all
        ([1.0, 1.2, 1.1, 1.3], [1.1, 1.4, 1.4, 1.7], 1, True),
        ([1.0, 1.2, 1.1, 1.3], [1.1, 1.4, 1.4, 1.7], 5, False),  # the luckiest of five
        ([1.0, 1.2, 1.1, 1.3], [1.0, 1.2, 1.1, 3.3], 1, False),  # much worse on one
        ([1.0], [1.9], 1, False),  # of one block nobody can tell
    ],
)
def test_the_best_weights_are_kept_only_where_the_last_are_surely_worse(
    best: list[float], last: list[float], earlier: int, is_surely_worse: bool
) -> None:
    first, second = ([(8, 10, 10 * loss) for loss in losses] for losses in (best, last))
    weights, last_entry = {"a": torch.zeros(2)}, {"eval_loss": 1.4, "step": 9}
    stub = types.SimpleNamespace(
        progress=trainer.Progress(best=1.0, best_step=3, best_blocks=first), blocks=second,
        trained=lambda: weights, best_weights={"a": torch.ones(2)},
        state=types.SimpleNamespace(log_history=[{"eval_loss": 1.0}] * earlier + [last_entry, {"loss": 0.1}]),
    )  # fmt: skip
    stub.is_surely_worse = lambda: trainer.AnswerTrainer.is_surely_worse(stub)
    trainer.AnswerTrainer.settle(stub)
    assert weights["a"].tolist() == [float(is_surely_worse)] * 2
    kept = (1.0, 3, first) if is_surely_worse else (1.4, 9, second)
    assert (stub.progress.best, stub.progress.best_step, stub.progress.best_blocks) == kept


def test_patience_counts_validations_in_a_row_that_are_surely_worse() -> None:
    verdicts = iter([True, False, True, True])  # of validations after the best one
    stub = types.SimpleNamespace(
        progress=trainer.Progress(before=2.0, best=1.0), is_surely_worse=lambda: next(verdicts)
    )
    monitor = trainer.TrainingMonitor(stub, patience=2)
    stopped = []
    for step in range(4):
        control = transformers.TrainerControl()
        monitor.on_evaluate(
            None, types.SimpleNamespace(global_step=step, max_steps=9), control, metrics={"eval_loss": 1.5}
        )
        stopped.append(control.should_training_stop)
    assert stopped == [False, False, False, True]


def test_an_overfitted_training_says_so(
    artifacts: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # answers that have nothing to do with their questions: what is learned of them holds for no other row
    prepared = Path(shutil.copytree(artifacts["prepared"].path, tmp_path / "prepared"))
    lines = [json.loads(line) for line in (prepared / "train.jsonl").read_text().splitlines()][:40]
    answers = [line["messages"][-1]["content"] for line in lines]
    random.Random(3).shuffle(answers)
    for line, answer in zip(lines, answers, strict=True):
        line["messages"][-1]["content"] = answer
    (prepared / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shuffled = artifacts | {"prepared": dataclasses.replace(artifacts["prepared"], path=prepared)}
    settings = {"max_steps": 250, "learning_rate": 4e-3, "patience": None, "lr_scheduler": "constant", "batch_size": 8}
    metrics = run(settings, shuffled, tmp_path / "one")
    assert metrics["overfitted"]
    assert metrics["validation_loss_last"] > 1.02 * metrics["validation_loss"]
    assert not metrics["stopped_early"]
    said = capsys.readouterr().err
    assert "note: it overfitted: validation loss rose to" in said
    assert f"kept is step {metrics['best_step']}" in said


def test_a_training_that_learns_nothing_says_so(
    artifacts: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"max_steps": 4, "learning_rate": 0.9, "lr_scheduler": "constant"}
    trained = artifacts | {"base": artifacts["merged"]}  # which knows already what can be learned
    metrics = run(settings, trained, tmp_path / "one")
    assert not metrics["learned"]
    assert "note: it learned nothing: validation loss is" in capsys.readouterr().err


def test_the_log_has_these_columns(overfitted: tuple[dict[str, Any], Path]) -> None:
    entries = log_of(overfitted[1])
    assert {tuple(entry) for entry in entries} == {
        ("step", "epoch", "loss", "learning_rate", "grad_norm"), ("step", "epoch", "eval_loss"),
    }  # fmt: skip
    steps = [entry["step"] for entry in entries]
    assert steps == sorted(steps)


def test_the_curve_is_an_image_of_both_losses(overfitted: tuple[dict[str, Any], Path]) -> None:
    metrics, out = overfitted
    text = (out / "loss.svg").read_text()
    root = ElementTree.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{name}svg"
    history = log_of(out)
    counts = [len([entry for entry in history if key in entry]) for key in ("loss", "eval_loss")]
    lines = root.findall(f"{name}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == counts
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
        assert [x for x, _ in points] == sorted(x for x, _ in points)
    words = [element.text for element in root.iter() if element.text]
    assert {"training loss", "validation loss", "step"} <= set(words)
    assert sum("(kept)" in word for word in words) == 1
    (best,) = [
        entry["eval_loss"] for entry in history if "eval_loss" in entry and entry["step"] == metrics["best_step"]
    ]
    assert f"step {metrics['best_step']}: {best:.4f} (kept)" in words
    assert metrics["validation_loss"] == pytest.approx(best, abs=1e-4)
    assert loss_curve.svg(history, metrics["best_step"]) == text
    style = root.findtext(f"{name}style") or ""
    assert "prefers-color-scheme:dark" in style
    drawn = {kind for element in root.iter() for kind in element.attrib.get("class", "").split() if "-" in kind}
    assert drawn >= {"fill-page", "stroke-c1", "stroke-c5"}
    assert all(f".{kind}{{" in style for kind in drawn)


def test_a_curve_of_one_point_is_drawn() -> None:
    history = [{"step": 1, "loss": 0.0}, {"step": 1, "eval_loss": 0.0}]
    ElementTree.fromstring(loss_curve.svg(history, 1))


# Memory


def test_what_cannot_fit_is_refused_before_anything_is_loaded(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(hf_folder, "load_model", loaded)
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000_000)
    with pytest.raises(StageError, match=r"training needs about \S+ [MG]B of memory, and \S+ [MG]B are free") as caught:
        run({}, artifacts, tmp_path / "one")
    assert "a smaller base" in caught.value.hint
    assert "finetune.max_length" in caught.value.hint
    assert not list((tmp_path / "one").iterdir())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # `merge` unties them
@pytest.mark.parametrize("packs", [True, False])
def test_head_and_embeddings_are_trained_packed_and_padded(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packs: bool
) -> None:
    monkeypatch.setattr(packing_check, "supports_packing", lambda model: packs)
    lora = {"rank": 4, "target_modules": ["lm_head", "embed_tokens", "q_proj"]}
    run({"max_steps": 2, "lora": lora}, artifacts, tmp_path / "one")
    updates = load_file(tmp_path / "one" / "adapter_model.safetensors")
    ups = [name for name in updates if name.endswith((".lora_B.weight", ".lora_embedding_A"))]  # they begin at zero
    assert not any(".base_layer." in name for name in updates)
    assert sum(name.endswith("lm_head.lora_B.weight") for name in ups) == 1
    assert sum("embed_tokens" in name for name in ups) == 1
    assert all(updates[name].abs().max() > 0 for name in ups)


@pytest.mark.parametrize("packed", [True, False])
def test_the_way_of_a_gpu_trains_alike(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    # its plan, mixed precision and the model's own layers, on this processor
    settings = {"max_steps": 16, "matmul_dtype": "float32"}
    plain = run(settings, artifacts, tmp_path / "cpu")
    whole = device_plan.DevicePlan.arguments
    monkeypatch.setattr(device_plan, "gpu_here", lambda: device_plan.Gpu(bf16=True, free=10**10, visible=1))
    monkeypatch.setattr(device_plan.DevicePlan, "arguments", lambda plan: whole(plan) | {"use_cpu": True})
    monkeypatch.setattr(device_plan.DevicePlan, "peak_bytes", lambda plan: 1)
    if not packed:
        monkeypatch.setattr(packing_check, "supports_packing", lambda model: False)
    other = run(settings, artifacts, tmp_path / "gpu")
    assert "fast_layers" not in other
    assert (other["computed_tokens"] == plain["computed_tokens"]) == packed
    assert other["memory_estimate"] > 10**9
    for loss in ("train_loss", "validation_loss", "validation_loss_before"):
        assert other[loss] == pytest.approx(plain[loss], rel=0.05), loss


def test_weights_that_get_no_gradient_are_not_counted_as_trained(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = finetune.load_transformers

    def with_spare(config: FinetuneConfig, folder: Path, plan: Any) -> Any:
        model = load(config, folder, plan)
        model.get_base_model().spare = torch.nn.Linear(2, 2)
        return model

    monkeypatch.setattr(finetune, "load_transformers", with_spare)
    with pytest.raises(StageError, match=r"'spare\.weight' and 1 more would not be trained"):
        run({"max_steps": 2}, artifacts, tmp_path / "one")
    assert not list((tmp_path / "one").iterdir())


def test_a_longer_record_or_a_larger_rank_needs_more_memory(artifacts: dict[str, Artifact]) -> None:
    folder = artifacts["base"].path
    small = memory_estimate.estimate_bytes(folder, FinetuneConfig(), 100)
    assert memory_estimate.estimate_bytes(folder, FinetuneConfig(), 5000) > small
    assert memory_estimate.estimate_bytes(folder, FinetuneConfig.model_validate({"lora": {"rank": 512}}), 100) > small


def test_what_is_computed_at_once_is_bounded_by_the_batch_and_by_a_piece() -> None:
    # short records never fill a piece: counting a whole one made the estimate for SmolLM2 half too high
    def largest(lengths: list[int], together: int) -> int:
        rows: list[Any] = [
            {"input_ids": [k, *[9] * (size - 1)], "labels": [IGNORED] * (size - 1) + [9], "weights": [1.0] * size}
            for k, size in enumerate(lengths)
        ]
        return batches.largest_piece(rows, together).tokens

    assert largest([5, 30, 20, 10], 2) == 50
    assert largest([100] * 40, 16) == 600  # cut evenly: 6, 5 and 5 records
    assert largest([10, 2 * model_shape.PIECE_TOKENS], 2) == 2 * model_shape.PIECE_TOKENS


def test_processes_share_a_batch_and_need_memory_each(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):  # noqa: N818 - it ends the run where it was seen
        pass

    def seen(records: Any, together: int, limit: int) -> int:
        raise Seen(together)

    monkeypatch.setattr(batches, "largest_piece", seen)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(Seen, match=r"^2$"):
        run({"batch_size": 16, "gradient_accumulation_steps": 2}, artifacts, tmp_path / "one")


def test_pieces_become_smaller_before_a_training_is_refused(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fitting = iter([False, False, True, True])
    monkeypatch.setattr(memory, "fits", lambda needed, processes: next(fitting))
    limits: list[int] = []
    cut = batches.PackedBatches.__call__

    def noted(self: Any, records: Any) -> Any:
        limits.append(self.limit)
        return cut(self, records)

    monkeypatch.setattr(batches.PackedBatches, "__call__", noted)
    metrics = run({"max_steps": 1}, artifacts, tmp_path / "one")
    assert metrics["piece_tokens"] == 256
    assert set(limits) == {256}
    assert "with 256 tokens at once in place of 768" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["GPT2Config", "OPTConfig", "FalconConfig", "BloomConfig"])
def test_configs_that_name_no_inner_size_are_estimated(tmp_path: Path, kind: str) -> None:
    getattr(transformers, kind)().save_pretrained(tmp_path)
    assert memory_estimate.estimate_bytes(tmp_path, FinetuneConfig(matmul_dtype="float32"), 500) > 5e8


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M": (
        "LlamaConfig",
        {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3},
    ),
    "gemma-3-270m": (
        "Gemma3TextConfig",
        {"vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
         "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_memory_estimate_is_near_what_is_used(tiny_project: Path, tmp_path: Path, name: str) -> None:
    kind, sizes = SHAPES[name]
    desk = Path(shutil.copytree(tiny_project, tmp_path / "desk"))
    torch.manual_seed(0)
    shape = getattr(transformers, kind)(**sizes, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
    transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).save_pretrained(desk / "base")
    # long enough that what the records share, which is computed once, is little of them
    tiny.write_csv(desk / "tickets.csv", [(" ".join([text] * 6), label) for text, label in tiny.rows()])
    tiny.ok(tiny.slmctl(desk, "run", "--until", "prepare"))
    sets = [f"--set=finetune.{one}" for one in ("max_steps=2", "batch_size=16", "learning_rate=1e-4")]
    done = tiny.slmctl(desk, "finetune", "--json", *sets, env=tiny.environment(OMP_NUM_THREADS="2"))
    metrics = json.loads(tiny.ok(done))["metrics"]
    assert metrics["memory_estimate"] == pytest.approx(metrics["memory_peak"], rel=0.15)


def test_a_full_memory_is_said_whoever_meets_it(desk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # torch's allocator raises a RuntimeError on a CPU, which was once a traceback
    monkeypatch.setattr(trainer.AnswerTrainer, "compute_loss", lambda *args, **kwargs: torch.empty(1 << 50))
    project = resolve.Project(root=desk, config=config.load(desk / config.FILENAME, EIGHT))
    with pytest.raises(StageError, match="finetune ran out of memory"):
        runner.run(project, resolve.resolve_stage(project, "finetune"))
    with pytest.raises(StageError, match="it ran out of memory"), system_errors.spoken("it", tmp_path):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="another fault"), system_errors.spoken("it", tmp_path):
        raise RuntimeError("another fault")


# Architectures, from the folder to the adapter


@pytest.mark.parametrize(
    ("kind", "more", "fast_layers"),
    [
        ("Gemma2Config", {"head_dim": 16}, 2),
        ("Qwen3Config", {"head_dim": 16}, 2),
        ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, 2),
        ("StableLmConfig", {}, None),
        ("GPTNeoXConfig", {}, 0),
    ],
)
@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_any_architecture_trains(
    artifacts: dict[str, Artifact], tokenizer: Any, tmp_path: Path,
    kind: str, more: dict[str, Any], fast_layers: int | None, products: str,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.1,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    folder = Path(shutil.copytree(artifacts["base"].path, tmp_path / "base"))
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes | more))
    made.save_pretrained(folder)
    base = Artifact(folder, artifacts["base"].manifest)
    settings = {"max_steps": 12, "batch_size": 8, "matmul_dtype": products}
    metrics = run(settings, artifacts | {"base": base}, tmp_path / "one")
    assert metrics["learned"]
    assert metrics.get("fast_layers") == fast_layers
    model = PeftModel.from_pretrained(hf_folder.load_model(folder), tmp_path / "one")
    records = read_records(artifacts["prepared"].file("validation.jsonl"))
    rows, _ = encoding.encode(records, Task.read(artifacts["prepared"].path), tokenizer, FinetuneConfig())
    with torch.no_grad():
        assert float(loss_of(model.eval(), rows)) == pytest.approx(metrics["validation_loss"], rel=0.03)
