"""Copies of sources that are not files (queries, data sets of the hub), and
the line that names a stage's report.
"""

from __future__ import annotations

from slmctl import console
from slmctl.artifacts import locks
from slmctl.artifacts.artifact import Artifact
from slmctl.pipeline.graph import Project
from slmctl.pipeline.system_errors import spoken
from slmctl.sources import reviewed, snapshot


def gather_sources(project: Project) -> None:
    """Copy again the sources that are not files: queries and data sets of the hub.

    Raises:
        LockedError: Another process copies them and `project.wait` is false.
        NetworkError: A host could not be reached.
        And what `snapshot.gather` raises.
    """
    sources, labelling = list(project.config.prepare.sources), project.config.label
    sources += [*labelling.sources, *labelling.gold] if labelling is not None else []
    sources += encoding.unlabelled if (encoding := project.config.encode) is not None else []
    for path in snapshot.reviews_among(project.config.prepare.sources):
        console.say(f"  {reviewed.note(path)}")
    if all(snapshot.is_file(source) for source in sources):
        return
    lock = project.runs / ".locks" / "sources"
    with (
        locks.lock(lock, wait=project.wait, on_wait=project.on_wait),
        spoken("gather", project.sources),
    ):
        snapshot.gather(sources, project.sources, project.config.prepare.limits)
    project.forget()


def say_report(made: Artifact, *, current: bool) -> None:
    """Print the path of an artifact's page, unless the artifact existed before."""
    if not current:
        console.say(f"  report: {made.file('report.html')}")
