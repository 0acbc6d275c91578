"""unsloth, and the versions of the other libraries that it pins, as far as a processor can tell.

Unsloth rewrites libraries when it is imported, so whatever needs it runs in a process of its own:
the functions named `child_*`. On a processor it knows two ways to be, and both are used here. With
UNSLOTH_ALLOW_CPU it is what it is on a GPU, but cannot load a model; with UNSLOTH_FORCE_CPU it
loads and trains one, over transformers and PEFT.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from support import TESTS, tiny

pytestmark = [
    pytest.mark.unsloth,
    pytest.mark.skipif(
        importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed"
    ),
]

RECIPE = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "lora": {"rank": 16, "alpha": 32}}
HOOKS = (
    "get_batch_samples",
    "training_step",
    "compute_loss",
    "_clip_grad_norm",
    "evaluate",
    "_save_checkpoint",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_get_train_sampler",
)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """No GPU, even where there is one, and a cache of its own."""
    return tiny.environment(CUDA_VISIBLE_DEVICES="", XDG_CACHE_HOME=str(folder / "cache"), **more)


def in_child(name: str, folder: Path, *args: str, **more: str) -> str:
    """Call a function of this file in a fresh process, below `folder`; returns its stdout."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    code = f"import sys, test_unsloth; test_unsloth.{name}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(
            folder, PYTHONPATH=os.pathsep.join([str(TESTS), str(Path(__file__).parent)]), **more
        ),
    )
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []  # nothing is left in the folder where the user happens to be
    return done.stdout


@pytest.fixture(scope="module")
def desk(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny project with base and records, and nothing trained yet."""
    folder = tmp_path_factory.mktemp("unsloth") / "desk"
    shutil.copytree(tiny_project, folder)
    tiny.ok(tiny.slmctl(folder, "run", "--until", "prepare", env=environment(folder.parent)))
    return folder


@pytest.fixture(scope="module")
def plain(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What training without unsloth comes to, with the versions that unsloth pins."""
    return json.loads(
        in_child("child_trains", tmp_path_factory.mktemp("plain"), str(desk), "plain")
    )


# What is installed


def test_every_version_is_one_that_unsloth_allows() -> None:
    for distribution in ("unsloth", "unsloth_zoo"):
        for line in importlib.metadata.requires(distribution) or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert need.specifier.contains(
                    importlib.metadata.version(need.name), prereleases=True
                ), line


def test_what_is_installed_satisfies_slmctl_too() -> None:
    for line in importlib.metadata.requires("slmctl") or []:
        need = Requirement(line)
        if any(
            need.marker is None or need.marker.evaluate({"extra": extra})
            for extra in ("", "train", "cuda")
        ):
            assert need.specifier.contains(
                importlib.metadata.version(need.name), prereleases=True
            ), line


# Importing


def child_imports() -> None:
    from slmctl.network import guard

    asked: list[str] = []

    # in front of slmctl's guard, whose refusals may be caught
    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            asked.append(guard._host(args[1]))
        elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
            asked.append(str(args[0]))

    sys.addaudithook(watch)
    guard.seal()
    on_a_gpu()
    from slmctl.stages.finetune import finetune

    assert sys.modules["unsloth"]
    assert finetune
    assert [host for host in asked if not guard.is_local(host)] == []


def on_a_gpu() -> None:
    """What slmctl imports first where there is a GPU, and what unsloth does
    there but not under UNSLOTH_ALLOW_CPU.
    """
    from slmctl import hardware
    from slmctl.stages.finetune import backend

    hardware.accelerator = lambda: "cuda"
    backend.import_first("auto")
    del os.environ["UNSLOTH_ALLOW_CPU"]
    import transformers
    from unsloth.context_parallel import patch_sft_trainer
    from unsloth.models._utils import patch_gradient_accumulation_fix
    from unsloth.models.rl import PatchFastRL
    from unsloth.trainer import _patch_trl_trainer

    with backend.stdout_to_stderr():
        _patch_trl_trainer()
        patch_sft_trainer()
        PatchFastRL()
        patch_gradient_accumulation_fix(transformers.Trainer)  # from_pretrained does it


def test_importing_it_asks_nobody_and_says_nothing(tmp_path: Path) -> None:
    assert in_child("child_imports", tmp_path, UNSLOTH_ALLOW_CPU="1") == ""
    assert (tmp_path / "cache" / "slmctl" / "unsloth" / "UnslothSFTTrainer.py").exists()


# What slmctl passes and overrides


def child_options() -> None:
    import unsloth
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from slmctl.config import FinetuneConfig
    from slmctl.stages.finetune import device_plan, finetune

    def named(function: Any) -> set[str]:
        return set(inspect.signature(function).parameters)

    for targets in ("all-linear", ["q_proj"]):
        config = FinetuneConfig.model_validate({"lora": {"target_modules": targets}})
        load, shape = finetune.unsloth_options(config, Path("base"), device_plan.on_cpu(config))
        # what unsloth does not name it hands on: to transformers, and to PEFT
        loader = unsloth.FastLanguageModel
        assert set(load) <= named(loader.from_pretrained) | named(PreTrainedModel.from_pretrained)
        assert set(shape) <= named(loader.get_peft_model) | named(LoraConfig)


def test_every_option_that_is_passed_exists(tmp_path: Path) -> None:
    in_child(
        "child_options",
        tmp_path,
        UNSLOTH_ALLOW_CPU="1",
        UNSLOTH_COMPILE_LOCATION=str(tmp_path / "compiled"),
    )


def child_hooks() -> None:
    on_a_gpu()
    import torch
    from unsloth.models import llama

    from slmctl.stages.finetune import trainer

    ours = trainer.AnswerTrainer
    # or else none of this looks at what runs on a GPU
    assert ours.__mro__[1].__name__ == "UnslothSFTTrainer"
    for name in HOOKS:
        assert name in vars(ours), name
        over = [vars(base)[name] for base in ours.__mro__[1:] if name in vars(base)]
        assert over, f"nobody calls {name} any more"
        for function in over:
            assert_takes(vars(ours)[name], inspect.signature(function), name)
    # left padding is right only as long as unsloth keeps the mask of a batch that is padded so and
    # has no labels
    assert llama._is_left_padded(torch.tensor([[0, 1], [1, 1]]))
    assert "_is_left_padded(attention_mask)" in inspect.getsource(llama.LlamaModel_fast_forward)


def assert_takes(function: Any, base: inspect.Signature, name: str) -> None:
    """A function can be called in every way that one of the signature `base` can."""
    own = inspect.signature(function).parameters
    kinds = {parameter.kind for parameter in own.values()}
    if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds:
        return
    wanted = [
        p for p in base.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    assert list(own)[: len(wanted)] == [p.name for p in wanted], f"{name}{base}"
    for parameter in wanted:
        optional = parameter.default is not parameter.empty
        assert not optional or own[parameter.name].default is not parameter.empty, (
            f"{name}: {parameter}"
        )
    assert all(
        p.default is not p.empty for p in list(own.values())[len(wanted) :] if len(wanted) > 1
    ), name


def test_every_hook_that_is_overridden_is_called_as_before(tmp_path: Path) -> None:
    in_child("child_hooks", tmp_path, UNSLOTH_ALLOW_CPU="1")


# Training


def child_trains(desk: str, how: str) -> None:
    if how == "rewritten":
        on_a_gpu()
    from slmctl.artifacts import artifact
    from slmctl.config import FinetuneConfig
    from slmctl.stages.finetune import finetune

    finetune.packing_check.supports_packing = lambda model: False  # padded batches, as on a GPU
    made = finetune.SFTConfig
    known = {field.name for field in dataclasses.fields(made)}

    def checked(**options: Any) -> Any:
        assert set(options) <= known  # unsloth's own SFTConfig drops what TRL's does not know
        return made(**options)

    finetune.SFTConfig = checked
    base, prepared = (
        artifact.load(next(Path(desk, "runs", kind).iterdir())) for kind in ("base", "prepared")
    )
    folder = Path("trained")
    folder.mkdir()
    config = FinetuneConfig.model_validate({**RECIPE, "backend": "transformers"})
    metrics = finetune.run(config, base=base, prepared=prepared, out=folder, keep=folder / "keep")
    shutil.rmtree(folder)
    print(json.dumps(metrics))  # noqa: T201 - read by the parent


def test_the_trainer_that_unsloth_writes_trains_alike(
    desk: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    metrics = json.loads(
        in_child("child_trains", tmp_path, str(desk), "rewritten", UNSLOTH_ALLOW_CPU="1")
    )
    assert plain["validation_loss"] < 0.5 * plain["validation_loss_before"]
    for loss in ("train_loss", "validation_loss", "validation_loss_before"):
        assert metrics[loss] == pytest.approx(plain[loss], rel=1e-3), loss


def child_slmctl(*args: str) -> None:
    from slmctl import hardware
    from slmctl.cli.main import main

    hardware.accelerator = lambda: "cuda"
    sys.argv = ["slmctl", *args]
    main()


@pytest.mark.parametrize("load_4bit", ["false", "true"])
def test_unsloth_itself_trains(
    desk: Path, plain: dict[str, Any], tmp_path: Path, load_4bit: str
) -> None:
    folder = Path(shutil.copytree(desk, tmp_path / "desk"))
    sets = [f"--set=finetune.{key}={json.dumps(value)}" for key, value in RECIPE.items()]
    options = [*sets, "--set=finetune.backend=unsloth", f"--set=finetune.load_in_4bit={load_4bit}"]
    said = in_child(
        "child_slmctl",
        tmp_path,
        "-C",
        str(folder),
        "finetune",
        "--json",
        *options,
        UNSLOTH_FORCE_CPU="1",
    )
    metrics = json.loads(said)["metrics"]  # and not a word more on stdout
    assert metrics["backend"] == "unsloth"
    # nats: its weights are bfloat16 or of 4 bits, the others float32
    near = 0.1 * plain["validation_loss"]
    # smaller, being among the labels
    assert metrics["train_loss"] == pytest.approx(plain["train_loss"], abs=near)
    assert metrics["validation_loss"] == pytest.approx(plain["validation_loss"], abs=near)


def test_the_pinned_versions_train_without_it_and_go_on_after_a_kill(
    desk: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(desk, tmp_path / "desk"))
    env = environment(tmp_path)
    options = ["finetune", "--json", "--set=finetune.backend=transformers"]
    whole = json.loads(tiny.ok(tiny.slmctl(folder, *options, env=env)))
    assert whole["metrics"]["backend"] == "transformers"
    assert whole["metrics"]["validation_loss"] < 0.5 * whole["metrics"]["validation_loss_before"]
    shutil.rmtree(folder / "runs" / "adapter")

    child = tiny.start(folder, *options, env=env)
    until = time.monotonic() + 120
    while child.poll() is None and not list(folder.glob("runs/adapter/.resume-*/step-*")):
        assert time.monotonic() < until
        time.sleep(0.01)
    tiny.kill_group(child)
    assert list(folder.glob("runs/adapter/*/manifest.json")) == [], (
        "it ended before it could be killed"
    )
    done = tiny.slmctl(folder, *options, env=env)
    assert json.loads(tiny.ok(done))["digest"] == whole["digest"]
    assert "going on from step-" in done.stderr
