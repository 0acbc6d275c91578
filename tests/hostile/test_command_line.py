"""Hostile command lines, configs, streams and surroundings: each ends
with its documented code and a sentence.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from support import tiny
from support.forks import Forks
from support.scale import FULL

from slmctl import config
from slmctl.cli import main
from slmctl.errors import UsageError

SCRIPT = Path(sys.executable).with_name("slmctl")
GOOD = "project: acme\nbase: base\n"
DEADLINE_S = 60
NOT_UTF8 = "bad\udcffname"  # as os.fsdecode gives the byte 0xff
LONG = "x" * 5000

# (name, files to make, arguments, shell redirections, expected code); "@" is the folder of the case
Make = Callable[[Path], None]


def text(content: str | bytes) -> Make:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.joinpath("slmctl.yaml").write_bytes(data) and None


def fifo(path: Path) -> None:
    os.mkfifo(path / "slmctl.yaml")


def folder(path: Path) -> None:
    (path / "slmctl.yaml").mkdir()


def device(path: Path) -> None:
    (path / "slmctl.yaml").symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    (path / "slmctl.yaml").symlink_to("slmctl.yaml")


def large(path: Path) -> None:
    with (path / "slmctl.yaml").open("wb") as stream:
        stream.truncate(3 << 30)


def oddly_named(path: Path) -> None:
    (path / NOT_UTF8).mkdir()
    (path / NOT_UTF8 / "slmctl.yaml").write_text(GOOD)


def manifest(content: bytes) -> Make:
    return lambda path: path.joinpath("manifest.json").write_bytes(content) and None


CONFIGS: list[tuple[str, Make, int]] = [
    ("deep lists", text("a: " + "[" * 50_000), 2),
    ("deep mappings", text("a: " + "{a: " * 50_000), 2),
    ("deep blocks", text("- " * 20_000), 2),
    ("deep keys", text("? " * 20_000), 2),
    ("deep lines", text("".join(" " * k + "a:\n" for k in range(400))), 2),
    ("a named pipe", fifo, 2),
    ("a folder", folder, 2),
    ("a device", device, 2),
    ("a link to itself", dangling, 2),
    ("3 GB", large, 2),
    ("Latin-1", text("task: {system: größe}".encode("latin-1")), 2),
    ("UTF-16", text(GOOD.encode("utf-16")), 2),
    ("NUL", text("project: a\0b\n"), 2),
    ("a byte order mark", text(b"\xef\xbb\xbf" + GOOD.encode()), 0),
    ("half a surrogate pair", text('project: "\\ud800"\nbase: base\n'), 2),
    # the sentence held the whole config
    ("half a surrogate pair as a key", text(GOOD + '"\\ud800": 1\n'), 2),
    # each was explained at length
    ("many unknown keys", text(GOOD + "".join(f"a{k}: 1\n" for k in range(2_000))), 2),
    ("an escape beyond Unicode", text('project: a\nbase: "\\U00110000"\n'), 2),
    ("the largest escape", text('project: "\\Uffffffff"\n'), 2),
    ("an infinite number", text(GOOD + "finetune: {epochs: 1e999}\n"), 2),
    ("a number of many digits", text(GOOD + "serve: {queue: " + "9" * 5000 + "}\n"), 2),
    ("a long key", text(GOOD + "k" * 900_000 + ": 1\n"), 2),
    ("no home", text("project: a\nbase: ~nobody-of-that-name/x\n"), 2),
    ("a good one", text(GOOD), 0),
]


@pytest.fixture(scope="module")
def lines(heavy_children: Forks) -> Iterator[Forks]:
    """Forks that have what the command line needs; a process of its
    own starts where streams are hostile.
    """
    with Forks("slmctl.cli.main", "slmctl.config", heavy=heavy_children) as forks:
        yield forks


@pytest.fixture(scope="module")
def strict_lines() -> Iterator[Forks]:
    """The same with streams that take no half of a surrogate pair."""
    with Forks(
        "slmctl.cli.main", "slmctl.config", env=tiny.environment(PYTHONIOENCODING="utf-8:strict")
    ) as forks:
        yield forks


def run(
    place: Path, *arguments: str, shell: str = "", **env: str
) -> subprocess.CompletedProcess[bytes]:
    line = " ".join([shlex.quote(str(SCRIPT)), *map(shlex.quote, arguments), shell])
    surroundings = {
        name: value for name, value in os.environ.items() if not name.startswith("SLMCTL")
    }
    return subprocess.run(
        ["bash", "-c", os.fsencode("set -o pipefail; " + line)],
        cwd=place,
        env=surroundings | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )


def forked(
    forks: Forks, place: Path, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a folder, in a fork; its arguments have been decoded."""
    done = forks.run(None, *arguments, cwd=place, **options)
    return subprocess.CompletedProcess(
        arguments, done.code, os.fsencode(done.stdout), os.fsencode(done.stderr)
    )


def require_sentence(done: subprocess.CompletedProcess[bytes], code: int) -> None:
    assert done.returncode == code, done.stderr[-2000:]
    assert b"Traceback" not in done.stderr
    assert len(done.stderr) < 30_000


@pytest.mark.parametrize(
    ("make", "code"), [case[1:] for case in CONFIGS], ids=[case[0] for case in CONFIGS]
)
def test_a_hostile_config_is_a_sentence(
    make: Make, code: int, lines: Forks, tmp_path: Path
) -> None:
    make(tmp_path)
    require_sentence(forked(lines, tmp_path, "config", "show"), code)


ARGUMENTS: list[tuple[str, list[str], int]] = [
    ("a deep value", ["config", "show", "--set", "task.system=" + "[" * 50_000], 2),
    ("a deep key", ["config", "show", "--set", ".".join("a" * 30_000) + "=1"], 2),
    ("a key of no UTF-8", ["config", "show", "--set", NOT_UTF8 + "=1"], 2),
    ("a value of no UTF-8", ["config", "show", "--set", "task.system=" + NOT_UTF8], 2),
    ("half a pair", ["config", "show", "--set", 'project="\\udfff"'], 2),
    ("an escape beyond Unicode", ["config", "show", "--set", 'project="\\U00110000"'], 2),
    ("a rate that is NaN", ["keys", "add", "a", "--rate", "nan"], 2),
    ("an endless rate", ["keys", "add", "a", "--rate", "inf"], 2),
    ("a key for a model of no UTF-8", ["keys", "add", "a", "--model", NOT_UTF8], 2),
    ("a key for no model", ["keys", "add", "a", "--model", ""], 2),
    ("a key for a model of two lines", ["keys", "add", "a", "--model", "a\nb"], 2),
    ("keys in no file", ["keys", "add", "a", "--keys", ""], 2),
    ("keys in a folder", ["keys", "add", "a", "--keys", "/"], 2),
    ("endless keys", ["keys", "list", "--keys", "/dev/zero"], 7),
    ("an endless log", ["watch", "/dev/zero"], 2),
    ("a password in a bucket", ["fetch", "s3://user:hunter22@bucket/x", "out"], 2),
    ("a long folder", ["-C", LONG, "config", "show"], 2),
    ("a long path", ["verify", LONG], 2),
    ("a long artifact", ["show", LONG], 7),
    ("a long template folder", ["init", "support-triage", LONG], 2),
    ("a folder below a device", ["init", "support-triage", "/dev/null/x"], 2),
    ("a folder below /proc", ["init", "support-triage", "/proc/x"], 2),
    ("a folder of no UTF-8", ["-C", NOT_UTF8, "config", "show"], 0),
    ("an artifact of no UTF-8", ["show", NOT_UTF8], 7),
    ("damage of no UTF-8", ["verify", NOT_UTF8], 7),
    ("a project of no UTF-8", ["init", "support-triage", NOT_UTF8 + "2"], 0),
    ("an unknown command of no UTF-8", [NOT_UTF8], 2),
]


# of no UTF-8, as strict streams take none
ODD = [case for case in ARGUMENTS if not " ".join(case[1]).isascii() or "\\u" in " ".join(case[1])]


@pytest.mark.parametrize(
    ("arguments", "code", "streams"),
    [
        pytest.param(*case[1:], streams, id=f"{case[0]}, {streams}")
        for streams, cases in (("lines", ARGUMENTS), ("strict_lines", ODD))
        for case in cases
    ],
)
def test_a_hostile_argument_is_a_sentence(
    arguments: list[str], code: int, streams: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "slmctl.yaml").write_text(GOOD)
    oddly_named(tmp_path)
    done = forked(request.getfixturevalue(streams), tmp_path, *arguments)
    require_sentence(done, code)
    assert b"hunter22" not in done.stdout + done.stderr


COMMANDS = (
    "gc",
    "config show",
    "run --plan",
    "prepare",
    "keys list",
    "watch",
    "promote 1.0 --tag x",
    "serve",
    "review",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_set_of_no_utf_8_is_one_short_sentence_that_tells_nothing_of_the_config(
    command: str, lines: Forks, tmp_path: Path
) -> None:
    """It printed every value of the config."""
    (tmp_path / "slmctl.yaml").write_text(GOOD + "task: {kind: generate, system: the-own-prompt}\n")
    done = forked(lines, tmp_path, *command.split(), "--set", os.fsdecode(b"\xff=1"))
    require_sentence(done, 2)
    first, *others = done.stderr.decode().splitlines()
    assert first.startswith(r"error: --set: \udcff: unknown key; known here: project, version")
    assert len(others) == 1 and "the-own-prompt" not in first


@pytest.mark.parametrize("encoding", ["", "utf-8:strict"], ids=["locale", "strict UTF-8"])
@pytest.mark.parametrize(
    ("arguments", "code"), [(["-C", NOT_UTF8, "config", "show"], 0), ([NOT_UTF8], 2)]
)
def test_a_process_of_its_own_decodes_its_arguments(
    arguments: list[str], code: int, encoding: str, tmp_path: Path
) -> None:
    oddly_named(tmp_path)
    require_sentence(
        run(tmp_path, *arguments, **({"PYTHONIOENCODING": encoding} if encoding else {})), code
    )


MANIFESTS: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("deep", b"[" * 100_000),
    ("a list", b"[]"),
    ("a number", b"1"),
    ("not UTF-8", b"\xff\xfe"),
    ("a number of many digits", b"1" * 10_000),
]


@pytest.mark.parametrize(
    "content", [case[1] for case in MANIFESTS], ids=[case[0] for case in MANIFESTS]
)
@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_hostile_manifest_is_7(
    command: str, content: bytes, lines: Forks, tmp_path: Path
) -> None:
    manifest(content)(tmp_path)
    require_sentence(forked(lines, tmp_path, command, "."), 7)


STREAMS: list[tuple[str, list[str], str, int]] = [
    ("stdout closed", ["config", "show"], ">&-", 6),
    ("stdout and stderr closed", ["config", "show"], ">&- 2>&-", 6),
    ("all closed", ["config", "show"], "<&- >&- 2>&-", 6),
    ("stdin closed", ["trace", "--text", "-"], "<&-", 2),
    ("help with stdout closed", ["--help"], ">&-", 0),
    ("a reader that ends", ["config", "schema"], "| head -c 1", 0),
    ("a reader that reads nothing", ["config", "schema"], "| true", 0),
    ("a full disk", ["config", "schema"], ">/dev/full", 6),
    ("help on a full disk", ["--help"], ">/dev/full", 6),
    ("notes on a full disk", ["config", "show"], "2>/dev/full", 0),
    ("an error on a full disk", ["show", "nothing"], "2>/dev/full", 7),
    ("bytes on stdin", ["trace", "--text", "-"], "< slmctl.bin", 7),
]


@pytest.mark.parametrize(
    ("arguments", "shell", "code"),
    [case[1:] for case in STREAMS],
    ids=[case[0] for case in STREAMS],
)
def test_a_hostile_stream_is_a_sentence(
    arguments: list[str], shell: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "slmctl.yaml").write_text(GOOD)
    (tmp_path / "slmctl.bin").write_bytes(bytes(range(1, 256)))
    require_sentence(run(tmp_path, *arguments, shell=shell, PYTHONIOENCODING="utf-8:strict"), code)


@pytest.mark.parametrize("limit", [120_000, 250_000, 330_000, 700_000])
def test_too_little_memory_is_a_sentence(limit: int, tmp_path: Path) -> None:
    # the sentence itself needed an import, and native code hung or ended the process
    (tmp_path / "slmctl.yaml").write_text(GOOD)
    line = f"ulimit -v {limit}; {shlex.quote(str(SCRIPT))} prepare"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, capture_output=True, timeout=DEADLINE_S, check=False
    )
    said = b"ulimit -v" if limit > 200_000 else b"emory"  # with less a library says so itself
    assert done.returncode != 0 and said in done.stderr and b"Traceback" not in done.stderr, (
        done.stderr[-2000:]
    )


def test_a_library_that_meets_the_end_of_a_file_is_no_ctrl_d(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # it ended with 130, without a word
    @click.command()
    def cut() -> None:
        raise EOFError("no data left in file")

    monkeypatch.setitem(main.cli.commands, "cut", cut)
    monkeypatch.setattr(sys, "argv", ["slmctl", "cut"])
    with pytest.raises(EOFError, match="no data left"):
        main._run_command()


@pytest.mark.parametrize(
    "module", ["slmctl.cli.main", "click", "slmctl.network.guard", "slmctl.config", "pydantic"]
)
def test_ctrl_c_is_a_line_from_the_first_import_on(module: str, tmp_path: Path) -> None:
    # imports ended with a traceback, and a command without a word
    program = (
        "import os, runpy, signal, sys\nclass Stop:\n    def find_spec(self, name, *rest):\n"
        f"        if name == {module!r}:\n            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop())\nsys.argv = ['slmctl', 'config', 'show']\n"
        "runpy.run_module('slmctl', run_name='__main__')\n"
    )
    (tmp_path / "slmctl.yaml").write_text(GOOD)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr.strip(), done.stdout) == (130, b"interrupted", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_nothing_at_the_exit(number: signal.Signals) -> None:
    # an exception there was printed with its traceback behind the command's last words
    program = (
        "import atexit, sys, time\nfrom slmctl.cli import main\n"
        "atexit.register(lambda: (print('late', flush=True), time.sleep(60)))\n"
        "sys.argv = ['slmctl', '--version']\nmain.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        while child.stdout.readline() != b"late\n":
            pass
        child.send_signal(number)
        assert (child.wait(60), child.stderr.read()) == (-number, b"")


def test_a_limit_of_the_users_stays_where_it_is_lower() -> None:
    # the children of templates and detectors ended with "not allowed to raise maximum limit"
    program = (
        "import resource\nfrom slmctl import child\nresource.setrlimit(resource.RLIMIT_FSIZE, "
        "(1000, 1000))\n"
        "child.bound(file_bytes=1 << 30, memory=1 << "
        "40)\nprint(resource.getrlimit(resource.RLIMIT_FSIZE)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.stdout == b"1000\n", done.stderr


def test_a_closed_stdout_lends_its_number_to_no_file(tmp_path: Path) -> None:
    # without a stand-in the first file that is opened gets number 1, and what is printed lands in
    # it
    done = run(tmp_path, "init", "support-triage", "made", shell=">&-")
    require_sentence(done, 6)
    config.load(tmp_path / "made" / "slmctl.yaml")
    assert (tmp_path / "made" / "support_tickets.csv").read_bytes().startswith(b"ticket_id,")


def test_without_a_home_there_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "slmctl.yaml").write_text(GOOD)
    for command, codes in (("config show", (0,)), ("doctor", (0, 4))):
        line = f"env -u HOME {shlex.quote(str(SCRIPT))} {command}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, capture_output=True, timeout=DEADLINE_S, check=False
        )
        assert done.returncode in codes, done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "home", ["/proc", "/dev/null", "relative", LONG], ids=lambda home: home[:20]
)
def test_a_hostile_home_is_no_traceback(home: str, lines: Forks, tmp_path: Path) -> None:
    (tmp_path / "slmctl.yaml").write_text(GOOD)
    require_sentence(forked(lines, tmp_path, "config", "show", env={"HOME": home}), 0)
    doctor = forked(lines, tmp_path, "doctor", env={"HOME": home})
    assert doctor.returncode in (0, 2, 4), doctor.stderr  # 2: a home whose name no system takes
    assert b"Traceback" not in doctor.stderr


def generated(seed: int) -> str:
    """A text of brackets, keys, anchors and odd characters,
    nested up to far beyond what is read.
    """
    choose = random.Random(seed)
    pieces = [
        "[",
        "{",
        "- ",
        "? ",
        "a: ",
        "&a ",
        "*a",
        "]",
        "}",
        ", ",
        "\n",
        " ",
        "!!x ",
        "'",
        '"',
        "|",
        ">",
        "%",
        "\u2028",
        "\x85",
        "\ud800",
        "\\ud800",
        "1e400",
        ".inf",
        "9" * 40,
        "<<: ",
        "---\n",
        "é",
    ]
    repeated = [
        choose.choice(pieces) * choose.choice([1, 1, 2, 30, 1000])
        for _ in range(choose.randint(1, 30))
    ]
    return choose.choice(["", GOOD, "a: "]) + "".join(repeated)


@pytest.mark.parametrize("block", range(10))
def test_generated_texts_are_configs_or_usage_errors(block: int) -> None:
    count = 5000 if FULL else 12
    for seed in range(block * count, (block + 1) * count):
        made = generated(seed)
        for arguments in ((made, ()), (GOOD, [f"task.system={made}"]), (GOOD, [made])):
            try:
                config.parse(*arguments)
            except UsageError as error:
                assert error.message, seed


def test_what_is_shown_of_a_config_reads_back(tmp_path: Path) -> None:
    # texts that YAML could take for something else, or a terminal for a command
    for word in ("no", "1e3", "~", "é", "\u2028", "\t x", "a: b", "- a", "\x1b[31m"):
        written = yaml.safe_dump(
            {
                "project": "acme",
                "base": "b",
                "task": {"system": word},
                "prepare": {"sources": [{"path": "a.csv"}]},
            }
        )
        shown = yaml.safe_dump(config.parse(written).as_written(), allow_unicode=True)
        assert config.parse(shown).task.system == word


def test_passwords_in_addresses_are_not_shown(lines: Forks, tmp_path: Path) -> None:
    url = "http://u:hunter22@host.example/v1"
    more = (
        f"publish: {{to: 's3://user:hunter22@bucket/x'}}\nserve: {{generalist: {{url: '{url}', "
        f"model: m}}}}\n"
    )
    (tmp_path / "slmctl.yaml").write_text(GOOD + more)
    done = forked(lines, tmp_path, "config", "show")
    assert b"hunter22" not in done.stdout + done.stderr and done.stdout.count(b":***@") == 2, (
        done.stdout
    )
