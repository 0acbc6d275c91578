"""Secrets: in no manifest, log, traceback or process list, and in no child that does not need them."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import tiny
from support.forks import Forks

import slmctl
from slmctl import child_environment

SECRETS = {
    "HF_TOKEN": "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",
    "HUGGING_FACE_HUB_TOKEN": "hf_canaryHHHHIIIIJJJJKKKKLLLLMMMM",
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY1234",
    "AWS_SECRET_ACCESS_KEY": "canary/aws/secret/0123456789abcdefghijkl",
    "AWS_SESSION_TOKEN": "canary-session-token",
    "OPENAI_API_KEY": "sk-canary-openai-0123456789",
    "GITHUB_TOKEN": "ghp_canary0123456789",
    "WANDB_API_KEY": "canary-wandb-0123456789",
    "DB_PASSWORD": "canary-db-password",
    "DATABASE_URL": "postgresql://me:canary-in-url@db.invalid/x",
    "SLMCTL_TEST_PRIVATE_KEY": "canary-private-key",
}
VALUES = [*SECRETS.values(), "canary-in-url"]
ORDINARY = ("PATH", "HOME", "LANG", "PWD", "OLDPWD", "SHELL", "TERM", "PYTHONHASHSEED", "OMP_NUM_THREADS",
            "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES", "XDG_CACHE_HOME", "KEYBOARD_LAYOUT")  # fmt: skip

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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("subprocess.run", "subprocess.Popen"):
                starters.add(path.name)
                assert "env" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
            forks = path.name == "grammar_child.py"  # itself a child, which has been given an environment
            if isinstance(node, ast.Call) and not (forks and ast.unparse(node.func) == "os.fork"):
                assert ast.unparse(node.func) not in ("os.system", "os.popen", "os.fork"), f"{path}:{node.lineno}"
    assert starters == {"child.py", "fused_kernels.py"}


class Echo(BaseHTTPRequestHandler):
    """An endpoint that repeats whatever it was sent: in an error, or in its answer."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = f"you said {self.headers['Authorization']}"
        if "good" in self.path:
            status, body = 200, {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
        else:
            status, body = 400, {"error": {"message": said}}
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("way", ["good", "bad"])
def test_an_endpoint_that_repeats_its_key(echo: str, desk: Path, tmp_path: Path, preparing: Forks, way: str) -> None:
    (desk / "in.csv").write_text("text\nhello\n")
    args = ("predict", "gguf", "--input", str(desk / "in.csv"), "--output", str(tmp_path / "out.csv"), "--engine-url",
            f"{echo}/{way}/v1", "--engine-model", "m", "--engine-key-env", "OPENAI_API_KEY")  # fmt: skip
    done = preparing.run(desk, *args, env=SECRETS)
    assert done.code == 0, done.stderr
    answers = (tmp_path / "out.csv").read_text()
    assert "***" in answers
    assert not found_in(answers + done.stdout + done.stderr)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None and not tiny.REQUIRED, reason="strace is not installed")
def test_no_secret_is_in_a_file_a_message_or_a_child(tiny_project: Path, tmp_path: Path) -> None:
    """The whole chain, with secrets in its environment; strace shows what every child is given."""
    desk, log = Path(shutil.copytree(tiny_project, tmp_path / "desk")), tmp_path / "execs"
    more = ("--set", "finetune.max_steps=8", "--set", "quantize.types=[Q8_0]")
    command = ["strace", "-f", "-v", "-s", "100000", "-e", "trace=execve", "-o", str(log)]
    done = subprocess.run(
        [*command, *tiny.command(desk, "-v", "run", *more)], env=tiny.environment(**SECRETS), capture_output=True,
        text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not found_in(done.stdout + done.stderr)
    for path in desk.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            assert not [value for value in VALUES if value.encode() in raw], path
    first, *children = [line for line in log.read_text(errors="replace").splitlines() if "execve(" in line]
    assert len(found_in(first)) == len(VALUES), "the control: the program itself was given them"
    assert {name for name in CHILDREN if any(name in line for line in children)} == set(CHILDREN)
    for line in children:
        assert not found_in(line), re.sub(r"\[.*", "", line)


@pytest.mark.slow
def test_a_traceback_holds_no_secret(desk: Path, tmp_path: Path) -> None:
    """A bug, with secrets in the environment and in the config."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import slmctl.sources.snapshot\nslmctl.sources.snapshot.gather = lambda *a: 1 / 0\n"
    )
    source = "prepare.sources=[{sql: {url: '$" + "{DATABASE_URL}', query: select 1}}]"
    done = tiny.slmctl(desk, "prepare", "--set", source, env=tiny.environment(**SECRETS, PYTHONPATH=str(broken)))
    assert "ZeroDivisionError" in done.stderr
    assert not found_in(done.stdout + done.stderr)
