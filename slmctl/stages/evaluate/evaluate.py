"""predictions of many -> report: what each model scored on held-out rows, beside the honest baselines.

Every figure follows from the predictions and the prepared data set; `tests/recompute.py` does so a
second time, without this code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.config import EvaluateConfig
from slmctl.errors import UsageError
from slmctl.metrics.statistics import POWER, percentiles, wilson
from slmctl.reports.scoreboard import ORDER, markdown
from slmctl.stages.evaluate import report_page
from slmctl.stages.evaluate.baselines import baselines
from slmctl.stages.evaluate.model_selection import break_even, choose
from slmctl.stages.evaluate.paired_comparison import compare, slices_of
from slmctl.stages.evaluate.report_sentences import remarks
from slmctl.stages.evaluate.scoring import (
    LOWER_IS_BETTER,
    PRIMARY,
    SHARES,
    Answers,
    Floats,
    Scored,
    distributions,
    score,
)
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records

DIGITS = 6  # of a figure in the report
_CARRIED = ("kind", "size", "sha256", "engine", "latency_ms", "rows_per_s", "prompt_lists_labels", "shots", "not_sent",
            "failed")  # fmt: skip


@dataclass(frozen=True)
class MeasuredModel:
    """One model's predictions, read: its answers, what it is, and the tokens of its answers."""

    answers: Answers
    facts: dict[str, Any]


def run(
    config: EvaluateConfig,
    *,
    predictions: list[Artifact],
    prepared: Artifact,
    out: Path,
    validation: list[Artifact] | None = None,
) -> dict[str, Any]:
    """Write `report.json` (every figure), `report.html`, `report.md` (for pull requests) and `rows.jsonl` (row by row).

    Args:
        config: How to measure.
        predictions: Answers of each model to the rows that are reported.
        prepared: The rows.
        out: Where to write.
        validation: Answers of the GGUF files to the validation rows; without them, none is chosen.

    Raises:
        DataError: The answer wanted of a row is not what the task asks for.
        UsageError: Two predictions are of the same model, or of different rows.
    """
    task = Task.read(prepared.path)
    split, records = _records(predictions, prepared)
    train, choosing = (read_records(prepared.file(f"{name}.jsonl")) for name in ("train", "validation"))
    # a file that may be chosen keeps its name, by which the choice and the gates go
    models = _models(predictions, records, kept={artifact.metrics.get("sha256") for artifact in validation or ()})
    free = baselines(task, train, choosing, records)
    answers = free | {name: model.answers for name, model in models.items()}
    scored = {name: score(task, records, given) for name, given in answers.items()}
    whole = {mask.tobytes(): mask for mask in (one.asked for one in scored.values())}
    drawn = {key: distributions(scored, mask) for key, mask in whole.items()}

    entries = {name: _entry(one, drawn[one.asked.tobytes()][name], config.confidence) for name, one in scored.items()}
    choice = None
    if config.choose is not None and validation:
        files = _models(validation, choosing)
        marks = {name: score(task, choosing, model.answers) for name, model in files.items()}
        choice = choose(config.choose, PRIMARY[task.kind], marks, {name: m.facts for name, m in files.items()})
    sliced = slices_of(task, records, named=config.shown_characters > 0)
    report: dict[str, Any] = {
        "task": task.kind,
        "primary_metric": PRIMARY[task.kind],
        "lower_is_better": list(LOWER_IS_BETTER),
        "split": split,
        "n": len(records),
        "confidence": config.confidence,
        "power": POWER,
        "prepared": prepared.digest,
        "participants": list(scored),
        "focus": _focus(models, choice),
        "models": {name: entries[name] | model.facts for name, model in models.items()},
        "baselines": {name: entries[name] | {"kind": "baseline", "not_sent": 0, "failed": 0} for name in free},
        "pairs": compare(scored, drawn, sliced, config.confidence),
        "slices": _slices(scored, sliced, PRIMARY[task.kind], config.confidence),
        "choice": choice,
        "cut": config.shown_characters,
    }
    report["break_even"] = break_even(config.prices, report["models"])
    report = _rounded(report)
    report["remarks"] = remarks(report)
    rows = list(_rows(task, records, scored, answers, config.shown_characters))
    _write(out, task, report, rows)
    return report


def _write(out: Path, task: Task, report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    head = {key: report[key] for key in ("participants", "cut", "task")}
    head |= {"labels": list(task.labels), "score": {"extract": "field_f1"}.get(task.kind, report["primary_metric"])}
    with (out / "rows.jsonl").open("w", encoding="utf-8", newline="\n") as stream:
        for line in (head, *rows):
            stream.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    (out / "report.json").write_bytes(canonical(report))
    (out / "report.md").write_text(markdown(report), encoding="utf-8")
    report_page.write(out, report, rows, labels=task.labels)


# Reading


def _records(predictions: Sequence[Artifact], prepared: Artifact) -> tuple[str, list[Record]]:
    splits = {artifact.metrics["split"] for artifact in predictions}
    if len(splits) != 1:
        raise UsageError(f"the predictions are of different rows: {', '.join(sorted(splits)) or 'none'}")
    split = splits.pop()
    return split, read_records(prepared.file(f"{split}.jsonl"))


def _models(
    predictions: Sequence[Artifact], records: Sequence[Record], kept: Set[str | None] = frozenset()
) -> dict[str, MeasuredModel]:
    """The models by name, in the order of the pipeline, the larger file first.

    Models that have a name in common get a piece of their digest too, but those whose digest is in `kept`.
    """
    named: dict[str, MeasuredModel] = {}
    common = Counter(_name(artifact) for artifact in predictions)
    for artifact in sorted(predictions, key=_place):
        name, digest = _name(artifact), artifact.metrics.get("sha256")
        if common[name] > 1 and digest and digest not in kept:
            name = f"{name} ({digest[:8]})"
        if name in named:
            raise UsageError(f"two of the models are both called '{name}'", hint="give each model once")
        named[name] = _model(artifact, records)
    return named


def _name(predictions: Artifact) -> str:
    name: str = predictions.metrics["model"]
    return name.replace("|", "/")  # `|` stands between the names of a pair


def _place(predictions: Artifact) -> tuple[int, int, int, str]:
    facts = predictions.metrics
    return ORDER.index(facts["kind"]), -(facts["size"] or 0), facts.get("shots") or 0, facts["model"]


def _model(artifact: Artifact, records: Sequence[Record]) -> MeasuredModel:
    with artifact.file("predictions.jsonl").open(encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    if [line["id"] for line in lines] != [record.id for record in records]:
        raise UsageError(f"{artifact.path} answers other rows than the prepared data set holds")
    facts = {key: artifact.metrics.get(key) for key in _CARRIED} | {"predictions": artifact.digest}
    facts |= {"not_sent": facts["not_sent"] or 0, "failed": facts["failed"] or 0}
    tokens = {kind: [line.get(f"{kind}_tokens") for line in lines] for kind in ("prompt", "completion")}
    known = {kind: sum(counts) for kind, counts in tokens.items() if all(count is not None for count in counts)}
    facts["tokens"] = known if len(known) == 2 else None
    rate = facts["rows_per_s"]
    facts["tokens_per_s"] = known["completion"] / len(lines) * rate if facts["tokens"] and rate and lines else None
    answers = Answers(
        texts=[line["answer"] for line in lines],
        confidences=[line.get("confidence") for line in lines],
        asked=np.array([not line.get("not_sent") for line in lines], bool),
    )
    return MeasuredModel(answers, facts)


# Writing


def _entry(one: Scored, drawn: dict[str, Floats], confidence: float) -> dict[str, Any]:
    """One participant's figures with their intervals."""
    values = {name: one.value(name) for name in one.metrics}
    n = int(one.asked.sum())
    intervals = {
        name: wilson(round(value * n), n, confidence) if name in SHARES else percentiles(drawn[name], confidence)
        for name, value in values.items()
    }
    return {
        "n": n,
        "right": int((one.right & one.asked).sum()),
        "invalid": one.invalid,
        "metrics": values,
        "intervals": {name: list(interval) for name, interval in intervals.items()},
        "interval": list(next(iter(intervals.values()))),  # of the primary metric, which stands first
        **one.facts,
    }


def _slices(
    scored: dict[str, Scored], sliced: Sequence[tuple[str, str, Any]], primary: str, confidence: float
) -> list[dict[str, Any]]:
    """What every participant scored on every slice."""
    found = []
    for by, name, mask in sliced:
        entry: dict[str, Any] = {"by": by, "name": name, "n": int(mask.sum())}
        counted = {model: one for model, one in scored.items() if (one.asked & mask).any()}
        entry["values"] = {model: one.value(primary, mask) for model, one in counted.items()}
        if primary in SHARES:
            entry["intervals"] = {
                model: list(
                    wilson(int((one.right & one.asked & mask).sum()), int((one.asked & mask).sum()), confidence)
                )
                for model, one in counted.items()
            }
        found.append(entry)
    return found


def _focus(models: dict[str, MeasuredModel], choice: dict[str, Any] | None) -> str:
    """The model that would ship: the chosen file, else the smallest GGUF, else the last one of the pipeline."""
    if choice is not None and choice["model"] in models:
        return str(choice["model"])
    files = {name: m.facts["size"] for name, m in models.items() if m.facts["kind"] in ("gguf", "published")}
    own = [name for name, m in models.items() if m.facts["kind"] != "endpoint"]
    return min(files, key=lambda name: files[name]) if files else (own or list(models))[-1]


def _rows(
    task: Task, records: Sequence[Record], scored: dict[str, Scored], answers: dict[str, Answers], cut: int
) -> Any:
    """Row by row who was right; texts only where asked for, and never of a sensitive record: a report is published."""
    index = {label: k for k, label in enumerate(task.labels)}
    for k, record in enumerate(records):
        line: dict[str, Any] = {
            "id": record.id,
            "source": [record.source["file"], record.source["row"]],
            "length": len(record.input),
            "sensitive": record.sensitive,
            "expected": index.get(record.answer) if task.kind == "classify" else None,
            "answers": [_cell(one, answers[name], k) for name, one in scored.items()],
        }
        if cut and not record.sensitive:
            said = [(given.texts[k] or "")[:cut] if given.asked[k] else None for given in answers.values()]
            line["texts"] = {"input": record.input[:cut], "expected": record.answer[:cut], "answers": said}
        yield line


def _cell(one: Scored, given: Answers, k: int) -> list[Any] | None:
    if not one.asked[k]:
        return None
    sure = given.confidences[k]
    return [
        one.codes[k] if one.codes else None,
        int(one.right[k]),
        None if sure is None else round(sure, 4),
        round(float(one.score[k]), 4),
    ]


def _rounded(value: Any) -> Any:
    """Every figure with as many digits as it deserves; a p-value keeps its size, however small."""
    if isinstance(value, dict):
        return {
            key: float(f"{inner:.4g}") if key in ("p", "p_holm") else _rounded(inner) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return round(value, DIGITS) if isinstance(value, float) else value
