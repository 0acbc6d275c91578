"""`slmctl serve` with a policy and a general model: the whole program, asked over HTTP."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from support import endpoint, here, production, tiny
from support.endpoint import Fake, fails, says
from support.fleets import KEPT, TASKS
from support.forks import Forks
from support.servers import settles
from support.serving import chat

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Manifest
from slmctl.cli.main import cli
from slmctl.inference.escalation_policy import Policy
from slmctl.production.records import CollectedRow
from slmctl.task.contract import Task

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

    def row(self, id: str) -> CollectedRow:
        """A line of what is collected, as soon as it is there."""
        folder = self.decisions.parent / "collected"
        assert settles(lambda: id in {row.id for row in production.rows(folder)})
        return next(row for row in production.rows(folder) if row.id == id)

    def ask(self, text: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **more}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60)

    def complete(self, prompt: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/completions", json={"prompt": prompt}, timeout=60)


def policy_of(release: Path, folder: Path, threshold: float) -> Path:
    """A policy for the file that a release is served with."""
    served = min(release.glob("*.gguf"), key=lambda path: path.stat().st_size)
    names = ("odds", "allowed")
    Policy(
        artifact.sha256_file(served).removeprefix("sha256:"),
        Task.read(release).digest,
        "classify",
        "the label wanted",
        "",
        dict.fromkeys(names, 0.0),
        0.0,
        ((0.0, 0.5),),
        threshold,
    ).write(folder)
    return folder / "policy.json"


@pytest.fixture(scope="module")
def hybrid(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hybrid]:
    """A server that escalates whatever is not sensitive."""
    folder = tmp_path_factory.mktemp("hybrid")
    policy = policy_of(tiny_run / "registry" / "tiny-desk" / "1.0", folder, NEVER)
    said = [says("delivery")]
    with endpoint.serving(lambda body, before: said[-1]) as fake:
        child = tiny.start(
            tiny_run,
            "serve",
            "--port",
            "0",
            "--policy",
            str(policy),
            "--generalist",
            fake.url,
            "--generalist-model",
            "large",
            "--generalist-key-env",
            "THE_KEY",
            "--set",
            f"serve.decision_log={folder / 'decisions.jsonl'}",
            "--set",
            "serve.generalist.timeout_s=5",
            "--set",
            f"serve.collect={{to: {folder / 'collected'}, kept: 0%}}",
            env=tiny.environment(THE_KEY=KEY),
        )
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), child.communicate()
        yield Hybrid(child, url, fake, said, folder / "decisions.jsonl")
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=60)
        assert (child.returncode, KEY in stderr) == (0, False), stderr


def test_an_escalated_answer_is_collected_with_the_answers_of_both_models(hybrid: Hybrid) -> None:
    response = hybrid.ask("where is the parcel of my uncle")
    id, own = response.headers["x-request-id"], response.json()["slmctl"]
    row = hybrid.row(id)
    assert (row.route, row.reason, row.chosen, row.uniform) == (
        "generalist",
        "unsure",
        "escalated",
        False,
    )
    assert (row.answer, row.general_answer, row.local_answer in tiny.WORDS) == (
        "delivery",
        "delivery",
        True,
    )
    assert (row.p_correct, row.local, row.probability) == (own["p_correct"], row.local_answer, 1.0)
    assert settles(lambda: json.dumps(id) in hybrid.decisions.read_text())
    (line,) = [line for line in hybrid.decisions.read_text().splitlines() if json.dumps(id) in line]
    assert (json.loads(line)["p_correct"], json.loads(line)["reason"]) == (row.p_correct, "unsure")
    assert "uncle" not in hybrid.decisions.read_text()


def test_an_answer_of_the_clients_own_form_stays_here() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    several: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", {"messages": chat("is it"), "n": 2}),
        ("completions", {"prompt": ["is it", "or not"]}),
    ]
    with (
        endpoint.serving(lambda body, before: says("from there")) as fake,
        here.deciding(KEPT, TASKS["letters"], fake.url) as server,
    ):
        for more in (
            {"response_format": form},
            {"structured_outputs": {"choice": ["yes", "no"]}},
            {"response_format": form, "stream": True},
        ):
            assert server.ask("is it", **more).headers["x-slmctl-route"] == "local; reason=doubt"
        assert fake.bodies == []
        said = server.ask("is it", response_format={"type": "text"}, max_tokens=3)
        assert (said.headers["x-slmctl-route"], said.status_code) == (
            "generalist; reason=unsure",
            200,
        )
        assert set(fake.bodies[-1]) == {"model", "messages", "max_tokens"}
        for path, body in several:  # one question gets one answer
            refused = httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


def test_serve_and_chat_take_the_policy_that_was_fitted_on_the_file(
    tiny_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "desk")
    made = folder / "runs" / "policy" / "0123456789ab"
    with artifact.draft(made) as place:
        fitted = Policy.read(policy_of(folder / "registry" / "tiny-desk" / "1.0", place, NEVER))
        artifact.seal(
            place,
            made,
            lambda files, digest: Manifest(
                "policy", "calibrate/2", digest, "sha256:0", {}, {}, files, {"sha256": fitted.gguf}
            ),
        )
    with here.opened(folder) as server:
        response = server.ask("where is it")
        assert response.headers["x-slmctl-route"] == "local; reason=unsure"
        assert response.json()["slmctl"]["p_correct"] == 0.5
        # not judged
        assert server.ask("where is it", n=2).headers["x-slmctl-route"] == "local; reason=no-policy"
    with here.opened(folder, "serve.policy=null") as server:
        assert server.ask("where is it").headers["x-slmctl-route"] == "local; reason=no-policy"
    talked = CliRunner().invoke(cli, ["-C", str(folder), "chat"], input="where is it\n")
    assert talked.stdout.strip() in tiny.WORDS
    assert "right with a probability of 50 %: a person should see it" in talked.stderr


def test_a_policy_alone_keeps_everything_here_and_says_what_it_would_do() -> None:
    with here.deciding(KEPT, TASKS["tickets"]) as server:
        response = server.ask("where is it")
        assert response.headers["x-slmctl-route"] == "local; reason=unsure"
        # a decision is told where nothing else is, too
        (decision,) = server.log.of("decision")
        assert (decision["reason"], decision["request"]) == (
            "unsure",
            response.headers["x-request-id"],
        )
        figures = server.get("/metrics").text
        assert 'slmctl_routed_total{reason="unsure",route="local"} 1.0' in figures
        assert "slmctl_first_piece_seconds_count 0.0" in figures  # which is of streams


def test_a_prompt_in_a_list_is_looked_at_and_sent(hybrid: Hybrid) -> None:
    # the router once saw an empty conversation, and sent that
    before = len(hybrid.fake.bodies)
    for prompt in ("refund 4111 1111 1111 1111", ["refund 4111 1111 1111 1111"]):
        assert hybrid.complete(prompt).headers["x-slmctl-route"] == "local; reason=sensitive"
    assert len(hybrid.fake.bodies) == before
    for prompt in ("where is my parcel", ["where is my parcel"]):
        assert hybrid.complete(prompt).headers["x-slmctl-route"] == "generalist; reason=unsure"
        assert hybrid.fake.questions[-1] == "where is my parcel"


def test_an_escalated_answer_says_who_gave_it(hybrid: Hybrid) -> None:
    response = hybrid.ask("where is my parcel", user="jane", max_tokens=3)
    assert response.headers["x-slmctl-route"] == "generalist; reason=unsure"
    body = response.json()
    assert (body["model"], body["choices"][0]["message"]["content"]) == ("large", "delivery")
    said = body["slmctl"]
    assert (said["route"], said["reason"], said["model"], said["p_correct"]) == (
        "generalist",
        "unsure",
        "large",
        0.5,
    )
    # the local model's once stood under the other's answer
    assert said["confidence"] is None and "labels" not in said
    sent, headers = hybrid.fake.bodies[-1], hybrid.fake.headers[-1]
    assert set(sent) == {"model", "messages", "max_tokens", "temperature"}
    assert headers["authorization"] == f"Bearer {KEY}"


def test_a_stream_is_the_answer_of_one_model(hybrid: Hybrid) -> None:
    response = hybrid.ask("where is my parcel", stream=True)
    assert response.headers["x-slmctl-route"] == "generalist; reason=unsure"
    *raw, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    chunks = [json.loads(line) for line in raw]
    assert done == "[DONE]"
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "delivery"
    )
    assert chunks[-1]["slmctl"]["model"] == "large"


def test_a_response_goes_the_way_of_a_chat(hybrid: Hybrid) -> None:
    hybrid.said.append(says("delivery"))
    form = {
        "type": "json_schema",
        "name": "x",
        "schema": {
            "type": "object",
            "properties": {"kind": {"enum": ["billing", "delivery", "account"]}},
        },
    }

    def ask(question: str, **more: Any) -> httpx.Response:
        return httpx.post(
            f"{hybrid.url}/v1/responses", json={"input": question, **more}, timeout=60
        )

    response = ask("where is the parcel of my sister")
    assert response.headers["x-slmctl-route"] == "generalist; reason=unsure"
    body = response.json()
    assert (body["model"], body["output"][0]["content"][0]["text"]) == ("large", "delivery")
    assert hybrid.fake.questions[-1] == "where is the parcel of my sister"
    id = response.headers["x-request-id"]
    row = hybrid.row(id)
    assert (row.answer, row.messages[-1]["content"]) == (
        "delivery",
        "where is the parcel of my sister",
    )
    streamed = ask(
        "where is the parcel of my brother", stream=True, text={"format": form}
    ).text.splitlines()
    last = json.loads(streamed[-2].removeprefix("data: "))
    assert last["type"] == "response.completed"
    assert json.loads(last["response"]["output"][0]["content"][0]["text"]) == {"kind": "delivery"}
    asked = len(hybrid.fake.bodies)
    assert ask("I am ann@firm.example").headers["x-slmctl-route"] == "local; reason=sensitive"
    assert len(hybrid.fake.bodies) == asked


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
    response = hybrid.ask("where is my parcel")
    hybrid.said.pop()
    assert response.headers["x-slmctl-route"] == "local; reason=generalist-error"
    assert response.json()["choices"][0]["message"]["content"] in tiny.WORDS
    assert "tiny-desk" in response.json()["slmctl"]["model"]
    assert hybrid.ask("where is my parcel").json()["slmctl"]["model"] == "large"


def test_the_key_is_in_this_process_alone(hybrid: Hybrid) -> None:
    children = (
        Path(f"/proc/{hybrid.child.pid}/task/{hybrid.child.pid}/children")
        .read_text(encoding="utf-8")
        .split()
    )
    assert children
    for child in children:
        assert KEY.encode() not in Path(f"/proc/{child}/environ").read_bytes()
    assert KEY.encode() in Path(f"/proc/{hybrid.child.pid}/environ").read_bytes()
    assert KEY not in hybrid.decisions.read_text(encoding="utf-8")


def test_metrics_count_both_routes(hybrid: Hybrid) -> None:
    hybrid.ask("where is my parcel")
    hybrid.ask("refund my card 4111 1111 1111 1111")
    page = httpx.get(f"{hybrid.url}/metrics", timeout=60).text
    counted = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line[0] != "#"
    }
    assert counted['slmctl_routed_total{reason="unsure",route="generalist"}'] > 0
    assert counted['slmctl_routed_total{reason="sensitive",route="local"}'] > 0
    assert counted["slmctl_circuit_open"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--generalist", "http://general.example/v1"], "serve.generalist.model: is required"),
        (
            ["--generalist", "http://general.example/v1", "--generalist-model", "x"],
            "no policy below runs/ was fitted on",
        ),
        (["--policy", "missing.json"], "there is no policy at"),
    ],
)
def test_what_does_not_fit_is_said(
    stages: Forks, tiny_run: Path, flags: list[str], message: str
) -> None:
    done = stages.run(tiny_run, "serve", "--port", "0", *flags)
    assert done.returncode in (2, 7)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
