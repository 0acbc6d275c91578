"""Classifying rows one by one and together: slmctl beside plain loops, on the same weights and
rows, alternating.

    python -m benchmarks.predict PROJECT [--rows N] [--repeat N] [--type TYPE] [--hf-rows N]

PROJECT is a folder in which `slmctl run --until quantize` has run, for a task of kind `classify`.
The peers are what a user writes first: a loop over `llama_cpp.Llama` that completes each prompt,
and a loop over `generate`, both without an end to what they may say but the end of the turn. Each
side runs in a process of its own and is timed after a warm-up; loading is left out. The rows are
the first N of the test split in the order that their ids decide. Where PROJECT has an encoder and
`slmctl calibrate` has run, a first look by the encoder is one more side, and its figures are all
that is written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import program, result
from slmctl import config
from slmctl.artifacts.artifact import Artifact
from slmctl.pipeline import model_lookup, predictions
from slmctl.pipeline.graph import Project
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records

OURS = ("slmctl", "first", "alone")
WARM = 8  # rows before the clock starts
MAX_TOKENS = 24  # what the loops may say; the longest label of Banking77 has 17 tokens
SIDES = ("gguf-slmctl", "gguf-first", "gguf-alone", "gguf-llama", "hf-slmctl", "hf-generate")


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument(
        "--hf-rows", type=int, default=100, help="of the HF model and its loop; 0: neither"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument(
        "--one", choices=SIDES, help="run one side once, and print what was measured"
    )
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(one(options)) + "\n")
        return
    looks_first = config.load(options.project / config.FILENAME).encode is not None
    sides = [
        side
        for side in SIDES
        if (options.hf_rows or side.startswith("gguf")) and (looks_first or side != "gguf-first")
    ]

    def run(side: str) -> dict[str, Any]:
        rows = options.hf_rows if side.startswith("hf") else options.rows
        words = str(options.project), "--one", side, "--rows", str(rows), "--type", options.type
        return program.measured(
            "predict", *words, env=program.SPIN if side.endswith(OURS) else None
        )

    runs = program.alternating(sides, options.repeat, run)
    packages = ("torch", "transformers", "llama-cpp-python", "llguidance")
    table = [row for row in rows_of(runs) if not looks_first or "first look" in row.metric]
    raw = {
        side: [{key: run[key] for key in ("rows_per_s", "accuracy")} for run in found]
        for side, found in runs.items()
    }
    result.write(
        f"predict-{options.type.lower()}{'-first-look' * looks_first}",
        "python -m benchmarks.predict PROJECT",
        table,
        packages,
        type=options.type,
        rows_measured={"gguf": options.rows, "hf": options.hf_rows},
        runs=raw,
    )


def rows_of(runs: dict[str, list[dict[str, Any]]]) -> list[result.Row]:
    """The figures: rates, and how often the answers are the same."""

    def rate(side: str) -> list[float]:
        return [run["rows_per_s"] for run in runs[side]]

    table = []
    for kind, ours, peer, words, goal in (
        ("GGUF", "gguf-slmctl", "gguf-llama", "a loop over llama_cpp.Llama", ">= 5"),
        (
            "GGUF after a first look",
            "gguf-first",
            "gguf-llama",
            "a loop over llama_cpp.Llama",
            ">= 10",
        ),
        ("GGUF after a first look", "gguf-first", "gguf-slmctl", "without it", ""),
        ("GGUF, one at a time", "gguf-alone", "gguf-llama", "a loop over llama_cpp.Llama", ""),
        ("HF adapter", "hf-slmctl", "hf-generate", "a loop over generate", ">= 20"),
    ):
        if ours in runs:
            table.append(
                result.compared(
                    f"{kind}: rows/s", rate(ours), rate(peer), peer=words, goal=goal, digits=2
                )
            )
    for kind, ours, peer in (
        ("GGUF", "gguf-slmctl", "gguf-llama"),
        ("HF adapter", "hf-slmctl", "hf-generate"),
    ):
        if ours not in runs:
            continue
        mine, theirs = runs[ours][0], runs[peer][0]
        pairs = list(zip(mine["answers"], theirs["answers"], strict=True))
        valid = [(a, b) for a, b in pairs if b in mine["labels"]]
        same = sum(a == b for a, b in valid) / max(len(valid), 1)
        words = f"{kind}: same answers, of those where the loop said a label"
        said = len(valid) / len(pairs)
        table.append(result.single(words, same, "labels that the loop said", said, ">= 0.99"))
        accuracy = [
            statistics.median(run["accuracy"] for run in runs[side]) for side in (ours, peer)
        ]
        table.append(
            result.compared(
                f"{kind}: accuracy",
                accuracy[:1],
                [max(accuracy[1], 1e-9)],
                peer="the loop",
                goal=">= 1",
                digits=4,
            )
        )
    return table


def one(options: argparse.Namespace) -> dict[str, Any]:
    """Open one side's model, warm it up, and time the rows."""
    root = options.project.resolve()
    project = Project(root=root, config=config.load(root / config.FILENAME))
    prepared = project.artifact("prepared")
    task = Task.read(prepared.path)
    records = sorted(read_records(prepared.file("test.jsonl")), key=lambda record: record.id)[
        : options.rows
    ]
    sides: dict[str, Callable[[], Iterator[Callable[[list[Record]], list[str]]]]] = {
        "gguf-slmctl": lambda: ours(project, task, "gguf", options.type),
        "gguf-first": lambda: ours(project, task, "gguf", options.type, first=True),
        "gguf-alone": lambda: ours(project, task, "gguf", options.type, alone=True),
        "gguf-llama": lambda: llama(project, task, options.type),
        "hf-slmctl": lambda: ours(project, task, "adapter", None),
        "hf-generate": lambda: generate(project, task),
    }
    for answer in sides[options.one]():
        answer(records[:WARM])
        begun = time.perf_counter()
        answers = answer(records)
        seconds = time.perf_counter() - begun
    right = sum(text == record.answer for text, record in zip(answers, records, strict=True))
    return {
        "rows_per_s": len(records) / seconds,
        "accuracy": right / len(records),
        "answers": answers,
        "labels": list(task.labels),
    }


def ours(
    project: Project,
    task: Task,
    kind: str,
    type_name: str | None,
    *,
    alone: bool = False,
    first: bool = False,
) -> Iterator[Callable[[list[Record]], list[str]]]:
    """What `slmctl predict` does."""
    from slmctl import models
    from slmctl.inference.engine import Answer
    from slmctl.models import prompts

    model = project.artifact(kind)
    base = predictions.base_of(project, model) if kind == "adapter" else None
    opened = models.of(
        model, type=type_name, base=base, sum=predictions.sum_of(project) if first else None
    )
    if first:
        opened = model_lookup.looking_first(project.root, opened)
    with opened.open(task) as answerer:

        def answer(records: list[Record]) -> list[str]:
            questions = [*prompts.of_texts(task, (record.input for record in records))]
            groups = [[prompt] for prompt in questions] if alone else [questions]
            texts: list[str] = []
            for group in groups:
                found = dict(answerer.answer(group))
                for k in range(len(group)):
                    one_answer = found[k]
                    assert isinstance(one_answer, Answer)
                    texts.append(one_answer.text)
            return texts

        yield answer


def llama(
    project: Project, task: Task, type_name: str
) -> Iterator[Callable[[list[Record]], list[str]]]:
    """A plain loop over `llama_cpp.Llama`, which keeps what two
    questions in a row have in common.
    """
    from llama_cpp import Llama

    from slmctl.hardware import usable_cores
    from slmctl.model_files.gguf_choice import is_type

    model = project.artifact("gguf")
    (entry,) = [entry for entry in model.files(".gguf") if is_type(entry.path, type_name)]
    peer = Llama(str(model.file(entry.path)), n_ctx=2048, n_threads=usable_cores(), verbose=False)

    def answer(records: list[Record]) -> list[str]:
        texts = []
        for record in records:
            tokens = peer.tokenize(
                task.prompt(task.messages(record.input)).encode(), add_bos=False, special=True
            )
            said: Any = peer.create_completion(
                tokens, max_tokens=MAX_TOKENS, temperature=0.0, stop=[task.end]
            )
            texts.append(said["choices"][0]["text"].strip())
        return texts

    yield answer


def generate(project: Project, task: Task) -> Iterator[Callable[[list[Record]], list[str]]]:
    """A plain loop over transformers' `generate`, on the base with its adapter in float32."""
    import torch

    from slmctl.model_files import hf_folder
    from slmctl.model_files.transformers_answerer import _with_adapter

    adapter: Artifact = project.artifact("adapter")
    base = predictions.base_of(project, adapter)
    tokenizer: Any = hf_folder.load_tokenizer(base.path)
    model = _with_adapter(hf_folder.load_model(base.path, attn_implementation="sdpa"), adapter.path)
    ends = [tokenizer.convert_tokens_to_ids(task.end), tokenizer.eos_token_id]

    def answer(records: list[Record]) -> list[str]:
        texts = []
        for record in records:
            inputs = tokenizer(
                task.prompt(task.messages(record.input)),
                add_special_tokens=False,
                return_tensors="pt",
            )
            with torch.inference_mode():
                said = model.generate(
                    **inputs,
                    max_new_tokens=MAX_TOKENS,
                    do_sample=False,
                    eos_token_id=ends,
                    pad_token_id=ends[0],
                )
            new = said[0, inputs["input_ids"].shape[1] :]
            texts.append(tokenizer.decode(new, skip_special_tokens=True).strip())
        return texts

    yield answer


if __name__ == "__main__":
    main()
