"""Trials of settings within a budget of time -> the settings that lower validation loss by more than chance.

Every trial is an adapter like any other: cached, resumed after a kill, listed. What a sweep has decided stands in a
journal, `runs/.sweeps/<id>.json`, so the same command goes on where it was stopped. Trials read the training and the
validation records; nothing here reads those of the test.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from slmctl import config, console
from slmctl.artifacts import artifact, atomic, locks
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.artifacts.typed_json import read_typed
from slmctl.errors import DataError, FullError, IntegrityError, StageError, UsageError
from slmctl.metrics import trial_choice
from slmctl.metrics.trial_choice import Measured, TrialChoice
from slmctl.pipeline import chains, preflight, row_estimate, stage_estimates, sweep_plan
from slmctl.pipeline.resolve import Project, resolve_stage
from slmctl.pipeline.stage_estimates import TrainingRate
from slmctl.pipeline.sweep_plan import SEEDS, Rung, SweepCandidate, TrialRows

FOLDER = ".sweeps"
SPARE = 0.9  # of the budget is planned with: times are estimates


@dataclass(frozen=True)
class SweepRequest:
    """All that a sweep depends on.

    Attributes:
        tried: The candidates, the settings of today first.
        rows: Records that trials train and validate on.
        rate: Time and disk of a training, as far as they are known before.
        budget_s: Seconds that all trials may take together.
    """

    project: Project
    tried: Sequence[SweepCandidate]
    rows: TrialRows
    rate: TrainingRate
    budget_s: float

    @property
    def by_name(self) -> Mapping[str, SweepCandidate]:
        return {candidate.name: candidate for candidate in self.tried}

    def planned(self, pace: float = 1.0, spent: float = 0.0, done: int = 0) -> list[Rung] | None:
        """The rungs with the largest shares that the budget holds; None where it does not hold the smallest.

        Args:
            pace: Measured over estimated time.
            spent: Seconds of the trials of the rungs that are done.
            done: Number of these.
        """
        for share in sweep_plan.shares(self.rows):
            rungs = self.rungs(share, pace)
            seconds = sweep_plan.seconds_of(rungs[done:])
            if seconds is not None and seconds <= SPARE * (self.budget_s - spent):
                return rungs
        return None

    def rungs(self, share: float, pace: float = 1.0) -> list[Rung]:
        """The rungs of a share."""
        seconds = self.rate.row_seconds
        return sweep_plan.rungs(self.tried, self.rows, share, None if seconds is None else seconds * pace)

    def smallest(self, pace: float = 1.0) -> list[Rung]:
        return self.rungs(sweep_plan.shares(self.rows)[-1], pace)


@dataclass
class _Round:
    """A rung as it was decided."""

    share: float
    seeds: int
    candidates: list[str]


@dataclass
class Trial:
    """One training of a sweep.

    Attributes:
        path: The adapter, relative to the project; empty where it failed.
        seconds: Time that this sweep spent on it; 0 where the adapter existed before.
        fault: Why it failed.
    """

    candidate: str
    share: float
    seed: int
    path: str
    seconds: float
    loss: float | None = None
    fault: str = ""


@dataclass
class _Journal:
    """Decisions and trials of a sweep; a file below `runs/.sweeps/`."""

    rounds: list[_Round]
    trials: list[Trial]


@dataclass(frozen=True)
class SweepResult:
    """A sweep that came to its end, or to that of its budget.

    Attributes:
        rounds: The trials, rung by rung, the finalists last.
        choice: None where the budget ended before two finalists were trained.
        seconds: Time of all trials.
    """

    request: SweepRequest
    rounds: Sequence[Sequence[Trial]]
    choice: TrialChoice | None
    seconds: float

    @property
    def chosen(self) -> SweepCandidate:
        """The candidate to go on with; the settings of today unless another one is better."""
        return self.request.by_name[self.choice.chosen.name] if self.choice else self.request.tried[0]

    @property
    def trials(self) -> list[Trial]:
        return [trial for trials in self.rounds for trial in trials]

    def to_json(self) -> JsonObject:
        """The result as JSON values."""
        verdicts = self.choice.verdicts if self.choice else ()
        return {
            "chosen": dict(self.chosen.values),
            "seconds": round(self.seconds, 1),
            "budget_s": self.request.budget_s,
            "candidates": [candidate.name for candidate in self.request.tried],
            "trials": [asdict(trial) for trial in self.trials],
            "finalists": [
                {
                    "candidate": verdict.finalist.name,
                    "losses": verdict.finalist.losses,
                    "gain": verdict.gain.mean,
                    "standard_error": None if verdict.gain.error == np.inf else verdict.gain.error,
                    "gain_at_least": None if verdict.bound == -np.inf else verdict.bound,
                    "better": verdict.better,
                }
                for verdict in verdicts
            ],
        }


def request(
    project: Project, read: sweep_plan.Read, space: Sequence[str], budget_s: float, rates: Mapping[str, float]
) -> SweepRequest:
    """A sweep that can work, as far as that is known before a trial.

    Args:
        project: Where.
        read: Reads its config with more overrides.
        space: Values to try, `finetune.lora.rank=16,32`; a default space where it is empty.
        budget_s: Seconds that all trials may take together.
        rates: GFLOP/s of matrix products by data type.

    Raises:
        DataError: The rows cannot be counted, or too few of them validate.
        FullError: The adapters of all trials do not fit on the disk.
        UsageError: A value is not valid, or the budget does not hold the smallest plan.
    """
    section = project.config.finetune
    if section.train_share < 1:
        raise UsageError("a sweep sets finetune.train_share itself", hint="remove it from slmctl.yaml")
    tried = sweep_plan.candidates(read, space or sweep_plan.default_space(section))
    counted = row_estimate.of(project)
    if counted is None:
        raise DataError("the rows of the sources cannot be counted before they are read", hint="slmctl prepare")
    if counted.validation < trial_choice.MIN_RECORDS:
        raise DataError(
            f"{counted.validation} validation rows are too few to tell settings apart: a sweep needs "
            f"{trial_choice.MIN_RECORDS} and more",
            hint="prepare.splits.validation: 0.2",
        )
    rate = preflight.training_rate(project, counted, rates)
    made = SweepRequest(project, tried, TrialRows(counted.train, counted.validation), rate, budget_s)
    if made.rate.row_seconds is not None and made.planned() is None:
        raise _too_little(made, 1.0)
    _require_disk(made)
    return made


def _too_little(made: SweepRequest, pace: float, spent: float = 0.0) -> UsageError:
    smallest = made.smallest(pace)
    needed = (sweep_plan.seconds_of(smallest) or 0.0) / SPARE
    minutes = int((needed + spent) // 60) + 1
    return UsageError(
        f"the smallest sweep of {len(made.tried)} candidates takes about {console.duration(needed)}, and "
        f"{console.duration(made.budget_s - spent)} are there for it",
        hint=f"--budget {minutes}m, or fewer values",
    )


def _require_disk(made: SweepRequest) -> None:
    """Raises FullError where the adapters of all trials, and the checkpoints of one, do not fit."""
    if made.rate.rank_bytes is None:
        return
    ranks = sorted((candidate.section.lora.rank for candidate in made.tried), reverse=True)
    trials = sum(sum(ranks[: rung.candidates]) * rung.seeds for rung in made.smallest())
    needed = made.rate.rank_bytes * (trials + stage_estimates.CHECKPOINT_WEIGHTS // 4 * ranks[0])
    free = shutil.disk_usage(made.project.root).free
    if preflight.SPARE * needed > free:
        raise FullError(
            f"the adapters of all trials take about {console.size(needed)} of disk, and {console.size(free)} are free",
            hint="slmctl gc lists what nothing needs; or sweep fewer values",
        )


def run(made: SweepRequest, say: Callable[[str], None]) -> SweepResult:
    """Train the candidates rung by rung, and choose among the finalists.

    Args:
        made: The sweep; base and data set exist.
        say: Gets a line before each rung and each trial.

    Raises:
        LockedError: The same sweep runs in another process.
        UsageError: The budget does not hold what is left, now that trials were timed.
        And what a training raises with the settings of today; one that fails with others leaves the sweep.
    """
    return _Sweep(made, say).run()


class _Sweep:
    """A sweep while it runs, with its journal."""

    def __init__(self, made: SweepRequest, say: Callable[[str], None]) -> None:
        self.made, self.say, self.project = made, say, made.project
        self.path = self.project.runs / FOLDER / f"{_identity(made)}.json"
        self.journal = _Journal([], [])

    def run(self) -> SweepResult:
        lock = self.project.runs / ".locks" / f"sweep-{self.path.stem}"
        with locks.lock(lock, wait=self.project.wait, on_wait=self.project.on_wait):
            if self.path.exists():
                self.journal = _read(self.path)
            counts = sweep_plan.sizes(len(self.made.tried))
            going_on = [candidate.name for candidate in self.made.tried]
            for number in range(len(counts)):
                if number == len(self.journal.rounds) and not self._decide(number, going_on):
                    break
                if not self._train(number):
                    break
                if number < len(counts) - 1:
                    measured = list(self._measured(number))
                    going_on = [each.name for each in trial_choice.going_on(measured, counts[number + 1])]
                    if number == len(counts) - 2:  # the finalists: the incumbent and the best others
                        going_on = [name for name in going_on if name != sweep_plan.INCUMBENT]
                        going_on = [sweep_plan.INCUMBENT, *going_on[: counts[-1] - 1]]
            return self._result(len(counts))

    def _decide(self, number: int, names: Sequence[str]) -> bool:
        """Fix the share of a rung, the largest that the budget still holds for it and those that follow.

        Where it holds the finalists on no share, the best challenger alone stands beside the settings of today.

        Returns:
            False where it holds none of them any more.
        """
        if self.made.rate.row_seconds is None:
            self._time()
        rungs = self.made.planned(self._pace(), self._spent(), number)
        if rungs is None and number == 0:
            raise _too_little(self.made, self._pace(), self._spent())
        if rungs is not None:
            decided = _Round(rungs[number].share, rungs[number].seeds, list(names))
        else:
            decided = _Round(self.made.smallest()[number].share, SEEDS, list(names[:2]))
            pair = sum(self._expected(self.made.by_name[name], decided.share) for name in decided.candidates)
            if number < len(self.made.smallest()) - 1 or self._spent() + SEEDS * pair > self.made.budget_s:
                self.say("the budget is used up before the finalists: trials took longer than estimated")
                return False
        self.journal.rounds.append(decided)
        self._save()
        return True

    def _time(self) -> None:
        """Learn the time of a row by a trial of the incumbent, where it is not known before."""
        rung = self.made.smallest()[0]
        self.say("timing a trial with the settings of today")
        trial = self._trial(self.made.tried[0], rung.share, self.made.tried[0].section.seed)
        computed = self.made.rows.computed(self.made.tried[0], rung.share)
        seconds = trial.seconds or artifact.load(self.project.root / trial.path).manifest.seconds
        self.made = replace(self.made, rate=replace(self.made.rate, row_seconds=seconds / computed))

    def _train(self, number: int) -> bool:
        """Run the trials of a rung that are missing; False where the budget ended before."""
        decided, count = self.journal.rounds[number], len(sweep_plan.sizes(len(self.made.tried)))
        rung = "finalists" if number == count - 1 else f"rung {number + 1} of {count}"
        self.say(f"{rung}: {len(decided.candidates)} candidates on {console.percent(decided.share, 0)} of the rows")
        while missing := list(self._missing(decided)):
            needed = decided.candidates[:2] if number == count - 1 else decided.candidates
            if self._made_smaller(number, [name for name, _ in missing if name in needed]):
                decided = self.journal.rounds[number]
                continue
            name, seed = missing[0]
            candidate = self.made.by_name[name]
            expected = self._expected(candidate, decided.share)
            if self._spent() + expected > self.made.budget_s:
                self.say("the budget is used up: what was trained until here is compared")
                return False
            self.say(f"trial {name}, seed {seed}: about {console.duration(expected)}")
            self._trial(candidate, decided.share, seed)
        return True

    def _made_smaller(self, number: int, left: Sequence[str]) -> bool:
        """Take a smaller share for a rung whose trials take so long that it would end without a comparison.

        Args:
            left: The candidates of the trials that a comparison still needs.
        """
        decided = self.journal.rounds[number]
        if self._spent() + sum(self._expected(self.made.by_name[name], decided.share) for name in left) <= (
            self.made.budget_s
        ):
            return False
        rungs = self.made.planned(self._pace(), self._spent(), number)
        if rungs is None or rungs[number].share >= decided.share:
            return False
        self.journal.rounds[number] = replace(decided, share=rungs[number].share)
        self._save()
        self.say(f"trials take longer than estimated: on {console.percent(rungs[number].share, 0)} of the rows instead")
        return True

    def _missing(self, decided: _Round) -> Iterator[tuple[str, int]]:
        """The trials of a rung that did not run yet."""
        return (pair for pair in self._pairs(decided) if self._done(pair[0], decided.share, pair[1]) is None)

    def _pairs(self, decided: _Round) -> Iterator[tuple[str, int]]:
        """Candidates with their seeds; each candidate whole before the next one."""
        first = self.made.tried[0].section.seed
        return ((name, first + k) for name in decided.candidates for k in range(decided.seeds))

    def _trial(self, candidate: SweepCandidate, share: float, seed: int) -> Trial:
        """Train, and write down what came out."""
        section = self.made.rows.section(candidate, share, seed)
        try:
            outcome = chains.run_stage(self.project, "finetune", section)
        except StageError as error:
            if candidate is self.made.tried[0]:
                raise
            self.say(f"  left out: {error.message}")
            trial = Trial(candidate.name, share, seed, "", 0.0, fault=error.message)
        else:
            made = outcome.artifact
            trial = Trial(
                candidate.name, share, seed, str(made.path.relative_to(self.project.root)),
                0.0 if outcome.current else made.manifest.seconds, made.metrics["validation_loss"],
            )  # fmt: skip
        gc.collect()  # of the model, before the next one is loaded
        self.journal.trials.append(trial)
        self._save()
        return trial

    def _done(self, name: str, share: float, seed: int) -> Trial | None:
        """The trial, if it ran and its adapter is still there."""
        place = (name, share, seed)
        for trial in self.journal.trials:
            if (trial.candidate, trial.share, trial.seed) == place and (trial.fault or self._exists(trial)):
                return trial
        return None

    def _exists(self, trial: Trial) -> bool:
        return (self.project.root / trial.path / artifact.MANIFEST).exists()

    def _measured(self, number: int) -> Iterator[Measured]:
        """The candidates of a rung of which every seed was trained."""
        decided = self.journal.rounds[number]
        first = self.made.tried[0].section.seed
        for name in decided.candidates:
            trials = [self._done(name, decided.share, first + k) for k in range(decided.seeds)]
            made = [trial for trial in trials if trial is not None and not trial.fault]
            if len(made) == decided.seeds:
                adapters = [artifact.load(self.project.root / trial.path) for trial in made]
                yield Measured(name, self._cost(name), [_blocks(adapter) for adapter in adapters])

    def _cost(self, name: str) -> tuple[float, ...]:
        """The order of candidates by cost: rows computed, then rank, then how many keys change."""
        candidate = self.made.by_name[name]
        return self.made.rows.computed(candidate, 1), candidate.section.lora.rank, len(candidate.values)

    def _result(self, count: int) -> SweepResult:
        rounds = [
            [trial for pair in self._pairs(decided) if (trial := self._done(pair[0], decided.share, pair[1]))]
            for decided in self.journal.rounds
        ]
        choice = None
        if len(self.journal.rounds) == count:
            finalists = {each.name: each for each in self._measured(count - 1)}
            incumbent = finalists.pop(sweep_plan.INCUMBENT, None)
            if incumbent is not None and finalists:
                choice = trial_choice.choose(incumbent, list(finalists.values()), len(self.made.tried) - 1)
        return SweepResult(self.made, rounds, choice, self._spent())

    # Time

    def _spent(self) -> float:
        return sum(trial.seconds for trial in self.journal.trials)

    def _pace(self) -> float:
        """Measured over estimated time of the trials that this sweep trained; 1 before the first."""
        timed = [trial for trial in self.journal.trials if trial.seconds]
        expected = sum(self._expected(self.made.by_name[each.candidate], each.share, pace=1.0) for each in timed)
        return sum(trial.seconds for trial in timed) / expected if timed else 1.0

    def _expected(self, candidate: SweepCandidate, share: float, pace: float | None = None) -> float:
        seconds = self.made.rate.row_seconds or 0.0
        return (self._pace() if pace is None else pace) * (
            sweep_plan.SETUP_S + seconds * self.made.rows.computed(candidate, share)
        )

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(self.path) as draft:
            draft.write_bytes(artifact.canonical(asdict(self.journal)))


def _read(path: Path) -> _Journal:
    fields = read_typed(path, _Journal, hint=f"rm {path} begins the sweep anew; its trials are kept")
    journal: _Journal = TypeAdapter(_Journal).validate_python(fields)
    return journal


def _identity(made: SweepRequest) -> str:
    """Digits that name a sweep: the same for the same candidates, budget, base and data."""
    stage = resolve_stage(made.project, "finetune")
    recipes = [config.recipe(candidate.section) for candidate in made.tried]
    raw = artifact.canonical([recipes, made.budget_s, stage.digests, stage.stage.id, SEEDS])
    return artifact.sha256_bytes(raw).removeprefix("sha256:")[:12]


def _blocks(adapter: Artifact) -> np.ndarray:
    """The validation of an adapter by blocks of records, (blocks, 3)."""
    blocks = adapter.metrics.get("validation_blocks")
    if not blocks:
        raise IntegrityError(
            f"{adapter.path} does not say its validation loss by blocks of records: an earlier slmctl trained it",
            hint=f"rm -r {adapter.path}, and the same command trains it again",
        )
    return np.array(blocks, np.float64)
