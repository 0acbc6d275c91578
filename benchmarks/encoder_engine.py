"""The sentence encoder in this process beside the engine of before and torch: speed, memory, bytes,
accuracy.

    python -m benchmarks.encoder_engine DATA DEMO [--rows 1000] [--repeat 3] [--only NAME...]
    [--tuned]

DATA and DEMO are those of `sharper`. Speed is rows of Banking77's test set a CPU-second on one
thread, in batches and one text at a time; each engine has a process of its own, and they take
turns. The engine of before is llama.cpp with a GGUF file in float16, made and run by the code of a
commit, whose converter must be there (`slmctl doctor --fix`). Accuracy is that of encoder and words
on whole test sets, by int8 and by float32 weights: frozen, the head of each learned on its own
vectors, and with `--tuned` by what `encode` tunes, which takes minutes a set. Predictions are kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import program, result, sharper
from benchmarks.program import Pairs
from slmctl.config import EncodeConfig
from slmctl.inference import ENCODER
from slmctl.metrics import cross_fitting, encoder_head
from slmctl.model_files import encoder_source
from slmctl.models.learned_rows import LearnedRows
from slmctl.models.onnx_encoder import Encoder, Floats
from slmctl.stages.encode import encode
from slmctl.task.records import Record

NAME, BEFORE = "encoder-engine", "6a9412dc"
OURS, FLOAT32, LLAMA, TORCH = "int8", "float32", "llama.cpp float16", "torch bfloat16"
COUNTS = (20, 0)  # training rows of each label; 0 for all
SPEED, LOSS = ">= 2.5", ">= -0.002"


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--before", default=BEFORE)
    parser.add_argument(
        "--only", nargs="*", default=["Banking77", "CLINC150", "SNIPS", sharper.DEMO]
    )
    parser.add_argument("--tuned", action="store_true")
    options = parser.parse_args()
    written, kept = result.FOLDER / f"{NAME}.json", result.FOLDER / f"{NAME}.npz"
    before = (
        [result.Row(**row) for row in json.loads(written.read_bytes())["rows"]]
        if written.exists()
        else []
    )
    tables = dict(np.load(kept, allow_pickle=False)) if kept.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        encoder = encoder_source.kept(EncodeConfig(), Path(scratch)).folder
        rows = [*speeds(encoder, Path(scratch), options)] if options.repeat else []
        for name in options.only:
            for count in COUNTS:
                rows += accuracies(name, count, encoder, options, tables)
    new = {row.metric for row in rows}
    rows = [row for row in before if row.metric not in new] + rows
    command = "python -m benchmarks.encoder_engine DATA DEMO --tuned"
    result.write(
        NAME, command, rows, ("onnxruntime", "onnx", "torch", "transformers", "llama-cpp-python")
    )
    np.savez_compressed(kept, allow_pickle=False, **tables)


def speeds(encoder: Path, scratch: Path, options: Any) -> Iterator[result.Row]:
    """A row for each figure of each engine, measured by turns."""
    checkout, texts = scratch / "before", scratch / "texts.json"
    rows = program.banking77(options.data)[2][: options.rows]
    texts.write_text(json.dumps([text for text, _ in rows]), encoding="utf-8")
    subprocess.run(
        ["git", "worktree", "add", "--detach", checkout, options.before],
        check=True,
        capture_output=True,
    )
    try:
        gguf = made_before(checkout, encoder / encoder_source.MODEL, scratch)
        files = {
            OURS: encoder,
            FLOAT32: encoder / FLOAT32,
            LLAMA: gguf,
            TORCH: encoder / encoder_source.MODEL,
        }
        measures: dict[str, list[dict[str, float]]] = {name: [] for name in files}
        for _ in range(options.repeat):
            for name, file in files.items():
                own = Path(__file__).parents[1]
                measures[name].append(
                    in_process(name, file, texts, checkout if name == LLAMA else own)
                )
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", checkout], check=True)
    for metric in measures[OURS][0]:
        ours = [each[metric] for each in measures[OURS]]
        for peer in (LLAMA, FLOAT32, TORCH):
            goal = SPEED if peer == LLAMA and "rows" in metric else ""
            yield result.compared(
                metric, ours, [each[metric] for each in measures[peer]], peer=peer, goal=goal
            )
    sizes = {
        name: file.stat().st_size / 1e6
        for name, file in (
            (OURS, encoder / ENCODER),
            (LLAMA, gguf),
            (FLOAT32, encoder / FLOAT32 / ENCODER),
        )
    }
    for peer in (LLAMA, FLOAT32):
        yield result.single("file, MB", sizes[OURS], peer, sizes[peer])


def made_before(checkout: Path, model: Path, scratch: Path) -> Path:
    """The GGUF file that the code of before makes of an encoder."""
    code = (
        "import sys; from pathlib import Path; from slmctl.model_files import gguf_converter as "
        "made; "
        "made.convert(Path(sys.argv[1]), Path(sys.argv[2]), dtype='f16', metadata={})"
    )
    subprocess.run(
        [sys.executable, "-c", code, model, scratch / "before.gguf"], cwd=checkout, check=True
    )
    return scratch / "before.gguf"


def in_process(name: str, file: Path, texts: Path, checkout: Path) -> dict[str, float]:
    """What `encoder_process` measures in a process of its own, with the code of a checkout."""
    command = [sys.executable, Path(__file__).with_name("encoder_process.py"), name, file, texts]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def accuracies(
    name: str, count: int, encoder: Path, options: Any, tables: dict[str, Any]
) -> Iterator[result.Row]:
    """The share of test rows that is right by int8 beside float32 weights."""
    train, validation, test = (
        list(split) for split in sharper.readers(options.data, options.demo)[name]()
    )
    if count:
        train = [train[k] for k in sharper.few(train, count, 0)]
        validation = [validation[k] for k in sharper.few(validation, max(1, count // 5), 0)]
    labels = [label for split in (train, validation) for _, label in split]
    texts = [text for split in (train, validation) for text, _ in split]
    fold = cross_fitting.folds(labels, texts, validation=len(validation))
    records = [[record(*pair) for pair in split] for split in (train, validation)]
    rows = LearnedRows(*records, np.arange(len(labels)), fold)
    title = (
        f"{name}, {f'{count} rows a label' if count else f'all {len(train)} rows'}, "
        f"{len(test)} test rows"
    )
    fits = {}
    for kind, folder in ((OURS, encoder), (FLOAT32, encoder / FLOAT32)):
        vectors = encode.Vectors(vectors_of(folder, texts), named(folder, labels))
        fits[kind] = encode.Fitted.on(rows, vectors), vectors
    shares = {
        kind: share(
            fitted, encoder if kind == OURS else encoder / FLOAT32, test, f"{title} {kind}", tables
        )
        for kind, (fitted, _) in fits.items()
    }
    yield difference(f"{title}: accuracy, frozen", shares)
    if options.tuned:
        with tempfile.TemporaryDirectory() as scratch:
            frozen, vectors = fits[OURS]
            out = Path(scratch, "tuned")
            _, tuned = encode.tuned_sum(encoder / encoder_source.MODEL, rows, vectors, frozen, out)
            shares = {
                kind: share(
                    tuned,
                    out if kind == OURS else out / FLOAT32,
                    test,
                    f"{title} tuned {kind}",
                    tables,
                )
                for kind in (OURS, FLOAT32)
            }
        yield difference(f"{title}: accuracy, tuned", shares)


def difference(metric: str, shares: dict[str, float]) -> result.Row:
    """A row with both shares, of which the difference has the goal."""
    ours, theirs = shares[OURS], shares[FLOAT32]
    met = result.meets(round(ours - theirs, 6), LOSS)
    return result.Row(
        metric,
        round(ours, 4),
        FLOAT32,
        round(theirs, 4),
        round(ours / theirs, 4),
        (round(ours - theirs, 5), round(ours - theirs, 5)),
        f"difference {LOSS}",
        met,
    )


def share(
    fitted: encode.Fitted, folder: Path, test: Pairs, key: str, tables: dict[str, Any]
) -> float:
    asked, references = zip(*test, strict=True)
    summed, _ = fitted.model.scored(asked, vectors_of(folder, asked))
    answers = np.array(fitted.model.labels)[summed.argmax(axis=1)]
    tables[key] = answers
    return float((answers == np.array(references)).mean())


def vectors_of(folder: Path, texts: Sequence[str]) -> Floats:
    with Encoder(folder) as encoder:
        return encoder.encode(texts)


def named(folder: Path, labels: Sequence[str]) -> tuple[list[str], Floats]:
    names = sorted(set(labels))
    return names, vectors_of(folder, [encoder_head.spoken(label) for label in names])


def record(text: str, label: str) -> Record:
    messages = ({"role": "user", "content": text}, {"role": "assistant", "content": label})
    return Record(id=text, messages=messages, source={"file": "", "row": 0})


if __name__ == "__main__":
    main()
