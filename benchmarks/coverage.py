"""How often a promise is broken, over many draws with the code that makes it.

python -m benchmarks.coverage [DRAWS] [groups | policies | first-look | costs | pairs | judge]: the
promises to all rows; or to rows that come in groups, of comparisons and gates, and of policies; or
of policies with a first step; or of policies with costs; or of judged pairs; or of a judge of
pairs.
"""

import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np

from benchmarks import program, result
from slmctl.config import CalibrateConfig, Costs, LabelConfig
from slmctl.errors import GateError
from slmctl.inference.escalation_policy import LINEAR, WORDS
from slmctl.init.proposal import surely_better
from slmctl.metrics import answer_score, error_threshold, judged_rate
from slmctl.metrics.answer_score import CalibrationRows
from slmctl.metrics.judged_rate import Agreement, CorrectedRate
from slmctl.metrics.statistics import (
    design_effect,
    difference_interval,
    drop_bound,
    mcnemar,
    percentiles,
    resamples,
    t_quantile,
)
from slmctl.metrics.win_rate import WinRate
from slmctl.stages.evaluate.scoring import Calibration
from slmctl.stages.finetune.trainer import AnswerTrainer
from slmctl.stages.label import acceptance, rows
from slmctl.stages.label.acceptance import LabelledRow
from slmctl.stages.label.rows import LabelRow
from slmctl.stages.label.teachers import Vote

TASK = {"task": {"kind": "extract", "schema": "s.json"}}


def text(draw: random.Random) -> str:
    return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(4))


def answered(row: LabelRow, draw: random.Random, *, is_wrong: bool) -> LabelledRow:
    """A row whose answer is "b" where it is wrong; four votes agree less often then."""
    own, other = ('"b"', 0.5) if is_wrong else ('"a"', 0.05)
    votes = [Vote(0, '"c"' if draw.random() < other else own, True, None) for _ in range(4)]
    return LabelledRow(row, votes, acceptance.choose("extract", votes))


def batch(size: int, draw: random.Random) -> bool:
    every = [
        answered(
            LabelRow("", "", text(draw), "", 0, '"a"', k % 10 < 3),
            draw,
            is_wrong=draw.random() < 0.08,
        )
        for k in range(300 + size)
    ]
    bound = acceptance.accept(LabelConfig.model_validate(TASK), every[300:], every[:300])
    wrong = sum(entry.answer != '"a"' for entry in every[300:] if entry.accepted)
    return not bound.reason and wrong > (bound.most_wrong or 0)


def near_copies(texts: int, error: float, draw: random.Random) -> bool:
    is_wrong = {text(draw): draw.random() < error for _ in range(texts)}
    with tempfile.TemporaryDirectory() as folder:
        gold, new = (program.Path(folder) / name for name in ("gold.csv", "new.csv"))
        program.write_csv(
            gold, [(f"{own} {text(draw)[:2]}", '"a"') for own in draw.choices([*is_wrong], k=480)]
        )
        program.write_csv(new, [(text(draw), "")])
        of = {"input": "text", "output": "category"}
        config = LabelConfig.model_validate(
            {**TASK, "gold": {"path": gold, **of}, "sources": [{"path": new, **of}]}
        )
        found = rows.read(config).gold
    made = [answered(row, random.Random(0), is_wrong=is_wrong[row.text[:27]]) for row in found]
    bound = acceptance.accept(config, [], made)
    return not bound.reason and bound.error_bound < error


def calibrated(draw: random.Random) -> bool:
    seeded = np.random.default_rng(draw.randrange(2**32))
    sure = 1 / (1 + np.exp(-np.abs(seeded.normal(3.0, 1.8, 600))))
    figure = Calibration(sure, seeded.random(600) < sure)
    return percentiles(np.concatenate([figure.over(weights) for weights in resamples(600)]))[0] > 0


def settled(validations: int, draw: random.Random) -> bool:
    seeded = np.random.default_rng(draw.randrange(2**32))
    nats = seeded.gamma(2, 10, 20) + seeded.normal(0, 1.5, (validations, 20))
    *earlier, last = [[(8, 10, float(each)) for each in one] for one in nats]
    best = min(earlier, key=lambda blocks: sum(loss for *_, loss in blocks))
    state = SimpleNamespace(log_history=[{"eval_loss": 1.0}] * validations)
    stub = SimpleNamespace(progress=SimpleNamespace(best_blocks=best), blocks=last, state=state)
    return AnswerTrainer.is_surely_worse(stub)  # type: ignore[arg-type] # what it reads of a trainer


def sizes(kind: str, count: int, seeded: np.random.Generator) -> np.ndarray:
    """Rows of each of `count` groups, ten in the mean; with Pareto's
    law one group may have half of them.
    """
    return {
        "even": np.full(count, 10),
        "Poisson": 1 + seeded.poisson(9, count),
        "Pareto": np.maximum(1, np.round(10 / 3 * (1 + seeded.pareto(1.5, count)))).astype(int),
    }[kind]


def compared(kind: str, count: int, gate: bool, draw: random.Random) -> bool:
    """Two equal models that differ on 12 % of the rows, each group in one
    direction: told apart, or past the gate.
    """
    seeded = np.random.default_rng(draw.randrange(2**32))
    groups = np.repeat(np.arange(count), sizes(kind, count, seeded))
    apart = (seeded.random(len(groups)) < 0.12) * seeded.choice([-1.0, 1.0], count)[groups]
    effect = design_effect(apart, groups)
    lost, won = int((apart < 0).sum()), int((apart > 0).sum())
    if gate:
        return (
            mcnemar(lost, won, effect) <= 0.05
            and drop_bound(lost / effect, won / effect, len(apart) / effect) <= 0
        )
    low, high = difference_interval(lost / effect, won / effect, len(apart) / effect)
    return low > 0 or high < 0


def answers(
    groups: np.ndarray, alike: float, seeded: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """How sure a model is of its answers, (n, 1), and which are right: 88 %.

    `alike`: correlation within a group of how sure an answer is, and of what makes it wrong beside.
    """

    def normal() -> np.ndarray:
        common = seeded.normal(size=int(groups.max()) + 1)[groups]
        return np.sqrt(alike) * common + np.sqrt(1 - alike) * seeded.normal(size=len(groups))

    hard = normal()
    return -hard[:, None], 0.7 * hard + np.sqrt(1 - 0.7**2) * normal() < NormalDist().inv_cdf(0.88)


NEW = answers(np.arange(100_000), 0, np.random.default_rng(0))


def policy(kind: str, count: int, alike: float, draw: random.Random) -> bool | None:
    """Over 5 % of the answers to new rows that the policy of such rows
    keeps are wrong; None where none is made.
    """
    seeded = np.random.default_rng(draw.randrange(2**32))
    groups = np.repeat(np.arange(count), sizes(kind, count, seeded))
    (signals, right), none = answers(groups, alike, seeded), np.zeros(len(groups), bool)
    fits = (seeded.random(count) < answer_score.FIT_SHARE)[groups]
    try:
        rows = CalibrationRows(("sure",), signals, right, none, none, fits, groups)
        config = CalibrateConfig(max_error=0.05)
        fitted = error_threshold.fit(rows, config, least_p=config.least_p_correct)
    except GateError:
        return None
    signals, right = NEW
    kept = fitted["weights"]["sure"] * signals[:, 0] + fitted["bias"] >= fitted["threshold"]
    return bool((~right[kept]).mean() > 0.05)


def equal_passes(rows: int, draw: random.Random) -> bool:
    """The gate that `init` writes against the linear model passes an equal
    one; they differ on a tenth of the rows.
    """
    won, lost, _ = (
        np.random.default_rng(draw.randrange(2**32)).multinomial(rows, [0.05, 0.05, 0.9]).tolist()
    )
    sure = surely_better(rows)
    return mcnemar(lost, won) <= 1 - sure and drop_bound(lost, won, rows, sure) <= 0


GROUPS: dict[str, tuple[Callable[[random.Random], bool], float]] = {
    **{
        f"{count} groups of {kind} sizes: the interval of two equal models leaves out 0": (
            partial(compared, kind, count, False),
            0.07,
        )
        for kind in ("even", "Poisson", "Pareto")
        for count in (10, 20, 40, 100, 300)
    },
    **{
        f"{count} groups of {kind} sizes: an equal model passes min_gain: 0": (
            partial(compared, kind, count, True),
            0.05,
        )
        for kind in ("even", "Poisson", "Pareto")
        for count in (10, 40, 100)
    },
    **{
        f"the gate of init, {rows} test rows: an equal model passes": (
            partial(equal_passes, rows),
            0.1,
        )
        for rows in (200, 594, 2000)
    },
}


POLICIES: dict[str, tuple[Callable[[random.Random], bool | None], float]] = {
    f"calibrate, {count} groups of {kind} sizes, correlation {alike:g}: over max_error": (
        partial(policy, kind, count, alike),
        0.05,
    )
    for kind in ("even", "Poisson", "Pareto")
    for count, alike in ((100, 0.3), (300, 1.0))
}


def pair(
    rows: int, shares: tuple[float, float], alike: float, seeded: np.random.Generator
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """How sure a cheap and a dear model are of their answers, (n, 1), and which are right, from one
    latent difficulty.

    `alike`: correlation of what makes both wrong beside the difficulty.
    """
    latent, chance = seeded.normal(size=(2, rows))
    found = []
    for share in shares:
        hard = 0.8 * latent + 0.6 * seeded.normal(size=rows)
        luck = np.sqrt(alike) * chance + np.sqrt(1 - alike) * seeded.normal(size=rows)
        found.append(
            (-hard[:, None], 0.7 * hard + np.sqrt(1 - 0.7**2) * luck < NormalDist().inv_cdf(share))
        )
    return tuple(found)


new_pairs = cache(lambda shares, alike: pair(100_000, shares, alike, np.random.default_rng(0)))


def first_look(
    count: int, shares: tuple[float, float], alike: float, draw: random.Random
) -> bool | None:
    """Over 5 % of all answers to new rows that a policy keeps in two
    steps are wrong; None where none is made.
    """
    seeded = np.random.default_rng(draw.randrange(2**32))
    none, fits = np.zeros(count, bool), seeded.random(count) < answer_score.FIT_SHARE
    tables = [
        CalibrationRows(("sure",), signals, right, none, none, fits)
        for signals, right in pair(count, shares, alike, seeded)
    ]
    config = CalibrateConfig(max_error=0.05)
    try:
        alone = error_threshold.fit(tables[1], config, least_p=config.least_p_correct)
        looks = {LINEAR: tables[0]}
        step = error_threshold.fit_first(
            looks, tables[1], alone, config, least_p=config.least_p_correct
        )
    except GateError:
        return None
    (signals, cheap), (others, dear) = new_pairs(shares, alike)
    first = step.weights["sure"] * signals[:, 0] + step.bias >= step.threshold
    rest = ~first & (alone["weights"]["sure"] * others[:, 0] + alone["bias"] >= step.rest_threshold)
    return bool((~cheap[first]).sum() + (~dear[rest]).sum() > 0.05 * (first.sum() + rest.sum()))


LOOKS: dict[str, tuple[Callable[[random.Random], bool | None], float]] = {
    f"first look, {count:,} rows, {cheap:.0%} and {dear:.0%} right, {where} rows wrong: all kept "
    "over max_error": (
        partial(first_look, count, (cheap, dear), alike),
        0.05,
    )
    for cheap, dear in ((0.77, 0.93), (0.88, 0.88), (0.93, 0.92))
    for where, alike in (("other", 0.0), ("the same", 0.9))
    for count in (430, 1500)
}


SHARES = {WORDS: 0.72, LINEAR: 0.86, "": 0.92}  # right answers of the members of a sum
STEP_MS = {WORDS: 0.5, LINEAR: 6.0, "": 45.0}
DEAR = 0.12  # share of the rows with the dear label
COSTS = {
    "equal costs": Costs(person=0.2, wrong=1.0),
    "one label dear": Costs(person=0.2, wrong=1.0, label={"fraud": 5.0}),
    "persons dear": Costs(person=2.0, wrong=1.0),
}


def members_of_sum(count: int, seeded: np.random.Generator) -> dict[str, CalibrationRows]:
    """Answers of a sum's members to the same rows, each by its name;
    they err oftener on the dear label.
    """
    latent, chance = seeded.normal(size=(2, count))
    fraud, fits = seeded.random(count) < DEAR, seeded.random(count) < answer_score.FIT_SHARE
    none, found = np.zeros(count, bool), {}
    for name, share in SHARES.items():
        hard = 0.8 * latent + 0.6 * seeded.normal(size=count) + 0.3 * fraud
        luck = np.sqrt(0.5) * chance + np.sqrt(0.5) * seeded.normal(size=count)
        right = 0.7 * hard + np.sqrt(1 - 0.7**2) * luck < NormalDist().inv_cdf(share)
        labels = np.where(fraud, "fraud", "")
        found[name] = CalibrationRows(
            ("sure",), -hard[:, None], right, none, none, fits, None, labels
        )
    return found


new_rows = cache(lambda: members_of_sum(100_000, np.random.default_rng(0)))


@dataclass(frozen=True)
class Spent:
    """A policy of one draw, on 100,000 new rows.

    Attributes:
        over: Its kept answers are over `max_error`.
        missed: Over `max_error` of the dear label's rows have a wrong answer that is kept; None
            without a bound.
        cost: Of a thousand questions, by the costs of its world.
        outside: The true cost lies outside of the interval that calibrate says; None without costs.
        kept: Share of the answers.
        step: The members of the first step.
    """

    over: bool
    missed: bool | None
    cost: float
    outside: bool | None
    kept: float
    step: str


def spent(count: int, costs: Costs | None, prices: Costs, seed: str) -> Spent | None:
    """The policy of one draw of calibration rows, in two steps; None where none is made."""
    seeded = np.random.default_rng(random.Random(seed).randrange(2**32))
    config = CalibrateConfig(max_error=0.05, costs=costs)
    tables, least = members_of_sum(count, seeded), config.least_p_correct
    if costs is None or not costs.label:
        tables = {name: replace(table, dear=None) for name, table in tables.items()}
    looks = {name: tables[name] for name in (WORDS, LINEAR)}
    try:
        alone = error_threshold.fit(tables[""], config, least_p=least)
        step = error_threshold.fit_first(
            looks, tables[""], alone, config, least_p=least, ms=STEP_MS
        )
    except GateError:
        return None
    new, figures = new_rows(), step.figures
    name = WORDS if step.words_alone else LINEAR

    def kept(
        side: CalibrationRows, weights: dict[str, float], bias: float, threshold: float
    ) -> np.ndarray:
        return np.asarray(side.signals @ np.array(list(weights.values())) + bias >= threshold)

    first = kept(new[name], step.weights, step.bias, step.threshold)
    rest = ~first & kept(new[""], alone["weights"], alone["bias"], step.rest_threshold)
    wrong = (first & ~new[name].right) | (rest & ~new[""].right)
    fraud = new[""].dear == "fraud"
    share = float((first | rest).mean())
    prices_of_wrong = np.where(fraud, prices.label.get("fraud", prices.wrong), prices.wrong)
    cost = 1000 * float(prices.person * (1 - share) + (wrong * prices_of_wrong).mean())
    low, high = figures["cost"][1:] if costs else (0.0, 0.0)
    bounded = "fraud" in figures.get("label_bounds", {})
    return Spent(
        bool(wrong.sum() > 0.05 * (first | rest).sum()),
        bool(wrong[fraud].mean() > 0.05) if bounded else None,
        cost,
        not low <= cost <= high if costs else None,
        share,
        name,
    )


def worlds_of_costs(draws: int) -> list[result.Row]:
    """Of each world: broken bounds, refused draws, and its cost
    beside a policy that knows no costs.
    """
    found = []
    for world, costs in COSTS.items():
        for number in (430, 1500):
            every = [spent(number, costs, costs, f"{number}/{seed}") for seed in range(draws)]
            plain = [spent(number, None, costs, f"{number}/{seed}") for seed in range(draws)]
            made, others = ([each for each in side if each is not None] for side in (every, plain))
            bounded = [each.missed for each in made if each.missed is not None]
            title = f"{world}, {number:,} rows"
            found += [
                result.single(
                    f"{title}: all kept over max_error, share of {draws} draws",
                    sum(each.over for each in made) / draws,
                    "allowed",
                    0.05,
                    "<= 0.05",
                ),
                result.single(
                    f"{title}: draws refused",
                    1 - len(made) / draws,
                    "without costs",
                    1 - len(others) / draws,
                ),
                result.single(
                    f"{title}: cost outside of its interval, of the draws that pass",
                    float(np.mean([each.outside for each in made])),
                    "allowed",
                    0.05,
                ),
                result.single(
                    f"{title}: cost of a thousand questions",
                    float(np.mean([each.cost for each in made])),
                    "without costs",
                    float(np.mean([each.cost for each in others])),
                ),
                result.single(
                    f"{title}: share kept",
                    float(np.mean([each.kept for each in made])),
                    "without costs",
                    float(np.mean([each.kept for each in others])),
                ),
                result.single(
                    f"{title}: words alone look first, of the draws that pass",
                    float(np.mean([each.step == WORDS for each in made])),
                    "without costs",
                    float(np.mean([each.step == WORDS for each in others])),
                ),
            ]
            if bounded:
                found += [
                    result.single(
                        f"{title}: the dear label over its bound, share of {draws} draws",
                        sum(bounded) / draws,
                        "allowed",
                        0.05,
                        "<= 0.05",
                    ),
                    result.single(
                        f"{title}: draws with a bound for the dear label",
                        len(bounded) / draws,
                        "all",
                        1.0,
                    ),
                ]
    return found


def judged(
    pairs: int, kind: str, alike: float, won: float, ties: float, draw: random.Random
) -> WinRate:
    """Judged pairs of which a model truly wins the share `won`; `alike`: correlation within groups
    of ten in the mean.

    Without `kind` each pair is a group of its own.
    """
    seeded = np.random.default_rng(draw.randrange(2**32))
    groups = (
        np.repeat(np.arange(pairs // 10), sizes(kind, pairs // 10, seeded))
        if kind
        else np.arange(pairs)
    )
    common = seeded.normal(size=int(groups.max()) + 1)[groups]
    latent = np.sqrt(alike) * common + np.sqrt(1 - alike) * seeded.normal(size=len(groups))
    lost, tied = (
        latent < NormalDist().inv_cdf(share) for share in (1 - won - ties + 1e-12, 1 - won)
    )
    scores = np.where(lost, -1.0, np.where(tied, 0.0, 1.0))
    counts = (int((scores == score).sum()) for score in (1, -1, 0))
    return WinRate(*counts, design_effect(scores, groups))


def decides(
    pairs: int, kind: str, alike: float, won: float, ties: float, draw: random.Random
) -> bool:
    """The sign test decides between two models that are preferred equally often."""
    return judged(pairs, kind, alike, won, ties, draw).p <= 0.05


def misses(
    pairs: int, kind: str, alike: float, won: float, ties: float, draw: random.Random
) -> bool:
    """The interval of the win rate leaves out the true one."""
    low, high = judged(pairs, kind, alike, won, ties, draw).interval()
    return not low <= won + ties / 2 <= high


def pairs_named(pairs: int, kind: str, alike: float, won: float, ties: float) -> str:
    """A world of judged pairs in words."""
    many = (
        f"{pairs // 10} groups of {kind} sizes, correlation {alike:g}" if kind else f"{pairs} pairs"
    )
    return f"{many}, {ties:.0%} ties"


GROUPED_PAIRS = [(300, kind, alike) for kind in ("even", "Pareto") for alike in (0.3, 1.0)]
PAIRS: dict[str, tuple[Callable[[random.Random], bool], float]] = {
    **{
        f"{pairs_named(pairs, kind, alike, (1 - ties) / 2, ties)}: the sign test decides between "
        "equal models": (
            partial(decides, pairs, kind, alike, (1 - ties) / 2, ties),
            0.07 if kind else 0.05,
        )
        for pairs, kind, alike in [(30, "", 0.0), (60, "", 0.0), (150, "", 0.0), *GROUPED_PAIRS]
        for ties in (0.0, 0.3)
    },
    **{
        f"{pairs_named(pairs, kind, alike, won, ties)}, {won:.0%} won: the interval leaves out the "
        "true win rate": (
            partial(misses, pairs, kind, alike, won, ties),
            0.07 if kind else 0.05,
        )
        for pairs, kind, alike in [(30, "", 0.0), (60, "", 0.0), (150, "", 0.0), *GROUPED_PAIRS]
        for won, ties in ((0.65, 0.0), (0.35, 0.3), (0.45, 0.3), (0.5, 0.5), (0.05, 0.9))
    },
}

ROWS = 600  # on which two models' answers differ, of which people judge some


@dataclass(frozen=True)
class JudgedWorld:
    """Rows of which people judge some, and a judge all.

    Attributes:
        people: Number of pairs that people judge.
        taste: The judge: `good` errs by chance, `biased` errs for one model alone; `guess` draws,
            `longer` prefers the longer answer, `first` the one shown first, so its verdict turns
            with the order.
        agrees: Share of rows on which a good or a biased judge says what people say.
        kind, alike: As of `judged`; a group may have rows among people's and among the others.
        won, ties: True shares.
    """

    people: int
    taste: str
    agrees: float = 0.0
    kind: str = ""
    alike: float = 0.0
    won: float = 0.5
    ties: float = 0.2

    def drawn(self, draw: random.Random) -> tuple[np.ndarray, ...]:
        """(people's scores, the judge's, those of the longer answer,
        groups), each of all rows, people's first.
        """
        seeded = np.random.default_rng(draw.randrange(2**32))
        groups = (
            np.repeat(np.arange(ROWS // 10), sizes(self.kind, ROWS // 10, seeded))
            if self.kind
            else np.arange(ROWS)
        )
        groups = seeded.permutation(groups)
        common = seeded.normal(size=int(groups.max()) + 1)[groups]
        latent = np.sqrt(self.alike) * common + np.sqrt(1 - self.alike) * seeded.normal(
            size=len(groups)
        )
        lost, tied = (
            latent < NormalDist().inv_cdf(share)
            for share in (1 - self.won - self.ties, 1 - self.won)
        )
        said = np.where(lost, 0.0, np.where(tied, 0.5, 1.0))
        decided = np.where(said == 0.5, seeded.integers(0, 2, len(said)), said)
        # people prefer it in 60 %
        longer = np.where(seeded.random(len(said)) < 0.6, decided, 1 - decided)
        return said, self._verdicts(said, longer, seeded), longer, groups

    def _verdicts(
        self, said: np.ndarray, longer: np.ndarray, seeded: np.random.Generator
    ) -> np.ndarray:
        if self.taste in ("longer", "first"):
            return longer if self.taste == "longer" else np.full(len(said), 0.5)
        other = (
            np.where(said == 1, 0.5, 1.0)
            if self.taste == "biased"
            else (said + seeded.choice([0.5, 1], len(said))) % 1.5
        )
        guess = seeded.choice([0.0, 0.5, 1.0], len(said))
        return (
            guess
            if self.taste == "guess"
            else np.where(seeded.random(len(said)) < self.agrees, said, other)
        )

    def __str__(self) -> str:
        of = {
            "good": f"agrees in {self.agrees:.0%}",
            "biased": f"agrees in {self.agrees:.0%}, errs for one model",
        }
        more = {
            "guess": "guesses",
            "longer": "prefers the longer",
            "first": "prefers the first shown",
        }
        many = f", groups of {self.kind} sizes, correlation {self.alike:g}" if self.kind else ""
        return f"{self.people} pairs of people{many}, the judge {(of | more)[self.taste]}"


def agreement(world: JudgedWorld, drawn: tuple[np.ndarray, ...]) -> Agreement:
    *scores, groups = (values[: world.people] for values in drawn)
    return Agreement.of(*scores, groups)


def admits(world: JudgedWorld, draw: random.Random) -> bool:
    """The judge is admitted."""
    return agreement(world, world.drawn(draw)).is_admitted


def rates(world: JudgedWorld, drawn: tuple[np.ndarray, ...]) -> tuple[CorrectedRate, WinRate]:
    """The win rate by people and judge, and that by people alone."""
    said, own, _, groups = drawn
    n = world.people
    counts = (int((said[:n] == score).sum()) for score in (1.0, 0.0, 0.5))
    alone = WinRate(*counts, design_effect(said[:n], groups[:n]))
    return CorrectedRate.of(said[:n], own[:n], own[n:], groups), alone


def is_missed(world: JudgedWorld, rate: CorrectedRate) -> bool:
    low, high = rate.interval()
    return not low <= world.won + world.ties / 2 <= high


def leaves_out(world: JudgedWorld, draw: random.Random) -> bool:
    """The interval of the corrected win rate leaves out the true one."""
    return is_missed(world, rates(world, world.drawn(draw))[0])


USELESS = ("guess", "longer", "first")
GROUPED_JUDGES = [("even", 0.3), ("even", 1.0), ("Pareto", 0.3), ("Pareto", 1.0)]
ADMITTED = [JudgedWorld(people, taste) for taste in USELESS for people in (30, 60, 150)]
ADMITTED += [JudgedWorld(150, taste, 0.0, *group) for taste in USELESS for group in GROUPED_JUDGES]
# A judge that agrees exactly as often as the better rule, always the longer answer: 60 % of 80 %.
ADMITTED += [JudgedWorld(people, "good", 0.48) for people in (30, 60, 150)]
GOOD = [
    JudgedWorld(people, "good", agrees)
    for agrees in (0.6, 0.7, 0.8, 0.95)
    for people in (30, 60, 150)
]
CORRECTED = [
    *(
        replace(world, won=won, ties=ties)
        for world in GOOD
        for won, ties in ((0.5, 0.2), (0.85, 0.1))
    ),
    *(JudgedWorld(people, "biased", 0.8) for people in (30, 60, 150)),
    *(JudgedWorld(people, "guess") for people in (30, 60, 150)),
    *(
        JudgedWorld(150, "good", 0.8, *group, won, 0.1)
        for group in GROUPED_JUDGES
        for won in (0.5, 0.85)
    ),
]
JUDGES: dict[str, tuple[Callable[[random.Random], bool], float]] = {
    **{
        f"{world}: it is admitted": (partial(admits, world), 0.07 if world.kind else 0.05)
        for world in ADMITTED
    },
    **{
        f"{world}, {world.won:.0%} won, {world.ties:.0%} ties: the interval leaves out the true "
        "win rate": (
            partial(leaves_out, world),
            0.07 if world.kind else 0.05,
        )
        for world in CORRECTED
    },
}


def worth(count: int) -> list[result.Row]:
    """What good judges gain: how often they are admitted, and then the
    interval beside that of people alone.
    """
    figures = []
    for world in GOOD:
        draws = [world.drawn(random.Random(f"{world}/{seed}")) for seed in range(count)]
        both = [rates(world, drawn) for drawn in draws if agreement(world, drawn).is_admitted]
        widths = (
            float(np.median([high - low for low, high in (rate.interval() for rate in side)]))
            for side in zip(*both, strict=True)
        )
        missed = sum(is_missed(world, rate) for rate, _ in both) / len(both)
        pairs = float(np.median([rate.worth for rate, _ in both]))
        figures += [
            result.single(
                f"{world}: admitted, share of {count} draws", len(both) / count, "all", 1.0
            ),
            result.single(
                f"{world}: once admitted, the true win rate is left out",
                missed,
                "allowed",
                0.05,
                "<= 0.05",
            ),
            result.single(
                f"{world}: median width of the interval", next(widths), "people alone", next(widths)
            ),
            result.single(
                f"{world}: pairs of people that would tell as much",
                pairs,
                "people judged",
                world.people,
            ),
        ]
    return figures


WORLDS: dict[str, tuple[Callable[[random.Random], bool], float]] = {
    "label, batches of 50 rows: more accepted labels are wrong than is said": (
        partial(batch, 50),
        0.05,
    ),
    "label, batches of 100 rows: more accepted labels are wrong than is said": (
        partial(batch, 100),
        0.05,
    ),
    "label, 480 gold rows of 8 texts, 29 % wrong: the bound is below": (
        partial(near_copies, 8, 0.29),
        0.05,
    ),
    "label, 480 gold rows of 240 texts, 2 % wrong: the bound is below": (
        partial(near_copies, 240, 0.02),
        0.05,
    ),
    "ece of a calibrated model on 600 rows: the interval leaves out 0": (calibrated, 0.07),
    "six equal validations: the last one is taken for worse than the best": (
        partial(settled, 6),
        0.05,
    ),
}


def broken(name: str, draws: list[bool | None], level: float) -> list[result.Row]:
    """How often a promise is broken: of all draws, and where some
    were refused, of those that made one.
    """
    share = sum(filter(None, draws)) / len(draws)
    rows = [
        result.single(
            f"{name}, share of {len(draws)} draws", share, "allowed", level, f"<= {level:g}"
        )
    ]
    if None in draws:
        made = [draw for draw in draws if draw is not None]
        rows.append(result.single(f"{name}: draws that pass", len(made) / len(draws), "all", 1.0))
        rows.append(
            result.single(
                f"{name}: of the draws that pass", sum(made) / max(len(made), 1), "allowed", level
            )
        )
    return rows


def main() -> None:
    count, found = int(sys.argv[1]) if len(sys.argv) > 1 else 1000, []
    which = sys.argv[2] if len(sys.argv) > 2 else ""
    for bound in (error_threshold.error_bound, error_threshold.chance_of_at_most):
        # of the same few counts in all draws
        setattr(error_threshold, bound.__name__, cache(bound))
    judged_rate.t_quantile = cache(t_quantile)
    by_name = {
        "": WORLDS,
        "groups": GROUPS,
        "policies": POLICIES,
        "first-look": LOOKS,
        "pairs": PAIRS,
        "judge": JUDGES,
    }
    by_name["costs"] = {}
    for name, (is_broken, level) in by_name[which].items():
        found += broken(
            name, [is_broken(random.Random(f"{name}/{seed}")) for seed in range(count)], level
        )
    found += (
        worth(count) if which == "judge" else worlds_of_costs(count) if which == "costs" else []
    )
    command = " ".join(["python -m benchmarks.coverage", *sys.argv[1:]])
    result.write("-".join(filter(None, ["coverage", which])), command, found, ("numpy", "torch"))


if __name__ == "__main__":
    main()
