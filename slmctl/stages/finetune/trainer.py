"""TRL's trainer, with batches, loss, validation and checkpoints that suit a small model on any
machine.

There is one training loop, transformers'. This subclass changes its batches (packed on a
CPU, in pieces that fit the memory), its loss, its early stopping and its checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from trl import SFTTrainer

from slmctl import console
from slmctl.console import percent
from slmctl.errors import StageError
from slmctl.metrics.validation_gain import sure_gain
from slmctl.model_files import memory
from slmctl.stages.finetune import checkpoint as checkpoint_files
from slmctl.stages.finetune.batches import PackedBatches, PaddedBatches
from slmctl.stages.finetune.label_loss import LabelTokens
from slmctl.stages.finetune.packing import IGNORED, EncodedRecord
from slmctl.stages.finetune.sampler import LengthGroupedSampler

ESTIMATE_AFTER_STEPS = 5  # steps
TRIM_EVERY_STEPS = 10  # steps
# groups of validation records, at most, whose differences show what is chance
VALIDATION_BLOCKS = 32
CONFIDENCE = 0.95  # that the last weights are worse than the best, where these replace them
LEAST_SCALE = 1.0  # of a float16 loss; below it, gradients overflow without scaling
DIVERGED_HINT = "--set finetune.learning_rate=1e-4"


@dataclass
class Progress:
    """State of a run that transformers does not keep; every checkpoint holds it under these names.

    Attributes:
        before: Validation loss of the base, nats a token.
        best: Lowest validation loss since; after `settle`, the loss of the weights that are kept.
        best_blocks: (records, weight of their answer tokens, nats) of each block of that
            validation, see `evaluate`.
        worse: Number of the latest validations in a row that were surely worse than the best one.
        real: Tokens of the records, each counted whole.
        computed: Tokens computed: padding included, a shared prefix counted once a batch.
        unlogged: Sum of the losses since the last log entry, of `unlogged_steps` steps; a run that
            is interrupted between two entries goes on with it.
    """

    before: float | None = None
    best: float = math.inf
    best_step: int = 0
    best_blocks: list[tuple[int, float, float]] = field(default_factory=list)
    worse: int = 0
    real: int = 0
    computed: int = 0
    stopped_early: bool = False
    unlogged: float = 0.0
    unlogged_steps: int = 0


class StepCounts(NamedTuple):
    """Counts of a step.

    Attributes:
        records: Those with a loss.
        weight: Of their answer tokens.
        tokens: Of these records, each counted whole.
        computed: Tokens computed.
        interrupted: Processes that an interrupt has reached.
    """

    records: float
    weight: float
    tokens: float
    computed: float
    interrupted: float


class AnswerTrainer(SFTTrainer):
    """SFTTrainer with the loss on answer tokens only, and logits computed only where they predict
    one.

    Args:
        validation: Encoded validation records.
        batches: Lays records out as the tensors of one or more batches.
        checkpoints: The folder of checkpoints; None saves nothing.
        check_every: Steps between two checks that losses and gradients are finite.
        patience: Validations in a row that are surely worse than the best one before it stops; None
            for never.
        labels: The tokens of the labels, where all answers are labels.
    """

    def __init__(
        self,
        *args: Any,
        validation: Sequence[EncodedRecord],
        batches: PackedBatches | PaddedBatches,
        checkpoints: Path | None,
        patience: int | None,
        check_every: int = 1,
        labels: LabelTokens | None = None,
        **kwargs: Any,
    ) -> None:
        self.labels = labels
        self.validation = validation
        self.batches = batches
        self.checkpoints = checkpoints
        self.check_every = check_every
        self.unchecked: list[tuple[str, int, torch.Tensor]] = []  # quantity, step and value
        self.is_interrupted: Callable[[], bool] = lambda: False  # asked before every step
        self.interrupted = False  # True: the current step is the last one
        self._running_loss = torch.zeros(())  # transformers' sum since its last log entry
        self.progress = Progress()
        self.blocks: list[tuple[int, float, float]] = []  # of the last validation
        self.control: TrainerControl
        self.best_weights: dict[str, torch.Tensor] = {}
        with _hidden_head(kwargs["model"]):
            super().__init__(
                *args,
                data_collator=self._collate,
                callbacks=[TrainingMonitor(self, patience)],
                **kwargs,
            )
        self.remove_callback(PrinterCallback)  # it prints every log entry to stdout
        # so that compute_loss gets the divisor of the step's loss
        self.model_accepts_loss_kwargs = True
        learned = [count for count in map(answer_tokens, self.train_dataset) if count]
        self.mean_tokens = sum(learned) / max(len(learned), 1)  # of an answer
        # turns a step's loss into the mean over its own answer tokens, for the log
        self.step_mean = 1.0
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        self.order = LengthGroupedSampler(lengths, self.args, self.accelerator.num_processes)

    def drop_tokenizer(self) -> None:
        """Let the tokenizer go, since the records are encoded: one of
        262,144 tokens takes a quarter of a gigabyte.
        """
        self.processing_class = self._tokenizer = self.callback_handler.processing_class = None

    def _collate(self, records: list[EncodedRecord]) -> dict[str, Any]:
        pieces = self.batches(records)
        learned = [record for record in records if any(record["weights"])]
        if self.labels is not None:
            for piece in pieces:
                piece["choices"] = self.labels.choices(piece["labels"])
        weight = summed(weight for record in learned for weight in record["weights"])
        tokens = sum(len(record["input_ids"]) for record in learned)
        computed = sum(piece["input_ids"].numel() for piece in pieces)
        # on the host, without waiting for a device
        return {"pieces": pieces, "counts": (len(learned), weight, tokens, computed)}

    @property
    def padding(self) -> float:
        """Share of the computed tokens that is padding."""
        return self.batches.padded / max(self.batches.filled, 1)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
        return self.order

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], torch.Tensor]:
        """Returns (batches of a step, divisor () of its loss); unsloth's
        own method would expect `labels` in them.
        """
        # none after the last of an epoch
        batches = list(itertools.islice(epoch_iterator, num_batches))
        sums = [sum(batch["counts"][k] for batch in batches) for k in range(4)]
        sums.append(int(self.is_interrupted()))
        if self.accelerator.num_processes > 1:
            # weights are no integers
            own = torch.tensor(sums, dtype=torch.float64, device=device)
            sums = self.accelerator.reduce(own, reduction="sum").tolist()
        counts = StepCounts(*sums)
        self.interrupted = counts.interrupted > 0  # of all processes, in the same step
        self.progress.real += int(counts.tokens)
        self.progress.computed += int(counts.computed)
        # Not by the step's own answer tokens: records of like length share a step, so where short
        # answers are of one kind (such as no call), a step of these would weigh each of their
        # tokens many times another one.
        divisor = counts.records * self.mean_tokens
        self.step_mean = divisor / (counts.weight or 1)
        return batches, torch.tensor(divisor)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of one batch, piece by piece; a loss that
        is not finite stops before the update.
        """
        model.train()
        inputs = self._prepare_inputs(inputs)
        total = torch.zeros((), device=self.args.device)
        pieces = inputs["pieces"]
        for k, piece in enumerate(pieces, start=1):
            # processes exchange gradients with the last piece
            last = k == len(pieces)
            sync = contextlib.nullcontext() if last else self.accelerator.no_sync(model)
            with sync, self.compute_loss_context_manager():
                loss = self.compute_loss(model, piece, num_items_in_batch=num_items_in_batch)
                total += loss.detach()
                self.accelerator.backward(loss)
        total.mul_(self.step_mean)
        # with several processes, a loss that is not finite shows in the gradient of all
        if self.accelerator.num_processes == 1:
            self.unchecked.append(("loss", self.state.global_step + 1, total))
            self._check_when_due()
        return total

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Summed cross-entropy of a piece's answer tokens, over the mean number in as many records
        as the step has.

        So each answer token of the data set weighs the same, whichever records its step holds.
        """
        loss = model(**inputs).loss
        if num_items_in_batch is not None:
            # every process averages over all of them, and accelerate then averages over the
            # processes
            loss = loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        step = self.state.global_step + 1
        scaler = self.accelerator.scaler
        if scaler is None:
            self.unchecked.append(("gradient", step, torch.as_tensor(norm)))
        else:
            # a step whose gradient is not finite is skipped, and the next loss is scaled by half
            if scaler.get_scale() < LEAST_SCALE:
                self.diverged("gradient", math.inf, step)
            norm = torch.as_tensor(norm).nan_to_num(nan=0.0, posinf=0.0)
        self._check_when_due()
        return norm

    def _check_when_due(self) -> None:
        if self.state.global_step % self.check_every == self.check_every - 1:
            self.check()

    def check(self) -> None:
        """Check the losses and gradients since the last check; on a GPU the host waits for them
        here.

        Raises:
            StageError: One of them is not finite.
        """
        if not self.unchecked:
            return
        values = torch.stack([value.float() for *_, value in self.unchecked]).tolist()
        for (quantity, step, _), value in zip(self.unchecked, values, strict=True):
            if not math.isfinite(value):
                self.diverged(quantity, value, step)
        self.unchecked.clear()

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean loss of an answer token over all validation records, by its weight, in nats.

        Sets `blocks` to (records, weight of their answer tokens, nats) of up to VALIDATION_BLOCKS
        groups of records of like length. They are the same groups in every training on these
        records, with any number of processes, so that two trainings can be compared block by block.
        """
        self.check()
        self.model.eval()
        records = sorted(self.validation, key=lambda record: len(record["input_ids"]))
        own = range(self.accelerator.process_index, len(records), self.accelerator.num_processes)
        share = [records[index] for index in own]
        weights = [summed(record["weights"]) for record in share]
        together = 2 * self.args.per_device_train_batch_size
        losses = []
        for start in range(0, len(share), together):
            pieces = self.batches(share[start : start + together])
            losses += [self.model(**self._prepare_inputs(piece)).losses for piece in pieces]
        nats = _by_record(share, torch.cat(losses).tolist() if losses else [])
        every = sorted(gather_object(list(zip(own, weights, nats, strict=True))))
        size = math.ceil(len(every) / VALIDATION_BLOCKS)
        self.blocks = [_block(every[start : start + size]) for start in range(0, len(every), size)]
        weight = sum(weight for _, weight, _ in self.blocks)
        loss = sum(nats for *_, nats in self.blocks) / (weight or 1)
        if not math.isfinite(loss):
            self.diverged("validation loss", loss, self.state.global_step)
        metrics = {"eval_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def diverged(self, quantity: str, value: float, step: int) -> None:
        """Stop at once, before anything is saved.

        Raises:
            StageError: Always.
        """
        kept = checkpoint_files.newest(self.checkpoints) if self.checkpoints else None
        good = f"; the last good checkpoint is {kept}" if kept else ""
        raise StageError(
            f"training diverged: the {quantity} is {value} at step {step}{good}", hint=DIVERGED_HINT
        )

    # Weights, as names and tensors

    def trained(self) -> dict[str, torch.Tensor]:
        """The adapter's weights by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def keep_best(self) -> None:
        """Copy the adapter's weights: they are the best so far."""
        self.best_weights = {name: p.detach().clone() for name, p in self.trained().items()}

    def is_surely_worse(self) -> bool:
        """True if the last validation is worse than the best one by more than chance, compared
        block by block.

        The best of several equal ones looks better than it is, so the level is divided by their
        number (Bonferroni).
        """
        best = np.array(self.progress.best_blocks, np.float64)
        last = np.array(self.blocks, np.float64)
        earlier = sum("eval_loss" in entry for entry in self.state.log_history) - 1
        doubt = (1 - CONFIDENCE) / max(earlier, 1)
        return sure_gain(last, best, 1 - doubt) > 0

    @torch.no_grad()
    def settle(self) -> None:
        """Keep the last weights, or restore the best validation's if the last one is surely worse.

        The lowest of several losses on few records is mostly the luckiest one, while the last
        weights have seen most and took the smallest steps.
        """
        if self.is_surely_worse():
            for name, p in self.trained().items():
                p.copy_(self.best_weights[name])
            return
        last = next(entry for entry in reversed(self.state.log_history) if "eval_loss" in entry)
        progress = self.progress
        progress.best = last["eval_loss"]
        progress.best_step = last["step"]
        progress.best_blocks = self.blocks

    # The log: transformers' own, with the losses of an interrupted run before its next entry

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        if self.progress.unlogged_steps:
            tr_loss += self.progress.unlogged
            self._globalstep_last_logged -= self.progress.unlogged_steps
            self.progress.unlogged = 0.0
            self.progress.unlogged_steps = 0
        self._running_loss = tr_loss
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)

    # Checkpoints: our own files under transformers' hooks, since its own are written in place and
    # hold pickles

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.check()
        random_states = checkpoint_files.gather_random()  # every process sends its own
        own_loss = self._running_loss.detach().clone()
        unlogged = float(self.accelerator.reduce(own_loss, reduction="mean"))
        steps = self.state.global_step - self._globalstep_last_logged
        if self.checkpoints is not None and self.is_world_process_zero():
            reached = dataclasses.replace(self.progress, unlogged=unlogged, unlogged_steps=steps)
            checkpoint_files.save(self, random_states, reached)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint_files.load_weights(self, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoint_files.load_optimizer(self, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or checkpoint_files.load_random(Path(checkpoint), self.accelerator):
            return
        if self.is_world_process_zero():
            console.say(
                "  note: another number of processes made this checkpoint; its dropout cannot be "
                "repeated"
            )


def _by_record(records: Sequence[EncodedRecord], by_token: Iterable[float]) -> list[float]:
    """The loss of each record, from those of all answer tokens, record after record."""
    losses = iter(by_token)
    counts = (sum(label != IGNORED for label in record["labels"]) for record in records)
    return [math.fsum(itertools.islice(losses, count)) for count in counts]


def _block(losses: Sequence[tuple[int, float, float]]) -> tuple[int, float, float]:
    """(index, weight, nats) of some records -> a block of `AnswerTrainer.blocks`."""
    weight = summed(weight for _, weight, _ in losses)
    nats = math.fsum(nats for *_, nats in losses)
    return len(losses), weight, round(nats, 6)


def answer_tokens(record: EncodedRecord) -> int:
    """Number of tokens of a record that the loss is on."""
    pairs = zip(record["labels"], record["weights"], strict=True)
    return sum(label != IGNORED and weight > 0 for label, weight in pairs)


def summed(weights: Iterable[float]) -> float:
    """Exact sum of the weights of answer tokens; their number where each weighs 1."""
    total = math.fsum(weights)
    return int(total) if total.is_integer() else total


def without_loss(record: EncodedRecord) -> EncodedRecord:
    """The record with all loss weights 0: it is computed, since every
    process needs a full batch, and adds nothing.
    """
    return {**record, "weights": [0.0] * len(record["weights"])}


class TrainingMonitor(TrainerCallback):
    """Callback that shows progress, keeps the best weights, and stops early."""

    def __init__(self, trainer: AnswerTrainer, patience: int | None) -> None:
        self.trainer = trainer
        self.patience = patience
        self.meter: console.Meter | None = None
        # at the begin of this process's training
        self._begun = 0.0
        self._real = 0
        self._first = 0

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.meter = console.Meter("finetune", state.max_steps, "steps", done=state.global_step)
        gc.collect()  # a tokenizer that was dropped has reference cycles
        memory.trim_heap()
        self._begun = time.monotonic()
        self._real = self.trainer.progress.real
        self._first = state.global_step

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        order = self.trainer.order
        order.epoch = state.global_step // math.ceil(len(order) / order.batch)

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self._first:
            require_gradients(self.trainer.model)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % TRIM_EVERY_STEPS == 0:
            memory.trim_heap()
        if state.global_step == state.max_steps:
            control.should_log = control.should_evaluate = True
            control.should_save = False  # resuming from the last step would take another one
        elif control.should_evaluate:
            control.should_log = True
        if self.trainer.interrupted and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        if self.meter is None:
            return
        self.meter.advance(1, note=self._note(state))
        done = state.global_step - self._first
        if done == ESTIMATE_AFTER_STEPS and state.max_steps > 10 * ESTIMATE_AFTER_STEPS:
            a_step = (time.monotonic() - self._begun) / done
            left = console.duration(a_step * (state.max_steps - state.global_step))
            console.say(f"  {state.max_steps} steps, about {left} and the validations")

    def _note(self, state: TrainerState) -> str:
        """Progress in words: `loss 0.412, validation 0.398, 1234 tokens/s, 3% padding`."""
        latest: dict[str, float] = {}
        for entry in state.log_history:
            latest |= entry
        parts = []
        if "loss" in latest:
            parts.append(f"loss {latest['loss']:.3f}")
        if "eval_loss" in latest:
            parts.append(f"validation {latest['eval_loss']:.3f}")
        seconds = max(time.monotonic() - self._begun, 1e-9)
        rate = (self.trainer.progress.real - self._real) / seconds
        parts.append(f"{rate:.0f} tokens/s")
        parts.append(f"{percent(self.trainer.padding, 0)} padding")
        return ", ".join(parts)

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        progress = self.trainer.progress
        loss = metrics["eval_loss"]
        if progress.before is None:
            progress.before = loss
            return
        if loss < progress.best:
            progress.best = loss
            progress.best_step = state.global_step
            progress.best_blocks = self.trainer.blocks
            progress.worse = 0
            self.trainer.keep_best()
            return
        progress.worse = progress.worse + 1 if self.trainer.is_surely_worse() else 0
        out_of_patience = self.patience is not None and progress.worse >= self.patience
        if out_of_patience and state.global_step < state.max_steps:
            progress.stopped_early = True
            control.should_training_stop = True
            control.should_save = False

    def on_train_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.meter is not None:
            self.meter.close()


@contextlib.contextmanager
def _hidden_head(model: Any) -> Iterator[None]:
    """Keep TRL from refusing an adapter on the output head: its own loss
    would not train that, `answer_loss` does.
    """
    model.get_output_embeddings = lambda: None
    try:
        yield
    finally:
        del model.get_output_embeddings


def require_gradients(model: Any) -> None:
    """Refuse a training of weights that the loss does not depend on: they would be saved as they
    began.

    Raises:
        StageError: A trainable weight has no gradient after backward.
    """
    layers: dict[str, None] = {}  # without a gradient, in order
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            layer = name.removeprefix("base_model.model.").split(".lora_")[0]
            layers[layer] = None
    if layers:
        first, *others = layers
        more = f" and {len(others)} more" if others else ""
        raise StageError(
            f"'{first}'{more} would not be trained: the loss does not depend on the adapter there",
            hint="leave it out of finetune.lora.target_modules",
        )
