"""Nothing torn: killed or failed at any write, sync or rename of any stage, what has a manifest is whole.

strace ends the process at the k-th call that writes below the project, or fails that call as a full or a broken disk
does. Then: no folder with a manifest is anything but whole, what was there before is as it was, and running the
stage again gives the digest of a run that nobody disturbed.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import FULL
from forks import WRITES, Call, Done, Forks

from slmctl import artifact, pipeline

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

# What each stage is told, to be quick; one that is not listed is run as it is.
ARGS = {
    "finetune": ("--set", "finetune.steps=8", "--set", "finetune.validate_every=4"),
    "quantize": ("--set", "quantize.types=[Q8_0]"),
    "predict": ("gguf", "--type", "Q8_0", "--split", "validation"),
}
BY_CHILDREN = ("quantize",)  # stages whose files are written by processes of their own
KILL, FULL_DISK, BROKEN_DISK = "signal=SIGKILL", "error=ENOSPC", "error=EIO"


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

    def instants(self) -> list[int]:
        """Numbers of the calls of the stage's own process, from 1, that write below the project."""
        own = [call for call in self.calls if call.process == self.calls[0].process]
        return [k for k, call in enumerate(own, 1) if call.touches(self.place)]


def scene(forks: Forks, tiny_run: Path, place: Path, stage: str) -> Scene:
    """A copy of `tiny_run` without what a stage left, and the trace of a run that nobody disturbs."""
    clean = Path(shutil.copytree(tiny_run, place / "clean"))
    noun = pipeline.STAGES[stage].leaves
    shutil.rmtree(clean / "runs" / noun)
    if stage == "publish":
        shutil.rmtree(clean / "registry")
    made = Scene(forks, clean, place / "desk", stage, (), "")
    desk = made.copy()
    done = forks.traced(desk, *made.command())
    assert done.code == 0, done.stderr
    (folder,) = desk.glob(f"runs/{noun}/[!.]*")
    return Scene(forks, clean, place / "desk", stage, tuple(done.calls), artifact.load(folder).digest)


def whole(desk: Path) -> Iterator[Path]:
    """Every folder with a manifest, drafts too; each must be whole."""
    for path in sorted(desk.rglob("manifest.json")):
        assert artifact.verify_folder(path.parent) == [], path
        yield path.parent


def disturb(made: Scene, how: str, at: int) -> Done:
    """Run the stage, have strace do something at its k-th call, and check all that is promised."""
    desk = made.copy()
    earlier = {path: (path / "manifest.json").read_bytes() for path in whole(desk)}
    done = made.forks.traced(desk, *made.command(), options=("-e", f"inject={WRITES}:{how}:when={at}"))
    there = {path: (path / "manifest.json").read_bytes() for path in whole(desk)}
    assert earlier.items() <= there.items(), "an artifact that was there is not as it was"
    if how != KILL:
        assert done.code in (0, 6), (how, at, done.code, done.stderr)
        assert "Traceback" not in done.stderr, (how, at, done.stderr)
        assert done.code == 0 or re.search(r"disk|could not write", done.stderr), (how, at, done.stderr)
    again = made.forks.run(desk, *made.command())
    assert again.code == 0, (how, at, again.stderr)
    assert artifact.load(Path(again.stdout.split()[-1])).digest == made.wanted, (how, at)
    left = [path for path in desk.glob("runs/*/.*") if path.parent.name[0] != "."]
    assert not left, (how, at, left)
    assert all(path.parts for path in whole(desk))
    return done


def each(made: Scene, how: str, instants: list[int]) -> int:
    """Disturb a stage at each of these instants; how many of them hit a call below the project."""
    hits = 0
    for at in instants:
        done = disturb(made, how, at)
        hit = [call for call in done.calls if call.injected and call.touches(made.place)]
        hits += bool(hit) or (how == KILL and done.code == -9)
    return hits


def chosen(made: Scene, count: int, seed: int) -> list[int]:
    """All instants at full size, else some of them, the rename among them."""
    every = made.instants()
    if FULL or len(every) <= count:
        return every
    return sorted({*random.Random(seed).sample(every, count - 1), *every[-2:-1]})


def test_prepare_survives_a_kill_and_a_full_disk(preparing: Forks, tiny_run: Path, before: Path) -> None:
    made = scene(preparing, tiny_run, before, "prepare")
    assert len(made.instants()) > 20
    for seed, how in enumerate((KILL, FULL_DISK, BROKEN_DISK)):
        instants = chosen(made, 2, seed)
        assert each(made, how, instants) >= len(instants) - 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", [name for name in pipeline.STAGES if FULL or name != "prepare"])
def test_every_stage_survives_at_any_instant(stages: Forks, tiny_run: Path, before: Path, stage: str) -> None:
    made = scene(stages, tiny_run, before, stage)
    tried = hit = 0
    for seed, how in enumerate((KILL, FULL_DISK, BROKEN_DISK)):
        instants = chosen(made, 1 if stage in BY_CHILDREN else 2, seed)
        tried, hit = tried + len(instants), hit + each(made, how, instants)
    assert hit >= 0.9 * tried - 1, f"strace hit {hit} of {tried}"


@pytest.mark.slow
@pytest.mark.parametrize("stage", BY_CHILDREN)
def test_a_process_that_writes_for_a_stage_may_die(stages: Forks, tiny_run: Path, before: Path, stage: str) -> None:
    made = scene(stages, tiny_run, before, stage)
    done = stages.traced(made.copy(), *made.command(), follow=True)
    own = done.calls[0].process
    written: dict[str, int] = {}
    for call in done.calls:
        if call.process != own and call.touches(made.place):
            written[call.paths[0]] = written.get(call.paths[0], 0) + 1
    assert any(path.endswith(".gguf") for path in written)
    instants = [(path, k) for path, count in written.items() for k in range(1, count + 1)]
    for path, at in instants if FULL else random.Random(1).sample(instants, 2):
        desk = made.copy()
        options = ("-P", path, "-e", f"inject={WRITES}:{KILL}:when={at}")
        died = stages.traced(desk, *made.command(), follow=True, options=options)
        assert died.code == 6, (path, at, died.code, died.stderr)
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
        path = str(draft / entry.path) if entry is not None else str(draft / ".manifest.json")
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
@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_the_order_on_the_disk_of_every_stage(stages: Forks, tiny_run: Path, before: Path, stage: str) -> None:
    made = scene(stages, tiny_run, before, stage)
    done = stages.traced(made.copy(), *made.command(), follow=True)
    (final,) = made.place.glob(f"runs/{pipeline.STAGES[stage].leaves}/[!.]*")
    order_of(done.calls, final)


def test_the_check_of_the_order_can_fail(preparing: Forks, tiny_run: Path, before: Path) -> None:
    made = scene(preparing, tiny_run, before, "prepare")
    (final,) = made.place.glob("runs/prepared/[!.]*")
    calls = [call for call in made.calls if not ("sync" in call.name and call.paths[0].endswith("train.jsonl"))]
    with pytest.raises(AssertionError, match=r"train\.jsonl was never synced"):
        order_of(calls, final)
    with pytest.raises(AssertionError, match="was written, synced and renamed in another order"):
        order_of(list(reversed(made.calls)), final)
