"""Whole documents by a finished project, beside cheaper ways to read the same test documents.

    python -m benchmarks.documents PROJECT

PROJECT has `task.document` and has run until `evaluate`, as `slmctl init contract-terms` makes one;
its test documents were scored once, by the newest report. Beside it answer: the same file by the
first window alone, and by the whole text in a context of CONTEXT tokens where it fits, and the
untuned base as Q8_0, with SHOTS examples, over the same windows. Where folders are labels, what
ships answers by the first window, too. All answers are kept beside the results (`documents.jsonl`).

Seconds and memory are those of `slmctl predict --input` with its start, so no other work may run
meanwhile. A place is right if the text there reads as the right value, by a reading of its own, and
stands on the page that is named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import program, result
from benchmarks.sharper import newest
from slmctl import config, models
from slmctl.inference.engine import Answer
from slmctl.metrics.statistics import wilson
from slmctl.models.model import Loading, Model, OpenModel
from slmctl.models.prompts import asked, few_shot
from slmctl.pipeline import runner
from slmctl.pipeline.graph import Project
from slmctl.pipeline.predictions import sum_of
from slmctl.reports import IN_SUM
from slmctl.stages.evaluate import scoring
from slmctl.stages.quantize.stage import Quantize
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.documents import PAGE, scalars, training, windows
from slmctl.task.records import Record, read_records

SHOTS = 3  # windows of training documents, with what stands in them
CONTEXT = 8192  # tokens, the most that the smallest base reads
WINDOW, WHOLE = "the first window alone", "the whole text, where it fits"
ABOVE = ">= 0.15"  # points of whole documents, above the first window alone and above the base
PAGES = {
    "1 page": (1, 1),
    "2 or 3 pages": (2, 3),
    "4 to 7 pages": (4, 7),
    "8 pages and more": (8, 10_000),
}
MONTHS = (
    "jan jän",
    "feb",
    "mar mär",
    "apr",
    "may mai",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct okt",
    "nov",
    "dec dez",
)
LOOK_S = 0.2  # between two looks at the memory
Line = dict[str, Any]


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("project", type=Path)
    options = parser.parse_args()
    root = options.project.resolve()
    project = Project(root=root, config=config.load(root / config.FILENAME))
    prepared = newest(root, "prepared")
    task, records = Task.read(prepared), read_records(prepared / "test.jsonl")
    report = json.loads((newest(root, "report") / "report.json").read_bytes())
    ours = report["focus"]
    lines = lines_of(root, ours)
    assert [line["id"] for line in lines] == [record.id for record in records]
    answers: dict[str, Sequence[str | None]] = {ours: [line["answer"] for line in lines]}
    model = models.of(
        project.artifact("gguf"),
        type=ours.removesuffix(IN_SUM),
        sum=sum_of(project) if ours.endswith(IN_SUM) else None,
    )
    assert task.document is not None
    firsts = [windows(record.input, task.document)[0].text for record in records]
    most = project.config.predict.max_tokens
    answers[f"base ({SHOTS}-shot), the same windows"] = untuned(project, task, records, most)
    answers[WINDOW] = answered(model, task, records, firsts, most)
    answers[WHOLE] = answered(
        model, task, records, [record.input.replace(PAGE, "\n") for record in records], most
    )
    rows, intervals = scored(task, records, answers)
    if task.is_object:
        rows.append(placed(records, lines))
    rows += measured(root, ours, records, firsts)
    name = "documents" if task.is_object else "documents-labels"
    kept = [
        {
            "id": record.id,
            "pages": pages_of(record),
            "right": record.answer,
            **{side: texts[k] for side, texts in answers.items()},
            "places": lines[k].get("places", []),
        }
        for k, record in enumerate(records)
    ]
    program.write_jsonl(result.FOLDER / f"{name}.jsonl", kept)
    result.write(
        name,
        "python -m benchmarks.documents PROJECT",
        rows,
        ("torch", "llama-cpp-python"),
        n=len(records),
        pages=sum(map(pages_of, records)),
        context=CONTEXT,
        intervals=intervals,
    )


def lines_of(project: Path, model: str) -> list[Line]:
    """The newest answers of a model to the test documents."""
    found = [
        path
        for path in project.glob("runs/predictions/[!.]*")
        if (facts := json.loads((path / "manifest.json").read_bytes())["metrics"])["model"] == model
        and facts["split"] == "test"
    ]
    return program.read_jsonl(
        max(found, key=lambda path: path.stat().st_mtime) / "predictions.jsonl"
    )


def pages_of(record: Record) -> int:
    return record.input.count(PAGE) + 1


def answered(
    model: Model, task: Task, records: Sequence[Record], texts: Sequence[str], most: int
) -> list[str | None]:
    """The answers of at most so many tokens to texts, each as it is; None
    where one does not fit into CONTEXT.
    """
    task, prompts = dataclasses.replace(task, document=None), []
    for record, text in zip(records, texts, strict=True):
        *before, question, reply = record.messages
        prompts.append(
            asked(
                task,
                dataclasses.replace(
                    record, messages=(*before, {**question, "content": text}, reply)
                ),
            )
        )
    found: list[str | None] = [None] * len(texts)
    with model.load(Loading.of(task, sequences=4, context=CONTEXT)) as loaded:
        for index, answer in OpenModel(loaded, task, most).answer(prompts):
            found[index] = answer.text if isinstance(answer, Answer) else None
    return found


def untuned(project: Project, task: Task, records: Sequence[Record], most: int) -> list[str | None]:
    """The answers of the base that was not tuned, in the engine and to
    the windows that the tuned file reads.
    """
    section = config.QuantizeConfig(types=["Q8_0"], importance_matrix="off")
    made = runner.run(
        project, Quantize(project).request({"base": project.artifact("base")}, section, alone=True)
    )
    train = training(read_records(project.artifact("prepared").file("train.jsonl")), task)
    prompts = few_shot(task, untuned_prompt.shots(task, train, SHOTS), records)
    found: list[str | None] = [None] * len(prompts)
    with models.of(made.artifact, type="Q8_0").open(task, max_tokens=most) as opened:
        for index, answer in opened.answer(prompts):
            found[index] = answer.text if isinstance(answer, Answer) else None
    return found


def scored(
    task: Task, records: Sequence[Record], answers: Mapping[str, Sequence[str | None]]
) -> tuple[list[result.Row], dict[str, tuple[float, float]]]:
    """Returns (the rows of whole documents and fields, the 95 % interval of each side's share)."""
    ours, *peers = answers
    none, all_sent = [None] * len(records), np.ones(len(records), bool)
    made = {
        side: scoring.score(task, records, scoring.Answers(texts, none, all_sent))
        for side, texts in answers.items()
    }
    names = ["exact_match", "field_f1"] if task.is_object else [task.rules.row_metric]
    titles = {"exact_match": "whole documents exact", "field_f1": "field F1"}
    rows, shares = [], {side: each.value(names[0]) for side, each in made.items()}
    for name in names:
        value = made[ours].value(name)
        rows += [
            result.single(titles.get(name, name), value, peer, made[peer].value(name))
            for peer in peers
        ]
    for peer in peers:
        goal = "" if peer == WHOLE else ABOVE
        rows.append(
            result.single(
                f"points above {peer}", shares[ours] - shares[peer], peer, shares[peer], goal
            )
        )
    pages = np.array([pages_of(record) for record in records])
    for title, (low, high) in PAGES.items():
        if (mask := (low <= pages) & (pages <= high)).any():
            alone = made[WINDOW].value(names[0], mask)
            words = f"{titles.get(names[0], names[0])}, {int(mask.sum())} of {title}"
            rows.append(result.single(words, made[ours].value(names[0], mask), WINDOW, alone))
    fit = sum(text is not None for text in answers[WHOLE]) / len(records)
    rows.append(result.single(f"documents that fit into {CONTEXT:,} tokens", fit, "", 0))
    return rows, {
        side: wilson(round(share * len(records)), len(records)) for side, share in shares.items()
    }


# Places


def placed(records: Sequence[Record], lines: Sequence[Line]) -> result.Row:
    """The share of right values with a right place."""
    right = good = 0
    for record, line in zip(records, lines, strict=True):
        expected = list(scalars(json.loads(record.answer)))
        places = [place for place in line.get("places", []) if not place.get("conflict")]
        for leaf in scalars(json.loads(line["answer"])):
            if leaf[1] is not None and leaf in expected:
                right += 1
                good += any(_is_right(record.input, place, *leaf) for place in places)
    return result.single(
        "right values with a right place", good / max(right, 1), "right values", right, ">= 0.95"
    )


def _is_right(text: str, place: Line, path: str, value: Any) -> bool:
    there = text[place["start"] : place["end"]]
    on_page = text.count(PAGE, 0, place["start"]) + 1 == place["page"]
    return on_page and (place["path"], place["value"]) == (path, value) and reads_as(there, value)


def reads_as(there: str, value: Any) -> bool:
    """True if a text says a value: the same letters and digits,
    the same number, or the same date.
    """
    if isinstance(value, int | float):
        digits, _, rest = re.sub(r"[.,](?=\d{3}\b)", "", there).replace(",", ".").partition(".")
        return float(f"{digits}.{rest or 0}") == value
    plain = ["".join(filter(str.isalnum, text.casefold())) for text in (there, value)]
    return plain[0] == plain[1] or any(day.isoformat() == value for day in _days(there))


def _days(text: str) -> Iterator[date]:
    """The dates that a text may say: its two small numbers in either
    order, or one beside the name of a month.
    """
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    named = [
        k
        for k, names in enumerate(MONTHS, 1)
        if any(name in text.casefold() for name in names.split())
    ]
    small = [number for number in numbers if number <= 31]
    pairs = itertools.product(named, small) if named else itertools.permutations(small, 2)
    for year, (month, day) in itertools.product(
        [number for number in numbers if number > 31], pairs
    ):
        with contextlib.suppress(ValueError):  # no such day
            yield date(year, month, day)


# Seconds and memory


def measured(
    project: Path, model: str, records: Sequence[Record], firsts: Sequence[str]
) -> list[result.Row]:
    """The rows of seconds and peak memory; of a file of rows with a window each, too."""
    texts = [record.input for record in records]
    longest = max(records, key=pages_of)
    seconds, memory = timed(project, model, texts)
    alone, _ = timed(project, model, [longest.input])
    _, of_rows = timed(project, model, firsts)
    pages = sum(map(pages_of, records))
    return [
        result.single("pages/s, start included", pages / seconds, "pages", pages),
        result.single(
            f"the longest, {pages_of(longest)} pages: seconds, start included",
            alone,
            "",
            0,
            "<= 30",
        ),
        result.compared(
            "peak memory, GB",
            [memory / 1e9],
            [of_rows / 1e9],
            peer="rows of a window",
            goal="<= 1.1",
        ),
    ]


def timed(project: Path, model: str, texts: Sequence[str]) -> tuple[float, int]:
    """Returns (seconds, the peak of the memory in bytes) of `slmctl
    predict` for rows of these texts.
    """
    kind = "sum" if model.endswith(IN_SUM) else "gguf"
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "in.jsonl", Path(scratch) / "out.jsonl"
        program.write_jsonl(source, [{"text": text} for text in texts])
        command = [
            sys.executable,
            "-m",
            "slmctl",
            "--quiet",
            "-C",
            str(project),
            "predict",
            kind,
            "--type",
            model.removesuffix(IN_SUM),
            "--input",
            str(source),
            "--column",
            "text",
            "--output",
            str(target),
        ]
        begun, peak = time.monotonic(), 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
            while child.poll() is None:
                peak = max(peak, sum(map(program.pss_bytes, family(child.pid))))
                time.sleep(LOOK_S)
        seconds = time.monotonic() - begun
        if child.returncode or any(line["error"] for line in program.read_jsonl(target)):
            raise SystemExit("a document was not answered")
    return seconds, peak


def family(pid: int) -> list[int]:
    """A process and its children, theirs included."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:  # it has ended
        return []
    return [pid, *(each for child in text.split() for each in family(int(child)))]


if __name__ == "__main__":
    main()
