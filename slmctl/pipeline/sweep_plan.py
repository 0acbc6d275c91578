"""A space of settings and a budget of time -> the rungs of a sweep: how many candidates train on which share of rows.

Successive halving (Jamieson and Talwalkar 2016): all candidates train on a small share of the records, the best third
of them on three times as much, and so on. The finalists train with several seeds, the settings of today among them.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from slmctl import config
from slmctl.config import FinetuneConfig
from slmctl.config.fields import Outside
from slmctl.errors import UsageError
from slmctl.pipeline import stage_estimates

INCUMBENT = "slmctl.yaml"  # the name of the candidate that changes nothing
KEPT = 3  # of so many candidates one goes on, to so many times the records
CHALLENGERS = 2  # finalists beside the incumbent
SEEDS = 2  # of each finalist
MOST_CANDIDATES = 27  # of a larger space a part is drawn by hash
# Of the records, on which finalists train.
SHARES = tuple(1 / part for part in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64))
LEAST_ROWS = 240  # records of the smallest trial: 15 steps an epoch with the default batch
VALIDATIONS = 2  # of a trial on a share of the records, where they would cost more than the training
SETUP_S = 8.0  # of a trial: the base is loaded and checked
# Keys that are no setting to choose by validation loss.
NOT_SWEPT = {
    "seed": "it is no setting: the finalists are trained with several seeds",
    "train_share": "the sweep sets it",
    "label_smoothing": "validation loss punishes smoothing whatever the answers are",
    "max_length": "it changes the validation rows",
    "too_long": "it changes the validation rows",
}

Read = Callable[[Sequence[str]], config.Config]  # the config with more overrides, such as finetune.epochs=2


@dataclass(frozen=True)
class SweepCandidate:
    """Settings to try: keys of slmctl.yaml with the YAML text of their values, and the section with them.

    The incumbent, which is the section as it is, has none.
    """

    values: Mapping[str, str]
    section: FinetuneConfig

    @property
    def name(self) -> str:
        """`learning_rate=8e-4 lora.rank=32`."""
        return " ".join(f"{key.removeprefix('finetune.')}={value}" for key, value in self.values.items()) or INCUMBENT


@dataclass(frozen=True)
class TrialRows:
    """Records that trials train and validate on."""

    train: int
    validation: int

    def section(self, candidate: SweepCandidate, share: float, seed: int) -> FinetuneConfig:
        """The section of one trial; with the whole of the records and the seed of today it is the candidate's own."""
        section = candidate.section.model_copy(update={"seed": seed})
        if share >= 1:
            return section
        steps = self.steps(section, share)
        update: dict[str, float | int] = {
            "train_share": share,
            "validate_every": max(math.ceil(1.05 * steps / VALIDATIONS), 1),  # the share is drawn, so not exact
        }
        if section.max_steps:
            update["max_steps"] = steps
        return section.model_copy(update=update)

    def steps(self, section: FinetuneConfig, share: float) -> int:
        """Optimizer steps of a candidate on a share of the records."""
        if section.max_steps:
            return max(round(section.max_steps * share), 1)
        return math.ceil(math.ceil(self.train * share / section.batch_size) * section.epochs)

    def computed(self, candidate: SweepCandidate, share: float) -> float:
        """Records that one trial computes, see `stage_estimates.computed_records`."""
        return stage_estimates.computed_records(self.section(candidate, share, 0), self.train, self.validation)


@dataclass(frozen=True)
class Rung:
    """One round of a sweep.

    Attributes:
        share: Of the training records.
        candidates: How many take part.
        seeds: Trials of each of them.
        seconds: What it takes at most, by the rows that the longest trials compute; None where no time is known.
    """

    share: float
    candidates: int
    seeds: int
    seconds: float | None

    @property
    def trials(self) -> int:
        return self.candidates * self.seeds


def default_space(section: FinetuneConfig) -> list[str]:
    """Values around those of today, of the settings that mattered most on several tasks."""
    rate, rank = section.learning_rate, section.lora.rank
    length = "max_steps" if section.max_steps else "epochs"
    passes = section.max_steps or section.epochs
    return [
        f"finetune.learning_rate={rate / 2:g},{rate:g},{2 * rate:g}",
        f"finetune.lora.rank={rank},{2 * rank}",
        f"finetune.{length}={passes:g},{2 * passes:g}",
    ]


def candidates(read: Read, space: Sequence[str]) -> list[SweepCandidate]:
    """Every combination of the values in a space, the settings of today first.

    Args:
        read: Reads the config.
        space: `finetune.learning_rate=2e-4,4e-4`, one text a key.

    Raises:
        UsageError: A key is not one to sweep, a value is not valid, or nothing differs from today.
    """
    today = read([]).finetune
    axes = [_axis(read, today, text) for text in space]
    if len({key for key, _ in axes}) < len(axes):
        raise UsageError("a key stands twice in the space", hint="finetune.learning_rate=2e-4,4e-4,8e-4")
    combined = [
        {key: value for (key, _), value in zip(axes, values, strict=True) if value is not None}
        for values in itertools.product(*(values for _, values in axes))
    ]
    grid = list({tuple(values.items()): _candidate(read, today, values) for values in combined}.values())
    changed = [candidate for candidate in grid if candidate.section != today]
    if not changed:
        raise UsageError("the space holds nothing but the settings of today", hint="name another value of a key")
    if len(changed) >= MOST_CANDIDATES:
        drawn = sorted(changed, key=lambda candidate: hashlib.sha256(candidate.name.encode()).digest())
        changed = [each for each in changed if each in drawn[: MOST_CANDIDATES - 1]]
    return [SweepCandidate({}, today), *changed]


def _axis(read: Read, today: FinetuneConfig, text: str) -> tuple[str, list[str | None]]:
    """A key and its values, as YAML; None for that of today."""
    key, sign, values = text.partition("=")
    name = key.removeprefix("finetune.")
    if not sign or name == key:
        raise UsageError(f"'{text[:200]}' is no key of finetune with its values", hint="finetune.lora.rank=16,32")
    field = FinetuneConfig.model_fields.get(name)
    reason = NOT_SWEPT.get(name, "")
    if field is not None and any(isinstance(mark, Outside) for mark in field.metadata):
        reason = "it does not change the result"
    if reason:
        raise UsageError(f"{key} cannot be swept: {reason}", hint="--set sets it for all trials")
    alternatives = config.listed(values)
    return key, [None if read([f"{key}={value}"]).finetune == today else value for value in alternatives]


def _candidate(read: Read, today: FinetuneConfig, values: Mapping[str, str]) -> SweepCandidate:
    """A candidate; where the rank alone changes, alpha follows, so that the scale of the update stays."""
    values, rank, alpha = dict(values), "finetune.lora.rank", "finetune.lora.alpha"
    if rank in values and alpha not in values and not today.lora.rslora:
        values[alpha] = f"{today.lora.alpha * int(values[rank]) / today.lora.rank:g}"
    return SweepCandidate(values, read([f"{key}={value}" for key, value in values.items()]).finetune)


def sizes(count: int) -> list[int]:
    """Candidates in each rung of so many, finalists last."""
    rungs = []
    while count > CHALLENGERS + 1:
        rungs.append(count)
        count = math.ceil(count / KEPT)
    return [*rungs, min(max(count, CHALLENGERS + 1), rungs[0] if rungs else count)]


def rungs(tried: Sequence[SweepCandidate], rows: TrialRows, share: float, row_seconds: float | None) -> list[Rung]:
    """The rungs whose finalists train on `share` of the records.

    Args:
        tried: All candidates, the incumbent first.
        rows: The records.
        share: Of the training records.
        row_seconds: Time of a training record; None where it is not known.
    """
    counts = sizes(len(tried))
    made = []
    for number, count in enumerate(counts):
        last = number == len(counts) - 1
        part = share / KEPT ** (len(counts) - 1 - number)
        part = round(max(part, min(share, LEAST_ROWS / max(rows.train, 1))), 4)
        seconds = None
        if row_seconds is not None:
            times = [SETUP_S + row_seconds * rows.computed(candidate, part) for candidate in tried]
            others = sorted(times[1:] if last else times, reverse=True)
            seconds = SEEDS * (times[0] + sum(others[: count - 1])) if last else sum(others[:count])
        made.append(Rung(part, count, SEEDS if last else 1, seconds))
    return made


def shares(rows: TrialRows) -> list[float]:
    """The shares on which finalists may train, the largest first."""
    return [share for share in SHARES if share == 1 or share * rows.train >= LEAST_ROWS * KEPT]


def seconds_of(planned: Sequence[Rung]) -> float | None:
    """The time of all rungs together; None where no time is known."""
    times = [rung.seconds for rung in planned]
    return None if None in times else sum(filter(None, times))
