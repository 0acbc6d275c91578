"""Jobs for Slurm and Kubernetes: read by those who will run them, and run here by a shell as they would be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support import TESTS, slurm, tiny
from support.answered import require_same
from support.forks import Forks

from slmctl import __version__
from slmctl.errors import UsageError
from slmctl.pipeline import cluster_jobs
from slmctl.pipeline.cluster_jobs import ClusterJob

KUBERNETES = "1.34.0"
KUBECTL = shutil.which("kubectl")
JOB = ClusterJob(
    kind="predict", name="It's a Desk", folder="/data/it's here", sums=(("manifest.json", "0" * 64),),
    words=("--column", "the text"), origin="sha256:abc", release="dir:/data/reg#desk@1.0",
    source="/data/in $(x).jsonl", target="/data/out it's.jsonl.gz", shards=3,
)  # fmt: skip
RUN = ClusterJob(kind="run", name="desk", folder="/data/desk", sums=(("slmctl.yaml", "1" * 64),), until="evaluate")


@pytest.fixture(params=[JOB, RUN], ids=lambda job: str(job.kind))
def job(request: pytest.FixtureRequest) -> ClusterJob:
    made: ClusterJob = request.param
    return made


def path_with_slmctl(folder: Path) -> str:
    """A PATH with this slmctl on it, which lies in a folder of the test."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "slmctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m slmctl "$@"\n')
    (programs / "slmctl").chmod(0o755)
    return f"{programs}:{os.environ['PATH']}"


def shell(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The job's script as a node runs it, with slmctl on its path."""
    path = path_with_slmctl(folder.parent)
    return subprocess.run(
        ["bash", folder / "job.sh"], env=tiny.environment(PATH=path, **env), capture_output=True, text=True, check=False
    )


def test_the_folder_appears_whole_and_is_never_overwritten(job: ClusterJob, tmp_path: Path) -> None:
    cluster_jobs.write(job, "slurm", tmp_path / "job")
    sums = "RELEASE.sha256" if job.kind == "predict" else "PROJECT.sha256"
    names = {path.relative_to(tmp_path / "job").as_posix() for path in (tmp_path / "job").rglob("*") if path.is_file()}
    assert names == {"job.sbatch", "job.sh", "README.md", "wheels/README", sums, "SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "job", check=True)
    with pytest.raises(UsageError, match="exists already"):
        cluster_jobs.write(job, "slurm", tmp_path / "job")


@pytest.mark.parametrize("kind", cluster_jobs.KINDS)
def test_the_scripts_are_shell_in_which_no_name_is_code(job: ClusterJob, kind: str, tmp_path: Path) -> None:
    cluster_jobs.write(job, kind, tmp_path / "job")
    for path in (tmp_path / "job").glob("job.s*"):
        subprocess.run(["bash", "-n", path], check=True)
    text = (tmp_path / "job" / "job.sh").read_text()
    assert f"slmctl[{cluster_jobs.EXTRAS[job.kind]}]=={__version__}" in text
    if job.kind == "predict":
        assert "'/data/in $(x).jsonl'" in text
        assert """'/data/out it'"'"'s-'$number-of-0003.jsonl.gz""" in text
        assert text.index("slmctl fetch") < text.index("RELEASE.sha256") < text.index("slmctl verify")
        assert text.index("slmctl verify") < text.index("slmctl predict")
    else:
        assert text.index("PROJECT.sha256") < text.index("slmctl verify") < text.index("slmctl pull")
        assert text.rstrip().endswith("slmctl run --until evaluate")


OPTIONS = {"job-name", "array", "cpus-per-task", "mem", "exclusive", "nodes", "ntasks", "time", "output", "requeue"}


def test_the_head_of_a_slurm_job_has_known_options(job: ClusterJob, tmp_path: Path) -> None:
    cluster_jobs.write(job, "slurm", tmp_path / "job")
    lines = (tmp_path / "job" / "job.sbatch").read_text().splitlines()
    options = dict(
        match.groups("") for line in lines if (match := re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line))
    )
    assert len(options) == sum(line.startswith("#SBATCH") for line in lines)
    assert set(options) <= OPTIONS
    assert options.get("array") == ("1-3" if job.kind == "predict" else None)
    assert re.fullmatch(r"[a-z0-9-]+", options["job-name"])


def test_kubernetes_takes_the_job(job: ClusterJob, tmp_path: Path) -> None:
    cluster_jobs.write(job, "k8s-job", tmp_path / "job")
    (manifest,) = yaml.safe_load_all((tmp_path / "job" / "job.yaml").read_text())
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    spec: dict[str, Any] = manifest["spec"]
    assert spec.get("completions") == (3 if job.kind == "predict" else None)
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    if KUBECTL:
        done = subprocess.run([KUBECTL, "kustomize", tmp_path / "job"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        kinds = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
        assert set(kinds) == {"ConfigMap", "Job"}
        assert set(kinds["ConfigMap"]["data"]) >= {"job.sh", "SHA256SUMS"}
        volumes = kinds["Job"]["spec"]["template"]["spec"]["volumes"]
        assert {"name": "job", "configMap": {"name": kinds["ConfigMap"]["metadata"]["name"]}} in volumes
        image = kinds["Job"]["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image == f"slmctl:{__version__}"


@pytest.mark.parametrize(
    ("target", "source", "word"),
    [
        ("/d/out.jsonl", "in.jsonl", "/d/out-0007-of-0009.jsonl"),
        ("/d/o ut.csv.gz", "in.csv", "/d/o ut-0007-of-0009.csv.gz"),
        ("/d/out/", "in/", "/d/out/"),
        ("s3://bucket/out", "s3://bucket/in/*.parquet", "s3://bucket/out"),
    ],
)
def test_each_part_has_an_output_of_its_own(target: str, source: str, word: str) -> None:
    script = f"number=0007; printf %s {cluster_jobs.part_of(target, source, 9)}"
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout == word


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A registry with a release that was kept: a model of 7,000 weights."""
    kept = TESTS / "fixtures" / "0.1.0" / "published"
    return Path(shutil.copytree(kept, tmp_path / "registry" / "kept" / "1.0")).parents[1]


def test_a_task_answers_its_part(stages: Forks, registry: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in tiny.rows(9, seed=3)))
    words = ["--input", str(source), "--output", str(out), "--column", "text"]
    release = f"dir:{registry}#1.0"
    tiny.ok(
        stages.run(tmp_path, "predict", release, *words, "--shard", "1/2", "--emit", "slurm", str(tmp_path / "job"))
    )
    assert not out.exists()
    text = (tmp_path / "job" / "job.sh").read_text()
    assert f"dir:{registry}#kept@1.0" in text  # the release that the tag stood for, whatever it is later
    path = Path(tiny.ok(shell(tmp_path / "job", SLURM_ARRAY_TASK_ID="2")).splitlines()[-1])
    assert path == tmp_path / "out-0002-of-0002.jsonl"
    tiny.ok(stages.run(tmp_path, "predict", release, *words, "--shard", "2/2"))
    require_same([path], out)


def test_another_release_under_the_same_name_is_refused(stages: Forks, registry: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "refund"}\n')
    words = ["--input", str(source), "--output", str(tmp_path / "out.jsonl"), "--column", "text"]
    job = tmp_path / "job"
    tiny.ok(stages.run(tmp_path, "predict", f"dir:{registry}", *words, "--emit", "slurm", str(job)))
    (job / "RELEASE.sha256").write_text(f"{'0' * 64}  manifest.json\n")
    done = shell(job)
    assert done.returncode != 0
    assert "RELEASE.sha256: FAILED" in done.stdout + done.stderr  # the folder itself has changed
    sums = subprocess.run(
        ["sha256sum", "job.sh", "RELEASE.sha256"], cwd=job, capture_output=True, text=True, check=True
    )
    (job / "SHA256SUMS").write_text(sums.stdout)
    done = shell(job)
    assert done.returncode != 0
    assert "manifest.json: FAILED" in done.stdout + done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_run_goes_on_in_the_project_and_ends_with_its_path(stages: Forks, desk: Path, tmp_path: Path) -> None:
    tiny.ok(stages.run(desk, "run", "--emit", "slurm", str(tmp_path / "job")))
    done = shell(tmp_path / "job")
    assert Path(tiny.ok(done).splitlines()[-1]) == next((desk / "runs" / "published").glob("[!.]*"))
    with (desk / "tickets.csv").open("a") as stream:
        stream.write("one more,billing\n")
    done = shell(tmp_path / "job")
    assert done.returncode != 0
    assert "tickets.csv: FAILED" in done.stdout + done.stderr


def test_a_release_outside_of_a_registry_cannot_be_fetched(registry: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"  # where no config names the registry
    copy = Path(shutil.copytree(registry / "kept" / "1.0", away / "a" / "b"))
    words = [
        "--input",
        "in.jsonl",
        "--output",
        "out.jsonl",
        "--column",
        "text",
        "--emit",
        "slurm",
        str(tmp_path / "job"),
    ]
    done = tiny.slmctl(away, "predict", str(copy), *words)
    assert done.returncode == 2
    assert "lies in no registry" in done.stderr


@pytest.mark.slow
def test_slurm_takes_the_jobs_and_answers_the_parts(registry: Path, tmp_path: Path) -> None:
    if not slurm.is_here():
        pytest.skip("Slurm is not installed, or this is not root: apt-get install slurm-wlm")
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in tiny.rows(9, seed=3)))
    words = ["predict", f"dir:{registry}", "--column", "text", "--input", str(source), "--output", str(out)]
    tiny.ok(tiny.slmctl(tmp_path, *words, "--shard", "1/2", "--emit", "slurm", str(tmp_path / "parts")))
    cluster_jobs.write(RUN, "slurm", tmp_path / "whole")
    (tmp_path / "slurm").mkdir()
    with slurm.cluster(tmp_path / "slurm") as variables:
        env = tiny.environment(PATH=path_with_slmctl(tmp_path), **variables)
        for name in ("parts", "whole"):
            tested = subprocess.run(
                ["sbatch", "--test-only", "job.sbatch"], cwd=tmp_path / name, env=env, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            assert tested.returncode == 0, tested.stderr
            assert re.search(r"Job \d+ to start at", tested.stderr)
        done = subprocess.run(
            ["sbatch", "--wait", "job.sbatch"], cwd=tmp_path / "parts", env=env, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip
        logs = {path.name: path.read_text() for path in (tmp_path / "parts").glob("*.log")}
        assert done.returncode == 0, (done.stderr, logs)
    paths = sorted(Path(log.splitlines()[-1]) for log in logs.values())
    assert paths == [tmp_path / f"out-000{k}-of-0002.jsonl" for k in (1, 2)]
    tiny.ok(tiny.slmctl(tmp_path, *words))
    require_same(paths, out)
