"""Students of a teacher's labels: what accepted labels win, and soft targets beside hard ones.

The teacher is a release on this machine that is trained on rows that no student gets, with the same base as the
students. Everything is a project below `--folder`, so a run that is stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import result
from slmctl.console import percent
from slmctl.metrics import statistics
from slmctl.metrics.statistics import Floats

GOLD, WON = 300, ">= 0.6"
GAIN = ">= 0"  # of soft over hard targets: the lower bound of the paired difference, see `soft`
CONFIDENCE = 0.95
LAX = "  max_error: 10%\n"  # of `soft`: its doubt says something where a teacher is less sure
HEAD = (
    'project: {name}\nversion: "1.0"\nbase: {base}\npull: {{rehearse: false}}\n'
    "task: {{kind: classify, labels: {labels}, system: Name the intent.}}\n"
)
STUDENT = """\
prepare:
  sources:
    - {{path: gold.csv, input: text, output: category}}
    - {{path: {test}, input: text, output: category, split: test}}
{labelled}  splits: {{validation: {validation}, calibration: 0, test: 0}}
  min_rows: {{validation: 0, test: 0, label: 0}}
  max_overlap: 100%
finetune: {{epochs: {epochs}, label_smoothing: {smoothing}, seed: {seed}, lora: {{dropout: 0.05}}}}
quantize: {{types: [Q8_0]}}
evaluate: {{models: [gguf]}}
publish: {{memorisation: {{probes: 0}}}}
"""


@dataclass(frozen=True)
class Form:
    """The size of a measurement.

    Attributes:
        rows: Training rows that students get, gold ones included; 0 for half of all.
        taught: Training rows of the teacher; 0 for all others.
        tested: Test rows; 0 for all.
        seeds: Trainings of each student of `soft`.
    """

    rows: int = 0
    taught: int = 0
    epochs: int = 4
    tested: int = 0
    seeds: int = 1


FULL, QUICK = Form(seeds=2), Form(rows=1500, taught=3000, epochs=3, tested=1500)


@dataclass(frozen=True)
class Data:
    """Texts with their labels: rows of students, of the teacher, and of the test."""

    name: str
    mine: list[tuple[str, str]]
    others: list[tuple[str, str]]
    test: list[tuple[str, str]]

    def with_gold_first(self, draw: int) -> Data:
        """The same with another part of the students' rows before the others: it is the gold one."""
        start = draw * GOLD
        gold = self.mine[start : start + GOLD]
        return dataclasses.replace(self, mine=[*gold, *self.mine[:start], *self.mine[start + GOLD :]])

    @property
    def labels(self) -> str:
        return json.dumps(sorted({label for _, label in (*self.mine, *self.others)}))


def add_arguments(parser: argparse.ArgumentParser, *, several: bool) -> None:
    """The arguments of `students` and `soft`."""
    parser.add_argument("data", type=Path, nargs="+" if several else None)
    parser.add_argument("--base", required=True, help="base of teacher and students")
    help = "a teacher that was trained on other rows, one for each of the data sets in turn; made when left out"
    parser.add_argument("--release", type=Path, action="append", default=[], help=help)
    parser.add_argument("--folder", type=Path, default=Path("label-students"))
    if not several:
        help = f"which {GOLD} rows are gold: some draws allow no bound, see `bound`"
        parser.add_argument("--draw", type=int, default=0, help=help)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK}")


def read(folder: Path, form: Form) -> Data:
    """A data set, shuffled once: CSV (text, category), or CLINC150's JSON without its out-of-scope questions."""
    if (folder / "data_full.json").is_file():
        parts = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
        train, test = ([(text, label) for text, label in parts[name]] for name in ("train", "test"))
    else:
        train, test = (_read_csv(folder / f"{name}.csv") for name in ("train", "test"))
    random.Random(0).shuffle(train)
    random.Random(0).shuffle(test)
    half = len(train) // 2
    others = train[half : half + (form.taught or len(train))]
    return Data(folder.name, train[: form.rows or half], others, test[: form.tested or len(test)])


def _read_csv(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [(row["text"], row["category"]) for row in csv.DictReader(stream)]


def learn(options: argparse.Namespace) -> list[result.Row]:
    """Accuracy on the test rows of students on 300 rows, on these and accepted labels, and on all rows.

    Raises:
        SystemExit: The gold rows of this draw give no bound, so there is nothing to learn from the teacher.
    """
    form = QUICK if options.quick else FULL
    data, folder = read(options.data, form), options.folder.resolve()
    release = next(iter(options.release), None) or teacher(data, folder / data.name / "teacher", options.base, form)
    drawn, students = data.with_gold_first(options.draw), {}
    names = {"300": f"{GOLD} rows", "all": f"all {len(data.mine)} rows"}
    for name in (f"accepted-{options.draw}", f"300-{options.draw}", "all"):
        kind = name.partition("-")[0]
        mine, gold = (data, data.mine) if kind == "all" else (drawn, drawn.mine[:GOLD])
        label = taught_by(release) if kind == "accepted" else ""
        place = project(folder / data.name / name, mine, gold, options.base, form, label)
        if label:
            slmctl(place, "label")
            if not accepted(place):
                sys.exit(f"draw {options.draw} of the gold rows gives no bound; --draw {options.draw + 1} is the next")
            names[kind] = f"{GOLD} rows and {len(accepted(place))} accepted labels"
        students[kind] = measured(place)
    few, more, most = (students[kind].accuracy for kind in ("300", "accepted", "all"))
    return [
        *(
            single(f"{names[kind]}: accuracy on the test rows ({students[kind].between})", students[kind].accuracy,
                   "TF-IDF, same rows", students[kind].linear)
            for kind in ("300", "accepted", "all")
        ),
        single(f"share of the distance from {GOLD} rows to all that is won", (more - few) / (most - few), "all rows",
               1.0, WON),
    ]  # fmt: skip


def soft(options: argparse.Namespace) -> list[result.Row]:
    """Students of the same accepted rows, with hard labels and with the teacher's distribution over labels.

    The rule, fixed before anything was measured: soft targets are worth their cost only if the lower bound of their
    gain in accuracy, paired over the test rows of all data sets at 95 %, one-sided, is above 0, and no data set by
    itself loses. A row counts once, with the mean of its seeds: two trainings of one recipe answer it much alike.
    """
    form = QUICK if options.quick else FULL
    rows, gains, losing = [], [], 0
    for folder, release in itertools.zip_longest(options.data, options.release):
        data, own = read(folder, form), options.folder.resolve() / folder.name
        release = release or teacher(data, own / "teacher", options.base, form)
        by_seed = []
        scores: dict[str, list[float]] = {"soft": [], "hard": []}
        for seed in range(form.seeds):
            right, labels = {}, own / f"accepted-{seed}.jsonl"
            for kind in scores:
                gold = data.mine[:GOLD]
                place = project(
                    own / f"{kind}-{seed}", data, gold, options.base, form,
                    taught_by(release) + LAX + "  soft: true\n" if kind == "soft" else "", seed, smoothing=0.0,
                    labelled=labels if kind == "hard" else None,
                )  # fmt: skip
                scores[kind].append(measured(place).accuracy)
                right[kind] = answers(place)
                if kind == "soft":
                    labels.write_bytes(accepted_file(place).read_bytes())
                    if not accepted(place):
                        sys.exit(f"{data.name}: the gold rows give no bound, so no label was accepted")
            by_seed.append([int(right["soft"][id]) - int(right["hard"][id]) for id in sorted(right["hard"])])
        gain = np.mean(by_seed, axis=0)  # (test rows,)
        low, high = statistics.percentiles(resampled_means(gain), CONFIDENCE)
        print(f"{data.name}: soft less hard {percent(low)} to {percent(high)}")  # noqa: T201
        hard, distribution = (float(np.mean(scores[kind])) for kind in ("hard", "soft"))
        rows.append(
            single(f"{data.name}: accuracy with soft targets, mean of seeds", distribution, "hard labels", hard)
        )
        gains.append(gain)
        losing += int(gain.mean() < 0)
    bound = float(np.quantile(resampled_means(np.concatenate(gains)), 1 - CONFIDENCE))
    return [
        *rows,
        single("gain in accuracy of soft targets, at least (95 %, paired, all data sets)", bound, "to be kept", 0.0,
               GAIN),
        single("data sets on which soft targets lose", losing, "to be kept", 0, "<= 0"),
    ]  # fmt: skip


def resampled_means(values: Floats) -> Floats:
    """The means of bootstrap samples of rows."""
    return np.concatenate([weights @ values for weights in statistics.resamples(len(values))]) / len(values)


def accepted(place: Path) -> list[str]:
    """The ids of the rows that a student learned from its teacher."""
    return [json.loads(line)["id"] for line in accepted_file(place).read_text(encoding="utf-8").splitlines()]


def accepted_file(place: Path) -> Path:
    (told,) = (place / "runs" / "labelled").glob("[!.]*")
    return told / "accepted.jsonl"


def teacher(data: Data, place: Path, base: str, form: Form) -> Path:
    """A release that is trained on the rows that no student gets; a twentieth of them tests it, and no test row."""
    cut = len(data.others) // 20
    write_csv(place / "own_test.csv", data.others[:cut])
    made = project(place, data, data.others[cut:], base, form, "", test="own_test.csv")
    print(f"teacher of {data.name}: {len(data.others) - cut} rows")  # noqa: T201
    slmctl(made, "run", "--until", "publish")
    return made / "registry" / data.name / "1.0"


def taught_by(release: Path) -> str:
    return (
        "label:\n  sources: [{path: new.jsonl, input: text}]\n"
        "  gold: {path: gold.csv, input: text, output: category}\n"
        f"  teachers: [{{release: {release.resolve()}}}]\n"
    )


def project(
    place: Path, data: Data, gold: Sequence[tuple[str, str]], base: str, form: Form, label: str, seed: int = 0, *,
    smoothing: float = 0.1, test: str = "", labelled: Path | None = None,
) -> Path:  # fmt: skip
    """A project of a student, or of the teacher; with `labelled`, on rows that another project has labelled too."""
    place.mkdir(parents=True, exist_ok=True)
    write_csv(place / "gold.csv", gold)
    if not test:
        write_csv(place / "test.csv", data.test)
    new = "".join(json.dumps({"text": text}) + "\n" for text, _ in data.mine[GOLD:])
    (place / "new.jsonl").write_text(new, encoding="utf-8")
    validation = 0.1 if len(gold) <= GOLD else 0.03
    more = f"    - {{path: {labelled}, input: input, output: output, id: id, weight: weight, split: train}}\n"
    text = HEAD.format(name=data.name, base=base, labels=data.labels) + STUDENT.format(
        test=test or "test.csv",
        labelled=more if labelled else "",
        validation=validation,
        epochs=form.epochs,
        smoothing=smoothing,
        seed=seed,
    )
    (place / "slmctl.yaml").write_text(text + label, encoding="utf-8")
    return place


def write_csv(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "category"), *rows])


@dataclass(frozen=True)
class Student:
    """Accuracy on the test rows of a student's file, its interval at 95 %, and that of a linear model on its rows."""

    accuracy: float
    between: str
    linear: float


def measured(place: Path) -> Student:
    """Train a student and score the test rows once."""
    made = json.loads(slmctl(place, "run", "--until", "evaluate", "--json"))["metrics"]
    model, linear = made["models"]["Q8_0"], made["baselines"]["tfidf_logistic"]["metrics"]["accuracy"]
    student = Student(model["metrics"]["accuracy"], " to ".join(map(percent, model["interval"])), linear)
    print(f"{place.parent.name} {place.name}: {student}")  # noqa: T201
    return student


def answers(place: Path) -> dict[str, bool]:
    """Whether the answer to each test row is right, by the row's id."""
    (data,) = (place / "runs" / "prepared").glob("[!.]*")
    (told,) = (place / "runs" / "predictions").glob("[!.]*")
    lines = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()
    truth = {row["id"]: row["label"] for row in map(json.loads, lines)}
    given = map(json.loads, (told / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["answer"] == truth[row["id"]] for row in given}


def slmctl(folder: Path, *args: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "slmctl", "-C", str(folder), *args], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def single(metric: str, ours: float, peer: str, theirs: float, goal: str = "") -> result.Row:
    """A figure that is measured once."""
    ratio = round(ours / theirs, 4) if theirs else 0.0
    return result.Row(metric, round(ours, 5), peer, round(theirs, 5), ratio, (ratio, ratio), goal,
                      result.meets(ours, goal))  # fmt: skip
