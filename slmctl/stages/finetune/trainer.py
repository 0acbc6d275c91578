"""TRL's trainer, with batches, loss, validation and checkpoints that suit a small model on any machine.

There is one training loop, that of transformers. What is changed is what it is fed (packed batches
on a CPU, cut into pieces that fit the memory), what it watches, and how it saves.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from trl import SFTTrainer

from slmctl import console
from slmctl.errors import StageError
from slmctl.stages.finetune import checkpoint, memory_estimate
from slmctl.stages.finetune.packing import IGNORED, Packing, Row

ESTIMATE_AFTER = 5  # steps
TRIM_EVERY = 10  # steps
DIVERGED = "--set finetune.learning_rate=1e-4"


@dataclass
class Progress:
    """What is known of a run beside the trainer's own state; it is part of every checkpoint."""

    before: float | None = None  # validation loss of the base
    best: float = math.inf
    best_step: int = 0
    worse: int = 0  # validations since the best one
    real: int = 0  # tokens of records, as if each were computed alone
    computed: int = 0  # tokens computed: padding included, a shared prefix counted once
    stopped_early: bool = False


class AnswerTrainer(SFTTrainer):
    """SFTTrainer whose loss is on the answers only, and computed only there.

    Args:
        rows: Encoded validation records.
        pieces: Turns rows into the batches that the model is given.
        checkpoints: Where to save; None saves nothing.
        patience: Validations without a better one before it stops; None for never.
        smoothing: Share of each target that training spreads over the vocabulary (padded batches; `_fast.install`
            is told it for packed ones).
    """

    def __init__(
        self, *args: Any, rows: Sequence[Row], pieces: Pieces | LeftPadded,
        checkpoints: Path | None, patience: int | None, smoothing: float = 0.0, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.rows, self.pieces, self.checkpoints, self.smoothing = rows, pieces, checkpoints, smoothing
        self.progress = Progress()
        self.control: TrainerControl
        self.best_weights: dict[str, torch.Tensor] = {}
        super().__init__(*args, data_collator=self._collate, callbacks=[Watch(self, patience)], **kwargs)
        self.remove_callback(PrinterCallback)  # it prints every log entry to stdout
        self.model_accepts_loss_kwargs = True  # the count of answer tokens in a step reaches compute_loss
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        self.order = Order(lengths, self.args, self.accelerator.num_processes)

    def _collate(self, rows: list[Row]) -> dict[str, Any]:
        parts = self.pieces(rows)
        return {"pieces": parts, "real": sum(len(row["input_ids"]) for row in rows if any(row["weights"]))}

    @property
    def padding(self) -> float:
        """Share of what is computed that is padding."""
        return self.pieces.padded / max(self.pieces.filled, 1)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
        return self.order

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], torch.Tensor]:
        """As transformers has it; unsloth replaces that with one that looks for labels where ours are not."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        return batches, self._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> torch.Tensor:
        pieces = [piece for batch in batch_samples for piece in batch["pieces"]]
        real = sum(batch["real"] for batch in batch_samples)
        counts = (
            sum(int((piece["weights"] > 0).sum()) for piece in pieces),
            real,
            sum(piece["input_ids"].numel() for piece in pieces),
        )
        totals: torch.Tensor = self.accelerator.reduce(torch.tensor(counts, device=device), reduction="sum")
        self.progress.real += int(totals[1])
        self.progress.computed += int(totals[2])
        return totals[0]

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one batch, piece by piece; the loss is checked before it can do harm."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        total = torch.zeros((), device=self.args.device)
        for k, piece in enumerate(inputs["pieces"]):
            last = k == len(inputs["pieces"]) - 1
            with (
                contextlib.nullcontext() if last else self.accelerator.no_sync(model),
                self.compute_loss_context_manager(),
            ):
                loss = self.compute_loss(model, piece, num_items_in_batch=num_items_in_batch)
                value = float(loss.detach())
                # of several processes, those that have a finite loss meet the others' in the gradient
                if not math.isfinite(value) and self.accelerator.num_processes == 1:
                    self.diverged("loss", value, self.state.global_step + 1)
                total += value
                self.accelerator.backward(loss)
        return total

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy of the answer tokens of a piece, over the count of answer tokens in the whole step."""
        if "layout" in inputs:
            loss = model(**inputs).loss
        else:
            loss = padded_loss(model, inputs, self.smoothing if model.training else 0.0)
        if num_items_in_batch is not None:
            # every process averages over all of them, and accelerate then averages over the processes
            loss = loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(float(norm)):
            self.diverged("gradient", float(norm), self.state.global_step + 1)
        return norm

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss a token over all validation records, each weighed by its answer's length."""
        self.model.eval()
        mine = sorted(self.rows, key=lambda row: len(row["input_ids"]))
        mine = mine[self.accelerator.process_index :: self.accelerator.num_processes]
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        size = 2 * self.args.per_device_train_batch_size
        for start in range(0, len(mine), size):
            for piece in self.pieces(mine[start : start + size]):
                piece = self._prepare_inputs(piece)
                sums[0] += self.compute_loss(self.model, piece).double()
                sums[1] += int((piece["labels"] != IGNORED).sum())
        sums = self.accelerator.reduce(sums, reduction="sum")
        metrics = {"eval_loss": float(sums[0] / sums[1])}
        if not math.isfinite(metrics["eval_loss"]):
            self.diverged("validation loss", metrics["eval_loss"], self.state.global_step)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def diverged(self, what: str, value: float, step: int) -> None:
        """Stop at once: nothing is saved of a training that is no longer a number.

        Raises:
            StageError: Always.
        """
        kept = checkpoint.newest(self.checkpoints) if self.checkpoints else None
        good = f"; the last good checkpoint is {kept}" if kept else ""
        raise StageError(f"training diverged: the {what} is {value} at step {step}{good}", hint=DIVERGED)

    # Weights, as names and tensors

    def trained(self) -> dict[str, torch.Tensor]:
        """The adapter's weights by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def keep_best(self) -> None:
        self.best_weights = {name: p.detach().clone() for name, p in self.trained().items()}

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the weights of the best validation back into the model."""
        for name, p in self.trained().items():
            p.copy_(self.best_weights[name])

    # Checkpoints: our own files under transformers' hooks, since its own are written in place and hold pickles

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        random_states = checkpoint.gather_random(self.accelerator)  # every process gives its own
        if self.checkpoints is not None and self.is_world_process_zero():
            checkpoint.save(self, random_states)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint.load_weights(self, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if folder is not None:
            checkpoint.load_optimizer(self, Path(folder))

    def _load_rng_state(self, folder: str | None) -> None:
        if folder is None or checkpoint.load_random(Path(folder), self.accelerator):
            return
        if self.is_world_process_zero():
            console.say("  note: another number of processes made this checkpoint; its dropout cannot be repeated")


class Order(torch.utils.data.Sampler[int]):
    """Records of an epoch: shuffled, then sorted by length inside windows, so that a batch pads little.

    The order is a function of seed and epoch alone, which is what makes resuming exact.
    """

    WINDOW = 20  # batches sorted together

    def __init__(self, lengths: Sequence[int], args: Any, processes: int) -> None:
        self.lengths, self.seed, self.epoch = lengths, args.seed, 0
        self.fill = 0  # places of an epoch that hold no record, but the row after the last one, see `silent`
        together = args.per_device_train_batch_size * processes
        self.batch = together * args.gradient_accumulation_steps
        if processes > 1:  # else accelerate fills the last batch up with records that were seen already
            self.lengths = lengths[:-1]
            self.fill = -len(self.lengths) % together

    def __len__(self) -> int:
        return len(self.lengths) + self.fill

    def __iter__(self) -> Iterator[int]:
        choose = random.Random(f"{self.seed}:{self.epoch}")  # noqa: S311 - a shuffle, not a secret
        order = list(range(len(self.lengths)))
        choose.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), self.batch * self.WINDOW):
            window = sorted(order[start : start + self.batch * self.WINDOW], key=self.lengths.__getitem__)
            batches += [window[k : k + self.batch] for k in range(0, len(window), self.batch)]
        short = batches.pop() if len(batches[-1]) < self.batch else []  # a batch that is not full comes last
        choose.shuffle(batches)
        records = [index for batch in [*batches, short] for index in batch]
        return iter([*records, *[len(order)] * self.fill])


def silent(row: Row) -> Row:
    """The row with nothing to learn from, but computed like any other: every process needs a full batch."""
    return {**row, "weights": [0.0] * len(row["weights"])}


class Watch(TrainerCallback):
    """Shows progress, keeps the best weights, and ends a training that no longer helps."""

    def __init__(self, trainer: AnswerTrainer, patience: int | None) -> None:
        self.trainer, self.patience = trainer, patience
        self.meter: console.Meter | None = None
        self._begun = self._real = self._first = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.meter = console.Meter("finetune", state.max_steps, "steps", done=state.global_step)
        self._begun, self._real, self._first = time.monotonic(), self.trainer.progress.real, state.global_step

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        order = self.trainer.order
        order.epoch = state.global_step // math.ceil(len(order) / order.batch)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % TRIM_EVERY == 0:
            memory_estimate.trim()
        if state.global_step == state.max_steps:
            control.should_log = control.should_evaluate = True
            control.should_save = False  # one that resumed from the end would take another step
        elif control.should_evaluate:
            control.should_log = True
        if self.meter is None:
            return
        self.meter.advance(1, note=self._note(state))
        done = state.global_step - self._first
        if done == ESTIMATE_AFTER and state.max_steps > 10 * ESTIMATE_AFTER:
            left = (time.monotonic() - self._begun) / done * (state.max_steps - state.global_step)
            console.say(f"  {state.max_steps} steps, about {console.duration(left)} and the validations")

    def _note(self, state: TrainerState) -> str:
        progress = self.trainer.progress
        known = {key: entry[key] for entry in state.log_history for key in ("loss", "eval_loss") if key in entry}
        parts = [f"loss {known['loss']:.3f}"] if "loss" in known else []
        parts += [f"validation {known['eval_loss']:.3f}"] if "eval_loss" in known else []
        rate = (progress.real - self._real) / max(time.monotonic() - self._begun, 1e-9)
        parts.append(f"{rate:.0f} tokens/s")
        parts.append(f"{self.trainer.padding:.0%} padding")
        return ", ".join(parts)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        progress, loss = self.trainer.progress, metrics["eval_loss"]
        if progress.before is None:
            progress.before = loss
            return
        if loss < progress.best:
            progress.best, progress.best_step, progress.worse = loss, state.global_step, 0
            self.trainer.keep_best()
            return
        progress.worse += 1
        if self.patience is not None and progress.worse >= self.patience and state.global_step < state.max_steps:
            progress.stopped_early = True
            control.should_training_stop, control.should_save = True, False

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.meter is not None:
            self.meter.close()


@dataclass
class Pieces:
    """Rows -> packed batches of at most `limit` computed tokens, or one record."""

    packing: Packing = field(default_factory=Packing)
    limit: int = memory_estimate.PIECE
    padded: int = 0
    filled: int = 0

    def __call__(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        parts = parted(rows, self.limit)
        batches = [self.packing(part) for part in parts]
        for batch, part in zip(batches, parts, strict=True):
            prefix, tokens = batch["layout"][0], batch["input_ids"].numel()
            self.filled += tokens
            self.padded += tokens - prefix - sum(len(row["input_ids"]) - prefix for row in part)
        return batches


def parted(rows: Sequence[Row], limit: int | None) -> list[Sequence[Row]]:
    """Rows in parts of nearly the same count, each of at most `limit` tokens once padded, or one record."""
    longest = max(len(row["input_ids"]) for row in rows)
    count = max(1, min(len(rows), limit // longest)) if limit else len(rows)
    parts = math.ceil(len(rows) / count)
    bounds = [round(k * len(rows) / parts) for k in range(parts + 1)]
    return [rows[a:b] for a, b in itertools.pairwise(bounds)]


class LeftPadded:
    """Rows -> batches (records, length), padded on the left: what unsloth's kernels expect.

    With a `limit` they have at most so many tokens, or one record.
    """

    padded, filled = 0, 0

    def __init__(self, pad: int, limit: int | None = None) -> None:
        self.pad, self.limit = pad, limit

    def __call__(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        return [self._batch(part) for part in parted(rows, self.limit)]

    def _batch(self, rows: Sequence[Row]) -> dict[str, Any]:
        length = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        labels, mask, weights = torch.full_like(ids, IGNORED), torch.zeros_like(ids), torch.zeros(ids.shape)
        for k, row in enumerate(rows):
            size = len(row["input_ids"])
            ids[k, -size:] = torch.tensor(row["input_ids"])
            labels[k, -size:] = torch.tensor(row["labels"])
            weights[k, -size:] = torch.tensor(row["weights"])
            mask[k, -size:] = 1
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        self.filled += ids.numel()
        self.padded += int(ids.numel() - mask.sum())
        return {
            "input_ids": ids, "labels": labels, "weights": weights, "attention_mask": mask, "position_ids": positions,
        }  # fmt: skip


def padded_loss(model: Any, inputs: dict[str, Any], smoothing: float = 0.0) -> torch.Tensor:
    """Weighted sum of the cross-entropies of a left-padded batch, the LM head computed for the last columns only.

    All answers end in the last column, so the model's own `logits_to_keep` limits the head to the
    longest answer, whatever the architecture does after it.
    """
    labels = inputs["labels"]  # (records, length)
    keep = labels.shape[1] - int((labels != IGNORED).any(dim=0).nonzero()[0])  # columns from the first answer token on
    outputs = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        position_ids=inputs["position_ids"],
        logits_to_keep=keep + 1,  # a token is predicted at the position before it
        use_cache=False,
    )
    logits = outputs.logits[:, :-1].float()  # (records, keep, vocabulary)
    wanted = labels[:, -keep:]
    chosen = wanted != IGNORED
    losses = torch.nn.functional.cross_entropy(
        logits[chosen], wanted[chosen], reduction="none", label_smoothing=smoothing
    )
    return (losses * inputs["weights"][:, -keep:][chosen]).sum()
