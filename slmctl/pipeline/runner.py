"""The one function that runs a stage.

Stages meet only on disk. Naming, hashing, atomicity, locking, skipping and verification are done
here, once; a stage module only reads its inputs, fills an empty folder and returns its metrics.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slmctl import __version__, config, console, hardware
from slmctl.artifacts import artifact, atomic, locks
from slmctl.artifacts.artifact import Artifact, Manifest, require_whole
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError, SlmctlError, StageError
from slmctl.network import guard
from slmctl.pipeline import stage_log
from slmctl.pipeline.graph import Get, Project, StageRequest
from slmctl.pipeline.system_errors import missing, spoken

LEAST_ADDRESS_SPACE = 1_000_000_000  # bytes; numpy, SciPy and scikit-learn map some 0.8 GB
ASSISTANTS_WAIT_S = 600  # for the first of several processes to hash and rename what they made
REFUSED = ".refused-"  # prefix of a folder with the evidence of a stage that refused its input
TASK = "task.json"  # travels from artifact to artifact, see `task`


@dataclass(frozen=True)
class Outcome:
    """The artifact of a stage that was run, or that was current."""

    artifact: Artifact
    current: bool  # it was there already
    seconds: float


def make(project: Project, name: str) -> Outcome:
    """Run a stage of the pipeline by its name, after its `before`.

    Raises:
        StageError: The process may not have the address space that libraries map when they are
            imported.
        What `run`, and `before` and `request` of the stage raise.
    """
    # below it native code hangs or ends the process
    if (space := hardware.address_space()) < LEAST_ADDRESS_SPACE:
        raise StageError(
            f"this process may have {console.size(space)} of address space, and a stage maps "
            f"{console.size(LEAST_ADDRESS_SPACE)}",
            hint="ulimit -v unlimited; to limit the memory in use, run it in a container",
        )
    begun, stage = time.monotonic(), project.stage(name)
    stage.before()
    outcome = run(project, stage.request(get=maker(project)))
    return replace(outcome, seconds=time.monotonic() - begun)


def maker(project: Project) -> Get:
    """A function that makes the artifacts of requests, or finds that they are there."""
    return lambda request: run(project, request).artifact


def run(project: Project, request: StageRequest, **options: Any) -> Outcome:
    """Run a stage, or find that its recipe has an artifact already.

    Args:
        request: The stage, its section and its inputs.
        options: Further keywords of the stage's `run`; no part of the recipe.

    Raises:
        IntegrityError: An input differs from its manifest.
        LockedError: Another process makes the same artifact and `project.wait` is false.
        MissingError: A package that the stage needs is not installed.
        StageError: The disk or the memory is full.
    """
    try:
        return _run(project, request, {**request.stage.options(), **options})
    finally:
        guard.begin_receipt()  # traffic so far was of this stage and of gathering its sources


def _run(project: Project, request: StageRequest, options: Mapping[str, Any]) -> Outcome:
    begun = time.monotonic()
    # of several processes that make the artifact together
    is_first = os.environ.get("RANK", "0") == "0"
    if not is_first and not request.path.exists():
        return Outcome(_assist(request), False, time.monotonic() - begun)
    lock, keep = (
        project.runs / ".locks" / f"{request.stage.leaves}-{request.path.name}",
        resume_folder(request),
    )
    if request.path.exists() and not keep.exists():
        return Outcome(artifact.load(request.path), True, time.monotonic() - begun)
    needs = [source.digest for source in request.sources]
    locked = locks.lock(lock, wait=project.wait, on_wait=project.on_wait, needs=needs)
    with spoken(request.stage.name, project.runs), locked:
        # made while this process waited, or by one that was killed before it had tidied up
        if request.path.exists():
            shutil.rmtree(keep, ignore_errors=True)
            return Outcome(artifact.load(request.path), True, time.monotonic() - begun)
        with stage_log.kept(request), _interruption(request):
            for source in request.sources:
                require_whole(source)
            made = _make(request, options)
    return Outcome(made, False, time.monotonic() - begun)


@contextlib.contextmanager
def _interruption(request: StageRequest) -> Iterator[None]:
    """Add to an interruption what the stage keeps, unless it says itself how far it came."""
    try:
        yield
    except KeyboardInterrupt as stop:
        resumes = resume_folder(request).is_dir() and any(resume_folder(request).iterdir())
        kept = "its last checkpoint and the finished stages" if resumes else "the finished stages"
        anew = "; with other settings a training begins anew" if resumes else ""
        came = str(stop) or f"in {request.stage.name}; {kept} are kept"
        raise KeyboardInterrupt(f"{came}\n  the same command goes on from there{anew}") from None


def _make(request: StageRequest, options: Mapping[str, Any]) -> Artifact:
    started, begun = console.timestamp(), time.monotonic()
    stage = request.stage
    keep = resume_folder(request)
    more = {"keep": keep} if stage.resumes else {}
    if stage.resumes:
        keep.mkdir(parents=True, exist_ok=True)
    before = {path: artifact.state(path) for path in config.contents(request.section)}
    with artifact.draft(request.path) as place, spoken(stage.name, request.path.parent):
        try:
            metrics = _metrics(request, place, more | dict(options))
            _require_unchanged(request, before)
            _pass_on(TASK, request, place)
            made = artifact.seal(
                place,
                request.path,
                lambda files, digest: Manifest(
                    kind=stage.leaves,
                    stage=stage.id,
                    digest=digest,
                    recipe_id=request.recipe_id,
                    config=request.recipe,
                    inputs=request.digests,
                    files=files,
                    metrics=metrics,
                    environment=environment(stage.uses),
                    started=started,
                    seconds=round(time.monotonic() - begun, 3),
                ),
            )
        finally:
            with contextlib.suppress(OSError):
                keep.rmdir()  # unless something in it is worth keeping
    # after the artifact has its name: a kill before it must not cost both
    shutil.rmtree(keep, ignore_errors=True)
    for refused in request.path.parent.glob(REFUSED + "*"):
        shutil.rmtree(refused, ignore_errors=True)
    return made


def _require_unchanged(request: StageRequest, before: Mapping[Path, object]) -> None:
    """Refuse a result that is made of other files than those that the recipe hashed."""
    changed = [path.name for path, state in before.items() if artifact.state(path) != state]
    # the hash is older than `before`
    if changed or config.recipe(request.section) != request.recipe:
        raise DataError(
            f"{changed[0] if changed else 'a source'} changed while {request.stage.name} read it",
            hint="run it again when no program writes there",
        )


def _metrics(request: StageRequest, place: Path, more: Mapping[str, Any]) -> JsonObject:
    """Run a stage; returns its metrics. If it refuses its input, keep its
    evidence files and name them in the hint.
    """
    try:
        return request.stage.run(request, out=place, **more)
    except SlmctlError as error:
        if error.evidence:
            kept = request.path.with_name(REFUSED + request.path.name)
            with atomic.folder(kept, replace=True) as draft:
                for name in error.evidence:
                    shutil.copyfile(place / name, draft / name)
            error.hint = "; ".join(filter(None, (f"see {kept / error.evidence[0]}", error.hint)))
        raise


def _assist(request: StageRequest) -> Artifact:
    """Run the stage as one of several processes; the first one writes the artifact."""
    console.set_level(-1)  # the first one speaks for all
    with tempfile.TemporaryDirectory() as place:
        try:
            request.stage.run(request, out=Path(place), keep=resume_folder(request))
        except ModuleNotFoundError as error:
            raise missing(error, request.stage.name) from error
    waited = time.monotonic()
    while not request.path.exists() and time.monotonic() - waited < ASSISTANTS_WAIT_S:
        time.sleep(0.2)
    return artifact.load(request.path)


def resume_folder(request: StageRequest) -> Path:
    """The folder in which a stage that resumes keeps the work of an unfinished run."""
    return request.path.parent / f".resume-{request.path.name}"


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """Versions and machine, as a manifest records them; nothing is imported for it."""
    versions = {"slmctl": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return (
        versions
        | {"machine": platform.machine(), "processor": hardware.processor()}
        | guard.receipt()
    )


def _pass_on(name: str, request: StageRequest, place: Path) -> None:
    """Carry a file that every later artifact needs, unless the stage wrote its own."""
    for source in request.sources:
        if not (place / name).exists() and (source.path / name).is_file():
            shutil.copyfile(source.path / name, place / name)
