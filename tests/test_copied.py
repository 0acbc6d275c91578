"""The examples that a data team copies: the nightly script and the
client, run against a tiny model.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import tiny
from support.endpoint import Turn, fails, says, serving

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


client = load(EXAMPLES / "client.py")
choose_model = load(EXAMPLES / "choose_model.py")


# The client


def test_the_client_gets_an_answer_and_its_confidence(desk_url: str) -> None:
    desk = client.Client(desk_url)
    answer = desk.ask("refund my card")
    assert answer.text in tiny.WORDS
    assert 0 < answer.confidence <= 1
    assert answer.finish == "stop"
    assert "".join(desk.stream("refund my card")) == answer.text
    assert client.Client(f"{desk_url}/v1").ask("refund my card").text == answer.text


def test_the_program_answers_line_by_line_in_order(desk_url: str) -> None:
    texts = [text for text, _ in tiny.rows(20)]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "client.py", "--url", desk_url],
        input="\n".join(texts) + "\n\n",
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["input"] for line in lines] == texts
    assert {line["text"] for line in lines} <= set(tiny.WORDS)


def test_what_the_server_refuses_is_said_and_the_others_go_on(desk_url: str) -> None:
    desk = client.Client(desk_url)
    with pytest.raises(client.AskError, match="option 'modalities' is not supported"):
        desk.ask("hello", modalities=["audio"])
    refused, answered = desk.ask_all(["hello " * 3000, "refund my card"])
    assert "does not fit" in str(refused)
    assert answered.text in tiny.WORDS


def test_the_client_waits_as_long_as_it_is_told_and_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waits.append)
    with serving(
        lambda body, before: (
            fails(429, "busy", **{"retry-after": "3"}) if before < 2 else says("yes")
        )
    ) as fake:
        assert client.Client(fake.url, key="sk-1").ask("hello", sensitive=True).text == "yes"
        assert waits == [3, 3]
        assert fake.headers[0]["authorization"] == "Bearer sk-1"
        assert fake.headers[0]["x-slmctl-sensitive"] == "true"
    waits.clear()
    with pytest.raises(client.AskError, match="cannot be reached"):
        client.Client(fake.url).ask("hello")
    assert len(waits) == client.ATTEMPTS - 1
    with pytest.raises(ValueError, match="no http address"):
        client.Client("file:///etc/passwd")


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    half = b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'
    for rest, wanted in (
        (b"", "broke off"),
        (b'data: {"error": {"message": "the engine died"}}\n\n', "engine died"),
    ):
        with (
            serving(lambda body, before, rest=rest: (200, {}, half + rest)) as fake,
            pytest.raises(client.AskError, match=wanted),
        ):
            list(client.Client(fake.url).stream("hello"))


# The choice of a model


@pytest.mark.parametrize(
    ("name", "confidence", "chosen"),
    [
        ("mail", 0.9, ("mail", "hello")),
        ("mail", None, ("mail", "hello")),
        ("mail", 0.7, ("none", None)),
        ("none", 0.9, ("none", None)),
    ],
)
def test_the_model_that_is_named_is_asked_and_none_where_no_name_is_sure(
    name: str, confidence: float | None, chosen: tuple[str, str | None]
) -> None:
    def manners(body: dict[str, Any], before: int) -> Turn:
        return (
            says(name, slmctl={"confidence": confidence})
            if body["model"] == "which"
            else says("hello", slmctl={})
        )

    with serving(manners) as fake:
        assert choose_model.choose(fake.url, "which", "where is my parcel") == chosen
    assert [body["model"] for body in fake.bodies] == ["which", *(["mail"] if chosen[1] else [])]


# The nightly script


class Night:
    """A project that the script is run in, as by cron: with a bare environment."""

    def __init__(self, project: Path) -> None:
        self.project, self.state = project, project / "runs" / ".pipeline"

    def run(self, **env: str) -> subprocess.CompletedProcess[str]:
        bare = {"PATH": "/usr/bin:/bin", "PORT": "0", "PAUSE": "0", "OMP_NUM_THREADS": "1"}
        bare |= {"SLMCTL": str(Path(sys.executable).with_name("slmctl")), **env}
        script = [EXAMPLES / "pipeline.sh", self.project]
        return subprocess.run(
            script, env=bare, cwd="/", capture_output=True, text=True, timeout=500, check=False
        )

    def read(self, name: str) -> str:
        return (self.state / name).read_text().strip()

    def end(self) -> None:
        if (self.state / "pid").exists():
            os.kill(int(self.read("pid")), signal.SIGTERM)


def release_version(path: str) -> str:
    version: str = json.loads((Path(path) / "manifest.json").read_bytes())["metrics"]["version"]
    return version


@pytest.fixture
def night(tiny_run: Path, tmp_path: Path) -> Iterator[Night]:
    found = Night(Path(shutil.copytree(tiny_run, tmp_path / "desk")))
    yield found
    found.end()


@pytest.mark.slow
def test_the_script_serves_what_passed_and_leaves_it_alone_until_something_new_passes(
    night: Night, tmp_path: Path
) -> None:
    path = night.project / "slmctl.yaml"
    # else such a base is asked about
    gate = "{metric: accuracy, model: Q8_0, against: tfidf_logistic, max_drop: 0.99}"
    path.write_text(f"{path.read_text()}gates:\n  - {gate}\n")
    first = night.run()
    assert (first.returncode, first.stdout, first.stderr) == (0, "", ""), (
        first.stderr,
        night.read("log"),
    )
    release, pid, address = night.read("served"), night.read("pid"), night.read("address")
    assert client.Client(address).ask("refund my card").text in tiny.WORDS
    again = night.run()
    assert (again.returncode, again.stderr) == (0, "")
    assert night.read("log").splitlines()[-1].endswith(f"nothing new: {release} is served")
    assert night.read("pid") == pid
    with (night.project / "tickets.csv").open("a") as stream:
        stream.writelines(f"{text} tomorrow,{label}\n" for text, label in tiny.rows(20, seed=9))
    other = night.run()
    assert other.returncode == 0, other.stderr
    assert night.read("served") != release
    assert night.read("pid") != pid
    assert client.Client(night.read("address")).ask("refund my card").text in tiny.WORDS
    kept = {path.name for path in (night.project / "registry" / "tiny-desk").iterdir()}
    assert {"1.0", release_version(release), release_version(night.read("served"))} <= kept

    # a model that fails its gate is not served, and a person is told
    release, pid = night.read("served"), night.read("pid")
    path.write_text(path.read_text() + "  - {metric: accuracy, model: Q8_0, min: 1.01}\n")
    failed = night.run(NOTIFY=f"cat > {tmp_path}/mail")
    assert failed.returncode == 5
    assert "a gate or another check failed" in failed.stderr
    assert "The old release stays" in (tmp_path / "mail").read_text()
    assert (night.read("served"), night.read("pid")) == (release, pid)
    assert client.Client(night.read("address")).ask("refund my card").text in tiny.WORDS


@pytest.mark.slow
def test_the_script_trains_nothing_where_a_linear_model_leaves_nothing_to_win(night: Night) -> None:
    # It answered the question with yes, and served what the linear model beats.
    tiny.write_csv(night.project / "tickets.csv", tiny.rows(600))
    done = night.run()
    assert (done.returncode, "next to nothing to win" in done.stderr) == (5, True), (
        done.stderr,
        night.read("log"),
    )
    assert "The old release stays" in done.stderr and not (night.state / "served").exists()


def test_another_run_under_way_and_a_missing_program_have_their_codes(tmp_path: Path) -> None:
    night = Night(tmp_path)
    night.state.mkdir(parents=True)
    (night.state / "lock").touch()
    with subprocess.Popen(
        ["flock", str(night.state / "lock"), "sh", "-c", "echo held; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        assert night.run().returncode == 8
        holder.stdin.close()
    assert night.run(SLMCTL="/nowhere/slmctl").returncode == 127
    assert (
        subprocess.run([EXAMPLES / "pipeline.sh"], capture_output=True, check=False).returncode != 0
    )


def test_the_exit_codes_of_stages_are_the_scripts(tmp_path: Path) -> None:
    # a stand-in for the program that fails as it is told: what the script makes of each code
    program = tmp_path / "slmctl"
    program.write_text(
        '#!/bin/sh\necho "$4" >> "$2/calls"\n[ "$4" != "$FAILS" ] || { echo oops >&2; exit $CODE; '
        '}\necho "$2/made"\n'
    )
    program.chmod(0o755)
    for code, stage, calls, wanted in (
        (3, "--until", 1, "rows cannot be used"),
        (5, "--set", 2, "a gate or another check"),
        (9, "--until", 3, "oops"),
        (6, "--until", 1, "run failed with 6"),
        (7, "--set", 2, "run failed with 7"),
        (143, "--set", 2, ""),
    ):
        folder = tmp_path / f"{code}"
        folder.mkdir()
        (folder / "slmctl.yaml").touch()
        done = Night(folder).run(SLMCTL=str(program), FAILS=stage, CODE=str(code))
        assert done.returncode == code, (code, done.stderr)
        assert len((folder / "calls").read_text().splitlines()) == calls
        assert wanted in done.stderr
        assert (done.stderr == "") == (code == 143)
    (folder / "calls").unlink()
    reload = '[ "$RELEASE" = "$("$SLMCTL" -C /srv/desk promote x)" ]'
    done = Night(folder).run(
        PATH=f"{tmp_path}:/usr/bin:/bin", SLMCTL="", FAILS="", CODE="", RELOAD=reload
    )
    assert (
        done.returncode,
        "see" in done.stderr,
        f"{folder}/runs/.pipeline/log" in done.stderr,
    ) == (6, True, True)


def test_a_release_is_made_once_and_is_served_again_where_the_next_does_not_start(
    tmp_path: Path,
) -> None:
    # one more judged pair made report and release anew, under a version that a release had: each
    # night ended with 7; and the documented RELOAD promoted the version that does not start once
    # more, in place of the old one
    program = tmp_path / "slmctl"
    program.write_text(
        """#!/bin/sh
        echo "$4" >> "$2/calls"
        name=$2/$(cat "$2/adapter")
        [ "$4" = --until ] || mkdir -p "$name"
        echo "$name"
        """
    )
    program.chmod(0o755)
    (tmp_path / "date").write_text("#!/bin/sh\necho $$\n")  # a night takes less than a second here
    (tmp_path / "date").chmod(0o755)
    # the sleep is a server, which outlives the script: it held its lock, and each later night ended
    # with 8
    reload = (
        f"sleep 9 & echo $RELEASE $VERSION >> {tmp_path}/reloads; [ ${{RELEASE##*/}} != broken ]"
    )
    desk = Night(tmp_path / "desk")
    desk.project.mkdir()
    (desk.project / "slmctl.yaml").touch()

    def night(adapter: str) -> tuple[int, list[str]]:
        """Returns (exit code, the calls of slmctl) of a night that trains this adapter."""
        (desk.project / "adapter").write_text(adapter)
        (desk.project / "calls").write_text("")
        done = desk.run(SLMCTL=str(program), RELOAD=reload, PATH=f"{tmp_path}:/usr/bin:/bin")
        return done.returncode, (desk.project / "calls").read_text().split()

    assert night("first") == (0, ["--until", "--set"])
    assert night("first") == (0, ["--until"])
    assert desk.read("log").endswith(f"nothing new: {desk.project}/first is served")
    (desk.project / "first").rmdir()  # by hand: it is made anew
    assert night("first") == (0, ["--until", "--set"])
    assert night("next") == (0, ["--until", "--set"])
    assert desk.read("served") == f"{desk.project}/next"
    assert night("broken") == (6, ["--until", "--set"])
    assert night("next") == (0, ["--until"])
    *_, served, broken, again = (tmp_path / "reloads").read_text().splitlines()
    assert served == again == f"{desk.project}/next {desk.read('served-version')}"
    assert broken.startswith(f"{desk.project}/broken ") and broken.split()[1] != served.split()[1]
