"""Labels of a teacher on Banking77: whether the bound holds, what a plan foretells, what leaves,
what a student wins.

    python -m benchmarks.label bound DATA [--labelled FOLDER] [--quick]
    python -m benchmarks.label plan DATA [--quick]
    python -m benchmarks.label private [--rows 1000]
    python -m benchmarks.label students DATA --base BASE [--quick]

DATA is a folder with `train.csv` and `test.csv` (columns text, category). `bound` draws 300 gold
rows 100 times from recorded answers: of teacher B, whose labels are the true ones with 12 % seeded
errors of the nearest label, and with --labelled of the artifact that `slmctl label` left for all
training rows. `plan` asks teacher B behind an endpoint of this process. `students` trains three
models with BASE: on 300 rows that people labelled, on these and the accepted labels of a release
(trained with BASE on the half of the training rows that no student gets, unless `--release` names
one), and on all of them; the test rows are scored once.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import disguises, endpoint

from benchmarks import label_students, program, result
from benchmarks.label_students import HEAD
from benchmarks.program import Pairs, read_csv, slmctl
from benchmarks.result import single
from slmctl.config import LabelConfig
from slmctl.console import percent
from slmctl.metrics.answer_score import fits_score
from slmctl.stages.label import acceptance
from slmctl.stages.label.acceptance import LabelledRow
from slmctl.stages.label.rows import LabelRow
from slmctl.stages.label.teachers import Vote

WRONG = 0.12  # of teacher B's labels
GOLD, SEEDS, QUICK_ROWS = 300, 100, 2000
MAX_ERROR, HELD, NEAR = 0.05, ">= 0.95", "<= 0.1"
PACKAGES = ("numpy", "scikit-learn", "httpx")


def main() -> None:
    parser = program.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("bound", "plan"):
        one = commands.add_parser(name)
        one.add_argument("data", type=Path)
        one.add_argument("--quick", action="store_true")
    commands.choices["bound"].add_argument("--labelled", type=Path, action="append", default=[])
    commands.add_parser("private").add_argument("--rows", type=int, default=1000)
    label_students.add_arguments(commands.add_parser("students"))
    options = parser.parse_args()
    measures = {
        "bound": bounds,
        "plan": plans,
        "private": private,
        "students": label_students.learn,
    }
    rows = measures[options.command](options)
    flags = [flag for flag in ("few", "quick") if getattr(options, flag, False)]
    command = " --".join([f"python -m benchmarks.label {options.command} ...", *flags])
    result.write("-".join(["label", options.command, *flags]), command, rows, PACKAGES)


# The bound


def bounds(options: argparse.Namespace) -> list[result.Row]:
    pairs = read_csv(options.data / "train.csv")
    random.Random(0).shuffle(pairs)
    pairs = pairs[:QUICK_ROWS] if options.quick else pairs
    rows = held("teacher B (12 % wrong)", teacher_b(pairs))
    for folder in options.labelled:
        rows += held(folder.parent.name, recorded(folder, dict(pairs)))
    return rows


def teacher_b(pairs: Pairs) -> list[LabelledRow]:
    """The true labels with seeded errors: the label whose texts are
    most like those of the right one.
    """
    nearest = nearest_labels(pairs)
    choose, rows = random.Random(1), []
    for k, (text, label) in enumerate(pairs):
        said = nearest[label] if choose.random() < WRONG else label
        row = LabelRow(f"{k:016x}", text, text, "train.csv", k, label)
        rows.append(LabelledRow(row, [Vote(0, said, True, None)], said))
    return rows


def nearest_labels(pairs: Pairs) -> dict[str, str]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    names = sorted({label for _, label in pairs})
    texts = [" ".join(text for text, label in pairs if label == name) for name in names]
    table = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    alike = (table @ table.T).toarray()
    np.fill_diagonal(alike, -1)
    return {name: names[int(alike[k].argmax())] for k, name in enumerate(names)}


def recorded(folder: Path, truth: dict[str, str]) -> list[LabelledRow]:
    """The answers in a labelled artifact, with the true labels."""
    rows = []
    for name in ("accepted", "review"):
        for fields in program.read_jsonl(folder / f"{name}.jsonl"):
            if fields["input"] in truth:
                votes = [
                    Vote(0, vote["answer"], vote["valid"], vote.get("confidence"))
                    for vote in fields["votes"]
                ]
                row = LabelRow(
                    fields["id"],
                    fields["input"],
                    fields["input"],
                    "",
                    len(rows),
                    truth[fields["input"]],
                )
                rows.append(LabelledRow(row, votes, fields["output"]))
    return rows


def held(name: str, every: list[LabelledRow]) -> list[result.Row]:
    """The share of draws of gold rows whose accepted labels are wrong in at most MAX_ERROR."""
    config = LabelConfig.model_validate(
        {"task": {"kind": "classify"}, "max_error": MAX_ERROR, "votes": 1}
    )
    pool = [with_gold(entry, is_pool=True) for entry in every[:GOLD]]
    chances = acceptance.linear_chances(every[GOLD:], pool)  # the same whichever rows are gold
    fine, kept, errors = 0, [], []
    for seed in range(SEEDS):
        drawn = set(random.Random(seed).sample(range(len(every)), GOLD))
        gold = [
            with_gold(every[k], is_pool=fits_score(f"{seed}/{every[k].row.id}"))
            for k in sorted(drawn)
        ]
        rows = [
            LabelledRow(entry.row, entry.votes, entry.answer)
            for k, entry in enumerate(every)
            if k not in drawn
        ]
        acceptance.accept(config, rows, gold, chances)
        accepted = [entry for entry in rows if entry.accepted]
        wrong = sum(entry.answer != entry.row.gold for entry in accepted) / max(len(accepted), 1)
        fine += wrong <= MAX_ERROR
        kept.append(len(accepted) / len(rows))
        errors.append(wrong)
    of_all = sum(entry.answer != entry.row.gold for entry in every) / len(every)
    median = float(np.median(kept))
    print(f"{name}: {percent(median)} accepted in the median, {percent(of_all)} of all wrong")  # noqa: T201
    return [
        single(
            f"{name}: draws of 300 gold rows whose accepted labels are wrong in at most 5 %",
            fine / SEEDS,
            "promised",
            0.95,
            HELD,
        ),
        single(
            f"{name}: share of wrong labels among the accepted, median",
            float(np.median(errors)),
            "of all labels",
            of_all,
        ),
        single(f"{name}: share of labels accepted, median", median, "of all labels", 1.0),
    ]


def with_gold(entry: LabelledRow, *, is_pool: bool) -> LabelledRow:
    row = entry.row
    gold = LabelRow(row.id, row.raw, row.text, row.file, row.number, row.gold, is_pool)
    return LabelledRow(gold, entry.votes, entry.answer)


# Plans and privacy


@contextmanager
def teacher_at_an_endpoint(pairs: Pairs) -> Iterator[endpoint.Fake]:
    """Teacher B behind an endpoint of this process; a token is four characters."""
    said = {entry.row.text: entry.answer for entry in teacher_b(pairs)} if pairs else {}

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        text = said.get(body["messages"][-1]["content"], "none")
        prompt = sum(len(turn["content"]) for turn in body["messages"]) // 4
        return endpoint.says(
            text, usage={"prompt_tokens": prompt, "completion_tokens": max(1, len(text) // 4)}
        )

    with endpoint.serving(manners) as fake:
        yield fake


def project(folder: Path, url: str, gold: Pairs, texts: Sequence[str], more: str = "") -> Path:
    program.write_csv(folder / "gold.csv", gold)
    program.write_jsonl(folder / "new.jsonl", [{"text": text} for text in texts])
    (folder / "slmctl.yaml").write_text(
        HEAD.format(name="banking77", base="none", labels="from-data")
        + "label:\n  sources: [{path: new.jsonl, input: text}]\n"
        "  gold: {path: gold.csv, input: text, output: category}\n  votes: 1\n"
        f"  teachers: [{{url: {url}, model: large, prices: {{input: 1.0, output: 4.0}}, "
        f"concurrency: 32}}]\n{more}",
        encoding="utf-8",
    )
    return folder


def plans(options: argparse.Namespace) -> list[result.Row]:
    pairs = read_csv(options.data / "train.csv")
    random.Random(0).shuffle(pairs)
    pairs = pairs[:400] if options.quick else pairs[:2000]
    planned, paid = [], []
    for seed in range(2 if options.quick else 5):
        folder = Path(f"label-plan-{int(time.time())}-{seed}")
        with teacher_at_an_endpoint(pairs) as fake:
            texts = random.Random(seed).sample(
                [text for text, _ in pairs[GOLD:]], len(pairs) - GOLD
            )
            project(folder, fake.url, pairs[:GOLD], texts)
            planned.append(json.loads(slmctl(folder, "label", "--plan", "--json"))["cost"])
            made = json.loads(slmctl(folder, "label", "--json"))
            paid.append(made["metrics"]["teachers"][0]["cost"])
    off = [abs(plan - bill) / bill for plan, bill in zip(planned, paid, strict=True)]
    return [
        result.compared("cost: planned from 20 rows, and billed", planned, paid, peer="the bill"),
        single(
            "largest distance of a plan from its bill, a share of it",
            max(off),
            "allowed",
            0.1,
            NEAR,
        ),
    ]


def private(options: argparse.Namespace) -> list[result.Row]:
    ways = [*(disguises.MUTATIONS | disguises.MORE).values()]
    cases = disguises.prompts(options.rows, seed=5)
    texts = [
        "\n".join(
            turn["content"] for turn in ways[k % len(ways)](text, value) if turn["role"] == "user"
        )
        for k, (_, text, value) in enumerate(cases)
    ]
    folder = Path(f"label-private-{int(time.time())}")
    with teacher_at_an_endpoint([]) as fake:
        gold = [(f"a plain question about a lamp, number {'i' * k}", "lamp") for k in range(9)]
        project(folder, fake.url, gold, texts)
        slmctl(folder, "label")
    asked = {body["messages"][-1]["content"] for body in fake.bodies}
    left = [text for text in texts if text in asked]
    sent = json.dumps(fake.bodies)
    values = sum(len(value.encode()) for _, _, value in cases if value in sent)
    what = f"rows with personal data in {len(ways)} disguises that left, of {len(texts)}"
    return [
        single(what, len(left), "allowed", 0, "<= 0"),
        single("bytes of personal data at the endpoint", values, "allowed", 0, "<= 0"),
    ]


if __name__ == "__main__":
    main()
