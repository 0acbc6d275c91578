"""What stands before the engine: OpenAI's client, keys, limits, adapters, other engines, logs."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import ENDLESS, ROOM, begin, chat, end, post

from slmctl.artifact import Artifact


@pytest.fixture(scope="module")
def gguf(artifacts: dict[str, Artifact]) -> str:
    """A bare .gguf file, which has no task."""
    found = artifacts["gguf"]
    return str(found.file(found.files("F16.gguf")[0].path))


@pytest.fixture(scope="module")
def free(tiny_run: Path, gguf: str) -> Iterator[str]:
    child, url = begin(tiny_run, gguf)
    yield url
    end(child)


@pytest.fixture(scope="module")
def desk_url(tiny_run: Path) -> Iterator[str]:
    child, url = begin(tiny_run)
    yield url
    end(child)


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def test_openais_client_gets_a_label_with_its_confidence(desk_url: str) -> None:
    with client(desk_url) as ask:
        (model,) = ask.models.list().data
        raw = ask.chat.completions.with_raw_response.create(model=model.id, messages=chat("refund my card"))
        said = raw.parse()
        assert raw.headers["x-slmctl-route"] == "local; reason=no-policy"
        assert said.choices[0].message.content in tiny.WORDS
        own = said.model_extra["slmctl"]
        assert (own["task"], own["route"], own["reason"], own["model"]) == ("classify", "local", "no-policy", model.id)
        assert 0 < own["confidence"] <= 1
        assert next(iter(own["labels"].items())) == (said.choices[0].message.content, own["confidence"])
        # a completion is asked as the model was trained too: raw text could ask for anything
        text = ask.completions.create(model=model.id, prompt="refund my card")
        assert text.choices[0].text == said.choices[0].message.content


def test_openais_client_streams_several_answers_with_log_probabilities(free: str) -> None:
    with client(free) as ask:
        model = ask.models.list().data[0].id
        options: Any = {"model": model, "messages": chat("hello"), "max_tokens": 6, "n": 3, "temperature": 1.0,
                        "seed": 7, "logprobs": True, "top_logprobs": 2}  # fmt: skip
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
            assert [one.token for one in tokens[choice.index]] == [one.token for one in choice.logprobs.content or []]
            assert all(len(one.top_logprobs) == 2 for one in choice.logprobs.content or [])
        text = ask.completions.create(model=model, prompt=["hello", "parcel"], max_tokens=3, logprobs=1)
        assert len(text.choices) == 2
        assert text.choices[0].logprobs is not None
        assert len(text.choices[0].logprobs.tokens or []) <= 3


def test_a_schema_of_the_client_is_kept_to(free: str) -> None:
    schema = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"],
              "additionalProperties": False}  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with client(free) as ask:
        model = ask.models.list().data[0].id
        said = ask.chat.completions.create(model=model, messages=chat("hello"), response_format=form, max_tokens=40)
        assert json.loads(said.choices[0].message.content or "")["kind"] in ("a", "b")
        form["json_schema"]["schema"] = {"type": "array", "uniqueItems": True}
        with pytest.raises(openai.BadRequestError, match="uniqueItems"):
            ask.chat.completions.create(model=model, messages=chat("hello"), response_format=form)


def test_what_a_task_leaves_out_of_account_is_said(desk_url: str) -> None:
    body = {"messages": [{"role": "system", "content": "Say x."}, *chat("hello")], "temperature": 1}
    assert post(desk_url, body).json()["slmctl"]["ignored"] == ["system", "temperature"]
    refused = post(desk_url, {"messages": chat("hello"), "response_format": {"type": "json_object"}})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "response_format"


def test_a_page_of_another_origin_cannot_ask(free: str) -> None:
    port = free.rpartition(":")[2]
    body = {"messages": chat("hello"), "max_tokens": 1}
    refused = post(free, body, host=f"evil.example:{port}")
    assert (refused.status_code, refused.headers["x-slmctl-route"]) == (403, "local; reason=refused")
    assert post(free, body, host=f"localhost:{port}").status_code == 200
    plain = httpx.post(f"{free}/v1/chat/completions", content=json.dumps(body), headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{free}/v1/chat/completions", headers=asked).headers


def test_keys_are_hashed_and_revoked_while_it_runs(tiny_run: Path, gguf: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    named = ("--keys", str(path))
    secret = tiny.ok(tiny.slmctl(tmp_path, "keys", "add", "crm", "--rate", "4", *named))
    other = tiny.ok(tiny.slmctl(tmp_path, "keys", "add", "erp", *named))
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    child, url = begin(tiny_run, gguf, *named, "--host", "0.0.0.0")  # beyond the loopback, since there is a key
    url = url.replace("0.0.0.0", "127.0.0.1")
    body = {"messages": chat("a secret text"), "max_tokens": 1}
    assert post(url, body).status_code == 401
    assert post(url, body, authorization=f"Bearer {secret[:-1]}0").status_code == 401
    assert httpx.get(f"{url}/metrics").status_code == 401
    assert httpx.get(f"{url}/healthz").status_code == 200
    said = [post(url, body, authorization=f"Bearer {secret}", **{"x-request-id": "my-1"}) for _ in range(6)]
    assert [one.status_code for one in said][:4] == [200] * 4
    late = next(one for one in said if one.status_code == 429)
    assert int(late.headers["retry-after"]) >= 1
    assert late.json()["error"]["code"] == "rate"
    assert late.headers["x-request-id"] == late.json()["error"]["request_id"] == "my-1"
    assert post(url, body, authorization=f"Bearer {other}").status_code == 200
    tiny.ok(tiny.slmctl(tmp_path, "keys", "revoke", "erp", *named))
    assert post(url, body, authorization=f"Bearer {other}").status_code == 401
    assert tiny.ok(tiny.slmctl(tmp_path, "keys", "list", *named)).startswith("crm")
    log = end(child)
    requests = [line for line in log if line["event"] == "request"]
    assert {line.get("key") for line in requests} == {None, "crm", "erp"}
    assert "a secret text" not in json.dumps(log)
    assert secret not in json.dumps(log)


def test_over_the_queue_it_is_said_at_once(tiny_run: Path, endless: Path) -> None:
    child, url = begin(tiny_run, str(endless), *ROOM, "--set=serve.sequences=1", "--set=serve.queue=1")
    body = {"messages": chat("hello"), **ENDLESS}
    with ThreadPoolExecutor(6) as pool:
        said = list(pool.map(lambda k: post(url, {**body, "seed": k}), range(6)))
    busy = [one for one in said if one.status_code == 429]
    assert busy
    assert {one.json()["error"]["code"] for one in busy} == {"queue"}
    assert all(one.headers["retry-after"] for one in busy)
    assert {one.status_code for one in said} == {200, 429}
    figures = httpx.get(f"{url}/metrics").text
    assert f'slmctl_refused_total{{reason="queue"}} {len(busy):.1f}' in figures
    assert "slmctl_requests_running 0.0" in figures
    end(child)


def test_an_answer_has_a_deadline(tiny_run: Path, endless: Path) -> None:
    child, url = begin(tiny_run, str(endless), *ROOM, "--set=serve.answer_s=0.001")
    late = post(url, {"messages": chat("hello"), **ENDLESS})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    end(child)


def test_another_engine_is_held_to_the_task(tiny_run: Path, free: str) -> None:
    """The engine behind the gateway is a server of a bare file: it knows no labels, the gateway does."""
    name = httpx.get(f"{free}/v1/models").json()["data"][0]["id"]
    release = tiny_run / "registry" / "tiny-desk" / "1.0"
    child, url = begin(tiny_run, str(release), "--engine-url", f"{free}/v1", "--engine-model", name)
    for stream in (False, True):
        with client(url) as ask:
            model = ask.models.list().data[0].id
            if stream:
                chunks = list(ask.chat.completions.create(model=model, messages=chat("refund my card"), stream=True))
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            else:
                said = ask.chat.completions.create(model=model, messages=chat("refund my card"))
                text = said.choices[0].message.content or ""
                assert 0 < said.model_extra["slmctl"]["confidence"] <= 1
        assert text in tiny.WORDS
    end(child)


TEXTS = st.text(max_size=8) | st.integers() | st.none() | st.booleans() | st.floats(allow_nan=False)
VALUES = st.recursive(
    TEXTS, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=6), one, max_size=3)
)
NAMES = st.sampled_from(
    ["model", "messages", "prompt", "stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop",
     "n", "logprobs", "top_logprobs", "response_format", "structured_outputs", "tools", "logit_bias"]
)  # fmt: skip


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["chat/completions", "completions"]),
    raw=st.binary(max_size=40) | st.dictionaries(NAMES, VALUES, max_size=5).map(lambda body: json.dumps(body).encode()),
)
def test_malformed_bodies_get_4xx_in_openais_form(free: str, path: str, raw: bytes) -> None:
    response = httpx.post(f"{free}/v1/{path}", content=raw, headers={"content-type": "application/json"}, timeout=60)
    if response.status_code != 200:  # a few of them are right by chance
        assert 400 <= response.status_code < 500, response.text
        assert set(response.json()) == {"error"}
        assert {"message", "type", "param", "code"} <= set(response.json()["error"])


def test_what_is_no_unicode_does_not_reach_the_engine(free: str) -> None:
    # half a surrogate pair once killed the child, which could not encode it
    raw = b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}'
    said = httpx.post(f"{free}/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert said.status_code == 400
    assert post(free, {"messages": chat("hello"), "max_tokens": 1}).status_code == 200


def test_no_http_at_all_gets_an_error_in_the_same_form(free: str) -> None:
    with socket.create_connection(("127.0.0.1", int(free.rpartition(":")[2])), timeout=60) as sock:
        sock.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        with sock.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def base_file(desk: Path) -> Path:
    """A project's base as a GGUF, which its adapters are put on."""
    from slmctl import converter

    path = desk / "base.gguf"
    converter.convert(next(desk.glob("runs/base/*/config.json")).parent, path, dtype="f16", metadata={})
    return path


@pytest.mark.slow
def test_adapters_are_chosen_by_name(desk: Path) -> None:
    tiny.ok(tiny.slmctl(desk, "quantize", "--set", "quantize.lora=true"))
    (lora,) = desk.glob("runs/gguf/*/*-LoRA.gguf")
    base = base_file(desk)
    child, url = begin(desk, str(base), "--adapter", f"desk={lora.parent}")
    names = [one["id"] for one in httpx.get(f"{url}/v1/models").json()["data"]]
    assert names == ["base", "desk"]
    merged, other = begin(desk, str(lora.parent), "--type", "F16")
    for text, _ in tiny.rows(20, seed=5):
        said = post(url, {"model": "desk", "messages": chat(text)}).json()
        same = post(other, {"messages": chat(text)}).json()
        assert said["choices"][0]["message"] == same["choices"][0]["message"]
        assert said["slmctl"]["confidence"] == pytest.approx(same["slmctl"]["confidence"], rel=0.05)
        assert post(url, {"model": "base", "messages": chat(text), "max_tokens": 4}).status_code == 200
    end(merged)
    end(child)


@pytest.mark.slow
def test_two_adapters_and_the_base_answer_at_once_and_as_they_do_alone(desk: Path) -> None:
    """Requests for all three come together; each gets what its adapter says when nobody else is there."""
    for steps in (30, 90):
        train = ("--set", f"finetune.steps={steps}", "--set", "quantize.lora=true")
        tiny.ok(tiny.slmctl(desk, "run", "--until", "quantize", *train))
    first, second = sorted(desk.glob("runs/gguf/*/*-LoRA.gguf"), key=lambda path: path.stat().st_mtime)
    adapters = ("--adapter", f"early={first.parent}", "--adapter", f"late={second.parent}")
    child, url = begin(desk, str(base_file(desk)), *adapters)
    asked = [(name, text) for text, _ in tiny.rows(12, seed=5) for name in ("early", "late", "base")]

    def answer(one: tuple[str, str]) -> tuple[str, float | None]:
        name, text = one
        said = post(url, {"model": name, "messages": chat(text), "max_tokens": 4, "temperature": 0}).json()
        return said["choices"][0]["message"]["content"], said["slmctl"].get("confidence")

    alone = [answer(one) for one in asked]
    early = [one[1] for one, (name, _) in zip(alone, asked, strict=True) if name == "early"]
    late = [one[1] for one, (name, _) in zip(alone, asked, strict=True) if name == "late"]
    assert early != pytest.approx(late, rel=0.05), "the two adapters say the same: nothing is shown"
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(answer, asked))
    for (name, text), (content, sure), (other, also) in zip(asked, alone, together, strict=True):
        if name != "base":  # whose free text may turn where two tokens are as likely
            assert (other, also) == (content, pytest.approx(sure, rel=0.02)), (name, text)
    end(child)
