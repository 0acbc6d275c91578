"""sources + base -> prepared: training, validation, calibration and test records, and the task contract."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmctl import console, sensitive
from slmctl.artifacts.artifact import Artifact, sha256_file
from slmctl.config import PrepareConfig, TaskConfig
from slmctl.deduplication import minhash, ngram_overlap, row_fingerprints
from slmctl.errors import DataError, GateError
from slmctl.model_files.base_model import Base
from slmctl.sensitive import stand_ins
from slmctl.sources.rows import columns_of, read_rows
from slmctl.stages.prepare import data_checks, duplicates, report_page, split
from slmctl.stages.prepare.record_reader import ReadingPlan, RecordReader, read_batches
from slmctl.stages.prepare.record_table import RecordTable
from slmctl.task.contract import Task, end_of_turn
from slmctl.task.records import SPLITS, Record

HELD_OUT = SPLITS[1:]
MAX_LABELS = 1000
LISTED = 100  # examples of a kind that the manifest names; the files beside it name all
KEPT, EQUAL, CONFLICT, NEAR, NEAR_HELD_OUT = range(5)  # what became of a record
SAMPLE = 200  # rows that `explain` looks at
AT_ONCE = 8192  # records whose fingerprints are written together
ID = slice(len(b'{"id": "'), len(b'{"id": "') + 16)  # where a record's line holds its id


def run(config: PrepareConfig, *, base: Artifact, out: Path) -> dict[str, Any]:
    """Write `train.jsonl`, `validation.jsonl`, `calibration.jsonl`, `test.jsonl`, `rejected.jsonl`, `task.json`.

    Every row that came in is in exactly one of the five files. Beside them: `repeated.jsonl` lists
    records that are nearly the same or contradict each other, `rows.bin` holds what `trace` looks up.

    Raises:
        DataError: A source is unusable, too many rows are, or too few are left to train and to measure.
        GateError: The held-out sides have more in common with training than `max_overlap` allows.
    """
    reading = _plan(config, base)
    workers = config.workers or len(os.sched_getaffinity(0))
    with RecordTable(out / ".rows") as rows:
        with (
            contextlib.closing(read_batches(reading, workers)) as made,
            console.progress("prepare", None, "rows") as meter,
        ):
            for batch in made:
                rows.add(batch)
                meter.advance(len(batch.numbers) + len(batch.rejected))
        console.detail(f"{len(rows) + len(rows.rejected)} rows read")
        _require_usable(config, rows)
        task = _contract(config.task, reading.task, rows)
        sorted_out = _decide_fates(config, rows, workers)
        common = _measure_overlap(config, rows, sorted_out)
        task.write(out)
        ids = _write_splits(rows, sorted_out, out, named=any(source.id for source in config.sources))
        _write_fingerprints(rows, sorted_out, ids, out)
        _write_rejected(config, rows, sorted_out, out)
        _write_repeated(config, rows, sorted_out, out)
        facts = _facts(config, rows, sorted_out, common, reading)
    report_page.write(out, facts | {"base": Base.read(base.path).name})
    console.say(
        f"  {facts['rows_in']} rows: "
        + ", ".join(f"{facts[side]} {side}" for side in SPLITS)
        + f", {facts['rejected']} left out"
    )
    return facts


def _plan(config: PrepareConfig, base: Artifact) -> ReadingPlan:
    """What is needed to read the sources; their columns and shapes are looked at first."""
    if not config.sources:
        raise DataError(
            "no sources are set", hint="prepare: sources: [{path: tickets.csv, input: text, output: category}]"
        )
    for source in config.sources:
        if config.splits.time is not None and source.time is None and source.split is None:
            raise DataError(f"{source.title} names no time column, and splits.time needs one", hint="time: COLUMN")
    about = Base.read(base.path)
    task = Task(
        kind=config.task.kind,
        chat_template=about.chat_template,
        end=end_of_turn(about.chat_template, bos_token=about.bos_token, eos_token=about.eos_token),
        schema=_schema(config.task),
        system=config.task.system,
        bos_token=about.bos_token,
        eos_token=about.eos_token,
        special_tokens=about.special_tokens,
    )
    columns = [tuple(columns_of(s.local, sheet=s.sheet, format=s.format)) for s in config.sources]
    labels = None if config.task.labels == "from-data" else tuple(config.task.labels)
    guarded = config.sensitive
    key = stand_ins.make_key(guarded.pseudonym_key) if guarded.pseudonym_key is not None else b""
    reading = ReadingPlan(
        sources=tuple(config.sources),
        columns=tuple(columns),
        task=task,
        labels=labels,
        by_time=config.splits.time is not None,
        policy=sensitive.SensitivePolicy(guarded.actions, key, guarded.detector),
        tokenizer=base.path / "tokenizer.json",
    )
    for source, shape in zip(config.sources, reading.shapes(), strict=True):
        console.detail(f"{source.title}: shape {shape.name}, since {shape.because}")
    return reading


def _schema(config: TaskConfig) -> dict[str, Any] | None:
    if config.json_schema is None:
        return None
    try:
        schema: dict[str, Any] = json.loads(config.json_schema.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{config.json_schema.name} is not a readable JSON Schema: {error}") from None
    return schema


def _require_usable(config: PrepareConfig, rows: RecordTable) -> None:
    bad, total = len(rows.rejected), len(rows) + len(rows.rejected)
    if bad <= config.max_rejected * total:
        return
    counts = Counter(row.rule for _, row in rows.rejected).most_common(3)
    source, first = rows.rejected[0]
    raise DataError(
        f"{bad} of {total} rows are unusable, more than max_rejected {config.max_rejected:.1%}: "
        + ", ".join(f"{n} {rule}" for rule, n in counts)
        + f"; first {config.sources[source].title} row {first.number}: {first.reason}",
        hint="mend the rows, or --set prepare.max_rejected=SHARE",
    )


def _contract(config: TaskConfig, task: Task, rows: RecordTable) -> Task:
    """The task with what the data says of it: its labels, and a system prompt that every row brought along."""
    labels: tuple[str, ...] = ()
    if config.kind == "classify":
        labels = tuple(sorted(rows.labels)) if config.labels == "from-data" else tuple(config.labels)
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"the answers hold {len(labels)} different labels",
            hint="is 'output' the right column, or the task 'generate'?",
        )
    system = task.system or (next(iter(rows.systems)) if len(rows.systems) == 1 else "")
    return dataclasses.replace(task, labels=labels, system=system)


@dataclass(frozen=True)
class Fates:
    """What became of each record, `(n,)` arrays.

    Attributes:
        fate: KEPT, or why it is left out.
        other: The record that it is left out for, or -1.
        sides: Indices into SPLITS.
    """

    fate: np.ndarray
    other: np.ndarray
    sides: np.ndarray
    same: duplicates.Repeats

    def rows(self, side: str) -> np.ndarray:
        """The records of one side."""
        return np.flatnonzero((self.fate == KEPT) & (self.sides == SPLITS.index(side)))


def _decide_fates(config: PrepareConfig, rows: RecordTable, workers: int) -> Fates:
    """Give every record its side, and leave out what repeats another."""
    bound = np.array([SPLITS.index(s.split) if s.split else -1 for s in config.sources], dtype=np.int8)
    sides = split.assign(config.splits, rows.places, rows.moments, rows.label_of, rows.labels)
    sides = np.where(bound[rows.sources] >= 0, bound[rows.sources], sides)
    decide = config.task.kind != "generate"
    same = duplicates.find_repeats(rows, config.duplicates, bound > 0, answers_decide=decide, workers=workers)
    fate, other = np.zeros(len(rows), dtype=np.int8), np.full(len(rows), -1, dtype=np.int64)

    def leave_out(why: int, which: np.ndarray, because: np.ndarray) -> None:
        which = which[fate[which] == KEPT]
        fate[which], other[which] = why, because[which]

    if config.duplicates.exact == "drop":
        equal = np.flatnonzero(same.equal >= 0)
        agrees = rows.answers[equal] == rows.answers[same.equal[equal]]
        leave_out(EQUAL, equal[agrees], same.equal)
        leave_out(CONFLICT, equal[~agrees], same.equal)
    if config.duplicates.near == "drop":
        leave_out(NEAR, np.flatnonzero(same.near >= 0), same.near)
    near = duplicates.near_held_out(rows, sides, fate == KEPT, config.duplicates.similarity, workers)
    leave_out(NEAR_HELD_OUT, np.flatnonzero(near >= 0), near)
    found = Fates(fate, other, sides, same)
    for side in SPLITS:
        wanted = side == "train" or getattr(config.splits, side) > 0
        if wanted and not len(found.rows(side)):
            reasons = ", ".join(f"{n} {rule}" for rule, n in list(_rules(rows, found).items())[:3]) or "none"
            left_out = len(rows.rejected) + int((fate != KEPT).sum())
            raise DataError(
                f"no rows are left for '{side}': {len(rows) + len(rows.rejected)} came in, "
                f"{left_out} were left out ({reasons})",
                hint="a data set needs some hundred usable rows",
            )
    return found


def _measure_overlap(config: PrepareConfig, rows: RecordTable, found: Fates) -> dict[str, ngram_overlap.Overlap]:
    """What each held-out side has in common with the training records; refused above `max_overlap`."""
    train = found.rows("train")
    common = {side: ngram_overlap.measure(rows.spill, train, found.rows(side)) for side in HELD_OUT}
    for side, one in common.items():
        if one.measured and one.share > config.max_overlap:
            held, trained = (_place_text(config, rows, index) for index in one.examples[0])
            raise GateError(
                f"{one.overlapping} of {one.measured} rows of '{side}' ({one.share:.1%}) share a run of words with "
                f"training rows, more than max_overlap {config.max_overlap:.1%}; first {held} with {trained}",
                hint="is a signature in every text? cut it out, group such rows, or --set prepare.max_overlap=SHARE",
            )
    return common


# What is written


def _write_splits(rows: RecordTable, found: Fates, out: Path, *, named: bool) -> np.ndarray:
    """The records of each side, in source order; returns the ids of all records, `(n,)`.

    Where rows brought ids of their own (`named`), two may have the same: their records get a number behind it.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((out / f"{side}.jsonl").open("wb")) for side in SPLITS]
        ids = np.empty(len(rows), dtype="S16")
        seen: set[bytes] = set()
        repeats = named or bool(((found.same.equal >= 0) & (found.fate == KEPT)).any())
        for k, (line, fate, side) in enumerate(zip(rows.lines(), found.fate, found.sides, strict=True)):
            ids[k] = own = line[ID]
            if fate != KEPT:
                continue
            if repeats:
                line = line[: ID.start] + _unique_id(own, seen) + line[ID.stop :]
            files[side].write(line + b"\n")
    return ids


def _unique_id(own: bytes, seen: set[bytes]) -> bytes:
    """An id, with a number when an equal record has had it already."""
    name, number = own, 2
    while name in seen:
        name = own + b"-%d" % number
        number += 1
    seen.add(name)
    return name


def _write_fingerprints(rows: RecordTable, found: Fates, ids: np.ndarray, out: Path) -> None:
    """What a later search for a row is answered from; of redacted records the text as trained, too."""
    changed = (rows.digests != rows.old_digests).any(axis=1)
    with row_fingerprints.FingerprintWriter(out / row_fingerprints.FILENAME) as writer:
        for side in row_fingerprints.SPLITS_AND_REJECTED:
            which = np.flatnonzero(found.fate != KEPT) if side == "rejected" else found.rows(side)
            for start in range(0, len(which), AT_ONCE):
                part = which[start : start + AT_ONCE]
                names = [name.decode() for name in ids[part].tolist()]
                writer.add(side, names, rows.old_digests[part], rows.old_compact[part])
                redacted = changed[part]
                if redacted.any():
                    names = [name.decode() for name in ids[part[redacted]].tolist()]
                    digests, compact = rows.digests[part[redacted]], rows.spill.compact[part[redacted]]
                    writer.add(side, names, digests, compact, as_trained=True)


def _write_rejected(config: PrepareConfig, rows: RecordTable, found: Fates, out: Path) -> None:
    """Every row that is in no side, in source order, with the reason."""
    unusable = (
        (source, row.number, {"source": _place(config, source, row.number), "rule": row.rule, "reason": row.reason})
        for source, row in rows.rejected
    )
    merged = heapq.merge(unusable, _left_out(config, rows, found), key=lambda one: one[:2])
    _write_lines(out / "rejected.jsonl", (fields for _, _, fields in merged))


def _left_out(config: PrepareConfig, rows: RecordTable, found: Fates) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for index in np.flatnonzero(found.fate != KEPT).tolist():
        source, number = int(rows.sources[index]), int(rows.numbers[index])
        first = int(found.other[index])
        other, label = _place_text(config, rows, first), rows.label_of[first]
        answer = f"the answer '{rows.labels[label][:60]}'" if label >= 0 else "another answer"
        rule, reason = {
            EQUAL: ("duplicate", f"same input as {other}"),
            CONFLICT: ("conflicting duplicate", f"same input as {other}, which has {answer}"),
            NEAR: ("near duplicate", f"nearly the same as {other}"),
            NEAR_HELD_OUT: ("near a held-out row", f"nearly the same as {other}, which is held out"),
        }[int(found.fate[index])]
        yield source, number, {"source": _place(config, source, number), "rule": rule, "reason": reason}


def _write_repeated(config: PrepareConfig, rows: RecordTable, found: Fates, out: Path) -> None:
    """Records that stay although they repeat or contradict another, with the place of the other."""
    listed = []
    if config.duplicates.exact == "list":
        listed.append(("duplicate", found.same.equal))
    if config.duplicates.near == "list":
        listed.append(("near duplicate", found.same.near))
    listed.append(("conflict", found.same.conflict))
    _write_lines(
        out / "repeated.jsonl",
        (
            {
                "rule": rule,
                "source": _place_of(config, rows, index),
                "repeats": _place_of(config, rows, int(other[index])),
            }
            for rule, other in listed
            for index in np.flatnonzero(other >= 0).tolist()
        ),
    )


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _place(config: PrepareConfig, source: int, number: int) -> dict[str, Any]:
    return {"file": config.sources[source].title, "row": number}


def _place_of(config: PrepareConfig, rows: RecordTable, index: int) -> dict[str, Any]:
    return _place(config, int(rows.sources[index]), int(rows.numbers[index]))


def _place_text(config: PrepareConfig, rows: RecordTable, index: int) -> str:
    place = _place_of(config, rows, index)
    return f"{place['file']} row {place['row']}"


# What is said of it


def _rules(rows: RecordTable, found: Fates) -> dict[str, int]:
    """How many rows each rule left out, the commonest first."""
    names = {EQUAL: "duplicate", CONFLICT: "conflicting duplicate", NEAR: "near duplicate",
             NEAR_HELD_OUT: "near a held-out row"}  # fmt: skip
    counts = Counter(row.rule for _, row in rows.rejected)
    for fate, count in Counter(found.fate.tolist()).items():
        if fate != KEPT:
            counts[names[fate]] += count
    return dict(counts.most_common())


def _facts(
    config: PrepareConfig,
    rows: RecordTable,
    found: Fates,
    common: dict[str, ngram_overlap.Overlap],
    reading: ReadingPlan,
) -> dict[str, Any]:
    """What the manifest and the report say: counts and places, never a text of a record."""
    sides = {side: found.rows(side) for side in SPLITS}
    left_out = np.bincount(rows.sources[found.fate != KEPT], minlength=len(config.sources)).tolist()
    bad = Counter(source for source, _ in rows.rejected)
    read = np.bincount(rows.sources, minlength=len(config.sources)).tolist()
    by_label = {side: rows.count(which) for side, which in sides.items()}
    same = found.same
    conflicts = np.flatnonzero(same.conflict >= 0)
    return {
        "task": config.task.kind,
        "rows_in": len(rows) + len(rows.rejected),
        **{side: len(which) for side, which in sides.items()},
        "rejected": len(rows.rejected) + sum(left_out),
        "rejected_by_reason": _rules(rows, found),
        "max_rejected": config.max_rejected,
        "labels": {label: {side: by_label[side].get(label, 0) for side in SPLITS} for label in sorted(rows.labels)},
        "label_typos": data_checks.label_typos(rows.count(np.arange(len(rows)))),
        "odd_answers": {"equal to the input": rows.echoes} if rows.echoes else {},
        "sensitive": [
            {"kind": rule.partition("/")[0], "rule": rule, "column": column, "action": action, "count": count}
            for (column, rule, action), count in sorted(rows.tally.counts.items())
        ],
        "sensitive_rows": rows.sensitive,
        "sensitive_searched": list(config.sensitive.actions),
        "duplicates": {
            "policy": config.duplicates.exact,
            "near_policy": config.duplicates.near,
            "exact": int((same.equal >= 0).sum()),
            "near": int((same.near >= 0).sum()),
            "threshold": config.duplicates.similarity,
        },
        "conflicts": {
            "pairs": len(conflicts),
            "rows": len(np.union1d(conflicts, same.conflict[conflicts])),
            "cap": same.cap,
            "threshold": duplicates.CONFLICT,
            "examples": [
                _conflict(config, rows, index, int(same.conflict[index])) for index in conflicts[:LISTED].tolist()
            ],
        },
        "near_held_out": {
            "left_out": int((found.fate == NEAR_HELD_OUT).sum()),
            "threshold": config.duplicates.similarity,
            "examples": [
                {
                    "row": _place_of(config, rows, index),
                    "near": _place_of(config, rows, int(found.other[index])),
                    "side": SPLITS[found.sides[found.other[index]]],
                    "similarity": _similarity(rows, index, int(found.other[index])),
                }
                for index in np.flatnonzero(found.fate == NEAR_HELD_OUT)[:LISTED].tolist()
            ],
        },
        "overlap": {
            "gate": config.max_overlap,
            "sides": {
                side: {"measured": one.measured, "overlapping": one.overlapping, "too_short": one.too_short}
                for side, one in common.items()
            },
            "examples": [
                {"row": _place_of(config, rows, held), "near": _place_of(config, rows, trained), "side": side}
                for side, one in common.items()
                for held, trained in one.examples
            ],
        },
        "splits": _split_facts(config, rows),
        "tokens": data_checks.length_facts(rows.tokens[sides["train"]]),
        "sources": [
            {
                "file": source.title,
                "sha256": sha256_file(source.local).removeprefix("sha256:"),
                "rows_in": read[k] + bad[k],
                "rejected": left_out[k] + bad[k],
                "shape": shape.name,
                "split": source.split,
            }
            for k, (source, shape) in enumerate(zip(config.sources, reading.shapes(), strict=True))
        ],
        "examples": _examples(config, rows, found),
    }


def _conflict(config: PrepareConfig, rows: RecordTable, index: int, other: int) -> dict[str, Any]:
    """Two records that ask nearly the same and are answered differently; labels are named, other answers are not."""
    return {
        "first": _place_of(config, rows, other),
        "second": _place_of(config, rows, index),
        "similarity": _similarity(rows, index, other),
        "answers": [rows.labels[code] if code >= 0 else "" for code in rows.label_of[[other, index]].tolist()],
    }


def _similarity(rows: RecordTable, index: int, other: int) -> float:
    one, two = rows.spill.texts([index, other])
    return round(minhash.ratio(one, two), 4)


def _split_facts(config: PrepareConfig, rows: RecordTable) -> dict[str, Any]:
    if config.splits.time is not None:
        return {"by": "time", "boundaries": config.splits.time.model_dump()}
    grouped = [source.group for source in config.sources if source.group]
    if not grouped:
        return {"by": "content"}
    _, sizes = np.unique(rows.places, return_counts=True)
    return {"by": "group", "column": grouped[0], "groups": len(sizes), "largest_group": int(sizes.max())}


def _examples(config: PrepareConfig, rows: RecordTable, found: Fates) -> dict[str, list[dict[str, Any]]]:
    """Up to five places for each rule that left rows out."""
    examples: dict[str, list[dict[str, Any]]] = {}
    for source, row in rows.rejected:
        places = examples.setdefault(row.rule, [])
        if len(places) < 5:
            places.append(_place(config, source, row.number))
    for _, _, fields in _left_out(config, rows, found):
        places = examples.setdefault(fields["rule"], [])
        if len(places) < 5:
            places.append(fields["source"])
    return examples


def explain(config: PrepareConfig, *, base: Artifact, count: int = 3) -> str:
    """How each source is read, and its first records as the model will see them; nothing is written.

    Raises:
        DataError: A source is unusable.
    """
    reading = _plan(config, base)
    reader = RecordReader(reading)
    lines = []
    for k, (source, shape) in enumerate(zip(config.sources, reader.shapes, strict=True)):
        lines.append(f"{source.title}: {shape.name}, since {shape.because}")
        lines += [f"  {what:<12} <- {where}" for what, where in shape.mapping]
        lines += [
            f"  {what:<12} <- column '{where}'"
            for what, where in (("id", source.id), ("group", source.group), ("time", source.time))
            if where
        ]
        unused = [
            name
            for name in reading.columns[k]
            if not any(f"'{name}'" in where or name in where for _, where in shape.mapping)
        ]
        lines += [f"  not used     {', '.join(unused)}"] if unused else []
        raw = []
        for row in read_rows(source.local, sheet=source.sheet, format=source.format):
            raw.append((row.number, row.columns, row.fault))
            if len(raw) == SAMPLE:
                break
        batch = reader.read(k, raw)
        lines.append(f"  of the first {len(raw)} rows {len(batch.numbers)} are records")
        lines += [f"  row {row.number}: {row.rule}: {row.reason}" for row in batch.rejected[:3]]
        for number, line in list(zip(batch.numbers, batch.lines, strict=True))[:count]:
            record = Record.from_json(json.loads(line))
            answer = reading.task.defused(record.answer) + reading.task.end
            shown = reading.task.prompt(record.prompt_messages, tools=record.tools) + answer
            lines += ["", f"  row {number}, record {record.id}:", *(f"  | {part}" for part in shown.split("\n"))]
        lines.append("")
    return "\n".join(lines).rstrip()
