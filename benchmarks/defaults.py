"""What finetune's defaults are chosen by: one setting changed at a time, on validation rows of two
data sets.

    python -m benchmarks.defaults DATA BASE [--written] [--folder FOLDER]

DATA is the folder that holds `banking77/` and `snips/`; BASE is what `base:` takes. Of each, 200
rows validate and 600 train, drawn by a hash of their text, so that a run takes a minute or two: a
label to choose, and a JSON object to write. The figure is the best validation loss of the run, per
answer token, without smoothing. No test row is used.

With `--written`, four recipes learn to write SNIPS as JSON from 1,000 rows, of which a tenth
validates and near duplicates are left out, and their Q8_0 files answer the test rows once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import program, result

TRAIN, VALIDATION = 600, 200
DEFAULT = "default"  # which was measured: `auto` takes five epochs at 8e-4 for so few rows
# one at a time from it
VARIANTS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "learning_rate 8e-4": ("learning_rate=8e-4",),
    "epochs 5": ("epochs=5",),
    "epochs 5, learning_rate 8e-4": ("epochs=5", "learning_rate=8e-4"),
}
BEFORE = "3 epochs at 4e-4 in batches of 16"
RECIPES: dict[str, tuple[str, ...]] = {  # of --written: as each was the default, the last one today
    BEFORE: ("epochs=3", "learning_rate=4e-4", "batch_size=16"),
    "5 epochs at 8e-4 in batches of 16": ("epochs=5", "learning_rate=8e-4", "batch_size=16"),
    "5 epochs at 5e-4 in batches of 4": ("epochs=5", "learning_rate=5e-4", "batch_size=4"),
    "5 epochs at 8e-4 in batches of 4": ("epochs=5", "learning_rate=8e-4", "batch_size=4"),
}
WRITTEN = """\
project: snips
base: {base}
task: {task}
prepare:
  sources:
    - {{path: rows.jsonl, input: text, output: answer}}
    - {{path: held.jsonl, input: text, output: answer, split: test}}
  splits: {{validation: 0.1, calibration: 0, test: 0}}
quantize: {{types: [Q8_0]}}
evaluate: {{models: [gguf]}}
"""
SCHEMA = Path(__file__).parent / "configs" / "snips.schema.json"
CONFIG = """\
project: {name}
base: {base}
task: {task}
prepare:
  sources:
    - {{path: rows.jsonl, input: text, output: answer}}
    - {{path: held.jsonl, input: text, output: answer, split: validation}}
  splits: {{validation: 0, calibration: 0, test: 0}}
  duplicates: {{exact: keep, near: keep, similarity: 1.0}}
  max_overlap: 1.0
finetune: {{epochs: 3, learning_rate: 4e-4}}
"""
TASKS = {
    "banking77": "{kind: classify, labels: from-data, system: Name the intent.}",
    "snips": "{kind: extract, schema: snips.schema.json, system: Write the intent and its slots as "
    "JSON.}",
}


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("base")
    parser.add_argument("--written", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("defaults"))
    options = parser.parse_args()
    if lacking := [name for name in TASKS if not (options.data / name).is_dir()]:
        sys.exit(f"{options.data} has no {' and no '.join(lacking)}: see benchmarks/README.md")
    if options.written:
        return written(options)
    found: dict[str, dict[str, Any]] = {}
    for name, task in TASKS.items():
        project = make(options.folder / name, name, task, options)
        program.slmctl(project, "run", "--until", "prepare")
        for variant, values in VARIANTS.items():
            sets = [f"finetune.{value}" for value in values]
            manifest = json.loads(program.slmctl(project, "finetune", "--json", sets=sets))
            metrics = manifest["metrics"]
            found.setdefault(name, {})[variant] = {
                "validation_loss": metrics["validation_loss"],
                "best_step": metrics["best_step"],
                "steps": metrics["steps"],
                "overfitted": metrics["overfitted"],
                "seconds": manifest["seconds"],
            }
            sys.stderr.write(f"{name}, {variant}: {found[name][variant]}\n")
    rows = [
        result.single(
            f"{name}, {variant}: validation loss",
            of["validation_loss"],
            DEFAULT,
            runs[DEFAULT]["validation_loss"],
        )
        for name, runs in found.items()
        for variant, of in runs.items()
        if variant != DEFAULT
    ]
    result.write(
        "defaults",
        "python -m benchmarks.defaults DATA BASE",
        rows,
        ("torch", "transformers", "trl", "peft"),
        base=options.base,
        train=TRAIN,
        validation=VALIDATION,
        runs=found,
    )


def written(options: argparse.Namespace) -> None:
    """Write `results/defaults-written.json`: whole objects, fields, loss and time by recipe."""
    project = options.folder / "written"
    rows, held = (list(rows_of(options.data, "snips", part)) for part in ("train", "test"))
    parts = {"rows.jsonl": rows[:1000], "held.jsonl": held}
    write_project(project, parts, WRITTEN.format(base=options.base, task=TASKS["snips"]))
    found: dict[str, dict[str, Any]] = {}
    for recipe, values in RECIPES.items():
        sets = [f"finetune.{value}" for value in values]
        program.slmctl(project, "run", "--until", "quantize", sets=sets)
        training = json.loads(program.slmctl(project, "finetune", "--json", sets=sets))
        report = Path(program.slmctl(project, "evaluate", "--model", "gguf", sets=sets).strip())
        entry = json.loads((report / "report.json").read_bytes())["models"]["Q8_0"]
        answers = [row["answers"][-1] for row in program.read_jsonl(report / "rows.jsonl")[1:]]
        found[recipe] = {
            **entry["metrics"],
            "interval": entry["interval"],
            "n": entry["n"],
            "seconds": training["seconds"],
            "validation_loss": training["metrics"]["validation_loss"],
            "steps": training["metrics"]["steps"],
            # of each test row, as a whole
            "right": "".join(str(int(score == 1.0)) for *_, score in answers),
        }
    told = [
        result.single(f"{recipe}: {metric}", of[metric], BEFORE, found[BEFORE][metric])
        for recipe, of in found.items()
        if recipe != BEFORE
        for metric in ("exact_match", "field_f1", "validation_loss")
    ]
    result.write(
        "defaults-written",
        "python -m benchmarks.defaults DATA BASE --written",
        told,
        ("torch", "transformers", "trl", "peft", "llama-cpp-python"),
        base=options.base,
        recipes=found,
    )


def make(folder: Path, name: str, task: str, options: argparse.Namespace) -> Path:
    """A project with a sample of one data set."""
    rows = list(rows_of(options.data, name))
    parts = {"held.jsonl": rows[:VALIDATION], "rows.jsonl": rows[VALIDATION : VALIDATION + TRAIN]}
    return write_project(folder, parts, CONFIG.format(name=name, base=options.base, task=task))


def write_project(folder: Path, parts: Mapping[str, Sequence[dict[str, Any]]], config: str) -> Path:
    """A project of some files of rows, the schema of SNIPS and a config; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, rows in parts.items():
        program.write_jsonl(folder / file, rows)
    shutil.copyfile(SCHEMA, folder / SCHEMA.name)
    (folder / "slmctl.yaml").write_text(config, encoding="utf-8")
    return folder


def rows_of(data: Path, name: str, part: str = "train") -> list[dict[str, Any]]:
    """The rows of a data set, each text once, in the order of a hash of their texts."""
    # the first one of each text stays
    found = {one["text"]: one for one in reversed(list(_read(data, name, part)))}
    return sorted(found.values(), key=lambda one: hashlib.sha256(one["text"].encode()).hexdigest())


def _read(data: Path, name: str, part: str) -> Iterator[dict[str, Any]]:
    """The rows of a part of a data set as text and answer."""
    if name == "banking77":
        pairs = program.read_csv(data / name / f"{part}.csv")
        yield from ({"text": text, "answer": category} for text, category in pairs)
        return
    for one in program.read_jsonl(data / name / f"{part}.jsonl"):
        yield {
            "text": one["utterance"],
            "answer": json.dumps({"intent": one["intent"], "slots": one["slots"]}),
        }


if __name__ == "__main__":
    main()
