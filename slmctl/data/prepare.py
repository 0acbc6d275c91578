"""sources + base -> prepared: training, validation, calibration and test records, and the task contract."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from slmctl import console, similar
from slmctl.artifact import Artifact, sha256_file
from slmctl.base import Base
from slmctl.config import PrepareConfig, Source, Splits
from slmctl.config import Task as TaskConfig
from slmctl.errors import DataError
from slmctl.records import SPLITS, Record, write_jsonl
from slmctl.rows import columns_of, read_rows
from slmctl.task import Task, end_of_turn

Reject = dict[str, Any]  # {"source": {"file", "row"}, "reason": text}


def run(config: PrepareConfig, *, base: Artifact, out: Path) -> dict[str, Any]:
    """Write `train.jsonl`, `validation.jsonl`, `calibration.jsonl`, `test.jsonl`, `rejected.jsonl`, `task.json`.

    Every row that came in is in exactly one of the five files.

    Raises:
        DataError: A source is unusable, or too few rows are left to train and to measure.
    """
    if not config.sources:
        raise DataError(
            "no sources are set", hint="prepare: sources: [{path: tickets.csv, input: text, output: category}]"
        )
    rejected: list[Reject] = []
    records = list(_read(config, rejected))
    rows_in = len(records) + len(rejected)
    console.detail(f"{rows_in} rows read")
    labels = _labels(config.task, records)
    records = _with_known_label(records, labels, rejected)
    records, conflicts = _without_duplicates(records, rejected)
    sides = _split(records, config)
    near = _leave_out_near(sides, config.near_duplicate, rejected)
    _require_rows(sides, rows_in, rejected)
    task = _contract(config.task, labels, Base.read(base.path))
    task.write(out)
    for split in SPLITS:
        write_jsonl(out / f"{split}.jsonl", (record.to_json() for record in sides[split]))
    write_jsonl(out / "rejected.jsonl", rejected)
    counts = {split: len(sides[split]) for split in SPLITS}
    console.say(
        f"  {rows_in} rows: " + ", ".join(f"{n} {split}" for split, n in counts.items()) + f", {len(rejected)} left out"
    )
    return {
        "rows_in": rows_in,
        **counts,
        "rejected": len(rejected),
        "rejected_by_reason": dict(Counter(row["rule"] for row in rejected).most_common()),
        "conflicting_duplicates": conflicts,
        "near_duplicates_of_held_out": near,
        "labels": dict(sorted(Counter(record.label for record in records if record.label).items())),
        "tokens": _lengths(task, sides["train"], base.path),
        "sources": [{"file": s.title, "sha256": sha256_file(s.local).removeprefix("sha256:")} for s in config.sources],
    }


def _read(config: PrepareConfig, rejected: list[Reject]) -> Iterator[Record]:
    for source in config.sources:
        known = columns_of(source.local, sheet=source.sheet, format=source.format)
        for column in filter(None, (source.input, source.output, source.group)):
            if column not in known:
                near = difflib.get_close_matches(column, known, n=1)
                more = f"; did you mean '{near[0]}'?" if near else ""
                raise DataError(
                    f"{source.title} has no column '{column}'{more}", hint=f"its columns: {', '.join(known)}"
                )
        for row in read_rows(source.local, sheet=source.sheet, format=source.format):
            where = {"file": source.title, "row": row.number}
            try:
                yield _record(row.columns, row.fault, source, config.task, where)
            except DataError as error:
                rejected.append({"source": where, "rule": error.hint, "reason": error.message})


def _record(columns: dict[str, Any], fault: str, source: Source, task: TaskConfig, where: dict[str, Any]) -> Record:
    """One row as a record; a row that cannot be one raises DataError(reason, hint=rule)."""
    if fault:
        raise DataError(fault, hint="unreadable")
    text, answer = _cell(columns.get(source.input)), _cell(columns.get(source.output))
    if not text:
        raise DataError(f"'{source.input}' is empty", hint="empty input")
    if not answer:
        raise DataError(f"'{source.output}' is empty", hint="empty answer")
    system = [{"role": "system", "content": task.system}] if task.system else []
    group = _cell(columns.get(source.group)) if source.group else None
    identity = json.dumps([text, answer], ensure_ascii=False)
    return Record(
        id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        messages=(*system, {"role": "user", "content": text}, {"role": "assistant", "content": answer}),
        source=where,
        label=answer if task.kind == "classify" else None,
        group=group or None,
    )


def _cell(value: Any) -> str:
    """A cell as text; what JSON holds beside texts is written as JSON."""
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _labels(task: TaskConfig, records: Sequence[Record]) -> tuple[str, ...]:
    if task.kind != "classify":
        return ()
    if task.labels != "from-data":
        return tuple(task.labels)
    labels = tuple(sorted({record.answer for record in records}))
    if len(labels) > 1000:
        raise DataError(
            f"the answers hold {len(labels)} different labels",
            hint="is 'output' the right column, or the task 'generate'?",
        )
    return labels


def _with_known_label(records: list[Record], labels: tuple[str, ...], rejected: list[Reject]) -> list[Record]:
    known, kept = set(labels), []
    for record in records:
        if record.label is None or record.label in known:
            kept.append(record)
            continue
        near = difflib.get_close_matches(record.label, labels, n=1)
        more = f"; did you mean '{near[0]}'?" if near else ""
        rejected.append(_reject(record, "unknown label", f"'{record.label}' is not one of the task's labels{more}"))
    return kept


def _without_duplicates(records: list[Record], rejected: list[Reject]) -> tuple[list[Record], int]:
    """Keep the first of the rows whose input is the same but for case, digits and punctuation."""
    first: dict[str, Record] = {}
    conflicts = 0
    for record in records:
        kept = first.setdefault(similar.normalise(record.input) or record.input, record)
        if kept is record:
            continue
        same = kept.answer == record.answer
        conflicts += not same
        place = f"{kept.source['file']} row {kept.source['row']}"
        reason = f"same input as {place}" + ("" if same else f", which has the answer '{kept.answer[:60]}'")
        rejected.append(_reject(record, "duplicate" if same else "conflicting duplicate", reason))
    return list(first.values()), conflicts


def _split(records: list[Record], config: PrepareConfig) -> dict[str, list[Record]]:
    """A record's side follows from its group or its content alone, so new rows never move old ones."""
    bound = {source.title: source.split for source in config.sources}
    sides: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in records:
        side = bound[record.source["file"]] or _side(record.group or similar.normalise(record.input), config.splits)
        sides[side].append(record)
    return sides


def _side(key: str, splits: Splits) -> str:
    place = int.from_bytes(hashlib.sha256(f"split/{key}".encode()).digest()[:8]) / 2**64
    for split in ("test", "calibration", "validation"):
        place -= getattr(splits, split)
        if place < 0:
            return split
    return "train"


def _leave_out_near(sides: dict[str, list[Record]], threshold: float, rejected: list[Reject]) -> int:
    """Take training rows out that are too near a held-out row: with them, the test would measure memory."""
    held_out = [record for split in SPLITS[1:] for record in sides[split]]
    texts = [similar.normalise(record.input) for record in sides["train"]]
    references = [similar.normalise(record.input) for record in held_out]
    kept = []
    for record, index in zip(sides["train"], similar.nearest(texts, references, threshold), strict=True):
        if index is None:
            kept.append(record)
            continue
        place = f"{held_out[index].source['file']} row {held_out[index].source['row']}"
        rejected.append(_reject(record, "near a held-out row", f"nearly the same as {place}, which is held out"))
    count = len(sides["train"]) - len(kept)
    sides["train"] = kept
    return count


def _reject(record: Record, rule: str, reason: str) -> Reject:
    return {"source": record.source, "rule": rule, "reason": reason}


def _require_rows(sides: dict[str, list[Record]], rows_in: int, rejected: list[Reject]) -> None:
    for split in SPLITS:
        if not sides[split]:
            counts = Counter(row["rule"] for row in rejected).most_common(3)
            reasons = ", ".join(f"{n} {rule}" for rule, n in counts) or "none"
            raise DataError(
                f"no rows are left for '{split}': {rows_in} came in, {len(rejected)} were left out ({reasons})",
                hint="a data set needs some hundred usable rows",
            )


def _contract(config: TaskConfig, labels: tuple[str, ...], base: Base) -> Task:
    schema = None
    if config.json_schema is not None:
        try:
            schema = json.loads(config.json_schema.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{config.json_schema.name} is not a readable JSON Schema: {error}") from None
    tokens = {"bos_token": base.bos_token, "eos_token": base.eos_token}
    return Task(
        kind=config.kind,
        chat_template=base.chat_template,
        end=end_of_turn(base.chat_template, **tokens),
        labels=labels,
        schema=schema,
        system=config.system,
        special_tokens=base.special_tokens,
        **tokens,
    )


def _lengths(task: Task, records: Sequence[Record], base: Path) -> dict[str, int]:
    """Lengths of the training records in the base's own tokens, as quantiles and in total."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    texts = [task.prompt(record.prompt_messages) + record.answer + task.end for record in records]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    quantiles = np.quantile(lengths, [0.5, 0.95, 1.0], method="lower")
    return {"median": int(quantiles[0]), "p95": int(quantiles[1]), "max": int(quantiles[2]), "total": sum(lengths)}
