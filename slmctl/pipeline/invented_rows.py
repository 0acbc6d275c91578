"""A training with and one without the rows that `label.invent` wrote -> whether they are trained on.

Both are ordinary artifacts, so what is there is not trained again. The decision stands in `runs/.invented/<id>.json`,
by the recipes of both, and everything after `prepare` follows it; until it is made, the rows are left out.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import DataError, SlmctlError
from slmctl.metrics import trial_choice
from slmctl.pipeline import invented_choice, resolve
from slmctl.pipeline.invented_choice import CONFIDENCE, InventedChoice
from slmctl.pipeline.resolve import Project
from slmctl.pipeline.stage_table import LABELLED, PREPARED


def is_open(project: Project) -> bool:
    """True where a run has yet to train with and without invented rows, as far as that is known."""
    if not resolve.invents(project) or resolve.invented_choice_of(project) is not None:
        return False
    try:
        return accepted(project) > 0
    except SlmctlError:
        return True  # label has not run


def are_labelled(project: Project) -> bool:
    """True where the stage label has run."""
    try:
        accepted(project)
    except SlmctlError:
        return False
    return True


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
    without, with_rows = (section.model_copy(update={"invented": value}) for value in (False, True))
    return without, with_rows


def trainings(project: Project) -> Iterator[Path]:
    """The data sets and adapters of both trainings while the choice is open, whether they exist or not."""
    if not is_open(project):
        return
    for section in sections(project):
        with contextlib.suppress(SlmctlError):  # what it needs has not been made
            data = resolve.resolve_stage(project, "prepare", section=section)
            yield data.path
            request = resolve.resolve_stage(project, "finetune", {PREPARED.name: artifact.load(data.path)})
            yield request.path


def decide(project: Project, without: Artifact, with_rows: Artifact) -> InventedChoice:
    """Compare the two trainings on the validation records, which are the same in both, and write the decision.

    Args:
        project: Where.
        without, with_rows: The adapters.
    """
    gc.collect()  # of the models
    blocks = [np.array(each.metrics["validation_blocks"], np.float64) for each in (without, with_rows)]
    bound = -math.inf
    if min(each[:, 0].sum() for each in blocks) >= trial_choice.MIN_RECORDS:
        bound = trial_choice.paired_gain(*blocks).bound(CONFIDENCE)
    losses = [float(each[:, 2].sum() / each[:, 1].sum()) for each in blocks]
    made = InventedChoice(
        bool(bound > 0), accepted(project), round(losses[0], 6), round(losses[1], 6),
        round(float(bound), 6) if math.isfinite(bound) else None,
        *(str(each.path.relative_to(project.root)) for each in (without, with_rows)),
    )  # fmt: skip
    invented_choice.write(resolve.invented_choice_path(project), made)
    project.forget()
    return made


def require_validation(count: int) -> None:
    """Refuse validation rows of which nobody could tell whether invented rows help.

    Raises:
        DataError: They are too few.
    """
    if count < trial_choice.MIN_RECORDS:
        raise DataError(
            f"label.invent tries invented rows on validation rows, and {count} are too few: it takes "
            f"{trial_choice.MIN_RECORDS} and more",
            hint="prepare.splits.validation: 0.2, or leave label.invent out",
        )
