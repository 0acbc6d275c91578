"""Trials of training, each alone: what validation rows gain by it over a training that learns
labels as any text.

    python -m benchmarks.trials DATA BASE [--set banking77] [--folder FOLDER] [--neighbours]

DATA is the folder that holds `banking77/` and `clinc150/`, or, for rows of the demo, a project that
has prepared them; BASE is what `base:` takes. Each seed draws training rows of its own, the same
for every trial; the rows that are scored are the same for all, and others choose what a class head
needs. No test row is used. A run that is stopped goes on. With `--neighbours` rows of any length
share a step, beside rows of like length, which pad less.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import random
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks import program, result, sharper
from benchmarks.program import Pairs
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.config import FinetuneConfig
from slmctl.config.sections import HIGH_RATE
from slmctl.inference.engine import Answer
from slmctl.inference.label_search import LabelSearch
from slmctl.metrics import encoder_head
from slmctl.metrics.likelihood import normalised
from slmctl.model_files import hf_folder
from slmctl.model_files.transformers_answerer import HfAnswerer
from slmctl.models import prompts
from slmctl.models.model import OpenModel
from slmctl.stages.finetune import finetune
from slmctl.stages.finetune.label_loss import SHARE
from slmctl.stages.finetune.trainer import AnswerTrainer, LengthGroupedSampler
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records

CHOOSING, SCORED, SEEDS = 150, 800, (0, 1, 2)
SETS = {  # with their training rows, and passes over them: those of the demo are what `auto` takes
    "banking77": (program.banking77, 400, 4),
    "clinc150": (program.clinc150, 600, 4),
    "demo": (sharper.demo, 300, 8),
}
CONTROL, LABELS = "today's recipe", "loss over the labels"  # the control learns labels as any text
NEIGHBOURS = "loss over the labels, neighbours of a step at random"
MEAN, HEAD, BOTH = "mean of the last third of steps", "class head", "class head and label, added"
ERRORS = 2  # standard errors by which a gain must be larger, since one data set is measured
WINDOW = LengthGroupedSampler.WINDOW
FLOOR = 1e-6  # least probability of a label, where two models are added
WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # of the class head beside the label search
CONFIG = """\
project: trials
base: {base}
pull: {{rehearse: false}}
task: {{kind: classify, labels: {labels}, system: Name the intent.}}
prepare:
  sources:
    - {{path: train.csv, input: text, output: category}}
    - {{path: choosing.csv, input: text, output: category, split: validation}}
    - {{path: scored.csv, input: text, output: category, split: calibration}}
  splits: {{validation: 0, calibration: 0, test: 0}}
  min_rows: {{validation: 0, calibration: 0, test: 0, label: 0}}
  duplicates: {{exact: keep, near: keep, similarity: 1.0}}
  max_overlap: 1.0
"""


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("base")
    parser.add_argument("--set", choices=SETS, default="banking77")
    parser.add_argument("--folder", type=Path, default=Path("trials"))
    parser.add_argument("--neighbours", action="store_true")
    options = parser.parse_args()
    read, count, passes = SETS[options.set]
    train, validation, _ = read(options.data)
    found: list[dict[str, list[bool]]] = [{} for _ in SEEDS]
    variants = (LABELS, NEIGHBOURS) if options.neighbours else (CONTROL, LABELS)
    for variant, (seed, each) in itertools.product(variants, zip(SEEDS, found, strict=True)):
        each |= measured(seed, variant, [*train, *validation], options)
    rows, seeds = compared(found, variants[0])
    name = (
        "trials"
        + "-neighbours" * options.neighbours
        + f"-{options.set}" * (options.set != "banking77")
    )
    command = (
        f"python -m benchmarks.trials DATA BASE --set {options.set}"
        + " --neighbours" * options.neighbours
    )
    result.write(
        name,
        command,
        rows,
        ("torch", "transformers", "trl", "peft"),
        base=options.base,
        train=count,
        epochs=passes,
        choosing=CHOOSING,
        scored=SCORED,
        share=SHARE,
        seeds=seeds,
    )


def measured(
    seed: int, variant: str, rows: list[tuple[str, str]], options: argparse.Namespace
) -> dict[str, list[bool]]:
    """Which of the scored rows are right after a training of a
    seed, for each trial that it serves.
    """
    labels, held = sorted({label for _, label in rows}), CHOOSING + SCORED
    random.Random(0).shuffle(rows)
    learned = rows[held:]
    random.Random(seed).shuffle(learned)
    parts = {
        "train": learned[: SETS[options.set][1]],
        "choosing": rows[:CHOOSING],
        "scored": rows[CHOOSING:held],
    }
    place = (options.folder / f"seed-{seed}").resolve()
    kept = place / f"{variant}.json"
    if not kept.exists():
        project(place, options.base, labels, parts)
        made = trial(place, variant, seed, SETS[options.set][2])
        kept.write_text(json.dumps(made), encoding="utf-8")
    found: dict[str, list[bool]] = json.loads(kept.read_text(encoding="utf-8"))
    sys.stderr.write(
        f"seed {seed}: { {kind: sum(each) / SCORED for kind, each in found.items()} }\n"
    )
    return found


def project(place: Path, base: str, labels: Sequence[str], parts: Mapping[str, Pairs]) -> None:
    for part, rows in parts.items():
        program.write_csv(place / f"{part}.csv", rows)
    config = CONFIG.format(base=base, labels=json.dumps(labels))
    (place / "slmctl.yaml").write_text(config, encoding="utf-8")
    program.slmctl(place, "run", "--until", "prepare")


def compared(
    found: Sequence[dict[str, list[bool]]], peer: str
) -> tuple[list[result.Row], dict[str, Any]]:
    """A row for each trial beside the peer; and for each its accuracy by seed, its gain, and the
    errors of that.

    The error is the larger one of that over seeds and that over rows, each of differences between
    pairs.
    """
    rows, seeds = [], {}
    for variant in found[0]:
        there = [each for each in found if variant in each]
        ours, control = (
            np.array([each[kind] for each in there], np.float64) for kind in (variant, peer)
        )
        gains = (ours - control).mean(axis=1)  # (seeds,)
        of_seeds = statistics.stdev(gains) / math.sqrt(len(gains))
        of_rows = float((ours - control).mean(axis=0).std(ddof=1) / math.sqrt(ours.shape[1]))
        gain, error = float(gains.mean()), max(of_seeds, of_rows)
        accuracy, other = ours.mean(axis=1), control.mean(axis=1)
        seeds[variant] = {
            "accuracy": [round(float(value), 4) for value in accuracy],
            "gain": round(gain, 5),
            "error_over_seeds": round(of_seeds, 5),
            "error_over_rows": round(of_rows, 5),
            "error_of_mean": round(statistics.stdev(accuracy) / math.sqrt(len(accuracy)), 5),
            "kept": gain > ERRORS * error,
        }
        ratios = accuracy / other
        spread = (round(float(ratios.min()), 3), round(float(ratios.max()), 3))
        told = f"{variant}: accuracy" + (
            f" ({100 * gain:+.1f} points, standard error {100 * error:.1f})"
            if variant != peer
            else ""
        )
        means = (round(float(values.mean()), 4) for values in (accuracy, other, ratios))
        rows.append(
            result.Row(
                told, next(means), peer, next(means), round(next(means), 3), spread, "", None
            )
        )
    return rows, seeds


# One training


def trial(place: Path, variant: str, seed: int, passes: int) -> dict[str, list[bool]]:
    """Train, and say which scored rows are right; of the control also by
    the trials that need no other training.
    """
    base, prepared = (
        artifact.load(next((place / "runs" / kind).glob("[!.]*"))) for kind in ("base", "prepared")
    )
    config = FinetuneConfig(  # one validation before and one at the end
        epochs=passes,
        learning_rate=HIGH_RATE,
        batch_size=16,
        seed=seed,
        validate_every=10**6,
        backend="transformers",
    )
    tokenizer = hf_folder.load_tokenizer(base.path)
    inputs = finetune._read_inputs(config, base, prepared, tokenizer)
    LengthGroupedSampler.WINDOW = 1 if variant == NEIGHBOURS else WINDOW
    torch.manual_seed(seed)
    model, packs, _ = finetune._load_model(config, base.path, inputs.library, inputs.plan)
    if variant == CONTROL:
        inputs = dataclasses.replace(inputs, labels=None)
    trainer, mean = taught(config, model, tokenizer, inputs, place / "keep", packs=packs)
    scorer = scored_by(trainer, base, prepared, place / "adapter")
    if variant != CONTROL:
        return {variant: right(scorer)}
    found = {CONTROL: right(scorer), **class_head(scorer)}
    mean.settle()
    return found | {MEAN: right(scored_by(trainer, base, prepared, place / "adapter"))}


def taught(
    config: FinetuneConfig,
    model: Any,
    tokenizer: Any,
    inputs: finetune.TrainingInputs,
    keep: Path,
    *,
    packs: bool,
) -> tuple[AnswerTrainer, MeanWeights]:
    """Train as the stage does."""
    shutil.rmtree(keep, ignore_errors=True)
    trainer = finetune.make_trainer(
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
    mean = MeanWeights(trainer)
    trainer.add_callback(mean)
    torch.manual_seed(config.seed)
    finetune._train(trainer, inputs, keep)
    shutil.rmtree(keep)
    return trainer, mean


class MeanWeights(TrainerCallback):  # type: ignore[misc]
    """The mean of the adapter's weights after each of the last third of the steps."""

    def __init__(self, trainer: AnswerTrainer) -> None:
        self.trainer, self.count = trainer, 0
        self.sums: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step <= state.max_steps * 2 / 3:
            return
        self.count += 1
        for name, weight in self.trainer.trained().items():
            self.sums[name] = self.sums[name] + weight if name in self.sums else weight.clone()

    @torch.no_grad()
    def settle(self) -> None:
        """Put the mean into the trainer's model."""
        for name, weight in self.trainer.trained().items():
            weight.copy_(self.sums[name] / self.count)


# Scores


@dataclass
class Scored:
    """Answers to some records.

    Attributes:
        records: These.
        answers: The likeliest label of each.
        shares: (n, L), the probability of every label.
        states: (n, width), the last hidden state of each prompt.
    """

    records: Sequence[Record]
    answers: list[str]
    shares: np.ndarray[Any, Any]
    states: np.ndarray[Any, Any]


class Scorer(HfAnswerer):
    """The answers of a model, with the probability of every label,
    and the states that it answers by.
    """

    def __init__(self, base: Path, adapter: Path, prepared: Artifact) -> None:
        self.task, self.prepared = Task.read(prepared.path), prepared
        super().__init__(
            base,
            adapter=adapter,
            labels=self.task.labels,
            end=self.task.end,
            max_tokens=32,
            matmul_dtype="bfloat16",
        )
        self._states: list[torch.Tensor] = []
        self._last = torch.zeros(0)
        self.model.get_output_embeddings().register_forward_pre_hook(self._note)

    def _note(self, module: Any, args: tuple[torch.Tensor]) -> None:
        self._last = args[0]

    def _begun(self, head: list[int], batch: list[list[int]]) -> Any:
        begun = super()._begun(head, batch)
        self._states.append(self._last[:, -1].float())
        return begun

    @staticmethod
    def _label(search: LabelSearch, length: int) -> Answer:
        return dataclasses.replace(HfAnswerer._label(search, length), labels=search.distribution())

    def scored(self, split: str) -> Scored:
        self._states.clear()
        records = read_records(self.prepared.file(f"{split}.jsonl"))
        found = list(
            OpenModel(self, self.task, 32).answer(
                [prompts.asked(self.task, record) for record in records]
            )
        )
        by_row = dict(found)
        states = np.empty((len(records), len(self._states[0][0])), np.float32)
        states[[row for row, _ in found]] = torch.cat(self._states).numpy()
        every = [by_row[row] for row in range(len(records))]
        answers = [each for each in every if isinstance(each, Answer)]
        shares = np.array([[each.labels[label] for label in self.task.labels] for each in answers])
        return Scored(records, [each.text for each in answers], shares, states)


def scored_by(trainer: AnswerTrainer, base: Artifact, prepared: Artifact, out: Path) -> Scorer:
    """The model that a trainer holds, as it is saved."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    finetune._save(trainer.model, base, out)
    return Scorer(base.path, out, prepared)


def right(scorer: Scorer) -> list[bool]:
    scored = scorer.scored("calibration")
    return [
        answer == record.answer
        for answer, record in zip(scored.answers, scored.records, strict=True)
    ]


def class_head(scorer: Scorer) -> dict[str, list[bool]]:
    """Logistic regression on the states, alone and added to the labels'
    probabilities, with a weight that is chosen.
    """
    train, choosing, asked = (
        scorer.scored(split) for split in ("train", "validation", "calibration")
    )
    middle, scale = train.states.mean(axis=0), train.states.std(axis=0) + 1e-6
    vectors = [(each.states - middle) / scale for each in (train, choosing, asked)]
    told = [[record.answer for record in each.records] for each in (train, choosing, asked)]
    fold = np.repeat([-1, 0], [len(told[0]), len(told[1])])
    head = encoder_head.cross_fit(np.concatenate(vectors[:2]), told[0] + told[1], fold=fold).head
    names = np.array(scorer.task.labels)
    columns = [scorer.task.labels.index(label) for label in head.labels]

    def logs(vectors: Any, scored: Scored) -> tuple[Any, Any]:
        shares = np.zeros_like(scored.shares)
        shares[:, columns] = np.exp(normalised(head.evidence(vectors)))
        return np.log(scored.shares + FLOOR), np.log(shares + FLOOR)

    def hits(scores: Any, answers: Sequence[str]) -> list[bool]:
        found: list[bool] = (names[scores.argmax(axis=1)] == np.array(answers)).tolist()
        return found

    file, own = logs(vectors[1], choosing)
    weight = max(WEIGHTS, key=lambda weight: sum(hits(file + weight * own, told[1])))
    file, own = logs(vectors[2], asked)
    sys.stderr.write(f"weight of the class head: {weight}\n")
    return {HEAD: hits(own, told[2]), BOTH: hits(file + weight * own, told[2])}


if __name__ == "__main__":
    main()
