"""The rows that people review: collected answers of a server, and
training rows with a probably wrong label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts import json_lines
from slmctl.artifacts.artifact import Artifact
from slmctl.deduplication import minhash
from slmctl.errors import UsageError
from slmctl.metrics.confident_joint import SURE
from slmctl.metrics.statistics import hashed_position
from slmctl.production.records import CollectedRow, Feedback, collected_files, last_feedback
from slmctl.sources.reviewed import UNIFORM, Choice
from slmctl.task.records import SPLITS, read_records

SUSPECTS = "suspects.jsonl"  # in a prepared data set
RESERVED = 0.5  # largest share of all traffic that is reserved for the uniform queue


@dataclass(frozen=True)
class ReviewRow:
    """A row with the reason for its review.

    Attributes:
        row: The collected answer; for a suspect, its record in that form.
        chosen: The reason, which the decision will record.
        feedback: The client's last feedback on the answer; None without one.
        proposed: The probable label of a suspect; '' for other rows.
    """

    row: CollectedRow
    chosen: Choice
    feedback: Feedback | None = None
    proposed: str = ""

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def before(self) -> str:
        """The answer that a person judges: the local model's, or the record's label."""
        return self.row.local

    @property
    def probability(self) -> float:
        """The probability with which a row of this kind is drawn from all traffic, 0 to 1."""
        return (
            min(self.row.uniform_probability, RESERVED)
            if self.chosen == UNIFORM
            else self.row.probability
        )

    @property
    def proposals(self) -> list[str]:
        """Other known answers: the client's, the generalist's, the label proposed for a suspect."""
        client = self.feedback.answer if self.feedback is not None else None
        return [text for text in (client, self.row.general_answer, self.proposed) if text]

    @property
    def certainty(self) -> float:
        """The answer's p_correct, else its confidence, 0 to 1; 1 if it has neither."""
        stated = self.row.p_correct if self.row.p_correct is not None else self.row.confidence
        return 1.0 if stated is None else stated


def is_reserved(row: CollectedRow) -> bool:
    """True for a row that only the uniform queue may take.

    If difficult rows were taken out of the uniform ones, the rest would be too easy. So the uniform
    queue has its own rows, chosen by a hash of their ids, the same in every session. If a server
    collects more than RESERVED of its traffic, the other uniform rows may be picked for other
    reasons.
    """
    if not row.uniform or row.uniform_probability <= 0:
        return False
    return position(row.id, "reserved") * row.uniform_probability < RESERVED


def position(id: str, purpose: str) -> float:
    """A pseudo-random number, 0 to 1, that depends on the id and the purpose alone."""
    return hashed_position(f"review/{purpose}/{id}")


def collected_rows(paths: Sequence[Path]) -> tuple[list[CollectedRow], dict[str, Feedback]]:
    """Returns (rows in files and folders of `serve.collect`, one for each id; the last feedback by
    id).

    Raises:
        OSError: A file cannot be read.
        UsageError: A path does not exist.
    """
    for path in paths:
        if not path.exists():
            raise UsageError(
                f"there is nothing to review: {path} does not exist",
                hint="serve.collect: {to: collected, kept: 2%}",
            )
    rows: dict[str, CollectedRow] = {}
    for file in collected_files(paths):
        rows |= {row.id: row for row in CollectedRow.read(file)}
    return list(rows.values()), last_feedback(paths)


def suspects_in(folder: Path) -> list[ReviewRow]:
    """The training records of a prepared data set with a probably wrong label, the likeliest error
    first.

    Held-out records are skipped: correcting picked test rows would make the test split no longer
    random.
    """
    path = folder / SUSPECTS
    if not path.is_file():
        return []
    return [_suspect(fields) for fields in json_lines.read(path) if fields.get("split") == "train"]


def are_credible(prepared: Artifact) -> bool:
    """True if the linear model of `prepare` agrees with enough labels
    (SURE) for its suspects to be credible.
    """
    facts = prepared.metrics.get("suspects") or {}
    return float(facts.get("agreement") or 0.0) >= SURE


def _suspect(fields: Mapping[str, object]) -> ReviewRow:
    """A line of `suspects.jsonl` as a row to review; the answer to judge is its label."""
    messages = fields.get("messages")
    turns = (
        [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    )
    if turns and turns[-1].get("role") == "assistant":
        turns = turns[:-1]
    row = CollectedRow(str(fields.get("id")), "", turns, str(fields.get("label")), chosen="suspect")
    return ReviewRow(row, "suspect", proposed=str(fields.get("proposed") or ""))


def held_out_texts(folder: Path) -> frozenset[str]:
    files = (folder / f"{split}.jsonl" for split in SPLITS if split != "train")
    return frozenset(
        minhash.normalise(record.input) for file in files for record in read_records(file)
    )
