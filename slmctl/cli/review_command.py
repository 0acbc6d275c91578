"""`slmctl review`: the queue, the page, the spreadsheet."""

from __future__ import annotations

import dataclasses
import getpass
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from slmctl.cli.group import PATH, Options, config_options, read_settings, terminal
from slmctl.errors import DataError, IntegrityError, UsageError

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
    from slmctl.config import Config
    from slmctl.production.review.near_rows import TrainingRows
    from slmctl.production.review.page import Desk
    from slmctl.production.review.pairs import PairSession
    from slmctl.production.review.review_rows import ReviewRow
    from slmctl.production.review.session import DecisionSession, ReviewSession
    from slmctl.production.review.spreadsheet import ReadBack
    from slmctl.task.contract import Task

OUTPUT = "reviewed.jsonl"
PAIRS_OUTPUT = "pairs.jsonl"
# collected rows of which the nearest training row is looked up before the page opens
LOOKED_UP = 2000


class _Share(click.ParamType):
    """A share such as 30% or 0.3; its value is between 0 and 1."""

    name = "SHARE"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        text = value.strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"'{value[:40]}' is no share such as 30% or 0.3", param, ctx)
        return share


@click.command()
@click.argument("files", nargs=-1, metavar="[FILES]...", type=PATH)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The file that decisions are added to: by default reviewed.jsonl, a source of prepare; "
    "with --pairs that of "
    "evaluate.pairs, or pairs.jsonl.",
)
@click.option(
    "--pairs",
    nargs=2,
    metavar="MODEL MODEL",
    help="Show the answers of two models of a report, such as Q8_0 base, side by side, to say "
    "which is better; which "
    "model stands left is drawn by chance and hidden.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show a round of N; a later call goes on.",
)
@click.option(
    "--uniform",
    type=_Share(),
    default="30%",
    show_default=True,
    help="Share of rows drawn by chance; they alone may be held out.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME",
    help="A label beside those of the model that reviewers may give; repeatable.",
)
@click.option(
    "--csv",
    "sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the rows to FILE for a spreadsheet. A FILE that exists is read: the answers in its "
    "column "
    "reviewed_answer are decisions (- skips a row); with --pairs left, right, same or neither in "
    "its column better.",
)
@click.option(
    "--reviewer", metavar="NAME", help="Name beside each decision; that of the user by default."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="TCP port of the page; a free one by default.",
)
@config_options
@click.pass_obj
def review(
    options: Options,
    files: tuple[Path, ...],
    output: Path | None,
    pairs: tuple[str, str] | None,
    count: int | None,
    uniform: float,
    labels: tuple[str, ...],
    sheet: Path | None,
    reviewer: str | None,
    port: int,
) -> None:
    """Open a page on which people decide about collected answers, and add their decisions to a
    file.

    FILES are collected files or folders; by default the folder of serve.collect, else collected/.
    First come answers that a client called wrong, then rows on which local and general model
    disagree, escalated and unsure answers, suspected labels, new texts and one of each cluster, and
    among them rows drawn by chance. Suspected labels that prepare does not report, since its linear
    model is too weak, come last, and only where suspects.jsonl of the data set is among FILES.
    Prints the page's address; Ctrl-C ends it. --pairs has people judge two models' answers to the
    same test rows.
    """
    from slmctl.pipeline.system_errors import spoken
    from slmctl.production.review.session import ReviewSession

    settings, name = read_settings(options), reviewer or _user_name()
    if pairs is not None:
        if files or labels:
            raise UsageError(
                "--pairs shows the rows of a report", hint="leave FILES and --label out"
            )
        _judge(options, settings, pairs, output, sheet, name, port, count)
        return
    prepared = _prepared(options)
    task = _with_labels(_task(options, prepared), labels, settings)
    output = output or options.directory / OUTPUT
    with spoken("review", output.parent):
        training, queue = _queue(options, files, settings, prepared, task, uniform)
        with ReviewSession(queue, task=task, output=output, reviewer=name) as session:
            if count is not None:
                session.begin_round(count)
            if sheet is not None:
                _spreadsheet(sheet, session)
                return
            reasons = Counter(candidate.chosen for candidate in session.queue).most_common()
            note = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
            _serve(
                session,
                lambda page: page.ReviewDesk(session, training, settings.project),
                port,
                note,
            )
            terminal().say(
                f"  decisions: {output}; to train on them: sources: [.., {{path: {output.name}}}]"
            )


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (
        KeyError,
        OSError,
    ):  # no name for this number, as with `docker run --user`; KeyError until Python 3.13
        return f"uid {os.getuid()}"


def _judge(
    options: Options,
    settings: Config,
    names: tuple[str, str],
    output: Path | None,
    sheet: Path | None,
    reviewer: str,
    port: int,
    count: int | None,
) -> None:
    """Have a person judge the pairs of two models' answers, on the page or in a spreadsheet.

    Raises:
        DataError: Both models gave the same answer to every row.
    """
    from slmctl.pipeline import predictions
    from slmctl.pipeline.system_errors import spoken
    from slmctl.production.review.pairs import JudgedModels, PairSession

    output = output or settings.evaluate.pairs or options.directory / PAIRS_OUTPUT
    with spoken("review", output.parent):
        judged = JudgedModels.of(*predictions.measured_with(options.directory, *names))
        if not judged.queue:
            raise DataError(
                f"{' and '.join(names)} gave equal answers to every row",
                hint="two models that differ",
            )
        with PairSession(judged, output=output, reviewer=reviewer) as session:
            if count is not None:
                session.begin_round(count)
            if sheet is not None:
                _pair_sheet(sheet, session)
                return
            note = f"{judged.equal:,} with equal answers are left out" if judged.equal else ""
            _serve(session, lambda page: page.PairDesk(session, settings.project), port, note)
            terminal().say(
                f"  decisions: {output}; to measure them: evaluate: {{pairs: {output.name}}}, "
                "slmctl evaluate"
            )


def _serve(
    session: DecisionSession[Any, Any],
    desk_of: Callable[[ModuleType], Desk[Any]],
    port: int,
    note: str,
) -> None:
    """Serve the page of a session until Ctrl-C; `note` says more about its rows."""
    from slmctl.pipeline.system_errors import missing

    try:
        from slmctl.network.http_server import bound_socket
        from slmctl.production.review import page
    except ModuleNotFoundError as error:
        raise missing(error, "review") from error
    desk, done = desk_of(page), session.progress()
    with bound_socket(page.HOST, port) as sock:
        terminal().say(
            f"{terminal().count(done.total - done.decided, session.noun)} to review, "
            f"{done.decided:,} done"
        )
        for line in filter(None, (note, "open the address below in a browser; Ctrl-C ends it")):
            terminal().say(f"  {line}")
        terminal().write(desk.address(sock) + "\n")
        desk.run(sock)
    terminal().say(session.summary())


def _prepared(options: Options) -> Artifact | None:
    """Returns the newest data set below runs/, or None. The config's
    current one would change with every review.
    """
    from slmctl.artifacts import lineage

    sets = [
        made for made in lineage.readable_artifacts(options.directory) if made.kind == "prepared"
    ]
    return max(sets, key=lambda made: made.manifest.started, default=None)


def _task(options: Options, prepared: Artifact | None) -> Task:
    """Returns the task contract that answers must meet: the data set's, else the release's.

    Raises:
        IntegrityError: Neither exists.
    """
    from slmctl.cli.group import make_workspace
    from slmctl.pipeline.named import find_model
    from slmctl.task.contract import Task

    if prepared is not None:
        return Task.read(prepared.path)
    try:
        return Task.read(
            find_model(
                make_workspace(options), None, ("published", "gguf"), default="published"
            ).path
        )
    except (IntegrityError, UsageError):
        raise IntegrityError(
            "the task of the collected answers is not known: there is no data set and no release "
            "here",
            hint="work in the folder of the project (-C DIR), or slmctl run",
        ) from None


def _with_labels(task: Task, more: Sequence[str], settings: Config) -> Task:
    """Returns the task with the labels that the config lists today, and the additional ones in
    `more`.

    Raises:
        UsageError: The task has no labels, or its config names all of them.
    """
    listed = settings.task.label_names if task.rules.chooses else None
    if more and not task.rules.chooses:
        raise UsageError(
            f"--label is for classify, and the task is {task.kind}", hint="leave --label out"
        )
    unlisted = [name for name in more if listed is not None and name not in listed]
    if unlisted:
        raise UsageError(
            f"task.labels does not list '{unlisted[0]}', so no model would learn it",
            hint="task.labels",
        )
    return dataclasses.replace(
        task, labels=tuple(dict.fromkeys([*task.labels, *(listed or ()), *more]))
    )


def _queue(
    options: Options,
    files: Sequence[Path],
    settings: Config,
    prepared: Artifact | None,
    task: Task,
    uniform: float,
) -> tuple[TrainingRows | None, list[ReviewRow]]:
    """Returns (training rows for the nearest-row look-up, rows in review order).

    Raises:
        DataError: No row waits for review.
    """
    from slmctl.production.review import order, review_rows
    from slmctl.production.review.near_rows import TrainingRows

    training = TrainingRows.of(prepared.path) if prepared is not None else None
    suspects, last = _suspects(prepared, files)
    files = [path for path in files if path.name != review_rows.SUSPECTS]
    paths = files or [options.directory / settings.serve.collected]
    is_alone = bool(suspects or last) and not files and not paths[0].exists()
    rows, feedback = ([], {}) if is_alone else review_rows.collected_rows(paths)
    targeted = order.targeted_queue(
        rows,
        feedback,
        task=task,
        suspects=suspects,
        similarity=_similarity(training, len(rows)),
        held_out=review_rows.held_out_texts(prepared.path) if prepared is not None else frozenset(),
    )
    queue = (
        order.interleaved(targeted, order.uniform_queue(rows, feedback) if uniform else [], uniform)
        + last
    )
    if not queue:
        raise DataError("there is nothing to review: no row is collected yet", hint="serve.collect")
    return training, queue


def _suspects(
    prepared: Artifact | None, files: Sequence[Path]
) -> tuple[list[ReviewRow], list[ReviewRow]]:
    """Returns (suspected labels to review in priority order, suspected labels to review last).

    Suspects of a weak linear model come last, and only if the user names their file.

    Raises:
        UsageError: A named file does not exist.
    """
    from slmctl.production.review import review_rows

    named = [path for path in files if path.name == review_rows.SUSPECTS]
    for path in named:
        if not path.is_file():
            raise UsageError(
                f"{path} does not exist",
                hint="slmctl prepare writes it into the data set of a classify task",
            )
    folders = [path.parent for path in named] or ([prepared.path] if prepared is not None else [])
    suspects = [candidate for folder in folders for candidate in review_rows.suspects_in(folder)]
    if prepared is not None and review_rows.are_credible(prepared):
        return suspects, []
    if named or not suspects:
        return [], suspects
    terminal().say(
        f"{len(suspects):,} suspected label{'s are' if len(suspects) > 1 else ' is'} left out: the "
        "linear model of "
        f"prepare is too weak here; slmctl review {folders[0] / review_rows.SUSPECTS} shows them "
        "last"
    )
    return [], []


def _similarity(training: TrainingRows | None, rows: int) -> Callable[[str], float] | None:
    """Returns a function text -> similarity of the nearest training row;
    None without a data set or for many rows.
    """
    return training.similarity if training is not None and rows <= LOOKED_UP else None


def _spreadsheet(path: Path, session: ReviewSession) -> None:
    """Write the rows that are open to a new file, or take the decisions of
    one that exists; raises as `_read` does.
    """
    from slmctl.production.review import spreadsheet

    if not path.exists():
        _written(path, spreadsheet.write(path, session.open_rows()), spreadsheet.ANSWER, session)
        return
    _read(path, spreadsheet.read(path, session), spreadsheet.ANSWER, session)


def _pair_sheet(path: Path, session: PairSession) -> None:
    """`_spreadsheet` of pairs."""
    from slmctl.production.review import spreadsheet

    column = spreadsheet.BETTER
    if not path.exists():
        _written(path, spreadsheet.write_pairs(path, session), column, session)
        return
    _read(
        path,
        spreadsheet.read(path, session, column=column, stamp=session.judged.stamp),
        column,
        session,
    )


def _written(path: Path, count: int, column: str, session: DecisionSession[Any, Any]) -> None:
    rows = terminal().count(count, session.noun)
    terminal().say(f"{rows} written; fill the column {column}, then the same command reads it")
    terminal().write(f"{path}\n")


def _read(path: Path, done: ReadBack, column: str, session: DecisionSession[Any, Any]) -> None:
    """Say which decisions came back from a spreadsheet.

    Raises:
        DataError: The file holds no decision, or some were refused.
    """
    others = f"{done.counts['unchanged']:,} read before, {done.empty:,} without a decision"
    terminal().say(f"{path.name}: {session.counted()}, {others}")
    for sentence in done.refused[:20]:
        terminal().say(f"  {path.name} {sentence}")
    if done.refused:
        raise DataError(
            f"{path.name}: {terminal().count(len(done.refused), 'row')} refused; "
            f"{session.output.name} has the others",
            hint=f"correct these rows, and the same command reads {path.name} once more",
        )
    if not done.counts.total():
        raise DataError(
            f"{path.name} exists, and its column {column} is empty",
            hint="fill it, or name a new file to write the rows to",
        )


COMMANDS = (review,)
