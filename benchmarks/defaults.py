"""What finetune's defaults are chosen by: one setting changed at a time, on validation rows of two data sets.

    python -m benchmarks.defaults DATA BASE [--folder FOLDER] [--only NAME...]

DATA is the folder that holds `banking77/` and `snips/`; BASE is what `base:` takes. Of each, 200 rows validate and
600 train, drawn by a hash of their text, so that a run takes a minute or two: a label to choose, and a JSON object to
write. The figure is the best validation loss of the run, per answer token, without smoothing. No test row is used.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import result
from benchmarks.banking77 import slmctl

TRAIN, VALIDATION = 600, 200
DEFAULT = "default"
# one at a time from the default
VARIANTS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "learning_rate 1e-4": ("learning_rate=1e-4",),
    "learning_rate 2e-4": ("learning_rate=2e-4",),
    "learning_rate 8e-4": ("learning_rate=8e-4",),
    "learning_rate 1.6e-3": ("learning_rate=1.6e-3",),
    "epochs 1": ("epochs=1",),
    "epochs 2": ("epochs=2",),
    "epochs 4": ("epochs=4",),
    # the passes that `init` writes for so few rows, with the default rate and with that of `init`
    "epochs 5": ("epochs=5",),
    "epochs 5, learning_rate 8e-4": ("epochs=5", "learning_rate=8e-4"),
    "rank 8": ("lora.rank=8", "lora.alpha=16"),
    "rank 32": ("lora.rank=32", "lora.alpha=64"),
    "dropout 0.05": ("lora.dropout=0.05",),
    "batch 8": ("batch_size=8",),
    "batch 32": ("batch_size=32",),
    "label_smoothing 0.1": ("label_smoothing=0.1",),
    "weight_decay 0.01": ("weight_decay=0.01",),
    "schedule linear": ("lr_scheduler=linear",),
    "schedule constant": ("lr_scheduler=constant",),
    "warmup 0": ("warmup_ratio=0",),
    "clip 0.3": ("max_grad_norm=0.3",),
    "alpha 16": ("lora.alpha=16",),
    "dora": ("lora.dora=true",),
    "attention only": ("lora.target_modules=[q_proj,k_proj,v_proj,o_proj]",),
}
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
"""
TASKS = {
    "banking77": "{kind: classify, labels: from-data, system: Name the intent.}",
    "snips": "{kind: extract, schema: snips.schema.json, system: Write the intent and its slots as JSON.}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("base")
    parser.add_argument("--folder", type=Path, default=Path("defaults"))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    if lacking := [name for name in TASKS if not (options.data / name).is_dir()]:
        sys.exit(f"{options.data} has no {' and no '.join(lacking)}: see benchmarks/README.md")
    found: dict[str, dict[str, Any]] = {}
    for name, task in TASKS.items():
        project = make(options.folder / name, name, task, options)
        slmctl(project, [], "run", "--until", "prepare")
        for variant in dict.fromkeys((DEFAULT, *options.only)):
            sets = [f"finetune.{value}" for value in VARIANTS[variant]]
            manifest = json.loads(slmctl(project, sets, "finetune", "--json"))
            metrics = manifest["metrics"]
            found.setdefault(name, {})[variant] = {
                "validation_loss": metrics["validation_loss"], "best_step": metrics["best_step"],
                "steps": metrics["steps"], "overfitted": metrics["overfitted"], "seconds": manifest["seconds"],
            }  # fmt: skip
            sys.stderr.write(f"{name}, {variant}: {found[name][variant]}\n")
    rows = [row(name, variant, runs) for name, runs in found.items() for variant in runs if variant != DEFAULT]
    path = result.write(
        "defaults", "python -m benchmarks.defaults DATA BASE", rows, ("torch", "transformers", "trl", "peft"),
        base=options.base, train=TRAIN, validation=VALIDATION, runs=found,
    )  # fmt: skip
    sys.stdout.write(f"{result.table('defaults')}\n\n{path}\n")


def row(name: str, variant: str, runs: dict[str, Any]) -> result.Row:
    """A variant's validation loss beside the default's."""
    ours, theirs = (runs[one]["validation_loss"] for one in (variant, DEFAULT))
    ratio = round(ours / theirs, 3)
    return result.Row(f"{name}, {variant}: validation loss", ours, DEFAULT, theirs, ratio, (ratio, ratio), "", None)


def make(folder: Path, name: str, task: str, options: argparse.Namespace) -> Path:
    """A project with a sample of one data set."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(rows_of(options.data, name))
    parts = {"held.jsonl": rows[:VALIDATION], "rows.jsonl": rows[VALIDATION : VALIDATION + TRAIN]}
    for file, part in parts.items():
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in part)
        (folder / file).write_text("".join(lines), encoding="utf-8")
    (folder / SCHEMA.name).write_bytes(SCHEMA.read_bytes())
    (folder / "slmctl.yaml").write_text(CONFIG.format(name=name, base=options.base, task=task), encoding="utf-8")
    return folder


def rows_of(data: Path, name: str, part: str = "train") -> list[dict[str, Any]]:
    """The rows of a data set, each text once, in the order of a hash of their texts."""
    found = {one["text"]: one for one in reversed(list(_read(data, name, part)))}  # the first one of each text stays
    return sorted(found.values(), key=lambda one: hashlib.sha256(one["text"].encode()).hexdigest())


def _read(data: Path, name: str, part: str) -> Iterator[dict[str, Any]]:
    """The rows of a part of a data set as text and answer."""
    if name == "banking77":
        with (data / name / f"{part}.csv").open(encoding="utf-8", newline="") as stream:
            yield from ({"text": one["text"], "answer": one["category"]} for one in csv.DictReader(stream))
        return
    for line in (data / name / f"{part}.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        yield {"text": one["utterance"], "answer": json.dumps({"intent": one["intent"], "slots": one["slots"]})}


if __name__ == "__main__":
    main()
