"""base + prepared -> adapter: LoRA on the training records, the loss on the answers only."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import get_peft_model, get_peft_model_state_dict
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import SFTConfig

from slmctl import console
from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.config import FinetuneConfig
from slmctl.errors import DataError, MissingError, StageError, UsageError
from slmctl.inference.label_search import LabelTrie
from slmctl.model_files import hf_folder, memory, model_shape
from slmctl.model_files.base_model import Base
from slmctl.network import guard
from slmctl.stages.finetune import (
    answer_loss,
    backend,
    checkpoint,
    device_plan,
    distributed,
    layer_replacement,
    lora_targets,
    loss_curve,
    packing,
    packing_check,
)
from slmctl.stages.finetune.batches import PackedBatches, PaddedBatches
from slmctl.stages.finetune.device_plan import DevicePlan
from slmctl.stages.finetune.encoding import encode, share_of
from slmctl.stages.finetune.interruption import first_interrupt
from slmctl.stages.finetune.label_loss import LabelTokens
from slmctl.stages.finetune.packing import EncodedRecord
from slmctl.stages.finetune.trainer import DIVERGED_HINT, AnswerTrainer, Progress, without_loss
from slmctl.task.contract import Task
from slmctl.task.documents import SMALLER, training
from slmctl.task.records import Record, read_records, write_jsonl

LOG_EVERY_STEPS = 10
# last validation loss over the best one, above which a run is reported as overfitted
OVERFITTING_RATIO = 1.02
LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Packages of trackers that have another name than the tracker: any one of them will do.
TRACKER_PACKAGES = {
    "tensorboard": ("tensorboardX", "tensorboard"),
    "azure_ml": ("azureml",),
    "flyte": ("flytekit",),
}
# Settings of TRL that no config changes: the records are tokenized already.
FIXED_SETTINGS: dict[str, Any] = {
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "max_length": None,
    "remove_unused_columns": False,
    "ddp_find_unused_parameters": False,
    # a step is cut into pieces by `batches`; unsloth would take 2 by default
    "gradient_accumulation_steps": 1,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "logging_steps": LOG_EVERY_STEPS,
    "logging_nan_inf_filter": False,  # true would log a diverged loss as 0.0
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class TrainingInputs:
    """Records, library and plan of a training."""

    library: str  # `unsloth` or `transformers`
    train: list[EncodedRecord]
    validation: list[EncodedRecord]
    # by split: how many records over `max_length` were dropped and truncated
    overlong: dict[str, dict[str, int]]
    plan: DevicePlan
    labels: LabelTokens | None  # None where answers are no labels


@dataclass(frozen=True)
class TrainingResult:
    """A finished training; losses are nats a token."""

    history: list[dict[str, Any]]  # log entries with `step` and `loss` or `eval_loss`
    steps: int  # of the optimizer, those before a resume included
    steps_here: int  # since the resume, if any
    seconds: float  # wall time of `steps_here`
    progress: Progress
    interrupted: bool = False  # by Ctrl-C, when all was learned

    @property
    def loss_before(self) -> float:
        """The validation loss of the base."""
        return self.progress.before or math.nan

    @property
    def loss_last(self) -> float:
        """The validation loss after the last step."""
        return float(self.validations[-1]["eval_loss"])

    @property
    def validations(self) -> list[dict[str, Any]]:
        return [entry for entry in self.history if "eval_loss" in entry]

    @property
    def train_losses(self) -> list[float]:
        return [entry["loss"] for entry in self.history if "loss" in entry]

    @property
    def learned(self) -> bool:
        return self.progress.best < self.loss_before

    @property
    def overfitted(self) -> bool:
        """Validation loss rose over the best one while training loss fell."""
        rose = self.loss_last > OVERFITTING_RATIO * self.progress.best
        return rose and self.train_losses[-1] < self.train_losses[0]


@backend.stdout_to_stderr()  # unsloth prints as it loads, wraps and trains
def run(
    config: FinetuneConfig, *, base: Artifact, prepared: Artifact, out: Path, keep: Path
) -> dict[str, Any]:
    """Train, and write the adapter, `metrics.jsonl` and `loss.svg`.

    Args:
        keep: The folder of checkpoints; a run that was killed resumes from there.

    Raises:
        DataError: A record is longer than `max_length` tokens or has no answer to learn, or there
            are no records.
        MissingError: 4-bit weights are asked for on a GPU without unsloth; or a tracker's package
            is missing.
        StageError: The training diverged, does not fit into memory, or ran out of it.
        UsageError: A tracker is unknown, or the processes cannot share a batch.
    """
    _require_trackers(config.report_to)
    _require_shared_batch(int(config.batch_size), distributed.world_size())
    with memory.PeakMeter() as peak, device_plan.out_of_memory(keep):
        metrics = _run(config, base, prepared, out, keep)
    distributed.leave_group()
    return {"memory_peak": peak.bytes} | metrics


def _run(
    config: FinetuneConfig, base: Artifact, prepared: Artifact, out: Path, keep: Path
) -> dict[str, Any]:
    """Train in this process."""
    lora_targets.require(config, base.path)
    tokenizer = hf_folder.load_tokenizer(base.path)
    inputs = _read_inputs(config, base, prepared, tokenizer)
    torch.manual_seed(config.seed)
    loaded = _load_model(config, base.path, inputs.library, inputs.plan)
    with guard.network("finetune.report_to") if config.report_to else contextlib.nullcontext():
        trainer = make_trainer(
            config,
            loaded.model,
            tokenizer,
            inputs.train,
            inputs.validation,
            keep,
            packs=loaded.packs,
            plan=inputs.plan,
            labels=inputs.labels,
        )
        if inputs.library == "transformers":  # unsloth's trainer reads it again
            trainer.drop_tokenizer()
        del tokenizer
        # processes drop out differently
        torch.manual_seed(config.seed + trainer.accelerator.process_index)
        result = _train(trainer, inputs, keep)
    if trainer.is_world_process_zero():
        write_jsonl(out / "metrics.jsonl", result.history)
        curve = loss_curve.svg(result.history, result.progress.best_step)
        (out / "loss.svg").write_text(curve, encoding="utf-8")
        _save(trainer.model, base, out)
        _report(result, inputs.overlong["train"])
    return _metrics(trainer, inputs, result) | loaded.layers


def _read_inputs(
    config: FinetuneConfig, base: Artifact, prepared: Artifact, tokenizer: Any
) -> TrainingInputs:
    """Encode the records, and refuse a training that does not fit
    into memory before the model is loaded.
    """
    task = Task.read(prepared.path)
    library = backend.choose(config.backend)
    gpu = device_plan.gpu_here()
    if config.load_in_4bit and gpu is not None and library != "unsloth":
        raise MissingError(
            "4-bit weights on a GPU need unsloth", hint="--set finetune.load_in_4bit=false"
        )
    records = share_of(_require_records(prepared, "train"), config.train_share)
    train, train_overlong = encode(training(records, task), task, tokenizer, config)
    held_out = _require_records(prepared, "validation")
    validation, overlong = encode(training(held_out, task), task, tokenizer, config)
    _require_read(base, [*train, *validation], task)
    if gpu is None:
        plan = device_plan.for_cpu(config, base.path, train)
    else:
        plan = device_plan.for_gpu(config, gpu, base.path, train)
    return TrainingInputs(
        library=library,
        train=train,
        validation=validation,
        overlong={"train": train_overlong, "validation": overlong},
        plan=plan,
        labels=_label_tokens(task, tokenizer, train),
    )


def _require_read(base: Artifact, rows: Sequence[EncodedRecord], task: Task) -> None:
    """Refuse a record that is longer than the base reads, since no
    answer to such a one is given either.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    context = hf_folder.context_of(base.path)
    if longest > context:
        shorter = SMALLER if task.document is not None else f"--set finetune.max_length={context}"
        raise DataError(
            f"a record has {longest:,} tokens, and the base reads {context:,}",
            hint=f"{shorter}; or a base that reads more (slmctl bases)",
        )


def _label_tokens(task: Task, tokenizer: Any, train: Sequence[EncodedRecord]) -> LabelTokens | None:
    """The tokens of the labels; None for a task without labels, or where an answer to learn is no
    label.

    Raises:
        DataError: Two labels are the same to the tokenizer, such as two Unicode forms of one word.
    """
    if not task.labels:
        return None
    answers = (label + task.end for label in task.labels)
    tokens = [tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]
    try:
        labels = LabelTokens(LabelTrie(task.labels, tokens))
    except ValueError as error:
        raise DataError(
            f"{error} in tokens, so no model can tell them apart",
            hint="task.labels.map makes one of both",
        ) from None
    return labels if labels.spell(train) else None


class _LoadedModel(NamedTuple):
    """A base with its adapter, ready to train.

    Attributes:
        packs: It takes packed batches.
        layers: The counts of `install_kernels` on a CPU.
    """

    model: Any
    packs: bool
    layers: dict[str, int]


def _load_model(
    config: FinetuneConfig, folder: Path, library: str, plan: DevicePlan
) -> _LoadedModel:
    if library == "unsloth":  # its layers take no layout
        model = load_unsloth(config, folder, plan)
        packs = False
    else:
        model = load_transformers(config, folder, plan)
        packs = packing_check.supports_packing(model)
        if config.load_in_4bit:
            layer_replacement.hold_in_4bit(model, plan.dtype)
    if packs and plan.gpu is None:
        layers = layer_replacement.install_kernels(model, config.label_smoothing)
        return _LoadedModel(model, packs, layers)
    if packs:
        packing_check.core_model(model).config._attn_implementation = packing.ATTENTION_NAME
    answer_loss.install(model, config.label_smoothing)
    return _LoadedModel(model, packs, {})


def _train(trainer: AnswerTrainer, inputs: TrainingInputs, keep: Path) -> TrainingResult:
    """Train from the newest whole checkpoint or from the start, and choose the weights to keep.

    Raises:
        KeyboardInterrupt: It was interrupted before its end; a checkpoint is kept.
    """
    resumed = checkpoint.newest(keep)
    checkpoint.require_shared(resumed)
    if resumed is None:
        trainer.evaluate()
    if trainer.is_world_process_zero():
        _say_start(trainer, inputs, keep, resumed)
    with first_interrupt() as interrupt:
        trainer.is_interrupted = interrupt.is_set
        output = trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    steps, most = trainer.state.global_step, trainer.state.max_steps
    if trainer.interrupted and steps < most and not trainer.progress.stopped_early:
        raise KeyboardInterrupt(f"at step {steps} of {most}; kept is {checkpoint.newest(keep)}")
    trainer.settle()
    _require_finite(trainer.model)
    log = trainer.state.log_history
    losses = [entry for entry in log if "loss" in entry or "eval_loss" in entry]
    steps_before = int(resumed.name.removeprefix("step-")) if resumed else 0
    return TrainingResult(
        history=[_reproducible_columns(entry) for entry in losses],
        steps=steps,
        steps_here=max(steps - steps_before, 1),
        seconds=output.metrics["train_runtime"],
        progress=trainer.progress,
        interrupted=interrupt.is_set(),
    )


def _say_start(
    trainer: AnswerTrainer, inputs: TrainingInputs, keep: Path, resumed: Path | None
) -> None:
    """Print the step from which training starts, and the memory that it is expected to take."""
    damaged = checkpoint.newer_than(keep, resumed)
    if damaged:
        names = ", ".join(damaged)
        then = "" if resumed else "; none is whole, so the training starts over"
        console.say(f"  note: {names} of an earlier run left aside as damaged{then}")
    if resumed is not None:
        console.say(f"  going on from {resumed.name} of an earlier run")
        return
    if inputs.plan.idle_gpus:
        visible = inputs.plan.idle_gpus + 1
        torchrun = f"torchrun --standalone --nproc_per_node {visible} -m slmctl finetune"
        console.say(f"  note: one of {visible} GPUs trains; `{torchrun}` uses all")
    before = f"validation loss before training {trainer.progress.before:.3f}"
    console.say(f"  {inputs.library} backend{_expected_memory(inputs.plan)}; {before}")
    if hf_folder.has_experts(trainer.model):
        console.say("  note: the experts stay as they are; LoRA adapts the layers around them")


def _expected_memory(plan: DevicePlan) -> str:
    """The memory that a training is expected to take, in words: `, about 1.2 GB of memory`."""
    words = f", about {console.size(plan.memory_bytes)} of memory" if plan.memory_bytes else ""
    usual = model_shape.PIECE_TOKENS
    if plan.piece_tokens < usual:
        words += f" with {plan.piece_tokens} tokens at once in place of {usual}"
    return words


def _metrics(
    trainer: AnswerTrainer, inputs: TrainingInputs, result: TrainingResult
) -> dict[str, Any]:
    """The manifest's metrics: losses in nats a token, memory in bytes."""
    progress, plan = result.progress, inputs.plan
    course = {
        "steps": result.steps,
        "best_step": progress.best_step,
        "stopped_early": progress.stopped_early,
    }
    if result.interrupted:
        course["interrupted"] = True
    losses = {
        "train_loss": result.train_losses[-1],
        "validation_loss": progress.best,
        "validation_loss_last": result.loss_last,
        "validation_loss_before": result.loss_before,
    }
    tokens_here = progress.real / max(result.steps, 1) * result.steps_here
    work = {
        "tokens_per_s": round(tokens_here / result.seconds, 1),
        "computed_tokens": progress.computed,
        "record_tokens": progress.real,
        "padding": round(trainer.padding, 4),
        "memory_estimate": plan.memory_bytes,
        "piece_tokens": plan.piece_tokens,
    }
    if plan.gpu:
        work["memory_peak"] = plan.peak_bytes()
    return {
        "backend": inputs.library,
        **course,
        **{name: round(loss, 6) for name, loss in losses.items()},
        "learned": result.learned,
        "overfitted": result.overfitted,
        "too_long": inputs.overlong,
        "trained_parameters": sum(weight.numel() for weight in trainer.trained().values()),
        "processes": trainer.accelerator.num_processes,
        **work,
    }


def _report(result: TrainingResult, overlong: dict[str, int]) -> None:
    """Print the steps, the losses, and a note on everything that the user should look at."""
    steps, time = console.count(result.steps, "step"), console.duration(result.seconds)
    losses = f"{result.loss_before:.3f} -> {result.progress.best:.3f}"
    console.say(f"  {steps} in {time}; validation loss {losses}")
    for note in _notes(result):
        console.say(f"  note: {note}")
    for fate, count in overlong.items():
        if count:
            records = console.count(count, "record")
            console.say(f"  note: {records} longer than max_length: {fate}")


def _notes(result: TrainingResult) -> Iterator[str]:
    """Sentences on what may be wrong with a training."""
    progress = result.progress
    best = progress.best
    if not result.learned:
        before = f"before training {result.loss_before:.3f}"
        yield f"it learned nothing: validation loss is {best:.3f}, {before}"
    if result.overfitted:
        rose = f"validation loss rose to {result.loss_last:.3f} while training loss fell"
        yield f"it overfitted: {rose}; kept is step {progress.best_step}"
    later = [entry for entry in result.validations if entry["step"]]
    lowest, step = min((entry["eval_loss"], entry["step"]) for entry in later)
    if best > OVERFITTING_RATIO * lowest:
        yield (
            f"validation loss was {lowest:.3f} at step {step}, which may be luck: the last step is "
            "kept"
        )
    if progress.stopped_early:
        worse = f"{progress.worse} validations in a row were worse than the best one"
        yield f"stopped early at step {result.steps}: {worse}"


def _require_trackers(names: Sequence[str]) -> None:
    """Refuse an unknown or missing tracker before anything is loaded."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UsageError(
                f"finetune.report_to: '{name}' is no tracker that transformers knows",
                hint=f"one of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}",
            )
        packages = TRACKER_PACKAGES.get(name, (name,))
        if all(importlib.util.find_spec(package) is None for package in packages):
            raise MissingError(
                f"finetune.report_to: {name} needs the package '{packages[0]}', which is not "
                "installed",
                hint=f"pip install {packages[0]}",
            )


def _require_shared_batch(batch: int, processes: int) -> None:
    """Refuse a batch that the processes cannot share before anything is loaded."""
    if batch % processes:
        next_larger = math.ceil(batch / processes) * processes
        raise UsageError(
            f"batch_size {batch} does not divide by {processes} processes",
            hint=f"--set finetune.batch_size={next_larger}",
        )


def _require_records(prepared: Artifact, split: str) -> list[Record]:
    """The records of a split.

    Raises:
        DataError: There are none.
    """
    records = read_records(prepared.file(f"{split}.jsonl"))
    if records:
        return records
    if split == "train":
        raise DataError(
            "there are no training records",
            hint=f"{prepared.path / 'rejected.jsonl'} says why rows went",
        )
    raise DataError(
        "there are no validation records, and the best step is chosen by their loss",
        hint="prepare.splits.validation: 0.1, or a source with split: validation",
    )


def make_trainer(
    config: FinetuneConfig,
    model: Any,
    tokenizer: Any,
    train: list[EncodedRecord],
    validation: list[EncodedRecord],
    keep: Path,
    *,
    packs: bool = False,
    plan: DevicePlan | None = None,
    labels: LabelTokens | None = None,
) -> AnswerTrainer:
    """The trainer of a model with its adapter.

    Args:
        keep: The folder of checkpoints.
        packs: The model takes packed batches, see `packing_check.supports_packing`.
        plan: The plan for the device; None for a CPU.
        labels: The tokens of the labels, where all answers are labels.
    """
    plan = plan or device_plan.on_cpu(config)
    arguments = _sft_config(config, len(train), keep, plan)
    if plan.gpu:
        # else Trainer splits batches over all visible GPUs, by torch's DataParallel
        arguments._n_gpu = 1
    if distributed.world_size() > 1:
        shortest = min(train, key=lambda record: len(record["input_ids"]))
        train = [*train, without_loss(shortest)]
    # its own default is a folder that is removed when the training ends
    if "tensorboard" in config.report_to:
        folder = f"tensorboard/{keep.name.removeprefix('.resume-')}"
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", folder)
    _leave_routers(model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    batches: PackedBatches | PaddedBatches = PaddedBatches(pad, plan.piece_tokens)
    if packs:
        batches = PackedBatches(plan.piece_tokens)
    return AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(validation),
        processing_class=tokenizer,
        validation=validation,
        batches=batches,
        checkpoints=keep,
        patience=config.patience,
        check_every=plan.check_every,
        labels=labels,
    )


def _leave_routers(model: Any) -> None:
    """Turn off the routers' auxiliary loss: routers are frozen, and a Granite 4 without experts has
    none.

    TRL asks a model for it wherever the config knows the key `output_router_logits`.
    """
    text = model.config.get_text_config()
    if hasattr(text, "router_aux_loss_coef"):
        text.router_aux_loss_coef = 0.0


def _sft_config(config: FinetuneConfig, records: int, keep: Path, plan: DevicePlan) -> SFTConfig:
    """TRL's settings for the section `finetune` and a number of training records."""
    return SFTConfig(
        output_dir=str(keep),
        seed=config.seed,
        report_to=config.report_to or "none",
        **FIXED_SETTINGS,
        **_schedule(config, records),
        **plan.arguments(),
    )


def _schedule(config: FinetuneConfig, records: int) -> dict[str, Any]:
    """TRL's settings of the steps: their number and size, and what happens between them."""
    batch = int(config.batch_size)
    steps = config.steps(records)
    half_an_epoch = math.ceil(math.ceil(records / batch) / 2)
    every = config.validate_every or max(half_an_epoch, 1)
    scheduler = config.lr_scheduler
    return {
        "max_steps": steps,
        "per_device_train_batch_size": batch // distributed.world_size(),
        "learning_rate": float(config.learning_rate),
        "lr_scheduler_type": "constant_with_warmup" if scheduler == "constant" else scheduler,
        "warmup_steps": math.ceil(steps * config.warmup_ratio),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "eval_steps": every,
        "save_steps": every,
    }


def load_transformers(config: FinetuneConfig, folder: Path, plan: DevicePlan | None = None) -> Any:
    """The base in the plan's dtype, with PEFT's adapter in float32.

    A base that will be held in 4 bits keeps the dtype of its file, so that its weights are
    memory-mapped, not copied.
    """
    plan = plan or device_plan.on_cpu(config)
    dtype = "auto" if config.load_in_4bit else plan.dtype
    model = hf_folder.load_model(folder, dtype=dtype)
    lora = lora_targets.lora_config(config, model)
    return get_peft_model(model, lora, autocast_adapter_dtype=True)


def unsloth_options(
    config: FinetuneConfig, folder: Path, plan: DevicePlan
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments for unsloth's `from_pretrained` and `get_peft_model`."""
    lora = config.lora
    targets = lora.target_modules
    checkpointing = "unsloth" if plan.checkpointing else False
    load = {
        "model_name": str(folder),
        "max_seq_length": config.max_length,
        "dtype": plan.dtype if plan.gpu else None,
        "load_in_4bit": config.load_in_4bit,
        "local_files_only": True,
    }
    shape = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(LINEAR_MODULES) if targets == "all-linear" else targets,
        "use_dora": lora.dora,
        "random_state": config.seed,
        "use_gradient_checkpointing": checkpointing,
    }
    return load, shape


def load_unsloth(config: FinetuneConfig, folder: Path, plan: DevicePlan) -> Any:
    """The base with its adapter, as unsloth loads and patches them."""
    from unsloth import FastLanguageModel

    load, shape = unsloth_options(config, folder, plan)
    model, _ = FastLanguageModel.from_pretrained(**load)
    return FastLanguageModel.get_peft_model(model, **shape)


def _require_finite(model: Any) -> None:
    """Raises StageError for a NaN or an infinity among the trained weights,
    which safetensors would save silently.
    """
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    broken = sum(not bool(torch.isfinite(parameter).all()) for parameter in trained)
    if broken:
        raise StageError(f"training diverged: {broken} weights are not finite", hint=DIVERGED_HINT)


def _reproducible_columns(entry: dict[str, Any]) -> dict[str, Any]:
    """A log entry without its speeds, which differ from run to run."""
    columns = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
    return {key: entry[key] for key in columns if key in entry}


def _save(model: Any, base: Artifact, out: Path) -> None:
    """Write adapter weights and settings, sorted and without paths:
    the same bytes for the same training.
    """
    # embeddings are the base's
    updates = get_peft_model_state_dict(model, save_embedding_layers=False)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in updates.items()}
    hf_folder.save(state, out / "adapter_model.safetensors")
    settings = model.peft_config["default"].to_dict()
    settings["base_model_name_or_path"] = Base.read(base.path).name
    settings["inference_mode"] = True
    plain = json.loads(json.dumps(settings, default=_plain))
    (out / "adapter_config.json").write_bytes(canonical(plain))


def _plain(value: Any) -> list[str] | str:
    """A setting that JSON does not have, as one that it has."""
    return sorted(value) if isinstance(value, set) else str(value)
