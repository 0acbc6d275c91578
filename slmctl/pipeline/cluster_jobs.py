"""A project or a release -> a folder with a job for Slurm or Kubernetes, which pins and verifies all that it uses.

It is written and never sent: what a cluster runs is started by those who own it.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import jinja2
import yaml

from slmctl import __version__
from slmctl.artifacts import artifact, atomic, script_files
from slmctl.errors import UsageError
from slmctl.sources import stores

KINDS = ("slurm", "k8s-job")
DATA = "/data"  # where the volume of a Kubernetes job is mounted
HOURS = 24  # that a job may take
CPUS = 4
SHARDS = 8
FILES = {
    "slurm": ("job.sbatch", "job.sh", "README.md", "wheels/README"),
    "k8s-job": ("job.yaml", "kustomization.yaml", "job.sh", "README.md"),
}
SHARED = ("job.sh", "README.md", "wheels/README")
EXTRAS = {"predict": "gguf,data", "run": "all"}


@dataclass(frozen=True)
class ClusterJob:
    """The work of a job, and all that pins it.

    Attributes:
        kind: `predict` or `run`.
        name: The project's name.
        folder: The folder that it works in, on the nodes.
        sums: Path, relative to the release or the folder, and sha256 of what must be as it was.
        words: Further arguments of the command.
        memory_mb: Memory of one task, in MiB.
        origin: Digest of the release.
        release: The address of a release that `slmctl fetch` takes.
        source, target: Input and output of `predict`.
        shards: Number of tasks.
        until: The last stage of `run`.
        cpus: CPUs of one task.
    """

    kind: Literal["predict", "run"]
    name: str
    folder: str
    sums: tuple[tuple[str, str], ...]
    words: tuple[str, ...] = ()
    memory_mb: int = 4096
    origin: str = ""
    release: str = ""
    source: str = ""
    target: str = ""
    shards: int = 1
    until: str = "publish"
    cpus: int = CPUS


def write(job: ClusterJob, kind: str, out: Path) -> None:
    """Write the folder of a job, whole or not at all.

    Raises:
        UsageError: The folder exists.
    """
    if out.exists():
        raise UsageError(f"{out} exists already", hint=f"--emit {kind} NEW_FOLDER")
    with atomic.folder(out) as draft:
        lines = [f"{sha256}  {path}\n" for path, sha256 in job.sums]
        script_files.write(draft / _sums_name(job), "".join(lines))
        for place in FILES[kind]:
            script_files.write(draft / place, _rendered(job, kind, place))
        # the rest of the folder may be changed: the head of job.sbatch, the README, wheels
        own = [entry for entry in artifact.scan(draft) if entry.path in ("job.sh", _sums_name(job))]
        script_files.write(draft / "SHA256SUMS", "".join(f"{entry.sha256}  {entry.path}\n" for entry in own))


def on_cluster(address: str, kind: str) -> str:
    """An address as the nodes have it: absolute; below the mounted volume in Kubernetes."""
    if "://" in address:
        return address
    path = Path(address)
    if kind == "k8s-job":
        return f"{DATA}/{path.name}" + ("/" if address.endswith("/") else "")
    return f"{path.absolute()}" + ("/" if address.endswith("/") else "")


def part_of(target: str, source: str, shards: int) -> str:
    """The output of a task as a word of the shell: a file of its own, or the folder that all tasks fill."""
    if shards == 1 or stores.is_store(source) or "://" in target or target.endswith("/"):
        return shlex.quote(target)
    path = PurePosixPath(target)
    suffixes = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    stem = str(path)[: len(str(path)) - len(suffixes)]
    return f"{shlex.quote(stem + '-')}$number{shlex.quote(f'-of-{shards:04}{suffixes}')}"


def _rendered(job: ClusterJob, kind: str, place: str) -> str:
    environment = jinja2.Environment(  # noqa: S701 - YAML, shell and Markdown; values are quoted by the filters
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)  # JSON is YAML without surprises
    environment.filters["shell"] = script_files.shell_words
    name = place if place in SHARED else f"{kind}/{place}"
    source = resources.files("slmctl.templates").joinpath("jobs", *name.split("/")).read_text(encoding="utf-8")
    text = environment.from_string(source).render(_values(job, kind))
    if place.endswith(".yaml"):
        list(yaml.safe_load_all(text))  # what does not parse is a bug here, and is found here
    return text


def _values(job: ClusterJob, kind: str) -> dict[str, Any]:
    verb = "Answer rows with" if job.kind == "predict" else "Make"
    return {
        "job": job,
        "kind": kind,
        "title": f"{verb} {job.name}",
        "label": script_files.label(job.name),
        "version": __version__,
        "extras": EXTRAS[job.kind],
        "hours": HOURS,
        "data": DATA,
        "sums": _sums_name(job),
        "output": part_of(job.target, job.source, job.shards),
    }


def _sums_name(job: ClusterJob) -> str:
    return "RELEASE.sha256" if job.kind == "predict" else "PROJECT.sha256"
