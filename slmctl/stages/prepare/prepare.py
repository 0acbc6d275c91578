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
    rules = plan.task.rules
    with RecordTable(out / ".rows", several=rules.has_labels and not rules.chooses) as rows:
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
        if fault is None and rules.chooses:
            collected["linear"] = linear_model.measure(
                out,
                train=collected["train"],
                validation=collected["validation"],
                labels=len(rows.labels),
            )
            collected["suspects"] = suspects.find(
                out, train=collected["train"], labels=len(rows.labels)
            )
        if task.is_object:
            collected["unfit_answers"] = _unfit(task, rows)
        if task.document is not None and task.is_object:
            collected["standing"] = standing(
                map(Record.from_json, map(json.loads, rows.lines())), task.schema or {}
            )
        report_page.write(
            out, collected, base=Base.read(base.path).name if base is not None else ""
        )
        if fault is not None:
            raise fault
    console.say(
        f"  {console.count(collected['rows_in'], 'row')}: {collected['train']} train, "
        f"{collected['validation']} validation, {collected['calibration']} calibration, "
        f"{collected['test']} test, {collected['rejected']} left out"
    )
    for line in report_findings.lines(collected):
        console.say(f"  {line}")
    return collected


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
    for source in config.sources:
        for name in ("label", "separator"):
            if getattr(source, name) is not None and not config.task.has(f"sources.{name}"):
                raise DataError(
                    f"{source.title} has a '{name}' for its rows, which belongs to "
                    f"{kinds_with(f'sources.{name}')}, "
                    f"and the kind is {config.task.kind}",
                    hint="output: COLUMN",
                )
    _require_splits(config)
    task = Task(
        kind=config.task.kind,
        chat_template=PLAIN,
        end="\n",
        schema=declared.schema_of(config.task),
        tools=declared.tools_of(config.task),
        system=config.task.system,
        clean=tuple(config.clean),
        replace=tuple(Replacement(entry.pattern, entry.replacement) for entry in config.replace),
    )
    if base is not None:
        model = Base.read(base.path)
        task = dataclasses.replace(
            task,
            chat_template=model.chat_template,
            end=end_of_turn(
                model.chat_template, bos_token=model.bos_token, eos_token=model.eos_token
            ),
            bos_token=model.bos_token,
            eos_token=model.eos_token,
            special_tokens=model.special_tokens,
            normal_form=model.normal_form,
        )
    if task.rules.calls:
        task = dataclasses.replace(task, call_form=call_form_of(task))
    forms, columns = source_forms.forms_and_columns(config.sources)
    key_file = config.sensitive.pseudonym_key
    key = b"" if keeps else os.urandom(stand_ins.KEY_BYTES)
    if key_file is not None and (keeps or key_file.exists()):
        key = stand_ins.make_key(key_file)
    plan = ReadingPlan(
        sources=tuple(config.sources),
        columns=columns,
        forms=tuple(form.words for form in forms),
        task=task,
        labels=config.task.label_names,
        label_map=config.task.label_map,
        by_time=config.splits.time is not None,
        policy=sensitive.SensitivePolicy(config.sensitive.actions, key),
        tokenizer=base.path / "tokenizer.json" if base is not None else None,
    )
    for source, conversation_format in zip(config.sources, plan.formats(), strict=True):
        console.detail(
            f"{source.title}: conversation format {conversation_format.name}, since "
            f"{conversation_format.reason}"
        )
    return plan


def _require_splits(config: PrepareConfig) -> None:
    """Refuse splits that rows of a source cannot be drawn for.

    Raises:
        DataError: They go by time, and a source has none; or by label, and a source has groups,
            which would be torn.
    """
    for source in (source for source in config.sources if source.split is None):
        if config.splits.time is not None and source.time is None:
            raise DataError(
                f"{source.title} names no time column, and splits.time needs one",
                hint="time: COLUMN",
            )
        if config.splits.time is None and config.splits.labels and source.group is not None:
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
    rules = plan.task.rules
    with (
        tempfile.TemporaryDirectory(prefix="slmctl-prepare-") as folder,
        RecordTable(Path(folder) / ".rows", several=rules.has_labels and not rules.chooses) as rows,
        contextlib.closing(read_batches(plan, 1)) as batches,
    ):
        for batch in batches:
            rows.add(batch)
        limits.require_usable(config, rows)
        limits.require_labels(config, rows)
        decided = fates.decide(config, rows, 1)
        if fault := limits.fault_of(config, rows, decided, fates.measure_overlap(rows, decided)):
            raise fault


def _contract(config: TaskConfig, plan: ReadingPlan, rows: RecordTable) -> Task:
    """The task with the labels of the data, and the system prompt where all
    rows have the same, as records have it.
    """
    task = plan.task
    labels = declared.labels_of(config, rows.count(np.arange(len(rows))))
    windows = _windows(config, rows, counted=plan.tokenizer is not None)
    system = task.system or (next(iter(rows.systems)) if len(rows.systems) == 1 else "")
    return dataclasses.replace(
        task,
        system=plan.policy.apply(system).text,
        descriptions=dict(config.descriptions),
        schema=task.rules.schema_of(labels),
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
    texts = (
        [message["content"] for message in json.loads(line)["messages"]] for line in rows.lines()
    )
    lengths = np.array([sum(map(len, contents)) for contents in itertools.islice(texts, DENSITY)])
    a_token = (
        float(np.quantile(lengths / rows.tokens[: len(lengths)], DENSEST)) if counted else UNKNOWN
    )
    return WindowForm(int(config.document.size * a_token), int(config.document.shared * a_token))


def _unfit(task: Task, rows: RecordTable) -> UnfitAnswers:
    """The first answers that do not satisfy the schema: a model
    learns them, and may not write them.
    """
    records = map(Record.from_json, map(json.loads, itertools.islice(rows.lines(), CHECKED)))
    unfit = [record for record in records if not task.rules.allows(json.loads(record.answer))]
    places = [
        console.place(record.source["file"], record.source["row"]) for record in unfit[:SHOWN]
    ]
    return {"checked": min(len(rows), CHECKED), "unfit": len(unfit), "places": places}


def explain(config: PrepareConfig, *, base: Artifact | None) -> str:
    """A text that shows how each source is read, with its first records as the model will see them.

    Without a base they are shown turn by turn. Nothing is written.

    Raises:
        DataError: A source is unusable.
    """
    plan = _plan(config, base, keeps=False)
    reader = RecordReader(plan)
    lines = (
        []
        if base is not None
        else ["no base is there yet (slmctl pull), so records are shown turn by turn", ""]
    )
    for k, (source, conversation_format) in enumerate(
        zip(config.sources, reader.formats, strict=True)
    ):
        lines += [f"{source.title}: {conversation_format.name}, since {conversation_format.reason}"]
        lines += [f"  {part:<12} <- {origin}" for part, origin in conversation_format.mapping]
        lines += [
            f"  {part:<12} <- column '{column}'"
            for part, column in (("id", source.id), ("group", source.group), ("time", source.time))
            if column
        ]
        origins = [origin for _, origin in conversation_format.mapping]
        own = {source.id, source.group, source.time, source.weight}
        unused = [
            name
            for name in plan.columns[k]
            if name not in own and not any(name in each for each in origins)
        ]
        lines += [f"  not used     {', '.join(unused)}"] if unused else []
        lines += [*_first_records(reader, k), ""]
    return "\n".join(lines).rstrip()


def _first_records(reader: RecordReader, source: int) -> Iterator[str]:
    """The lines of `explain` on the first rows of a source."""
    plan = reader.plan
    origin = plan.sources[source]
    rows = read_rows(origin.local, **origin.reading)
    raw: list[RawRow] = [
        (row.number, row.columns, row.fault) for row in itertools.islice(rows, SAMPLE)
    ]
    batch = reader.read(source, raw)
    yield f"  of the first {len(raw)} rows {len(batch.lines)} are records"
    for rejected in batch.rejected[:SHOWN]:
        yield (
            f"  {console.place(rejected.file, rejected.number)}: {rejected.rule}: {rejected.reason}"
        )
    for number, line in list(zip(batch.measures["numbers"].tolist(), batch.lines, strict=True))[
        :SHOWN
    ]:
        record = Record.from_json(json.loads(line))
        answer = plan.task.rules.written(record.answer) + plan.task.end
        text = plan.task.prompt(record.prompt_messages, tools=record.tools) + answer
        text = text.replace(PAGE, "\n[next page]\n")
        parts = (text.removesuffix("\n") if plan.tokenizer is None else text).split("\n")
        where = console.place(record.source["file"], number)
        yield from ("", f"  {where}, record {record.id}:", *(f"  | {part}" for part in parts))
