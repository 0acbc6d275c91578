"""The table of stages, and the one function that runs a stage.

Stages meet only on disk. Naming, hashing, atomicity, locking, skipping and verification are done
here, once; a stage module only reads its inputs, fills an empty folder and returns its metrics.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmctl import __version__, config, console, sensitive
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact, Manifest
from slmctl.errors import DataError, IntegrityError, MissingError, StageError, UsageError
from slmctl.metrics import gates
from slmctl.network import guard
from slmctl.releases import signing, targets
from slmctl.sources import snapshot

ASSISTANTS_WAIT_S = 600  # for the first of several processes to hash and rename what they made
TASK = "task.json"  # travels from artifact to artifact, see `task`


@dataclass(frozen=True)
class Role:
    """One input of a stage: what kinds may fill it, whether none or many may, and what asks for it."""

    name: str
    kinds: tuple[str, ...]
    optional: bool = False
    many: bool = False
    when: str = ""  # a field of the stage's section that asks for it


@dataclass(frozen=True)
class Stage:
    """A row of the table: what a stage takes, what it leaves, and where its code is."""

    name: str  # the subcommand, the section of the config, the last part of the module
    takes: tuple[Role, ...]
    leaves: str
    module: str  # imported only when the stage runs
    uses: tuple[str, ...] = ()  # packages whose versions go into the manifest
    version: int = 1  # raise it when the same recipe should give another result
    resumes: bool = False  # it goes on where an unfinished run of the same recipe stopped

    @property
    def id(self) -> str:
        return f"{self.name}/{self.version}"


_BASE, _PREPARED = Role("base", ("base",)), Role("prepared", ("prepared",))
_HF = ("torch", "transformers", "tokenizers")
STAGES = {
    stage.name: stage
    for stage in (
        Stage("pull", (), "base", "slmctl.stages.pull.pull", (*_HF, "gguf"), version=2),
        Stage("prepare", (_BASE,), "prepared", "slmctl.stages.prepare.prepare",
              ("tokenizers", "rapidfuzz", "pyarrow", "python-calamine", "sqlalchemy"), version=4),
        Stage(
            "finetune", (_BASE, _PREPARED), "adapter", "slmctl.stages.finetune.finetune",
            (*_HF, "trl", "peft", "unsloth"), version=3, resumes=True,
        ),
        Stage("merge", (_BASE, Role("adapter", ("adapter",))), "merged", "slmctl.stages.merge.merge", ("torch",),
              version=2),
        Stage(
            "quantize", (Role("merged", ("merged",)), _PREPARED, Role("adapter", ("adapter",), when="lora")), "gguf",
            "slmctl.stages.quantize.quantize", ("llama_cpp_python", "gguf", "torch", "transformers"), version=2,
        ),
        Stage(
            "predict",
            (
                Role("model", ("gguf", "base", "adapter", "merged", "published")),
                _PREPARED,
                Role("base", ("base",), optional=True),  # an adapter answers on top of it
            ),
            "predictions", "slmctl.stages.predict.predict", ("llama_cpp_python", "llguidance", *_HF, "peft"), version=5,
        ),
        Stage(
            "evaluate",
            (
                Role("predictions", ("predictions",), many=True),
                _PREPARED,
                Role("validation", ("predictions",), optional=True, many=True),  # to choose a file by
            ),
            "report", "slmctl.stages.evaluate.evaluate", ("scikit-learn",), version=4,
        ),
        Stage(
            "calibrate",
            (Role("predictions", ("predictions",)), Role("outside", ("predictions",), optional=True)),
            "policy", "slmctl.stages.calibrate.calibrate", ("numpy",),
        ),
        Stage(
            "publish",
            (
                _BASE, _PREPARED, Role("adapter", ("adapter",)), Role("merged", ("merged",)),
                Role("gguf", ("gguf",)), Role("report", ("report",)),
            ),
            "published", "slmctl.stages.publish.publish", ("llama_cpp_python", "gguf"), version=3,
        ),
    )
}  # fmt: skip
BY_KIND = {stage.leaves: stage for stage in STAGES.values()}

# Which extra brings a package that may be missing.
EXTRAS = {
    "torch": "train", "transformers": "train", "trl": "train", "peft": "train", "datasets": "train",
    "accelerate": "train", "safetensors": "train", "tokenizers": "train", "huggingface_hub": "train",
    "unsloth": "cuda", "llama_cpp": "gguf", "llguidance": "gguf", "gguf": "gguf", "sentencepiece": "gguf",
    "sklearn": "evaluate", "httpx": "evaluate", "starlette": "serve", "uvicorn": "serve",
    "httptools": "serve", "prometheus_client": "serve",
    "presidio_analyzer": "pii",
    "boto3": "publish", "oras": "publish", "model_signing": "sign", "OpenSSL": "sign",
    "pyarrow": "data", "python_calamine": "data", "sqlalchemy": "data", "psycopg": "data",
}  # fmt: skip


@dataclass
class Project:
    """A folder with a config, and the artifacts beside it."""

    root: Path
    config: config.Config
    wait: bool = True
    on_wait: Callable[[str], None] = lambda holder: None
    given: dict[str, Path] = field(default_factory=dict)  # paths named by the user, by role
    _found: dict[str, Artifact] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def sources(self) -> Path:
        """Where copies of sources lie that are no files."""
        return self.runs / ".sources"

    def forget(self) -> None:
        """Look for artifacts anew."""
        self._found.clear()


@dataclass(frozen=True)
class Ask:
    """What a stage is asked to do, resolved: its config, its inputs, its recipe and where that leads."""

    stage: Stage
    section: config.Section
    recipe: dict[str, Any]
    inputs: dict[str, Artifact | list[Artifact]]
    recipe_id: str
    path: Path

    @property
    def digests(self) -> dict[str, str | list[str]]:
        return _digests(self.inputs)


@dataclass(frozen=True)
class Outcome:
    """What running a stage gave."""

    artifact: Artifact
    current: bool  # it was there already
    seconds: float


def ask(
    project: Project,
    name: str,
    inputs: Mapping[str, Artifact | list[Artifact]] | None = None,
    section: config.Section | None = None,
) -> Ask:
    """Resolve a stage: every input found, every source hashed.

    Args:
        project: Where.
        name: Which stage.
        inputs: Artifacts for roles that should not be looked up.
        section: A config to use in place of the project's.

    Raises:
        IntegrityError: An input has not been made yet, or is damaged.
        UsageError: A source file does not exist.
    """
    stage = STAGES[name]
    section = section or config.stage_config(project.config, name)
    if isinstance(section, config.PrepareConfig):
        section = section.model_copy(update={"sources": snapshot.gathered(section.sources, project.sources)})
        if section.sensitive.key == project.root.resolve() / config.PSEUDONYM_KEY:
            sensitive.make_key(section.sensitive.key)  # its hash is part of the recipe: another key, other stand-ins
    filled = dict(inputs or {})
    for role in stage.takes:
        if role.name not in filled and not (
            role.optional or role.many or (role.when and not getattr(section, role.when))
        ):
            filled[role.name] = find(project, role)
    recipe = config.recipe(section)
    recipe_id = artifact.recipe_of(stage.id, recipe, _digests(filled))
    folder = recipe_id.removeprefix("sha256:")[:12]
    return Ask(stage, section, recipe, filled, recipe_id, project.runs / stage.leaves / folder)


def expected(project: Project, name: str) -> Ask:
    """What the config asks of a stage; for a report or a policy, that is one on the models that it is about."""
    if name not in ("evaluate", "calibrate"):
        return ask(project, name)

    def there(asked: Ask) -> Artifact:
        if not asked.path.exists():
            model = asked.inputs["model"].kind if isinstance(asked.inputs["model"], Artifact) else "a model"
            raise IntegrityError(f"{model} has not been measured with this config and data", hint=f"slmctl {name}")
        return artifact.load(asked.path)

    if name == "calibrate":
        return ask(project, name, _calibrated(project, there))
    return ask(project, name, _measured(project, project.config.evaluate.models, there))


def find(project: Project, role: Role) -> Artifact:
    """The artifact that fills a role: the path the user gave, else the one the config's recipes name.

    Raises:
        IntegrityError: It has not been made yet, or is damaged.
    """
    if role.name not in project._found:
        if role.name in project.given:
            project._found[role.name] = open_model(project.given[role.name], role.kinds)
        else:
            stage = BY_KIND[role.kinds[0]]
            path = expected(project, stage.name).path
            if not path.exists():
                raise IntegrityError(
                    f"no current artifact '{stage.leaves}': stage {stage.name} has not run with this config and data",
                    hint=f"slmctl run --until {stage.name}",
                )
            project._found[role.name] = artifact.load(path)
    return project._found[role.name]


def open_model(path: Path, kinds: Sequence[str]) -> Artifact:
    """An artifact folder, a published folder, a bare `.gguf` or an HF folder, as an artifact.

    Raises:
        IntegrityError: There is nothing at `path`, or it is damaged.
        UsageError: What is there is of another kind.
    """
    path = path.resolve()
    if not path.exists():
        raise IntegrityError(f"{path} does not exist", hint=f"a {' or '.join(kinds)} artifact is wanted there")
    if (path / artifact.MANIFEST).exists():
        found = artifact.load(path)
    elif path.suffix == ".gguf":
        found = artifact.foreign(path, "gguf")
    elif (path / "adapter_config.json").exists():
        found = artifact.foreign(path, "adapter")
    elif (path / "config.json").exists():
        found = artifact.foreign(path, "merged")
    else:
        raise IntegrityError(f"{path} is no artifact, no .gguf and no model folder: it has no {artifact.MANIFEST}")
    if found.kind not in kinds:
        raise UsageError(f"{path} is of kind '{found.kind}'", hint=f"wanted here: {', '.join(kinds)}")
    return found


def run(project: Project, asked: Ask) -> Outcome:
    """Run a stage, or find that its recipe has an artifact already.

    Raises:
        IntegrityError: An input is not what its manifest says.
        LockedError: Another process makes the same artifact and `project.wait` is false.
        MissingError: A package that the stage needs is not installed.
        StageError: The disk or the memory is full.
    """
    try:
        return _run(project, asked)
    finally:
        guard.begin_receipt()  # what went out for this stage, and for gathering its sources, is written down


def _run(project: Project, asked: Ask) -> Outcome:
    begun = time.monotonic()
    if _assists(asked) and not asked.path.exists():
        return Outcome(_assist(asked), False, time.monotonic() - begun)
    lock, keep = project.runs / ".locks" / f"{asked.stage.leaves}-{asked.path.name}", _keep(asked)
    if asked.path.exists() and not keep.exists():
        return Outcome(artifact.load(asked.path), True, time.monotonic() - begun)
    needs = [given.digest for given in _flat(asked.inputs)]
    locked = artifact.lock(lock, wait=project.wait, on_wait=project.on_wait, needs=needs)
    with spoken(asked.stage.name, project.runs), locked:
        if asked.path.exists():  # made while this process waited, or by one that was killed before it had tidied up
            shutil.rmtree(keep, ignore_errors=True)
            return Outcome(artifact.load(asked.path), True, time.monotonic() - begun)
        for given in _flat(asked.inputs):
            require_whole(given)
        made = _make(asked)
    return Outcome(made, False, time.monotonic() - begun)


def _make(asked: Ask) -> Artifact:
    started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    stage = asked.stage
    keep = _keep(asked)
    more = {"keep": keep} if stage.resumes else {}
    if stage.resumes:
        keep.mkdir(parents=True, exist_ok=True)
    with artifact.draft(asked.path) as place, spoken(stage.name, asked.path.parent):
        try:
            module = importlib.import_module(stage.module)
            metrics = module.run(asked.section, out=place, **more, **asked.inputs)
            _pass_on(TASK, asked.inputs, place)
            made = artifact.publish_draft(
                place,
                asked.path,
                lambda files, digest: Manifest(
                    kind=stage.leaves,
                    stage=stage.id,
                    digest=digest,
                    recipe_id=asked.recipe_id,
                    config=asked.recipe,
                    inputs=asked.digests,
                    files=files,
                    metrics=metrics,
                    environment=environment(stage.uses),
                    started=started,
                    seconds=round(time.monotonic() - begun, 3),
                ),
            )
            shutil.rmtree(keep, ignore_errors=True)
            return made
        finally:
            with contextlib.suppress(OSError):
                keep.rmdir()  # unless something in it is worth keeping


def _assists(asked: Ask) -> bool:
    """Whether this process is one of several that make the artifact together, and not the first."""
    return int(os.environ.get("RANK", "0")) > 0 or getattr(asked.section, "machine_rank", 0) > 0


def _assist(asked: Ask) -> Artifact:
    """Be one of several processes, or machines: do the work, leave the writing to the first."""
    console.set_level(-1)  # the first one speaks for all
    module = importlib.import_module(asked.stage.module)
    with tempfile.TemporaryDirectory() as place:
        try:
            module.run(asked.section, out=Path(place), keep=_keep(asked), **asked.inputs)
        except ModuleNotFoundError as error:
            raise missing(error, asked.stage.name) from error
    waited = time.monotonic()
    while not asked.path.exists() and time.monotonic() - waited < ASSISTANTS_WAIT_S:
        time.sleep(0.2)
    return artifact.load(asked.path)


def _keep(asked: Ask) -> Path:
    """Where a stage that resumes leaves what an unfinished run got done."""
    return asked.path.parent / f".resume-{asked.path.name}"


def missing(error: ModuleNotFoundError, what: str) -> MissingError | ModuleNotFoundError:
    """Turn a package that an extra brings into a sentence; anything else stays the bug it is."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return error
    extra = EXTRAS[package]
    return MissingError(
        f"{what} needs the package '{package}', which is not installed", hint=f"pip install 'slmctl[{extra}]'"
    )


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """Versions and machine, as a manifest records them; nothing is imported for it."""
    versions = {"slmctl": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions | {"machine": platform.machine()} | guard.receipt()


def _pass_on(name: str, inputs: Mapping[str, Artifact | list[Artifact]], place: Path) -> None:
    """Carry a file that every later artifact needs, unless the stage wrote its own."""
    for given in _flat(inputs):
        if not (place / name).exists() and (given.path / name).is_file():
            shutil.copyfile(given.path / name, place / name)


def require_whole(given: Artifact, *, hint: str = "") -> None:
    """Read every byte of an artifact before it is used.

    Args:
        given: What will be used.
        hint: What to type where it is damaged; by default how its stage makes it again.

    Raises:
        IntegrityError: It is not what its manifest says.
    """
    faults = artifact.verify(given)
    if faults:
        raise IntegrityError(
            f"{given.path} ({given.kind}) is damaged: {'; '.join(faults)}",
            hint=hint or f"remove it and run its stage again: rm -r {given.path}",
        )


def _flat(inputs: Mapping[str, Artifact | list[Artifact]]) -> list[Artifact]:
    result: list[Artifact] = []
    for value in inputs.values():
        result += value if isinstance(value, list) else [value]
    return result


def _digests(inputs: Mapping[str, Artifact | list[Artifact]]) -> dict[str, str | list[str]]:
    return {
        role: [one.digest for one in value] if isinstance(value, list) else value.digest
        for role, value in inputs.items()
    }


def gather_sources(project: Project) -> None:
    """Copy the sources that are no files, anew: queries, data sets of the hub, pipes, standard input.

    Raises:
        LockedError: Another process copies them and `project.wait` is false.
        NetworkError: A host could not be reached.
        And what `gather.gather` raises.
    """
    sources = project.config.prepare.sources
    if all(snapshot.is_file(source) for source in sources):
        return
    lock = project.runs / ".locks" / "sources"
    with artifact.lock(lock, wait=project.wait, on_wait=project.on_wait), spoken("gather", project.sources):
        snapshot.gather(sources, project.sources)
    project.forget()


def require_no_network(project: Project, stages: Sequence[str]) -> None:
    """With `--offline`, refuse at once what one of these stages would be refused later.

    Raises:
        NetworkError: The base, a source, training, or where releases go needs the network.
    """
    if not guard.is_forbidden():
        return
    settings = project.config
    if "pull" in stages and config.is_remote(settings.base) and not ask(project, "pull").path.exists():
        guard.require(f"base {settings.base}", hint="run `slmctl pull` once without --offline, or name a path")
    for source in settings.prepare.sources if "prepare" in stages else []:
        if host := snapshot.host_of(source, project.sources):
            guard.require(f"a source on {host}", hint="export it once, and name the file as path")
    if "finetune" in stages and settings.finetune.report_to:
        guard.require(f"finetune.report_to ({', '.join(settings.finetune.report_to)})")
    if "finetune" in stages and settings.finetune.machines > 1:
        guard.require("finetune.machines")
    if "publish" in stages:
        with spoken("publish", project.root):
            targets.require_reachable(settings.publish.to, _settings(project))


@contextlib.contextmanager
def spoken(what: str, place: Path) -> Iterator[None]:
    """Turn what any work may meet into a sentence: a missing package, a full memory, a full disk."""
    try:
        with _OfRust():
            yield
    except ModuleNotFoundError as error:
        raise missing(error, what) from error
    except (MemoryError, RuntimeError) as error:
        # torch's own is a RuntimeError, on a CPU with nothing but its words
        named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not named and "can't allocate memory" not in str(error):
            raise
        raise StageError(f"{what} ran out of memory", hint="a smaller batch or a smaller base") from None
    except OSError as error:
        if error.errno in _FULL:
            raise StageError(f"{what}: the disk is full ({place})", hint="df -h .") from None
        if error.errno == errno.EIO:
            raise StageError(f"{what}: the disk could not be read or written ({place})", hint="dmesg | tail") from None
        raise


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _OfRust(contextlib.AbstractContextManager[None]):
    """Makes an OSError of what tokenizers and kin raise as a bare Exception that has its number in words."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        told = re.search(r"\(os error (\d+)\)", str(error)) if type(error) is Exception else None
        if told and int(told[1]) in (*_FULL, errno.EIO):
            raise OSError(int(told[1]), os.strerror(int(told[1]))) from error


# Chains of stages


@dataclass(frozen=True)
class Endpoint:
    """A general model to measure beside: where it is asked, its name there, and the examples in its prompt."""

    url: str
    model: str
    shots: int | None = None  # None: as many as the task suggests


def evaluate(
    project: Project, models: Sequence[str | Path], split: str | None = None, against: Endpoint | None = None
) -> Outcome:
    """Answer the held-out rows with every model, then report. Each model's answers are kept on their own.

    Args:
        project: Where.
        models: Kinds of this pipeline (base, adapter, merged, gguf), or paths of models.
        split: Rows to answer, when not those of the config.
        against: A general model that answers the same rows, without examples and with.

    Raises:
        What `ask` and `run` raise.
    """
    inputs = _measured(project, models, lambda asked: run(project, asked).artifact, split)
    for shots in (0, against.shots) if against is not None else ():
        assert against is not None
        asked = ask(project, "predict", {"model": endpoint(project, against, shots)}, _predict_section(project, split))
        inputs["predictions"] = [*inputs["predictions"], run(project, asked).artifact]
    return run(project, ask(project, "evaluate", inputs))


def _measured(
    project: Project, models: Sequence[str | Path], answers: Callable[[Ask], Artifact], split: str | None = None
) -> dict[str, Any]:
    """What a report is made of: the answers of every model, and those of the GGUF files where one is to be chosen."""
    inputs = {"predictions": [answers(asked) for model in models for asked in predictions_of(project, model, split)]}
    if project.config.evaluate.choose is not None and "gguf" in models:
        inputs["validation"] = [answers(asked) for asked in predictions_of(project, "gguf", "validation")]
    return inputs


def calibrate(project: Project) -> Outcome:
    """Answer the calibration rows with the file that is served, then fit the policy.

    Raises:
        DataError: The data set has too few calibration rows.
        And what `ask` and `run` raise.
    """
    inputs: dict[str, Artifact | list[Artifact]] = {}
    if "predictions" in project.given:
        role = STAGES["calibrate"].takes[1]
        inputs = {role.name: find(project, role)} if role.name in project.given else {}
    else:
        if not find(project, _PREPARED).metrics["calibration"]:
            raise DataError("the data set has no calibration rows", hint="prepare.splits.calibration: 0.15")
        inputs = _calibrated(project, lambda asked: run(project, asked).artifact)
    return run(project, ask(project, "calibrate", inputs))


def _calibrated(project: Project, answers: Callable[[Ask], Artifact]) -> dict[str, Artifact | list[Artifact]]:
    """What a policy is made of: the answers of the served file on calibration rows, and on validation rows too where
    some of them may be out of scope."""
    section = config.stage_config(project.config, "calibrate")
    assert isinstance(section, config.CalibrateConfig)
    type = section.type or _served_type(project)
    splits = {"predictions": "calibration"} | ({"outside": "validation"} if section.out_of_scope else {})
    return {role: answers(predictions_of(project, "gguf", split, type)[0]) for role, split in splits.items()}


def _served_type(project: Project) -> str:
    """The type of the GGUF file that a release of this project is served with: the chosen one, else the smallest."""
    files = find(project, Role("gguf", ("gguf",))).metrics["files"]
    if project.config.evaluate.choose is not None:
        choice = find(project, Role("report", ("report",))).metrics["choice"]["model"]
        if choice in files:
            return str(choice)
    return str(min(files, key=lambda name: files[name]["size"]))


def endpoint(project: Project, against: Endpoint, shots: int | None) -> Artifact:
    """An endpoint as a model that `predict` can ask: a small file that says which, so that its answers are kept too."""
    wanted = artifact.canonical({"url": against.url, "model": against.model, "shots": shots})
    path = project.runs / ".endpoints" / f"{artifact.sha256_bytes(wanted)[7:19]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.{os.getpid()}")
        half.write_bytes(wanted)
        os.replace(half, path)
    return artifact.foreign(path, "endpoint")


def _predict_section(project: Project, split: str | None, type: str | None = None) -> config.Section:
    section = config.stage_config(project.config, "predict")
    return section.model_copy(update={"type": type} | ({"split": split} if split else {}))


def predictions_of(project: Project, model: str | Path, split: str | None = None, type: str | None = None) -> list[Ask]:
    """What to ask `predict` for one model: once, or once a GGUF file when it has several."""
    role = STAGES["predict"].takes[0]
    if isinstance(model, str) and model in role.kinds:
        found = find(project, Role(model, (model,)))
    else:
        found = open_model(Path(model), role.kinds)
    inputs: dict[str, Artifact | list[Artifact]] = {"model": found}
    if found.kind == "adapter":
        inputs["base"] = base_of(project, found)
    types: list[str | None] = [None]
    if found.kind in ("gguf", "published"):
        listed = found.metrics.get("files")
        types = [type] if type else list(listed) if listed else [None]
    return [ask(project, "predict", inputs, _predict_section(project, split, name)) for name in types]


def base_of(project: Project, adapter: Artifact) -> Artifact:
    """The base that an adapter was trained on.

    Raises:
        IntegrityError: It is not among this project's artifacts.
    """
    wanted = adapter.manifest.inputs.get("base")
    if wanted is None:  # an adapter that slmctl did not train: it is taken to belong to the project's base
        return find(project, Role("base", ("base",)))
    for path in sorted((project.runs / "base").glob("*/" + artifact.MANIFEST)):
        found = artifact.load(path.parent)
        if found.digest == wanted:
            return found
    raise IntegrityError(f"the base of {adapter.path} is not below {project.runs}", hint="slmctl pull")


def publish(project: Project) -> tuple[Outcome, str, bool]:
    """Check the gates, lay out the release, and send it to where releases go.

    Returns:
        The outcome of the stage, where the release lies, and whether it was there already.

    Raises:
        GateError: A gate failed, no report measured a file, or the release would give something away.
        IntegrityError: The target has another release under the same version.
    """
    outcome, shipment = release(project)
    with _target(project, "publish") as target:
        made = targets.plan(target, project.config.publish.to, shipment)
        console.say(f"  {console.size(made.size)} to send, {len(made.missing)} of {len(shipment.items)} files")
        targets.deliver(target, made)
        where = target.where(shipment, shipment.manifest).rpartition("/")[0]
    return outcome, where, made.there and not made.missing


def plan_of_publish(project: Project) -> tuple[Outcome, dict[str, Any]]:
    """What `publish` would send where, as JSON values; the release is laid out, and nothing is sent."""
    outcome, shipment = release(project)
    with _target(project, "publish --plan") as target:
        made = targets.plan(target, project.config.publish.to, shipment)
        verdicts = enforce_gates(project, find(project, Role("report", ("report",))))
        lacking = {item.name for item in made.missing}
        return outcome, {
            "to": made.to,
            "visibility": target.visibility,
            "license": outcome.artifact.metrics["license"],
            "hosts": list(target.hosts),
            "there": made.there,
            "bytes_to_send": made.size,
            "signed": artifact.SIGNATURE in {item.name for item in shipment.items},
            "gates": [verdict.text for verdict in verdicts],
            "files": [
                {"file": one.name, "size": one.size, "sha256": one.sha256, "to": target.where(shipment, one),
                 "send": one.name in lacking}
                for one in shipment.items
            ],
        }  # fmt: skip


def release(project: Project) -> tuple[Outcome, targets.Shipment]:
    """A release that may go out: its gates passed, laid out, searched for what must not leave, signed."""
    enforce_gates(project, find(project, Role("report", ("report",))))
    outcome = run(project, ask(project, "publish"))
    section = project.config.publish
    with spoken("publish", project.runs):
        module = importlib.import_module(STAGES["publish"].module)
        module.require_allowed(outcome.artifact, section)
        signature = None
        if section.key is not None:
            signature = signing.sign(outcome.artifact, section.key, project.runs)
    asked = [gate.model_dump(mode="json", exclude_none=True) for gate in project.config.gates]
    return outcome, targets.shipment(outcome.artifact, signature=signature, gates=asked)


@contextlib.contextmanager
def _target(project: Project, what: str) -> Iterator[targets.Target]:
    to = project.config.publish.to
    with (
        spoken(what, project.root),
        guard.written_down(project.root, what),
        targets.opened(to, _settings(project), purpose=what) as target,
    ):
        yield target


def _settings(project: Project) -> targets.Settings:
    section = project.config.publish
    return targets.Settings(project.root, section.public, section.endpoint, tuple(section.hosts))


def enforce_gates(project: Project, report: Artifact, *, only_measured: bool = False) -> list[gates.Verdict]:
    """Every gate of the config against a report.

    Args:
        project: Where the gates stand.
        report: What was measured.
        only_measured: Leave out gates about models that this report did not measure.

    Raises:
        GateError: At least one failed.
    """
    measured = {*report.metrics["models"], *report.metrics["baselines"]}
    measured |= {"chosen"} if report.metrics["choice"] else set()
    wanted = [
        gate
        for gate in project.config.gates
        if not only_measured or {gate.model, gate.against or gate.model} <= measured
    ]
    return gates.enforce(wanted, report.metrics)
