"""sources + base -> prepared: training, validation, calibration and
test records, and the task contract.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slmctl import console, sensitive
from slmctl.artifacts.artifact import Artifact
from slmctl.config import PrepareConfig, Source, TaskConfig, kinds_with
from slmctl.errors import DataError
from slmctl.model_files.base_model import Base
from slmctl.sensitive import stand_ins
from slmctl.sources.rows import read_rows
from slmctl.stages.prepare import (
    data_set_files,
    facts,
    fates,
    limits,
    linear_model,
    report_findings,
    report_page,
    source_forms,
    suspects,
)
from slmctl.stages.prepare.facts import PrepareFacts, UnfitAnswers
from slmctl.stages.prepare.record_reader import RawRow, ReadingPlan, RecordReader, read_batches
from slmctl.stages.prepare.record_table import RecordTable
from slmctl.task import conversation_formats, declared
from slmctl.task.cleaning import Replacement
from slmctl.task.contract import Task, call_form_of, end_of_turn
from slmctl.task.documents import PAGE, WindowForm, standing
from slmctl.task.kinds import kind_of
from slmctl.task.records import Record

# documents by which characters a token are measured, and the share of those with fewer
DENSITY, DENSEST = 2000, 0.1
UNKNOWN = 3.0  # characters a token, where no base counts tokens
CHECKED = 2000  # answers that are held against the schema
SAMPLE, SHOWN = 200, 3  # rows of a source that `explain` reads, and records that it shows
# Shows a record without a base: a turn a line, tool calls as JSON.
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{{ m['tool_calls'] | tojson if "
    "m['tool_calls'] }}"
    "{{ '\\n' }}{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
)


def run(
    config: PrepareConfig,
    *,
    out: Path,
    base: Artifact | None = None,
    labelled: Artifact | None = None,
) -> PrepareFacts:
    """Write `train.jsonl`, `validation.jsonl`, `calibration.jsonl`, `test.jsonl`, `rejected.jsonl`,
    `task.json`.

    Every row that came in is in exactly one of the first five files. Beside them: `repeated.jsonl`
    lists records that are nearly the same or contradict each other, `overlap.jsonl` held-out
    records that share a run of words with training, `rows.bin` holds the hashes that `trace` looks
    up, and of `classify` `suspects.jsonl` lists training records whose label looks wrong.

    The accepted rows of `labelled` are one more source, for training only: people label the
    held-out rows.

    Raises:
        DataError: A source is unusable, too many rows are, or no model could learn from them.
        GateError: A split or a label has fewer rows than `min_rows`, or the held-out splits have
            more in common with training than `max_overlap` allows.
    """
    if labelled is not None:
        config = _with_labels(config, labelled)
    plan = _plan(config, base, keeps=True)
    workers = config.workers or len(os.sched_getaffinity(0))
    with _table(out, plan) as rows:
        with (
            contextlib.closing(read_batches(plan, workers)) as batches,
            console.progress("prepare", None, "rows") as bar,
        ):
            for batch in batches:
                rows.add(batch)
                bar.advance(len(batch.lines) + len(batch.rejected))
        console.detail(f"{len(rows) + len(rows.rejected)} rows read")
        limits.require_usable(config, rows)
        limits.require_labels(config, rows)
        task = _contract(config.task, plan, rows)
        decided = fates.decide(config, rows, workers)
        overlap = fates.measure_overlap(rows, decided)
        task.write(out)
        data_set_files.write(config, rows, decided, overlap, out)
        collected = facts.collect(config, rows, decided, overlap, plan)
        fault = limits.fault_of(config, rows, decided, overlap)
        if fault is None and task.rules.chooses:
            _measure_labels(collected, out, labels=len(rows.labels))
        if task.is_object:
            _measure_objects(collected, task, rows)
        name = Base.read(base.path).name if base is not None else ""
        report_page.write(out, collected, base=name)
        if fault is not None:
            raise fault
    _say(collected)
    return collected


def _table(folder: Path, plan: ReadingPlan) -> RecordTable:
    rules = plan.task.rules
    return RecordTable(folder / ".rows", several=rules.has_labels and not rules.chooses)


def _measure_labels(collected: PrepareFacts, out: Path, *, labels: int) -> None:
    """Add the score of a linear model, and labels that look wrong."""
    train = collected["train"]
    validation = collected["validation"]
    linear = linear_model.measure(out, train=train, validation=validation, labels=labels)
    collected["linear"] = linear
    collected["suspects"] = suspects.find(out, train=train, labels=labels)


def _measure_objects(collected: PrepareFacts, task: Task, rows: RecordTable) -> None:
    """Add answers that do not satisfy the schema, and fields that do not stand in documents."""
    collected["unfit_answers"] = _unfit(task, rows)
    if task.document is not None:
        records = map(Record.from_json, map(json.loads, rows.lines()))
        collected["standing"] = standing(records, task.schema or {})


def _say(collected: PrepareFacts) -> None:
    rows = console.count(collected["rows_in"], "row")
    trained = f"{collected['train']} train, {collected['validation']} validation"
    others = f"{collected['calibration']} calibration, {collected['test']} test"
    console.say(f"  {rows}: {trained}, {others}, {collected['rejected']} left out")
    for line in report_findings.lines(collected):
        console.say(f"  {line}")


def _with_labels(config: PrepareConfig, labelled: Artifact) -> PrepareConfig:
    """The config with a teacher's labels as the last source, so
    that of equal rows the people's stay.
    """
    if not labelled.metrics["accepted"]:
        console.say("  label accepted no row, so there is nothing of a teacher to train on")
        return config
    source = Source(
        path=labelled.file("accepted.jsonl"),
        name="labelled",
        input="input",
        output="output",
        id="id",
        weight="weight",
        split="train",
    )
    return config.model_copy(update={"sources": [*config.sources, source]})


def _plan(config: PrepareConfig, base: Artifact | None, *, keeps: bool) -> ReadingPlan:
    """The plan for reading the sources; without a base, prompts
    follow PLAIN and tokens are estimated.
    """
    if not config.sources:
        raise DataError(
            "no sources are set",
            hint="prepare: sources: [{path: tickets.csv, input: text, output: category}]",
        )
    _require_known_settings(config)
    _require_splits(config)
    task = _task(config, base)
    forms, columns = source_forms.forms_and_columns(config.sources)
    key_file = config.sensitive.pseudonym_key
    key = b"" if keeps else os.urandom(stand_ins.KEY_BYTES)
    if key_file is not None and (keeps or key_file.exists()):
        key = stand_ins.make_key(key_file)
    policy = sensitive.SensitivePolicy(config.sensitive.actions, key)
    by_time = config.splits.time is not None
    tokenizer = base.path / "tokenizer.json" if base is not None else None
    plan = ReadingPlan(
        sources=tuple(config.sources),
        columns=columns,
        forms=tuple(form.words for form in forms),
        task=task,
        labels=config.task.label_names,
        label_map=config.task.label_map,
        by_time=by_time,
        policy=policy,
        tokenizer=tokenizer,
    )
    for source, form in zip(config.sources, plan.formats(), strict=True):
        console.detail(f"{source.title}: conversation format {form.name}, since {form.reason}")
    return plan


def _task(config: PrepareConfig, base: Artifact | None) -> Task:
    """The contract as far as it is known before rows are read."""
    replacements = [Replacement(entry.pattern, entry.replacement) for entry in config.replace]
    schema = declared.schema_of(config.task)
    task = Task(
        kind=config.task.kind,
        chat_template=PLAIN,
        end="\n",
        schema=schema,
        tools=declared.tools_of(config.task),
        system=config.task.system,
        clean=tuple(config.clean),
        replace=tuple(replacements),
    )
    if base is not None:
        model = Base.read(base.path)
        bos, eos = model.bos_token, model.eos_token
        task = dataclasses.replace(
            task,
            chat_template=model.chat_template,
            end=end_of_turn(model.chat_template, bos_token=bos, eos_token=eos),
            bos_token=bos,
            eos_token=eos,
            special_tokens=model.special_tokens,
            normal_form=model.normal_form,
        )
    if task.rules.calls:
        task = dataclasses.replace(task, call_form=call_form_of(task))
    return task


def _require_known_settings(config: PrepareConfig) -> None:
    """Refuse a setting of a source that the task's kind does not have.

    Raises:
        DataError: There is one.
    """
    for source in config.sources:
        for name in ("label", "separator"):
            setting = f"sources.{name}"
            if getattr(source, name) is None or config.task.has(setting):
                continue
            raise DataError(
                f"{source.title} has a '{name}' for its rows, which belongs to "
                f"{kinds_with(setting)}, and the kind is {config.task.kind}",
                hint="output: COLUMN",
            )


def _require_splits(config: PrepareConfig) -> None:
    """Refuse splits that rows of a source cannot be drawn for.

    Raises:
        DataError: They go by time, and a source has none; or by label, and a source has groups,
            which would be torn.
    """
    by_time = config.splits.time is not None
    for source in config.sources:
        if source.split is not None:
            continue
        if by_time and source.time is None:
            raise DataError(
                f"{source.title} names no time column, and splits.time needs one",
                hint="time: COLUMN",
            )
        if not by_time and config.splits.labels and source.group is not None:
            raise DataError(
                f"splits.labels would tear groups of {source.title} apart, whose rows stay in one "
                "split",
                hint="leave prepare.splits.labels out, or the source's group",
            )


def check(config: PrepareConfig) -> None:
    """Check the schema, and that every source can be read and has the columns that the config
    names; needs no base.

    Raises:
        DataError: One of them cannot be used.
    """
    declared.schema_of(config.task)
    declared.tools_of(config.task)
    _require_splits(config)
    _, columns = source_forms.forms_and_columns(config.sources, quiet=True)
    for source, named in zip(config.sources, columns, strict=True):
        conversation_formats.recognise(source, named, calls=kind_of(config.task.kind).calls)


def try_out(config: PrepareConfig) -> None:
    """Refuse sources that `run` would refuse whatever the base is; nothing stays on the disk.

    Raises:
        What `run` raises, but for rows that a base's template refuses, and lengths in its tokens.
    """
    plan = _plan(config, None, keeps=False)
    with (
        tempfile.TemporaryDirectory(prefix="slmctl-prepare-") as folder,
        _table(Path(folder), plan) as rows,
        contextlib.closing(read_batches(plan, 1)) as batches,
    ):
        for batch in batches:
            rows.add(batch)
        limits.require_usable(config, rows)
        limits.require_labels(config, rows)
        decided = fates.decide(config, rows, 1)
        overlap = fates.measure_overlap(rows, decided)
        fault = limits.fault_of(config, rows, decided, overlap)
        if fault is not None:
            raise fault


def _contract(config: TaskConfig, plan: ReadingPlan, rows: RecordTable) -> Task:
    """The task with the labels of the data, and the system prompt where all
    rows have the same, as records have it.
    """
    task = plan.task
    labels = declared.labels_of(config, rows.count(np.arange(len(rows))))
    windows = _windows(config, rows, counted=plan.tokenizer is not None)
    system = task.system
    if not system and len(rows.systems) == 1:
        (system,) = rows.systems
    system = plan.policy.apply(system).text
    schema = task.rules.schema_of(labels)
    return dataclasses.replace(
        task,
        system=system,
        descriptions=dict(config.descriptions),
        schema=schema,
        labels=labels if task.rules.chooses else (),
        ordered=config.ordered,
        document=windows,
        must=tuple(config.must),
        must_not=tuple(config.must_not),
    )


def _windows(config: TaskConfig, rows: RecordTable, *, counted: bool) -> WindowForm | None:
    """The windows of the task in characters, by the tokens that a
    character of its densest documents has.
    """
    if config.document is None:
        return None
    a_token = UNKNOWN
    if counted:
        lengths = []
        for line in itertools.islice(rows.lines(), DENSITY):
            messages = json.loads(line)["messages"]
            lengths.append(sum(len(message["content"]) for message in messages))
        by_record = np.array(lengths) / rows.measures.tokens[: len(lengths)]
        a_token = float(np.quantile(by_record, DENSEST))
    size, shared = config.document.size, config.document.shared
    return WindowForm(int(size * a_token), int(shared * a_token))


def _unfit(task: Task, rows: RecordTable) -> UnfitAnswers:
    """The first answers that do not satisfy the schema: a model
    learns them, and may not write them.
    """
    records = map(Record.from_json, map(json.loads, itertools.islice(rows.lines(), CHECKED)))
    rules = task.rules
    unfit = [record for record in records if not rules.allows(json.loads(record.answer))]
    sources = [record.source for record in unfit[:SHOWN]]
    places = [console.place(source["file"], source["row"]) for source in sources]
    return {"checked": min(len(rows), CHECKED), "unfit": len(unfit), "places": places}


def explain(config: PrepareConfig, *, base: Artifact | None) -> str:
    """A text that shows how each source is read, with its first records as the model will see them.

    Without a base they are shown turn by turn. Nothing is written.

    Raises:
        DataError: A source is unusable.
    """
    plan = _plan(config, base, keeps=False)
    reader = RecordReader(plan)
    lines = []
    if base is None:
        lines += ["no base is there yet (slmctl pull), so records are shown turn by turn", ""]
    for k in range(len(config.sources)):
        lines += [*_columns_read(reader, k), *_first_records(reader, k), ""]
    return "\n".join(lines).rstrip()


def _columns_read(reader: RecordReader, index: int) -> Iterator[str]:
    """The lines of `explain` on the format and the columns of a source."""
    source = reader.plan.sources[index]
    form = reader.formats[index]
    yield f"{source.title}: {form.name}, since {form.reason}"
    for part, origin in form.mapping:
        yield f"  {part:<12} <- {origin}"
    columns = {"id": source.id, "group": source.group, "time": source.time}
    for part, column in columns.items():
        if column:
            yield f"  {part:<12} <- column '{column}'"
    own = {source.id, source.group, source.time, source.weight}
    origins = [origin for _, origin in form.mapping]
    others = [name for name in reader.plan.columns[index] if name not in own]
    unused = [name for name in others if not any(name in origin for origin in origins)]
    if unused:
        yield f"  not used     {', '.join(unused)}"


def _first_records(reader: RecordReader, source: int) -> Iterator[str]:
    """The lines of `explain` on the first rows of a source."""
    plan = reader.plan
    origin = plan.sources[source]
    rows = read_rows(origin.local, **origin.reading)
    sampled = itertools.islice(rows, SAMPLE)
    raw: list[RawRow] = [(row.number, row.columns, row.fault) for row in sampled]
    batch = reader.read(source, raw)
    yield f"  of the first {len(raw)} rows {len(batch.lines)} are records"
    for rejected in batch.rejected[:SHOWN]:
        where = console.place(rejected.file, rejected.number)
        yield f"  {where}: {rejected.rule}: {rejected.reason}"
    numbers = batch.measures.numbers.tolist()
    for number, line in zip(numbers[:SHOWN], batch.lines[:SHOWN], strict=True):
        record = Record.from_json(json.loads(line))
        answer = plan.task.rules.written(record.answer) + plan.task.end
        text = plan.task.prompt(record.prompt_messages, tools=record.tools) + answer
        text = text.replace(PAGE, "\n[next page]\n")
        if plan.tokenizer is None:
            text = text.removesuffix("\n")
        where = console.place(record.source["file"], number)
        yield ""
        yield f"  {where}, record {record.id}:"
        for part in text.split("\n"):
            yield f"  | {part}"
