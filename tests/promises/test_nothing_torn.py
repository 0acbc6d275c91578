"""Nothing torn: killed or failed at any write, sync or rename of any stage, what has a manifest is
whole.

strace ends the process at the k-th call that writes below the project, or fails that call as a full
or a broken disk does. Then: no folder with a manifest is anything but whole, what was there before
is as it was, and running the stage again gives the digest of a run that nobody disturbed.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.forks import Call, Done, Forks
from support.scale import FULL

from slmctl.artifacts import artifact
from slmctl.pipeline import LEAVES

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None and not tiny.REQUIRED, reason="strace is not installed"
)

# What each stage is told, to be quick; one that is not listed is run as it is.
ARGS = {
    "finetune": ("--set", "finetune.max_steps=8", "--set", "finetune.validate_every=4"),
    "quantize": ("--set", "quantize.types=[Q8_0]"),
    "predict": ("gguf", "--type", "Q8_0", "--split", "validation"),
}
RUN = [name for name in LEAVES if name != "label"]  # it asks a teacher: tests/stages/label kills it
BY_CHILDREN = ("quantize",)  # stages whose files are written by processes of their own
KILL, FULL_DISK, BROKEN_DISK = "signal=SIGKILL", "error=ENOSPC", "error=EIO"


@dataclass(frozen=True)
class Instant:
    """The k-th call of a name, from 1, as strace counts; with a path, of those that name it."""

    name: str
    at: int
    path: str = ""

    def options(self, how: str) -> list[str]:
        return [
            *(["-P", self.path] if self.path else []),
            "-e",
            f"inject={self.name}:{how}:when={self.at}",
        ]


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
    process: int = 0  # that of the stage, when nobody disturbed it
    calls: tuple[Call, ...] = ()
    wanted: str = ""

    def copy(self) -> Path:
        """The project, each time under the same path, so that every path in a trace is the same."""
        shutil.rmtree(self.place, ignore_errors=True)
        return Path(shutil.copytree(self.clean, self.place))

    def command(self) -> list[str]:
        return ["--quiet", self.stage, *ARGS.get(self.stage, ())]

    def traced(self, desk: Path, **options: Any) -> Done:
        """Run the stage under strace; a child that writes nothing may be a fork."""
        heavy = None if self.stage in BY_CHILDREN else self.forks.heavy
        return self.forks.traced(desk, *self.command(), heavy=heavy, **options)

    def instants(self) -> list[Instant]:
        """The calls of the stage's own process that write below the project."""
        return instants([call for call in self.calls if call.process == self.process], self.place)


@pytest.fixture(scope="module")
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """A copy of a project without what a stage left, and the
    trace of a run that nobody disturbs.
    """
    stage, place = request.param, tmp_path_factory.mktemp(request.param)
    forks = request.getfixturevalue("preparing" if stage == "prepare" else "stages")
    run = request.getfixturevalue("calibrated_run" if stage == "calibrate" else "tiny_run")
    clean = Path(shutil.copytree(run, place / "clean"))
    noun = LEAVES[stage]
    if stage in ("encode", "sum"):
        tiny.build_encoder(clean / "words")
        with (clean / "slmctl.yaml").open("a") as stream:
            stream.write("encode: {encoder: ./words}\n")
        for before in (
            (["encode"], ["predict", "gguf", "--split", "validation"]) if stage == "sum" else ()
        ):
            tiny.ok(forks.run(clean, *before))
    else:
        shutil.rmtree(clean / "runs" / noun)
    if stage == "publish":
        shutil.rmtree(clean / "registry")
    bare = Scene(forks, clean, place / "desk", stage)
    desk = bare.copy()
    done = bare.traced(desk, follow=True)
    assert done.code == 0, done.stderr
    (folder,) = desk.glob(f"runs/{noun}/[!.]*")
    wanted = told(artifact.load(folder))
    yield dataclasses.replace(bare, process=done.pid, calls=tuple(done.calls), wanted=wanted)
    shutil.rmtree(place)


def told(made: artifact.Artifact) -> str:
    """The digest; of predictions the answers, whose probabilities depend in
    the last digit on who is decoded beside.
    """
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
    """Run the stage, have strace do something at one of its
    calls, and check all that is promised.
    """
    desk = made.copy()
    earlier = {path: (path / "manifest.json").read_bytes() for path in whole(desk)}
    done = made.traced(desk, options=at.options(how))
    there = {path: (path / "manifest.json").read_bytes() for path in whole(desk)}
    assert earlier.items() <= there.items(), "an artifact that was there is not as it was"
    if how != KILL:
        assert done.code in (0, 6), (how, at, done.code, done.stderr)
        assert "Traceback" not in done.stderr, (how, at, done.stderr)
        assert done.code == 0 or re.search(r"disk|could not write", done.stderr), (
            how,
            at,
            done.stderr,
        )
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


of_prepare = pytest.mark.parametrize("made", ["prepare"], indirect=True)
of_every_stage = pytest.mark.parametrize(
    "made", [name for name in RUN if name != "prepare"], indirect=True
)


@of_prepare
def test_prepare_survives_a_kill_and_a_full_disk(made: Scene) -> None:
    assert len(made.instants()) > 20
    for seed, how in enumerate((KILL, FULL_DISK, BROKEN_DISK)):
        tries = chosen(made, 1, seed)
        assert each(made, how, tries) == len(tries)


@pytest.mark.slow
@of_every_stage
def test_every_stage_survives_at_any_instant(made: Scene) -> None:
    tried = hit = 0
    for seed, how in enumerate((KILL, FULL_DISK, BROKEN_DISK)):
        tries = chosen(made, 1, seed)
        tried, hit = tried + len(tries), hit + each(made, how, tries)
    assert hit >= 0.9 * tried - 1, f"strace hit {hit} of {tried}"


@pytest.mark.slow
@pytest.mark.parametrize("made", BY_CHILDREN, indirect=True)
def test_a_process_that_writes_for_a_stage_may_die(made: Scene) -> None:
    others = [call for call in made.calls if call.process != made.process]
    by_others = [at for at in instants(others, made.place, by_path=True) if ".gguf" in at.path]
    assert by_others, "no other process writes a .gguf file"
    for at in by_others if FULL else random.Random(1).sample(by_others, 2):
        desk = made.copy()
        died = made.traced(desk, follow=True, options=at.options(KILL))
        assert died.code == 6, (at, died.code, died.stderr)
        assert list(whole(desk))
        again = made.forks.run(desk, *made.command())
        assert again.code == 0, again.stderr
        assert artifact.load(Path(again.stdout.split()[-1])).digest == made.wanted


def order_of(made: Scene, calls: Sequence[Call]) -> None:
    """Every file is on the disk before the folder gets its name,
    and the name before anybody is told.
    """
    (final,) = made.place.glob(f"runs/{LEAVES[made.stage]}/[!.]*")
    draft = final.parent / f".draft-{final.name}"
    (rename,) = [
        k
        for k, call in enumerate(calls)
        if call.name.startswith("rename") and str(final) in call.paths
    ]

    def places(name: str, path: Path) -> list[int]:
        return [k for k, call in enumerate(calls) if name in call.name and str(path) in call.paths]

    files = [draft / entry.path for entry in artifact.load(final).manifest.files]
    for path in [*files, draft / ".draft-manifest.json"]:
        written, synced = places("write", path), places("sync", path)
        assert synced, f"{path} was never synced"
        in_order = max(written, default=-1) < max(synced) < rename
        assert in_order, f"{path} was written, synced and renamed in another order"
    folders, parents = places("sync", draft), places("sync", final.parent)
    assert folders and max(folders) < rename, "the folder was not synced before it was renamed"
    assert parents and max(parents) > rename, "the parent was not synced after the rename"


@of_prepare
def test_the_order_on_the_disk(made: Scene) -> None:
    order_of(made, made.calls)


@pytest.mark.slow
@of_every_stage
def test_the_order_on_the_disk_of_every_stage(made: Scene) -> None:
    order_of(made, made.calls)


@of_prepare
def test_the_check_of_the_order_can_fail(made: Scene) -> None:
    calls = [
        call
        for call in made.calls
        if not ("sync" in call.name and call.paths[0].endswith("train.jsonl"))
    ]
    with pytest.raises(AssertionError, match=r"train\.jsonl was never synced"):
        order_of(made, calls)
    with pytest.raises(AssertionError, match="was written, synced and renamed in another order"):
        order_of(made, made.calls[::-1])
