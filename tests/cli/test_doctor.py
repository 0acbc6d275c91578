"""`slmctl doctor` on the two kinds of models, and the extras that messages name."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import ROOT

from slmctl import hardware
from slmctl.cli import doctor_checks
from slmctl.installation import pip_line
from slmctl.pipeline import system_errors


@pytest.mark.parametrize(
    ("absent", "missed", "noted"),
    [
        # doctor --fix once ended with 4 without them, and the installation with it
        (("unsloth", "ray"), [], []),
        (("pyarrow", "boto3", "pypdfium2"), [], []),
        (("llama-cpp-python", "llguidance", "trl"), [], ["language model"]),
        (("torch",), ["classifier", "language model"], []),
    ],
    ids=lambda value: "+".join(value) or "none",
)
def test_doctor_says_which_models_can_be_made(
    monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...], missed: list[str], noted: list[str]
) -> None:
    monkeypatch.setattr(doctor_checks, "_version", lambda name: "" if name in absent else "1.0")
    monkeypatch.setattr(hardware, "cpp_compiler", lambda: "")
    checks = [check for check in doctor_checks._packages() if check.name != "torch build"]
    assert [check.name for check in checks if not check.ok] == missed
    assert [check.name for check in checks if check.ok and check.remedy] == noted
    lines = {check.name: check for check in checks}
    if noted:
        assert lines["language model"].result == "missing: llama-cpp-python, llguidance, trl"
        assert lines["language model"].remedy.startswith(
            f"apt-get install g++ cmake; {pip_line('gguf', 'train')}"
        )
        assert doctor_checks._tools() == []
    elif missed:
        assert lines["classifier"].remedy == pip_line("encoder")
    else:
        assert lines["classifier"].result.startswith("ready: slmctl run --until encode")


def test_an_extra_brings_the_packages_that_are_said_to_need_it() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        extra: {canonicalize_name(Requirement(need).name) for need in needs}
        for extra, needs in pyproject["optional-dependencies"].items()
    }
    declared["encoder"] |= declared["serve"] | declared["evaluate"]
    for extra, packages in system_errors.EXTRAS.items():
        names = {
            canonicalize_name(doctor_checks.DISTRIBUTIONS.get(package, package))
            for package in packages
        }
        assert names <= declared[extra], extra


@pytest.mark.parametrize(
    ("packages", "extras"),
    [
        (["sklearn"], ["evaluate"]),
        (["torch", "onnx"], ["encoder"]),
        (["onnx", "starlette", "sklearn"], ["encoder"]),
        (["torch", "trl"], ["train"]),
        (["sklearn", "llama_cpp"], ["gguf"]),
        (["llama_cpp", "trl"], ["gguf", "train"]),
    ],
)
def test_a_missing_package_names_the_fewest_extras(packages: list[str], extras: list[str]) -> None:
    assert [*system_errors.extras_of(packages)] == extras
