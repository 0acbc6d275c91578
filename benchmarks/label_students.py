"""Students of a teacher's labels: what accepted labels win.

The teacher is a release on this machine that is trained on rows that no student gets, with the same
base as the students. Everything is a project below `--folder`, so a run that is stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import program, result
from benchmarks.program import Pairs, read_csv, slmctl, write_csv
from benchmarks.result import single
from slmctl.config import FinetuneConfig
from slmctl.console import percent

GOLD, WON = 300, ">= 0.6"
PEERS = {"tfidf_logistic": "TF-IDF", "encoder_logistic": "encoder"}
HEAD = (
    'project: {name}\nversion: "1.0"\nbase: {base}\npull: {{rehearse: false}}\n'
    "task: {{kind: classify, labels: {labels}, system: Name the intent.}}\n"
)
STUDENT = """\
prepare:
  sources:
    - {{path: gold.csv, input: text, output: category}}
    - {{path: {test}, input: text, output: category, split: test}}
  splits: {{validation: {validation}, calibration: 0, test: 0}}
  min_rows: {{validation: 0, test: 0, label: 0}}
  max_overlap: 100%
finetune: {recipe}
quantize: {{types: [Q8_0]}}
encode: {{}}
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
    """

    rows: int = 0
    taught: int = 0
    tested: int = 0


FULL, QUICK = Form(), Form(rows=2000, tested=1500)


@dataclass(frozen=True)
class Data:
    """Texts with their labels: rows of students, of the teacher, and of the test."""

    name: str
    mine: list[tuple[str, str]]
    others: list[tuple[str, str]]
    test: list[tuple[str, str]]

    def with_gold_first(self, draw: int) -> Data:
        """The same with another part of the students' rows
        before the others: it is the gold one.
        """
        start = draw * GOLD
        gold = self.mine[start : start + GOLD]
        return dataclasses.replace(
            self, mine=[*gold, *self.mine[:start], *self.mine[start + GOLD :]]
        )

    @property
    def labels(self) -> str:
        return json.dumps(sorted({label for _, label in (*self.mine, *self.others)}))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `students`."""
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", required=True, help="base of teacher and students")
    parser.add_argument(
        "--release", type=Path, help="a teacher that was trained on other rows; made when left out"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/label-students"))
    help = f"which {GOLD} rows are gold: some draws allow no bound, see `bound`"
    parser.add_argument("--draw", type=int, default=0, help=help)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK}")
    parser.add_argument(
        "--few", action="store_true", help=f"the student on {GOLD} rows alone, without a teacher"
    )


def read(folder: Path, form: Form) -> Data:
    """A data set, shuffled once: CSV (text, category), or CLINC150's
    JSON without its out-of-scope questions.
    """
    if (folder / "data_full.json").is_file():
        parts = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
        train, test = ([(text, label) for text, label in parts[name]] for name in ("train", "test"))
    else:
        train, test = (read_csv(folder / f"{name}.csv") for name in ("train", "test"))
    random.Random(0).shuffle(train)
    random.Random(0).shuffle(test)
    half = len(train) // 2
    others = train[half : half + (form.taught or len(train))]
    return Data(folder.name, train[: form.rows or half], others, test[: form.tested or len(test)])


def learn(options: argparse.Namespace) -> list[result.Row]:
    """Accuracy on the test rows of students on 300 rows, on these and accepted labels, and on all
    rows.

    Raises:
        SystemExit: The gold rows of this draw give no bound, so there is nothing to learn from the
            teacher.
    """
    form = QUICK if options.quick else FULL
    data, folder = read(options.data, form), options.folder.resolve()
    drawn, students = data.with_gold_first(options.draw), {}
    kinds, release = ("300",), options.release
    if not options.few:
        kinds = ("accepted", "300", "all")
        release = release or teacher(data, folder / data.name / "teacher", options.base)
    names = {"300": f"{GOLD} rows", "all": f"all {len(data.mine)} rows"}
    for kind in kinds:
        name = kind if kind == "all" else f"{kind}-{options.draw}"
        mine, gold = (data, data.mine) if kind == "all" else (drawn, drawn.mine[:GOLD])
        label = taught_by(release) if kind == "accepted" else ""
        place = project(folder / data.name / name, mine, gold, options.base, label)
        if label:
            slmctl(place, "label")
            if not accepted(place):
                sys.exit(
                    f"draw {options.draw} of the gold rows gives no bound; --draw "
                    f"{options.draw + 1} is the next"
                )
            names[kind] = f"{GOLD} rows and {len(accepted(place))} accepted labels"
        students[kind] = measured(place)
    rows = [
        single(
            f"{names[kind]}: accuracy on the test rows ({students[kind].between})",
            students[kind].accuracy,
            f"{peer}, same rows",
            value,
        )
        for kind in sorted(kinds)
        for peer, value in students[kind].baselines.items()
    ]
    if options.few:
        return rows
    few, more, most = (students[kind].accuracy for kind in ("300", "accepted", "all"))
    won = (more - few) / (most - few)
    return [
        *rows,
        single(
            f"share of the distance from {GOLD} rows to all that is won", won, "all rows", 1.0, WON
        ),
    ]


def accepted(place: Path) -> list[str]:
    """The ids of the rows that a student learned from its teacher."""
    (told,) = (place / "runs" / "labelled").glob("[!.]*")
    return [row["id"] for row in program.read_jsonl(told / "accepted.jsonl")]


def teacher(data: Data, place: Path, base: str) -> Path:
    """A release that is trained on the rows that no student gets; a
    twentieth of them tests it, and no test row.
    """
    cut = len(data.others) // 20
    write_csv(place / "own_test.csv", data.others[:cut])
    made = project(place, data, data.others[cut:], base, "", test="own_test.csv")
    print(f"teacher of {data.name}: {len(data.others) - cut} rows")  # noqa: T201
    slmctl(made, "run", "--until", "publish")
    return made / "registry" / data.name / "1.0"


def taught_by(release: Path) -> str:
    return (
        "label:\n  sources: [{path: new.jsonl, input: text}]\n"
        "  gold: {path: gold.csv, input: text, output: category}\n"
        f"  teachers: [{{release: {release.resolve()}}}]\n"
    )


def recipe(rows: int) -> dict[str, float]:
    """The section `finetune` that `auto` stands for with so many rows
    and a base of 135 million weights.
    """
    return (
        FinetuneConfig()
        .resolved(rows, 135_000_000, structured=False)
        .model_dump(include={"epochs", "learning_rate"})
    )


def project(place: Path, data: Data, gold: Pairs, base: str, label: str, *, test: str = "") -> Path:
    """A project of a student, or of the teacher."""
    write_csv(place / "gold.csv", gold)
    if not test:
        write_csv(place / "test.csv", data.test)
    program.write_jsonl(place / "new.jsonl", [{"text": text} for text, _ in data.mine[GOLD:]])
    validation = 0.1 if len(gold) <= GOLD else 0.03
    text = HEAD.format(name=data.name, base=base, labels=data.labels) + STUDENT.format(
        test=test or "test.csv", validation=validation, recipe=json.dumps(recipe(len(gold)))
    )
    (place / "slmctl.yaml").write_text(text + label, encoding="utf-8")
    return place


@dataclass(frozen=True)
class Student:
    """Accuracy on the test rows of a student's file, its interval at 95 %,
    and that of the baselines on its rows.
    """

    accuracy: float
    between: str
    baselines: dict[str, float]


def measured(place: Path) -> Student:
    """Train a student and score the test rows once."""
    made = json.loads(slmctl(place, "run", "--until", "evaluate", "--json"))["metrics"]
    model = made["models"]["Q8_0"]
    baselines = {
        peer: made["baselines"][name]["metrics"]["accuracy"] for name, peer in PEERS.items()
    }
    student = Student(
        model["metrics"]["accuracy"], " to ".join(map(percent, model["interval"])), baselines
    )
    print(f"{place.parent.name} {place.name}: {student}")  # noqa: T201
    return student
