"""Answers by transformers beside those by llama.cpp with a lossless file: of the base, and of the
adapter, merged.

    python -m benchmarks.lossless PROJECT...

In PROJECT, `slmctl run --until quantize` has run with the type of the base's weights, F16 or BF16,
as `quantize.types`; or `--until prepare`, and the base alone is measured. A process answers the
rows once, transformers twice. Seconds count from the load of the model to its close; peak memory is
that of the process and of its largest child.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import program, result
from slmctl import config, models
from slmctl.inference.engine import Answer
from slmctl.models import prompts
from slmctl.pipeline import predictions, runner
from slmctl.pipeline.graph import PREPARED, Project
from slmctl.stages.quantize.stage import Quantize
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import read_records

ROWS, WHO = 200, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("projects", nargs="+", type=Path)
    parser.add_argument(
        "--one", nargs=2, metavar=("MODEL", "WAY"), help="answer once, and print what was measured"
    )
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(answered(options.projects[0].resolve(), *options.one)) + "\n")
        return
    rows = []
    for folder, model in (
        (folder, model) for folder in options.projects for model in ("base", "adapter")
    ):
        if (folder / "runs" / model).is_dir():
            ways = ("file", "hf", "file", "hf")  # the first one leaves the base's file
            _, hf, file, again = (
                program.measured("lossless", str(folder), "--one", model, way) for way in ways
            )
            what = f"{folder.name}, {model}"
            for peer, one in (("", file), (", transformers twice", again)):
                other = [
                    ours != theirs
                    for ours, theirs in zip(one.pop("answers"), hf["answers"], strict=True)
                ]
                rows.append(
                    result.single(f"{what}: other answers{peer}", sum(other), "rows", len(other))
                )
            rows += [
                result.single(f"{what}: {unit}", file[unit], "transformers", hf[unit])
                for unit in file
            ]
    result.write(
        "lossless",
        "python -m benchmarks.lossless PROJECT...",
        rows,
        ("transformers", "llama-cpp-python"),
    )


def answered(root: Path, kind: str, way: str) -> dict[str, Any]:
    """The answers of a model to the first test rows, how many are right, and what they took."""
    project = Project(root=root, config=config.load(root / config.FILENAME))
    prepared, source, whole = (
        project.artifact(PREPARED.name),
        project.artifact(kind),
        kind == "base",
    )
    task, base = Task.read(prepared.path), source if whole else predictions.base_of(project, source)
    records, shots = read_records(prepared.file("test.jsonl"))[:ROWS], project.config.predict.shots
    asked = [prompts.asked(task, record, list_labels=whole) for record in records]
    if whole and shots:
        examples = untuned_prompt.shots(task, read_records(prepared.file("train.jsonl")), shots)
        asked = prompts.few_shot(task, examples, records)
    settings, type_name = json.loads(base.file("config.json").read_bytes()), None
    if way == "file":
        type_name = {"float16": "F16", "bfloat16": "BF16"}[settings["dtype"]]
        section = config.QuantizeConfig(types=[type_name], importance_matrix="off")
        request = Quantize(project).request({"base": base}, section, alone=True)
        source = runner.run(project, request).artifact if whole else project.artifact("gguf")
    before, begun = sum(os.times()[:4]), time.monotonic()  # of the process and of its children
    with models.of(source, type=type_name, base=base).open(task) as model:
        found = dict(model.answer(asked))
    texts = [
        one.text if isinstance(one, Answer) else ""
        for one in map(found.__getitem__, range(len(records)))
    ]
    return {
        "answers": texts,
        "right": sum(text == record.answer for text, record in zip(texts, records, strict=True)),
        "s": time.monotonic() - begun,
        "CPU-seconds": sum(os.times()[:4]) - before,
        "peak memory, GB": sum(resource.getrusage(who).ru_maxrss for who in WHO) * 1024 / 1e9,
        "s of quantize": source.manifest.seconds if way == "file" else 0,
    }


if __name__ == "__main__":
    main()
