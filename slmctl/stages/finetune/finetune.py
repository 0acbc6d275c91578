"""base + prepared -> adapter: LoRA on the training records, the loss on the answers only."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        return float(
            next(entry["eval_loss"] for entry in reversed(self.history) if "eval_loss" in entry)
        )

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
    model, packs, layers = _load_model(config, base.path, inputs.library, inputs.plan)
    with guard.network("finetune.report_to") if config.report_to else contextlib.nullcontext():
        trainer = make_trainer(
            config,
            model,
            tokenizer,
            inputs.train,
            inputs.validation,
            keep,
            packs=packs,
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
        (out / "loss.svg").write_text(
            loss_curve.svg(result.history, result.progress.best_step), encoding="utf-8"
        )
        _save(trainer.model, base, out)
        _report(result, inputs.overlong["train"])
    return _metrics(trainer, inputs, result) | layers


def _read_inputs(
    config: FinetuneConfig, base: Artifact, prepared: Artifact, tokenizer: Any
) -> TrainingInputs:
    """Encode the records, and refuse a training that does not fit
    into memory before the model is loaded.
    """
    task, library, gpu = (
        Task.read(prepared.path),
        backend.choose(config.backend),
        device_plan.gpu_here(),
    )
    if config.load_in_4bit and gpu is not None and library != "unsloth":
        raise MissingError(
            "4-bit weights on a GPU need unsloth", hint="--set finetune.load_in_4bit=false"
        )
    records = training(share_of(_require_records(prepared, "train"), config.train_share), task)
    train, train_overlong = encode(records, task, tokenizer, config)
    held_out = training(_require_records(prepared, "validation"), task)
    validation, validation_overlong = encode(held_out, task, tokenizer, config)
    _require_read(base, [*train, *validation], task)
    if gpu is None:
        plan = device_plan.for_cpu(config, base.path, train)
    else:
        plan = device_plan.for_gpu(config, gpu, base.path, train)
    overlong = {"train": train_overlong, "validation": validation_overlong}
    return TrainingInputs(
        library, train, validation, overlong, plan, _label_tokens(task, tokenizer, train)
    )


def _require_read(base: Artifact, rows: Sequence[EncodedRecord], task: Task) -> None:
    """Refuse a record that is longer than the base reads, since no
    answer to such a one is given either.
    """
    longest, context = max(len(row["input_ids"]) for row in rows), hf_folder.context_of(base.path)
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
    tokens = [
        tokenizer(label + task.end, add_special_tokens=False).input_ids for label in task.labels
    ]
    try:
        labels = LabelTokens(LabelTrie(task.labels, tokens))
    except ValueError as error:
        raise DataError(
            f"{error} in tokens, so no model can tell them apart",
            hint="task.labels.map makes one of both",
        ) from None
    return labels if labels.spell(train) else None


def _load_model(
    config: FinetuneConfig, folder: Path, library: str, plan: DevicePlan
) -> tuple[Any, bool, dict[str, int]]:
    """Returns (base with adapter, True if it takes packed batches, the
    counts of `install_kernels` on a CPU).
    """
    unsloth = library == "unsloth"
    model = (
        load_unsloth(config, folder, plan) if unsloth else load_transformers(config, folder, plan)
    )
    packs = not unsloth and packing_check.supports_packing(model)  # unsloth's layers take no layout
    if config.load_in_4bit and not unsloth:
        layer_replacement.hold_in_4bit(model, plan.dtype)
    if packs and plan.gpu is None:
        return model, packs, layer_replacement.install_kernels(model, config.label_smoothing)
    if packs:
        packing_check.core_model(model).config._attn_implementation = packing.ATTENTION_NAME
    answer_loss.install(model, config.label_smoothing)
    return model, packs, {}


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
    return TrainingResult(
        history=[
            _reproducible_columns(e)
            for e in trainer.state.log_history
            if "loss" in e or "eval_loss" in e
        ],
        steps=steps,
        steps_here=max(steps - (int(resumed.name.removeprefix("step-")) if resumed else 0), 1),
        seconds=output.metrics["train_runtime"],
        progress=trainer.progress,
        interrupted=interrupt.is_set(),
    )


def _say_start(
    trainer: AnswerTrainer, inputs: TrainingInputs, keep: Path, resumed: Path | None
) -> None:
    """Print the step from which training starts, and the memory that it is expected to take."""
    if damaged := checkpoint.newer_than(keep, resumed):
        then = "" if resumed else "; none is whole, so the training starts over"
        console.say(f"  note: {', '.join(damaged)} of an earlier run left aside as damaged{then}")
    if resumed is not None:
        console.say(f"  going on from {resumed.name} of an earlier run")
        return
    plan = inputs.plan
    expected = f", about {console.size(plan.memory_bytes)} of memory" if plan.memory_bytes else ""
    if plan.piece_tokens < model_shape.PIECE_TOKENS:
        expected += (
            f" with {plan.piece_tokens} tokens at once in place of {model_shape.PIECE_TOKENS}"
        )
    if plan.idle_gpus:
        visible = plan.idle_gpus + 1
        torchrun = f"torchrun --standalone --nproc_per_node {visible} -m slmctl finetune"
        console.say(f"  note: one of {visible} GPUs trains; `{torchrun}` uses all")
    console.say(
        f"  {inputs.library} backend{expected}; validation loss before training "
        f"{trainer.progress.before:.3f}"
    )
    if hf_folder.has_experts(trainer.model):
        console.say("  note: the experts stay as they are; LoRA adapts the layers around them")


def _metrics(
    trainer: AnswerTrainer, inputs: TrainingInputs, result: TrainingResult
) -> dict[str, Any]:
    """The manifest's metrics: losses in nats a token, memory in bytes."""
    progress = result.progress
    return {
        "backend": inputs.library,
        "steps": result.steps,
        "best_step": progress.best_step,
        "stopped_early": progress.stopped_early,
        **({"interrupted": True} if result.interrupted else {}),
        "train_loss": round(result.train_losses[-1], 6),
        "validation_loss": round(progress.best, 6),
        "validation_loss_last": round(result.loss_last, 6),
        "validation_loss_before": round(result.loss_before, 6),
        "learned": result.learned,
        "overfitted": result.overfitted,
        "too_long": inputs.overlong,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "processes": trainer.accelerator.num_processes,
        "tokens_per_s": round(
            progress.real / max(result.steps, 1) * result.steps_here / result.seconds, 1
        ),
        "computed_tokens": progress.computed,
        "record_tokens": progress.real,
        "padding": round(trainer.padding, 4),
        "memory_estimate": inputs.plan.memory_bytes,
        "piece_tokens": inputs.plan.piece_tokens,
        **({"memory_peak": inputs.plan.peak_bytes()} if inputs.plan.gpu else {}),
    }


def _report(result: TrainingResult, overlong: dict[str, int]) -> None:
    """Print the steps, the losses, and a note on everything that the user should look at."""
    progress, best, before = result.progress, result.progress.best, result.loss_before
    console.say(
        f"  {console.count(result.steps, 'step')} in {console.duration(result.seconds)}; "
        f"validation loss {before:.3f} -> {best:.3f}"
    )
    notes = []
    if not result.learned:
        notes.append(
            f"it learned nothing: validation loss is {best:.3f}, before training {before:.3f}"
        )
    if result.overfitted:
        rose = f"validation loss rose to {result.loss_last:.3f} while training loss fell"
        notes.append(f"it overfitted: {rose}; kept is step {progress.best_step}")
    validations = [
        (entry["eval_loss"], entry["step"]) for entry in result.history if "eval_loss" in entry
    ]
    lowest, step = min(each for each in validations if each[1])
    if best > OVERFITTING_RATIO * lowest:
        notes.append(
            f"validation loss was {lowest:.3f} at step {step}, which may be luck: the last step is "
            "kept"
        )
    if progress.stopped_early:
        worse = f"{progress.worse} validations in a row were worse than the best one"
        notes.append(f"stopped early at step {result.steps}: {worse}")
    notes += [
        f"{console.count(count, 'record')} longer than max_length: {fate}"
        for fate, count in overlong.items()
        if count
    ]
    for note in notes:
        console.say(f"  note: {note}")


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
        raise UsageError(
            f"batch_size {batch} does not divide by {processes} processes",
            hint=f"--set finetune.batch_size={math.ceil(batch / processes) * processes}",
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
        train = [*train, without_loss(min(train, key=lambda record: len(record["input_ids"])))]
    # its own default is a folder that is removed when the training ends
    if "tensorboard" in config.report_to:
        os.environ.setdefault(
            "TENSORBOARD_LOGGING_DIR", f"tensorboard/{keep.name.removeprefix('.resume-')}"
        )
    _leave_routers(model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(validation),
        processing_class=tokenizer,
        validation=validation,
        batches=PackedBatches(plan.piece_tokens)
        if packs
        else PaddedBatches(pad, plan.piece_tokens),
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
    batch = int(config.batch_size)
    per_epoch = math.ceil(records / batch)
    steps = config.steps(records)
    every = config.validate_every or max(math.ceil(per_epoch / 2), 1)
    return SFTConfig(
        output_dir=str(keep),
        max_steps=steps,
        learning_rate=float(config.learning_rate),
        lr_scheduler_type=config.lr_scheduler
        if config.lr_scheduler != "constant"
        else "constant_with_warmup",
        warmup_steps=math.ceil(steps * config.warmup_ratio),
        per_device_train_batch_size=batch // distributed.world_size(),
        # a step is cut into pieces by `batches`; unsloth would take 2 by default
        gradient_accumulation_steps=1,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        **plan.arguments(),
        dataset_kwargs={"skip_prepare_dataset": True},  # the records are tokenized already
        max_length=None,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        logging_steps=LOG_EVERY_STEPS,
        logging_nan_inf_filter=False,  # true would log a diverged loss as 0.0
        report_to=config.report_to or "none",
        disable_tqdm=True,
    )


def load_transformers(config: FinetuneConfig, folder: Path, plan: DevicePlan | None = None) -> Any:
    """The base in the plan's dtype, with PEFT's adapter in float32.

    A base that will be held in 4 bits keeps the dtype of its file, so that its weights are
    memory-mapped, not copied.
    """
    plan = plan or device_plan.on_cpu(config)
    model = hf_folder.load_model(folder, dtype="auto" if config.load_in_4bit else plan.dtype)
    return get_peft_model(
        model, lora_targets.lora_config(config, model), autocast_adapter_dtype=True
    )


def unsloth_options(
    config: FinetuneConfig, folder: Path, plan: DevicePlan
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments for unsloth's `from_pretrained` and `get_peft_model`."""
    lora = config.lora
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
        "target_modules": list(LINEAR_MODULES)
        if lora.target_modules == "all-linear"
        else lora.target_modules,
        "use_dora": lora.dora,
        "random_state": config.seed,
        "use_gradient_checkpointing": "unsloth" if plan.checkpointing else False,
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
    broken = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and not bool(torch.isfinite(p).all())
    ]
    if broken:
        raise StageError(
            f"training diverged: {len(broken)} weights are not finite", hint=DIVERGED_HINT
        )


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
    plain = json.loads(
        json.dumps(
            settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value)
        )
    )
    (out / "adapter_config.json").write_bytes(canonical(plain))
