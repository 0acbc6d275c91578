"""finetune: settings reach the training, what it leaves describes it, and
what cannot go well ends it at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import shutil
import signal
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support import tiny

from slmctl import config
from slmctl.artifacts.artifact import Artifact
from slmctl.config import FinetuneConfig
from slmctl.errors import DataError, StageError
from slmctl.pipeline import runner, system_errors
from slmctl.pipeline.graph import Project
from slmctl.task.contract import Task
from slmctl.task.records import read_records

torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from support.scale import FULL  # noqa: E402
from support.training import plain_loss, trained  # noqa: E402

from slmctl.model_files import hf_folder, memory, model_shape, model_size  # noqa: E402
from slmctl.stages.finetune import (  # noqa: E402
    batches,
    checkpoint,
    device_plan,
    encoding,
    finetune,
    label_loss,
    loss_curve,
    packing_check,
    trainer,
)
from slmctl.stages.finetune.packing import IGNORED  # noqa: E402


@pytest.fixture(scope="module")
def rows(artifacts: dict[str, Artifact]) -> list[Any]:
    """The encoded validation records, the shortest first."""
    prepared, tokenizer = artifacts["prepared"], hf_folder.load_tokenizer(artifacts["base"].path)
    records = read_records(prepared.file("validation.jsonl"))
    encoded, _ = encoding.encode(records, Task.read(prepared.path), tokenizer, FinetuneConfig())
    return sorted(encoded, key=lambda row: len(row["input_ids"]))


@pytest.fixture
def model(artifacts: dict[str, Artifact]) -> Any:
    return hf_folder.load_model(artifacts["base"].path)


@torch.no_grad()
def loss_of(model: Any, rows: list[Any]) -> float:
    """Mean loss of an answer token, each row alone."""
    return float(plain_loss(model, rows)) / sum(
        label != IGNORED for row in rows for label in row["labels"]
    )


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# What it leaves


@pytest.fixture(scope="module")
def stopped(
    artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """A training at far too high a rate, which stops after its third
    validation that is worse than the best one.
    """
    out = tmp_path_factory.mktemp("stopped") / "one"
    settings = {
        "learning_rate": 5e-2,
        "lr_scheduler": "constant",
        "batch_size": 8,
        "validate_every": 5,
    }
    blocks: list[tuple[int, float, float]] = []  # of the kept weights

    def is_worse(self: trainer.AnswerTrainer) -> bool:
        blocks[:] = self.progress.best_blocks
        return self.blocks != blocks

    with pytest.MonkeyPatch.context() as patch:  # on so few records, luck is rarely ruled out
        patch.setattr(trainer.AnswerTrainer, "is_surely_worse", is_worse)
        metrics = trained(artifacts, out, epochs=40, patience=3, **settings)
    return {**metrics, "validation_blocks": blocks}, out


def test_a_training_that_no_longer_helps_stops_and_keeps_the_best(
    stopped: tuple[dict[str, Any], Path], artifacts: dict[str, Artifact], rows: list[Any]
) -> None:
    metrics, out = stopped
    validations = {
        entry["step"]: entry["eval_loss"] for entry in log_of(out) if "eval_loss" in entry
    }
    best = min(itertools.islice(validations, 1, None), key=validations.__getitem__)
    assert metrics["best_step"] == best
    assert metrics["validation_loss"] == pytest.approx(validations[best], abs=1e-5)
    assert metrics["stopped_early"]
    assert list(validations)[-3:] == [best + 5, best + 10, best + 15]
    assert metrics["steps"] == best + 15
    # what was saved is the best step's: transformers and PEFT find its loss in it
    tuned = PeftModel.from_pretrained(hf_folder.load_model(artifacts["base"].path), out).eval()
    assert loss_of(tuned, rows) == pytest.approx(validations[best], rel=0.02)
    left = iter(rows)
    for records, tokens, nats in metrics["validation_blocks"]:
        block = list(itertools.islice(left, records))
        assert tokens == sum(map(trainer.answer_tokens, block))
        assert loss_of(tuned, block) * tokens == pytest.approx(nats, rel=0.05, abs=0.02)
    assert not list(left)


def test_the_log_has_these_columns(stopped: tuple[dict[str, Any], Path]) -> None:
    entries = log_of(stopped[1])
    assert {tuple(entry) for entry in entries} == {
        ("step", "epoch", "loss", "learning_rate", "grad_norm"),
        ("step", "epoch", "eval_loss"),
    }
    steps = [entry["step"] for entry in entries]
    assert steps == sorted(steps)


def test_the_curve_is_an_image_of_both_losses(stopped: tuple[dict[str, Any], Path]) -> None:
    metrics, out = stopped
    text = (out / "loss.svg").read_text()
    root = ElementTree.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    history = log_of(out)
    counts = [len([entry for entry in history if key in entry]) for key in ("loss", "eval_loss")]
    lines = root.findall(f"{name}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == counts
    words = [element.text for element in root.iter() if element.text]
    assert {"training loss", "validation loss", "step"} <= set(words)
    best = metrics["validation_loss"]
    assert [word for word in words if "(kept)" in word] == [
        f"step {metrics['best_step']}: {best:.4f} (kept)"
    ]
    assert loss_curve.svg(history, metrics["best_step"]) == text
    ElementTree.fromstring(
        loss_curve.svg([{"step": 1, "loss": 0.0}, {"step": 1, "eval_loss": 0.0}], 1)
    )


def test_another_seed_gives_another_adapter(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        trained(artifacts, tmp_path / name, max_steps=2, seed=seed)
    names = ["adapter_config.json", "adapter_model.safetensors", "loss.svg", "metrics.jsonl"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    same = {
        name: (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        for name in names
    }
    assert same == dict.fromkeys(names, False) | {"adapter_config.json": True}


def test_an_adapter_is_tensors_and_text_without_a_path(
    artifacts: dict[str, Artifact], tiny_run: Path
) -> None:
    adapter = artifacts["adapter"]
    assert (
        json.loads(adapter.file("adapter_config.json").read_text())["base_model_name_or_path"]
        == "base"
    )
    assert {path.name for path in adapter.path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.svg",
        "manifest.json",
        "metrics.jsonl",
        "task.json",
    }
    for path in adapter.path.iterdir():
        raw = path.read_bytes()
        assert str(tiny_run.parent).encode() not in raw, path.name
        assert not raw.startswith((b"PK", b"\x80\x04", b"\x80\x05")), f"{path.name} is a pickle"


# Which weights are kept, and what is said


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
        progress=trainer.Progress(best=1.0, best_step=3, best_blocks=first),
        blocks=second,
        trained=lambda: weights,
        best_weights={"a": torch.ones(2)},
        state=types.SimpleNamespace(
            log_history=[{"eval_loss": 1.0}] * earlier + [last_entry, {"loss": 0.1}]
        ),
    )
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
    stops = []
    for step in range(4):
        control = transformers.TrainerControl()
        monitor.on_evaluate(
            None,
            types.SimpleNamespace(global_step=step, max_steps=9),
            control,
            metrics={"eval_loss": 1.5},
        )
        stops.append(control.should_training_stop)
    assert stops == [False, False, False, True]


@pytest.mark.parametrize(
    ("validations", "best", "verdict", "note"),
    [
        ([2.0, 1.5, 1.0], 2, (True, False), ""),
        (
            [2.0, 2.5, 2.1],
            2,
            (False, False),
            "it learned nothing: validation loss is 2.100, before training 2.000",
        ),
        (
            [2.0, 1.0, 1.1],
            1,
            (True, True),
            "it overfitted: validation loss rose to 1.100 while training loss fell; kept is step 1",
        ),
        (
            [2.0, 1.0, 1.03],
            2,
            (True, False),
            "validation loss was 1.000 at step 1, which may be luck: the last step is kept",
        ),
    ],
)
def test_a_training_says_what_became_of_it(
    capsys: pytest.CaptureFixture[str],
    validations: list[float],
    best: int,
    verdict: tuple[bool, bool],
    note: str,
) -> None:
    history = [{"step": k, "eval_loss": loss} for k, loss in enumerate(validations)]
    history += [{"step": k, "loss": 1.0 - k / 10} for k in range(3)]
    progress = trainer.Progress(
        validations[0], validations[best], best, stopped_early=bool(note), worse=3
    )
    result = finetune.TrainingResult(history, 2, 2, 1.0, progress)
    assert (result.learned, result.overfitted) == verdict
    finetune._report(result, {"dropped": 0, "truncated": 7 * bool(note)})
    notes = re.findall("note: (.*)", capsys.readouterr().err)
    early = "stopped early at step 2: 3 validations in a row were worse than the best one"
    assert notes == ([note, early, "7 records longer than max_length: truncated"] if note else [])


def test_an_interruption_in_the_last_validation_keeps_the_adapter_and_ends_the_run(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it was swallowed, and `run` went on to merge and quantize
    validate, before = (
        trainer.AnswerTrainer.evaluate,
        signal.signal(signal.SIGINT, signal.default_int_handler),
    )

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            signal.raise_signal(signal.SIGINT)
        return validate(self, *args, **kwargs)

    monkeypatch.setattr(trainer.AnswerTrainer, "evaluate", interrupted)
    project = Project(
        root=desk, config=config.load(desk / config.FILENAME, ["finetune.max_steps=2"])
    )
    try:
        made = runner.make(project, "finetune")
    finally:
        signal.signal(signal.SIGINT, before)
    assert made.artifact.metrics["steps"] == 2
    with pytest.raises(KeyboardInterrupt, match="after finetune, whose adapter is kept"):
        project.stage("finetune").after(made.artifact, current=made.current)
    again = runner.make(project, "finetune")
    project.stage("finetune").after(again.artifact, current=again.current)
    assert again.current


# What diverges

EIGHT = ("finetune.max_steps=8", "finetune.validate_every=2", "finetune.batch_size=8")


def message_of(desk: Path) -> tuple[str, Path]:
    """The message of a training that must stop, and the folder its checkpoints are kept in."""
    project = Project(root=desk, config=config.load(desk / config.FILENAME, EIGHT))
    asked = project.request("finetune")
    with pytest.raises(StageError) as caught:
        runner.run(project, asked)
    assert caught.value.code == 6
    assert caught.value.hint == "--set finetune.learning_rate=1e-4"
    assert not asked.path.exists()
    assert not list(asked.path.parent.glob(".draft-*"))
    return caught.value.message, runner.resume_folder(asked)


@pytest.mark.parametrize(
    ("where", "step", "value"),
    [
        ("loss", 1, "nan"),
        ("loss", 3, "inf"),
        ("gradient", 3, "nan"),
        ("gradient", 8, "inf"),
        ("weight", 3, "nan"),
    ],
)
def test_a_training_that_diverges_stops_at_that_step(
    desk: Path, monkeypatch: pytest.MonkeyPatch, where: str, step: int, value: str
) -> None:
    whole_step, whole_loss = trainer.AnswerTrainer.training_step, trainer.AnswerTrainer.compute_loss

    def broken_loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = whole_loss(self, model, *args, **kwargs)
        now = where == "loss" and model.training and self.state.global_step == step - 1
        return loss * float(value) if now else loss

    def broken_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        parameter = next(
            parameter for name, parameter in self.trained().items() if "lora_B" in name
        )
        if self.state.global_step == step - 1 and where == "weight":
            parameter.data[0, 0] = float(value)
        loss = whole_step(self, *args, **kwargs)
        if self.state.global_step == step - 1 and where == "gradient":
            parameter.grad[0, 0] = float(value)
        return loss

    monkeypatch.setattr(trainer.AnswerTrainer, "compute_loss", broken_loss)
    monkeypatch.setattr(trainer.AnswerTrainer, "training_step", broken_step)
    message, keep = message_of(desk)
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


def test_a_device_that_is_looked_at_every_few_steps_saves_nothing_broken(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_plan, whole_step = device_plan.for_cpu, trainer.AnswerTrainer.training_step
    taken = []

    def broken_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        taken.append(self.state.global_step)
        loss = whole_step(self, *args, **kwargs)
        return loss.fill_(float("nan")) if self.state.global_step == 2 else loss

    monkeypatch.setattr(
        device_plan,
        "for_cpu",
        lambda *args: dataclasses.replace(whole_plan(*args), check_every=100),
    )
    monkeypatch.setattr(trainer.AnswerTrainer, "training_step", broken_step)
    message, keep = message_of(desk)
    assert message.startswith("training diverged: the loss is nan at step 3;")
    assert taken == [0, 1, 2, 3]  # the validation after step 4 looks
    assert [path.name for path in keep.glob("step-*")] == ["step-00000002"]


def test_weights_that_break_in_the_last_update_are_seen(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer.TrainingMonitor.on_step_end

    def broken(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 8:
            next(iter(self.trainer.trained().values())).data.fill_(float("nan"))
        whole(self, args, state, control, **kwargs)

    monkeypatch.setattr(trainer.TrainingMonitor, "on_step_end", broken)
    message, keep = message_of(desk)
    assert message.startswith("training diverged: the validation loss is nan at step 8;")
    assert checkpoint.newest(keep) == keep / "step-00000006"


def test_weights_that_are_not_finite_are_refused(model: Any) -> None:
    next(model.parameters()).data[0] = float("nan")
    with pytest.raises(StageError, match=r"1 weights are not finite"):
        finetune._require_finite(model)


# Settings reach the training


def test_the_shape_of_the_adapter_is_the_one_asked_for(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    lora = {"rank": 2, "alpha": 6, "target_modules": ["q_proj", "down_proj"], "dropout": 0.25}
    metrics = trained(artifacts, tmp_path / "one", max_steps=2, lora=lora)
    found = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert (found["r"], found["lora_alpha"], found["lora_dropout"]) == (2, 6, 0.25)
    assert (found["use_rslora"], found["use_dora"]) == (False, False)
    tensors = load_file(tmp_path / "one" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in tensors} == {"q_proj", "down_proj"}
    assert {min(tensor.shape) for tensor in tensors.values()} == {2}
    assert (metrics["steps"], metrics["fast_layers"]) == (2, 2)


def test_dora_learns_lengths_with_pefts_own_layers(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    metrics = trained(artifacts, tmp_path / "one", max_steps=4, lora={"rank": 2, "dora": True})
    assert metrics["fast_layers"] == 0
    assert metrics["learned"]
    names = load_file(tmp_path / "one" / "adapter_model.safetensors")
    assert any("lora_magnitude_vector" in name for name in names)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_and_falls_as_the_schedule_says(tmp_path: Path, schedule: str) -> None:
    settings = FinetuneConfig.model_validate(
        {
            "max_steps": 40,
            "learning_rate": 4e-4,
            "batch_size": 16,
            "warmup_ratio": 0.25,
            "lr_scheduler": schedule,
        }
    )
    given = finetune._sft_config(settings, 100, tmp_path, device_plan.on_cpu(settings))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=given.learning_rate)
    scheduler = transformers.get_scheduler(
        given.lr_scheduler_type, optimizer, given.warmup_steps, given.max_steps
    )
    rates = [
        scheduler.get_last_lr()[0]
        for _ in range(40)
        if optimizer.step() is None and scheduler.step() is None
    ]
    share = (29 - 10) / 30  # of the way down, before the 30th step
    wanted = {
        "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        "linear": 1 - share,
        "constant": 1.0,
    }[schedule]
    assert rates[8] == pytest.approx(4e-4 * 9 / 10)
    assert rates[28] == pytest.approx(4e-4 * wanted)


def test_weights_decay_and_a_gradient_that_is_clipped_away_teaches_nothing(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    norms = []
    for decay in (0.0, 0.9):
        out = tmp_path / str(decay)
        settings = {
            "max_steps": 10,
            "weight_decay": decay,
            "lr_scheduler": "constant",
            "warmup_ratio": 0.0,
        }
        metrics = trained(artifacts, out, max_grad_norm=1e-13, **settings)
        assert metrics["validation_loss"] == pytest.approx(
            metrics["validation_loss_before"], abs=1e-3
        )
        assert log_of(out)[0]["grad_norm"] > 0.01  # as it was before it was clipped
        tensors = load_file(out / "adapter_model.safetensors")
        norms.append(sum(float(t.norm()) for name, t in tensors.items() if "lora_A" in name))
    assert norms[1] / norms[0] == pytest.approx((1 - 1e-2 * 0.9) ** 10, rel=0.01)


def test_every_answer_token_of_an_epoch_counts_the_same(
    artifacts: dict[str, Artifact],
    rows: list[Any],
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # records of like length share a step, and each step had divided by its own tokens: those of
    # short answers won
    short, long = rows[0], rows[-1]
    more = [token for token in long["labels"] if token != IGNORED] * 6
    longer = {
        "input_ids": long["input_ids"] + more,
        "labels": long["labels"] + more,
        "weights": long["weights"] + [1.0] * len(more),
    }
    records = [*[short] * 4, *[longer] * 4]
    # in place of what is encoded first; the validation rows come after it
    trained_on = iter([records])

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
    # labels as any other text
    monkeypatch.setattr(label_loss.LabelTokens, "spell", lambda *_: False)
    trained(artifacts, tmp_path / "one", learning_rate=1e-12, batch_size=4, matmul_dtype="float32")
    assert sum(steps) / 2 == pytest.approx(loss_of(model, records), abs=1e-4)
    by_step = sorted(loss_of(model, part) for part in (records[:4], records[4:]))
    logged = sorted(entry["loss"] for entry in log_of(tmp_path / "one") if "loss" in entry)
    # what is shown is the mean over the step's own tokens
    assert logged == pytest.approx(by_step, abs=1e-4)


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
    trained(artifacts, tmp_path / "one", max_steps=1)
    assert alive == [False] * len(loaded)
    assert loaded


# `merge` unties them
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("packs", [True, False])
def test_head_and_embeddings_are_trained_packed_and_padded(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packs: bool
) -> None:
    monkeypatch.setattr(packing_check, "supports_packing", lambda model: packs)
    lora = {"rank": 4, "target_modules": ["lm_head", "embed_tokens", "q_proj"]}
    trained(artifacts, tmp_path / "one", max_steps=2, lora=lora)
    updates = load_file(tmp_path / "one" / "adapter_model.safetensors")
    # they begin at zero
    ups = [name for name in updates if name.endswith((".lora_B.weight", ".lora_embedding_A"))]
    assert not any(".base_layer." in name for name in updates)
    assert sum(name.endswith("lm_head.lora_B.weight") for name in ups) == 1
    assert sum("embed_tokens" in name for name in ups) == 1
    assert all(updates[name].abs().max() > 0 for name in ups)


# Devices and memory


@pytest.fixture(scope="module")
def plain(
    artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A short training on this processor."""
    return trained(
        artifacts, tmp_path_factory.mktemp("plain") / "cpu", max_steps=6, matmul_dtype="float32"
    )


@pytest.fixture
def large_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The tokens of every batch that is computed."""
    sizes: list[int] = []
    whole = trainer.AnswerTrainer.compute_loss

    def measured(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        sizes.append(inputs["input_ids"].numel())
        return whole(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.AnswerTrainer, "compute_loss", measured)
    yield sizes


@pytest.mark.parametrize("packed", [True, False])
def test_the_way_of_a_gpu_trains_alike(
    artifacts: dict[str, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plain: dict[str, Any],
    packed: bool,
) -> None:
    # its plan, mixed precision and the model's own layers, on this processor
    whole = device_plan.DevicePlan.arguments
    monkeypatch.setattr(
        device_plan, "gpu_here", lambda: device_plan.Gpu(bf16=True, free=10**10, visible=1)
    )
    monkeypatch.setattr(
        device_plan.DevicePlan, "arguments", lambda plan: whole(plan) | {"use_cpu": True}
    )
    monkeypatch.setattr(device_plan.DevicePlan, "peak_bytes", lambda plan: 1)
    if not packed:
        monkeypatch.setattr(packing_check, "supports_packing", lambda model: False)
    other = trained(artifacts, tmp_path / "gpu", max_steps=6, matmul_dtype="float32")
    assert "fast_layers" not in other
    assert (other["computed_tokens"] == plain["computed_tokens"]) == packed
    assert other["memory_estimate"] > 10**9
    for loss in ("train_loss", "validation_loss", "validation_loss_before"):
        assert other[loss] == pytest.approx(plain[loss], rel=0.05), loss


def test_a_model_that_cannot_be_packed_is_computed_in_pieces_too(
    artifacts: dict[str, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    large_batches: list[int],
) -> None:
    # the estimate counts on it, and a batch of 64 was once computed as a whole
    monkeypatch.setattr(packing_check, "supports_packing", lambda model: False)
    assert trained(artifacts, tmp_path / "one", max_steps=2, batch_size=64)["learned"]
    assert model_shape.PIECE_TOKENS / 2 < max(large_batches) <= model_shape.PIECE_TOKENS


def test_pieces_become_smaller_before_a_training_is_refused(
    artifacts: dict[str, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    large_batches: list[int],
) -> None:
    fitting = iter([False, False, True, True])
    monkeypatch.setattr(memory, "fits", lambda needed, processes: next(fitting))
    metrics = trained(artifacts, tmp_path / "one", max_steps=1)
    assert metrics["piece_tokens"] == 256
    assert max(large_batches) <= 300  # and a part of the prefix
    assert "with 256 tokens at once in place of 768" in capfd.readouterr().err


def test_what_cannot_fit_is_refused_before_anything_is_loaded(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        hf_folder, "load_model", lambda *args, **kwargs: pytest.fail("the model was loaded")
    )
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000_000)
    with pytest.raises(
        StageError, match=r"training needs about \S+ [MG]B of memory, and \S+ [MG]B are free"
    ) as caught:
        trained(artifacts, tmp_path / "one")
    assert "a smaller base" in caught.value.hint
    assert "finetune.max_length" in caught.value.hint
    assert not list((tmp_path / "one").iterdir())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_without_records_is_named(
    artifacts: dict[str, Artifact], tmp_path: Path, split: str
) -> None:
    # "all 0 are longer than max_length" was said of it
    prepared = Path(shutil.copytree(artifacts["prepared"].path, tmp_path / "prepared"))
    (prepared / f"{split}.jsonl").write_text("")
    without = artifacts | {"prepared": dataclasses.replace(artifacts["prepared"], path=prepared)}
    word = {"train": "training", "validation": "validation"}[split]
    with pytest.raises(DataError, match=f"there are no {word} records") as caught:
        trained(without, tmp_path / "one")
    assert {"train": "rejected.jsonl", "validation": "prepare.splits.validation: 0.1"}[
        split
    ] in caught.value.hint


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
        trained(artifacts, tmp_path / "one", max_steps=2)
    assert not list((tmp_path / "one").iterdir())


def test_a_longer_record_or_a_larger_rank_needs_more_memory(artifacts: dict[str, Artifact]) -> None:
    model = model_size.read(artifacts["base"].path)
    small = device_plan.cpu_bytes(model, FinetuneConfig(), 100)
    assert device_plan.cpu_bytes(model, FinetuneConfig(), 5000) > small
    assert (
        device_plan.cpu_bytes(model, FinetuneConfig.model_validate({"lora": {"rank": 512}}), 100)
        > small
    )


def test_processes_share_a_batch_and_need_memory_each(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):  # noqa: N818 - it ends the run where it was seen
        pass

    def seen(records: Any, together: int, limit: int) -> int:
        raise Seen(together)

    monkeypatch.setattr(batches, "largest_piece", seen)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(Seen, match=r"^4$"):
        trained(artifacts, tmp_path / "one", batch_size=16)


@pytest.mark.parametrize("kind", ["GPT2Config", "OPTConfig", "FalconConfig", "BloomConfig"])
def test_configs_that_name_no_inner_size_are_estimated(tmp_path: Path, kind: str) -> None:
    getattr(transformers, kind)().save_pretrained(tmp_path)
    assert (
        device_plan.cpu_bytes(
            model_size.read(tmp_path), FinetuneConfig(matmul_dtype="float32"), 500
        )
        > 5e8
    )


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M": (
        "LlamaConfig",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    ),
    "gemma-3-270m": (
        "Gemma3TextConfig",
        {
            "vocab_size": 262144,
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES if FULL else list(SHAPES)[:1])
def test_the_memory_estimate_is_near_what_is_used(
    tiny_project: Path, tmp_path: Path, name: str
) -> None:
    kind, sizes = SHAPES[name]
    desk = Path(shutil.copytree(tiny_project, tmp_path / "desk"))
    torch.manual_seed(0)
    shape = getattr(transformers, kind)(
        **sizes, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2
    )
    transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).save_pretrained(
        desk / "base"
    )
    # long enough that what the records share, which is computed once, is little of them
    tiny.write_csv(
        desk / "tickets.csv", [(" ".join([text] * 6), label) for text, label in tiny.rows()]
    )
    tiny.ok(tiny.slmctl(desk, "run", "--until", "prepare"))
    sets = [
        f"--set=finetune.{one}" for one in ("max_steps=2", "batch_size=16", "learning_rate=1e-4")
    ]
    done = tiny.slmctl(desk, "finetune", "--json", *sets, env=tiny.environment(OMP_NUM_THREADS="2"))
    metrics = json.loads(tiny.ok(done))["metrics"]
    assert metrics["memory_estimate"] == pytest.approx(metrics["memory_peak"], rel=0.15)


def test_a_full_memory_is_said_whoever_meets_it(
    desk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # torch's allocator raises a RuntimeError on a CPU, which was once a traceback
    monkeypatch.setattr(
        trainer.AnswerTrainer, "compute_loss", lambda *args, **kwargs: torch.empty(1 << 50)
    )
    project = Project(root=desk, config=config.load(desk / config.FILENAME, EIGHT))
    with pytest.raises(StageError, match="finetune ran out of memory"):
        runner.run(project, project.request("finetune"))
    with (
        pytest.raises(StageError, match="it ran out of memory"),
        system_errors.spoken("it", tmp_path),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="another fault"), system_errors.spoken("it", tmp_path):
        raise RuntimeError("another fault")
