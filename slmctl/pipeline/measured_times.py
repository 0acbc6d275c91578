"""Estimates of stages, scaled by the time that finished artifacts
of a project took on this machine.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from slmctl import config, hardware
from slmctl.artifacts import lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import SlmctlError
from slmctl.pipeline.estimates import KnownSizes, StageEstimate
from slmctl.pipeline.graph import BASE, PREPARED, Project, Stage

LATEST = 3  # artifacts of a stage; the middle one counts, since a busy machine slows one of them
LEAST = 0.1  # of an estimate: what took less was linked from another artifact


class MeasuredTimes:
    """The artifacts of a project as measurements; `sizes_of` gives the
    sizes by which estimates of a project go.
    """

    def __init__(self, project: Project, sizes_of: Callable[[Project], KnownSizes]) -> None:
        self._project, self._sizes_of = project, sizes_of
        self._made = list(lineage.readable_artifacts(project.root))
        self._ancestry = lineage.Ancestry(self._made)

    def applied(self, stage: Stage[Any], estimate: StageEstimate) -> StageEstimate:
        """An estimate, scaled as the latest artifacts of this version of the
        stage differ here from their own ones.
        """
        here = hardware.processor()
        own = [made for made in self._made if made.manifest.stage == stage.id]
        own = [made for made in own if made.manifest.environment.get("processor") == here]
        own.sort(key=lambda made: made.manifest.started, reverse=True)
        ratios = [ratio for made in own if (ratio := self._ratio(stage, made)) is not None]
        if estimate.seconds is None or not ratios:
            return estimate
        return replace(
            estimate,
            seconds=statistics.median_low(ratios[:LATEST]) * estimate.seconds,
            measured=True,
        )

    def _ratio(self, stage: Stage[Any], made: Artifact) -> float | None:
        """The time of an artifact over the estimate for its settings, rows
        and base; None where it is not known.
        """
        if any(self._ancestry.get(digest) is None for _, digest in made.manifest.parents):
            return None
        whole = list(self._ancestry.of(made.digest))
        nearest = {each.kind: each for each in reversed(whole)}
        inputs = {
            role.name: nearest[role.name] for role in (BASE, PREPARED) if role.name in nearest
        }
        project = Project(self._project.root, self._project.config, named=inputs)
        # a section that names files, which no estimate reads
        with contextlib.suppress(SlmctlError, KeyError):
            section = config.restored(
                type(stage.settings), made.manifest.config, dict[str, Path]().__getitem__
            )
            project.config = project.config.model_copy(update={stage.name: section})
        then = project.stage(stage.name)
        estimated, took = then.cost(self._sizes_of(project)).seconds, then.took(made, whole)
        return (
            took / estimated
            if estimated and took is not None and took > LEAST * estimated
            else None
        )
