"""predictions of many -> report: what each model scored on held-out rows, beside the honest baselines."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.artifact import Artifact, canonical
from slmctl.config import EvaluateConfig
from slmctl.errors import DataError, UsageError
from slmctl.records import Record, read_records
from slmctl.scoreboard import markdown
from slmctl.similar import normalise
from slmctl.statistics import wilson
from slmctl.task import Task

PRIMARY = {"classify": "accuracy", "extract": "exact_match", "generate": "exact_match"}
Scores = dict[str, float]


def run(config: EvaluateConfig, *, predictions: list[Artifact], prepared: Artifact, out: Path) -> dict[str, Any]:
    """Write `report.json` (every figure) and `report.md` (the table, for a pull request).

    Raises:
        UsageError: Two predictions are of the same model, or of different rows.
    """
    task = Task.read(prepared.path)
    splits = {artifact.metrics["split"] for artifact in predictions}
    if len(splits) != 1:
        raise UsageError(f"the predictions are of different rows: {', '.join(sorted(splits))}")
    records = read_records(prepared.file(f"{splits.pop()}.jsonl"))
    answers = {name: _answers(artifact, records) for name, artifact in _named(predictions).items()}
    right = {name: _right(task, records, texts) for name, texts in answers.items()}
    train = read_records(prepared.file("train.jsonl"))
    report = {
        "task": task.kind,
        "primary_metric": PRIMARY[task.kind],
        "split": predictions[0].metrics["split"],
        "n": len(records),
        "confidence": config.confidence,
        "prepared": prepared.digest,
        "models": {
            name: _model(artifact, task, records, answers[name], right[name], config)
            for name, artifact in _named(predictions).items()
        },
        "baselines": _baselines(task, train, records, config),
        "pairs": _pairs(right),
    }
    report["remarks"] = _remarks(report)
    (out / "report.json").write_bytes(canonical(report))
    (out / "report.md").write_text(markdown(report), encoding="utf-8")
    return report


def _named(predictions: Sequence[Artifact]) -> dict[str, Artifact]:
    named: dict[str, Artifact] = {}
    for artifact in predictions:
        name = artifact.metrics["model"]
        if name in named:
            raise UsageError(f"two of the models are both called '{name}'", hint="give each model once")
        named[name] = artifact
    return named


def _answers(artifact: Artifact, records: Sequence[Record]) -> list[str]:
    with artifact.file("predictions.jsonl").open(encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    if [line["id"] for line in lines] != [record.id for record in records]:
        raise UsageError(f"{artifact.path} answers other rows than the prepared data set holds")
    return [line["answer"] for line in lines]


def _model(
    artifact: Artifact,
    task: Task,
    records: Sequence[Record],
    texts: list[str],
    right: list[bool],
    config: EvaluateConfig,
) -> dict[str, Any]:
    metrics = _scores(task, records, texts) | {PRIMARY[task.kind]: sum(right) / len(right)}
    low, high = wilson(sum(right), len(right), config.confidence)
    kept = ("kind", "size", "sha256", "latency_ms", "rows_per_s", "prompt_lists_labels")
    return {
        "metrics": {name: round(value, 6) for name, value in metrics.items()},
        "interval": [round(low, 6), round(high, 6)],
        "right": sum(right),
        "predictions": artifact.digest,
        **{key: artifact.metrics[key] for key in kept},
        **({"per_class": _per_class(task.labels, records, texts)} if task.kind == "classify" else {}),
    }


def _right(task: Task, records: Sequence[Record], texts: Sequence[str]) -> list[bool]:
    """Row by row whether the answer is the one wanted."""
    return [_same(task, record.answer, text) for record, text in zip(records, texts, strict=True)]


def _same(task: Task, expected: str, text: str) -> bool:
    if task.kind == "classify":
        return text.strip() == expected
    if task.kind == "generate":
        return normalise(text) == normalise(expected)
    try:
        return bool(task.read_answer(text) == task.read_answer(expected))
    except DataError:
        return False


def _scores(task: Task, records: Sequence[Record], texts: Sequence[str]) -> Scores:
    """The metrics of a task kind beside its primary one."""
    if task.kind == "classify":
        rows = _per_class(task.labels, records, texts)
        return {"macro_f1": sum(row["f1"] for row in rows.values()) / len(rows)}
    if task.kind == "generate":
        pairs = zip(records, texts, strict=True)
        return {"token_f1": _mean([_token_f1(record.answer, text) for record, text in pairs])}
    parsed = [_parsed(task, text) for text in texts]
    wanted = [_fields(task.read_answer(record.answer)) for record in records]
    given = [_fields(value) if value is not None else Counter() for value in parsed]
    return {
        "valid_json": _mean([value is not None for value in parsed]),
        "valid_schema": _mean([value is not None and task.fits_schema(value) for value in parsed]),
        "field_f1": _counter_f1(wanted, given),
    }


def _per_class(labels: Sequence[str], records: Sequence[Record], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of every label that was wanted or given."""
    pairs = [(record.answer, text.strip()) for record, text in zip(records, texts, strict=True)]
    wanted, given = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    hits = Counter(a for a, b in pairs if a == b)
    table = {}
    for label in labels:
        if wanted[label] or given[label]:
            precision = hits[label] / given[label] if given[label] else 0.0
            recall = hits[label] / wanted[label] if wanted[label] else 0.0
            f1 = 2 * hits[label] / (wanted[label] + given[label])
            figures = {"precision": precision, "recall": recall, "f1": f1, "support": wanted[label]}
            table[label] = {name: round(value, 6) for name, value in figures.items()}
    return table


def _parsed(task: Task, text: str) -> Any:
    try:
        return task.read_answer(text)
    except DataError:
        return None


def _fields(value: Any, path: str = "") -> Counter[str]:
    """The leaves of a JSON value as a multiset of `path=value`; empty values count too."""
    if isinstance(value, dict) and value:
        return sum((_fields(inner, f"{path}.{key}") for key, inner in value.items()), Counter())
    if isinstance(value, list) and value:
        return sum((_fields(inner, f"{path}[]") for inner in value), Counter())
    return Counter([f"{path}={json.dumps(value, sort_keys=True)}"])


def _counter_f1(wanted: Sequence[Counter[str]], given: Sequence[Counter[str]]) -> float:
    hits = sum((a & b).total() for a, b in zip(wanted, given, strict=True))
    total = sum(a.total() for a in wanted) + sum(b.total() for b in given)
    return 2 * hits / total if total else 0.0


def _token_f1(expected: str, text: str) -> float:
    """F1 of the words two texts share (Rajpurkar et al. 2016, SQuAD)."""
    return _counter_f1([Counter(normalise(expected).split())], [Counter(normalise(text).split())])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _pairs(right: dict[str, list[bool]]) -> dict[str, dict[str, int]]:
    """For every ordered pair of models: rows that both, only one or neither answered right."""
    table = {}
    for first, second in itertools.permutations(right, 2):
        counts = Counter(zip(right[first], right[second], strict=True))
        table[f"{first}|{second}"] = {
            "n": len(right[first]),
            "both": counts[True, True],
            "only_first": counts[True, False],
            "only_second": counts[False, True],
        }
    return table


# Baselines


def _baselines(
    task: Task, train: Sequence[Record], records: Sequence[Record], config: EvaluateConfig
) -> dict[str, Any]:
    """What costs nothing: a model that does not beat it is not worth its price."""
    ways: dict[str, Callable[[], list[str]]]
    if task.kind == "classify":
        ways = {"majority": lambda: _majority(train, records), "tfidf_logistic": lambda: _linear(train, records)}
    else:
        ways = {"copy": lambda: [record.input for record in records], "empty": lambda: ["" for _ in records]}
    table = {}
    for name, way in ways.items():
        texts = way()
        right = sum(_right(task, records, texts))
        low, high = wilson(right, len(records), config.confidence)
        metrics = _scores(task, records, texts) | {PRIMARY[task.kind]: right / len(records)}
        table[name] = {
            "metrics": {metric: round(value, 6) for metric, value in metrics.items()},
            "interval": [round(low, 6), round(high, 6)],
            "right": right,
        }
    return table


def _majority(train: Sequence[Record], records: Sequence[Record]) -> list[str]:
    counts = Counter(record.answer for record in train)
    label = min(counts, key=lambda name: (-counts[name], name))
    return [label] * len(records)


def _linear(train: Sequence[Record], records: Sequence[Record]) -> list[str]:
    """TF-IDF of words and word pairs with logistic regression, trained on the same rows as the model."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len({record.answer for record in train}) < 2:
        return _majority(train, records)
    # C from 5-fold cross-validation would be fairer to it still; 10 is near its best on short texts.
    linear = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=2000)
    )
    linear.fit([record.input for record in train], [record.answer for record in train])
    return [str(label) for label in np.asarray(linear.predict([record.input for record in records]))]


# What a reader should see first


def _remarks(report: dict[str, Any]) -> list[str]:
    metric = report["primary_metric"]
    tuned = {name: m for name, m in report["models"].items() if m["kind"] != "base"}
    remarks = []
    if tuned:
        best = max(tuned, key=lambda name: tuned[name]["right"])
        for name, baseline in report["baselines"].items():
            ours, theirs = tuned[best]["metrics"][metric], baseline["metrics"][metric]
            if baseline["right"] >= tuned[best]["right"]:
                remarks.append(
                    f"The baseline {name} scores {theirs:.1%}, the best model ({best}) {ours:.1%}: "
                    "on these rows the baseline is the cheaper and better choice."
                )
            elif baseline["interval"][1] >= tuned[best]["interval"][0]:
                remarks.append(
                    f"The baseline {name} scores {theirs:.1%}, {best} {ours:.1%}: their intervals overlap, "
                    f"so {report['n']} rows do not clearly tell them apart."
                )
    if report["n"] < 200:
        remarks.append(f"Only {report['n']} rows were measured: the intervals are wide.")
    return remarks
