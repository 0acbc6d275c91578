"""base + prepared -> adapter: LoRA on the training records, the loss on the answers only."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import SFTConfig

from slmctl import console
from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.config import FinetuneConfig
from slmctl.errors import DataError, MissingError, StageError, UsageError
from slmctl.model_files import hf_folder
from slmctl.model_files.base_model import Base
from slmctl.network import guard
from slmctl.stages.finetune import backend, checkpoint, distributed, layer_replacement, loss_curve, memory_estimate
from slmctl.stages.finetune.encoding import encode
from slmctl.stages.finetune.packing import Row
from slmctl.stages.finetune.trainer import DIVERGED, AnswerTrainer, LeftPadded, Pieces, silent
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records, write_jsonl

LOG_EVERY = 10  # steps
OVERFITTED = 1.02  # the last validation loss over the best one, from which a run is said to overfit
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Packages of trackers that are not called like them: any one of them will do.
TRACKED_BY = {"tensorboard": ("tensorboardX", "tensorboard"), "azure_ml": ("azureml",), "flyte": ("flytekit",)}


@backend.stdout_spared()  # unsloth prints as it loads, wraps and trains
def run(config: FinetuneConfig, *, base: Artifact, prepared: Artifact, out: Path, keep: Path) -> dict[str, Any]:
    """Train, and write the adapter, `metrics.jsonl` and `loss.svg`.

    Args:
        config: The recipe.
        base: What is adapted.
        prepared: The records.
        out: The empty folder to fill.
        keep: Where checkpoints outlive a run that does not end; the next run goes on from there.

    Raises:
        DataError: A record is longer than `max_length` tokens, or has nothing to learn, or there is none.
        MissingError: 4-bit weights are asked for, and unsloth or a GPU is missing; or a tracker's package is.
        StageError: The training diverged, or cannot fit the memory.
        UsageError: A tracker is unknown, or the processes cannot share a batch.
    """
    _require_trackers(config.report_to)
    if config.processes * config.machines > 1 and "WORLD_SIZE" not in os.environ:
        return distributed.several(config, base=base, prepared=prepared, out=out, keep=keep)
    memory_estimate.forget_peak()
    task = Task.read(prepared.path)
    chosen = backend.choose(config.backend)
    if config.load_in_4bit and chosen != "unsloth":
        raise MissingError("4-bit weights need unsloth and a GPU", hint="--set finetune.load_in_4bit=false")
    tokenizer = hf_folder.load_tokenizer(base.path)
    train, cut = encode(_records(prepared, "train"), task, tokenizer, config)
    validation, validation_cut = encode(_records(prepared, "validation"), task, tokenizer, config)
    on_gpu = torch.cuda.is_available()
    leads = os.environ.get("RANK", "0") == "0"
    estimate = None
    if not on_gpu:
        lengths = [len(row["input_ids"]) for row in train]
        world = int(os.environ.get("WORLD_SIZE", "1"))
        together = max(config.batch_size // (config.gradient_accumulation_steps * world), 1)
        estimate = memory_estimate.estimate(base.path, config, memory_estimate.fullest(lengths, together))
        if world > 1:  # what a faster process had loaded by now would count as taken
            PartialState(cpu=True).wait_for_everyone()
        memory_estimate.require(estimate, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.manual_seed(config.seed)
    model = load_unsloth(config, base.path) if chosen == "unsloth" else load_transformers(config, base.path)
    packs = chosen == "transformers" and not on_gpu and layer_replacement.packs(model)
    layers = layer_replacement.install(model, config.label_smoothing) if packs else {}
    with guard.network("finetune.report_to") if config.report_to else contextlib.nullcontext():
        trainer = make_trainer(config, model, tokenizer, train, validation, keep, packs=packs)
        torch.manual_seed(config.seed + trainer.accelerator.process_index)  # processes drop out differently
        found = checkpoint.newest(keep)
        checkpoint.require_shared(found)
        if leads and (left := checkpoint.passed_over(keep, found)):
            then = "" if found else "; none is whole, so the training starts over"
            console.say(f"  note: {', '.join(left)} of an earlier run left aside as damaged{then}")
        if found is None:
            trainer.evaluate()
            before = trainer.progress.before or math.nan
            if leads:
                expected = f", about {console.size(estimate)} of memory" if estimate else ""
                console.say(f"  {chosen} backend{expected}; validation loss before training {before:.3f}")
        elif leads:
            console.say(f"  going on from {found.name} of an earlier run")
        result = trainer.train(resume_from_checkpoint=str(found) if found else None)
    progress = trainer.progress
    history = [_logged(entry) for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    last = next(entry["eval_loss"] for entry in reversed(history) if "eval_loss" in entry)
    before = progress.before or math.nan
    trainer.restore_best()
    _require_finite(trainer.model)
    seconds = result.metrics["train_runtime"]
    steps = trainer.state.global_step
    losses = [entry["loss"] for entry in history if "loss" in entry]
    overfitted = last > OVERFITTED * progress.best and losses[-1] < losses[0]
    learned = progress.best < before
    if leads:
        write_jsonl(out / "metrics.jsonl", history)
        (out / "loss.svg").write_text(loss_curve.svg(history, progress.best_step), encoding="utf-8")
        _save(trainer.model, base, out)
        remarks = _remarks(progress, steps, last, before, overfitted=overfitted, learned=learned, cut=cut)
        console.say(
            f"  {steps} steps in {console.duration(seconds)}; validation loss {before:.3f} -> {progress.best:.3f}"
        )
        for remark in remarks:
            console.say(f"  note: {remark}")
    done = max(steps - (int(found.name.removeprefix("step-")) if found else 0), 1)
    return {
        "backend": chosen,
        "steps": steps,
        "best_step": progress.best_step,
        "stopped_early": progress.stopped_early,
        "train_loss": round(losses[-1], 6),
        "validation_loss": round(progress.best, 6),
        "validation_loss_last": round(last, 6),
        "validation_loss_before": round(before, 6),
        "learned": learned,
        "overfitted": overfitted,
        "too_long": {"train": cut, "validation": validation_cut},
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "processes": trainer.accelerator.num_processes,
        "tokens_per_s": round(progress.real / max(steps, 1) * done / seconds, 1),
        "computed_tokens": progress.computed,
        "record_tokens": progress.real,
        "padding": round(trainer.padding, 4),
        "memory_estimate": estimate,
        "memory_peak": memory_estimate.peak(),
        **layers,
    }


def _require_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that cannot follow the run, before there is one."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UsageError(
                f"finetune.report_to: '{name}' is no tracker that transformers knows",
                hint=f"one of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}",
            )
        packages = TRACKED_BY.get(name, (name,))
        if all(importlib.util.find_spec(package) is None for package in packages):
            raise MissingError(
                f"finetune.report_to: {name} needs the package '{packages[0]}', which is not installed",
                hint=f"pip install {packages[0]}",
            )


def _records(prepared: Artifact, split: str) -> list[Record]:
    """The records of a split that a training cannot do without."""
    records = read_records(prepared.file(f"{split}.jsonl"))
    if records:
        return records
    if split == "train":
        raise DataError("there are no training records", hint=f"{prepared.path / 'rejected.jsonl'} says why rows went")
    raise DataError(
        "there are no validation records, and the best step is chosen by their loss",
        hint="prepare.splits.validation: 0.1, or a source with split: validation",
    )


def make_trainer(
    config: FinetuneConfig, model: Any, tokenizer: Any, train: list[Row], validation: list[Row], keep: Path,
    *, packs: bool = False,
) -> AnswerTrainer:  # fmt: skip
    per_epoch = math.ceil(len(train) / config.batch_size)
    steps = config.max_steps or math.ceil(per_epoch * config.epochs)
    every = config.validate_every or max(math.ceil(per_epoch / 2), 1)
    on_gpu = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    parts = config.gradient_accumulation_steps * world
    if config.batch_size % parts:
        raise UsageError(
            f"batch_size {config.batch_size} does not divide by gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps} times {world} processes",
            hint=f"--set finetune.batch_size={math.ceil(config.batch_size / parts) * parts}",
        )
    if world > 1:
        train = [*train, silent(min(train, key=lambda row: len(row["input_ids"])))]
    arguments = SFTConfig(
        output_dir=str(keep),
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler if config.lr_scheduler != "constant" else "constant_with_warmup",
        warmup_steps=math.ceil(steps * config.warmup_ratio),
        per_device_train_batch_size=config.batch_size // parts,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        use_cpu=not on_gpu,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),  # on a CPU, bf16 everywhere is slower than fp32
        gradient_checkpointing=on_gpu,  # on a CPU it trades time for memory that is there
        dataset_kwargs={"skip_prepare_dataset": True},  # the records are tokenized already
        max_length=None,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        logging_steps=LOG_EVERY,
        logging_nan_inf_filter=False,  # true would log a diverged loss as 0.0
        report_to=config.report_to or "none",
        disable_tqdm=True,
    )
    if "tensorboard" in config.report_to:  # its own default is a folder of what is removed when the training ends
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", f"tensorboard/{keep.name.removeprefix('.resume-')}")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(validation),
        processing_class=tokenizer,
        rows=validation,
        pieces=Pieces() if packs else LeftPadded(pad, None if on_gpu else memory_estimate.PIECE),
        checkpoints=keep,
        patience=config.patience,
        smoothing=config.label_smoothing,
    )


def lora_config(config: FinetuneConfig) -> LoraConfig:
    """The adapter's shape as PEFT takes it."""
    lora = config.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )


def load_transformers(config: FinetuneConfig, folder: Path) -> Any:
    on_gpu = torch.cuda.is_available()
    half = on_gpu or config.matmul_dtype == "bfloat16"
    model = hf_folder.load_model(folder, dtype=torch.bfloat16 if half else torch.float32)
    # the adapter itself is float32, whatever it adapts
    return get_peft_model(model, lora_config(config), autocast_adapter_dtype=True)


def unsloth_options(config: FinetuneConfig, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What unsloth's `from_pretrained` and `get_peft_model` are given."""
    lora = config.lora
    load = {
        "model_name": str(folder),
        "max_seq_length": config.max_length,
        "load_in_4bit": config.load_in_4bit,
        "local_files_only": True,
    }
    shape = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(MODULES) if lora.target_modules == "all-linear" else lora.target_modules,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "random_state": config.seed,
        "use_gradient_checkpointing": "unsloth",
    }
    return load, shape


def load_unsloth(config: FinetuneConfig, folder: Path) -> Any:
    from unsloth import FastLanguageModel

    load, shape = unsloth_options(config, folder)
    model, _ = FastLanguageModel.from_pretrained(**load)
    return FastLanguageModel.get_peft_model(model, **shape)


def _require_finite(model: Any) -> None:
    """safetensors saves NaN without a word, so this is asked before."""
    broken = [name for name, p in model.named_parameters() if p.requires_grad and not bool(torch.isfinite(p).all())]
    if broken:
        raise StageError(f"training diverged: {len(broken)} weights are not finite", hint=DIVERGED)


def _remarks(
    progress: Any, steps: int, last: float, before: float, *, overfitted: bool, learned: bool, cut: dict[str, int]
) -> list[str]:
    """What the user should know of a run that ended well."""
    remarks = []
    if not learned:
        remarks.append(f"it learned nothing: validation loss is {progress.best:.3f}, before training {before:.3f}")
    if overfitted:
        rose = f"validation loss rose to {last:.3f} while training loss fell"
        remarks.append(f"it overfitted: {rose}; kept is step {progress.best_step}")
    if progress.stopped_early:
        remarks.append(f"stopped early at step {steps}: {progress.worse} validations without a better one")
    remarks += [f"{count} records longer than max_length were {what}" for what, count in cut.items() if count]
    return remarks


def _logged(entry: dict[str, Any]) -> dict[str, Any]:
    """The columns of a log entry that a rerun reproduces: speeds are left to the manifest."""
    return {
        key: entry[key] for key in ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm") if key in entry
    }


def _save(model: Any, base: Artifact, out: Path) -> None:
    """Adapter weights and settings, the same bytes for the same training: sorted, and without paths."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    hf_folder.save(state, out / "adapter_model.safetensors")
    settings = model.peft_config["default"].to_dict()
    settings["base_model_name_or_path"] = Base.read(base.path).name
    settings["inference_mode"] = True
    plain = json.loads(
        json.dumps(settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )
    (out / "adapter_config.json").write_bytes(canonical(plain))
