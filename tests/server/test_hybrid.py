"""`slmctl serve` with a policy and a general model: the whole program, asked over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import endpoint
import httpx
import pytest
import tiny
from endpoint import Fake, fails, says

from slmctl import artifact
from slmctl.policy import Policy
from slmctl.task import Task

KEY = "sk-" + "of-the-generalist"
NEVER = 1e9  # a score that no answer has


@dataclass(frozen=True)
class Hybrid:
    """A server with its general model."""

    child: subprocess.Popen[str]
    url: str
    fake: Fake
    said: list[endpoint.Turn]  # what the general model says; the last one again and again
    decisions: Path

    def ask(self, text: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **more}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def policy_of(release: Path, folder: Path, threshold: float) -> Path:
    """A policy for the file that a release is served with."""
    served = min(release.glob("*.gguf"), key=lambda path: path.stat().st_size)
    names = ("odds", "allowed")
    Policy(artifact.sha256_file(served).removeprefix("sha256:"), Task.read(release).digest, "classify",
           "the label wanted", "", dict.fromkeys(names, 0.0), 0.0, ((0.0, 0.5),), threshold).write(folder)  # fmt: skip
    return folder / "policy.json"


@pytest.fixture(scope="module")
def hybrid(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hybrid]:
    """A server that escalates whatever is not sensitive."""
    folder = tmp_path_factory.mktemp("hybrid")
    policy = policy_of(tiny_run / "registry" / "tiny-desk" / "1.0", folder, NEVER)
    said = [says("delivery")]
    with endpoint.serving(lambda body, before: said[-1]) as fake:
        child = tiny.start(
            tiny_run, "serve", "--port", "0", "--policy", str(policy), "--generalist", fake.url,
            "--generalist-model", "large", "--generalist-key-env", "THE_KEY",
            "--set", f"serve.decisions={folder / 'decisions.jsonl'}", "--set", "serve.generalist.timeout_s=5",
            env=tiny.environment(THE_KEY=KEY),
        )  # fmt: skip
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), child.communicate()
        yield Hybrid(child, url, fake, said, folder / "decisions.jsonl")
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=60)
        assert (child.returncode, KEY in stderr) == (0, False), stderr


def test_an_escalated_answer_says_who_gave_it(hybrid: Hybrid) -> None:
    response = hybrid.ask("where is my parcel", user="jane", max_tokens=3)
    assert response.headers["x-slmctl-route"] == "generalist; reason=unsure"
    body = response.json()
    assert (body["model"], body["choices"][0]["message"]["content"]) == ("large", "delivery")
    said = body["slmctl"]
    assert (said["route"], said["reason"], said["model"], said["p_correct"]) == ("generalist", "unsure", "large", 0.5)
    sent, headers = hybrid.fake.bodies[-1], hybrid.fake.headers[-1]
    assert set(sent) == {"model", "messages", "max_tokens", "temperature"}
    assert headers["authorization"] == f"Bearer {KEY}"


def test_a_stream_is_the_answer_of_one_model(hybrid: Hybrid) -> None:
    response = hybrid.ask("where is my parcel", stream=True)
    assert response.headers["x-slmctl-route"] == "generalist; reason=unsure"
    *raw, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    chunks = [json.loads(line) for line in raw]
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "delivery"
    assert chunks[-1]["slmctl"]["model"] == "large"


def test_what_is_sensitive_is_answered_here(hybrid: Hybrid) -> None:
    before = len(hybrid.fake.bodies)
    for response in (
        hybrid.ask("refund my card 4111 1111 1111 1111"),
        hybrid.ask("refund my card", headers={"x-slmctl-sensitive": "true"}),
        hybrid.ask("refund my card ４１１１ 1111 １１１１ 1111", stream=True),
    ):
        assert response.headers["x-slmctl-route"] == "local; reason=sensitive"
        assert response.status_code == 200
        assert any(label in response.text for label in tiny.WORDS)
    assert len(hybrid.fake.bodies) == before


def test_a_failure_is_answered_here_and_flagged(hybrid: Hybrid) -> None:
    hybrid.said.append(fails(500))
    try:
        response = hybrid.ask("where is my parcel")
        assert response.headers["x-slmctl-route"] == "local; reason=generalist-error"
        assert response.json()["choices"][0]["message"]["content"] in tiny.WORDS
        assert "tiny-desk" in response.json()["slmctl"]["model"]
    finally:
        hybrid.said.pop()
    assert hybrid.ask("where is my parcel").json()["slmctl"]["model"] == "large"


def test_the_key_is_in_this_process_alone(hybrid: Hybrid) -> None:
    children = Path(f"/proc/{hybrid.child.pid}/task/{hybrid.child.pid}/children").read_text(encoding="utf-8").split()
    assert children
    for child in children:
        assert KEY.encode() not in Path(f"/proc/{child}/environ").read_bytes()
    assert KEY.encode() in Path(f"/proc/{hybrid.child.pid}/environ").read_bytes()
    assert KEY not in hybrid.decisions.read_text(encoding="utf-8")


def test_decisions_are_on_disk(hybrid: Hybrid) -> None:
    said = hybrid.ask("peculiar words")
    lines = [json.loads(line) for line in hybrid.decisions.read_text(encoding="utf-8").splitlines()]
    assert (lines[-1]["reason"], lines[-1]["request"]) == ("unsure", said.headers["x-request-id"])
    assert "peculiar" not in hybrid.decisions.read_text(encoding="utf-8")


def test_metrics_count_both_routes(hybrid: Hybrid) -> None:
    hybrid.ask("where is my parcel")
    hybrid.ask("refund my card 4111 1111 1111 1111")
    page = httpx.get(f"{hybrid.url}/metrics", timeout=60).text
    counted = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[0] != "#"}
    assert counted['slmctl_routed_total{reason="unsure",route="generalist"}'] > 0
    assert counted['slmctl_routed_total{reason="sensitive",route="local"}'] > 0
    assert counted["slmctl_circuit_open"] == 0


def test_a_policy_alone_keeps_everything_here_and_says_what_it_would_do(tiny_run: Path, tmp_path: Path) -> None:
    policy = policy_of(tiny_run / "registry" / "tiny-desk" / "1.0", tmp_path, NEVER)
    child = tiny.start(tiny_run, "serve", "--port", "0", "--policy", str(policy))
    assert child.stdout is not None
    url = child.stdout.readline().strip()
    body = {"messages": [{"role": "user", "content": "where is it"}]}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    os.kill(child.pid, signal.SIGTERM)
    _, stderr = child.communicate(timeout=60)
    assert response.headers["x-slmctl-route"] == "local; reason=unsure"
    assert '"reason": "unsure"' in stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--generalist", "http://general.example/v1"], "serve.generalist.model: is required"),
        (["--generalist", "http://general.example/v1", "--generalist-model", "x"], "'generalist' needs 'policy'"),
        (["--policy", "missing.json"], "there is no policy at"),
    ],
)
def test_what_does_not_fit_is_said(tiny_run: Path, flags: list[str], message: str) -> None:
    done = tiny.slmctl(tiny_run, "serve", "--port", "0", *flags)
    assert done.returncode in (2, 7)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
