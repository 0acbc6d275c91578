"""A training with and one without the rows that `label.invent` wrote -> whether they are trained on.

Both are ordinary artifacts, so what is there is not trained again. The decision stands in `runs/.invented/<id>.json`,
by the recipes of both, and everything after `prepare` follows it; until it is made, the rows are left out.
"""

from __future__ import annotations

import gc
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from slmctl import config, console
from slmctl.artifacts import artifact, atomic
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.typed_json import read_typed
from slmctl.errors import DataError, SlmctlError
from slmctl.metrics import trial_choice
from slmctl.pipeline import resolve
from slmctl.pipeline.resolve import Project
from slmctl.pipeline.stage_table import LABELLED, STAGES

CONFIDENCE = 0.95  # that a training with the rows is better, one-sided
LEAST_BLOCKS = 3  # of validation records: of fewer nobody can tell how much a difference would vary


@dataclass(frozen=True)
class InventedChoice:
    """The decision on invented rows.

    Attributes:
        used: They are trained on.
        rows: Number of them that were accepted.
        loss_without, loss_with: Validation loss of both trainings, in nats an answer token.
        gain_at_least: Lower bound of the fall from the first to the second; None where nothing tells it.
        without, with_rows: The adapters, relative to the project.
    """

    used: bool
    rows: int
    loss_without: float
    loss_with: float
    gain_at_least: float | None
    without: str
    with_rows: str

    @property
    def sentence(self) -> str:
        """The decision in words."""
        losses = f"validation loss is {self.loss_with:.4f} with them and {self.loss_without:.4f} without"
        rows = f"{self.rows:,} rows that a teacher wrote for thin labels"
        if self.used:
            return (
                f"{rows} are trained on: {losses}, lower by at least {self.gain_at_least:.4f} "
                f"({console.percent(CONFIDENCE, 0)}, paired)"
            )
        return f"{rows} are left out: {losses}, which is not lower by more than chance"


def asked_for(project: Project) -> bool:
    """True where the config asks for invented rows."""
    return project.config.label is not None and project.config.label.invent is not None


def choice(project: Project) -> InventedChoice | None:
    """The decision that was made; None where none was, or what it depends on is not there."""
    if not asked_for(project):
        return None
    try:
        path = _path(project)
    except SlmctlError:  # an input is missing; whoever needs it says so
        return None
    if not path.exists():
        return None
    fields = read_typed(path, InventedChoice, hint=f"rm {path}, and slmctl run decides again")
    made: InventedChoice = TypeAdapter(InventedChoice).validate_python(fields)
    return made


def is_open(project: Project) -> bool:
    """True where a run has yet to train with and without invented rows, as far as that is known."""
    if not asked_for(project) or choice(project) is not None:
        return False
    try:
        return accepted(project) > 0
    except SlmctlError:
        return True  # label has not run


def accepted(project: Project) -> int:
    """Number of invented rows whose labels were accepted.

    Raises:
        IntegrityError: The stage label has not run.
    """
    made = resolve.find(project, LABELLED).metrics
    return int(made["invented"]["accepted"]) if "invented" in made else 0


def sections(project: Project) -> tuple[config.Section, config.Section]:
    """The section `prepare` without and with invented rows."""
    section = config.stage_config(project.config, "prepare")
    return tuple(section.model_copy(update={"invented": value}) for value in (False, True))  # type: ignore[return-value]


def decide(project: Project, without: Artifact, with_rows: Artifact) -> InventedChoice:
    """Compare the two trainings on the validation records, which are the same in both, and write the decision.

    Args:
        project: Where.
        without, with_rows: The adapters.
    """
    gc.collect()  # of the models
    blocks = [np.array(each.metrics["validation_blocks"], np.float64) for each in (without, with_rows)]
    bound = -math.inf
    if min(map(len, blocks)) >= LEAST_BLOCKS:
        bound = trial_choice.paired_gain(*blocks).bound(CONFIDENCE)
    losses = [float(each[:, 2].sum() / each[:, 1].sum()) for each in blocks]
    made = InventedChoice(
        bool(bound > 0), accepted(project), round(losses[0], 6), round(losses[1], 6),
        round(float(bound), 6) if math.isfinite(bound) else None,
        *(str(each.path.relative_to(project.root)) for each in (without, with_rows)),
    )  # fmt: skip
    path = _path(project)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.file(path) as draft:
        draft.write_bytes(artifact.canonical(asdict(made)))
    project.forget()
    return made


def require_validation(count: int, batch_size: int) -> None:
    """Refuse validation rows of which nobody could tell whether invented rows help.

    Raises:
        DataError: They are too few.
    """
    least = (LEAST_BLOCKS - 1) * 2 * batch_size + 1
    if count < least:
        raise DataError(
            f"label.invent tries invented rows on validation rows, and {count} are too few: with finetune.batch_size "
            f"{batch_size} it takes {least} and more",
            hint="prepare.splits.validation: 0.2, or leave label.invent out",
        )


def _path(project: Project) -> Path:
    """The place of the decision: of the same base, labels and settings it is the same.

    Raises:
        IntegrityError: The base or the labels have not been made.
    """
    inputs = [resolve.find(project, role).digest for role in STAGES["prepare"].takes]
    prepare = config.recipe(resolve.with_files(project, sections(project)[0]))
    finetune = config.recipe(project.config.finetune)
    stages = [STAGES[name].id for name in ("prepare", "finetune")]
    raw = artifact.canonical([*stages, prepare, finetune, inputs])
    return project.runs / ".invented" / f"{artifact.sha256_bytes(raw).removeprefix('sha256:')[:12]}.json"
