"""What users install: the wheel and the sdist, and the image."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support import ROOT, serving, tiny

from slmctl import __version__
from slmctl.cli.init_command import TEMPLATES
from slmctl.config import ServeConfig

PACKAGED = ("pyproject.toml", "README.md", "LICENSE", "slmctl", "templates", "examples")


def test_every_package_is_named_in_pyproject() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]["packages"]
    held = {
        ".".join(path.relative_to(ROOT).parent.parts)
        for path in (ROOT / "slmctl").rglob("__init__.py")
    }
    assert held | {"slmctl.templates", "slmctl.examples"} == set(named)


# The image


def steps(path: Path = ROOT / "Dockerfile") -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, comments left out."""
    text = "\n".join(
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    )
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(None, 1)[0], " ".join(line.split(None, 1)[1].split())) for line in lines]


def test_the_image_is_small_pinned_and_runs_as_nobody() -> None:
    """The rules of hadolint that apply here."""
    instructions = steps()
    defaults = {
        value.partition("=")[0]: value.partition("=")[2]
        for name, value in instructions
        if name == "ARG"
    }
    for name, value in instructions:
        if name == "FROM":
            tag = re.sub(
                r"\$\{(\w+)\}", lambda match: defaults.get(match[1], ""), value.split()[0]
            ).partition(":")[2]
            assert tag not in ("", "latest")
        if name == "RUN":
            assert not re.search(r"(^|&& )cd |\bsudo\b|[^|]\| ", value), (
                "no cd, no sudo, no pipe that hides a failure"
            )
            installs = "apt-get install" in value
            assert not installs or {"--no-install-recommends", "--yes", "/var/lib/apt/lists/*"} <= {
                *value.split()
            }
            assert "pip install" not in value or "--no-cache-dir" in value
    assert [value for name, value in instructions if name == "USER"] == ["10001:10001"]
    names = [name for name, _ in instructions]
    assert (names.count("FROM"), names.count("HEALTHCHECK"), names.count("ADD")) == (2, 1, 0)
    assert [dict(instructions)[name] for name in ("ENTRYPOINT", "CMD")] == [
        '["slmctl"]',
        '["--help"]',
    ]


def test_the_image_copies_what_is_there_and_what_the_build_context_lets_in() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    # nothing goes to the builder that is not named: no data, no runs, no keys
    assert ignored[0] == "*"
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert let_in == set(PACKAGED)
    copied = [
        source
        for name, value in steps()
        if name == "COPY" and "--from" not in value
        for source in shlex.split(value)[:-1]
    ]
    assert {source.rstrip("/") for source in copied} == let_in
    assert all((ROOT / source).exists() for source in copied)


def test_the_health_check_asks_the_port_that_serve_has() -> None:
    parts = dict(steps())
    port = ServeConfig().port
    assert parts["EXPOSE"] == str(port)
    command = json.loads(parts["HEALTHCHECK"].partition("CMD ")[2])
    assert f"http://127.0.0.1:{port}/healthz" in command[-1]
    compile(command[-1], "HEALTHCHECK", "exec")


def test_make_builds_the_image() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "image", "TORCH_INDEX=https://x.invalid/cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "docker build --build-arg TORCH_INDEX=https://x.invalid/cpu --tag slmctl" in done.stdout


# The wheel


USED = """\
import slmctl

with slmctl.Answerer("dir:registry#production", max_tokens=20) as model:
    for found in model.answer(["hello", "bye"]):
        label: str | None = found.answer
        sure: float | None = found.p_correct
        print(label, sure, found.keep, sorted(found.labels))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, built as a release is, and no other file of slmctl."""
    pytest.importorskip("build")
    tmp_path = tmp_path_factory.mktemp("wheel")
    source = tmp_path / "source"
    source.mkdir()
    for name in PACKAGED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    # the wheel is made of the sdist
    subprocess.run(build, cwd=source, check=True, capture_output=True, text=True)
    (wheel,), (sdist,) = (
        list((tmp_path / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz")
    )
    assert wheel.name == f"slmctl-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as packed_wheel, tarfile.open(sdist) as packed_sdist:
        packed, plain = set(packed_wheel.namelist()), set(packed_sdist.getnames())
    for name in subprocess.run(
        [
            "git",
            "ls-files",
            "slmctl",
            "templates",
            "examples/data",
            "examples/monitoring",
            "examples/vllm",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines():
        inside = name if name.startswith("slmctl/") else f"slmctl/{name}"
        assert inside in packed, name
        assert f"slmctl-{__version__}/{name}" in plain, name

    # as pipx makes one; the dependencies are those of this environment
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True
    )
    here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(here))
    return environment


def ran(installed: Path, folder: Path, *words: str, **more: str) -> str:
    """The stdout of the installed program."""
    command, env = [installed / "bin" / "slmctl", *words], tiny.environment(**more)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_and_sdist_install_and_start_a_project(installed: Path, tmp_path: Path) -> None:
    assert ran(installed, tmp_path, "--version") == f"slmctl {__version__}\n"
    where = "import slmctl; print(slmctl.__file__)"
    python = installed / "bin" / "python"
    imported = subprocess.run(
        [python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert imported.startswith(str(installed))
    for template in TEMPLATES:
        folder = Path(ran(installed, tmp_path, "init", template, f"of-{template}").strip())
        assert (tmp_path / folder / "slmctl.yaml").is_file()
        assert "project:" in ran(installed, tmp_path, "-C", str(folder), "config", "show")
    assert json.loads(ran(installed, tmp_path, "config", "schema"))["properties"]["finetune"]
    assert "SmolLM2" in ran(installed, tmp_path, "bases", "--json")


@pytest.mark.slow
def test_the_installed_program_measures_rows_of_a_users_own(
    installed: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """The first minute of the README; the encoder and the base are
    tiny files, so that no index is asked.
    """
    tiny.write_csv(tmp_path / "tickets.csv", tiny.rows(400))
    words = tiny.build_encoder(tmp_path / "words", size=16)
    desk = ran(
        installed, tmp_path, "init", "tickets.csv", "desk", "--yes", "--base", str(tiny_base)
    ).strip()
    sets = ("--set", f"encode.encoder={words}", "--set", "pull.rehearse=false")
    made = Path(
        ran(installed, tmp_path, "-C", desk, "run", "--offline", "--until", "encode", *sets).strip()
    )
    assert made.parent == tmp_path / desk / "runs" / "encoder"
    answered = ran(
        installed,
        tmp_path,
        "-C",
        desk,
        "predict",
        str(made),
        "--input",
        "tickets.csv",
        "--column",
        "text",
        "--output",
        "-",
    )
    assert json.loads(answered.splitlines()[0])["answer"] in tiny.WORDS


def packages_of(extra: str, site: Path) -> set[Path]:
    """The files and folders of all distributions that an extra of the installed wheel brings."""
    (wheel,) = metadata.distributions(name="slmctl", path=[str(site)])
    left, seen, paths = (
        [(wheel, frozenset({extra}))],
        set[tuple[str, frozenset[str]]](),
        set[Path](),
    )
    while left:
        installed, extras = left.pop()
        for need in map(Requirement, installed.requires or []):
            applies = need.marker is None or any(
                need.marker.evaluate({"extra": name}) for name in (*extras, "")
            )
            asked = (need.name, frozenset(need.extras))
            if not applies or asked in seen:
                continue
            seen.add(asked)
            found = wheel if need.name == "slmctl" else metadata.distribution(need.name)
            left.append((found, asked[1]))
            if found is not wheel:
                paths |= {Path(str(found.locate_file(file.parts[0]))) for file in found.files or []}
    return {
        path for path in paths if path.exists() and path.name not in ("..", "__pycache__", "bin")
    }


@pytest.fixture
def classifier_alone(installed: Path, tmp_path: Path) -> Iterator[Path]:
    """The environment as the extra `encoder` leaves it, of links: to
    install its packages anew would take minutes.
    """
    (site,) = installed.glob("lib/python*/site-packages")
    links = tmp_path / "site-packages"
    links.mkdir()
    for path in packages_of("encoder", site):
        (links / path.name).symlink_to(path)
    listed = (site / "dependencies.pth").read_text(encoding="utf-8")
    (site / "dependencies.pth").write_text(str(links), encoding="utf-8")
    yield installed
    (site / "dependencies.pth").write_text(listed, encoding="utf-8")


@pytest.mark.slow
def test_a_classifier_needs_no_compiler_and_no_llama_cpp_python(
    classifier_alone: Path, tmp_path: Path
) -> None:
    # encode once imported accelerate, and publish asked for llama-cpp-python, for a release without
    # a language model
    tiny.write_csv(tmp_path / "tickets.csv", tiny.rows(1000))
    tiny.build_encoder_folder(tmp_path / "encoder")
    bare = {name: str(tmp_path / name.lower()) for name in ("HOME", "PATH")}
    for folder in bare.values():
        Path(folder).mkdir()
    run = functools.partial(ran, classifier_alone, tmp_path, **bare)
    assert not {path.name for path in (tmp_path / "site-packages").glob("*")} & {
        "llama_cpp",
        "gguf",
        "peft",
        "trl",
    }
    desk = run("init", "tickets.csv", "desk", "--yes").strip()
    config = tmp_path / desk / "slmctl.yaml"
    head = re.sub(
        r"(?ms)^(encode|publish): .*?$|^gates:$.*", "", config.read_text(encoding="utf-8")
    )
    head = head.replace("prepare:\n", "prepare:\n  splits: {calibration: 0.25}\n")
    publish = "publish: {to: 'dir:./registry', model: linear}"
    config.write_text(
        f"{head}\nencode: {{encoder: ../encoder}}\ngates: []\n{publish}\n", encoding="utf-8"
    )
    made = run("-C", desk, "run", "--offline", "--until", "encode").strip()
    assert (Path(made) / "encoder.onnx").is_file()
    answers = run(
        "-C",
        desk,
        "predict",
        "encoder",
        "--input",
        "tickets.csv",
        "--column",
        "text",
        "--output",
        "-",
    )
    assert json.loads(answers.splitlines()[0])["answer"] in tiny.WORDS
    run("-C", desk, "calibrate", "--max-error", "0.2")
    run("-C", desk, "run", "--offline")
    assert (tmp_path / desk / "registry" / "desk" / "0.1" / "sum.npz").is_file()
    words = [str(classifier_alone / "bin" / "slmctl"), "-C", desk, "serve", "--port", "0"]
    served = subprocess.Popen(
        words, cwd=tmp_path, env=tiny.environment(**bare), stdout=subprocess.PIPE, text=True
    )
    try:
        assert served.stdout is not None
        reply = serving.ask(served.stdout.readline().strip(), "invoice refund please")
        assert reply.json()["choices"][0]["message"]["content"] == "billing"
    finally:
        served.terminate()
        served.communicate(timeout=60)


@pytest.mark.slow
def test_a_users_script_is_typed(installed: Path, tmp_path: Path) -> None:
    script, faulty = tmp_path / "script.py", tmp_path / "faulty.py"
    script.write_text(USED, encoding="utf-8")
    faulty.write_text(USED.replace("label: str | None", "label: int"), encoding="utf-8")
    mypy = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        installed / "bin" / "python",
    ]
    done = subprocess.run(
        [*mypy, script, faulty], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Found")]
    assert [line.partition(": error: ")[0] for line in lines] == ["faulty.py:5"], done.stdout
    assert "Incompatible types in assignment" in lines[0]
