"""Every command that README and docs print: all are read by the program's own parser, and the slow
test runs those that need no network, no teacher and no other server, in the folder of a project, as
they are printed.

The tutorial, own-file.md and extract.md have a test of their own, which compares what their
commands print.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import pytest
from support import ROOT, tiny
from support.forks import Forks
from support.serving import begin, end

from slmctl.cli.group import Options
from slmctl.cli.main import cli
from slmctl.errors import SlmctlError

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
ENDS = set("|&;<>()")  # of a command, for the shell
PLACEHOLDERS = {"COMMAND"}
# Read and not run: beginnings of commands by page, and what they need.
NOT_RUN = {
    "calls.md": {
        "slmctl init tool-calls": "a base with tools, which is fetched",
        "slmctl init chats.jsonl": "see test_tutorial",
        "slmctl -C help": "a training",
    },
    "container.md": {"docker": "Docker"},
    "documents.md": {"slmctl": "a folder of documents, and a training"},
    "drafts.md": {"slmctl": "a training, and people who judge"},
    "extract.md": {"slmctl": "see test_tutorial"},
    "finetune.md": {"OMP_NUM_THREADS": "torchrun", "torchrun": "two machines", "srun": "Slurm"},
    "fleet.md": {"slmctl keys add crm": "releases of these names"},
    "how-many-rows.md": {
        "slmctl encode": "an encoder",
        "slmctl calibrate": "a bound that it refuses",
    },
    "label.md": {"slmctl": "a teacher"},
    "metrics.md": {"slmctl review": "a person at the page"},
    "compare.md": {
        "slmctl evaluate --against": "the network",
        "slmctl calibrate --endpoint": "the network",
    },
    "predict.md": {
        "slmctl predict MODEL --input in.jsonl": "a Ray cluster",
        "slmctl predict gguf --first-look": "an encoder",
    },
    "README.md": {"slmctl run --until encode": "an encoder", "slmctl serve encoder": "an encoder"},
    "privacy.md": {"slmctl serve --generalist": "the network, which is refused"},
    "own-file.md": {"slmctl": "see test_tutorial, and a training"},
    "publish.md": {
        "oras": "a registry of images",
        "slmctl fetch hf:": "the Hub",
        "slmctl fetch s3:": "a bucket",
    },
    "quantize.md": {"slmctl quantize --set": "rows as wide as blocks of these types"},
    "routing.md": {"slmctl serve --generalist": "a generalist"},
    "serve.md": {
        "slmctl serve runs/gguf/BASE": "adapters",
        "slmctl serve registry/desk/1.0 --engine-url": "vLLM",
    },
    "tags.md": {
        "slmctl init topic-tagging": "a base that is fetched, and a training of some minutes"
    },
    "tutorial.md": {"slmctl": "see test_tutorial"},
    "vllm.md": {"slmctl serve registry/desk/1.0 --engine-url": "vLLM; see test_example_vllm"},
    "wheel.md": {
        "slmctl prepare": "a transcript",
        "slmctl review": "collected answers",
        "slmctl watch": "collected answers",
    },
}
INSTEAD = {  # of names that a page leaves open, by page
    "how-many-rows.md": {"few.csv few": "tickets.csv few"},
    "predict.md": {"MODEL": "gguf"},
    "publish.md": {"1.1": "1.0"},
}


def blocks(page: Path) -> Iterator[str]:
    """The lines of code of a page that hold a command of slmctl, or of
    openssl for its keys, as a shell gets them.
    """
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith(("    ", "$ ")) and re.search(
            r"\b(slmctl|openssl) (?=[-a-z])(?!\S+:|.*[│▼])", line
        ):
            code = line.strip().removeprefix("$ ")
            if code.startswith(
                (
                    "slmctl ",
                    "cat ",
                    "openssl ",
                    "oras ",
                    "docker ",
                    "srun ",
                    "torchrun ",
                    "OMP_NUM_THREADS=",
                )
            ):
                yield code


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of slmctl on a page, in code and between backticks."""
    text = page.read_text(encoding="utf-8")
    for code in [*blocks(page), *re.findall(r"`(slmctl [^`]+)`", text)]:
        lexer = shlex.shlex(re.sub(r"\s#\s.*", "", code), posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        words = list(lexer)
        for at, word in enumerate(words):
            if word == "slmctl":
                end = next(
                    (k for k, each in enumerate(words) if k > at and set(each) <= ENDS), len(words)
                )
                yield words[at + 1 : end]


def read(words: list[str]) -> None:
    """Have click read a command; raises a UsageError where an option or a command is unknown."""
    # click keeps the help option that it makes
    context = click.Context(cli, obj=Options(), **cli.context_settings)
    words = cli.make_parser(context).parse_args(list(words))[1]
    found: click.Command = cli
    while isinstance(found, click.Group) and words:
        name, found, words = found.resolve_command(context, words)  # type: ignore[assignment]
        assert found is not None, name
    left = found.make_parser(click.Context(found, parent=context)).parse_args(list(words))
    most = sum(
        each.nargs if each.nargs > 0 else 99
        for each in found.params
        if isinstance(each, click.Argument)
    )
    given = sum(
        len(value) if isinstance(value, tuple) else 1
        for name, value in left[0].items()
        if value is not None
        and any(each.name == name for each in found.params if isinstance(each, click.Argument))
    )
    assert given <= most and not left[1], f"too many words: {left[1]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_printed_is_one(page: Path) -> None:
    faults = []
    for words in commands(page):
        if words and not set(words) & PLACEHOLDERS:
            try:
                read(words)
            except (
                click.BadOptionUsage
            ) as error:  # an option that a sentence names without its value
                if words[-1] != error.option_name:
                    faults.append((words, error.format_message()))
            except (click.ClickException, SlmctlError) as error:
                faults.append((words, str(error)))
    assert faults == []


def test_the_commands_are_found_and_an_unknown_option_is_told() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 120
    assert ["fetch", "dir:./registry#production"] in list(commands(ROOT / "docs" / "publish.md"))
    for wrong in (["run", "--untl", "merge"], ["trane"], ["promote", "1.0", "1.1", "--tag", "x"]):
        with pytest.raises((click.ClickException, SlmctlError, AssertionError)):
            read(wrong)


def chain(page: Path) -> list[str]:
    """The commands of a page that are run, each once."""
    left = tuple(NOT_RUN.get(page.name, {}))
    made = dict.fromkeys(code for code in blocks(page) if not (left and code.startswith(left)))
    return [_filled(code, INSTEAD.get(page.name, {})) for code in made]


def _filled(code: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        code = code.replace(name, value)
    return code


def test_what_is_not_run_is_printed() -> None:
    for name, beginnings in NOT_RUN.items():
        printed = list(blocks(ROOT / name if name == "README.md" else ROOT / "docs" / name))
        assert [
            start for start in beginnings if not any(code.startswith(start) for code in printed)
        ] == [], name


@pytest.fixture(scope="module")
def desk_of_the_docs(
    tiny_base: Path, stages: Forks, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project called desk whose release 1.0 is in production,
    with the files that the pages name.
    """
    folder = tmp_path_factory.mktemp("docs") / "desk"
    shutil.copytree(tiny_base, folder / "base")
    (folder / "slmctl.yaml").write_text(
        tiny.CALIBRATED.replace("tiny-desk", "desk"), encoding="utf-8"
    )
    for name in ("tickets.csv", "in.csv", "messages.csv"):
        tiny.write_csv(folder / name, tiny.rows(500))
    (folder / "mail.txt").write_text(
        "my invoice is wrong, please send a refund of the payment today"
    )
    tiny.ok(stages.run(folder, "run", "--yes"))
    tiny.ok(stages.run(folder, "promote", "1.0", "--tag", "production"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if chain(page)], ids=lambda page: page.name
)
def test_the_commands_of_a_page_run_as_they_are_printed(
    page: Path, desk_of_the_docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(desk_of_the_docs, tmp_path / "desk"))
    monkeypatch.chdir(folder)
    env = tiny.environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for code in chain(page):
        if code.startswith("slmctl serve"):
            child, url = begin(Path(), *shlex.split(code.rstrip("& "), comments=True)[2:])
            assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200, code
            end(child)
            continue
        alone = (
            folder
            if not code.startswith("slmctl init")
            else Path(shutil.copytree(folder, tmp_path / "new"))
        )
        if alone != folder:
            (alone / "slmctl.yaml").unlink()
        done = subprocess.run(
            ["bash", "-c", code],
            cwd=alone,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0 or (" trace " in code and done.returncode == 105), (
            code,
            done.stdout,
            done.stderr,
        )
