"""sources -> the rows to label, and gold rows: cleaned as `prepare` cleans them, and searched
before any is sent.

The gold rows are split once, by their ids. The pool fits the score, and its rows are the examples
in the prompts; the others test the threshold, so that a teacher sees them exactly as it sees rows
without an answer. Gold rows that `prepare` will measure with are left out, whatever file they are
in. Of near-duplicates, which are right or wrong together, the first row stays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from slmctl import console
from slmctl.artifacts import artifact, lineage
from slmctl.config import LabelConfig, Source, moment
from slmctl.deduplication import minhash, near_duplicates, row_fingerprints
from slmctl.deduplication.row_fingerprints import FILENAME, Fingerprints
from slmctl.errors import DataError
from slmctl.metrics import answer_metrics
from slmctl.metrics.answer_score import fits_score
from slmctl.sensitive import conversation_veto, search_process
from slmctl.sensitive.conversation_veto import Cleared
from slmctl.sources.rows import columns_of, read_rows
from slmctl.sources.rows.cells import Row
from slmctl.task import cleaning, conversation_formats, split
from slmctl.task.cleaning import Replacement
from slmctl.task.conversation_formats import named_cell
from slmctl.task.kinds import kind_of
from slmctl.task.records import SPLITS, RowRejectedError

TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")
SEARCH_S = 30.0  # for the detectors on one row, on a busy machine
T = TypeVar("T")
TAUGHT = ("train", "validation")  # splits whose answers a model may have memorised


@dataclass(frozen=True)
class LabelRow:
    """A row.

    Attributes:
        id: 16 hexadecimal digits: of the row's own id, else of its text.
        raw: The input as it came in.
        text: The same, cleaned as the records are.
        file, number: Its place.
        gold: The answer that people gave; empty for a row to label.
        is_pool: A gold row that fits the score and may be an example.
    """

    id: str
    raw: str = field(repr=False)
    text: str = field(repr=False)
    file: str
    number: int
    gold: str = field(default="", repr=False)
    is_pool: bool = False
    group: str = ""


@dataclass(frozen=True)
class _PlacedRow:
    """A gold row with the position and the moment by which it is split, and
    the split that its source is bound to.
    """

    row: LabelRow
    position: float
    moment: float
    bound: str | None


@dataclass(frozen=True)
class LabelRows:
    """All rows of a run.

    Attributes:
        rows: The rows to label, in a random order that is always the same.
        left_out: Number of rows that are not asked for, by the reason.
        not_drawn: Rows beyond `max_rows`.
    """

    rows: tuple[LabelRow, ...]
    gold: tuple[LabelRow, ...]
    left_out: Counter[str]
    not_drawn: int

    @property
    def every(self) -> list[LabelRow]:
        """Gold rows and rows to label, the gold ones first."""
        return [*self.gold, *self.rows]

    @property
    def pool(self) -> list[LabelRow]:
        """The gold rows that fit the score."""
        return [row for row in self.gold if row.is_pool]


def read(config: LabelConfig) -> LabelRows:
    """All rows, each text once: a row equal to a gold row or an earlier row is left out.

    Raises:
        DataError: A source cannot be read, lacks a column, or holds nothing to label; or there is
            no gold row.
    """
    left_out: Counter[str] = Counter()
    gold = _gold(config, left_out)
    taken, ids = {minhash.normalise(row.text) for row in gold}, set[str]()
    gold = [_with_own_id(row, ids) for row in gold]
    rows: list[LabelRow] = []
    for source in config.sources:
        for row in _unlabelled(config, source, left_out):
            key = minhash.normalise(row.text)
            if key in taken:
                left_out["the same as another row"] += 1
                continue
            taken.add(key)
            rows.append(_with_own_id(row, ids))
    if not rows:
        raise DataError(
            "label.sources hold no row to label",
            hint="each is gold, empty, or the same as another one",
        )
    random.Random(0).shuffle(rows)  # noqa: S311 - draws rows, hides nothing
    drawn = rows[: config.max_rows]
    return LabelRows(tuple(drawn), tuple(gold), left_out, len(rows) - len(drawn))


def _with_own_id(row: LabelRow, ids: set[str]) -> LabelRow:
    """The row, with a hash of its text as its id if another row has
    that id already; adds the id to `ids`.
    """
    if row.id in ids:
        row = dataclasses.replace(
            row, id=hashlib.sha256(f"again/{row.raw}".encode()).hexdigest()[:16]
        )
    ids.add(row.id)
    return row


def _texts(
    source: Source, read: Callable[[dict[str, Any]], T], left_out: Counter[str], mark: str = ""
) -> Iterator[tuple[Row, T]]:
    """The rows of a source, each with the result of `read` on its
    columns; rejected rows are counted by rule.
    """
    for raw in read_rows(source.local, **source.reading):
        try:
            if raw.fault:
                raise RowRejectedError("unreadable", raw.fault)
            value = read(raw.columns)
        except RowRejectedError as error:
            left_out[mark + error.rule] += 1
            continue
        yield raw, value


def _unlabelled(config: LabelConfig, source: Source, left_out: Counter[str]) -> Iterator[LabelRow]:
    columns = columns_of(source.local, **source.reading)
    if source.id:
        conversation_formats.require_column(source, columns, source.id)
    make_text = conversation_formats.text_maker(source, source.input, columns)

    def read(cells: dict[str, Any]) -> str:
        if text := make_text(cells):
            return text
        raise RowRejectedError("empty input", f"'{source.input}' is empty")

    for raw, text in _texts(source, read, left_out):
        group = named_cell(raw.columns, source.group)
        yield LabelRow(
            _id(source, raw, text),
            text,
            _cleaned(config, text),
            source.title,
            raw.number,
            group=group,
        )


def _gold(config: LabelConfig, left_out: Counter[str]) -> list[LabelRow]:
    """Gold rows with an answer of the task, less those that `prepare`
    measures with and repeated near-duplicates.
    """
    rows = [entry.row for source in config.gold for entry in _gold_of(config, source, left_out)]
    if not rows:
        raise DataError(
            "there is no gold row",
            hint="label.gold: {path: gold.csv, input: text, output: category}",
        )
    texts = [*_measured(config), *(minhash.normalise(row.text) for row in rows)]
    first, root = len(texts) - len(rows), near_duplicates.clusters(texts)
    left_out["gold rows that prepare measures with"] += sum(
        k < first for k in root[first:].tolist()
    )
    kept = [row for k, row in enumerate(rows, first) if root[k] == k]
    left_out["gold rows nearly the same as another one"] += sum(
        k >= first for k in root[first:].tolist()
    ) - len(kept)
    return kept


def _measured(config: LabelConfig) -> list[str]:
    """The normalised texts of the test rows of `prepare`."""
    placed = [
        entry for source in config.reading.sources for entry in _gold_of(config, source, Counter())
    ]
    splits = _splits(config, placed) if placed else []
    return [
        minhash.normalise(entry.row.text)
        for entry, split in zip(placed, splits, strict=True)
        if split == TEST
    ]


def _splits(config: LabelConfig, placed: Sequence[_PlacedRow]) -> list[int]:
    """The split of each gold row, as `prepare` assigns it: an index into SPLITS."""
    names = (
        sorted({entry.row.gold for entry in placed}) if kind_of(config.task.kind).chooses else []
    )
    index = {name: k for k, name in enumerate(names)}
    labels = np.array([index.get(entry.row.gold, -1) for entry in placed])
    positions, moments = (
        np.array([getattr(entry, name) for entry in placed]) for name in ("position", "moment")
    )
    by_rule = split.assign(config.reading.splits, positions, moments, labels, names)
    return [
        SPLITS.index(entry.bound) if entry.bound else int(own)
        for entry, own in zip(placed, by_rule, strict=True)
    ]


def _gold_of(config: LabelConfig, source: Source, left_out: Counter[str]) -> Iterator[_PlacedRow]:
    form = conversation_formats.recognise(source, columns_of(source.local, **source.reading))
    names, renamed = config.task.label_names, config.task.label_map

    def read(cells: dict[str, Any]) -> tuple[str, str]:
        conversation = form.read(cells)
        turns = [message for message in conversation.messages if message["role"] != "system"]
        if [turn["role"] for turn in turns] != ["user", "assistant"] or conversation.tools:
            raise RowRejectedError("several turns", "a gold row is one question with one answer")
        text, answer = turns[0]["content"], renamed.get(turns[1]["content"], turns[1]["content"])
        if names is not None and answer not in names:
            raise RowRejectedError(
                "unknown label", "the label of a gold row is not one of task.labels"
            )
        if (
            kind_of(config.task.kind).structured
            and answer_metrics.parse(answer) is answer_metrics.INVALID
        ):
            raise RowRejectedError("answer is not JSON", "the answer is not JSON")
        return text, answer

    for raw, (text, answer) in _texts(source, read, left_out, "gold: "):
        id, group = _id(source, raw, text), named_cell(raw.columns, source.group)
        key = split.group_id(group) if group else minhash.normalise(text) or text
        row = LabelRow(
            id,
            text,
            _cleaned(config, text),
            source.title,
            raw.number,
            answer,
            is_pool=fits_score(key if group else id),
            group=group,
        )
        yield _PlacedRow(row, split.position_of(key), _moment(config, source, raw), source.split)


def _moment(config: LabelConfig, source: Source, raw: Row) -> float:
    """The time of a row in seconds since 1970; NaN where the split
    does not need it or it cannot be read.
    """
    if config.reading.splits.time is None or source.time is None:
        return float("nan")
    try:
        return moment(named_cell(raw.columns, source.time)).timestamp()
    except (ValueError, OverflowError):
        return float("nan")


def _id(source: Source, raw: Row, text: str) -> str:
    own = named_cell(raw.columns, source.id)
    return (
        row_fingerprints.id_digits(own)
        if own
        else hashlib.sha256(f"label/{text}".encode()).hexdigest()[:16]
    )


def _cleaned(config: LabelConfig, text: str) -> str:
    reading = config.reading
    if not reading.clean and not reading.replace:
        return text
    replace = tuple(Replacement(entry.pattern, entry.replacement) for entry in reading.replace)
    return cleaning.clean(text, tuple(reading.clean), replace)[0]


def without_trained(rows: LabelRows, releases: Sequence[Path], runs: Path) -> LabelRows:
    """The rows without the gold rows that a release was trained on: it knows
    their answers, so they measure nothing.
    """
    gold, left_out = list(rows.gold), rows.left_out.copy()
    for folder in releases:
        name = "/".join(folder.parts[-2:])
        data_set = lineage.data_set(runs, artifact.load(folder))
        if data_set is None or not (data_set.path / FILENAME).is_file():
            console.say(
                f"  note: the data set of {name} is not here: no gold row may be in it, or the "
                "bound is void"
            )
            continue
        prints = Fingerprints(data_set.path / FILENAME)
        kept = [row for row in gold if not _is_in(prints, row.raw)]
        left_out[f"gold rows that {name} was trained on"] += len(gold) - len(kept)
        gold = kept
    return dataclasses.replace(rows, gold=tuple(gold), left_out=left_out)


def _is_in(prints: Fingerprints, text: str) -> bool:
    matches = prints.look_up([row_fingerprints.query_fingerprint(text)], threshold=1.0)
    return any(match.split in TAUGHT for match in matches)


# Rows that may be sent


def clearances(config: LabelConfig, rows: Sequence[LabelRow]) -> dict[str, Cleared]:
    """{row id: the part that may be sent to an endpoint}; for rows of the
    pool, which are examples, with the answer.
    """
    cleared: dict[str, Cleared] = {}
    with console.progress("searching for personal data", len(rows), "rows") as meter:
        for row in rows:
            cleared[row.id] = _clear(config, row)
            meter.advance()
    return cleared


def _clear(config: LabelConfig, row: LabelRow) -> Cleared:
    messages = [{"role": "user", "content": row.text}]
    if row.is_pool and not kind_of(config.task.kind).chooses:
        messages.append({"role": "assistant", "content": row.gold})
    try:
        return conversation_veto.clear(messages, redact=config.redact, timeout_s=SEARCH_S)
    except search_process.SearchError:
        return Cleared(reason="doubt")
