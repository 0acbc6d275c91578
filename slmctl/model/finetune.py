"""base + prepared -> adapter: LoRA on the training records, the loss on the answers only."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import SFTConfig, SFTTrainer

from slmctl import backend, console, weights
from slmctl.artifact import Artifact, canonical
from slmctl.base import Base
from slmctl.config import FinetuneConfig
from slmctl.errors import DataError, StageError
from slmctl.model._frozen import freeze_to_bfloat16
from slmctl.records import Record, read_records, write_jsonl
from slmctl.task import Task

IGNORED = -100  # the label of a token that is no part of the answer; cross_entropy skips it
LOG_EVERY = 10  # steps


def run(config: FinetuneConfig, *, base: Artifact, prepared: Artifact, out: Path) -> dict[str, Any]:
    """Train, and write `adapter_model.safetensors`, `adapter_config.json` and `metrics.jsonl`.

    Raises:
        DataError: A record is longer than `max_length` tokens.
        StageError: The loss or a weight is no longer a number.
    """
    task = Task.read(prepared.path)
    chosen = backend.choose(config.backend)
    tokenizer = weights.load_tokenizer(base.path)
    train = encode(read_records(prepared.file("train.jsonl")), task, tokenizer, config.max_length)
    validation = encode(read_records(prepared.file("validation.jsonl")), task, tokenizer, config.max_length)
    torch.manual_seed(config.seed)
    model = _unsloth(config, base.path) if chosen == "unsloth" else _transformers(config, base.path)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        trainer = _trainer(config, model, tokenizer, train, validation, Path(scratch))
        before = trainer.evaluate()["eval_loss"]
        console.say(f"  {chosen} backend; validation loss before training {before:.3f}")
        result = trainer.train()
    history = [_logged(entry) for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    after = history[-1]["eval_loss"]  # the last epoch ends with a validation, whether it is a whole one or not
    _require_finite(trainer.model, after)
    write_jsonl(out / "metrics.jsonl", history)
    _save(trainer.model, base, out)
    tokens = sum(len(row["input_ids"]) for row in train)
    seconds = result.metrics["train_runtime"]
    steps = trainer.state.global_step
    console.say(f"  {steps} steps in {console.duration(seconds)}; validation loss {before:.3f} -> {after:.3f}")
    return {
        "backend": chosen,
        "steps": steps,
        "train_loss": round(result.training_loss, 6),
        "validation_loss": round(after, 6),
        "validation_loss_before": round(before, 6),
        "learned": after < before,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "tokens_per_s": round(tokens * config.epochs / seconds, 1),
    }


def encode(records: Sequence[Record], task: Task, tokenizer: Any, max_length: int) -> list[dict[str, list[int]]]:
    """Token ids of prompt and answer, the prompt's labels ignored.

    The prompt is rendered and tokenized just as predict and serve do it, and the answer is tokenized
    by itself, so the boundary between the two is the one that generation sees.
    """
    rows = []
    for record in records:
        prompt = tokenizer(task.prompt(record.prompt_messages), add_special_tokens=False).input_ids
        answer = tokenizer(record.answer + task.end, add_special_tokens=False).input_ids
        if len(prompt) + len(answer) > max_length:
            raise DataError(
                f"record {record.id} ({record.source['file']} row {record.source['row']}) has "
                f"{len(prompt) + len(answer)} tokens, max_length is {max_length}",
                hint="--set finetune.max_length=N, or shorten the row",
            )
        rows.append({"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer})
    return rows


class AnswerTrainer(SFTTrainer):
    """TRL's trainer with the LM head computed only where an answer may be.

    TRL projects every position through the head; with a large vocabulary that is most of the work.
    Batches are padded on the left, so all answers end in the last column, and the model's own
    `logits_to_keep` limits the head to the longest answer, whatever the architecture does after it.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"]  # (batch, length)
        answered = (labels != IGNORED).any(dim=0).nonzero()
        keep = labels.shape[1] - int(answered[0])  # columns from the first answer token on
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            position_ids=inputs["position_ids"],
            logits_to_keep=keep + 1,  # a token is predicted at the position before it
            use_cache=False,
        )
        logits = outputs.logits[:, :-1].float()  # (batch, keep, vocabulary)
        wanted = labels[:, -keep:]
        chosen = wanted != IGNORED
        loss = torch.nn.functional.cross_entropy(logits[chosen], wanted[chosen], reduction="sum")
        loss = loss / (num_items_in_batch if num_items_in_batch is not None else chosen.sum())
        return (loss, outputs) if return_outputs else loss


class LeftPadding:
    """Rows of token ids -> tensors (batch, length), padded on the left."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for k, row in enumerate(rows):
            size = len(row["input_ids"])
            ids[k, -size:] = torch.tensor(row["input_ids"])
            labels[k, -size:] = torch.tensor(row["labels"])
            mask[k, -size:] = 1
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": positions}


class Watch(TrainerCallback):
    """Shows progress, and stops at once when the loss is no longer a number."""

    def __init__(self) -> None:
        self.meter: console.Meter | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.meter = console.Meter("finetune", state.max_steps, "steps")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.meter is not None
        last = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        self.meter.advance(1, note=f"loss {last:.3f}" if last is not None else "")

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        for name in ("loss", "grad_norm", "eval_loss"):
            value = float((logs or {}).get(name, 0.0))
            if not math.isfinite(value):
                raise StageError(
                    f"training diverged: {name} is {value} at step {state.global_step}",
                    hint="--set finetune.learning_rate=1e-4",
                )

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.meter is not None
        self.meter.close()


def _trainer(
    config: FinetuneConfig, model: Any, tokenizer: Any, train: list[Any], validation: list[Any], scratch: Path
) -> AnswerTrainer:
    on_gpu = torch.cuda.is_available()
    steps = math.ceil(len(train) / config.batch) * config.epochs
    arguments = SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(steps * config.warmup),
        per_device_train_batch_size=config.batch,
        per_device_eval_batch_size=config.batch,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        train_sampling_strategy="group_by_length",  # like lengths together: what is computed is not padding
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not on_gpu,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),  # on a CPU, bf16 everywhere is slower than fp32
        gradient_checkpointing=on_gpu,  # on a CPU it trades time for memory that is there
        dataset_kwargs={"skip_prepare_dataset": True},  # the records are tokenized already
        max_length=None,
        remove_unused_columns=False,
        eval_strategy="epoch",
        save_strategy="no",
        logging_steps=LOG_EVERY,
        logging_nan_inf_filter=False,  # true would log a diverged loss as 0.0
        report_to="none",
        disable_tqdm=True,
    )
    trainer = AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(validation),
        processing_class=tokenizer,
        data_collator=LeftPadding(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0),
        callbacks=[Watch()],
    )
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # it prints every log entry to stdout
    return trainer


def _transformers(config: FinetuneConfig, folder: Path) -> PeftModel:
    model = weights.load_model(folder, attn_implementation="sdpa")
    if config.products == "bfloat16" and not torch.cuda.is_available():
        freeze_to_bfloat16(model)
    lora = config.lora
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
            task_type="CAUSAL_LM",
        ),
        autocast_adapter_dtype=True,  # the adapter itself is float32, whatever it adapts
    )


def _unsloth(config: FinetuneConfig, folder: Path) -> Any:
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(folder), max_seq_length=config.max_length, load_in_4bit=False, local_files_only=True
    )
    lora = config.lora
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return FastLanguageModel.get_peft_model(
        model,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=names if lora.targets == "all-linear" else lora.targets,
        random_state=config.seed,
    )


def _require_finite(model: Any, loss: float) -> None:
    """safetensors saves NaN without a word, so this is asked before."""
    broken = [name for name, p in model.named_parameters() if p.requires_grad and not bool(torch.isfinite(p).all())]
    if broken or not math.isfinite(loss):
        raise StageError(
            f"training diverged: validation loss {loss}, {len(broken)} weights are not finite",
            hint="--set finetune.learning_rate=1e-4",
        )


def _logged(entry: dict[str, Any]) -> dict[str, Any]:
    """The columns of a log entry that a rerun reproduces: speeds are left to the manifest."""
    return {
        key: entry[key] for key in ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm") if key in entry
    }


def _save(model: Any, base: Artifact, out: Path) -> None:
    """Adapter weights and settings, the same bytes for the same training: sorted, and without paths."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    save_file(dict(sorted(state.items())), out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_model.safetensors").chmod(0o644)
    settings = model.peft_config["default"].to_dict()
    settings["base_model_name_or_path"] = Base.read(base.path).name
    settings["inference_mode"] = True
    plain = json.loads(
        json.dumps(settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )
    (out / "adapter_config.json").write_bytes(canonical(plain))
