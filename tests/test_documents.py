"""Documents from their rows to a served answer: windows are learned,
asked and merged alike everywhere.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import here, tiny
from support.forks import Forks

from slmctl.artifacts import artifact
from slmctl.task.contract import Task
from slmctl.task.documents import windows
from slmctl.task.records import read_records

DOCUMENTS = "document: {window: 64, overlap: 16}"


def long_text(about: str, number: int, paragraphs: int = 14) -> str:
    """Pages of filler with one paragraph that says something."""
    choose = random.Random(number)
    texts = [" ".join(choose.sample(tiny.FILLER.split(), 8)) + "." for _ in range(paragraphs)]
    texts[choose.randrange(paragraphs)] = f"{about}."
    return "\n\f".join("\n\n".join(texts[k : k + 7]) for k in range(0, paragraphs, 7))


def project(
    folder: Path,
    base: Path,
    kind: str,
    extra: str = "",
    *,
    windows: str = DOCUMENTS,
    count: int = 150,
    steps: int = 40,
) -> Path:
    tiny.project(folder, base, kind, extra=extra)
    path, config = folder / "rows.jsonl", folder / "slmctl.yaml"
    rows = [json.loads(line) for line in path.read_text().splitlines()[:count]]
    lengths = {0: 1, 1: 7}  # some fit into a window
    for k, row in enumerate(rows):
        topic = f"{row['answer']['topic']} " if kind == "extract" and k % 3 else ""
        row["text"] = long_text(topic + row["text"], k, lengths.get(k % 6, 14))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = "the category." if kind != "tag" else "the categories."
    text = config.read_text().replace(f"{task}}}", f"{task}, {windows}}}")
    text = text.replace("max_steps: 80", f"max_steps: {steps}").replace(
        "max_tokens: 24", "max_tokens: 72"
    )
    text = text.replace("[Q8_0, F16]", "[Q8_0]")
    config.write_text(text.replace("output: answer}]}", "output: answer}], max_overlap: 100%}"))
    return folder


@pytest.fixture(scope="module")
def desk(tiny_base: Path, stages: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with labels and documents, up to its release."""
    folder = tmp_path_factory.mktemp("documents") / "desk"
    folder.mkdir()
    project(folder, tiny_base, "classify", "evaluate: {models: [gguf]}\n")
    tiny.ok(stages.run(folder, "run", "--yes"))
    return folder


def only(folder: Path, kind: str) -> artifact.Artifact:
    (path,) = folder.glob(f"runs/{kind}/[!.]*")
    return artifact.load(path)


def lines_of(folder: Path, stages: Forks, *args: str) -> list[dict[str, Any]]:
    path = tiny.ok(stages.run(folder, "predict", *args)).split()[-1]
    return [
        json.loads(line) for line in (Path(path) / "predictions.jsonl").read_text().splitlines()
    ]


def test_a_document_is_asked_in_the_windows_that_were_learned(desk: Path, stages: Forks) -> None:
    prepared = only(desk, "prepared")
    task = Task.read(prepared.path)
    assert task.document is not None and task.document.size >= 4 * task.document.overlap > 0
    records = read_records(prepared.file("test.jsonl"))
    parts = [windows(record.input, task.document) for record in records]
    assert {len(each) for each in parts} >= {1} and max(map(len, parts)) > 3
    lines = lines_of(desk, stages, "gguf", "--type", "Q8_0")
    for line, record, each in zip(lines, records, parts, strict=True):
        assert sum(line["labels"].values()) == pytest.approx(1, abs=1e-3)
        (place,) = line["places"]
        assert (place["start"], place["end"]) in [(part.start, part.end) for part in each]
        assert place["page"] == record.input.count("\f", 0, place["start"]) + 1
        assert line["answer"] == place["value"] == next(iter(line["labels"]))


def test_every_way_to_ask_gives_the_same_answer_with_its_place(
    desk: Path, stages: Forks, tmp_path: Path
) -> None:
    records = read_records(only(desk, "prepared").file("test.jsonl"))
    rows = tmp_path / "in.jsonl"
    rows.write_text("".join(json.dumps({"text": record.input}) + "\n" for record in records[:12]))
    tiny.ok(
        stages.run(desk, "predict", "--input", str(rows), "--output", str(tmp_path / "out.jsonl"))
    )
    tiny.ok(
        stages.run(desk, "predict", "--input", str(rows), "--output", str(tmp_path / "out.csv"))
    )
    answered = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert "answer: page " in (tmp_path / "out.csv").read_text()
    with here.opened(desk) as server:
        for record, line in zip(records, answered, strict=False):
            body = {"messages": [{"role": "user", "content": record.input}]}
            reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
            assert reply["choices"][0]["message"]["content"] == line["answer"]
            (place,) = reply["slmctl"]["places"]
            assert place["page"] == record.input.count("\f", 0, place["start"]) + 1
            # windows in other batches: where products are of bfloat16, they differ by 2**-8
            assert reply["slmctl"]["confidence"] == pytest.approx(line["confidence"], rel=0.01)


def test_a_text_without_windows_is_refused_where_it_does_not_fit(
    tiny_base: Path, stages: Forks, tmp_path: Path
) -> None:
    folder = project(tmp_path, tiny_base, "extract", windows="document: {window: 64, overlap: 20}")
    done = stages.run(folder, "run", "--yes", "--until", "prepare")
    assert (
        done.returncode == 2
        and "'overlap' is over a quarter of the window of 64 tokens" in done.stderr
    )
    text = (folder / "slmctl.yaml").read_text()
    text = text.replace("kind: extract, schema: schema.json", "kind: generate").replace(
        "overlap: 20", "overlap: 16"
    )
    (folder / "slmctl.yaml").write_text(text)
    done = stages.run(folder, "run", "--yes", "--until", "prepare")
    assert (
        "'document' belongs to classify, tag and extract, and the kind is generate" in done.stderr
    )


def test_a_window_beside_a_long_system_prompt_fits_into_the_base(
    tiny_base: Path, stages: Forks, tmp_path: Path
) -> None:
    # it was trained beyond the positions that the base has learned
    from benchmarks import architectures  # with it comes torch

    folder = project(tmp_path, tiny_base, "extract", windows="document: {window: 128, overlap: 16}")
    architectures.build("granite", folder / "base", tiny_base)
    path, config = folder / "base" / "config.json", folder / "slmctl.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 256}))
    long = "Name the category. " * 30
    config.write_text(
        config.read_text().replace("system: Name the category.", f"system: {long.strip()}")
    )

    def tuned(*settings: str) -> subprocess.CompletedProcess[str]:
        return stages.run(
            folder, "run", "--yes", "--until", "finetune", "--set=finetune.max_steps=1", *settings
        )

    smaller = "a smaller task.document.window, or a shorter task.system"
    done = tuned()
    assert done.returncode == 3 and re.search(
        r"a record has 2\d\d tokens, and the base reads 256", done.stderr
    )
    assert f"hint: {smaller}; or a base that reads more" in done.stderr
    done = tuned("--set=finetune.max_length=230")
    assert (
        "tokens, max_length is 230" in done.stderr and f"max_length=N, or {smaller}" in done.stderr
    )
    done = tuned("--set=finetune.max_length=200")  # before a base is fetched
    assert (
        "the rows have some" in done.stderr
        and f"hint: {smaller}; --set finetune.max_length=N" in done.stderr
    )
    tiny.ok(tuned("--set=task.document.window=64"))


@pytest.mark.slow
def test_values_of_a_document_are_extracted_with_their_places(
    tiny_base: Path, stages: Forks, tmp_path: Path
) -> None:
    folder = project(
        tmp_path,
        tiny_base,
        "extract",
        "evaluate: {models: [base, adapter, gguf]}\n",
        count=300,
        steps=200,
    )
    done = stages.run(folder, "run", "--yes", "--until", "prepare")
    assert "no other can be learned from windows: `topic` " in done.stderr
    schema = json.loads((folder / "schema.json").read_text())
    schema["properties"]["items"]["maxItems"] = 3
    (folder / "schema.json").write_text(json.dumps(schema))
    tiny.ok(stages.run(folder, "run", "--yes", "--until", "evaluate"))
    prepared = only_newest(folder)
    task = Task.read(prepared.path)
    records = {record.id: record for record in read_records(prepared.file("test.jsonl"))}
    empty = 0
    for model in ("adapter", "gguf"):
        for line in lines_of(folder, stages, model):
            answer = json.loads(line["answer"]) if line["finish"] == "stop" else None
            text = records[line["id"]].input
            assert answer is None or answer.keys() >= {"topic", "items"}
            empty += answer is not None and answer["topic"] is None
            for place in line.get("places", ()):
                written = text[place["start"] : place["end"]]
                # words are what is found: a model may write blanks around them
                assert written.casefold() == str(place["value"]).strip().casefold()
    assert empty and task.document is not None


def only_newest(folder: Path) -> artifact.Artifact:
    return max(
        map(artifact.load, folder.glob("runs/prepared/[!.]*")),
        key=lambda each: each.manifest.started,
    )
