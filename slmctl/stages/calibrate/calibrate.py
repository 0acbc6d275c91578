"""predictions -> policy: from which answers on the small model's word is taken, and which go to a general one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmctl.artifacts.artifact import Artifact
from slmctl.config import CalibrateConfig
from slmctl.errors import DataError, GateError, UsageError
from slmctl.inference.escalation_policy import Policy, linear, signals
from slmctl.metrics import answer_metrics
from slmctl.metrics.statistics import error_bound
from slmctl.reports import svg_chart
from slmctl.task.contract import Task

MIN_ROWS = 200  # fewer say next to nothing about an error of a few percent
FIT_SHARE = 0.3  # of the rows: they fit the score; the others, which it never saw, test the thresholds
RIDGE = 1.0  # pull of the weights to 0, in rows: it decides only where the rows say next to nothing
STEPS = 100  # thresholds that are looked at, about
CURVE = 50  # points of the curve

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Answers with what is known of them: their signals (n, k), whether each is right, whether it belongs elsewhere."""

    names: tuple[str, ...]
    signals: Floats
    right: Mask
    outside: Mask
    says_outside: Mask  # the answer is the out-of-scope label, so it is never kept
    fits: Mask  # the row fits the score, and tests no threshold

    def only(self, mask: Mask) -> Rows:
        """Some of the rows."""
        masks = (self.right, self.outside, self.says_outside, self.fits)
        return Rows(self.names, self.signals[mask], *(values[mask] for values in masks))


@dataclass(frozen=True)
class Cut:
    """What a threshold does to the rows that test it; `expected` are the wrong ones that their scores foretell."""

    threshold: float
    kept: int
    expected: float
    wrong: int
    outside_kept: int


def run(
    config: CalibrateConfig, *, predictions: Artifact, out: Path, outside: Artifact | None = None
) -> dict[str, Any]:
    """Fit the score, test the thresholds, and write `policy.json` and `curve.svg`.

    Raises:
        DataError: There are too few rows, or the answers have no confidence.
        GateError: No threshold keeps the error low enough.
        UsageError: The predictions are of another split than calibration, or of no GGUF file.
    """
    _require(predictions, outside)
    task = Task.read(predictions.path)
    if config.out_of_scope is not None and config.out_of_scope not in task.labels:
        raise UsageError(f"calibrate.out_of_scope '{config.out_of_scope}' is none of the task's labels",
                         hint="task.labels")  # fmt: skip
    lines = _lines(predictions)
    if outside is not None:
        lines += [line for line in _lines(outside) if line["expected"] == config.out_of_scope]
    rows = read(lines, task, config)
    fitted = fit(rows, config)
    policy = Policy(
        gguf=predictions.metrics["sha256"], task=task.digest, kind=task.kind, correct=correctness(task, config),
        out_of_scope=config.out_of_scope or "", **fitted,
    )  # fmt: skip
    policy.write(out)
    (out / "curve.svg").write_text(svg_chart.standalone(picture(policy.figures)), encoding="utf-8")
    shown = {key: value for key, value in policy.figures.items() if key != "curve"}
    return {"model": predictions.metrics["model"], "sha256": policy.gguf, "correct": policy.correct} | shown


def correctness(task: Task, config: CalibrateConfig) -> str:
    """What counts as a right answer, in words."""
    if task.kind == "generate":
        if config.min_token_f1 is not None:
            return f"token F1 with the answer wanted of at least {config.min_token_f1:g}"
        return "the same words in the same order as the answer wanted"
    return {"classify": "the label wanted", "extract": "the whole object equals the one wanted"}[task.kind]


def is_right(task: Task, config: CalibrateConfig, answer: str, expected: str) -> bool:
    """Whether an answer is right in the sense of `correctness`."""
    if task.kind == "classify":
        return answer.strip() == expected
    if task.kind == "extract":
        given = answer_metrics.parse(answer.strip())
        return given is not answer_metrics.INVALID and answer_metrics.equal(answer_metrics.parse(expected), given)
    if config.min_token_f1 is not None:
        return (
            answer_metrics.token_f1(answer_metrics.words(expected), answer_metrics.words(answer)) >= config.min_token_f1
        )
    return answer_metrics.same_text(expected, answer)


def read(lines: Sequence[dict[str, Any]], task: Task, config: CalibrateConfig) -> Rows:
    """Lines of predictions as rows.

    Raises:
        DataError: There are too few of them, or one has no confidence.
    """
    if len(lines) < MIN_ROWS:
        raise DataError(
            f"{len(lines)} calibration rows are too few: at least {MIN_ROWS} are needed to tell an error of some "
            "percent from chance",
            hint="a larger prepare.splits.calibration, or more data",
        )
    outside = config.out_of_scope or ""
    try:
        found = [signals(line, out_of_scope=outside) for line in lines]
    except ValueError as error:
        raise DataError(f"these predictions cannot be calibrated: {error}") from None
    names = tuple(found[0])
    return Rows(
        names,
        np.array([[one[name] for name in names] for one in found]),
        np.array([is_right(task, config, line["answer"], line["expected"]) for line in lines]),
        np.array([bool(outside) and line["expected"] == outside for line in lines]),
        np.array([bool(outside) and line["answer"].strip() == outside for line in lines]),
        np.array([_place(line["id"]) < FIT_SHARE for line in lines]),
    )


def fit(rows: Rows, config: CalibrateConfig) -> dict[str, Any]:
    """Score, P(correct) and threshold of a policy, and its figures; the fields of `Policy` by name.

    Raises:
        GateError: No threshold keeps the error low enough.
    """
    good = rows.right & ~rows.outside  # what belongs elsewhere is never right to keep
    weights, bias = logistic(rows.signals[rows.fits], good[rows.fits])
    named = dict(zip(rows.names, weights, strict=True))
    scores = np.array([linear(named, bias, dict(zip(rows.names, row, strict=True))) for row in rows.signals.tolist()])
    tests = rows.only(~rows.fits)
    cuts = list(_cuts(scores[~rows.fits], tests))
    chosen = choose(cuts, int(tests.outside.sum()), config)
    if chosen is None:
        raise GateError(_unreachable(cuts, config), hint="a larger calibrate.max_error, more rows, or a better model")
    figures = _figures(chosen, cuts, tests, config) | {"rows": len(rows.right), "fitted_on": int(rows.fits.sum())}
    return {
        "weights": named, "bias": bias, "threshold": chosen.threshold,
        "knots": isotonic(scores, good), "figures": figures,
    }  # fmt: skip


def choose(cuts: Sequence[Cut], outside: int, config: CalibrateConfig) -> Cut | None:
    """The loosest threshold whose error is low enough, tested in fixed sequence from the strictest one.

    The order of the tests follows from the scores alone, and the first that fails ends them, so each may be
    made at the full level (Bauer 1991, Statistics in Medicine 10; Angelopoulos et al. 2021, Learn then Test).
    The strictest threshold is the one that should pass most easily: of fewer rows one wrong answer would refuse
    it by chance. The rows that fitted the score foretell which one that is, and not those that test it.

    Args:
        cuts: Thresholds from the strictest to the loosest.
        outside: Rows that belong elsewhere.
    """
    tried = _thinned([cut for cut in cuts if cut.kept >= _least(config)])
    if not tried:
        return None
    first = min(tried, key=lambda cut: error_bound(math.ceil(cut.expected), cut.kept, config.confidence))
    chosen = None
    for cut in tried[tried.index(first) :]:
        if error_bound(cut.wrong, cut.kept, config.confidence) > config.max_error:
            break
        limit = config.max_out_of_scope_kept
        if limit is not None and error_bound(cut.outside_kept, outside, config.confidence) > limit:
            break
        chosen = cut
    return chosen


def logistic(x: Floats, good: Mask) -> tuple[list[float], float]:
    """Weights and bias of a logistic regression with a slight ridge, by Newton's method; x: (n, k)."""
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)  # a signal that is the same everywhere says nothing
    z = np.hstack([(x - mean) / scale, np.ones((len(x), 1))])
    pull = np.full(z.shape[1], RIDGE)
    w = np.zeros(z.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        gradient = z.T @ (p - good) + pull * w
        step = np.linalg.solve((z * (p * (1 - p))[:, None]).T @ z + np.diag(pull), gradient)
        w -= step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))  # no step overshoots where all is separable
        if np.abs(step).max() < 1e-8:
            break
    weights = w[:-1] / scale
    return [float(value) for value in weights], float(w[-1] - weights @ mean)


def isotonic(scores: Floats, good: Mask) -> tuple[tuple[float, float], ...]:
    """P(correct) over the score: pool adjacent violators (Ayer et al. 1955), read between the middles of its blocks.

    Returns:
        (score, P), both rising.
    """
    blocks: list[list[float]] = []  # rows, right ones, sum of scores
    for score, right in sorted(zip(scores.tolist(), good.tolist(), strict=True)):
        if blocks and blocks[-1][2] == score * blocks[-1][0]:  # rows of one score are one block from the start
            blocks[-1] = [blocks[-1][0] + 1, blocks[-1][1] + right, blocks[-1][2] + score]
        else:
            blocks.append([1.0, float(right), score])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][0] >= blocks[-1][1] * blocks[-2][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return tuple((total / n, right / n) for n, right, total in blocks)


def _cuts(scores: Floats, rows: Rows) -> Iterator[Cut]:
    """Every threshold that the rows allow, from the strictest to the loosest; rows of one score go together."""
    usable = np.flatnonzero(~rows.says_outside)
    order = usable[np.argsort(-scores[usable], kind="stable")]
    wrong = np.cumsum(~rows.right[order] | rows.outside[order])
    outside = np.cumsum(rows.outside[order])
    expected = np.cumsum(1 / (1 + np.exp(np.clip(scores[order], -30, 30))))
    for k, at in enumerate(order):
        if k + 1 == len(order) or scores[order[k + 1]] < scores[at]:
            yield Cut(float(scores[at]), k + 1, float(expected[k]), int(wrong[k]), int(outside[k]))


def _thinned(cuts: Sequence[Cut]) -> list[Cut]:
    """The strictest cut, and then each that keeps at least a step's worth of rows more than the one before."""
    step = max(1, (cuts[-1].kept if cuts else 0) // STEPS)
    kept: list[Cut] = []
    for cut in cuts:
        if not kept or cut.kept >= kept[-1].kept + step or cut is cuts[-1]:
            kept.append(cut)
    return kept


def _least(config: CalibrateConfig) -> int:
    """The fewest rows that can show an error this low, when none of them is wrong."""
    n = math.ceil(math.log(1 - config.confidence) / math.log(1 - config.max_error))
    return n if error_bound(0, n, config.confidence) <= config.max_error else n + 1


def _figures(chosen: Cut, cuts: Sequence[Cut], rows: Rows, config: CalibrateConfig) -> dict[str, Any]:
    n, outside = len(rows.right), int(rows.outside.sum())
    inside = n - outside
    bound = error_bound(chosen.wrong, chosen.kept, config.confidence)
    found = {
        "tested_on": n,
        "kept": chosen.kept / n,
        "error": chosen.wrong / chosen.kept,
        "error_bound": bound,
        "max_error": config.max_error,
        "confidence": config.confidence,
        "accuracy": float((rows.right & ~rows.outside).sum() / max(inside, 1)),
        "curve": [_point(cut, n, outside, config) for cut in _spread(cuts)],
    }
    if outside:
        found |= {
            "out_of_scope_rows": outside,
            "out_of_scope_kept": chosen.outside_kept / outside,
            "out_of_scope_bound": error_bound(chosen.outside_kept, outside, config.confidence),
            "in_scope_kept": (chosen.kept - chosen.outside_kept) / max(inside, 1),
        }
    return found


def _point(cut: Cut, n: int, outside: int, config: CalibrateConfig) -> dict[str, float]:
    """One point of the curve, over the rows that tested it."""
    return {
        "threshold": cut.threshold,
        "kept": cut.kept / n,
        "error": cut.wrong / cut.kept,
        "error_bound": error_bound(cut.wrong, cut.kept, config.confidence),
        **({"out_of_scope_away": 1 - cut.outside_kept / outside} if outside else {}),
    }


def _spread(cuts: Sequence[Cut]) -> list[Cut]:
    """Some cuts, evenly spread over what they keep, the loosest among them."""
    wanted = [cuts[-1].kept * k / CURVE for k in range(1, CURVE + 1)]
    found: list[Cut] = []
    for cut in cuts:
        if cut.kept >= wanted[0]:
            found.append(cut)
            wanted = [share for share in wanted if share > cut.kept]
            if not wanted:
                break
    return found


def picture(figures: dict[str, Any]) -> Any:
    """The cost-quality curve: what share is answered here, and how right answers are, here and over all.

    Everything that is not answered here is paid for elsewhere, so the share is one less the cost.
    """
    curve = figures["curve"]
    here = [svg_chart.Point(one["kept"], 1 - one["error"]) for one in curve]
    bound = [svg_chart.Point(one["kept"], 1 - one["error_bound"]) for one in curve]
    best = [svg_chart.Point(one["kept"], 1 - one["kept"] * one["error"]) for one in curve]
    said = f"{figures['kept']:.1%} answered here, {figures['error']:.1%} of them wrong"
    chosen = [svg_chart.Point(figures["kept"], 1 - figures["error"], said, "chosen")]
    lines = [
        svg_chart.LineSeries("all, at best", best, "c3", dashed=True),
        svg_chart.LineSeries("answered here", here, "c1"),
        svg_chart.LineSeries("bound", bound, "c5", dashed=True),
    ]
    if "out_of_scope_kept" in figures:
        away = [svg_chart.Point(one["kept"], one["out_of_scope_away"]) for one in curve]
        lines.append(svg_chart.LineSeries("out of scope, away", away, "c4"))
    low = max(0.0, min(point.y for point in [*here, *best]) - 0.03)
    shown = [dataclasses.replace(line, points=[one for one in line.points if one.y >= low]) for line in lines]
    return svg_chart.lines(
        [*shown, svg_chart.LineSeries("", chosen, "c2")],
        title="Cost and quality",
        x_label="share answered here; the rest is paid for elsewhere",
        y_label="share right",
        x_range=(0.0, 1.0),
        y_range=(low, 1.0),
        percent=True,
        width=2 * svg_chart.WIDTH,
        height=340,
    )


def _unreachable(cuts: Sequence[Cut], config: CalibrateConfig) -> str:
    least = _least(config)
    first = next((cut for cut in cuts if cut.kept >= least), None)
    if first is None:
        return (
            f"an error of at most {config.max_error:.1%} cannot be shown: {cuts[-1].kept if cuts else 0} rows test it, "
            f"and {least} without one wrong answer would be needed"
        )
    return (
        f"no threshold keeps the error at or below {config.max_error:.1%} with {config.confidence:.0%} confidence: "
        f"of the {first.kept} surest answers {first.wrong} are wrong"
    )


def _require(predictions: Artifact, outside: Artifact | None) -> None:
    found = predictions.metrics
    if found["split"] != "calibration":
        raise UsageError(
            f"{predictions.path} answers the split '{found['split']}', and thresholds are set on calibration rows",
            hint="slmctl predict gguf --split calibration",
        )
    if found["kind"] not in ("gguf", "published"):
        raise UsageError(
            f"{predictions.path} is of a model of kind '{found['kind']}', and a policy is for a GGUF file",
            hint="slmctl predict gguf --split calibration",
        )
    if outside is None:
        return
    if outside.metrics["split"] not in ("calibration", "validation"):
        raise UsageError(f"{outside.path} answers the split '{outside.metrics['split']}': out-of-scope rows may come "
                         "from validation or calibration")  # fmt: skip
    if outside.metrics["sha256"] != found["sha256"]:
        raise UsageError(f"{outside.path} was answered by another file than {predictions.path}")


def _lines(predictions: Artifact) -> list[dict[str, Any]]:
    with predictions.file("predictions.jsonl").open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _place(id: str) -> float:
    """A number from 0 to 1 that a row's id decides, so that it is the same in every run."""
    return int.from_bytes(hashlib.sha256(f"calibrate/{id}".encode()).digest()[:8]) / 2**64
