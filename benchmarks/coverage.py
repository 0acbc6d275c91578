"""How often a promise is broken, over many draws with the code that makes it: python -m benchmarks.coverage [DRAWS]"""

import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np

from benchmarks import program, result
from slmctl.config import LabelConfig
from slmctl.metrics.statistics import percentiles, resamples
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
        answered(LabelRow("", "", text(draw), "", 0, '"a"', k % 10 < 3), draw, is_wrong=draw.random() < 0.08)
        for k in range(300 + size)
    ]
    bound = acceptance.accept(LabelConfig.model_validate(TASK), every[300:], every[:300])
    wrong = sum(entry.answer != '"a"' for entry in every[300:] if entry.accepted)
    return not bound.reason and wrong > (bound.most_wrong or 0)


def near_copies(texts: int, error: float, draw: random.Random) -> bool:
    is_wrong = {text(draw): draw.random() < error for _ in range(texts)}
    with tempfile.TemporaryDirectory() as folder:
        gold, new = (program.Path(folder) / name for name in ("gold.csv", "new.csv"))
        program.write_csv(gold, [(f"{own} {text(draw)[:2]}", '"a"') for own in draw.choices([*is_wrong], k=480)])
        program.write_csv(new, [(text(draw), "")])
        of = {"input": "text", "output": "category"}
        config = LabelConfig.model_validate({**TASK, "gold": {"path": gold, **of}, "sources": [{"path": new, **of}]})
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


WORLDS: dict[str, tuple[Callable[[random.Random], bool], float]] = {
    "label, batches of 50 rows: more accepted labels are wrong than is said": (partial(batch, 50), 0.05),
    "label, batches of 100 rows: more accepted labels are wrong than is said": (partial(batch, 100), 0.05),
    "label, 480 gold rows of 8 texts, 29 % wrong: the bound is below": (partial(near_copies, 8, 0.29), 0.05),
    "label, 480 gold rows of 240 texts, 2 % wrong: the bound is below": (partial(near_copies, 240, 0.02), 0.05),
    "ece of a calibrated model on 600 rows: the interval leaves out 0": (calibrated, 0.07),
    "six equal validations: the last one is taken for worse than the best": (partial(settled, 6), 0.05),
}


def main() -> None:
    count, found = int(sys.argv[1]) if len(sys.argv) > 1 else 1000, []
    for name, (is_broken, level) in WORLDS.items():
        share = sum(is_broken(random.Random(f"{name}/{seed}")) for seed in range(count)) / count
        found.append(result.single(f"{name}, share of {count} draws", share, "allowed", level, f"<= {level:g}"))
    result.write("coverage", "python -m benchmarks.coverage", found, ("numpy", "torch"))


if __name__ == "__main__":
    main()
