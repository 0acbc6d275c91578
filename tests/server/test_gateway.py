"""What stands before the engine: OpenAI's client, keys, limits, adapters, other engines, logs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from support import here, tiny
from support.endpoint import Turn, streams
from support.forks import Forks
from support.program import slmctl
from support.servers import settles
from support.serving import begin, chat, end, lines_of, post

from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import ServeConfig
from slmctl.server import api_keys, gateway, rate_limits
from slmctl.server.forms.request import read_body
from slmctl.task.contract import Task


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def test_openais_client_gets_a_label_with_its_confidence(desk_url: str) -> None:
    with client(desk_url) as ask:
        (model,) = ask.models.list().data
        raw = ask.chat.completions.with_raw_response.create(
            model=model.id, messages=chat("refund my card")
        )
        said = raw.parse()
        assert raw.headers["x-slmctl-route"] == "local; reason=no-policy"
        assert said.choices[0].message.content in tiny.WORDS
        own = said.model_extra["slmctl"]
        assert (own["task"], own["route"], own["reason"], own["model"]) == (
            "classify",
            "local",
            "no-policy",
            model.id,
        )
        assert 0 < own["confidence"] <= 1
        assert next(iter(own["labels"].items())) == (
            said.choices[0].message.content,
            own["confidence"],
        )
        # a completion is asked as the model was trained too: raw text could ask for anything
        text = ask.completions.create(model=model.id, prompt="refund my card")
        assert text.choices[0].text == said.choices[0].message.content


def test_openais_client_streams_several_answers_with_log_probabilities(free_url: str) -> None:
    with client(free_url) as ask:
        model = ask.models.list().data[0].id
        options: Any = {
            "model": model,
            "messages": chat("hello"),
            "max_tokens": 6,
            "n": 3,
            "temperature": 1.0,
            "seed": 7,
            "logprobs": True,
            "top_logprobs": 2,
        }
        whole = ask.chat.completions.create(**options)
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        texts, tokens = dict.fromkeys(range(3), ""), {k: list[Any]() for k in range(3)}
        for chunk in ask.chat.completions.create(**options, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                tokens[choice.index] += choice.logprobs.content or [] if choice.logprobs else []
        for choice in whole.choices:
            assert texts[choice.index] == choice.message.content
            assert choice.logprobs is not None
            assert [one.token for one in tokens[choice.index]] == [
                one.token for one in choice.logprobs.content or []
            ]
            assert all(len(one.top_logprobs) == 2 for one in choice.logprobs.content or [])
        text = ask.completions.create(
            model=model, prompt=["hello", "parcel"], max_tokens=3, logprobs=1
        )
        assert len(text.choices) == 2
        assert text.choices[0].logprobs is not None
        assert len(text.choices[0].logprobs.tokens or []) <= 3


def test_a_schema_of_the_client_is_kept_to(free_url: str) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with client(free_url) as ask:
        model = ask.models.list().data[0].id
        said = ask.chat.completions.create(
            model=model, messages=chat("hello"), response_format=form, max_tokens=40
        )
        assert json.loads(said.choices[0].message.content or "")["kind"] in ("a", "b")
        form["json_schema"]["schema"] = {"type": "array", "uniqueItems": True}
        with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
            ask.chat.completions.create(model=model, messages=chat("hello"), response_format=form)
        assert caught.value.param == "response_format"


def test_a_page_of_another_origin_cannot_ask(free_url: str) -> None:
    port = free_url.rpartition(":")[2]
    body = {"messages": chat("hello"), "max_tokens": 1}
    refused = post(free_url, body, host=f"evil.example:{port}")
    assert (refused.status_code, refused.headers["x-slmctl-route"]) == (
        403,
        "local; reason=refused",
    )
    assert post(free_url, body, host=f"localhost:{port}").status_code == 200
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert (
        "access-control-allow-origin"
        not in httpx.options(f"{free_url}/v1/chat/completions", headers=asked).headers
    )


def test_keys_are_hashed_and_revoked_while_it_runs(
    tiny_run: Path, bare_gguf: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    named = ("--keys", str(path))
    secret = tiny.ok(slmctl("keys", "add", "crm", "--rate", "4", *named))
    other = tiny.ok(slmctl("keys", "add", "erp", *named))
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    # beyond the loopback, since there is a key
    child, url = begin(tiny_run, bare_gguf, *named, "--host", "0.0.0.0")
    url = url.replace("0.0.0.0", "127.0.0.1")
    body = {"messages": chat("a secret text"), "max_tokens": 1}
    assert post(url, body).status_code == 401
    other_end = "1" if secret.endswith("0") else "0"
    assert post(url, body, authorization=f"Bearer {secret[:-1]}{other_end}").status_code == 401
    assert httpx.get(f"{url}/metrics").status_code == 401
    assert httpx.get(f"{url}/healthz").status_code == 200
    said = [
        post(url, body, authorization=f"Bearer {secret}", **{"x-request-id": "my-1"})
        for _ in range(6)
    ]
    assert [one.status_code for one in said][:4] == [200] * 4
    late = next(one for one in said if one.status_code == 429)
    assert int(late.headers["retry-after"]) >= 1
    assert late.json()["error"]["code"] == "rate"
    assert late.headers["x-request-id"] == late.json()["error"]["request_id"] == "my-1"
    assert post(url, body, authorization=f"Bearer {other}").status_code == 200
    tiny.ok(slmctl("keys", "revoke", "erp", *named))
    assert post(url, body, authorization=f"Bearer {other}").status_code == 401
    assert tiny.ok(slmctl("keys", "list", *named)).startswith("crm")
    log = end(child)
    requests = [line for line in log if line["event"] == "request"]
    assert {line.get("key") for line in requests} == {None, "crm", "erp"}
    assert "a secret text" not in json.dumps(log)
    assert secret not in json.dumps(log)


def slow(until: threading.Event) -> Callable[[dict[str, Any], int], Turn]:
    """An engine that answers when it may, so that requests meet."""
    return lambda body, before: streams("hello") if until.wait(60) else streams("late")


def test_over_the_queue_it_is_said_at_once() -> None:
    refused = threading.Event()

    def ask(seed: int) -> httpx.Response:
        said = server.ask("hello", seed=seed)
        if said.status_code == 429:
            refused.set()
        return said

    room = {"sequences": 1, "max_waiting_requests": 1}
    with here.in_front(slow(refused), **room) as server, ThreadPoolExecutor(6) as pool:
        said = list(pool.map(ask, range(6)))
        busy = [one for one in said if one.status_code == 429]
        assert {one.status_code for one in said} == {200, 429}
        assert {one.json()["error"]["code"] for one in busy} == {"queue"}
        assert all(one.headers["retry-after"] for one in busy)
        figures = server.get("/metrics").text
    assert f'slmctl_refused_total{{reason="queue"}} {len(busy):.1f}' in figures
    assert "slmctl_requests_running 0.0" in figures


def test_few_large_bodies_are_received_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # bodies of up to 16 MiB were read before any limit counted their request
    monkeypatch.setattr(rate_limits, "LARGE", 1)
    large = {"messages": chat("x" * (1 << 20))}
    with here.in_front(documents=True) as server:
        port, limits = int(server.url.rpartition(":")[2]), server.gateway.limits
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            sock.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                b"application/json\r\n"
                b"Content-Length: 2000000\r\n\r\n" + b" " * 1_500_000
            )
            assert settles(lambda: limits.large == 1)
            assert (server.ask("hello").status_code, post(server.url, large).status_code) == (
                200,
                429,
            )
        assert settles(lambda: limits.large == 0)
        assert post(server.url, large).status_code == 400  # read, and longer than the context


def test_a_body_of_millions_of_values_is_refused_in_a_sentence() -> None:
    # 15 MB of empty lists were a second of the event loop, and 345 MB of memory
    with here.in_front(documents=True) as server:

        def sent(body: str) -> httpx.Response:
            headers = {"content-type": "application/json"}
            return httpx.post(
                f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=60
            )

        lists = '{"metadata": [' + "[]," * 700_000 + "[]]}"
        for body in (
            lists,
            lists.replace("[]", "1"),
            lists.replace("[]", '""'),
            lists + '"' + '\\"' * 1_000_000,
        ):
            said = sent(body)
            assert (said.status_code, said.json()["error"]["message"]) == (
                413,
                "the body holds more than 600000 values",
            )
        # as many signs within one text are one value
        text = json.dumps({"messages": chat('",[{' * 300_000)})
        assert "does not fit" in sent(text).json()["error"]["message"]


def test_a_large_body_is_read_apart_from_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = list[int]()

    def noted(raw: bytes) -> JsonObject:
        threads.append(threading.get_ident())
        return read_body(raw)

    monkeypatch.setattr(gateway, "read_body", noted)
    with here.in_front() as server:
        assert (server.ask("hello").status_code, server.ask("x" * 200_000).status_code) == (
            200,
            400,
        )
    assert len(set(threads)) == 2


def test_a_key_that_may_ask_nothing_here_is_refused_before_its_body_is_received(
    tmp_path: Path,
) -> None:
    keys = tmp_path / "keys.json"
    secret = api_keys.add(keys, "elsewhere", models=("other",))
    with here.in_front(documents=True, keys=keys) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            sock.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                b"application/json\r\n"
            )
            sock.sendall(
                f"Authorization: Bearer {secret}\r\nContent-Length: 9000000\r\n\r\n{{".encode()
            )
            sock.settimeout(10)
            said = sock.recv(65536)
            while b"}}" not in said:
                said += sock.recv(65536)
        assert (
            said.startswith(b"HTTP/1.1 404 ")
            and b"this key may ask no model that is served here" in said
        )
        assert server.gateway.limits.running == 0


def test_an_answer_has_a_deadline() -> None:
    answered = threading.Event()
    with here.in_front(slow(answered), answer_timeout_s=0.05) as server:
        late = server.ask("hello")
        answered.set()
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_another_engine_is_held_to_the_task(artifacts: dict[str, Artifact], free_url: str) -> None:
    """The engine behind the gateway is a server of a bare file: it
    knows no labels, the gateway does.
    """
    name = httpx.get(f"{free_url}/v1/models").json()["data"][0]["id"]
    task = Task.read(artifacts["published"].path)
    with (
        here.in_front(task=task, url=f"{free_url}/v1", model=name) as server,
        client(server.url) as ask,
    ):
        assert server.get("/readyz").status_code == 200
        said = ask.chat.completions.create(model="default", messages=chat("refund my card"))
        assert said.choices[0].message.content in tiny.WORDS
        assert 0 < said.model_extra["slmctl"]["confidence"] <= 1
        chunks = list(
            ask.chat.completions.create(
                model="default", messages=chat("refund my card"), stream=True
            )
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) in tiny.WORDS


def test_a_schema_that_is_nested_too_deeply_is_refused(free_url: str) -> None:
    for depth in (150, 350, 700):
        schema: dict[str, Any] = {}
        for _ in range(depth):
            schema = {"type": "array", "items": schema}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        said = post(free_url, {"messages": chat("hello"), "response_format": form})
        assert said.status_code == 400, said.text
        assert said.json()["error"]["type"] == "invalid_request_error"


def test_choices_have_a_ceiling(free_url: str) -> None:
    choice = [f"{k:03}" + "x" * 100 for k in range(1000)]
    said = post(free_url, {"messages": chat("hello"), "structured_outputs": {"choice": choice}})
    assert (said.status_code, said.json()["error"]["param"]) == (400, "structured_outputs")
    said = post(
        free_url, {"messages": chat("hello"), "structured_outputs": {"choice": choice[:20]}}
    )
    assert said.json()["choices"][0]["message"]["content"] in choice


def test_a_completion_is_streamed(free_url: str) -> None:
    body = {"prompt": "hello", "max_tokens": 12, "temperature": 1, "seed": 3}
    whole = httpx.post(f"{free_url}/v1/completions", json=body, timeout=60).json()
    said = httpx.post(f"{free_url}/v1/completions", json={**body, "stream": True}, timeout=60)
    *raw, done = lines_of(said)
    chunks = [json.loads(line) for line in raw]
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_top_p_bounds_what_is_drawn_from(free_url: str) -> None:
    def ask(**more: Any) -> str:
        said = post(free_url, {"messages": chat("hello"), "max_tokens": 12, **more}).json()
        return str(said["choices"][0]["message"]["content"])

    greedy = ask(temperature=0)
    assert {ask(temperature=2, top_p=0, seed=seed) for seed in range(3)} == {greedy}
    assert len({ask(temperature=2, seed=seed) for seed in range(3)}) > 1
    assert (
        post(free_url, {"messages": chat("hello"), "top_p": 1.5}).json()["error"]["param"]
        == "top_p"
    )


def test_a_server_is_asked_by_its_own_address() -> None:
    with here.in_front(host="127.0.0.2") as server:
        assert server.ask(headers={"host": "127.0.0.2:80"}).status_code == 200
        assert server.ask(headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("log_texts", [True, False])
def test_texts_are_logged_where_that_is_set(log_texts: bool) -> None:
    with here.in_front(log_texts=log_texts) as server:
        server.ask("courier")
        server.ask(model="jane.doe at home")
    answered, refused = server.log.of("request")
    assert (answered.get("prompt"), answered.get("answer")) == (
        ("courier", ["hello"]) if log_texts else (None, None)
    )
    assert ("jane.doe" in str(refused)) == log_texts
    assert log_texts or refused["error"] == "model_not_found model"


def test_a_damaged_file_of_keys_lets_nobody_in_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = api_keys.add(path, "crm")
    with here.in_front(keys=path) as server:

        def ask() -> tuple[int, int]:
            said = server.ask(headers={"authorization": f"Bearer {secret}"}).status_code
            return said, server.get("/readyz").status_code

        assert ask() == (200, 200)
        raw = path.read_bytes()
        path.write_bytes(raw[:-9])
        assert ask() == (401, 503)
        path.write_bytes(raw)
        assert ask() == (200, 200)
        path.unlink()
        assert ask() == (401, 503)


def test_an_extractors_answers_satisfy_its_schema(
    endless: Path, artifacts: dict[str, Artifact]
) -> None:
    # the untrained base: what it says is held to the schema, and to nothing that it has learned
    schema = {
        "type": "object",
        "properties": {
            "topic": {"enum": ["billing", "delivery"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["topic", "count"],
        "additionalProperties": False,
    }
    trained = Task.read(artifacts["gguf"].path)
    task = dataclasses.replace(trained, kind="extract", labels=(), schema=schema, system="Read it.")
    with here.served(
        here.release("desk", endless, task, pin=True), settings=ServeConfig()
    ) as server:
        for text, _ in tiny.rows(5):
            said = server.ask(text).json()
            (choice,) = said["choices"]
            assert choice["finish_reason"] == "stop"
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
            assert said["slmctl"]["task"] == "extract"
            assert 0 < said["slmctl"]["confidence"] <= 1
        assert server.ask("hello", max_tokens=2).json()["choices"][0]["finish_reason"] == "length"


def test_no_http_at_all_gets_an_error_in_the_same_form(free_url: str) -> None:
    with socket.create_connection(
        ("127.0.0.1", int(free_url.rpartition(":")[2])), timeout=60
    ) as sock:
        sock.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        with sock.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    assert f"x-request-id: {error['request_id']}\r\n".encode() in head + b"\r\n"


def base_file(desk: Path) -> Path:
    """A project's base as a GGUF, which its adapters are put on."""
    (path,) = desk.glob("runs/gguf/*/base-F16.gguf")
    return path


@pytest.mark.slow
def test_adapters_are_chosen_by_name(stages: Forks, desk: Path) -> None:
    written = ("--set", "quantize.lora_gguf=true", "--set", "evaluate.models=[gguf, lora]")
    tiny.ok(stages.run(desk, "run", "--until", "quantize", *written))
    (lora,) = desk.glob("runs/gguf/*/*-LoRA.gguf")
    base = base_file(desk)
    adapter = ("--adapter", f"desk={lora.parent}")
    refused = stages.run(desk, "serve", "--port", "0", str(base.parent), *adapter)
    assert (refused.code, "no report measured the adapter" in refused.stderr) == (5, True)
    tiny.ok(stages.run(desk, "evaluate", *written))
    refused = stages.run(desk, "serve", "--port", "0", str(lora.parent), "--type", "F16", *adapter)
    assert (refused.code, "is another file" in refused.stderr) == (2, True)
    child, url = begin(desk, str(base.parent), *adapter)
    names = [one["id"] for one in httpx.get(f"{url}/v1/models").json()["data"]]
    assert names == ["base-F16", "desk"]
    merged, other = begin(desk, str(lora.parent), "--type", "F16")
    for text, _ in tiny.rows(20, seed=5):
        said = post(url, {"model": "desk", "messages": chat(text)}).json()
        same = post(other, {"messages": chat(text)}).json()
        assert said["choices"][0]["message"] == same["choices"][0]["message"]
        assert said["slmctl"]["confidence"] == pytest.approx(same["slmctl"]["confidence"], rel=0.05)
        assert (
            post(url, {"model": "base-F16", "messages": chat(text), "max_tokens": 4}).status_code
            == 200
        )
    end(merged)
    end(child)


@pytest.mark.slow
def test_two_adapters_and_the_base_answer_at_once_and_as_they_do_alone(
    stages: Forks, desk: Path
) -> None:
    """Requests for all three come together; each gets what its
    adapter says when nobody else is there.
    """
    for steps in (30, 90):
        train = ("--set", f"finetune.max_steps={steps}", "--set", "quantize.lora_gguf=true")
        tiny.ok(stages.run(desk, "run", "--until", "quantize", *train))
    first, second = sorted(
        desk.glob("runs/gguf/*/*-LoRA.gguf"), key=lambda path: path.stat().st_mtime
    )
    adapters = []
    # bare files with a task, which nobody has measured
    for name, made in (("early", first), ("late", second)):
        (desk / name).mkdir()
        for file in (made, made.with_name("task.json")):
            shutil.copy(file, desk / name)
        adapters += ["--adapter", f"{name}={desk / name / made.name}"]
    child, url = begin(desk, str(base_file(desk)), *adapters)
    asked = [
        (name, text) for text, _ in tiny.rows(12, seed=5) for name in ("early", "late", "base-F16")
    ]

    def answer(one: tuple[str, str]) -> tuple[str, float | None]:
        name, text = one
        said = post(
            url, {"model": name, "messages": chat(text), "max_tokens": 4, "temperature": 0}
        ).json()
        return said["choices"][0]["message"]["content"], said["slmctl"].get("confidence")

    alone = [answer(one) for one in asked]
    early = [one[1] for one, (name, _) in zip(alone, asked, strict=True) if name == "early"]
    late = [one[1] for one, (name, _) in zip(alone, asked, strict=True) if name == "late"]
    assert early != pytest.approx(late, rel=0.05), "the two adapters say the same: nothing is shown"
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(answer, asked))
    for (name, text), (content, sure), (other, also) in zip(asked, alone, together, strict=True):
        if name != "base-F16":  # whose free text may turn where two tokens are as likely
            assert (other, also) == (content, pytest.approx(sure, rel=0.02)), (name, text)
    end(child)
