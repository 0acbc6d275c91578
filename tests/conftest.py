"""Fixtures that tests share: a tiny model, a project with it, and that project run once."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from support import balance, changed, light, shared, tiny

# before torch and llama.cpp: on models this small more threads only wait for each other, and should
# not spin meanwhile
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# where the outside forbids bytecode, as some containers do, each process would compile all tests
# and the program again
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from slmctl import config, console
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.hardware import usable_cores
from slmctl.network import guard
from slmctl.pipeline.graph import Project

if TYPE_CHECKING:
    from support.browser import Browser
    from support.forks import Forks

sys.dont_write_bytecode = False  # in this process
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # some tests have a child crash on purpose
# a shell ignores Ctrl-C for what it starts in the background, and so would every program of a test
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--light",
        action="store_true",
        help="run the tests that need neither torch nor llama-cpp-python",
    )
    parser.addoption(
        "--changed",
        metavar="REV",
        help="of the slow tests, run those of what has changed since a commit",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    heavy = (
        config.getoption("--light")
        and collection_path.suffix == ".py"
        and light.is_heavy_file(collection_path)
    )
    return True if heavy and collection_path.name != "conftest.py" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--light"):
        light.select(config, items)
    if since := config.getoption("--changed"):
        changed.select(config, items, since)
    if "PYTEST_XDIST_WORKER" in os.environ:
        balance.sort(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Three processes for two cores: a fifth of the tests' time they
    wait for servers and other processes.
    """
    return usable_cores() * 3 // 2


def pytest_collection_finish() -> None:
    # each training has the garbage collected, and what was imported would be looked through for it
    gc.freeze()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """List the longest files of a run in several processes, for `balance.LONGEST`."""
    if config.getoption("numprocesses", None):
        found = [report for kind in terminalreporter.stats.values() for report in kind]
        terminalreporter.section("longest files")
        for name, seconds in balance.seconds_of_files(
            [each for each in found if isinstance(each, pytest.TestReport)]
        ):
            terminalreporter.write_line(f"{seconds:7.1f} s  {name}")


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Have each test begin at the console's normal level, with nothing
    counted that another sent; end what it began.
    """
    console.set_level(0)
    guard.begin_receipt()
    started = len(tiny.STARTED)  # by fixtures of a module or a session
    yield
    tiny.end_from(started)
    console.set_level(0)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HF folder with a tiny random Llama, its tokenizer and a ChatML template."""
    return shared.made_once(tmp_path_factory, "base", tiny.build_base)


@pytest.fixture(scope="session")
def tiny_project(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with slmctl.yaml, data and base; nothing has been
    run in it. Copy it to change it.
    """
    folder = tmp_path_factory.mktemp("project") / "desk"
    shutil.copytree(tiny_base, folder / "base")
    (folder / "slmctl.yaml").write_text(tiny.CONFIG, encoding="utf-8")
    tiny.write_csv(folder / "tickets.csv", tiny.rows())
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_project: Path, stages: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after `slmctl run`, once for all tests: read it, copy it to change it."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_project, folder)
        tiny.ok(stages.run(folder, "run", "--yes"))

    return shared.made_once(tmp_path_factory, "desk", make)


@pytest.fixture
def desk(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_run` that a test may damage."""
    return Path(shutil.copytree(tiny_run, tmp_path / "desk"))


@pytest.fixture(scope="session")
def desk_url(tiny_run: Path) -> Iterator[str]:
    """The address of a server of `tiny_run`: a classifier."""
    from support.serving import begin, end

    child, url = begin(tiny_run)
    yield url
    end(child)


@pytest.fixture(scope="session")
def artifacts(tiny_run: Path) -> dict[str, Artifact]:
    """The artifacts of `tiny_run` by kind; of the predictions, those of the last model."""
    return {
        path.parent.parent.name: artifact.load(path.parent)
        for path in sorted(tiny_run.glob("runs/*/*/manifest.json"))
    }


@pytest.fixture
def project(tiny_run: Path) -> Project:
    """`tiny_run` as the library sees it."""
    return Project(root=tiny_run, config=config.load(tiny_run / config.FILENAME))


@pytest.fixture(scope="session")
def stages(heavy_children: Forks) -> Iterator[Forks]:
    """Forks of a process that has imported what every stage needs."""
    from support.forks import Forks

    from slmctl.pipeline import LEAVES

    stages = (f"slmctl.stages.{name}.{part}" for name in LEAVES for part in ("stage", name))
    modules = (
        "slmctl.cli.main",
        "slmctl.pipeline.runner",
        "slmctl.provenance",
        "slmctl.models.gguf",
        *stages,
    )
    with Forks(*modules, heavy=heavy_children) as forks:
        yield forks


@pytest.fixture(scope="session")
def heavy_children() -> Iterator[Forks]:
    """Forks of a process that has imported what the children of
    `load_check` and of the converter need.
    """
    from support.forks import Forks

    auto = "transformers.models.auto"
    modules = ("sentencepiece", "torch", f"{auto}.configuration_auto", f"{auto}.tokenization_auto")
    with Forks(*modules, "slmctl.model_files.hf_folder") as forks:
        yield forks


@pytest.fixture
def forked_children(heavy_children: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have stages in this process check a base, and convert it, in forked children."""
    from support.forks import fork_children

    fork_children(heavy_children.address, monkeypatch)


@pytest.fixture(scope="session")
def readers() -> Iterator[Forks]:
    """Forks of a process that has imported what the children which read
    tables, databases and documents need.
    """
    from support.forks import READERS, Forks

    with Forks(
        *READERS, "pyarrow.parquet", "python_calamine", "sqlalchemy", "psycopg", "pypdfium2"
    ) as forks:
        yield forks


@pytest.fixture
def forked_readers(readers: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process read sources in forked children, which take
    a hundredth of a second to start.
    """
    from support.forks import READERS, fork_children

    from slmctl.sources import sql

    fork_children(readers.address, monkeypatch, READERS)
    # queries end with their parent
    monkeypatch.setattr(sql, "os", SimpleNamespace(getpid=lambda: readers.server.pid))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Debian's chromium, for the tests of a file."""
    from support.browser import CHROMIUM, Browser

    if not CHROMIUM:
        pytest.skip("Debian's chromium is not installed: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 service with a bucket `models`."""
    from support.servers import s3_service

    pytest.importorskip("boto3")
    pytest.importorskip("moto")
    with s3_service(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture(scope="session")
def endless(
    tiny_base: Path, heavy_children: Forks, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The untrained base as a .gguf file: its text goes on and on."""
    from support.forks import convert

    def make(folder: Path) -> None:
        folder.mkdir()
        convert(heavy_children, tiny_base, folder / "endless-F16.gguf", "f16")

    return shared.made_once(tmp_path_factory, "endless", make) / "endless-F16.gguf"
