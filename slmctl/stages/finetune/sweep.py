"""Settings of finetune, each trained with several seeds -> the settings that lower validation loss by more than chance.

Every trial is an adapter like any other: cached, resumed after a kill, listed. Trials read the training and the
validation records; nothing here reads test records.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from slmctl import config
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import FinetuneConfig
from slmctl.config.fields import Outside
from slmctl.errors import DataError, UsageError
from slmctl.metrics import trial_choice
from slmctl.metrics.trial_choice import Measured, TrialChoice
from slmctl.pipeline import plan, row_estimate, runner
from slmctl.pipeline.estimates import KnownSizes
from slmctl.pipeline.graph import PREPARED, Project
from slmctl.stages.finetune.stage import Finetune, computed_records

INCUMBENT = "slmctl.yaml"  # the name of the candidate that changes nothing
# Keys that validation loss cannot choose, each with the reason.
NOT_SWEPT = {
    "seed": "it is no setting: every candidate is trained with several seeds",
    "train_share": "--set finetune.train_share sets it for all trials",
    "label_smoothing": "validation loss punishes smoothing whatever the answers are",
    "max_length": "it changes the validation rows",
    "too_long": "it changes the validation rows",
}

Read = Callable[[Sequence[str]], config.Config]  # the config with more overrides, such as finetune.epochs=2


@dataclass(frozen=True)
class SweepCandidate:
    """Settings to try: keys of slmctl.yaml with their values as YAML text, and the section with these applied.

    The incumbent, the section of today, has no values.
    """

    values: Mapping[str, str]
    section: FinetuneConfig

    @property
    def name(self) -> str:
        """`learning_rate=8e-4 lora.rank=32`."""
        return " ".join(f"{key.removeprefix('finetune.')}={value}" for key, value in self.values.items()) or INCUMBENT


@dataclass(frozen=True)
class Trial:
    """One training of a sweep; `path` is the adapter's, relative to the project."""

    candidate: str
    seed: int
    path: str
    loss: float


@dataclass(frozen=True)
class SweepResult:
    """All trials of a sweep, and the choice among its candidates."""

    trials: Sequence[Trial]
    choice: TrialChoice
    chosen: SweepCandidate  # the settings of today unless others are better by more than chance

    def to_json(self) -> JsonObject:
        """The result as JSON values."""
        return {
            "chosen": dict(self.chosen.values),
            "trials": [asdict(trial) for trial in self.trials],
            "candidates": [
                {
                    "candidate": verdict.candidate.name,
                    "losses": verdict.candidate.losses,
                    "gain": verdict.gain.mean,
                    "standard_error": None if verdict.gain.error == np.inf else verdict.gain.error,
                    "gain_at_least": None if verdict.bound == -np.inf else verdict.bound,
                    "better": verdict.better,
                }
                for verdict in self.choice.verdicts
            ],
        }


def candidates(read: Read, space: Sequence[str]) -> list[SweepCandidate]:
    """Every combination of the values in a space, the settings of today first.

    Args:
        read: Reads the config.
        space: `finetune.learning_rate=2e-4,4e-4`, one text a key.

    Raises:
        UsageError: A key or value cannot be swept, or the space holds nothing but the settings of today.
    """
    today = read([]).finetune
    axes = [_axis(text) for text in space]
    if len({key for key, _ in axes}) < len(axes):
        raise UsageError("a key stands twice", hint="finetune.lora.rank=16,32 tries both values")
    tried = [SweepCandidate({}, today)]
    for combination in itertools.product(*(values for _, values in axes)):
        values = {key: value for (key, _), value in zip(axes, combination, strict=True)}
        changed = {key: value for key, value in values.items() if read([f"{key}={value}"]).finetune != today}
        candidate = _candidate(read, today, changed)
        if all(candidate.section != other.section for other in tried):
            tried.append(candidate)
    if len(tried) == 1:
        raise UsageError(
            "these values are nothing but the settings of today", hint="finetune.learning_rate=2e-4,4e-4,8e-4"
        )
    return tried


def _axis(text: str) -> tuple[str, list[str]]:
    """A key and its values, as YAML."""
    key, sign, values = text.partition("=")
    name = key.removeprefix("finetune.")
    if not sign or name == key:
        raise UsageError(f"'{text[:200]}' is no key of finetune with its values", hint="finetune.lora.rank=16,32")
    field = FinetuneConfig.model_fields.get(name)
    reason = NOT_SWEPT.get(name, "")
    if field is not None and any(isinstance(mark, Outside) for mark in field.metadata):
        reason = "it does not change the result"
    if reason:
        raise UsageError(f"{key} cannot be swept: {reason}", hint="--set sets a key for all trials")
    return key, config.listed(values)


def _candidate(read: Read, today: FinetuneConfig, values: Mapping[str, str]) -> SweepCandidate:
    """A candidate; where the rank alone changes, alpha follows, so that the scale of the update stays."""
    values, rank, alpha = dict(values), "finetune.lora.rank", "finetune.lora.alpha"
    if rank in values and alpha not in values:
        read_rank = read([f"{rank}={values[rank]}"]).finetune.lora.rank  # 32.0 is 32, which int() does not read
        values[alpha] = f"{today.lora.alpha * read_rank / today.lora.rank:g}"
    return SweepCandidate(values, read([f"{key}={value}" for key, value in values.items()]).finetune)


def require_validation(project: Project) -> None:
    """Refuse a sweep on too few validation rows to distinguish settings.

    Raises:
        DataError: There are fewer than `trial_choice.MIN_RECORDS`.
    """
    counted = row_estimate.of(project)
    if counted is not None and counted.validation < trial_choice.MIN_RECORDS:
        raise DataError(
            f"{counted.validation} validation rows are too few to tell settings apart: a sweep needs "
            f"{trial_choice.MIN_RECORDS} and more",
            hint="prepare.splits.validation: 0.2",
        )


def seconds(project: Project, tried: Sequence[SweepCandidate], rates: Mapping[str, float]) -> list[float | None]:
    """Seconds of one training of each candidate, None if unknown; `rates` as in `plan.plan`."""
    shape, rows = plan.shape_of_base(project), row_estimate.of(project)
    settings = (project.config.model_copy(update={"finetune": candidate.section}) for candidate in tried)
    return [Finetune(project).cost(KnownSizes(each, shape, rows, rates)).seconds for each in settings]


def run(project: Project, tried: Sequence[SweepCandidate], *, seeds: int, say: Callable[[str], None]) -> SweepResult:
    """Train every candidate with every seed, and choose; trials that exist are not trained again.

    Args:
        project: With its base and its data set.
        tried: The candidates, the settings of today first.
        say: Gets a line before each trial.

    Raises:
        What a training raises.
    """
    tried = _distinct(project, tried)
    trials, measured = [], []
    for candidate in tried:
        blocks = []
        for seed in range(candidate.section.seed, candidate.section.seed + seeds):
            say(f"trial {candidate.name}, seed {seed}")
            section = candidate.section.model_copy(update={"seed": seed})
            trial = replace(project, config=project.config.model_copy(update={"finetune": section}))
            outcome = runner.make(trial, "finetune")
            made = outcome.artifact
            Finetune(trial).after(made, current=outcome.current)
            gc.collect()  # of the model, before the next one is loaded
            path = str(made.path.relative_to(project.root))
            trials.append(Trial(candidate.name, seed, path, made.metrics["validation_loss"]))
            blocks.append(np.array(made.metrics["validation_blocks"], np.float64))  # (blocks, 3)
        measured.append(Measured(candidate.name, _cost(project, candidate), blocks))
    choice = trial_choice.choose(measured[0], measured[1:])
    by_name = {candidate.name: candidate for candidate in tried}
    return SweepResult(trials, choice, by_name[choice.chosen.name])


def _distinct(project: Project, tried: Sequence[SweepCandidate]) -> list[SweepCandidate]:
    """The candidates with numbers in place of `auto`, each recipe once."""
    distinct: list[SweepCandidate] = []
    for candidate in tried:
        section = Finetune(project).completed(candidate.section)
        if all(section != other.section for other in distinct):
            distinct.append(replace(candidate, section=section))
    return distinct


def _cost(project: Project, candidate: SweepCandidate) -> tuple[float, ...]:
    """The order of candidates by cost: rows computed, then rank, then how many keys change."""
    facts = project.artifact(PREPARED).metrics
    rows = computed_records(candidate.section, facts["train"], facts["validation"])
    return rows, candidate.section.lora.rank, len(candidate.values)
