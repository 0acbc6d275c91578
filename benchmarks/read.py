"""An encoder that tags words beside the language model that writes JSON: order mails, contracts,
and SNIPS.

    python -m benchmarks.read BASE ENCODER [--snips FOLDER] [--only NAME...] [--folder FOLDER]

BASE and ENCODER are what `base` and `encode.encoder` take; the base counts tokens alone, nothing is
trained on it. Each data set becomes a project, whose stage `encode` learns as a user's does; the
test rows are scored once. Of SNIPS 1,000 rows are learned or validate, as in `defaults --written`;
its FOLDER holds `snips/`, see `README.md`. The figures of the language model are those of its own
results, on the same test rows but for near duplicates. Predictions are kept (`read.jsonl`), and
data sets that are not run keep their figures.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import defaults, program, result
from slmctl.artifacts import artifact
from slmctl.config import AnswerTable, Source, SourceLimits
from slmctl.metrics import answer_metrics
from slmctl.metrics.statistics import wilson
from slmctl.models.tagger import Tagger
from slmctl.sources.documents import folder as documents
from slmctl.task.contract import Task
from slmctl.task.records import read_records

EXAMPLES = Path(__file__).parent.parent / "examples" / "data"
TEMPLATES = Path(__file__).parent.parent / "templates"
PEERS = {  # results, row or recipe, and figure of the language model
    "field-extraction": ("demo-extract", "Q8_0: exact_match"),
    "contract-terms": ("documents", "whole documents exact"),
    "SNIPS": ("defaults-written", "5 epochs at 8e-4 in batches of 4: exact_match"),
}
LEARNED = 1000  # rows of SNIPS
OTHERS = "contracts in other words"  # of contract-terms
CONFIG = """\
project: snips
base: {base}
task: {{kind: extract, schema: schema.json, system: Write the intent and its slots as JSON.}}
prepare:
  sources:
    - {{path: rows.jsonl, input: text, output: answer}}
    - {{path: held.jsonl, input: text, output: answer, split: test}}
  splits: {{validation: 0.1, calibration: 0, test: 0}}
"""


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("base")
    parser.add_argument("encoder")
    parser.add_argument("--snips", type=Path)
    parser.add_argument("--only", nargs="+", default=[*PEERS], choices=PEERS)
    parser.add_argument("--folder", type=Path, default=Path("read"))
    options = parser.parse_args()
    written, kept = result.FOLDER / "read.json", result.FOLDER / "read.jsonl"
    before = (
        [result.Row(**row) for row in json.loads(written.read_bytes())["rows"]]
        if written.exists()
        else []
    )
    lines = program.read_jsonl(kept) if kept.exists() else []
    rows = [row for row in before if set_of(row.metric) not in options.only]
    lines = [line for line in lines if line["set"] not in options.only]
    for name in options.only:
        folder = MADE[name](options, options.folder.resolve() / name)
        own, predictions = measured(name, folder, options.encoder)
        rows += own
        lines += predictions
    program.write_jsonl(kept, lines)
    command = "python -m benchmarks.read BASE ENCODER --snips DATA"
    result.write("read", command, rows, ("torch", "transformers", "onnxruntime", "tokenizers"))


def set_of(metric: str) -> str:
    """The data set of a row of the results."""
    name = metric.split(",")[0]
    return "contract-terms" if name == OTHERS else name


def from_template(name: str, options: argparse.Namespace, folder: Path) -> Path:
    """A project of a template with its example data."""
    folder.mkdir(parents=True)
    text = (TEMPLATES / name / "slmctl.yaml").read_text(encoding="utf-8")
    lines = [
        line
        for line in text.partition("\ngates:")[0].splitlines()
        if not line.startswith(("  sha256:", "encode:"))
    ]
    kept = [f"base: {options.base}" if line.startswith("base:") else line for line in lines]
    kept = ["pull: {rehearse: false}" if line == "pull:" else line for line in kept]
    (folder / "slmctl.yaml").write_text("\n".join(kept) + "\n", encoding="utf-8")
    return folder


def orders(options: argparse.Namespace, folder: Path) -> Path:
    from_template("field-extraction", options, folder)
    for file in ("order_emails.jsonl", "order_emails.schema.json"):
        shutil.copyfile(EXAMPLES / file, folder / file)
    return folder


def contracts(options: argparse.Namespace, folder: Path) -> Path:
    from_template("contract-terms", options, folder)
    shutil.copyfile(EXAMPLES / "contract_terms.schema.json", folder / "contract_terms.schema.json")
    with tarfile.open(EXAMPLES / "contract-terms.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def snips(options: argparse.Namespace, folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows, held = (
        list(defaults.rows_of(options.snips, "snips", part)) for part in ("train", "test")
    )
    program.write_jsonl(folder / "rows.jsonl", rows[:LEARNED])
    program.write_jsonl(folder / "held.jsonl", held)
    answers = [json.loads(row["answer"]) for row in rows[:LEARNED]]
    names = sorted({name for answer in answers for name in answer["slots"]})
    texts = {"type": "array", "items": {"type": "string"}}
    slots = {"type": "object", "properties": dict.fromkeys(names, texts)}
    intents = sorted({answer["intent"] for answer in answers})
    schema = {
        "type": "object",
        "required": ["intent", "slots"],
        "properties": {"intent": {"enum": intents}, "slots": slots},
    }
    (folder / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    (folder / "slmctl.yaml").write_text(CONFIG.format(base=options.base), encoding="utf-8")
    return folder


MADE: dict[str, Callable[[argparse.Namespace, Path], Path]] = {
    "field-extraction": orders,
    "contract-terms": contracts,
    "SNIPS": snips,
}


def measured(
    name: str, folder: Path, encoder: str
) -> tuple[list[result.Row], list[dict[str, Any]]]:
    """Returns (the rows of one data set, its predictions)."""
    with (folder / "slmctl.yaml").open("a", encoding="utf-8") as stream:
        stream.write(f"encode: {{encoder: {encoder}}}\n")
    for stage in ("pull", "prepare"):
        program.slmctl(folder, stage)
    made = artifact.load(Path(program.slmctl(folder, "encode").strip()))
    (prepared,) = folder.glob("runs/prepared/[!.]*")
    task, records = Task.read(prepared), read_records(prepared / "test.jsonl")
    references = [task.rules.read(record.answer) for record in records]
    with Tagger(made.path) as tagger:
        begun = time.monotonic()
        answers = tagger.answers([record.input for record in records])
        seconds = time.monotonic() - begun
    pairs = [
        (reference, each.read.answer) for reference, each in zip(references, answers, strict=True)
    ]
    right = [answer_metrics.equal(*pair) for pair in pairs]
    low, high = wilson(sum(right), len(right))
    file, metric = PEERS[name]
    title, peer = f"{name}, {len(records)} test rows", "the language model"
    exact = next(row["ours"] for row in peer_rows(file) if row["metric"] == metric)
    sure = sum(each.confidence for each in answers) / len(answers)
    rows = [
        result.single(f"{title}: whole answers right", sum(right) / len(right), peer, exact),
        result.single(f"{title}: 95 % interval of whole answers right", high, "low", low),
        result.single(f"{title}: field F1", micro(pairs), "mean over fields", macro(pairs)),
        result.single(
            f"{title}: mean confidence", sure, "whole answers right", sum(right) / len(right)
        ),
        result.single(
            f"{title}: seconds to learn {rows_of(prepared)} rows", made.manifest.seconds, "", 0
        ),
        result.single(f"{title}: rows/s", len(records) / seconds, "", 0),
    ]
    if name == "contract-terms":
        other, asked = others(made.path, task)
        rows += other
    else:
        asked = []
    lines = [
        {
            "set": name,
            "id": record.id,
            "right": reference,
            "answer": each.read.answer,
            "confidence": each.confidence,
        }
        for record, reference, each in zip(records, references, answers, strict=True)
    ]
    return rows, lines + asked


def others(folder: Path, task: Task) -> tuple[list[result.Row], list[dict[str, Any]]]:
    """The figures of contracts that no grammar made, and the predictions."""
    where, out = EXAMPLES / "contracts_other_words", io.BytesIO()
    answers = AnswerTable(path=where / "terms.csv", file="Datei")
    documents.write_rows(Source(path=where / "contracts", answers=answers), out, SourceLimits())
    read = [json.loads(line) for line in out.getvalue().splitlines()]
    references = [terms_of(row, task) for row in read]
    with Tagger(folder) as tagger:
        begun = time.monotonic()
        own = tagger.answers([row["text"] for row in read])
        seconds = time.monotonic() - begun
    pairs = [(reference, each.read.answer) for reference, each in zip(references, own, strict=True)]
    right = sum(answer_metrics.equal(*pair) for pair in pairs)
    low, _ = wilson(right, len(pairs))
    title = f"{OTHERS}, {len(pairs)} documents"
    pages = sum(row["text"].count("\f") + 1 for row in read)
    rows = [
        result.single(f"{title}: whole answers right", right / len(pairs), "low", low),
        result.single(f"{title}: field F1", micro(pairs), "mean over fields", macro(pairs)),
        result.single(
            f"{title}: characters/s",
            sum(len(row["text"]) for row in read) / seconds,
            "pages",
            pages,
        ),
    ]
    lines = [
        {"set": "contract-terms", "id": row["file"], "right": reference, "answer": each.read.answer}
        for row, reference, each in zip(read, references, own, strict=True)
    ]
    return rows, lines


def terms_of(row: dict[str, Any], task: Task) -> dict[str, Any]:
    """A row's terms as the template's `output` writes them."""
    assert task.schema is not None
    terms: dict[str, Any] = {name: row[name] or None for name in task.schema["properties"]}
    terms["annual_fee"] = float(row["annual_fee"]) if row["annual_fee"] else None
    terms["deliverables"] = [
        part.strip() for part in row["deliverables"].split(";") if part.strip()
    ]
    return terms


def peer_rows(file: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((result.FOLDER / f"{file}.json").read_bytes())["rows"]
    return rows


def rows_of(prepared: Path) -> int:
    return len(read_records(prepared / "train.jsonl"))


def micro(pairs: list[tuple[Any, Any]]) -> float:
    """F1 over all leaves of all rows."""
    counts = [answer_metrics.field_counts(*pair) for pair in pairs]
    same, predicted, expected = (sum(column) for column in zip(*counts, strict=True))
    return 2 * same / max(predicted + expected, 1)


def macro(pairs: list[tuple[Any, Any]]) -> float:
    """Mean F1 of the paths."""
    figures = answer_metrics.per_field(pairs)
    return sum(each["f1"] for each in figures.values()) / max(len(figures), 1)


if __name__ == "__main__":
    main()
