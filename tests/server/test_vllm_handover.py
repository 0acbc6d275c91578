"""The hand-over: read by docker compose, kubectl and Kubernetes' own schemas, and held to what vLLM takes."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from support import tiny
from support.forks import Forks

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.config import GeneralistConfig, MachinePrices, ServeConfig
from slmctl.errors import SlmctlError
from slmctl.server import vllm_handover
from slmctl.task.contract import Task

SECRET = "sk-never-written-anywhere"
KUBERNETES = "1.34.0"
COMPOSE, KUBECTL = shutil.which("docker-compose"), shutil.which("kubectl")


def handover(artifacts: dict[str, Artifact], *, adapter: bool = False, **settings: Any) -> vllm_handover.Handover:
    merged, tuned, base = artifacts["merged"], artifacts["adapter"], artifacts["base"]
    return vllm_handover.Handover(
        name="tiny-desk-v1.0-Q8_0",
        model=base if adapter else merged,
        adapter=tuned if adapter else None,
        task=Task.read(merged.path),
        settings=ServeConfig(**settings),
        origin=artifacts["published"].digest,
    )


@pytest.fixture(params=["merged", "adapter"])
def given(request: pytest.FixtureRequest, artifacts: dict[str, Artifact]) -> vllm_handover.Handover:
    return handover(artifacts, adapter=request.param == "adapter", context_length=1024, max_tokens=99)


def written(given: vllm_handover.Handover, kind: str, out: Path) -> Path:
    vllm_handover.write(given, kind, out / kind)
    return out / kind


def composed(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    if not COMPOSE:
        pytest.skip("docker-compose is not installed: apt-get install docker-compose")
    return subprocess.run(
        [COMPOSE, "-f", folder / "compose.yaml", "config", "--format", "json"],
        env=tiny.environment(**env), capture_output=True, text=True, check=False,
    )  # fmt: skip


def manifests(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    if not KUBECTL:
        pytest.skip("kubectl is not installed: apt-get install kubectl")
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


# The types that vLLM gives to those of its arguments that a hand-over uses; texts are left out.
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
    """The arguments after `vllm serve`, none of which vLLM does not know."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("model")
    for name in (Path(__file__).parent / "vllm_serve.txt").read_text().splitlines():
        if name.startswith("--") and name in words:
            parser.add_argument(name, **TYPES.get(name, {}))
    return parser.parse_args(words)


def expect(found: argparse.Namespace, given: vllm_handover.Handover) -> None:
    assert found.max_model_len == 1024
    assert found.load_format == "safetensors"  # no pickle is ever read
    assert found.allowed_origins == []
    if given.adapter is None:
        assert found.served_model_name == [given.name]
    else:
        assert found.served_model_name == [f"{given.name}-base"]
        (module,) = found.lora_modules
        assert module.startswith(f"{given.name}=")
        assert found.enable_lora
        assert found.max_lora_rank == 16


def test_compose_is_read_by_compose_itself(given: vllm_handover.Handover, tmp_path: Path) -> None:
    folder = written(given, "compose", tmp_path)
    done = composed(folder, VLLM_API_KEY=SECRET)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    services = json.loads(done.stdout)["services"]
    vllm, gateway = services["vllm"], services["gateway"]
    assert vllm["image"] == f"vllm/vllm-openai:{vllm_handover.VLLM}"
    expect(parsed(vllm["command"]), given)
    assert vllm["environment"]["VLLM_API_KEY"] == gateway["environment"]["VLLM_API_KEY"] == SECRET
    for service in (vllm, gateway):
        held = service["read_only"], service["cap_drop"], service["security_opt"]
        assert held == (True, ["ALL"], ["no-new-privileges:true"])
        assert not re.match(r"0\b|root", service["user"])
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert service["healthcheck"]["test"][0] == "CMD"
        assert all(volume["read_only"] for volume in service["volumes"])
        for volume in service["volumes"]:
            assert Path(volume["source"]).exists() or volume["target"] == vllm_handover.KEYS
    assert ("ports" in vllm, list(vllm["networks"])) == (False, ["inside"])
    assert json.loads(done.stdout)["networks"]["inside"]["internal"]
    assert [port["host_ip"] for port in gateway["ports"]] == ["127.0.0.1"]
    assert gateway["depends_on"]["vllm"]["condition"] == "service_healthy"
    assert (folder / gateway["build"]["dockerfile"]).exists()


def test_compose_does_not_start_without_its_secret(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    done = composed(written(handover(artifacts), "compose", tmp_path))
    assert done.returncode != 0
    assert "VLLM_API_KEY" in done.stderr


def test_kubernetes_takes_every_manifest(given: vllm_handover.Handover, tmp_path: Path) -> None:
    folder = written(given, "kubernetes", tmp_path)
    found = manifests(folder)
    for manifest in found:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    kinds = sorted((manifest["kind"], manifest["metadata"]["name"].rpartition("-")[2]) for manifest in found)
    assert [kind for kind, _ in kinds] == ["ConfigMap", *["Deployment"] * 2, *["NetworkPolicy"] * 2, *["Service"] * 2]
    pods = {
        manifest["metadata"]["labels"]["app.kubernetes.io/component"]: manifest["spec"]["template"]
        for manifest in found
        if manifest["kind"] == "Deployment"
    }
    for name, pod in pods.items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] > 0
        assert not spec["automountServiceAccountToken"]
        (container,) = spec["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
        health = "/health" if name == "vllm" else "/healthz"
        probes = [container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("liveness", "startup", "readiness")]
        assert probes == [health, health, "/health" if name == "vllm" else "/readyz"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
        assert container["image"].partition(":")[2] not in ("", "latest")
        secrets = [
            entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if entry["name"] == vllm_handover.KEY_ENV
        ]
        assert len(secrets) == 1
    expect(parsed(pods["vllm"]["spec"]["containers"][0]["args"]), given)
    assert pods["vllm"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_parts_in_kubernetes_find_each_other(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    found = manifests(written(handover(artifacts), "kubernetes", tmp_path))
    by = {(one["kind"], one["metadata"]["name"]): one for one in found}
    deployments = {name: one for (kind, name), one in by.items() if kind == "Deployment"}
    services = {name: one["spec"] for (kind, name), one in by.items() if kind == "Service"}
    for service in services.values():
        (behind,) = [
            one for one in deployments.values()
            if service["selector"].items() <= one["spec"]["template"]["metadata"]["labels"].items()
        ]  # fmt: skip
        ports = [port["name"] for port in behind["spec"]["template"]["spec"]["containers"][0]["ports"]]
        assert [port["targetPort"] for port in service["ports"]] == ports
    (contract,) = [one["data"] for (kind, _), one in by.items() if kind == "ConfigMap"]
    host = re.search(r"url: http://([\w-]+):(\d+)/v1", contract["slmctl.yaml"])
    assert host
    assert services[host[1]]["ports"][0]["port"] == int(host[2])
    referred = json.dumps(found)
    (name,) = [one["metadata"]["name"] for (kind, _), one in by.items() if kind == "ConfigMap"]
    assert referred.count(f'"configMap": {{"name": "{name}"}}') == 2
    assert "kind: Secret" not in yaml.safe_dump_all(found)  # referred to, never written


def test_the_scripts_are_run_as_a_shell_reads_them(given: vllm_handover.Handover, tmp_path: Path) -> None:
    folder = written(given, "vllm", tmp_path)
    stand_in = tmp_path / "bin"
    stand_in.mkdir()
    for name in ("vllm", "slmctl"):  # what is called, and with which words
        (stand_in / name).write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$PWD" "$HF_HUB_OFFLINE" "$@"\n')
        (stand_in / name).chmod(0o755)
    path = f"{stand_in}:/usr/bin:/bin"
    for script in ("vllm.sh", "gateway.sh"):
        without = subprocess.run([folder / script], env={"PATH": path}, capture_output=True, text=True, check=False)
        assert without.returncode != 0
        assert "VLLM_API_KEY" in without.stderr
    run = {"env": {"PATH": path, "VLLM_API_KEY": SECRET}, "capture_output": True, "text": True, "check": True}
    called, here, offline, serve, *words = subprocess.run([folder / "vllm.sh"], **run).stdout.splitlines()  # type: ignore[call-overload]
    assert (called, here, offline, serve) == (str(stand_in / "vllm"), str(folder), "1", "serve")
    found = parsed(words)
    expect(found, given)
    assert (found.host, found.port) == ("127.0.0.1", vllm_handover.ENGINE_PORT)
    assert (folder / found.model / "config.json").exists()
    assert (folder / found.chat_template).read_text() == given.task.chat_template
    if given.adapter:
        assert (folder / found.lora_modules[0].partition("=")[2] / "adapter_config.json").exists()
    done = subprocess.run([folder / "gateway.sh", "--port", "0"], **run)  # type: ignore[call-overload]
    assert done.stdout.splitlines()[3:] == ["-C", "contract", "serve", "contract", "--port", "0"]


@pytest.mark.parametrize("kind", vllm_handover.KINDS)
def test_the_contract_and_the_weights_are_whole(given: vllm_handover.Handover, tmp_path: Path, kind: str) -> None:
    folder = written(given, kind, tmp_path)
    assert Task.read(folder / "contract") == given.task
    serve = yaml.safe_load((folder / "contract" / "slmctl.yaml").read_text())["serve"]
    assert serve["max_tokens"] == 99
    assert (serve["engine"]["model"], serve["engine"]["key_env"]) == (given.name, vllm_handover.KEY_ENV)
    assert serve["host"] == ("127.0.0.1" if kind == "vllm" else "0.0.0.0")
    assert artifact.verify_folder(folder / "model") == []
    assert (folder / "adapter").exists() == (given.adapter is not None)
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert sums.keys() == files - {"SHA256SUMS"}
    for name, value in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value


@pytest.mark.parametrize("kind", vllm_handover.KINDS)
def test_no_secret_and_no_address_is_written(
    artifacts: dict[str, Artifact], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(vllm_handover.KEY_ENV, SECRET)
    folder = written(handover(artifacts), kind, tmp_path)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_relative_to(folder / "model"):
            text = path.read_text(encoding="utf-8")
            assert SECRET not in text
            assert str(tmp_path) not in text
            addresses = set(re.findall(r"https?://([\w.-]+)", text))
            assert addresses <= {"127.0.0.1", "vllm", "tiny-desk-v1-0-q8-0-vllm"}, path


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
def test_the_images_copy_what_is_there_and_run_as_no_root(
    given: vllm_handover.Handover, tmp_path: Path, kind: str
) -> None:
    folder = written(given, kind, tmp_path)
    known = {"ARG", "FROM", "COPY", "RUN", "USER", "ENV", "WORKDIR", "EXPOSE", "ENTRYPOINT", "CMD"}
    for path in folder.rglob("Dockerfile"):
        lines = [line for line in path.read_text().replace("\\\n", " ").splitlines() if line and line[0] != "#"]
        steps = [line.split(" ", 1) for line in lines]
        assert {name for name, _ in steps} <= known
        defaults = dict(value.split("=", 1) for name, value in steps if name == "ARG")
        (image,) = [value for name, value in steps if name == "FROM"]
        variable = re.fullmatch(r"[\w./-]+:\$\{(\w+)\}", image)
        assert variable and defaults[variable[1]] not in ("", "latest")
        for source in (shlex.split(value)[0] for name, value in steps if name == "COPY"):
            assert (folder / source).exists(), source
        if path.parent.name == "gateway":
            assert [value for name, value in steps if name == "USER"] == ["10001:10001"]
            assert any('"slmctl[serve]==${SLMCTL_VERSION}"' in value for name, value in steps if name == "RUN")


def test_the_gateway_needs_neither_torch_nor_llama(tmp_path: Path) -> None:
    # what its image installs is slmctl[serve] alone
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'llama_cpp', 'llguidance', 'gguf', 'sklearn', 'peft', 'trl'):\n"
        "    sys.modules[name] = None\n"
        "import slmctl.cli.main, slmctl.inference.engine, slmctl.server.app, slmctl.server.page\n"
    )
    subprocess.run([tiny.sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize("kind", vllm_handover.KINDS)
def test_a_policy_stays_here_and_the_rest_starts(
    artifacts: dict[str, Artifact], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # the gateway's config once named the policy, which it then refused to start with
    prices = MachinePrices(machine_per_hour=1, input=1, output=1)
    general = GeneralistConfig(url="https://general.example/v1", model="large")
    given = handover(
        artifacts, policy=tmp_path / "policy.json", generalist=general, prices=prices,
        decision_log=tmp_path / "decisions.jsonl", grace_s=31.5, max_waiting_requests=7,
    )  # fmt: skip
    folder = written(given, kind, tmp_path)
    assert "left out: serve.policy" in capsys.readouterr().err
    assert "`serve.policy`" in (folder / "README.md").read_text()
    raw = (folder / "contract" / "slmctl.yaml").read_text()
    assert str(tmp_path) not in raw and "general.example" not in raw
    serve = config.load(folder / "contract" / "slmctl.yaml").serve
    assert (serve.policy, serve.generalist, serve.prices, serve.decision_log) == ("auto", None, None, None)
    assert (serve.max_waiting_requests, serve.grace_s) == (7, 31.5)
    if kind == "compose":
        services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
        assert services["gateway"]["stop_grace_period"] == "42s"
    if kind == "kubernetes":
        deployment, _ = yaml.safe_load_all((folder / "gateway.yaml").read_text())
        assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 42


# Refusals


def changed(found: Artifact, out: Path, **config: Any) -> Artifact:
    """A copy of an adapter with another config, as one that another tool trained."""
    shutil.copytree(found.path, out)
    (out / artifact.MANIFEST).unlink()
    path = out / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return artifact.foreign(out, "adapter")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "whole layers"),
        ({"rank_pattern": {"q_proj": 4}}, "a rank that differs by layer"),
        ({"r": 1024}, "a rank over 512"),
    ],
)
def test_an_adapter_that_vllm_does_not_run_is_refused(
    artifacts: dict[str, Artifact], tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    odd = changed(artifacts["adapter"], tmp_path / "odd", **config)
    assert refused(dataclasses.replace(handover(artifacts, adapter=True), adapter=odd), tmp_path, named) == (
        "--weights merged"
    )


@pytest.mark.parametrize("name", ["a=b", "a b", "$(id)", "", "-x"])
def test_a_name_that_a_shell_or_vllm_would_misread_is_refused(
    artifacts: dict[str, Artifact], tmp_path: Path, name: str
) -> None:
    refused(dataclasses.replace(handover(artifacts), name=name), tmp_path, "cannot be the name of a model")


def test_a_context_that_the_model_has_not_and_damaged_weights_are_refused(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    longer = r"serve\.context_length is 5000, and this model reads at most 4096 tokens"
    refused(handover(artifacts, context_length=5000), tmp_path, longer)
    damaged = artifact.load(shutil.copytree(artifacts["merged"].path, tmp_path / "merged"))
    path = tmp_path / "merged" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    refused(dataclasses.replace(handover(artifacts), model=damaged), tmp_path, r"changed: model\.safetensors")


def refused(given: vllm_handover.Handover, folder: Path, said: str) -> str:
    """The hint of a refusal, after which nothing is written."""
    with pytest.raises(SlmctlError, match=said) as caught:
        vllm_handover.write(given, "compose", folder / "out")
    assert not (folder / "out").exists()
    return caught.value.hint


# The command


def test_the_command_finds_the_weights_of_a_release(stages: Forks, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tiny.ok(stages.run(tiny_run, "serve", "--emit", "vllm", "--output", str(out))) == str(out)
    assert "--served-model-name tiny-desk " in (out / "vllm.sh").read_text()  # the project, as `slmctl serve` names it
    release = next((tiny_run / "registry").glob("tiny-desk/[!.]*"))
    beside = tmp_path / "beside"
    args = ("serve", str(release), "--emit", "compose", "--output", str(beside), "--weights", "adapter")
    assert tiny.ok(stages.run(tiny_run, *args)) == str(beside)
    assert (beside / "adapter" / "adapter_config.json").exists()
    again = stages.run(tiny_run, *args)
    assert again.returncode == 2
    assert f"{beside} exists already" in again.stderr


def test_weights_that_are_not_here_are_said_to_be(
    stages: Forks, tiny_run: Path, tmp_path: Path, artifacts: dict[str, Artifact]
) -> None:
    release = shutil.copytree(next((tiny_run / "registry").glob("tiny-desk/[!.]*")), tmp_path / "mailed")
    done = stages.run(tmp_path, "serve", str(release), "--emit", "compose", "--output", str(tmp_path / "out"))
    assert done.returncode == 7
    assert "is no merged model, and the one it was made of is not below" in done.stderr
    assert "-C" in done.stderr
    bare = str(next(artifacts["gguf"].path.glob("*F16.gguf")))
    done = stages.run(tmp_path, "serve", bare, "--emit", "compose", "--output", str(tmp_path / "out"))
    assert done.returncode == 7
    assert not (tmp_path / "out").exists()


def test_the_gateway_of_a_hand_over_answers_by_the_contract(stages: Forks, tiny_run: Path, tmp_path: Path) -> None:
    # in vLLM's place stands another slmctl with the same model
    out = tmp_path / "out"
    tiny.ok(stages.run(tiny_run, "serve", "--emit", "vllm", "--output", str(out)))
    engine = tiny.start(tiny_run, "serve", "--port", "0")
    assert engine.stdout is not None
    url = engine.stdout.readline().strip()
    asked = ("--set", f"serve.engine.url={url}/v1", "--port", "0")
    env = tiny.environment(**{vllm_handover.KEY_ENV: SECRET})
    gateway = tiny.start(out / "contract", "serve", str(out / "contract"), *asked, env=env)
    try:
        assert gateway.stdout is not None
        address = gateway.stdout.readline().strip()
        assert address, gateway.communicate()
        body = {"messages": [{"role": "user", "content": "refund my card"}]}
        (name,) = (one["id"] for one in httpx.get(f"{address}/v1/models").json()["data"])
        assert name == httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        here, there = (httpx.post(f"{one}/v1/chat/completions", json=body, timeout=60).json() for one in (address, url))
        assert here["choices"][0]["message"]["content"] in tiny.WORDS
        assert here["choices"][0]["message"] == there["choices"][0]["message"]
    finally:
        for child in (gateway, engine):
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=60)


def test_half_a_wish_is_refused(stages: Forks, tmp_path: Path) -> None:
    done = stages.run(tmp_path, "serve", "--weights", "merged")
    assert (done.returncode, "--emit and --output come together" in done.stderr) == (2, True)
