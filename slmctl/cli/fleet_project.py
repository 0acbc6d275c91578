"""`slmctl init fleet-router`: a project that learns which model of a registry a text is for.

Its rows are those that the models were trained and measured on, read where they lie and with their splits: a test row
of a specialist is a test row of the router.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slmctl import config
from slmctl.artifacts.artifact import Artifact
from slmctl.cli import base_proposal, data_project, project_config, project_template
from slmctl.cli.base_proposal import BaseProposal
from slmctl.cli.project_template import SCHEMA_FILE, SCHEMA_LINE, project_name
from slmctl.config import FILENAME, NO_TASK, PRODUCTION
from slmctl.config.serve_section import FLEET_NAME
from slmctl.console import percent
from slmctl.errors import SlmctlError, UsageError
from slmctl.metrics.error_threshold import MIN_ROWS
from slmctl.model_files.gguf_choice import gguf_file
from slmctl.pipeline import model_lookup, released
from slmctl.releases import registry
from slmctl.reports.html_page import count
from slmctl.sources.first_look import FirstLook, raw_data
from slmctl.sources.first_look.column_names import suggests
from slmctl.task.cleaning import STEPS
from slmctl.task.contract import Task
from slmctl.task.conversation_formats import NEEDS
from slmctl.task.records import SPLITS

TEMPLATE = "fleet-router"
AUTO = "auto"  # name of the router for clients
SYSTEM = "Read the text and name the task that it is for."
MAX_LENGTH = 1024  # tokens, the default of finetune.max_length
TYPE = "Q8_0"


@dataclass(frozen=True)
class Specialist:
    """A release in production, the project that made it, and its training data.

    Attributes:
        rows: Number of rows of each split that has some.
        policy: The newest policy for the file that serve takes; None where nothing was calibrated.
    """

    name: str
    root: Path
    data: Artifact
    rows: Mapping[str, int]
    policy: Path | None


@dataclass(frozen=True)
class FleetProject:
    """All that the project is written from.

    Attributes:
        address: The registry as `dir:FOLDER`.
        nothing: The keys of each source of rows that are for no task.
        notes: Sentences for the person.
    """

    address: Path
    specialists: Sequence[Specialist]
    nothing: Sequence[Mapping[str, object]]
    base: BaseProposal
    notes: Sequence[str] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """The labels of the router."""
        return [each.name for each in self.specialists] + ([NO_TASK] if self.nothing else [])

    def rows(self, split: str) -> int:
        """Rows of a split, without those for no task."""
        return sum(each.rows.get(split, 0) for each in self.specialists)


def make(
    address: str, directory: Path, *, named: Mapping[str, Path], nothing: Sequence[str], column: str | None,
    base: str | None,
) -> FleetProject:  # fmt: skip
    """The project for the releases that a registry has in production.

    Args:
        address: The registry, `dir:FOLDER`.
        directory: The folder that paths are relative to.
        named: Folders of projects by the name of their release.
        nothing: Files and folders of rows that are for no task.
        column: The column of these that is read; chosen by the data when left out.
        base: A name of the catalogue or a value of `base`; that of the smallest specialist when left out.

    Raises:
        UsageError: There are not two releases, the data of one is not here, or a name does not fit.
    """
    if not address.startswith("dir:"):
        raise UsageError(f"--from is '{address}', and a fleet is in a registry", hint="--from dir:FOLDER")
    root, _ = registry.parse(address.partition("#")[0], directory)
    releases, notes = _production(root), list[str]()
    for name in sorted(releases):
        labels = set(Task.read(releases[name].path).labels) - {NO_TASK}
        if labels and labels <= releases.keys() - {name}:
            notes.append(f"{name} is left out: its labels are names of other releases, so it is a router itself")
            del releases[name]
    for name in named:
        if name not in releases:
            raise UsageError(f"--project names '{name}', which is not in production in {root}: {', '.join(releases)}")
    if len(releases) < 2:
        raise UsageError(
            f"{root} has {count(len(releases), 'release')} in production, and a router chooses among two or more",
            hint="slmctl promote PROJECT@VERSION --tag production",
        )
    for name in releases:
        if name == NO_TASK or not FLEET_NAME.fullmatch(name):
            raise UsageError(f"the release '{name}' cannot be a label of a router: publish it under another name")
    places = project_places([root.parent, directory.resolve(), directory.resolve().parent])
    specialists = [_specialist(name, release, named.get(name), places) for name, release in releases.items()]
    if not nothing:
        notes.append(
            "there are no rows that are for no task (--none FILE), so every text is given to one of the models, those "
            "for none too: only a policy holds them back"
        )
    sources = [_for_no_task(source, directory, column) for source in nothing]
    return FleetProject(root, specialists, sources, _base(base, specialists, releases), notes)


def _production(root: Path) -> dict[str, Artifact]:
    """The releases in production by the name of their project."""
    names = sorted(tag.project for tag in registry.tags(root) if tag.name == PRODUCTION)
    return {name: registry.find(root, f"{name}@{PRODUCTION}") for name in names}


def project_places(around: Sequence[Path]) -> list[Path]:
    """Folders that may be projects with data: some folders, and those in them."""
    places = [place for near in around for place in (near, *sorted(near.glob("[!.]*/")))]
    return [place for place in dict.fromkeys(places) if (place / "runs" / "prepared").is_dir()]


def _specialist(name: str, release: Artifact, folder: Path | None, places: Sequence[Path]) -> Specialist:
    """A release with the project that made it.

    Raises:
        UsageError: Its data set is in none of the folders.
    """
    where = "in no folder beside the registry or here" if folder is None else f"not below {folder}"
    hint = f"name the folder of the project that made it: --project {name}=FOLDER"
    place, data = made_of(name, release, places if folder is None else [folder], where=where, hint=hint)
    rows = {split: int(data.metrics[split]) for split in SPLITS if data.metrics[split]}
    policy = model_lookup.newest_policy([place], gguf_file(release).sha256)  # of the file that serve takes
    return Specialist(name, place, data, rows, policy)


def made_of(
    name: str, release: Artifact, places: Sequence[Path], *, where: str, hint: str
) -> tuple[Path, Artifact]:  # fmt: skip
    """The project that made a release, one of some folders, and the data set that it was trained on.

    Args:
        where, hint: Of the error, where the data set is not and what to do.

    Raises:
        UsageError: It is in none of them.
    """
    for place in places:
        data = released.data_set(place, release)
        if data is not None:
            return place, data
    digest = str(release.manifest.inputs.get("prepared", "")).removeprefix("sha256:")[:12]
    version = model_lookup.served_name(release, release.path).version
    raise UsageError(
        f"the training data of '{name}' {version} (runs/prepared, digest {digest}) is {where}",
        hint=hint,
    )


def _base(base: str | None, specialists: Sequence[Specialist], releases: Mapping[str, Artifact]) -> BaseProposal:
    """The base that a person asks for, or that of the smallest release whose project can be read."""
    if base is not None:
        return base_proposal.named(base)
    for each in sorted(specialists, key=lambda each: min(entry.size for entry in releases[each.name].files(".gguf"))):
        try:
            settings = config.load(each.root / FILENAME)
        except SlmctlError:
            continue
        source = settings.base if config.is_remote(settings.base) else str(each.root / settings.base)
        sha256 = settings.pull.sha256 or ""
        return BaseProposal(source, sha256, f"that of {each.name}", f"the base of {each.name}, the smallest of them")
    raise UsageError("no project here says its base", hint="--base NAME; slmctl bases lists some")


def _for_no_task(source: str, directory: Path, column: str | None) -> dict[str, object]:
    """The keys of a source of rows for no task: where they are, and the column that is read."""
    data = raw_data.read(source, directory)
    return {**data.origin, **_read(data.look, data.title, column)}


def _read(look: FirstLook, title: str, column: str | None) -> dict[str, object]:
    """The column that is read; nothing where the rows are conversations."""
    names = [each.name for each in look.columns]
    if column is not None:
        if column not in names and "{{" not in column:
            raise UsageError(f"--input: {title} has no column '{column}'", hint=f"its columns: {', '.join(names)}")
        return {"input": column}
    if any(set(needs) <= set(names) for needs in NEEDS.values()):
        return {}
    texts = [each for each in look.columns if each.kind == "text"] or [c for c in look.columns if c.kind == "value"]
    if not texts:
        raise UsageError(f"{title} has no column with a text to read", hint="name one: --input COLUMN")
    return {"input": max(texts, key=lambda each: (suggests(each.name, "text"), each.words)).name}


# What is said


def about(project: FleetProject) -> Iterator[str]:
    """Lines on the specialists, the rows and the base."""
    for each in project.specialists:
        rows = ", ".join(f"{number:,} {split}" for split, number in each.rows.items())
        policy = "" if each.policy is None else "; its policy is there"
        yield f"{each.name}: rows of {each.data.path}: {rows}{policy}"
    for source in project.nothing:
        yield f"{NO_TASK}: rows of {source.get('path')}, split by chance"
    yield f"base: {project.base.source}: {project.base.reason}"
    for note in project.notes:
        yield f"note: {note}"
    if not _calibrates(project):
        yield (
            f"note: {count(project.rows('calibration'), 'calibration row')} of the models are fewer than {MIN_ROWS}, "
            "so the router gets no policy, and is never unsure"
        )


def _calibrates(project: FleetProject) -> bool:
    return project.rows("calibration") >= MIN_ROWS


# What is written


def write(project: FleetProject, folder: Path) -> list[Path]:
    """Write the project into a folder, and nothing over a file that is there.

    Returns:
        The files.

    Raises:
        UsageError: A file exists already.
    """
    data_project.require_no_config(folder)
    text = "\n".join([SCHEMA_LINE, *_head(project, folder), *_prepare(project, folder), *_rest(project, folder)]) + "\n"
    config.parse(text, root=folder)  # nothing is written that cannot be read
    return project_template.write(
        {FILENAME: text.encode(), SCHEMA_FILE: project_template.schema_text().encode()}, folder
    )


def _head(project: FleetProject, folder: Path) -> Iterator[str]:
    line, base = project_config.line, project.base
    yield line("project", project_name(folder), "in the names of releases and model files")
    yield line("version", "0.1", "of the release")
    source = base.source
    if not config.is_remote(source):
        source = str(_placed(Path(source).expanduser(), folder))
    yield line("base", source, base.about)
    if base.sha256:
        yield line("pull", {"sha256": base.sha256}, "of this base: remove it with another")
    yield "task:"
    yield line("  kind", "classify", "a label, which is the name of a model")
    yield line("  labels", project.labels, "the models" + (f", and {NO_TASK} of them" if project.nothing else ""))
    yield line("  system", SYSTEM, "the same in training and in use: make it yours")


def _prepare(project: FleetProject, folder: Path) -> Iterator[str]:
    line = project_config.line
    yield "prepare:"
    yield "  sources:"
    for each in project.specialists:
        for split in each.rows:
            path = _placed(each.data.file(f"{split}.jsonl"), folder)
            keys = {"path": path, "name": f"{each.name}-{split}", "label": each.name, "split": split}
            yield line("    -", keys, f"{each.rows[split]:,} rows")
    for place, source in enumerate(project.nothing, 1):
        keys = {key: _placed(value, folder) for key, value in source.items()}
        yield line("    -", {**keys, "name": f"{NO_TASK}-{place}", "label": NO_TASK}, "for no task")
    tasks = [Task.read(each.data.path) for each in project.specialists]
    steps = [step for step in STEPS if any(step in task.clean for task in tasks)]
    if steps:
        yield line("  clean", steps, "as for the models; when the router is used, too")
    yield line("  max_overlap", "100 %", "the models were held to their own")


def _rest(project: FleetProject, folder: Path) -> Iterator[str]:
    line = project_config.line
    rows = project.rows("train")
    training: dict[str, object] = {"epochs": project_config.epochs(rows)}
    if any(each.data.metrics["tokens"].get("max", 0) > MAX_LENGTH - 50 for each in project.specialists):
        training["too_long"] = "truncate"
    yield line("finetune", training, "passes over the training rows")
    yield line("quantize", {"types": [TYPE]}, "add Q4_K_M and see what 4 bits cost")
    yield "gates:"
    most = max(each.rows.get("train", 0) for each in project.specialists) / max(rows, 1)
    least = round(min(max(0.5, most + 0.1), (1 + most) / 2), 2)
    reason = f"the largest task alone has {percent(most, 0)}: set what you need"
    yield line("  -", {"metric": "accuracy", "model": TYPE, "min": least}, reason)
    if _calibrates(project):
        outside: dict[str, object] = {"out_of_scope": NO_TASK} if project.nothing else {}
        yield line("calibrate", {"max_error": "5 %", **outside}, "largest share of wrong names among those kept")
    address = f"dir:{_placed(project.address, folder)}"
    yield line("publish", {"to": address}, "then promote it to production")
    yield "serve:"
    yield "  fleet:"
    auto: dict[str, object] = {"release": f"{address}#{project_name(folder)}", "router": True}
    if _calibrates(project):
        auto["policy"] = True
    yield line(f"    {AUTO}", auto, "asks the router, then the model that it names")
    for each in project.specialists:
        member: dict[str, object] = {"release": f"{address}#{each.name}"}
        if each.policy is not None:
            member["policy"] = str(_placed(each.policy, folder))
        yield line(f"    {each.name}", member)


def _placed(value: object, folder: Path) -> object:
    """A path as the config has it, relative to its folder; other values as they are."""
    return os.path.relpath(value.resolve(), folder.resolve()) if isinstance(value, Path) else value
