"""predictions of several models -> report: every model's metrics on held-out rows, beside the
baselines.

Every figure follows from the predictions and the prepared data set; `tests/support/recompute.py`
computes them a second time, without this code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.config import EvaluateConfig
from slmctl.errors import UsageError
from slmctl.metrics.answer_metrics import SHARES
from slmctl.metrics.baseline import BASELINES, BaselineRows
from slmctl.metrics.predictions import facts_of, read_predictions
from slmctl.metrics.statistics import POWER, design_effect, effective_groups, percentiles, wilson
from slmctl.models import class_of
from slmctl.reports import IN_SUM
from slmctl.reports.evaluation_report import (
    CHECKS,
    ChoiceEntry,
    EvaluationReport,
    ModelFacts,
    ParticipantEntry,
    RowAnswer,
    RowEntry,
    SliceEntry,
    SumEntry,
    TokenCounts,
)
from slmctl.stages.evaluate import release_rows, report_page
from slmctl.stages.evaluate.judged_pairs import judged
from slmctl.stages.evaluate.model_selection import break_even, choose
from slmctl.stages.evaluate.paired_comparison import Slice, compare, slices_of
from slmctl.stages.evaluate.report_markdown import markdown
from slmctl.stages.evaluate.report_sentences import remarks
from slmctl.stages.evaluate.scoring import (
    LEVEL_ERROR,
    LOWER_IS_BETTER,
    Answers,
    Floats,
    Scored,
    distributions,
    score,
)
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records

DIGITS = 6  # of a figure in the report
FREE: ModelFacts = {"kind": "baseline", "not_sent": 0, "failed": 0}  # a baseline answers every row


@dataclass(frozen=True)
class MeasuredModel:
    """A model's answers in the order of the records, and the facts that the report states of it."""

    answers: Answers
    facts: ModelFacts


def run(
    config: EvaluateConfig,
    *,
    predictions: list[Artifact],
    prepared: Artifact,
    out: Path,
    validation: list[Artifact] | None = None,
    released: Artifact | None = None,
    sum: Artifact | None = None,
) -> dict[str, Any]:
    """Write `report.json` (every figure), `report.html`, `report.md` (for pull requests) and
    `rows.jsonl` (row by row).

    Args:
        predictions: Answers of each model to the rows that are reported.
        validation: Answers of the GGUF files to the validation rows; without them, none is chosen.
        released: The data set of the release among the models; without it, old and new rows are not
            distinguished.
        sum: The linear members beside the GGUF files, where they are measured.

    Raises:
        DataError: A reference answer is not one that the task allows.
        IntegrityError: An artifact of predictions does not hold predictions.
        UsageError: Two predictions are of the same model, or of different rows, or of rows that a
            model has learned.
    """
    task = Task.read(prepared.path)
    split = _split_of(predictions)
    records = read_records(prepared.file(f"{split}.jsonl"))
    train, choosing = (
        read_records(prepared.file(f"{name}.jsonl")) for name in ("train", "validation")
    )
    # a file that may be chosen keeps its name, which the choice and the gates use
    models = _models(
        predictions, records, kept={facts_of(files)["sha256"] for files in validation or ()}
    )
    free = _baselines(task, train, choosing, records)
    answers = free | {name: model.answers for name, model in models.items()}
    choice = _choice(config, task, choosing, validation or [])
    sure = config.confidence
    scored = {name: score(task, records, own, confidence=sure) for name, own in answers.items()}
    facts = dict.fromkeys(free, FREE) | {name: model.facts for name, model in models.items()}
    report = _measured(config, task, records, scored, facts, choice)
    if sum is not None:
        report["sum"] = _sum(report, sum)
        report["focus"] = report["sum"]["model"]
    report |= {"split": split, "prepared": prepared.digest}
    references = [each for each in predictions if class_of(facts_of(each)["kind"]).is_reference]
    if references:
        release = references[0]
        compared = {name: scored[name] for name, model in models.items() if _is_own(model)}
        title = facts_of(release).get("release", "")
        report["release"] = release_rows.entry(
            _name(release), title, compared, records, released, config.confidence
        )
    if config.pairs is not None:
        digests = {name: str(model.facts.get("predictions")) for name, model in models.items()}
        groups, focus = next(iter(scored.values())).groups, report["focus"]
        report["judged"] = judged(
            config, records, answers, digests, groups, focus=focus, of=(predictions, prepared)
        )
    report = cast(EvaluationReport, _rounded(report))
    report["remarks"] = remarks(report)
    labels = task.labels or _label_sets(task, records, answers.values())
    rows = list(_rows(labels, records, scored, answers, config.shown_characters))
    _write(out, task, report, rows, labels=labels)
    return cast(dict[str, Any], report)


def _choice(
    config: EvaluateConfig, task: Task, rows: Sequence[Record], validation: Sequence[Artifact]
) -> ChoiceEntry | None:
    """The file that is chosen by the answers to the validation rows; None without a rule."""
    answered = _models(validation, rows)
    if config.choose is None or not answered:
        return None
    files = {
        name: model
        for name, model in answered.items()
        if class_of(model.facts["kind"]).is_candidate
    }
    scores = {name: score(task, rows, model.answers) for name, model in files.items()}
    facts = {name: model.facts for name, model in files.items()}
    return choose(config.choose, task.rules.primary, scores, facts)


def _is_own(model: MeasuredModel) -> bool:
    """True for a model that was tuned, or a release of one."""
    kind = class_of(model.facts["kind"])
    return not (kind.untuned or kind.is_remote)


def _measured(
    config: EvaluateConfig,
    task: Task,
    records: Sequence[Record],
    scored: Mapping[str, Scored],
    facts: Mapping[str, ModelFacts],
    choice: ChoiceEntry | None,
) -> EvaluationReport:
    """The report without its remarks, in full precision."""
    masks = {model.sent.tobytes(): model.sent for model in scored.values()}
    drawn = {key: distributions(scored, mask) for key, mask in masks.items()}
    entries = {
        name: _entry(model, drawn[model.sent.tobytes()][name], config.confidence, facts[name])
        for name, model in scored.items()
    }
    models = {name: entry for name, entry in entries.items() if entry["kind"] != FREE["kind"]}
    others = {
        name: entry for name, entry in models.items() if not class_of(entry["kind"]).is_baseline
    }
    models = others or models
    sliced = slices_of(task, records, named=config.shown_characters > 0)
    return {
        "task": task.kind,
        "primary_metric": task.rules.primary,
        "lower_is_better": [
            *LOWER_IS_BETTER,
            *([LEVEL_ERROR] if task.ordered else []),
            *task.rules.checks,
        ],
        "split": "",
        "n": len(records),
        "confidence": config.confidence,
        "power": POWER,
        "prepared": "",
        "participants": list(scored),
        "focus": _focus(models, choice),
        "models": models,
        "baselines": {name: entry for name, entry in entries.items() if name not in models},
        "pairs": compare(scored, drawn, sliced, config.confidence),
        "slices": _slices(scored, sliced, task.rules.primary, config.confidence),
        "choice": choice,
        "cut": config.shown_characters,
        "break_even": break_even(config.prices, models),
        "remarks": [],
    }


def _label_sets(
    task: Task, records: Sequence[Record], answers: Iterable[Answers]
) -> tuple[str, ...]:
    """Every allowed answer that occurs, such as a list of labels,
    sorted; empty for tasks without labels.
    """
    texts = {record.answer for record in records}.union(
        *([(text or "").strip() for text in a.texts] for a in answers)
    )
    return tuple(sorted(filter(task.accepts, texts))) if task.rules.has_labels else ()


def _write(
    out: Path,
    task: Task,
    report: EvaluationReport,
    rows: Sequence[RowEntry],
    *,
    labels: Sequence[str],
) -> None:
    head = {"participants": report["participants"], "cut": report["cut"], "task": report["task"]}
    head |= {"labels": list(labels), "score": task.rules.row_metric}
    with (out / "rows.jsonl").open("w", encoding="utf-8", newline="\n") as stream:
        for line in (head, *rows):
            stream.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    (out / "report.json").write_bytes(canonical(report))
    (out / "report.md").write_text(markdown(report), encoding="utf-8")
    report_page.write(out / "report.html", report, rows, labels=labels)


# Reading


def _split_of(predictions: Sequence[Artifact]) -> str:
    splits = {facts_of(artifact)["split"] for artifact in predictions}
    if len(splits) != 1:
        raise UsageError(
            f"the predictions are of different splits: {', '.join(sorted(splits)) or 'none'}",
            hint="predictions of one split can be compared",
        )
    split = splits.pop()
    if learned := sorted(
        map(_name, filter(lambda made: facts_of(made).get("learned"), predictions))
    ):
        raise UsageError(
            f"the {split} rows are learned by {', '.join(learned)}, whose figures would be too "
            "good",
            hint="--split test, or models without linear members, as --compare gguf",
        )
    return split


def _baselines(
    task: Task, train: Sequence[Record], validation: Sequence[Record], records: Sequence[Record]
) -> dict[str, Answers]:
    """The answers of the baselines of a kind of task to `records`, by name."""
    rules = task.rules
    rows = BaselineRows(
        [record.input for record in train],
        [record.answer for record in train],
        choosing=[record.input for record in validation],
        chosen=[record.answer for record in validation],
        asked=[record.input for record in records],
        several=() if rules.chooses else rules.labels,
        empty=rules.empty,
    )
    made = {}
    for name in rules.baselines:
        texts, confidences = BASELINES[name].answers(rows)
        unsure = [None] * len(records)
        made[name] = Answers(texts, confidences or unsure, np.ones(len(records), bool))
    return made


def _models(
    predictions: Sequence[Artifact], records: Sequence[Record], kept: Set[str] = frozenset()
) -> dict[str, MeasuredModel]:
    """The models by name, in the order of the pipeline, the larger file first.

    Models of equal names get eight digits of their hash too, except those whose hash is in `kept`.
    """
    models: dict[str, MeasuredModel] = {}
    counts = Counter(_name(artifact) for artifact in predictions)
    for artifact in sorted(predictions, key=_place):
        name, digest = _name(artifact), facts_of(artifact)["sha256"]
        if counts[name] > 1 and digest and digest not in kept:
            name = f"{name} ({digest[:8]})"
        if name in models:
            raise UsageError(
                f"two of the models have the name '{name}'", hint="give each model once"
            )
        models[name] = _model(artifact, records)
    return models


def _name(predictions: Artifact) -> str:
    # `|` stands between the names of a pair
    return facts_of(predictions)["model"].replace("|", "/")


def _place(predictions: Artifact) -> tuple[int, int, int, str]:
    facts = facts_of(predictions)
    return (
        class_of(facts["kind"]).place,
        -(facts.get("size") or 0),
        facts.get("shots") or 0,
        facts["model"],
    )


def _model(artifact: Artifact, records: Sequence[Record]) -> MeasuredModel:
    metrics, lines = facts_of(artifact), read_predictions(artifact)
    if [line["id"] for line in lines] != [record.id for record in records]:
        raise UsageError(
            f"{artifact.path} answers other rows than the prepared data set holds",
            hint="slmctl predict, with this data set",
        )
    sent = np.array([not line.get("not_sent") for line in lines], bool)
    tokens = _tokens([(line.get("prompt_tokens"), line.get("completion_tokens")) for line in lines])
    rate = metrics.get("rows_per_s")
    facts: ModelFacts = {
        "kind": metrics["kind"],
        "size": metrics.get("size"),
        "sha256": metrics["sha256"],
        "engine": metrics.get("engine"),
        "matmul_dtype": metrics.get("matmul_dtype"),
        "latency_ms": metrics.get("latency_ms"),
        "rows_per_s": rate,
        "prompt_lists_labels": metrics.get("prompt_lists_labels"),
        "shots": metrics.get("shots"),
        "not_sent": metrics.get("not_sent") or 0,
        "failed": metrics.get("failed") or 0,
        "predictions": artifact.digest,
        "tokens": tokens,
        "tokens_per_s": tokens["completion"] / int(sent.sum()) * rate
        if tokens and rate and sent.any()
        else None,
    }
    if "sample" in metrics:
        facts["sample"] = metrics["sample"]
    if "base_sha256" in metrics:
        facts["base_sha256"] = metrics["base_sha256"]
    answers = Answers(
        texts=[line["answer"] for line in lines],
        confidences=[line.get("confidence") for line in lines],
        sent=sent,
        finishes=[line.get("finish") for line in lines],
    )
    return MeasuredModel(answers, facts)


def _tokens(counts: Sequence[tuple[int | None, int | None]]) -> TokenCounts | None:
    """The sums over all rows; None if a row lacks one of the two counts."""
    whole = [
        (prompt, completion)
        for prompt, completion in counts
        if prompt is not None and completion is not None
    ]
    if len(whole) < len(counts):
        return None
    return {
        "prompt": sum(prompt for prompt, _ in whole),
        "completion": sum(completion for _, completion in whole),
    }


# Writing


def _entry(
    model: Scored, drawn: Mapping[str, Floats], confidence: float, facts: ModelFacts
) -> ParticipantEntry:
    values = {name: model.value(name) for name in model.metrics}
    n, groups = int(model.sent.sum()), model.groups[model.sent]

    def interval(name: str) -> tuple[float, float]:
        if name not in SHARES:
            return percentiles(drawn[name], confidence)
        effect = design_effect(model.metrics[name].rows[model.sent, 0], groups)  # type: ignore[attr-defined] # a mean
        return wilson(round(values[name] * n) / effect, n / effect, confidence)

    intervals = {name: interval(name) for name in values}
    effect = design_effect(model.right[model.sent].astype(np.float64), groups)
    entry: ParticipantEntry = {
        "n": n,
        "right": int((model.right & model.sent).sum()),
        "invalid": model.invalid,
        "metrics": values,
        "intervals": {name: list(interval) for name, interval in intervals.items()},
        # of the primary metric, which stands first
        "interval": list(next(iter(intervals.values()))),
        **model.facts,
        **facts,
    }
    if effect > 1:
        sizes = np.unique(groups, return_counts=True)[1].tolist()
        entry |= {
            "design_effect": effect,
            "groups": len(sizes),
            "effective_groups": effective_groups(sizes),
        }
    return entry


def _slices(
    scored: Mapping[str, Scored], sliced: Sequence[Slice], primary: str, confidence: float
) -> list[SliceEntry]:
    entries = []
    for by, name, mask in sliced:
        rows = {
            title: model.sent & mask for title, model in scored.items() if (model.sent & mask).any()
        }
        values = {title: scored[title].value(primary, mask) for title in rows}
        entry: SliceEntry = {"by": by, "name": name, "n": int(mask.sum()), "values": values}
        checks = {
            title: [check for check in CHECKS if check in scored[title].metrics] for title in rows
        }
        if any(checks.values()):
            entry["checks"] = {
                title: {check: scored[title].value(check, mask) for check in names}
                for title, names in checks.items()
            }
        if primary in SHARES:
            entry["intervals"] = {
                title: list(
                    wilson(int((scored[title].right & sent).sum()), int(sent.sum()), confidence)
                )
                for title, sent in rows.items()
            }
        entries.append(entry)
    return entries


def _focus(models: Mapping[str, ParticipantEntry], choice: ChoiceEntry | None) -> str:
    """The model to release: the chosen file, else the smallest GGUF file,
    else the last model of the pipeline.
    """
    if choice is not None and choice["model"] in models:
        return str(choice["model"])
    kinds = {name: class_of(model["kind"]) for name, model in models.items()}
    sizes = {
        name: model.get("size") or 0 for name, model in models.items() if kinds[name].is_candidate
    }
    own = [name for name in models if not (kinds[name].is_remote or kinds[name].is_reference)]
    return min(sizes, key=lambda name: sizes[name]) if sizes else (own or list(models))[-1]


def _sum(report: EvaluationReport, made: Artifact) -> SumEntry:
    """The sum that a release answers by: of the file to release with
    linear members, or the file alone.
    """
    both = f"{report['focus']}{IN_SUM}"
    facts = {key: made.metrics[key] for key in ("weights", "gains", "floor", "rows", "right")}
    return cast(SumEntry, {"model": both if both in report["models"] else report["focus"], **facts})


def _rows(
    labels: Sequence[str],
    records: Sequence[Record],
    scored: Mapping[str, Scored],
    answers: Mapping[str, Answers],
    cut: int,
) -> Iterator[RowEntry]:
    """The rows of `rows.jsonl`; answers are (index in `labels`, or -1; right; confidence; score),
    None if not sent.

    Texts are cut to `cut` characters, 0 for none. Sensitive records have none, since reports are
    published.
    """
    index = {label: k for k, label in enumerate(labels)}
    groups = next(iter(scored.values())).groups.tolist()
    shared = len({*groups}) < len(groups)
    for k, record in enumerate(records):
        row: RowEntry = {
            "id": record.id,
            "source": (record.source["file"], record.source["row"]),
            "length": len(record.input),
            "sensitive": record.sensitive,
            "expected": index.get(record.answer),
            "answers": [_cell(model, answers[name], index, k) for name, model in scored.items()],
        }
        if shared:
            row["group"] = groups[k]  # not its name, which may be a customer's
        if cut and not record.sensitive:
            texts = [
                (model.texts[k] or "")[:cut] if model.sent[k] else None
                for model in answers.values()
            ]
            row["texts"] = {
                "input": record.input[:cut],
                "expected": record.answer[:cut],
                "answers": texts,
            }
        faults = [
            model.faults[k] if model.faults and model.sent[k] else {} for model in scored.values()
        ]
        if any(faults):
            shown = cut and not record.sensitive  # values are words of the answer
            row["faults"] = [
                {check: list(each) if shown else [] for check, each in own.items()}
                for own in faults
            ]
        yield row


def _cell(model: Scored, answers: Answers, index: Mapping[str, int], k: int) -> RowAnswer | None:
    if not model.sent[k]:
        return None
    confidence = answers.confidences[k]
    return (
        index.get((answers.texts[k] or "").strip(), -1) if index else None,
        int(model.right[k]),
        None if confidence is None else round(confidence, 4),
        round(float(model.score[k]), 4),
    )


def _rounded(value: Any) -> Any:
    """A report with every figure to DIGITS digits; a p-value to four
    significant ones, however small it is.
    """
    if isinstance(value, dict):
        return {
            key: float(f"{inner:.4g}") if key in ("p", "p_holm") else _rounded(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return round(value, DIGITS) if isinstance(value, float) else value
