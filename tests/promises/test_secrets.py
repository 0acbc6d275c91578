"""Secrets: in no manifest, log, traceback or process list, and in
no child that does not need them.
"""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

import pytest
from support import tiny
from support.alone import SECRETS, can_be_alone
from support.forks import Forks
from support.servers import QuietHandler, listening

import slmctl
from slmctl import child_environment

VALUES = [*SECRETS.values(), "canary-in-url"]
ORDINARY = (
    "PATH",
    "HOME",
    "LANG",
    "PWD",
    "OLDPWD",
    "SHELL",
    "TERM",
    "PYTHONHASHSEED",
    "OMP_NUM_THREADS",
    "VIRTUAL_ENV",
    "CUDA_VISIBLE_DEVICES",
    "XDG_CACHE_HOME",
    "KEYBOARD_LAYOUT",
)

CHILDREN = ("llama_child", "quantizer_child", "gguf_converter_child")


def found_in(text: str) -> list[str]:
    return [value for value in VALUES if value in text]


@pytest.mark.parametrize("name", SECRETS)
def test_a_variable_that_holds_a_secret_is_known(name: str) -> None:
    assert child_environment.is_secret(name, SECRETS[name])


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_variable_is_none(name: str) -> None:
    assert not child_environment.is_secret(name, "/usr/bin")


def test_children_get_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:canary-in-url@index.invalid/simple")
    assert not found_in(json.dumps(child_environment.bare()))
    assert not found_in(json.dumps(child_environment.without_secrets()))
    assert child_environment.without_secrets("PIP_")["PIP_INDEX_URL"].startswith("https://me:")
    with child_environment.hidden():
        assert not found_in(json.dumps(dict(os.environ)))
    assert os.environ["HF_TOKEN"] == SECRETS["HF_TOKEN"]


def test_every_child_is_given_an_environment() -> None:
    """No process is started with all of this one's environment by leaving `env` out."""
    root, starters = Path(slmctl.__file__).parent, set()
    for path in sorted(root.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in (
            ast.walk(ast.parse(source))
            if re.search(r"subprocess|system|popen|fork", source)
            else ()
        ):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "subprocess.run",
                "subprocess.Popen",
            ):
                starters.add(path.name)
                assert "env" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
            # itself a child, which has been given an environment
            forks = path.name == "grammar_child.py"
            if isinstance(node, ast.Call) and not (forks and ast.unparse(node.func) == "os.fork"):
                assert ast.unparse(node.func) not in ("os.system", "os.popen", "os.fork"), (
                    f"{path}:{node.lineno}"
                )
    assert starters == {"child.py", "fused_kernels.py"}


class Echo(QuietHandler):
    """An endpoint that repeats whatever it was sent: in an error, or in its answer."""

    def do_POST(self) -> None:
        self.body()
        said = f"you said {self.headers['Authorization']}"
        if "good" in self.path:
            status, body = (
                200,
                {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]},
            )
        else:
            status, body = 400, {"error": {"message": said}}
        self.reply(json.dumps(body).encode(), status)


@pytest.mark.parametrize("way", ["good", "bad"])
def test_an_endpoint_that_repeats_its_key(
    desk: Path, tmp_path: Path, preparing: Forks, way: str
) -> None:
    (desk / "in.csv").write_text("text\nhello\n")
    args = (
        "predict",
        "gguf",
        "--input",
        str(desk / "in.csv"),
        "--output",
        str(tmp_path / "out.csv"),
    )
    with listening(Echo) as url:
        asking = (
            "--engine-url",
            f"{url}/{way}/v1",
            "--engine-model",
            "m",
            "--engine-key-env",
            "OPENAI_API_KEY",
        )
        done = preparing.run(desk, *args, *asking, env=SECRETS)
    assert done.code == 0, done.stderr
    answers = (tmp_path / "out.csv").read_text()
    assert "***" in answers
    assert not found_in(answers + done.stdout + done.stderr)


@pytest.mark.slow
@pytest.mark.skipif(not can_be_alone() and not tiny.REQUIRED, reason="no strace, or no namespace")
def test_no_secret_is_in_a_file_a_message_or_a_child(chain: Path) -> None:
    """The whole chain, with secrets in its environment; strace shows what every child is given."""
    for path in chain.glob("desk/**/*"):
        assert not path.is_file() or not [
            value for value in VALUES if value.encode() in path.read_bytes()
        ], path
    started = set()
    for step in json.loads((chain / "alone" / "report.json").read_text())["steps"]:
        assert not found_in(step["stdout"] + step["stderr"])
        first, *children = step["started"]
        assert len(found_in(first)) == len(VALUES), "the control: the program itself was given them"
        for line in children:
            assert not found_in(line), re.sub(r"\[.*", "", line)
        started |= {name for name in CHILDREN for line in children if name in line}
    assert started == {*CHILDREN}


@pytest.mark.slow
def test_a_traceback_holds_no_secret(desk: Path, tmp_path: Path) -> None:
    """A bug, with secrets in the environment and in the config."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import slmctl.sources.snapshot\nslmctl.sources.snapshot.gather = lambda *a: 1 / 0\n"
    )
    source = "prepare.sources=[{sql: {url: '$" + "{DATABASE_URL}', query: select 1}}]"
    done = tiny.slmctl(
        desk, "prepare", "--set", source, env=tiny.environment(**SECRETS, PYTHONPATH=str(broken))
    )
    assert "ZeroDivisionError" in done.stderr
    assert not found_in(done.stdout + done.stderr)
