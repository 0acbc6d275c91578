"""`--emit slurm|k8s-job DIR` of `run` and `predict`: the folder of a job, in place of the work."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmctl.cli.group import Options, make_workspace, open_project, read_settings, terminal
from slmctl.errors import UsageError

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
    from slmctl.config import Config
    from slmctl.pipeline.cluster_jobs import ClusterJob

KINDS = ("slurm", "k8s-job")
MIB = 1 << 20


def emit_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--emit KIND DIR."""
    return click.option(
        "--emit", type=(click.Choice(KINDS), click.Path(path_type=Path)), metavar="KIND DIR", default=None,
        help=f"Write a folder with a job for Slurm (slurm) or Kubernetes (k8s-job) that {what}, and send nothing.",
    )  # fmt: skip


def emit_predict(options: Options, model: str | None, type_name: str | None, files: dict[str, Any]) -> None:
    """Write the job that answers a file, or the files of a folder, with a release.

    Raises:
        UsageError: The model is no release of a registry in a folder, or an option is for this machine alone.
    """
    from slmctl.artifacts.artifact import MANIFEST, sha256_file
    from slmctl.model_files.gguf_choice import gguf_file
    from slmctl.pipeline import cluster_jobs, model_lookup, resolve
    from slmctl.stages.predict import file_prediction

    if files["ray"] or files["urls"] or files["plan_only"]:
        raise UsageError("--emit writes a job in which an engine answers", hint="leave --ray and --engine-url out")
    if "-" in (files["source"], files["target"]):
        raise UsageError("a job reads and writes files, and - is a stream", hint="--input in.csv --output out.csv")
    kind, out = files["emit"]
    where = make_workspace(options)
    release = resolve.find_model(where, model, ("published",), default="published")
    request = model_lookup.FileModel(
        where, str(release.path), type_name, max_tokens=read_settings(options).predict.max_tokens
    )
    shards = file_prediction.shard(files["shard"])[1] if files["shard"] else cluster_jobs.SHARDS
    flags = {
        "--type": type_name, "--column": files["column"] or request.column, "--sheet": files["sheet"],
        "--encoding": files["encoding"], "--format": files["format_name"],
    }  # fmt: skip
    words = [word for flag, value in flags.items() if value for word in (flag, value)]
    words += ["--plain"] if files["plain"] else []
    _write(kind, out, cluster_jobs.ClusterJob(
        kind="predict",
        name=str(release.metrics["project"]),
        folder=cluster_jobs.DATA if kind == "k8s-job" else str(Path.cwd()),
        sums=((MANIFEST, sha256_file(release.path / MANIFEST).removeprefix("sha256:")),),
        words=(*words, *_sets(options)),
        memory_mb=math.ceil(2 * gguf_file(release, type_name).size / MIB) + 2048,
        origin=release.digest,
        release=_address(options, release, kind),
        source=cluster_jobs.on_cluster(files["source"], kind),
        target=cluster_jobs.on_cluster(files["target"], kind),
        shards=shards,
    ))  # fmt: skip


def emit_run(options: Options, until: str, emit: tuple[str, Path]) -> None:
    """Write the job that runs every stage of the project that is not current.

    Raises:
        UsageError: There is no config.
    """
    from slmctl import config
    from slmctl.artifacts.artifact import sha256_file
    from slmctl.pipeline import cluster_jobs

    kind, out = emit
    project = open_project(options)
    paths = [project.root / config.FILENAME, *_own_files(project.config, project.root)]
    sums = ((_named(path, project.root), sha256_file(path).removeprefix("sha256:")) for path in paths)
    _write(kind, out, cluster_jobs.ClusterJob(
        kind="run",
        name=project.config.project,
        folder=f"{cluster_jobs.DATA}/{project.root.name}" if kind == "k8s-job" else str(project.root),
        sums=tuple(dict(sums).items()),
        words=_sets(options),
        memory_mb=16384,
        until=until,
    ))  # fmt: skip


def _write(kind: str, out: Path, job: ClusterJob) -> None:
    from slmctl.pipeline import cluster_jobs

    cluster_jobs.write(job, kind, out)
    terminal().say(f"next: {out}/README.md says how to start it")
    terminal().write(f"{out}\n")


def _sets(options: Options) -> tuple[str, ...]:
    return tuple(word for text in options.sets for word in ("--set", text))


def _named(path: Path, root: Path) -> str:
    """A path relative to the project's folder, where it is below it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _own_files(settings: Config, root: Path) -> Iterable[Path]:
    """The files of the project's sources: those that are files, and those of folders and patterns."""
    from slmctl.sources.rows import files_of, is_several

    sources = [*settings.prepare.sources, *(settings.label.sources if settings.label is not None else ())]
    for source in sources:
        if source.path is None:
            continue
        path = root / source.path
        if is_several(path):
            yield from (file for _, file in files_of(path, source.format))
        elif path.is_file():
            yield path


def _address(options: Options, release: Artifact, kind: str) -> str:
    """The address by which the nodes fetch a release: its registry, with project and version.

    Raises:
        UsageError: It lies in no registry that is a folder.
    """
    from slmctl.errors import IntegrityError
    from slmctl.pipeline import cluster_jobs
    from slmctl.releases import registry

    to = read_settings(options).publish.to
    roots = [release.path.resolve().parents[1]]
    roots += [registry.parse(to, options.directory.resolve())[0]] if to.startswith("dir:") else []
    name = f"{release.metrics['project']}@{release.metrics['version']}"
    for root in roots:
        with contextlib.suppress(IntegrityError):  # it is no registry, or has no such release
            if registry.find(root, name).digest == release.digest:
                return f"dir:{cluster_jobs.on_cluster(str(root), kind)}#{name}"
    raise UsageError(
        f"{release.path} lies in no registry, from which a job could fetch it",
        hint="slmctl predict dir:REGISTRY#TAG --emit …",
    )
