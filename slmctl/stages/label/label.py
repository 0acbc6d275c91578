"""rows without an answer -> labelled: a teacher's labels, with what they
cost and a bound on how many are wrong.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl import console, models
from slmctl.artifacts import artifact
from slmctl.config import LabelConfig, kinds_with
from slmctl.deduplication.row_fingerprints import FILENAME, FingerprintWriter
from slmctl.errors import PausedError, UsageError
from slmctl.metrics.error_threshold import MIN_ROWS
from slmctl.network import guard
from slmctl.sensitive.conversation_veto import Cleared
from slmctl.sources.rows import columns_of
from slmctl.stages.label import acceptance, cost_plan, report_facts, report_page, rows
from slmctl.stages.label.acceptance import Bound, LabelledRow
from slmctl.stages.label.cost_plan import CostPlan
from slmctl.stages.label.journal import Budget, Journal
from slmctl.stages.label.rows import LabelRow, LabelRows
from slmctl.stages.label.teachers import (
    EndpointTeacher,
    JournalTeacher,
    NearestExamples,
    ReleaseTeacher,
    journal_path,
    task_of,
    votes_of,
)
from slmctl.task import conversation_formats, declared
from slmctl.task.contract import Task
from slmctl.task.records import write_jsonl

REVIEWED = 50  # rows of a uniform sample for people to review if there is no bound
STAYS = "sensitive, and no teacher on this machine may read it"


@dataclass(frozen=True)
class LabelJob:
    config: LabelConfig
    task: Task
    all_rows: LabelRows
    cleared: dict[str, Cleared]
    teachers: Sequence[JournalTeacher]
    budget: Budget

    @property
    def seen(self) -> list[LabelRow]:
        """The rows that a teacher may see."""
        return [
            row
            for row in self.all_rows.every
            if any(teacher.may_see(row) for teacher in self.teachers)
        ]


def run(config: LabelConfig, *, out: Path, journals: Path) -> dict[str, Any]:
    """Ask the teachers, and write `accepted.jsonl`, `review.jsonl`, `refused.jsonl`, `rows.bin` and
    `report.html`.

    The folder `journals` outlasts the run.

    Raises:
        DataError: A source cannot be used.
        NetworkError: An endpoint cannot be reached, or refuses the key or the model; what it
            answered is kept.
        PausedError: A ceiling was reached; the same command goes on.
        UsageError: There is no section, or a teacher cannot be used.
    """
    with _job(config, journals) as job:
        _say_before(job)
        for teacher in job.teachers:
            teacher.ask(job.all_rows.every)
        _require_done(job)
        labelled, gold = _labelled(job, job.all_rows.rows), _labelled(job, job.all_rows.gold)
        bound = acceptance.accept(config, labelled, gold)
        files = _write(job, labelled, gold, bound, out)
        figures = report_facts.collect(
            job.teachers, job.all_rows, labelled, gold, bound, files, job.config
        )
    report_page.write(out, figures, guard.receipt())
    console.say(
        f"  {files['accepted']} accepted, {files['review']} to review, {files['refused']} refused"
    )
    console.say(f"  {acceptance.sentence(bound)}")
    console.say(f"  {report_facts.cost_sentence(figures)}")
    return dict(figures)


def plan(config: LabelConfig, *, journals: Path) -> CostPlan:
    """Have teachers label a sample of the rows, and estimate the cost of all rows; the answers are
    kept.

    Raises:
        As `run`, except for PausedError.
    """
    with _job(config, journals) as job:
        sample = list(job.seen)
        random.Random(0).shuffle(sample)  # noqa: S311 - draws rows, hides nothing
        sample = sample[: cost_plan.SAMPLE]
        for teacher in job.teachers:
            teacher.ask(sample)
        stays = [
            row
            for row in job.all_rows.rows
            if not any(teacher.may_see(row) for teacher in job.teachers)
        ]
        parts = [cost_plan.part(teacher, sample, job.all_rows.every) for teacher in job.teachers]
        return CostPlan(
            rows=len(job.all_rows.rows),
            gold=len(job.all_rows.gold),
            not_drawn=job.all_rows.not_drawn,
            sample=len(sample),
            parts=tuple(parts),
            stays=len(stays),
            left_out=dict(job.all_rows.left_out),
            currency=config.currency,
            max_cost=config.max_cost,
            spent=job.budget.spent,
        )


def check(config: LabelConfig) -> None:
    """Check sections, columns and schema, before a teacher is asked.

    Raises:
        DataError: A source lacks a column.
        MissingError: A package is missing.
        UsageError: There is no section, or teachers cannot label tasks of this kind.
    """
    if not config.sources or not config.teachers:
        raise UsageError(
            "there is no section 'label' with sources and teachers", hint="docs/label.md shows one"
        )
    if not config.task.has("teachers"):
        raise UsageError(
            f"label has no teachers for a task of kind {config.task.kind}: it knows "
            f"{kinds_with('teachers')}",
            hint="give prepare.sources rows whose answers are known",
        )
    for source in config.sources:
        conversation_formats.text_maker(
            source, source.input, columns_of(source.local, **source.reading)
        )
    for source in config.gold:
        conversation_formats.recognise(source, columns_of(source.local, **source.reading))
    declared.schema_of(config.task)


@contextmanager
def _job(config: LabelConfig, journals: Path) -> Iterator[LabelJob]:
    """A LabelJob with rows read and searched, and teachers checked; its
    journals are open until the block ends.
    """
    check(config)
    all_rows = rows.read(config)
    task = _task(config, all_rows)
    releases = [teacher.release for teacher in config.teachers if teacher.release is not None]
    for folder in releases:
        task_of(folder, task)
    all_rows = rows.without_trained(all_rows, releases, journals.parent)
    leaves = any(teacher.url for teacher in config.teachers)
    cleared = rows.clearances(config, all_rows.every) if leaves else {}
    examples = NearestExamples(
        [row for row in all_rows.pool if leaves and not cleared[row.id].reason], config.examples
    )
    with ExitStack() as stack:
        files = [
            stack.enter_context(closing(Journal(journal_path(journals, teacher), teacher.prices)))
            for teacher in config.teachers
        ]
        budget = Budget(files, config.max_cost)
        teachers: list[JournalTeacher] = [
            ReleaseTeacher(
                config,
                teacher,
                journal,
                budget,
                task=task_of(teacher.release, task),
                model=models.of(artifact.load(teacher.release)),
            )
            if teacher.release is not None
            else EndpointTeacher(
                config, teacher, journal, budget, task=task, examples=examples, cleared=cleared
            )
            for teacher, journal in zip(config.teachers, files, strict=True)
        ]
        yield LabelJob(config, task, all_rows, cleared, teachers, budget)


def _task(config: LabelConfig, all_rows: LabelRows) -> Task:
    return Task(
        config.task.kind,
        "",
        "",
        labels=declared.labels_of(config.task, {row.gold for row in all_rows.gold}),
        schema=declared.schema_of(config.task),
        system=config.task.system,
        descriptions=dict(config.task.descriptions),
    )


def _say_before(job: LabelJob) -> None:
    all_rows = job.all_rows
    console.say(
        f"  {console.count(len(all_rows.rows), 'row')} to label, "
        f"{console.count(len(all_rows.gold), 'gold row')} "
        f"({len(all_rows.pool)} of them examples)"
    )
    for reason, count in all_rows.left_out.items():
        if count:
            console.say(f"  {count} left out: {reason}")
    if stays := len(all_rows.every) - len(job.seen):
        console.say(f"  {stays} stay here: {STAYS}")
    if not job.task.rules.is_free and len(all_rows.gold) < MIN_ROWS:
        console.say(
            f"  note: {len(all_rows.gold)} gold rows give no bound ({MIN_ROWS} are needed): every "
            "label will be for "
            "review"
        )


def _require_done(job: LabelJob) -> None:
    """End the run, with all answers kept, if the ceiling of the cost was reached.

    Raises:
        PausedError: It was.
    """
    if not job.budget.reached:
        return
    left = sum(not _is_answered(job, row) for row in job.seen)
    answered = itertools.takewhile(lambda row: _is_answered(job, row), job.all_rows.every)
    # of the rows to label, from the first one on
    whole = max(0, sum(1 for _ in answered) - len(job.all_rows.gold))
    spent = (
        f", {job.budget.spent:.2f} {job.config.currency} spent"
        if job.config.max_cost is not None
        else ""
    )
    ends = f"; label.max_rows={whole} ends with what is answered" if whole else ""
    raise PausedError(
        f"label stopped at label.max_cost: {console.count(left, 'row')} left{spent}",
        hint=f"a larger label.max_cost goes on{ends}",
    )


def _is_answered(job: LabelJob, row: LabelRow) -> bool:
    return all(
        len(teacher.answers(row)) == teacher.votes
        for teacher in job.teachers
        if teacher.may_see(row)
    )


def _labelled(job: LabelJob, some: Sequence[LabelRow]) -> list[LabelledRow]:
    result = []
    for row in some:
        marks = job.cleared[row.id].marks if row.id in job.cleared else {}
        votes = votes_of(job.teachers, job.task, row, marks)
        result.append(LabelledRow(row, votes, acceptance.choose(job.task.kind, votes)))
    return result


# Files of the artifact


def _write(
    job: LabelJob,
    labelled: Sequence[LabelledRow],
    gold: Sequence[LabelledRow],
    bound: Bound,
    out: Path,
) -> dict[str, int]:
    """Write three files of rows and the fingerprints; returns the number of rows in each file."""
    in_order = sorted(labelled, key=lambda entry: (entry.row.file, entry.row.number))
    accepted = [entry for entry in in_order if entry.accepted]
    review = [entry for entry in in_order if entry.answer and not entry.accepted]
    refused = [entry for entry in in_order if not entry.answer]
    sampled = _sample(job, accepted) if bound.reason else []
    files = {
        "accepted": [
            _line(job, entry, weight=1.0 if entry.p_correct is None else max(entry.p_correct, 0.01))
            for entry in accepted
        ],
        "review": [
            *(_line(job, entry, reason="not sure enough") for entry in review),
            *(_line(job, entry, reason="uniform sample of the accepted") for entry in sampled),
        ],
        "refused": [_line(job, entry, reason=_refusal(job, entry)) for entry in refused],
    }
    with FingerprintWriter(out / FILENAME) as prints:
        for split, entries in (
            ("train", accepted),
            ("calibration", gold),
            ("rejected", [*review, *refused]),
        ):
            prints.add_texts(
                split, [entry.row.id for entry in entries], [entry.row.raw for entry in entries]
            )
    return {name: write_jsonl(out / f"{name}.jsonl", lines) for name, lines in files.items()}


def _refusal(job: LabelJob, entry: LabelledRow) -> str:
    if entry.votes:
        return "no teacher gave an answer that the task allows"
    leaves = any(teacher.may_see(entry.row) for teacher in job.teachers)
    return "no answer came, however often it was asked" if leaves else STAYS


def _sample(job: LabelJob, accepted: Sequence[LabelledRow]) -> list[LabelledRow]:
    drawn = random.Random(0).sample(range(len(accepted)), min(REVIEWED, len(accepted)))  # noqa: S311
    return [accepted[k] for k in sorted(drawn)]


def _line(job: LabelJob, entry: LabelledRow, **more: str | float) -> dict[str, Any]:
    """One row as it is written; its input is the text as it came
    in, since `prepare` cleans it itself.
    """
    votes = [
        {"teacher": job.teachers[vote.teacher].name, "answer": vote.answer, "valid": vote.is_valid}
        | ({} if vote.confidence is None else {"confidence": round(vote.confidence, 6)})
        for vote in entry.votes
    ]
    agreeing_teachers = sorted(
        {
            vote.teacher
            for vote in entry.votes
            if vote.is_valid and acceptance.same(vote.answer, entry.answer)
        }
    )
    return {
        "id": entry.row.id,
        "input": entry.row.raw,
        "output": entry.answer,
        "teacher": [job.teachers[number].name for number in agreeing_teachers],
        "prompt": [job.teachers[number].prompt_hash for number in agreeing_teachers],
        "votes": votes,
        "score": entry.score,
        "p_correct": entry.p_correct,
        "source": {"file": entry.row.file, "row": entry.row.number},
        **more,
    }
