"""A sum for the task `tag`, where a row has any number of labels: what encoder and words add to a tuned file's lists.

    python -m benchmarks.tags --make DATA BASE FOLDER
    python -m benchmarks.tags NAME=PROJECT=ANSWERS...

With `--make` FOLDER gets the project `slots`, whose rows are SNIPS requests and whose labels are the slots that each
names, and `letters`, the template `topic-tagging`; each with FRESH more rows, `fresh.jsonl`. A PROJECT has run until
`evaluate`, and has then answered its validation rows (`slmctl predict gguf --split validation`) and the fresh ones
(`--input fresh.jsonl --output ANSWERS`).

Encoder and words learn the training rows, a model for each label; validation rows choose their strength. Two logistic
regressions over what the members say of a label learn the validation rows: one for each label, and one for all.
"""

from __future__ import annotations

import csv
import importlib
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import program, result
from benchmarks.sharper import newest, predictions
from slmctl.config import EncodeConfig
from slmctl.metrics import linear_baseline
from slmctl.metrics.cross_fitting import STRENGTHS
from slmctl.metrics.statistics import mcnemar, wilson
from slmctl.model_files import encoder_source
from slmctl.models.encoder_process import Encoder
from slmctl.task.records import read_records

TRAIN, VALIDATION, FRESH = 1000, 300, 1500  # rows of SNIPS; of both sets
EXAMPLES, SEED = Path(__file__).parents[1] / "examples" / "data", 777  # of letters that the template does not have
MEMBERS = "list", "confidence", "encoder", "words"  # what the file wrote; that, as sure as the file was; linear models
ALONE, EACH, ALL = "the file alone", "a sum of each label's own", "one sum for all labels"
LEAST = 1e-4  # of a probability, so that its logit has bounds
Table = npt.NDArray[np.float64]  # (rows, labels)
CONFIG = """\
project: slots
base: {base}
task: {{kind: tag, labels: {labels}, system: Name the slots of the request.}}
prepare:
  sources:
    - {{path: train.jsonl, input: text, output: topics}}
    - {{path: validation.jsonl, input: text, output: topics, split: validation}}
    - {{path: test.jsonl, input: text, output: topics, split: test}}
  splits: {{validation: 0, calibration: 0, test: 0}}
quantize: {{types: [Q8_0]}}
evaluate: {{models: [gguf]}}
"""


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("projects", nargs="*")
    parser.add_argument("--make", nargs=3)
    options = parser.parse_args()
    if options.make:
        data, base, folder = options.make
        return make(Path(data), base, Path(folder))
    rows, facts = list[result.Row](), dict[str, Any]()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Encoder(encoder_source.kept(EncodeConfig(), Path(scratch))[0]) as encoder,
    ):
        for name, project, answers in (option.split("=") for option in options.projects):
            rows += measured(name, Path(project), Path(answers), encoder, facts)
    result.write(
        "tags", "python -m benchmarks.tags NAME=PROJECT=ANSWERS...", rows,
        ("scikit-learn", "numpy", "llama-cpp-python"), facts=facts,
    )  # fmt: skip


def make(data: Path, base: str, folder: Path) -> None:
    """Write both projects."""
    rows, test = (
        [
            {"text": row["utterance"], "topics": sorted(row["slots"])}
            for row in program.read_jsonl(data / f"snips/{split}.jsonl")
        ]
        for split in ("train", "test")
    )
    random.Random(0).shuffle(rows)
    held, kept = rows[: TRAIN + VALIDATION], {row["text"].lower() for row in rows[: TRAIN + VALIDATION]}
    fresh = [row for row in rows[len(held) :] if row["text"].lower() not in kept][:FRESH]
    parts = {"train": held[:TRAIN], "validation": held[TRAIN:], "test": test, "fresh": fresh}
    (folder / "slots").mkdir(parents=True)
    for part, those in parts.items():
        program.write_jsonl(folder / "slots" / f"{part}.jsonl", those)
    labels = sorted({name for row in rows for name in row["topics"]})
    config = CONFIG.format(base=base, labels=json.dumps(labels))
    (folder / "slots" / "slmctl.yaml").write_text(config, encoding="utf-8")
    program.slmctl(folder, "init", "topic-tagging", "letters")
    program.write_jsonl(folder / "letters" / "fresh.jsonl", letters())


def letters() -> list[dict[str, Any]]:
    """Letters by another seed, none of them nearly one of the template's."""
    sys.path.append(str(EXAMPLES))
    generate = importlib.import_module("generate")
    seen = generate.Seen(generate.NEAR)
    with (EXAMPLES / "customer_letters.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            seen.add(row["text"])
    made = csv.DictReader(generate.letters_csv(random.Random(SEED)).splitlines())
    rows = [(row["text"], row["topics"]) for row in made if seen.add(row["text"])]
    return [{"text": text, "topics": [] if topics == "[]" else topics.split("; ")} for text, topics in rows]


def measured(name: str, project: Path, answers: Path, encoder: Encoder, facts: dict[str, Any]) -> list[result.Row]:
    """The rows of one project: lists that are right as a whole, and F1 over all labels.

    Args:
        facts: Gets intervals, and rows won and lost against the file, by name of a sum.
    """
    prepared = newest(project, "prepared")
    records = {split: read_records(prepared / f"{split}.jsonl") for split in ("train", "validation", "test")}
    labels = sorted({label for each in records.values() for record in each for label in json.loads(record.answer)})
    texts = {split: [record.input for record in each] for split, each in records.items()}
    truth = {split: table([json.loads(record.answer) for record in each], labels) for split, each in records.items()}
    lines = {split: predictions(project, "Q8_0", split) for split in ("validation", "test")}
    lines["fresh"] = program.read_jsonl(answers)
    texts["fresh"] = [line["text"] for line in lines["fresh"]]
    truth["fresh"] = table([line["topics"] for line in lines["fresh"]], labels)
    for split in ("validation", "test"):
        assert [line["id"] for line in lines[split]] == [record.id for record in records[split]]
    said = linear(texts, truth, encoder)
    for split, each in lines.items():
        lists = 2 * table([json.loads(line["answer"] or "[]") for line in each], labels) - 1
        said[split][:, :, 0] = lists
        said[split][:, :, 1] = lists * logit(np.array([[line["confidence"] or 0.0] for line in each]))
    told = list[result.Row]()
    for split in ("test", "fresh"):
        title = f"{name}, {len(texts['train'])} training rows, {len(texts[split])} {split} rows"
        told += compared(title, said, truth, split, facts)
    return told


def compared(
    title: str, said: dict[str, Table], truth: dict[str, Table], split: str, facts: dict[str, Any]
) -> list[result.Row]:
    labels, members = said["validation"].shape[1:]
    each = [fitted(said["validation"][:, k], truth["validation"][:, [k]], 1.0) for k in range(labels)]
    (one,) = fitted(said["validation"].reshape(-1, members), truth["validation"].reshape(-1, 1), 1.0)
    found = {
        EACH: np.stack([chances(models, said[split][:, k])[:, 0] for k, models in enumerate(each)], axis=1) > 0.5,
        ALL: chances([one], said[split].reshape(-1, members)).reshape(-1, labels) > 0.5,
    }
    of_file, told = said[split][:, :, 0] > 0, list[result.Row]()
    alone = (of_file == truth[split]).all(axis=1)
    for kind, table in found.items():
        right = (table == truth[split]).all(axis=1)
        won, lost = int((right & ~alone).sum()), int((alone & ~right).sum())
        facts[f"{title}: {kind}"] = {
            "won": won, "lost": lost, "p": mcnemar(won, lost), "interval": wilson(int(right.sum()), len(right)),
        }  # fmt: skip
        told += [
            result.single(f"{title}: whole lists by {kind}", right.mean(), ALONE, alone.mean()),
            result.single(f"{title}: F1 by {kind}", f1(table, truth[split]), ALONE, f1(of_file, truth[split])),
        ]
    return told


def linear(texts: dict[str, list[str]], truth: dict[str, Table], encoder: Encoder) -> dict[str, Table]:
    """By split what the members say, (rows, labels, MEMBERS), in logits: the linear ones here, the file's still 0."""
    vectorized = linear_baseline._vectorized(texts["train"], runs=True, hashed=True)
    assert vectorized is not None
    words, _ = vectorized
    features = {
        "encoder": {split: encoder.encode(each) for split, each in texts.items()},
        "words": {split: words.transform(each) for split, each in texts.items()},
    }
    said = {split: np.zeros((len(each), truth["train"].shape[1], len(MEMBERS))) for split, each in texts.items()}
    for member, of in features.items():
        best = min(
            (fitted(of["train"], truth["train"], strength) for strength in STRENGTHS),
            key=lambda models: loss(chances(models, of["validation"]), truth["validation"]),
        )
        for split, each in said.items():
            each[:, :, MEMBERS.index(member)] = logit(chances(best, of[split]))
    return said


def fitted(rows: Any, truth: Table, strength: float) -> list[Any]:
    """A logistic regression for each label; where all rows have it or none, their share."""
    from sklearn.linear_model import LogisticRegression

    return [
        LogisticRegression(C=strength, max_iter=1000).fit(rows, column) if 0 < column.mean() < 1 else column.mean()
        for column in truth.T
    ]


def chances(models: Sequence[Any], rows: Any) -> Table:
    """The probability of each label, (rows, labels)."""
    return np.stack([
        np.full(rows.shape[0], model) if isinstance(model, float) else model.predict_proba(rows)[:, 1]
        for model in models
    ], axis=1)  # fmt: skip


def table(lists: Sequence[Sequence[str]], labels: Sequence[str]) -> Table:
    """Which labels each list has, (rows, labels), 0 or 1."""
    return np.array([[label in each for label in labels] for each in lists], np.float64)


def logit(chance: Table) -> Table:
    kept = np.clip(chance, LEAST, 1 - LEAST)
    result: Table = np.log(kept / (1 - kept))
    return result


def loss(chance: Table, truth: Table) -> float:
    return -float(np.log(np.clip(np.where(truth > 0, chance, 1 - chance), LEAST, 1)).mean())


def f1(found: npt.NDArray[Any], truth: Table) -> float:
    """Over all labels of all rows."""
    return float(2 * ((found > 0) & (truth > 0)).sum() / ((found > 0).sum() + (truth > 0).sum()))


if __name__ == "__main__":
    main()
