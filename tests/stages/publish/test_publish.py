"""publish as its user runs it: what is planned is what leaves, and what must not leave stays."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support import handmade, odd_files, teacher, tiny
from support.forks import Forks
from support.handmade import opened
from support.released import contents, make_key, send

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import GateError, IntegrityError, StageError
from slmctl.pipeline import runner
from slmctl.pipeline.graph import Project
from slmctl.releases import registry
from slmctl.releases.targets.local import FolderTarget
from slmctl.stages.publish import memorisation_probe, publish

RELEASE = {
    "LICENSE",
    "Modelfile",
    "NOTICE",
    "README.md",
    "lineage.intoto.json",
    "manifest.json",
    "report.html",
    "report.json",
    "report.md",
    "rows.jsonl",
    "task.json",
}


@pytest.fixture
def fresh(desk: Path) -> Path:
    """A project that has run up to its report."""
    for folder in (desk / "registry", desk / "runs" / "published"):
        shutil.rmtree(folder)
    return desk


def plan(stages: Forks, folder: Path, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        tiny.ok(stages.run(folder, "publish", "--plan", "--json", *args))
    )
    return found


def test_what_is_planned_is_what_leaves(stages: Forks, fresh: Path) -> None:
    told = plan(stages, fresh)
    assert not (fresh / "registry").exists()
    assert (told["visibility"], told["license"], told["hosts"]) == (
        "who may read the folder",
        "apache-2.0",
        [],
    )
    done = stages.run(fresh, "publish")
    release = fresh / "registry" / "tiny-desk" / "1.0"
    sent = contents(release)
    assert tiny.ok(done)
    assert {one["to"] for one in told["files"]} == {str(release / name) for name in sent}
    assert {one["file"]: one["size"] for one in told["files"]} == {
        name: len(raw) for name, raw in sent.items()
    }
    assert told["bytes_to_send"] == sum(map(len, sent.values()))
    models = {name for name in sent if name.endswith(".gguf")}
    assert models == {"base-115K-tiny-desk-v1.0-F16.gguf", "base-115K-tiny-desk-v1.0-Q8_0.gguf"}
    assert set(sent) == RELEASE | models
    again = plan(stages, fresh)
    assert (again["there"], again["bytes_to_send"]) == (True, 0)
    assert "already in" in stages.run(fresh, "publish").stderr
    text = tiny.ok(stages.run(fresh, "publish", "--plan"))
    assert "license     apache-2.0" in text
    assert "bytes       0 to send" in text


def test_another_version_makes_and_measures_nothing_anew(stages: Forks, desk: Path) -> None:
    """The files were quantized and measured anew, since their
    names and metadata held the version.
    """

    def made() -> set[Path]:
        return {path for path in desk.glob("runs/[!.]*/[!.]*") if path.parent.name != "published"}

    before = made()
    tiny.ok(stages.run(desk, "run", "--yes", "--set", "version=1.1"))
    assert made() == before
    (measured,) = (desk / "runs" / "gguf").iterdir()
    hashes = {}
    for version in ("1.0", "1.1"):
        release = desk / "registry" / "tiny-desk" / version
        names = {path.name: artifact.sha256_file(path) for path in release.glob("*.gguf")}
        hashes[version] = {name.replace(f"-v{version}", ""): value for name, value in names.items()}
        for text in ("README.md", "Modelfile", "lineage.intoto.json"):
            assert (
                min(names, key=lambda name: (release / name).stat().st_size)
                in (release / text).read_text()
            )
        assert f"# tiny-desk {version}\n" in (release / "README.md").read_text()
    own = {path.name: artifact.sha256_file(path) for path in measured.glob("*.gguf")}
    assert hashes == {"1.0": own, "1.1": own} and len(own) == 2


def test_adapter_and_merged_weights_go_out_on_request(stages: Forks, fresh: Path) -> None:
    told = plan(stages, fresh, "--set", "publish.include=[adapter, merged]")
    more = {one["file"] for one in told["files"] if "/" in one["file"]}
    assert more == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "merged/config.json",
        "merged/chat_template.jinja",
        "merged/generation_config.json",
        "merged/model.safetensors",
        "merged/tokenizer.json",
        "merged/tokenizer.model",
        "merged/tokenizer_config.json",
    }
    (release,) = (fresh / "runs" / "published").iterdir()
    card = (release / "README.md").read_text()
    assert "vllm serve ./merged" in card
    assert (
        json.loads((release / "adapter" / "adapter_config.json").read_bytes())["peft_type"]
        == "LORA"
    )


def test_the_card_says_what_was_measured_and_how_to_run_it(tiny_run: Path) -> None:
    release = tiny_run / "registry" / "tiny-desk" / "1.0"
    card = (release / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["license"], head["base_model"], head["base_model_relation"]) == (
        "apache-2.0",
        "base",
        "quantized",
    )
    report = json.loads((release / "report.json").read_bytes())
    for result in head["model-index"][0]["results"]:
        (metric,) = result["metrics"]
        name = metric["name"].split(",")[0]
        assert metric["value"] == report["models"][name]["metrics"]["accuracy"]
        assert f"n={report['n']}" in metric["name"]
        assert "95 % interval" in metric["name"]
    for participant in ("majority", "tfidf_logistic", "base", "adapter", "F16", "Q8_0"):
        assert f"\n| {participant} | " in card
    for heading in ("Intended use", "Measured", "Files", "Use", "Data", "Limits", "License"):
        assert f"\n## {heading}\n" in card
    for how in ("slmctl serve", "ollama create", "llama-server -m", "vLLM"):
        assert how in card
    assert "rows train" in card
    for text, _ in tiny.rows():
        assert text not in card  # a summary of the data, and none of it


def test_the_lineage_is_an_in_toto_statement(tiny_run: Path) -> None:
    release = tiny_run / "registry" / "tiny-desk" / "1.0"
    said = json.loads((release / "lineage.intoto.json").read_bytes())
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    for subject in said["subject"]:
        assert f"sha256:{subject['digest']['sha256']}" == artifact.sha256_file(
            release / subject["name"]
        )
    build = said["predicate"]["buildDefinition"]
    steps = {step["role"]: step["digest"] for step in build["internalParameters"]["steps"]}
    for role, kind in (
        ("base",) * 2,
        ("adapter",) * 2,
        ("merged",) * 2,
        ("gguf",) * 2,
        ("report",) * 2,
    ):
        (made,) = (tiny_run / "runs" / kind).iterdir()
        assert steps[role] == artifact.load(made).digest
    wanted = artifact.sha256_file(tiny_run / "tickets.csv").removeprefix("sha256:")
    assert {"name": "data source 1", "digest": {"sha256": wanted}} in build["resolvedDependencies"]
    assert "tickets.csv" not in json.dumps(said)
    assert said["predicate"]["runDetails"]["builder"]["version"]["slmctl"]


def test_a_secret_in_the_system_prompt_stays(fresh: Path) -> None:
    leaky = "sk-" + "abcDEF1234567890abcDEF1234567890"
    project = opened(fresh)
    section = project.config.publish.model_copy(
        update={"intended_use": f"Ask the admin, key {leaky}."}
    )
    with pytest.raises(GateError, match=r"README\.md: secret/sk") as caught:
        runner.run(project, project.stage("publish").request(section=section))
    assert leaky not in caught.value.message
    assert not list((fresh / "runs").glob("published/*"))


def test_a_failed_probe_leaves_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = memorisation_probe.MemorisationProbe("0" * 16, "x", "y", 30.0)
    monkeypatch.setattr(memorisation_probe, "choose", lambda task, records, count: [probe])
    monkeypatch.setattr(memorisation_probe, "_regurgitated", lambda gguf, chosen: [*chosen])
    with pytest.raises(GateError, match="reproduces training rows: 1 of 1") as caught:
        handmade.publish(opened(fresh))
    assert caught.value.code == 5
    assert not list((fresh / "runs").glob("published/*"))
    assert not (fresh / "registry").exists()


def test_inputs_of_two_chains_are_refused(fresh: Path) -> None:
    project = opened(fresh)
    inputs: dict[str, Any] = dict(project.request("publish").inputs)
    made = inputs["merged"]
    other = dataclasses.replace(made.manifest, inputs={"base": "sha256:0", "adapter": "sha256:0"})
    inputs["merged"] = Artifact(made.path, other)
    with pytest.raises(IntegrityError, match="was not made from"):
        runner.run(project, project.stage("publish").request(inputs))


def test_a_base_without_license_stays_on_this_machine(
    artifacts: dict[str, Artifact], project: Project
) -> None:
    made, section = artifacts["published"], project.config.publish
    manifest = dataclasses.replace(made.manifest, metrics=made.metrics | {"license": ""})
    silent = Artifact(made.path, manifest)
    publish.require_allowed(silent, section)
    elsewhere = section.model_copy(update={"to": "hf:acme/desk"})
    with pytest.raises(GateError, match="the base states no license"):
        publish.require_allowed(silent, elsewhere)


def test_a_release_is_signed_fetched_and_verified_by_its_public_key(
    fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("model_signing")
    private, public = make_key(tmp_path, "release")
    _, other = make_key(tmp_path, "other")

    def said(folder: Path, *args: str) -> tuple[str, str]:
        """What a command prints on stdout and on stderr."""
        capsys.readouterr()
        teacher.slmctl(folder, *args)
        out, err = capsys.readouterr()
        return out.strip(), err

    signs = "publish", "--set", f"publish.signing_key={private}"
    assert json.loads(said(fresh, *signs, "--plan", "--json")[0])["signed"]
    teacher.slmctl(fresh, *signs)
    assert json.loads(said(fresh, *signs, "--plan", "--json")[0])["bytes_to_send"] == 0
    private.unlink()
    address, got = f"dir:{fresh}/registry#1.0", tmp_path / "got"
    fetch, verify = (
        ("fetch", address, str(got), "--key"),
        ("verify", str(got), "--key", str(public)),
    )
    with pytest.raises(IntegrityError, match=re.escape(f"the signature of {address}")):
        teacher.slmctl(tmp_path, *fetch, str(other))
    assert not got.exists()  # what is not signed by this key never has the name
    told, heard = said(tmp_path, *fetch, str(public))
    assert told == str(got) and "fetching" not in heard  # it was brought, and is looked at again
    with pytest.raises(IntegrityError):
        teacher.slmctl(tmp_path, *fetch, str(other))
    assert contents(got) == contents(fresh / "registry" / "tiny-desk" / "1.0")
    assert "signed by the holder of release.pub" in said(tmp_path, *verify)[0]
    (got / "NOTICE").write_text("Mine.\n")
    with pytest.raises(IntegrityError):
        teacher.slmctl(tmp_path, *verify)
    (unsigned,) = (fresh / "runs" / "published").iterdir()
    with pytest.raises(IntegrityError, match="is not signed"):
        teacher.slmctl(fresh, "verify", str(unsigned), *verify[2:])


def test_a_release_that_was_made_again_is_not_taken_for_signed(
    stages: Forks, fresh: Path, tmp_path: Path
) -> None:
    """The registry has the same files, and a manifest of another time: a
    signature of today would not hold there.
    """
    pytest.importorskip("model_signing")
    private, _ = make_key(tmp_path, "release")
    tiny.ok(stages.run(fresh, "publish"))
    shutil.rmtree(fresh / "runs" / "published")
    done = stages.run(fresh, "publish", "--set", f"publish.signing_key={private}")
    assert done.returncode == 7, done.stderr
    assert "already holds tiny-desk 1.0 with the manifest of another run" in done.stderr
    assert "hint: increase 'version'" in done.stderr
    assert not (fresh / "registry" / "tiny-desk" / "1.0" / "model.sig").exists()
    assert "already in" in stages.run(fresh, "publish").stderr


def test_a_file_that_may_not_grow_is_said(tiny_run: Path, tmp_path: Path) -> None:
    registry = Path(shutil.copytree(tiny_run / "registry", tmp_path / "registry"))
    fetch, promote = (
        ("fetch", f"dir:{registry}#1.0"),
        ("promote", "1.0", "--tag", "production", "--registry", registry),
    )
    for size, command in ((50_000, fetch), (1, promote)):
        words = f"{command[0]}: a file grew larger than this process may write"
        with odd_files.growing_to(size), pytest.raises(StageError, match=words):
            teacher.slmctl(tmp_path, *map(str, command))
        teacher.slmctl(tmp_path, *map(str, command))  # goes on where it stopped


# Tags, and who follows them


def second_version(desk: Path) -> None:
    """The same models as another version: a release that differs in its name and texts."""
    first = desk / "registry" / "tiny-desk" / "1.0"
    made = artifact.load(first)
    final = desk / "second" / "1.1"
    with artifact.draft(final) as place:
        shutil.copytree(first, place, dirs_exist_ok=True, copy_function=shutil.copyfile)
        (place / "manifest.json").unlink()
        (place / "NOTICE").write_text("Version 1.1\n")
        for path in place.glob("*.gguf"):
            path.rename(path.with_name(path.name.replace("v1.0", "v1.1")))
        fields = made.manifest.__dict__ | {"metrics": made.metrics | {"version": "1.1"}}
        artifact.seal(
            place,
            final,
            lambda files, digest: artifact.Manifest(**fields | {"files": files, "digest": digest}),
        )
    send(FolderTarget(desk / "registry"), artifact.load(final))


def test_promote_and_roll_back_from_the_command_line(stages: Forks, desk: Path) -> None:
    second_version(desk)
    for release, said in (
        ("1.0", "production is 1.0"),
        ("1.1", "1.1, before that 1.0"),
        ("1.0", "before that 1.1"),
    ):
        done = stages.run(desk, "promote", release, "--tag", "production")
        assert Path(tiny.ok(done)) == desk / "registry" / "tiny-desk" / release
        assert said in done.stderr
    with (desk / "slmctl.yaml").open("a") as stream:
        stream.write("gates: [{metric: accuracy, model: Q8_0, min: 1.0}]\n")
    refused = stages.run(desk, "promote", "1.1", "--tag", "production")
    assert refused.returncode == 5
    assert "(at least 1" in refused.stderr
    assert registry.find(desk / "registry", "production").metrics["version"] == "1.0"
    alone = stages.run(
        desk.parent, "promote", "1.1", "--tag", "canary", "--registry", str(desk / "registry")
    )
    assert tiny.ok(alone)  # without a config its own gates count, and it had none


@pytest.fixture
def followed(stages: Forks, desk: Path) -> Iterator[tuple[Path, subprocess.Popen[str], str]]:
    second_version(desk)
    for version in ("1.0", "1.1"):
        tiny.ok(stages.run(desk, "promote", version, "--tag", "production"))
    tiny.ok(stages.run(desk, "promote", "1.0", "--tag", "production"))
    child = tiny.start(desk, "serve", "dir:./registry#production", "--port", "0")
    assert child.stdout is not None
    url = child.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:"), child.communicate()
    yield desk, child, url
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == 0


def served(url: str) -> str:
    """The file that answers; the model's name outlives releases."""
    file: str = httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["slmctl"]["file"]
    return file


def await_event(child: subprocess.Popen[str], name: str) -> dict[str, Any]:
    """The next event of that name in the server's log; the server
    is ended after a minute without it.
    """
    assert child.stderr is not None
    patience = threading.Timer(60, child.terminate)
    patience.start()
    try:
        for line in child.stderr:
            if line.startswith("{") and (event := json.loads(line))["event"] == name:
                return dict(event)
    finally:
        patience.cancel()
    raise AssertionError(f"the log has no event '{name}'")


def follow(child: subprocess.Popen[str], url: str) -> str:
    """Have the server take up what its tag stands for, while requests come and none is refused."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(await_event, child, "followed")
        child.send_signal(signal.SIGHUP)
        while not done.done():
            served(url)
        done.result()
    return served(url)


@pytest.mark.slow
def test_a_server_follows_its_tag(
    stages: Forks, followed: tuple[Path, subprocess.Popen[str], str]
) -> None:
    desk, child, url = followed
    assert "v1.0" in served(url)
    tiny.ok(stages.run(desk, "promote", "1.1", "--tag", "production"))
    assert "v1.0" in served(url)  # until it is told
    assert "v1.1" in follow(child, url)
    tiny.ok(stages.run(desk, "promote", "1.0", "--tag", "production"))
    assert "v1.0" in follow(child, url)


@pytest.mark.slow
def test_a_server_stays_with_what_is_whole(
    stages: Forks, followed: tuple[Path, subprocess.Popen[str], str]
) -> None:
    desk, child, url = followed
    tiny.ok(stages.run(desk, "promote", "1.1", "--tag", "production"))
    path = next((desk / "registry" / "tiny-desk" / "1.1").glob("*Q8_0.gguf"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.unlink()
    path.write_bytes(raw)
    child.send_signal(signal.SIGHUP)
    assert "damaged" in await_event(child, "not_followed")["error"]
    assert "v1.0" in served(url)
    assert child.poll() is None


def test_fetch_keeps_to_its_host(tmp_path: Path) -> None:
    """The network is open for the host that the target names, and no other."""
    code = (
        "import socket\nfrom slmctl.network import guard\nfrom slmctl.releases import targets\n"
        "from slmctl.errors import NetworkError\nguard.seal()\n"
        "def ask(host):\n"
        "    try:\n        socket.getaddrinfo(host, 443)\n"
        "    except NetworkError as error:\n        return 'refused'\n"
        "    except OSError:\n        return 'asked'\n"
        "    return 'asked'\n"
        "before = ask('registry.invalid')\n"
        "with targets.opened('s3://desk/x', targets.Settings(), purpose='test'):\n"
        "    print(before, ask('registry.invalid'), ask('elsewhere.invalid'), "
        "ask('registry.invalid'))\n"
    )
    env = os.environ | {
        "RES_OPTIONS": "attempts:1 timeout:1",
        "AWS_ENDPOINT_URL": "https://registry.invalid",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["refused", "asked", "refused", "asked"], done.stderr
    assert "will contact registry.invalid and no other host" in done.stderr
