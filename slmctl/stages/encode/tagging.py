"""A sentence encoder and rows with marked places -> the encoder and layer on it, tuned to tag
words; imports torch.

Cross entropy of each word's class, by the recipe of `tuning.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slmctl import console
from slmctl.config import resolve_matmul_dtype
from slmctl.model_files import hf_folder
from slmctl.model_files.encoder_source import WEIGHTS
from slmctl.models.tagger import TaggerHead, classes_of
from slmctl.models.token_windows import Cutter, TokenWindow
from slmctl.stages.encode import tuning
from slmctl.stages.encode.tuning import BATCH, TOGETHER
from slmctl.stages.encode.tuning_bounds import TAG_PASSES, TAG_STEPS, TAG_WORK
from slmctl.task.evidence import Evidence
from slmctl.task.span_values import Reader
from slmctl.task.spans import SpanMark

# times that the validation rows are looked at, in the second half; windows of these
LOOKS, LOOKED_AT = 6, 256
RATE, OF_HEAD = 2e-4, 5  # of the encoder; that of the layer on it is so many times as high
UNKNOWN = -100  # class of a word that nothing is learned from


@dataclass(frozen=True)
class TaggedRow:
    """A text with its answer, and the places of its values that a tagger learns."""

    text: str
    answer: object
    marks: Sequence[SpanMark]


@dataclass(frozen=True)
class _Example:
    """A window with the class of each of its words, as indices."""

    window: TokenWindow
    classes: list[int]


def tune(
    folder: Path,
    reader: Reader,
    train: Sequence[TaggedRow],
    validation: Sequence[TaggedRow],
    out: Path,
) -> TaggerHead:
    """Tune an encoder to tag, and write it as another model folder; returns the layer on it.

    Those weights stay by which the validation rows are the likeliest.

    Args:
        folder: The encoder's model folder, see `encoder_source.kept`.
        out: The folder to write, which does not exist.

    Raises:
        DataError: transformers cannot load the encoder.
        FullError: The memory is not enough.
    """
    hint = "run it where more is free, or take the section encode out"
    model, tokenizer = tuning.opened(folder, out, hint=hint)
    # control tokens that a text spells out are text
    tokenizer.backend_tokenizer.encode_special_tokens = True
    cutter = Cutter(tokenizer.backend_tokenizer, int(hf_folder.context_of(folder) - 2))
    examples = [each for row in train for each in _kept(row, _examples(cutter, row))]
    held = [each for row in validation for each in _examples(cutter, row)][:LOOKED_AT]
    learner = _Learner(model, 1 + 2 * len(reader.fields))
    learner.learn(examples, held)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    hf_folder.save(state, out / WEIGHTS)
    layer = learner.layer.detach().numpy()
    return TaggerHead(reader, layer[:, :-1].copy(), layer[:, -1].copy(), {})


def _examples(cutter: Cutter, row: TaggedRow) -> Iterator[_Example]:
    """The windows of a row; a place that an edge cuts is the neighbour's."""
    evidence = Evidence(row.text)
    classes = classes_of(evidence, row.marks)
    for window in cutter.windows(evidence):
        own = classes[window.first : window.end]
        first = 0
        while first < len(own) and _goes_on(own[first]):
            own[first] = UNKNOWN
            first += 1
        if window.end < len(classes) and _goes_on(classes[window.end]):
            last = len(own) - 1
            while last > first and _goes_on(own[last]):
                own[last] = UNKNOWN
                last -= 1
            if last >= first:
                own[last] = UNKNOWN  # it begins there
        yield _Example(window, own)


def _goes_on(each: int) -> bool:
    """True for the class of a word that goes on the place of the word before."""
    return each > 0 and each % 2 == 0


def _kept(row: TaggedRow, examples: Iterator[_Example]) -> list[_Example]:
    """The windows of a row with places, and at most as many without any, drawn by a hash."""
    listed = list(examples)
    holding = [any(each > 0 for each in example.classes) for example in listed]

    def drawn(number: int) -> bytes:
        return hashlib.sha256(f"{number}/{row.text}".encode(errors="replace")).digest()

    without = [k for k, holds in enumerate(holding) if not holds]
    empty = sorted(without, key=drawn)[: max(1, sum(holding))]
    return [example for k, example in enumerate(listed) if holding[k] or k in empty]


class _Learner:
    """An encoder and the layer on it, with their optimizer."""

    def __init__(self, model: Any, classes: int) -> None:
        self.model = model
        # the bias is last
        self.layer = torch.nn.Parameter(torch.zeros(classes, model.config.hidden_size + 1))
        model.requires_grad_(False)
        inner = [weight.requires_grad_() for weight in tuning.layers_of(model)]
        self._weights = [*inner, self.layer]
        rates = {"params": inner}, {"params": [self.layer], "lr": OF_HEAD * RATE}
        self._optimizer = torch.optim.AdamW(rates, RATE, weight_decay=tuning.DECAY, fused=True)
        self._narrow = resolve_matmul_dtype("auto") == "bfloat16"

    def learn(self, examples: Sequence[_Example], held: Sequence[_Example]) -> None:
        """Learn some windows for a bounded time; the weights of the
        likeliest look at the held ones stay.
        """
        lengths = [len(each.window.tokens) for each in examples]
        steps = self._steps(lengths)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: tuning.share_of_rate(step, steps)
        )
        between = max(1, steps // (2 * LOOKS))
        looks = {steps - 1 - k * between for k in range(LOOKS)}
        best, kept = math.inf, list[torch.Tensor]()
        with console.progress("tune", steps, "steps") as meter:
            for step, batch in zip(range(steps), tuning.batches(lengths), strict=False):
                self._step([examples[k] for k in batch])
                schedule.step()
                meter.advance(1)
                if held and step in looks and (loss := self._loss(held)) < best:
                    best = loss
                    kept = [weight.detach().clone() for weight in self._weights]
        with torch.no_grad():
            for weight, value in zip(self._weights, kept, strict=bool(kept)):
                weight.copy_(value)

    def _steps(self, lengths: Sequence[int]) -> int:
        a_pass = math.ceil(len(lengths) / BATCH)
        multiplied = sum(weight.numel() for weight in tuning.layers_of(self.model))
        bound = TAG_WORK / (multiplied * BATCH * sum(lengths) / len(lengths))
        passes = min(TAG_PASSES, math.ceil(TAG_STEPS / a_pass))
        return max(1, min(a_pass * passes, int(bound)))

    def _step(self, batch: Sequence[_Example]) -> None:
        words = sum(each != UNKNOWN for example in batch for each in example.classes)
        for loss in self._losses(batch):
            (loss / max(words, 1)).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _loss(self, held: Sequence[_Example]) -> float:
        """The loss of the words of the held windows."""
        batches = [held[k : k + BATCH] for k in range(0, len(held), BATCH)]
        with torch.no_grad():
            return sum(float(loss) for batch in batches for loss in self._losses(batch))

    def _losses(self, batch: Sequence[_Example]) -> Iterator[torch.Tensor]:
        """The losses of parts of a batch, as many windows at once
        as fit into the processor's caches.
        """
        some = max(1, TOGETHER // max(len(each.window.tokens) for each in batch))
        for k in range(0, len(batch), some):
            pieces = batch[k : k + some]
            padded, mask = tuning.padded_rows([each.window.tokens for each in pieces], 0)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._narrow):
                states = self.model(input_ids=padded, attention_mask=mask).last_hidden_state.float()
            classes = torch.tensor([each for piece in pieces for each in piece.classes])
            words = torch.cat(
                [states[row, piece.window.places] for row, piece in enumerate(pieces)]
            )
            scores = words @ self.layer[:, :-1].T + self.layer[:, -1]
            yield torch.nn.functional.cross_entropy(
                scores, classes, ignore_index=UNKNOWN, reduction="sum"
            )
