"""Seconds that a person waits for: commands in a project of 200 artifacts, `init` and `prepare` of
many rows.

    python -m benchmarks.interactive PROJECT DATA [--artifacts 200] [--repeat 5]

PROJECT is a finished `classify` project, all its stages current; it is copied, and gets artifacts
of other recipes until there are as many as asked for. DATA holds public data sets as
`../shared/data/` does. Each command is a process of its own, start and imports included; goals are
on wall seconds. Processor time is that of the process and its children, and depends less on what
else the machine does. Both are medians, after one run that is not counted.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import program, result, tickets
from slmctl.artifacts import artifact, lineage

PEER = "CPU-seconds"
AT_ONCE, GLANCE = "<= 0.5", "<= 1"
LOOKS = (
    ("ls", AT_ONCE),
    ("show published", AT_ONCE),
    ("run", AT_ONCE),
    ("run --plan", GLANCE),
    ("ls --models", GLANCE),
    ("diff report {other}", GLANCE),
    ("trace --text none", GLANCE),
    ("gc", GLANCE),
    ("config show", GLANCE),
    ("doctor", GLANCE),
    ("--help", GLANCE),
)
NOT_FOUND = (105, 106)  # exit codes of `trace`
ROWS = 100_000
Run = Callable[[int], Sequence[object]]  # number of the repetition -> arguments of slmctl


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--artifacts", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        project = filled(options.project.resolve(), Path(scratch, "project"), options.artifacts)
        measures = itertools.chain(
            looks(project), stages(Path(scratch), project, options.data.resolve())
        )
        rows = [measured(f"{name}: s", run, goal, options.repeat) for name, run, goal in measures]
    result.write(
        "interactive",
        "python -m benchmarks.interactive PROJECT DATA",
        rows,
        ("scikit-learn", "pydantic"),
    )


def filled(source: Path, project: Path, count: int) -> Path:
    """A copy of a project with so many artifacts: its own, and others of the same files but one and
    of other recipes.

    Large files are hard links.
    """
    shutil.copytree(source, project, copy_function=_linked)
    made = list(lineage.readable_artifacts(project))
    patterns = itertools.cycle([each for each in made if each.kind not in ("base", "published")])
    for number in range(count - len(made)):
        pattern = next(patterns)
        config = pattern.manifest.config | {"copy": number}
        recipe = artifact.recipe_of(pattern.manifest.stage, config, pattern.manifest.inputs)
        final = pattern.path.with_name(recipe[7:19])
        with artifact.draft(final) as place:
            for entry in pattern.manifest.files:
                (place / entry.path).parent.mkdir(parents=True, exist_ok=True)
                _linked(pattern.file(entry.path), place / entry.path)
            (place / "copy").write_text(str(number), encoding="ascii")
            more = {"config": config, "recipe_id": recipe}
            artifact.seal(
                place,
                final,
                lambda files, digest, old=pattern.manifest, more=more: (  # type: ignore[misc]
                    dataclasses.replace(old, files=files, digest=digest, **more)
                ),
            )
    return project


def _linked(source: str | Path, target: str | Path) -> None:
    (os.link if Path(source).stat().st_size > 1_000_000 else shutil.copy2)(source, target)


def looks(project: Path) -> Iterator[tuple[str, Run, str]]:
    """Commands that read a project."""
    other = max(project.glob("runs/report/*/copy")).parent.name
    for line, goal in LOOKS:
        arguments = line.format(other=other).split()
        yield (
            line.format(other="REPORT"),
            lambda _, arguments=arguments: ["-C", project, *arguments],
            goal,
        )  # type: ignore[misc]


def stages(scratch: Path, project: Path, data: Path) -> Iterator[tuple[str, Run, str]]:
    """Commands that read rows or a report."""
    gate = "gates=[{metric: accuracy, model: tfidf_logistic, min: 0.%d}]"
    yield (
        "evaluate, another gate",
        lambda number: ["-C", project, "evaluate", "--set", gate % (number + 10)],
        "<= 2",
    )
    many = tickets.write(scratch / "many.csv", ROWS)
    yield (
        f"init, {ROWS:,} rows",
        lambda number: ["init", "--yes", many, scratch / f"new-{number}"],
        "<= 3",
    )
    (base,) = (project / "runs" / "base").iterdir()
    banking = scratch / "banking"
    program.slmctl(scratch, "init", "--yes", str(data / "banking77/train.csv"), str(banking))
    config = banking / "slmctl.yaml"  # with the base that is here in place of the proposed one
    text = re.sub(r"^pull:.*\n", "", config.read_text(encoding="utf-8"), flags=re.MULTILINE)
    config.write_text(
        re.sub(r"^base:.*", f"base: {base}", text, flags=re.MULTILINE), encoding="utf-8"
    )
    program.slmctl(banking, "pull", sets=["pull.rehearse=false"])

    def prepare(_: int) -> list[object]:
        shutil.rmtree(banking / "runs" / "prepared", ignore_errors=True)
        return ["-C", banking, "prepare", "--set", "pull.rehearse=false"]

    yield "prepare, 10,003 rows of Banking77", prepare, "<= 8"


def measured(name: str, run: Run, goal: str, repeat: int) -> result.Row:
    """Medians of seconds and of processor time of a command,
    after a first run that is not counted.
    """
    walls, processor = [], []
    for number in range(repeat + 1):
        command = [sys.executable, "-m", "slmctl", *map(str, run(number))]
        before, begun = os.times(), time.monotonic()
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        walls.append(time.monotonic() - begun)
        after = os.times()
        processor.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
        if done.returncode != 0 and not (name.startswith("trace") and done.returncode in NOT_FOUND):
            sys.exit(done.stderr)
    sys.stderr.write(
        f"{name} {statistics.median(walls[1:]):.2f}, processor "
        f"{statistics.median(processor[1:]):.2f}\n"
    )
    return result.single(
        name, statistics.median(walls[1:]), PEER, statistics.median(processor[1:]), goal
    )


if __name__ == "__main__":
    main()
