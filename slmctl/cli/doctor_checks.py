"""`slmctl doctor`: checks of hardware, packages and tools, each with the command that mends it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from slmctl import __version__, hardware
from slmctl.cli import matmul_rates
from slmctl.config import resolve_matmul_dtype
from slmctl.console import count, size
from slmctl.errors import MissingError
from slmctl.hardware import usable_cores
from slmctl.init.proposal import Machine
from slmctl.installation import pip_line
from slmctl.model_files import catalogue, gguf_converter
from slmctl.model_files.base_model import Base
from slmctl.pipeline.system_errors import EXTRAS, extras_of
from slmctl.stages.finetune import backend

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
DISTRIBUTIONS = {
    "llama_cpp": "llama-cpp-python",
    "sklearn": "scikit-learn",
    "huggingface_hub": "huggingface-hub",
    "OpenSSL": "pyOpenSSL",
}
COMPLETION = {  # by shell: the file, and the line that goes into it
    "bash": ("~/.bashrc", 'eval "$(_SLMCTL_COMPLETE=bash_source slmctl)"'),
    "zsh": ("~/.zshrc", 'eval "$(_SLMCTL_COMPLETE=zsh_source slmctl)"'),
    "fish": (
        "~/.config/fish/completions/slmctl.fish",
        "_SLMCTL_COMPLETE=fish_source slmctl | source",
    ),
}
CPU_TORCH = (
    "install torch from the CPU index that pytorch.org's install page names, before "
    "slmctl (see README)"
)


@dataclass(frozen=True)
class Check:
    """One line of the report: the subject, its state, and the command that mends it."""

    name: str
    result: str
    ok: bool = True
    remedy: str = ""


def examine() -> list[Check]:
    """Run all checks. Nothing is downloaded; torch is imported in a child process alone."""
    return [*_machine(), *_matmul(), *_packages(), *_tools(), _completion()]


def examine_base(base: Base) -> list[Check]:
    """Checks of a base that `pull` has left."""
    own = base.template_origin == "base"
    return [
        Check("base", base.public_name),
        Check("source", base.source),
        Check("size", f"{base.size_label} parameters"),
        Check(
            "license",
            base.license or "none stated",
            True,
            "" if base.license else "--set publish.license=ID",
        ),
        Check("languages", ", ".join(base.languages) or "none stated"),
        Check("chat template", "the base's own" if own else "slmctl's, since the base has none"),
        *([Check("template date", base.template_date)] if base.template_date else []),
        *([Check("note", base.note)] if base.note else []),
        _rehearsal(base),
    ]


def lines(checks: list[Check]) -> Iterator[str]:
    """The checks as text, each with its remedy below it."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = "MISS" if not check.ok else "note" if check.remedy else "ok  "
        yield f"{mark} {check.name:<{width}}  {check.result}"
        if check.remedy:
            yield f"     {'':<{width}}  -> {check.remedy}"


def _rehearsal(base: Base) -> Check:
    """The result of the rehearsal that `pull` has made with a small copy of the base."""
    if not base.rehearsal:
        return Check("rehearsal", "none was made", True, "--set pull.rehearse=true, and pull again")
    passed = base.rehearsal.get("passed") is True
    remarks = base.rehearsal.get("remarks")
    sentences = ["every stage went through" if passed else "not every stage could be tried"]
    sentences += map(str, remarks if isinstance(remarks, list) else [])
    return Check("rehearsal", "; ".join(sentences), passed)


def fix() -> list[str]:
    """Fetch the GGUF converter, unless it is ready; returns a line for each action."""
    if gguf_converter.state() == "ready":
        return []
    if gguf_converter.state() != "missing":
        shutil.rmtree(gguf_converter.folder())
    return [
        f"fetched the GGUF converter of llama-cpp-python {gguf_converter.version()} to "
        f"{gguf_converter.fetch()}"
    ]


def _machine() -> list[Check]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage(".").free
    flags = [flag for flag in FLAGS if flag in hardware.cpu_flags()]
    gpu = hardware.accelerator()
    # the smallest that needs no hub
    start = next(entry for entry in catalogue.entries() if entry.package)
    needed = Machine({}, resolve_matmul_dtype("auto")).training_bytes(start)
    return [
        Check("slmctl", f"{__version__}, Python {platform.python_version()} in {sys.prefix}"),
        Check(
            "processor",
            f"{count(usable_cores(), 'core')}, {platform.machine()}, "
            f"{' '.join(flags) or 'no vector extensions'}",
        ),
        Check(
            "memory",
            size(memory),
            memory > needed,
            ""
            if memory > needed
            else f"{start.short_name} trains in about {size(needed)} of memory",
        ),
        Check(
            "disk",
            f"{size(disk)} free here",
            disk > 5e9,
            "" if disk > 5e9 else "a run needs about 2 GB, and its artifacts stay",
        ),
        Check("accelerator", gpu or "none (training and serving run on the processor)"),
        Check("training backend", backend.choose("auto")),
    ]


def _matmul() -> list[Check]:
    """Time matrix products in float32 and bfloat16, and say if `auto` takes the slower of them."""
    if not _version("torch"):
        return []
    try:
        measured = matmul_rates.measure()
    except MissingError as error:
        return [Check("matrix products", error.message, False, error.hint)]
    rates, chosen = measured.best, resolve_matmul_dtype("auto")
    best = max(rates, key=rates.__getitem__)
    speeds = f"{_speeds(measured.now)}; auto takes {chosen}"
    if measured.load:
        speeds += f"; measured while {measured.load}"
    if rates != measured.now:
        speeds += f"; estimates go by the best on this processor, {_speeds(rates)}"
    wrong = best != chosen and rates[best] > 1.2 * rates[chosen]
    remedy = f"--set finetune.matmul_dtype={best} is faster here" if wrong else ""
    if measured.is_slow or (measured.load and not measured.before):
        remedy = "slmctl doctor, when no other process wants the cores"
    return [Check("matrix products", speeds, True, remedy)]


def _speeds(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items())


def _roads() -> Iterator[Check]:
    """The two kinds of models, each with the packages that it lacks; a
    machine that can make one of them is well.
    """
    classifier, model = _lacking("encoder"), _lacking("encoder", "gguf", "train")
    line = pip_line(*extras_of(model))
    if "llama_cpp" in model:
        tools = "" if hardware.cpp_compiler() else "apt-get install g++ cmake; "
        line = f"{tools}{line} (it compiles llama-cpp-python); slmctl doctor --fix"
    for name, command, lacking, remedy in (
        (
            "classifier",
            "slmctl run --until encode, publish: {model: linear}",
            classifier,
            pip_line("encoder"),
        ),
        ("language model", "slmctl run", model, line),
    ):
        result = f"missing: {', '.join(lacking.values())}" if lacking else f"ready: {command}"
        yield Check(name, result, not lacking or not classifier, remedy if lacking else "")


def _lacking(*extras: str) -> dict[str, str]:
    """The packages of some extras that are not installed, with the names of their distributions."""
    names = {
        package: DISTRIBUTIONS.get(package, package)
        for extra in extras
        for package in EXTRAS[extra]
    }
    return {package: name for package, name in names.items() if not _version(name)}


def _packages() -> list[Check]:
    findings, listed = [*_roads()], set[str]()
    for extra, packages in EXTRAS.items():
        names = [
            DISTRIBUTIONS.get(package, package) for package in packages if package not in listed
        ]
        listed |= {*packages}
        installed = (
            ", ".join(f"{name} {version}" for name in names if (version := _version(name)))
            or "nothing"
        )
        helps = extra == "cuda" and installed == "nothing" and hardware.accelerator()
        findings.append(Check(f"[{extra}]", installed, True, pip_line(extra) if helps else ""))
    torch = _version("torch")
    if torch and "+cpu" not in torch and not hardware.accelerator() and _is_cuda_build():
        findings.append(
            Check(
                "torch build", f"{torch}: a CUDA build on a machine without a GPU", True, CPU_TORCH
            )
        )
    elif not torch:
        findings.append(
            Check(
                "torch build",
                "not installed; the public index brings a CUDA build of several GB",
                True,
                CPU_TORCH,
            )
        )
    return findings


def _tools() -> list[Check]:
    """The tools of a language model; those of one that is not installed are in its line."""
    if not _version("llama-cpp-python"):
        return []
    compiler = hardware.cpp_compiler()
    remedy = (
        ""
        if compiler
        else "apt-get install g++ (without it, training on a processor takes a fifth longer)"
    )
    state = gguf_converter.state()
    ready = state == "ready"
    about = f"ready, in {gguf_converter.folder()}" if ready else state
    return [
        Check("C++ compiler", compiler or "none", True, remedy),
        Check("GGUF converter", about, ready, "" if ready else "slmctl doctor --fix"),
    ]


def _completion() -> Check:
    """The line that makes the user's shell complete commands and options."""
    shell = Path(os.environ.get("SHELL", "")).name
    place, line = COMPLETION.get(shell, COMPLETION["bash"])
    return Check("shell completion", f"in {place}: {line}")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _is_cuda_build() -> bool:
    """True if the installed torch requires NVIDIA's packages."""
    return any(
        "nvidia" in need or "cuda" in need for need in importlib.metadata.requires("torch") or []
    )
