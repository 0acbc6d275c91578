"""Files answered by a model of the test, and files of answers compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from slmctl.models.prompts import PromptAnswerer
from slmctl.sources.rows import read_rows
from slmctl.stages.predict import file_prediction, row_answers
from slmctl.stages.predict.file_prediction import Job
from slmctl.stages.predict.row_answers import RowInput
from slmctl.task.contract import Task

TEXT = RowInput("text")  # the column that most tests ask
TOGETHER = 1e-3  # of a confidence: what is computed together decides its last digits


def answer_file(answerer: PromptAnswerer, task: Task, job: Job) -> tuple[int, int]:
    """Answer a file with a model; returns the number of rows, and of those with an error."""
    return file_prediction.answer_file(
        row_answers.answerer_of_rows(answerer, task, job.reading), task, job
    )


def require_same(paths: Sequence[Path], whole: Path) -> None:
    """Hold files, one after the other, to what one file holds."""
    ours = [row.columns for path in paths for row in read_rows(path)]
    theirs = [row.columns for row in read_rows(whole)]
    sure = [[float(str(row.pop("confidence"))) for row in rows] for rows in (ours, theirs)]
    assert ours == theirs
    assert sure[0] == pytest.approx(sure[1], abs=TOGETHER)
