"""The files in `examples/vllm/`: read by docker compose and Kubernetes' own
schemas, and held to what vLLM takes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from support import ROOT, TESTS, tiny
from support.program import slmctl

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.config import ServeConfig
from slmctl.task.contract import Task

FOLDER, PAGE = ROOT / "examples" / "vllm", ROOT / "docs" / "vllm.md"
SECRET = "sk-never-written-anywhere"
# the arguments of that vLLM are those that support/vllm_serve.txt lists
KUBERNETES, VLLM = "1.34.0", "0.33.0"
COMPOSE = shutil.which("docker-compose")
# The types that vLLM gives to those of its arguments that are used here; texts are left out.
TYPES: dict[str, dict[str, Any]] = {
    "--enable-lora": {"action": "store_true"},
    "--disable-fastapi-docs": {"action": "store_true"},
    "--disable-uvicorn-access-log": {"action": "store_true"},
    "--served-model-name": {"nargs": "+"},
    "--lora-modules": {"nargs": "+"},
    "--max-model-len": {"type": int},
    "--port": {"type": int},
    "--seed": {"type": int},
    "--max-lora-rank": {"type": int, "choices": [1, 8, 16, 32, 64, 128, 256, 320, 512]},
    "--allowed-origins": {"type": json.loads},
    "--load-format": {"choices": ["auto", "safetensors"]},
}


def parsed(words: list[str]) -> argparse.Namespace:
    """The arguments after `vllm serve`; the test fails at one that vLLM does not know."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("model")
    used = {word.partition("=")[0] for word in words}
    for name in (TESTS / "support" / "vllm_serve.txt").read_text().splitlines():
        if name.startswith("--") and name in used:
            parser.add_argument(name, **TYPES.get(name, {}))
    return parser.parse_args(words)


def expect(words: list[str]) -> None:
    arguments = parsed(words)
    assert arguments.max_model_len == ServeConfig().context_length
    assert arguments.load_format == "safetensors"  # no pickle is ever read
    assert arguments.allowed_origins == []
    assert arguments.served_model_name == ["slm"]
    assert arguments.port == 8000


def services() -> dict[str, Any]:
    listed: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ]
    return listed


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")))


def pods() -> dict[str, dict[str, Any]]:
    """The specification of each pod, by component."""
    deployments = [manifest for manifest in manifests() if manifest["kind"] == "Deployment"]
    return {
        manifest["metadata"]["labels"]["app.kubernetes.io/component"]: manifest["spec"]["template"][
            "spec"
        ]
        for manifest in deployments
    }


def composed(**env: str) -> subprocess.CompletedProcess[str]:
    if not COMPOSE:
        pytest.skip("docker-compose is not installed: apt-get install docker-compose")
    return subprocess.run(
        [COMPOSE, "-f", FOLDER / "compose.yaml", "config", "--format", "json"],
        env=tiny.environment(**env),
        capture_output=True,
        text=True,
        check=False,
    )


def test_compose_is_read_by_compose_itself() -> None:
    done = composed(VLLM_API_KEY=SECRET)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    read = json.loads(done.stdout)
    vllm, gateway = read["services"]["vllm"], read["services"]["gateway"]
    assert vllm["environment"]["VLLM_API_KEY"] == gateway["environment"]["VLLM_API_KEY"] == SECRET
    expect(vllm["command"])
    assert read["networks"]["inside"]["internal"]
    assert [port["host_ip"] for port in gateway["ports"]] == ["127.0.0.1"]
    for service in (vllm, gateway):
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert all(
            volume["read_only"] and Path(volume["source"]).is_absolute()
            for volume in service["volumes"]
        )


def test_compose_does_not_start_without_its_secret() -> None:
    done = composed()
    assert done.returncode != 0
    assert "VLLM_API_KEY" in done.stderr


def test_the_services_of_compose_are_bounded_and_find_each_other() -> None:
    vllm, gateway = services()["vllm"], services()["gateway"]
    assert vllm["image"] == f"vllm/vllm-openai:v{VLLM}"
    assert isinstance(vllm["command"], str)  # split as a shell does, by compose
    expect(shlex.split(vllm["command"]))
    for service in (vllm, gateway):
        held = service["read_only"], service["cap_drop"], service["security_opt"]
        assert held == (True, ["ALL"], ["no-new-privileges:true"])
        assert not re.match(r"0\b|root", service["user"])
        assert service["healthcheck"]["test"][0] == "CMD"
        assert all(volume["read_only"] for volume in service["volumes"])
    assert ("ports" in vllm, vllm["networks"]) == (False, ["inside"])
    assert gateway["depends_on"]["vllm"]["condition"] == "service_healthy"
    words = shlex.split(gateway["command"])
    assert words[words.index("--engine-url") + 1] == "http://vllm:8000/v1"
    assert words[words.index("--keys") + 1].startswith(gateway["volumes"][1]["target"] + "/")
    assert float(gateway["stop_grace_period"].removesuffix("s")) > ServeConfig().grace_s


def test_four_values_are_left_to_fill_in() -> None:
    named = re.findall(r"^(\w+)=", (FOLDER / ".env").read_text(encoding="utf-8"), re.MULTILINE)
    wanted = re.findall(r"\$\{(\w+):\?", (FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    assert {*wanted} == {*named, "VLLM_API_KEY"} and len(named) == 4


def test_kubernetes_takes_every_manifest() -> None:
    for manifest in manifests():
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    kinds = sorted(manifest["kind"] for manifest in manifests())
    assert kinds == ["ConfigMap", *["Deployment"] * 2, *["NetworkPolicy"] * 2, *["Service"] * 2]
    for name, spec in pods().items():
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] > 0
        assert not spec["automountServiceAccountToken"]
        (container,) = spec["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
        health = "/health" if name == "vllm" else "/healthz"
        probes = [
            container[f"{probe}Probe"]["httpGet"]["path"]
            for probe in ("liveness", "startup", "readiness")
        ]
        assert probes == [health, health, "/health" if name == "vllm" else "/readyz"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
        secrets = [
            each["valueFrom"]["secretKeyRef"]
            for each in container["env"]
            if each["name"] == "VLLM_API_KEY"
        ]
        assert secrets == [{"name": "slm-engine", "key": "api-key"}]
    (vllm,) = pods()["vllm"]["containers"]
    assert vllm["image"] == f"vllm/vllm-openai:v{VLLM}"
    expect(vllm["args"])
    assert vllm["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pods()["gateway"]["terminationGracePeriodSeconds"] > ServeConfig().grace_s


def test_the_parts_in_kubernetes_find_each_other() -> None:
    by = {(each["kind"], each["metadata"]["name"]): each for each in manifests()}
    deployments = [each for (kind, _), each in by.items() if kind == "Deployment"]
    offered = {name: each["spec"] for (kind, name), each in by.items() if kind == "Service"}
    for service in offered.values():
        (behind,) = [
            each
            for each in deployments
            if service["selector"].items() <= each["spec"]["template"]["metadata"]["labels"].items()
        ]
        ports = [
            port["name"] for port in behind["spec"]["template"]["spec"]["containers"][0]["ports"]
        ]
        assert [port["targetPort"] for port in service["ports"]] == ports
    (gateway,) = pods()["gateway"]["containers"]
    host = re.search(r"--engine-url=http://([\w-]+):(\d+)/v1", " ".join(gateway["args"]))
    assert host
    assert offered[host[1]]["ports"][0]["port"] == int(host[2])
    values = by["ConfigMap", "slm"]["data"].keys()
    for spec in pods().values():
        (container,) = spec["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": "slm"}}]
        assert {*re.findall(r"\$\((\w+)\)", " ".join(container["args"]))} <= values
    assert "Secret" not in {kind for kind, _ in by}  # referred to, never written


def printed() -> Iterator[list[str]]:
    """The words after `vllm serve` of the commands on the page."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("    vllm serve "):
            yield shlex.split(line.removesuffix(" &"))[2:]


def test_the_arguments_on_the_page_are_vllms() -> None:
    merged, adapter = map(parsed, printed())
    assert (merged.served_model_name, merged.load_format) == (["slm"], "safetensors")
    assert adapter.enable_lora and adapter.lora_modules[0].startswith("slm=")


def test_no_secret_and_no_other_address_is_written() -> None:
    for path in FOLDER.iterdir():
        addresses = set(re.findall(r"https?://([\w.-]+)", path.read_text(encoding="utf-8")))
        assert addresses <= {"127.0.0.1", "vllm", "slm-vllm"}, path


def test_merged_weights_have_the_chat_template_of_the_task(artifacts: dict[str, Artifact]) -> None:
    """vLLM takes the template of the folder, and the gateway sends it messages."""
    merged = artifacts["merged"]
    assert (
        merged.file("chat_template.jinja").read_text(encoding="utf-8")
        == Task.read(merged.path).chat_template
    )


def test_the_gateway_needs_neither_torch_nor_llama(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'llama_cpp', 'llguidance', 'gguf', 'sklearn', "
        "'peft', 'trl'):\n"
        "    sys.modules[name] = None\n"
        "import slmctl.cli.main, slmctl.inference.engine, slmctl.server.app, slmctl.server.page\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_the_gateway_of_compose_answers_by_the_contract(tiny_run: Path, tmp_path: Path) -> None:
    # in vLLM's place stands another slmctl with the same model; the gateway has nothing but its own
    # folders
    release = next((tiny_run / "registry").glob("tiny-desk/[!.]*"))
    artifact.require_whole(artifact.load(release))
    folders = {
        "/release": shutil.copytree(release, tmp_path / "release"),
        "/keys": tmp_path / "keys",
    }
    tiny.ok(slmctl("keys", "add", "crm", "--keys", tmp_path / "keys" / "serve.json", cwd=tmp_path))
    key = tiny.ok(
        slmctl("keys", "add", "shop", "--keys", tmp_path / "keys" / "serve.json", cwd=tmp_path)
    )
    engine = tiny.start(tiny_run, "serve", "--port", "0")
    assert engine.stdout is not None
    url = engine.stdout.readline().strip()
    instead = {
        "http://vllm:8000/v1": f"{url}/v1",
        "slm": "tiny-desk",
        "8080": "0",
        "0.0.0.0": "127.0.0.1",
    }
    words = [instead.get(word, word) for word in shlex.split(services()["gateway"]["command"])]
    for inside, outside in folders.items():
        words = [
            word.replace(inside, str(outside)) if word.startswith(inside) else word
            for word in words
        ]
    (tmp_path / "work").mkdir()
    env = tiny.environment(VLLM_API_KEY=SECRET, PATH=os.environ["PATH"])
    gateway = tiny.start(tmp_path / "work", *words, env=env)
    try:
        assert gateway.stdout is not None
        address = gateway.stdout.readline().strip()
        assert address, gateway.communicate()
        body = {"messages": [{"role": "user", "content": "refund my card"}]}
        headers = {"authorization": f"Bearer {key.splitlines()[-1]}"}
        assert (
            httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).status_code == 401
        )
        (name,) = (
            each["id"] for each in httpx.get(f"{address}/v1/models", headers=headers).json()["data"]
        )
        assert name == httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        here, there = (
            httpx.post(
                f"{server}/v1/chat/completions", json=body, headers=headers, timeout=60
            ).json()
            for server in (address, url)
        )
        assert here["choices"][0]["message"]["content"] in tiny.WORDS
        assert here["choices"][0]["message"] == there["choices"][0]["message"]
    finally:
        for child in (gateway, engine):
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=60)
