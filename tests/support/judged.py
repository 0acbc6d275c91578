"""A project whose report measures two models of drafts, Q8_0 and
base, for tests of judged pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from slmctl.artifacts.artifact import Artifact
from slmctl.pipeline.predictions import measured_with
from slmctl.production.review.pairs import JudgedModels
from slmctl.task.contract import Task
from slmctl.task.records import SPLITS, write_jsonl
from support import handmade
from support.reported import evaluate_report

DRAFTS = tuple(f"It left on Monday, parcel {k}." for k in range(12))
OTHERS = tuple(f"It left on Tuesday, parcel {k}!" if k else DRAFTS[0] for k in range(12))


def project(
    folder: Path,
    tuned: Sequence[str] = DRAFTS,
    base: Sequence[str] = OTHERS,
    *,
    questions: Sequence[str] = (),
    base_name: str = "base",
    turns: Sequence[Mapping[str, object]] = (),
) -> Path:
    """Makes the folder's artifacts: a data set, both models' predictions, and a report on them.

    `turns` stand before the question of every row; the report has the base by `base_name`.
    """
    asked = questions or [f"where is parcel {k}?" for k in range(len(tuned))]
    ids = [f"r{k}" for k in range(len(tuned))]

    def data(place: Path) -> None:
        Task("generate", "Be kind.", "").write(place)
        lines = [
            {
                "id": id,
                "sensitive": False,
                "source": {"file": "a.csv", "row": 1},
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    *turns,
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": "On Monday."},
                ],
            }
            for id, text in zip(ids, asked, strict=True)
        ]
        for split in SPLITS:
            write_jsonl(place / f"{split}.jsonl", lines if split == "test" else lines[:1])

    prepared = handmade.make(folder / "runs" / "prepared" / "0", data)

    def answered(name: str, texts: Sequence[str]) -> Artifact:
        lines = [
            {"id": id, "answer": text, "expected": "On Monday."}
            for id, text in zip(ids, texts, strict=True)
        ]
        return handmade.make(
            folder / "runs" / "predictions" / name,
            lambda place: write_jsonl(place / "predictions.jsonl", lines),
            metrics={"model": name, "kind": "gguf", "split": "test", "sha256": name},
            inputs={"prepared": prepared.digest},
        )

    made = [answered("Q8_0", tuned), answered(base_name, base)]
    report = evaluate_report(models=(base_name, "adapter", "Q8_0", "Q4_K_M"))
    for each in made:
        report["models"][each.metrics["model"]]["predictions"] = each.digest
    handmade.make(
        folder / "runs" / "report" / "0",
        metrics=report,
        started="2026-11-30T09:00:00Z",
        inputs={"prepared": prepared.digest, "predictions": [each.digest for each in made]},
    )
    return folder


def models(folder: Path) -> JudgedModels:
    """The pairs of Q8_0 and base in such a project."""
    return JudgedModels.of(*measured_with(folder, "Q8_0", "base"))
