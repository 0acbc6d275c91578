"""The commands of four pages run as they are written, on a tiny base, and
print lines of the form that they quote.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import EXAMPLES, ROOT, messy, tiny
from support.servers import free_port, settles

PAGES = ("tutorial.md", "extract.md", "own-file.md", "calls.md")
EXAMPLE = EXAMPLES / "support_tickets.csv"
# Names of models and labels, and what counts differ between the tiny base and the real one.
ANY = r"[-\w.%+:/,]+"
TICKETS = csv.DictReader(EXAMPLE.read_text(encoding="utf-8").splitlines(keepends=True))
LABELS = "|".join(sorted({row["category"] for row in TICKETS if row["category"].isidentifier()}))
DURATION = r"(?:\d+ h \d\d min|\d+ min \d\d s|[\d.]+ m?s\b)"
SIZE = r"(?:[\d.]+ [kMG]?B\b)"
OBJECT = r"\{\\\".*?\}"  # an answer in JSON, inside another JSON


def steps(page: str) -> Iterator[tuple[str, list[str]]]:
    """Every command of a page with the lines that it is said to print."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.splitlines()
            yield command, [line for line in lines if line != "..."]


def form(line: str) -> str:
    """A pattern for lines of the same form: words stay; figures, hashes,
    times, labels and names of files do not.
    """
    named = rf"\b(?:{LABELS})\b|[-\w.%+:/]*(?:\d|/|_|-)[-\w.%+:/]*"
    pieces = re.split(rf"({OBJECT}|{DURATION}|{SIZE}|\.\.\.|{named}|\s+)", line.strip())
    return "".join(
        re.escape(piece) if k % 2 == 0 else pattern_of(piece) for k, piece in enumerate(pieces)
    )


def pattern_of(piece: str) -> str:
    if piece == "...":
        return ".*"
    if piece.isspace():
        return r"\s+"
    return next((kind for kind in (OBJECT, DURATION, SIZE) if re.fullmatch(kind, piece)), ANY)


def shrink(config: Path, base: Path) -> None:
    """Have the project train a tiny base, for some seconds, without a gate that it cannot pass."""
    text = config.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^base: .*$", f"base: {base}", text)
    text = re.sub(r"(?m)^pull:\n  sha256: .*\n|^pull: \{.*\n", "", text)
    # beside words such a file has no weight, and is refused
    text = re.sub(r"(?m)^encode: .*\n|^  - \{.*against: tagger.*\n", "", text)
    text = re.sub(
        r"(?m)^  epochs: .*\n  learning_rate: .*$", "  max_steps: 30\n  learning_rate: 1e-2", text
    )
    text = re.sub(r"(?m)^finetune: \{.*?\}", "finetune: {max_steps: 30, learning_rate: 1e-2}", text)
    text = re.sub(
        r"(?m)^calibrate:\n  max_error: .*\n",
        "",
        re.sub(r"min_gain: [\d.]+", "max_drop: 0.99", text),
    )
    config.write_text(
        re.sub(r"min: 0\.\d+", "min: 0.0", re.sub(r"max_drop: 0\.02", "max_drop: 0.9", text)),
        encoding="utf-8",
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_happens(page: str, tiny_base: Path, tmp_path: Path) -> None:
    messy.reports(tmp_path)
    messy.articles(tmp_path, 600)
    messy.chats(tmp_path)
    port = free_port()
    env = tiny.environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    servers = []
    try:
        for command, lines in steps(page):
            command = command.replace("8080", str(port))
            if command.endswith("&"):
                printed, server = start(command.rstrip("& "), tmp_path, env)
                servers.append(server)
            else:
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=tmp_path,
                    env=env,
                    capture_output=True,
                    text=True,
                    timeout=600,
                    check=False,
                )
                assert done.returncode == 0, (command, done.stderr)
                printed = done.stdout + done.stderr
            assert_quoted(lines, printed.splitlines(), command)
            if " init " in command:
                for config in tmp_path.glob("*/slmctl.yaml"):
                    shrink(config, tiny_base)
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)
    assert (servers or page in PAGES[2:]) and all(server.returncode == 0 for server in servers)


def start(command: str, folder: Path, env: dict[str, str]) -> tuple[str, subprocess.Popen[str]]:
    log = folder / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            shlex.split(command), cwd=folder, env=env, stdout=stream, stderr=stream, text=True
        )
    settles(
        lambda: (
            server.poll() is not None
            or re.search(r"^http://\S+$", log.read_text(), flags=re.MULTILINE)
        )
    )
    return log.read_text(), server


def assert_quoted(lines: list[str], printed: list[str], command: str) -> None:
    for line in lines:
        assert any(re.fullmatch(form(line), real.strip()) for real in printed), (
            command,
            line,
            form(line),
            printed,
        )


def test_pages_have_commands_and_forms_tell_lines_apart() -> None:
    assert all(
        len(list(steps(page))) >= least for page, least in zip(PAGES, (10, 6, 2, 1), strict=True)
    )
    assert re.fullmatch(
        form("finetune  7 min 49 s  /tmp/x/6952a288af2d"), "finetune 3 min 01 s  /home/y/abc123"
    )
    assert not re.fullmatch(
        form("finetune  7 min 49 s  /tmp/x/6952a288af2d"), "merge 3 min 01 s  /home/y/abc123"
    )
    assert not re.fullmatch(form("2 rows written to answers.csv"), "2 rows lost")
