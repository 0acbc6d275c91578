"""The command `watch`: how often watch is silent, how soon it finds new intents, whether its interval holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import result
from benchmarks.wheel import row
from benchmarks.wheel_traffic import MONTH, NEW_INTENTS, NEW_SHARE, Answers, Flags, Served, served
from slmctl.metrics import drift
from slmctl.production.records import CollectedRow, Review
from slmctl.watch import alarms, figures
from slmctl.watch.alarms import Alarm
from slmctl.watch.traffic import DAY_S, Traffic, seconds_of, time_of

MODELS = 5  # each with other new intents
MONTHS, RUNS, SIMULATIONS = 100, 100, 200
BEGIN, APART_S = seconds_of("2026-09-01"), 30 * DAY_S / MONTH
UNIFORM = 0.05  # share of the answers that is collected by chance, and reviewed
PACKAGES = ("scikit-learn", "numpy")


def run(arguments: Sequence[str]) -> Path:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wheel watch", description=__doc__)
    parser.add_argument("folder", type=Path, help="CLINC150")
    folder = parser.parse_args(arguments).folder
    models = []
    for seed in range(MODELS):
        models.append(served(folder, seed))
        sys.stderr.write(f"model {seed}: accuracy {models[-1].accuracy:.3f}\n")
    silent = [not month(models[k % MODELS], seed=k) for k in range(MONTHS)]
    sys.stderr.write(f"silent: {sum(silent)} of {MONTHS}\n")
    found = [arrival(models[k % MODELS], seed=1000 + k) for k in range(RUNS)]
    covered = [coverage(models[k % MODELS], seed=2000 + k, new=k % 2 * NEW_SHARE) for k in range(SIMULATIONS)]
    return result.write(
        "wheel-watch", "python -m benchmarks.wheel watch CLINC150", [*_rows(silent, found, covered)], PACKAGES,
        models=[_about(model) for model in models], month=MONTH, new_intents=NEW_INTENTS, new_share=NEW_SHARE,
        collected=UNIFORM, delays=sorted(delay for delay, _ in found if delay is not None),
        within_500=sum(delay is not None and delay <= 500 for delay, _ in found) / len(found),
        interval_width=float(np.mean([width for _, width, _ in covered])),
        estimated_error=float(np.mean([error for _, _, error in covered[::2]])),
        estimated_error_new=float(np.mean([error for _, _, error in covered[1::2]])),
        missed=sum(delay is None for delay, _ in found),
        first_signal={name: sum(name == signal for _, signal in found) for name in sorted({s for _, s in found})},
    )  # fmt: skip


def _rows(
    silent: Sequence[bool], found: Sequence[tuple[int | None, str]], covered: Sequence[tuple[bool, float, float]]
) -> Iterator[result.Row]:
    delays = [delay if delay is not None else np.inf for delay, _ in found]
    yield row(f"stationary months without an alarm, of {len(silent)}", sum(silent), ">= 95")
    median, late = (float(np.quantile(delays, share, method="higher")) for share in (0.5, 0.9))
    yield row("requests until new intents are noticed, median", min(median, MONTH), "<= 500")
    yield row("the same, 90th percentile", min(late, MONTH), "<= 500")
    holds = [held for held, _, _ in covered]
    yield row(f"verified: intervals that hold the truth, of {len(holds)}", sum(holds), f">= {0.95 * len(holds):g}")


def _about(model: Served) -> dict[str, float]:
    """A model's figures on its own subjects and on the new ones."""
    usual, new = model.usual, model.new
    lower = (new.p_correct[:, None] < usual.p_correct[None]).mean() + (
        new.p_correct[:, None] == usual.p_correct[None]
    ).mean() / 2
    return {
        "accuracy": model.accuracy, "p_correct": float(usual.p_correct.mean()), "kept": float(usual.kept.mean()),
        "novel": float(usual.novel.mean()), "new_p_correct": float(new.p_correct.mean()),
        "new_kept": float(new.kept.mean()), "new_novel": float(new.novel.mean()), "auroc_p_correct": float(lower),
    }  # fmt: skip


def drawn(model: Served, count: int, random: np.random.Generator, *, new: float = 0.0) -> Answers:
    """Requests that were drawn from the recorded answers, a share of them from the new subjects."""
    usual, later = model.usual, model.new
    places = random.integers(0, len(usual), count)
    others, is_new = random.integers(0, len(later), count), random.random(count) < new
    return Answers(**{
        name: np.where(is_new, getattr(later, name)[others], getattr(usual, name)[places])
        for name in Answers.__dataclass_fields__
    })  # fmt: skip


def traffic_of(parts: Sequence[Answers]) -> Traffic:
    """The requests as a log of decisions has them."""
    p_correct, kept, novel, length = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("p_correct", "kept", "novel", "length")
    )
    seconds = BEGIN + APART_S * np.arange(len(kept))
    return Traffic(seconds, p_correct, kept, ~kept, novel.astype(np.float64), length, length, np.ones(len(kept)))


def month(model: Served, *, seed: int) -> list[Alarm]:
    """The alarms of a month without a change, after the requests that it is compared with."""
    traffic = traffic_of([drawn(model, drift.REFERENCE + MONTH, np.random.default_rng(seed))])
    return [alarm for course in alarms.examine(traffic, (), standing_since=0.0) for alarm in course.alarms]


def arrival(model: Served, *, seed: int) -> tuple[int | None, str]:
    """After two months, the number of requests until new intents are noticed, None for never; and by which signal."""
    random, before = np.random.default_rng(seed), 2 * MONTH
    traffic = traffic_of([drawn(model, before, random), drawn(model, MONTH, random, new=NEW_SHARE)])
    begin = float(traffic.seconds[before])
    raised = [alarm for course in alarms.examine(traffic, (), standing_since=0.0) for alarm in course.alarms]
    later = [(seconds_of(alarm.noticed), alarm.signal) for alarm in raised if seconds_of(alarm.noticed) >= begin]
    if not later:
        return None, "none"
    noticed, signal = min(later)
    return round((noticed - begin) / APART_S) + 1, signal


def coverage(model: Served, *, seed: int, new: float) -> tuple[bool, float, float]:
    """Of a month: its true accuracy lies in the verified interval, the interval's width, the estimate's error."""
    random = np.random.default_rng(seed)
    answers = drawn(model, MONTH, random, new=new)
    truth = float(answers.right.mean())
    rows, reviews = reviewed(answers, random.random(MONTH) < UNIFORM)
    traffic = traffic_of([answers])
    window = figures.window_figures(traffic, rows, reviews, begin=BEGIN, end=BEGIN + 30 * DAY_S)
    assert window.verified is not None and window.estimated is not None
    uniform = window.verified.uniform
    return uniform.low <= truth <= uniform.high, uniform.high - uniform.low, abs(window.estimated - truth)


def reviewed(answers: Answers, collected: Flags) -> tuple[list[CollectedRow], list[Review]]:
    """The rows that were collected by chance, and the decisions of a reviewer who knows the right labels."""
    rows, reviews = [], []
    for n in np.flatnonzero(collected).tolist():
        time, label, right = time_of(BEGIN + APART_S * n), str(answers.labels[n]), bool(answers.right[n])
        rows.append(CollectedRow(
            f"{n}", time, [], label, reason="confident" if answers.kept[n] else "unsure",
            p_correct=float(answers.p_correct[n]), labels={label: 1.0}, probability=UNIFORM, uniform=True,
            uniform_probability=UNIFORM,
        ))  # fmt: skip
        decision, after = ("accepted", label) if right else ("corrected", "another")
        reviews.append(Review(
            f"{n}", time, "script", decision, [], label, after, "uniform", UNIFORM, seen=time,  # type: ignore[arg-type]
        ))  # fmt: skip
    return rows, reviews
