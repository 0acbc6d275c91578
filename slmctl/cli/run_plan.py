"""The plan of a run as text: a table of stages and requirements, or
two lines before the first stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from slmctl import console
from slmctl.artifacts.artifact import SHORT_ID
from slmctl.pipeline.plan import Requirement, RunPlan, StagePlan

COLUMNS = ("stage", "state", "id", "disk", "memory", "time")
LEGEND = "disk, memory and time are estimates for this machine; - is not known"


def lines(plan: RunPlan) -> Iterator[str]:
    """Lines of `run --plan`: a table of stages, downloads, number of rows, requirements."""
    named = any(stage.current for stage in plan.stages)
    columns = [column for column in COLUMNS if named or column != "id"]
    cells = [dict(zip(COLUMNS, _row(stage), strict=True)) for stage in plan.stages]
    rows = [[cell[column] for column in columns] for cell in cells]
    yield from console.table_lines(
        columns, rows, texts=3 if named else 2, optional=("id", "memory", "disk")
    )
    yield ""
    about = [
        ("download", f"{_download(*each)}, not tried: a plan uses no network")
        for each in plan.download
    ]
    about += [("rows", _rows(plan))] if plan.rows is not None else []
    measured = ", ".join(stage.name for stage in plan.stages if stage.measured)
    about += [("time", f"of {measured} as measured here")] if measured else []
    about += [(need.name, _state(need)) for need in plan.requirements]
    yield from (f"{name:<10} {text}" for name, text in about)


def summary(plan: RunPlan) -> Iterator[str]:
    """Lines before a run: its stages, time, memory and disk; no line if every stage is current."""
    to_run = [stage for stage in plan.stages if not stage.current]
    if not to_run:
        return
    yield f"will run: {', '.join(stage.name for stage in to_run)}"
    seconds = {stage.name: stage.seconds for stage in to_run}
    memory = [stage.memory_bytes for stage in to_run if stage.memory_bytes is not None]
    facts = list(_time(seconds))
    facts += [f"{console.size(max(memory))} of memory"] if memory else []
    facts += [f"{console.size(plan.disk_bytes)} of disk"] if plan.disk_bytes else []
    facts += [f"fetches {_download(source, count)}" for source, count in plan.download]
    if facts:
        yield f"  {', '.join(facts)}; slmctl run --plan shows more"
    yield from (f"  note: {need.state}" for need in plan.requirements if need.note)


def _time(seconds: Mapping[str, float | None]) -> Iterator[str]:
    """The total time if every stage but a download has an estimate; else
    the time of training, if that is known.
    """
    training, download = seconds.get("finetune"), "pull" in seconds and seconds["pull"] is None
    rest = [value for name, value in seconds.items() if name != "pull" or not download]
    if all(value is not None for value in rest):
        beside = " beside the download" if download else ""
        of_it = f", {console.duration(training)} of it training" if training is not None else ""
        yield f"about {console.duration(sum(filter(None, rest)))}{beside}{of_it}"
    elif training is not None:
        yield f"about {console.duration(training)} of training"


def _row(stage: StagePlan) -> list[str]:
    if stage.current:
        return [stage.name, "current", stage.path.rpartition("/")[2][:SHORT_ID], "", "", ""]
    figures = [
        "-" if stage.disk_bytes is None else console.size(stage.disk_bytes),
        "-" if stage.memory_bytes is None else console.size(stage.memory_bytes),
        "-" if stage.seconds is None else console.duration(stage.seconds),
    ]
    return [stage.name, "will run", "", *figures]


def _download(source: str, count: int | None) -> str:
    return f"{source} ({f'about {console.size(count)}' if count else 'of unknown size'})"


def _rows(plan: RunPlan) -> str:
    assert plan.rows is not None
    about = "" if plan.rows.exact else "about "
    return (
        f"{about}{plan.rows.train:,} to train on and {about}{plan.rows.test:,} to test on, of "
        f"{plan.rows.rows:,}"
    )


def _state(need: Requirement) -> str:
    return (
        f"NO: {need.state}"
        if need.error is not None
        else f"note: {need.state}"
        if need.note
        else need.state
    )
