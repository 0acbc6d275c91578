"""Cheap models on Banking77, CLINC150 and the demo: accuracy, by rows a label too; and tuned files beside them.

    python -m benchmarks.sharper DATA DEMO [--encoder ENCODER]
    python -m benchmarks.sharper --tuned PROJECT...

DATA holds public data sets as `../shared/data/` does, DEMO is a project that has prepared the demo's rows. Of few rows
a label the accuracy is the mean of DRAWS draws, and a fifth as many are validation rows. ENCODER is what
`encode.encoder` takes. `both` is the sum that the stage `encode` makes.

Each PROJECT has a section `encode` and has run until `evaluate`, by which its test rows were scored once: the newest
report is read. Whether a release carries the encoder's opinion was decided on validation rows.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks import program, result
from benchmarks.program import Pairs
from slmctl.config import EncodeConfig
from slmctl.inference import WITH_ENCODER
from slmctl.metrics import encoder_head
from slmctl.metrics.encoder_head import Floats
from slmctl.metrics.statistics import wilson
from slmctl.model_files import encoder_source
from slmctl.models.encoder_process import Encoder
from slmctl.task.records import read_records

PEER = "TF-IDF, same rows"
A_LABEL = (5, 10, 20, 0)  # training rows of each label; 0 for all
DRAWS = 5  # of few rows a label


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("demo", type=Path, nargs="?")
    parser.add_argument("--tuned", type=Path, nargs="+", default=())
    parser.add_argument("--encoder", default=EncodeConfig().encoder)
    options = parser.parse_args()
    packages = ("scikit-learn", "numpy", "llama-cpp-python")
    if options.tuned:
        about: dict[str, object] = {}
        tuned_rows = [row for project in options.tuned for row in tuned(project, about)]
        result.write("opinion", "python -m benchmarks.sharper --tuned PROJECT...", tuned_rows, packages, projects=about)
        return
    rows: list[result.Row] = []
    intervals: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        gguf, _ = encoder_source.kept(EncodeConfig(encoder=options.encoder), Path(scratch))
        with Encoder(gguf) as encoder:
            sets = {
                "Banking77": program.banking77(options.data),
                "CLINC150": program.clinc150(options.data),
                "the demo": demo(options.demo),
            }
            for name, splits in sets.items():
                rows += measured(name, encoder, *splits, intervals)
    result.write(
        "sharper", "python -m benchmarks.sharper DATA DEMO", rows, packages,
        encoder=encoder_source.name(options.encoder), intervals=intervals,
    )  # fmt: skip


def tuned(project: Path, about: dict[str, object]) -> list[result.Row]:
    """A finished project's file, with the encoder's opinion and without, beside its baselines."""
    path = max(project.glob("runs/report/[!.]*/report.json"), key=lambda path: path.stat().st_mtime)
    report = json.loads(path.read_bytes())
    both = next(name for name in report["models"] if name.endswith(WITH_ENCODER))
    alone = both.removesuffix(WITH_ENCODER)
    entries = {**report["models"], **report["baselines"]}
    accuracy = {name: entry["metrics"]["accuracy"] for name, entry in entries.items()}
    title = f"{project.absolute().name}, {report['n']} test rows"
    peers = {alone: alone, "encoder_logistic": "encoder and TF-IDF", "tfidf_logistic": "TF-IDF"}
    rows = [
        result.single(f"{title}: accuracy of {both}", accuracy[both], peer, accuracy[name])
        for name, peer in peers.items()
    ]
    speed = {name: entries[name]["rows_per_s"] for name in (both, alone, "encoder_logistic")}
    rows += [
        result.single(f"{title}: rows/s of {name}", speed[name], both, speed[both])
        for name in (alone, "encoder_logistic")
    ]
    (pair,) = [entry for key, entry in report["pairs"].items() if set(key.split("|")) == {both, alone}]
    (adapter,) = project.glob("runs/adapter/[!.]*/manifest.json")
    about[project.absolute().name] = {
        "verdict": report["second_opinion"], "intervals": {name: entries[name]["interval"] for name in entries},
        "pair": pair["metrics"]["accuracy"], "training_s": json.loads(adapter.read_bytes())["seconds"],
        "latency_ms": {name: entries[name]["latency_ms"] for name in speed},
    }  # fmt: skip
    return rows


def demo(project: Path) -> tuple[Pairs, Pairs, Pairs]:
    (prepared,) = project.glob("runs/prepared/[!.]*")
    records = (read_records(prepared / f"{split}.jsonl") for split in ("train", "validation", "test"))
    train, validation, test = ([(record.input, record.answer) for record in each] for each in records)
    return train, validation, test


def measured(
    name: str, encoder: Encoder, train: Pairs, validation: Pairs, test: Pairs,
    intervals: dict[str, tuple[float, float]],
) -> list[result.Row]:  # fmt: skip
    """The rows of one data set, and the 95 % interval of each accuracy (of a mean of draws: of the test rows alone)."""
    train, validation, test = (list(split) for split in (train, validation, test))
    vectors = [encoder.encode([text for text, _ in split]) for split in (train, validation, test)]
    labels = sorted({label for _, label in train})
    named = labels, encoder.encode([encoder_head.spoken(label) for label in labels])
    rows = []
    for count in A_LABEL:
        told = f"{name}, {f'{count} rows a label' if count else f'all {len(train)} training rows'}"
        begun, tables = time.process_time(), list[dict[str, float]]()
        for draw in range(DRAWS if count else 1):
            drawn, choosing = few(train, count, draw), few(validation, max(1, count // 5) if count else 0, draw)
            tables.append(scored(
                [train[k] for k in drawn], [validation[k] for k in choosing], test, vectors[0][drawn],
                vectors[1][choosing], vectors[2], named,
            ))  # fmt: skip
        spent = time.process_time() - begun
        accuracies = {kind: float(np.mean([table[kind] for table in tables])) for kind in tables[0]}
        tfidf = accuracies.pop(PEER)
        intervals[f"{told}: {PEER}"] = wilson(round(tfidf * len(test)), len(test))
        for kind, value in accuracies.items():
            rows.append(result.single(f"{told}: accuracy of {kind}", value, PEER, tfidf))
            intervals[f"{told}: {kind}"] = wilson(round(value * len(test)), len(test))
    rows.append(result.single(f"{name}, all rows: CPU-seconds of fits and answers", spent, "", 0))
    return rows


def few(train: Pairs, count: int, draw: int) -> list[int]:
    """The places of `count` rows of each label, drawn by a seed; of all rows for 0."""
    places: dict[str, list[int]] = defaultdict(list)
    for k, (_, label) in enumerate(train):
        places[label].append(k)
    choose = random.Random(1000 * draw + count)
    drawn = [choose.sample(of_label, min(count, len(of_label))) for _, of_label in sorted(places.items())]
    return sorted(itertools.chain(*drawn)) if count else list(range(len(train)))


def scored(
    train: Pairs, validation: Pairs, test: Pairs, learned: Floats, choosing: Floats, asked: Floats,
    named: encoder_head.Named,
) -> dict[str, float]:  # fmt: skip
    """The accuracy of each cheap model on the test rows."""
    (texts, labels), (others, chosen), (questions, wanted) = (
        zip(*rows, strict=True) for rows in (train, validation, test)
    )
    both, tfidf = encoder_head.fit(texts, learned, labels, choosing=(others, choosing), chosen=chosen, named=named)
    kinds = {PEER: tfidf.logprobs(questions), "the encoder": both.head.scored(questions, asked)[0]}
    kinds["both"] = both.scored(questions, asked)[0]
    names = np.array(both.labels)
    return {kind: float((names[table.argmax(axis=1)] == np.array(wanted)).mean()) for kind, table in kinds.items()}


if __name__ == "__main__":
    main()
