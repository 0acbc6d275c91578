"""Nothing torn: killed or failed at any write, sync or rename of any stage, what has a manifest is whole.

strace ends the process at the k-th call that writes below the project, or fails that call as a full or a broken disk
does. Then: no folder with a manifest is anything but whole, what was there before is as it was, and running the
stage again gives the digest of a run that nobody disturbed.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import tiny
from support.forks import Call, Done, Forks
from support.scale import FULL

from slmctl.artifacts import artifact
from slmctl.pipeline import stage_table

pytestmark = pytest.mark.skipif(shutil.which("strace") is None and not tiny.REQUIRED, reason="strace is not installed")

# What each stage is told, to be quick; one that is not listed is run as it is.
ARGS = {
    "finetune": ("--set", "finetune.max_steps=8", "--set", "finetune.validate_every=4"),
    "quantize": ("--set", "quantize.types=[Q8_0]"),
    "predict": ("gguf", "--type", "Q8_0", "--split", "validation"),
}
RUN = [name for name in stage_table.STAGES if name != "label"]  # it asks a teacher: tests/stages/label kills it
BY_CHILDREN = ("quantize",)  # stages whose files are written by processes of their own
KILL, FULL_DISK, BROKEN_DISK = "signal=SIGKILL", "error=ENOSPC", "error=EIO"


@dataclass(frozen=True)
class Instant:
    """The k-th call of a name, from 1, as strace counts; with a path, of those that name it."""

    name: str
    at: int
    path: str = ""

    def options(self, how: str) -> list[str]:
        return [*(["-P", self.path] if self.path else []), "-e", f"inject={self.name}:{how}:when={self.at}"]


def instants(calls: Sequence[Call], place: Path, *, by_path: bool = False) -> list[Instant]:
    """Every call that writes below a folder."""
    found, counts = [], Counter[tuple[str, str]]()
    for call in calls:
        key = call.name, call.paths[0] if by_path and call.paths else ""
        counts[key] += 1
        if call.touches(place):
            found.append(Instant(call.name, counts[key], key[1]))
    return found


@dataclass(frozen=True)
class Scene:
    """A stage in a project where it has not run, and what it leaves when nobody disturbs it."""

    forks: Forks
    clean: Path
    place: Path
    stage: str
    calls: tuple[Call, ...]
    wanted: str

    def copy(self) -> Path:
        """The project, each time under the same path, so that every path in a trace is the same."""
        shutil.rmtree(self.place, ignore_errors=True)
        return Path(shutil.copytree(self.clean, self.place))

    def command(self) -> list[str]:
        return ["--quiet", self.stage, *ARGS.get(self.stage, ())]

    def instants(self) -> list[Instant]:
        """The calls of the stage's own process that write below the project."""
        return instants([call for call in self.calls if call.process == self.calls[0].process], self.place)


@pytest.fixture
def after(request: pytest.FixtureRequest, stage: str) -> Path:
    """A project in which a stage has run."""
    found: Path = request.getfixturevalue("calibrated_run" if stage == "calibrate" else "tiny_run")
    return found


def scene(forks: Forks, run: Path, place: Path, stage: str) -> Scene:
    """A copy of a project without what a stage left, and the trace of a run that nobody disturbs."""
    clean = Path(shutil.copytree(run, place / "clean"))
    noun = stage_table.STAGES[stage].leaves
    shutil.rmtree(clean / "runs" / noun)
    if stage == "publish":
        shutil.rmtree(clean / "registry")
    made = Scene(forks, clean, place / "desk", stage, (), "")
    desk = made.copy()
    done = forks.traced(desk, *made.command())
    assert done.code == 0, done.stderr
    (folder,) = desk.glob(f"runs/{noun}/[!.]*")
    return Scene(forks, clean, place / "desk", stage, tuple(done.calls), told(artifact.load(folder)))


def told(made: artifact.Artifact) -> str:
    """The digest; of predictions the answers, whose probabilities depend in the last digit on who is decoded beside."""
    if made.kind != "predictions":
        return made.digest
    lines = map(json.loads, made.file("predictions.jsonl").read_text().splitlines())
    return str([(line["id"], line["answer"]) for line in lines])


def whole(desk: Path) -> Iterator[Path]:
    """Every folder with a manifest, drafts too; each must be whole."""
    for path in sorted(desk.rglob("manifest.json")):
        assert artifact.verify_folder(path.parent) == [], path
        yield path.parent


def disturb(made: Scene, how: str, at: Instant) -> Done:
    """Run the stage, have strace do something at one of its calls, and check all that is promised."""
    desk = made.copy()
    earlier = {path: (path / "manifest.json").read_bytes() for path in whole(desk)}
    done = made.forks.traced(desk, *made.command(), options=at.options(how))
    there = {path: (path / "manifest.json").read_bytes() for path in whole(desk)}
    assert earlier.items() <= there.items(), "an artifact that was there is not as it was"
    if how != KILL:
        assert done.code in (0, 6), (how, at, done.code, done.stderr)
        assert "Traceback" not in done.stderr, (how, at, done.stderr)
        assert done.code == 0 or re.search(r"disk|could not write", done.stderr), (how, at, done.stderr)
    again = made.forks.run(desk, *made.command())
    assert again.code == 0, (how, at, again.stderr)
    assert told(artifact.load(Path(again.stdout.split()[-1]))) == made.wanted, (how, at)
    left = [path for path in desk.glob("runs/*/.*") if path.parent.name[0] != "."]
    assert not left, (how, at, left)
    assert all(path.parts for path in whole(desk))
    return done


def each(made: Scene, how: str, tries: Sequence[Instant]) -> int:
    """Disturb a stage at each of these instants; how many of them hit a call below the project."""
    hits = 0
    for at in tries:
        done = disturb(made, how, at)
        hit = [call for call in done.calls if call.injected and call.touches(made.place)]
        hits += bool(hit) or (how == KILL and done.code == -9)
    return hits


def chosen(made: Scene, count: int, seed: int) -> list[Instant]:
    """All instants at full size, else some of them."""
    every = made.instants()
    return every if FULL else random.Random(seed).sample(every, min(count, len(every)))


def test_prepare_survives_a_kill_and_a_full_disk(preparing: Forks, tiny_run: Path, before: Path) -> None:
    made = scene(preparing, tiny_run, before, "prepare")
    assert len(made.instants()) > 20
    for seed, how in enumerate((KILL, FULL_DISK, BROKEN_DISK)):
        tries = chosen(made, 2, seed)
        assert each(made, how, tries) == len(tries)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [name for name in RUN if FULL or name != "prepare"])
def test_every_stage_survives_at_any_instant(stages: Forks, after: Path, before: Path, stage: str) -> None:
    made = scene(stages, after, before, stage)
    tried = hit = 0
    for seed, how in enumerate((KILL, FULL_DISK, BROKEN_DISK)):
        tries = chosen(made, 1 if stage in BY_CHILDREN else 2, seed)
        tried, hit = tried + len(tries), hit + each(made, how, tries)
    assert hit >= 0.9 * tried - 1, f"strace hit {hit} of {tried}"


@pytest.mark.slow
@pytest.mark.parametrize("stage", BY_CHILDREN)
def test_a_process_that_writes_for_a_stage_may_die(stages: Forks, after: Path, before: Path, stage: str) -> None:
    made = scene(stages, after, before, stage)
    done = stages.traced(made.copy(), *made.command(), follow=True)
    own = done.calls[0].process
    by_others = instants([call for call in done.calls if call.process != own], made.place, by_path=True)
    by_others = [one for one in by_others if ".gguf" in one.path]
    assert by_others, "no other process writes a .gguf file"
    for at in by_others if FULL else random.Random(1).sample(by_others, 2):
        desk = made.copy()
        died = stages.traced(desk, *made.command(), follow=True, options=at.options(KILL))
        assert died.code == 6, (at, died.code, died.stderr)
        assert list(whole(desk))
        again = stages.run(desk, *made.command())
        assert again.code == 0, again.stderr
        assert artifact.load(Path(again.stdout.split()[-1])).digest == made.wanted


def order_of(calls: list[Call], final: Path) -> None:
    """Every file is on the disk before the folder gets its name, and the name before anybody is told."""
    draft = final.parent / f".draft-{final.name}"
    renames = [k for k, call in enumerate(calls) if call.name.startswith("rename") and str(final) in call.paths]
    assert len(renames) == 1
    rename = renames[0]
    for entry in [*artifact.load(final).manifest.files, None]:
        path = str(draft / entry.path) if entry is not None else str(draft / ".draft-manifest.json")
        writes = [k for k, call in enumerate(calls) if "write" in call.name and path in call.paths]
        synced = [k for k, call in enumerate(calls) if "sync" in call.name and path in call.paths]
        assert synced, f"{path} was never synced"
        assert max(writes, default=-1) < max(synced) < rename, (
            f"{path} was written, synced and renamed in another order"
        )
    folders = [k for k, call in enumerate(calls) if "sync" in call.name and str(draft) in call.paths]
    assert folders and max(folders) < rename, "the folder was not synced before it was renamed"
    parents = [k for k, call in enumerate(calls) if "sync" in call.name and str(final.parent) in call.paths]
    assert parents and max(parents) > rename, "the parent was not synced after the rename"


def test_the_order_on_the_disk(preparing: Forks, tiny_run: Path, before: Path) -> None:
    made = scene(preparing, tiny_run, before, "prepare")
    (final,) = made.place.glob("runs/prepared/[!.]*")
    order_of(list(made.calls), final)


@pytest.mark.slow
@pytest.mark.parametrize("stage", RUN)
def test_the_order_on_the_disk_of_every_stage(stages: Forks, after: Path, before: Path, stage: str) -> None:
    made = scene(stages, after, before, stage)
    done = stages.traced(made.copy(), *made.command(), follow=True)
    (final,) = made.place.glob(f"runs/{stage_table.STAGES[stage].leaves}/[!.]*")
    order_of(done.calls, final)


def test_the_check_of_the_order_can_fail(preparing: Forks, tiny_run: Path, before: Path) -> None:
    made = scene(preparing, tiny_run, before, "prepare")
    (final,) = made.place.glob("runs/prepared/[!.]*")
    calls = [call for call in made.calls if not ("sync" in call.name and call.paths[0].endswith("train.jsonl"))]
    with pytest.raises(AssertionError, match=r"train\.jsonl was never synced"):
        order_of(calls, final)
    with pytest.raises(AssertionError, match="was written, synced and renamed in another order"):
        order_of(list(reversed(made.calls)), final)
