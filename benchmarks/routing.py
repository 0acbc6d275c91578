"""Keep or escalate on CLINC150 and Banking77: the policy of `slmctl calibrate` on the shipped
file's own probabilities.

    python -m benchmarks.routing [CLINC] [--banking BANKING] [--type Q8_0] [--resplits N]

CLINC and BANKING are folders in which `slmctl run --until quantize` has run, as with
benchmarks/configs/. With a section `encode` the encoder's opinion is added to the file's, which
stands beside it, as does the encoder alone. Every threshold is set on calibration rows (of
CLINC150: its validation rows, `oos_val` among them, when the config puts them there; else `oos_val`
comes from the validation split); where there are none, as in benchmarks/banking77.py, the
validation rows are taken, which chose the checkpoint too. The test rows are measured once. An
in-scope question that is escalated counts as wrong in "in-scope accuracy". Beside it stand
published figures, and TF-IDF with a linear model on the same rows under the same policy. The
general model of the cost-quality curve is simulated: it answers whatever it is asked, right with a
stated chance.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import program, result
from slmctl import config
from slmctl.config import CalibrateConfig
from slmctl.console import percent
from slmctl.errors import GateError
from slmctl.metrics import answer_score, error_threshold, linear_baseline
from slmctl.metrics.answer_score import CalibrationRows
from slmctl.pipeline import predictions, runner
from slmctl.pipeline.graph import Project
from slmctl.reports import svg_chart
from slmctl.reports.svg_chart import LineSeries, Point
from slmctl.stages.calibrate import calibrate
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records

OUTSIDE = "oos"
BERT = "BERT with a threshold (Larson et al. 2019, table 2)"
LOCALDESK = "LocalDesk 0.3.1, TF-IDF (its README)"
PARTS = {"gguf": "the file alone", "encoder": "the encoder with TF-IDF"}
# of right in-scope answers of the calibration rows, sent away
LOSSES = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05)
# accuracy on calibration rows that the first threshold leaves, half a point above the goal
IN_SCOPE = 0.955
KEPT = 0.889  # of the in-scope questions, for the second comparison
PROMISE = CalibrateConfig(max_error=0.05, out_of_scope=OUTSIDE)
GENERALISTS = (0.8, 0.9, 0.95, 1.0)  # simulated accuracies
PACKAGES = ("llama-cpp-python", "scikit-learn")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """Answers of one model to the rows of one split, with the policy's score of each."""

    rows: CalibrationRows
    scores: Floats

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        return ~self.rows.outside

    def kept(self, threshold: float) -> npt.NDArray[np.bool_]:
        return (self.scores >= threshold) & ~self.rows.says_outside


@dataclass(frozen=True)
class Model:
    """One model under a policy that was fitted on its calibration rows."""

    calibration: Side
    test: Side


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("clinc", type=Path, nargs="?")
    parser.add_argument("--banking", type=Path, help="a project for Banking77")
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--resplits", type=int, default=100)
    options = parser.parse_args()
    if options.banking:
        result.write(
            "routing-banking77",
            "python -m benchmarks.routing --banking BANKING",
            banking(Given(options.banking, options.type)),
            PACKAGES,
        )
    if options.clinc:
        measure_clinc(Given(options.clinc, options.type), options.resplits)


def measure_clinc(given: Given, count: int) -> None:
    """CLINC150 with its out-of-scope questions: the table, the
    promise on resplits, and the picture.
    """
    first, *others = given.kinds
    ours, linear = (
        modelled(*given.lines(first), given.task, PROMISE),
        modelled(*given.linear(), given.task, PROMISE),
    )
    rows = clinc(
        ours, linear, {kind: modelled(*given.lines(kind), given.task, PROMISE) for kind in others}
    )
    promises = {}
    for kind in (first, *(kind for kind in others if kind == "encoder")):
        calibration, test = given.lines(kind)
        promises[kind] = resplits([*calibration, *test], len(calibration), given.task, count)
        whose = "" if kind == first else " of the encoder's first look"
        metric = f"of {count} resplits, those with an error{whose} within 5%"
        rows.append(
            result.single(metric, promises[kind]["within"], "goal", 95, f">= {round(0.95 * count)}")
        )
    curve = {"ours": costs(ours), "tfidf": costs(linear)}
    path = result.write(
        "routing",
        "python -m benchmarks.routing CLINC",
        rows,
        PACKAGES,
        accuracy=accuracy(ours),
        accuracy_tfidf=accuracy(linear),
        lost=lost_at(ours),
        resplits=promises,
        losses=[at_loss(ours, lost) for lost in LOSSES],
        curve=curve,
    )
    picture = path.with_suffix(".svg")
    picture.write_text(svg_chart.standalone(drawn(curve)), encoding="utf-8")
    sys.stdout.write(f"{picture}\n")


class Given:
    """A project with its data set, and the answers of its file and of a linear model."""

    def __init__(self, folder: Path, type: str) -> None:
        self.project = Project(root=folder.resolve(), config=config.load(folder / config.FILENAME))
        self.prepared = self.project.artifact("prepared")
        self.task, self.type = Task.read(self.prepared.path), type
        self._lines: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The model that is measured, and its parts."""
        return (
            ("ensemble", "gguf", "encoder") if self.project.config.encode is not None else ("gguf",)
        )

    @property
    def held_out(self) -> tuple[str, ...]:
        """The split that thresholds are set on, and one whose out-of-scope rows are added."""
        return (
            ("calibration", "validation")
            if self.prepared.metrics["calibration"]
            else ("validation",)
        )

    def records(self, split: str) -> list[Record]:
        return read_records(self.prepared.file(f"{split}.jsonl"))

    def lines(self, kind: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Calibration and test, as a kind of model that is served answers them."""
        if kind not in self._lines:
            first, *rest = self.held_out
            outside = [
                line
                for split in rest
                for line in self._answered(kind, split)
                if line["expected"] == OUTSIDE
            ]
            self._lines[kind] = (
                [*self._answered(kind, first), *outside],
                self._answered(kind, "test"),
            )
        return self._lines[kind]

    def linear(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The same rows as the linear baseline answers them, trained on the same rows."""
        train, validation = self.records("train"), self.records("validation")
        model = linear_baseline.fit(
            [record.input for record in train],
            [record.answer for record in train],
            choosing=[record.input for record in validation],
            chosen=[record.answer for record in validation],
        )
        names = [str(name) for name in model.classifier.classes_]

        def answered(records: Sequence[Record]) -> list[dict[str, Any]]:
            chances = np.exp(model.logprobs([record.input for record in records]))
            return [_line(record, names, row) for record, row in zip(records, chances, strict=True)]

        first, *rest = self.held_out
        outside = [
            record for split in rest for record in self.records(split) if record.answer == OUTSIDE
        ]
        return answered([*self.records(first), *outside]), answered(self.records("test"))

    def _answered(self, kind: str, split: str) -> list[dict[str, Any]]:
        (asked,) = predictions.predictions_of(
            self.project, kind, split, None if kind == "encoder" else self.type
        )
        made = runner.run(self.project, asked).artifact
        return program.read_jsonl(made.file("predictions.jsonl"))


def _line(record: Record, names: list[str], chances: Floats) -> dict[str, Any]:
    """A linear model's answer in the form of predictions."""
    best = np.argsort(-chances)[:5]
    sure = float(chances[best[0]])
    return {
        "id": record.id,
        "answer": names[best[0]],
        "expected": record.answer,
        "confidence": sure,
        "labels": {names[k]: float(chances[k]) for k in best},
        "logprobs": [float(np.log(sure))],
        "raw_logprobs": [float(np.log(sure))],
        "completion_tokens": 1,
    }


def modelled(
    calibration: Sequence[dict[str, Any]],
    test: Sequence[dict[str, Any]],
    task: Task,
    settings: CalibrateConfig,
) -> Model:
    """A model's answers under the score that calibrate fits on its calibration rows."""
    known = calibrate.read(calibration, task, settings)
    weights, bias = answer_score.logistic(
        known.signals[known.fits], known.right[known.fits] & ~known.outside[known.fits]
    )
    sides = [known, calibrate.read(test, task, settings)]
    return Model(*(Side(rows, rows.signals @ np.array(weights) + bias) for rows in sides))


def clinc(ours: Model, linear: Model, parts: dict[str, Model]) -> list[result.Row]:
    """CLINC150: in-scope accuracy, out-of-scope recall, and what is kept;
    of a model's parts, the first three.
    """
    lost = lost_at(ours)
    first, theirs = at_loss(ours, lost), at_loss(linear, lost)
    second, plain = at_kept(ours), at_kept(linear)
    tfidf = "TF-IDF, same rows and policy"
    return [
        result.single(
            "in-scope accuracy (escalated counts as wrong)",
            first["accuracy"],
            BERT,
            0.962,
            ">= 0.95",
        ),
        result.single("out-of-scope recall there", first["recall"], BERT, 0.523, ">= 0.75"),
        result.single("out-of-scope recall there", first["recall"], tfidf, theirs["recall"]),
        result.single("in-scope accuracy there", first["accuracy"], tfidf, theirs["accuracy"]),
        result.single(
            "AUROC, in scope against out of scope", auroc(ours.test), tfidf, auroc(linear.test)
        ),
        *(row for kind, part in parts.items() for row in beside(ours, part, PARTS[kind], lost)),
        result.single("in-scope questions kept", second["kept"], LOCALDESK, KEPT),
        result.single("accuracy of those kept", second["accuracy"], LOCALDESK, 0.970, ">= 0.985"),
        result.single(
            "out-of-scope questions sent away there", second["away"], LOCALDESK, 0.836, ">= 0.9"
        ),
        result.single("accuracy of those kept", second["accuracy"], tfidf, plain["accuracy"]),
        result.single(
            "out-of-scope questions sent away there", second["away"], tfidf, plain["away"]
        ),
    ]


def beside(ours: Model, part: Model, name: str, lost: float) -> list[result.Row]:
    """The model and one of its parts, each by its own policy."""
    first, theirs = at_loss(ours, lost), at_loss(part, lost)
    return [
        result.single(
            "in-scope accuracy, nothing escalated", accuracy(ours), name, accuracy(part), ">= 0.965"
        ),
        result.single("out-of-scope recall there", first["recall"], name, theirs["recall"]),
        result.single("in-scope accuracy there", first["accuracy"], name, theirs["accuracy"]),
    ]


def lost_at(model: Model) -> float:
    """The largest loss that leaves IN_SCOPE of the in-scope calibration rows right."""
    side = model.calibration
    right = side.rows.right & side.inside & ~side.rows.says_outside
    left = {
        lost: (right & (side.scores >= _threshold(side, lost))).sum() / side.inside.sum()
        for lost in LOSSES
    }
    return max((lost for lost in LOSSES if left[lost] >= IN_SCOPE), default=LOSSES[0])


def _threshold(side: Side, lost: float) -> float:
    return float(np.quantile(side.scores[side.rows.right & side.inside], lost, method="lower"))


def at_loss(model: Model, lost: float) -> dict[str, float]:
    """The threshold that sends so many of the right in-scope calibration
    answers away, measured on test rows.
    """
    threshold = _threshold(model.calibration, lost)
    kept = model.test.kept(threshold)
    right = kept & model.test.rows.right & model.test.inside
    return {
        "lost": lost,
        "accuracy": round(float(right.sum() / model.test.inside.sum()), 4),
        "recall": round(float((~kept[model.test.rows.outside]).mean()), 4),
    }


def at_kept(model: Model) -> dict[str, float]:
    """The threshold that keeps so many of the in-scope calibration rows, measured on test rows."""
    side = model.calibration
    usable = np.where(side.rows.says_outside, -np.inf, side.scores)[side.inside]
    threshold = float(np.quantile(usable, 1 - KEPT, method="lower"))
    kept = model.test.kept(threshold)
    inside = kept & model.test.inside
    return {
        "kept": float(inside.sum() / model.test.inside.sum()),
        "accuracy": float(model.test.rows.right[inside].mean()),
        "away": float((~kept[model.test.rows.outside]).mean()),
    }


def accuracy(model: Model) -> float:
    """Of the in-scope test rows, nothing escalated."""
    return round(float(model.test.rows.right[model.test.inside].mean()), 4)


def auroc(side: Side) -> float:
    """Chance that an in-scope row scores above an out-of-scope one."""
    scores = np.where(side.rows.says_outside, -np.inf, side.scores)
    inside, outside = scores[side.inside], np.sort(scores[side.rows.outside])
    below = np.searchsorted(outside, inside, side="left") + np.searchsorted(
        outside, inside, side="right"
    )
    return float(below.mean() / (2 * len(outside)))


def resplits(lines: Sequence[dict[str, Any]], size: int, task: Task, count: int) -> dict[str, Any]:
    """Calibrate on a random part of the rows, again and again: how often the realised error of the
    rest is as promised.

    Every policy is fitted and tested as `slmctl calibrate` does it; out-of-scope questions that are
    kept are errors.
    """
    draw, errors, kept, failed = np.random.default_rng(0), [], [], 0
    every = calibrate.read(lines, task, PROMISE)
    for _ in range(count):
        part = np.isin(np.arange(len(lines)), draw.permutation(len(lines))[:size])
        rows = every.only(~part)
        try:
            found = error_threshold.fit(every.only(part), PROMISE)
        except GateError:
            failed += 1
            continue
        weights = np.array([found["weights"][name] for name in rows.names])
        here = Side(rows, rows.signals @ weights + found["bias"]).kept(found["threshold"])
        errors.append(float((~rows.right | rows.outside)[here].mean()))
        kept.append(float(here.mean()))
    return {
        # without a policy nothing is kept
        "within": sum(error <= PROMISE.max_error for error in errors) + failed,
        "without_policy": failed,
        "median_error": float(np.median(errors)),
        "largest_error": max(errors),
        "median_kept": float(np.median(kept)),
    }


def banking(given: Given) -> list[result.Row]:
    """Banking77: how many answers are kept at an accuracy of 95 %, set on calibration rows."""
    settings = CalibrateConfig(max_error=0.05)
    rows = []
    for peer, lines in (
        (LOCALDESK, given.lines(given.kinds[0])),
        ("TF-IDF, same rows and policy", given.linear()),
    ):
        model = modelled(*lines, given.task, settings)
        side = model.calibration
        order = np.argsort(-side.scores)
        shares = np.cumsum(side.rows.right[order]) / np.arange(1, len(order) + 1)
        enough = np.flatnonzero(shares >= 0.95)
        threshold = float(side.scores[order[enough[-1]]]) if len(enough) else np.inf
        kept = model.test.kept(threshold)
        rows.append((peer, float(kept.mean()), float(model.test.rows.right[kept].mean())))
    (peer, kept, right), (tfidf, theirs, theirs_right) = rows
    return [
        result.single("Banking77: share kept at 95%", kept, peer, 0.93, ">= 0.96"),
        result.single("Banking77: accuracy of those kept", right, peer, 0.95, ">= 0.95"),
        result.single("Banking77: share kept at 95%", kept, tfidf, theirs),
        result.single("Banking77: accuracy of those kept", right, tfidf, theirs_right),
    ]


def costs(model: Model) -> list[dict[str, Any]]:
    """Over every share of questions that is answered here: what is right,
    here and with a simulated general model.
    """
    side = model.test
    scores = np.where(side.rows.says_outside, -np.inf, side.scores)
    good, n = side.rows.right & side.inside, len(scores)
    found = []
    for share in np.arange(0.02, 1.001, 0.02):
        threshold = float(np.quantile(scores, 1 - share, method="higher"))
        kept = side.kept(threshold)
        if not kept.any():
            continue
        found.append(
            {
                "kept": round(float(kept.mean()), 4),
                "accuracy_here": round(float(good[kept].mean()), 4),
                "out_of_scope_away": round(float((~kept[side.rows.outside]).mean()), 4),
                "accuracy": {
                    str(g): round(float((good[kept].sum() + g * (~kept).sum()) / n), 4)
                    for g in GENERALISTS
                },
            }
        )
    return found


def drawn(curve: dict[str, list[dict[str, Any]]]) -> Any:
    """The cost-quality curve of our file, and what TF-IDF keeps right."""
    ours = curve["ours"]
    lines = [
        LineSeries(
            "answered here", [Point(one["kept"], one["accuracy_here"]) for one in ours], "c1"
        ),
        LineSeries(
            "TF-IDF", [Point(one["kept"], one["accuracy_here"]) for one in curve["tfidf"]], "c5"
        ),
        *(
            LineSeries(
                f"all, general model {percent(g, 0)}",
                [Point(one["kept"], one["accuracy"][str(g)]) for one in ours],
                colour,
                dashed=True,
            )
            for g, colour in ((0.9, "c2"), (1.0, "c3"))
        ),
    ]
    low = min(point.y for line in lines for point in line.points)
    return svg_chart.lines(
        lines,
        title="Cost and quality on CLINC150",
        x_label="share answered here; the rest is paid for elsewhere",
        y_label="share right",
        x_range=(0.0, 1.0),
        y_range=(max(0.0, low - 0.02), 1.0),
        percent=True,
        width=2 * svg_chart.WIDTH,
        height=340,
    )


if __name__ == "__main__":
    main()
