"""Ungrounded facts: precision and recall on 300 answers with planted values, and the time that an
answer takes.

    python -m benchmarks.drafts
    python -m benchmarks.drafts --project PROJECT    # faults of drafts by model

The answers are those of `tests/support/planted.py`: cases by hand, and seeded ones in English and
German.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks import program, result
from slmctl.metrics.grounding import ungrounded
from slmctl.reports.evaluation_report import CHECKS, parse_report
from tests.support.planted import HARD, Planted, cases, found

SEEDS = (11, 12, 13, 14, 15)  # the first is the one of the tests
BY_REFERENCE = ("token_f1", "length_ratio")


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument(
        "--project", type=Path, help="folder of a finished project that drafts texts"
    )
    if project := parser.parse_args().project:
        result.write(
            "drafts-models", "python -m benchmarks.drafts --project PROJECT", of_models(project), ()
        )
        return
    answers = [list(cases(seed=seed)) for seed in SEEDS]
    begun = time.process_time()
    (hits, missed, false), *others = map(counted, answers)
    took = 1e6 * (time.process_time() - begun) / sum(map(len, answers))
    rows = [
        result.single(
            "ungrounded facts: precision",
            hits / (hits + false),
            "planted",
            hits + missed,
            ">= 0.95",
        ),
        result.single(
            "ungrounded facts: recall", hits / (hits + missed), "planted", hits + missed, ">= 0.9"
        ),
        result.single(
            "lowest precision of five seeds",
            min(h / (h + f) for h, _, f in [(hits, 0, false), *others]),
            "answers",
            sum(map(len, answers)),
        ),
        result.single(
            "lowest recall of five seeds",
            min(h / (h + m) for h, m, _ in [(hits, missed, 0), *others]),
            "answers",
            sum(map(len, answers)),
        ),
        result.single("microseconds an answer", took, "answers by hand", len(HARD)),
    ]
    result.write("drafts", "python -m benchmarks.drafts", rows, ())


def of_models(project: Path) -> list[result.Row]:
    """Shares of held-out drafts with a fault, beside their numbers, and two
    metrics by references, of each model.
    """
    newest = max(project.glob("runs/report/*/report.json"), key=lambda path: path.stat().st_mtime)
    report = parse_report(json.loads(newest.read_bytes()), where=str(newest))
    return [
        result.single(
            f"{name}: {metric}",
            value,
            "rows",
            round(value * entry["n"]) if metric in CHECKS else entry["n"],
        )
        for name, entry in report["models"].items()
        for metric, value in entry["metrics"].items()
        if metric in (*CHECKS, *BY_REFERENCE)
    ]


def counted(answers: list[Planted]) -> tuple[int, int, int]:
    """Numbers of planted values that are found, of those that are
    missed, and of other values found.
    """
    counts = [
        found([fact.text for fact in ungrounded(one.answer, one.texts)], one.values)
        for one in answers
    ]
    hits, missed, false = (sum(column) for column in zip(*counts, strict=True))
    return hits, missed, false


if __name__ == "__main__":
    main()
