"""Training on an accelerator: with unsloth, whole and in 4 bits, and with transformers.

The base is made here: small, of sizes that every GPU kernel takes, and nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from slmctl import hardware

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not hardware.accelerator(), reason="no accelerator is here"),
]
needs_unsloth = pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed"
)

# few steps at a low rate: two runs that differ by a rounding have not drifted apart yet
RECIPE = [
    "--set=finetune.max_steps=24",
    "--set=finetune.learning_rate=3e-3",
    "--set=finetune.batch_size=8",
]


@pytest.fixture(scope="module")
def desk(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with a base whose heads are 64 wide, and its records."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("gpu") / "desk"
    shutil.copytree(tiny_project, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    set_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.05,
            bos_token_id=1,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
    ).save_pretrained(folder / "base")
    tiny.ok(tiny.slmctl(folder, "run", "--until", "prepare"))
    return folder


def trained(desk: Path, into: Path, *options: str) -> dict[str, Any]:
    """The metrics of `slmctl finetune`, whose stdout holds the manifest and nothing else."""
    folder = Path(shutil.copytree(desk, into))
    done = tiny.slmctl(folder, "finetune", "--json", *RECIPE, *options, timeout=900)
    metrics: dict[str, Any] = json.loads(tiny.ok(done))["metrics"]
    assert not (Path.cwd() / "unsloth_compiled_cache").exists()
    return metrics


@pytest.fixture(scope="module")
def plain(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(
        desk, tmp_path_factory.mktemp("plain") / "desk", "--set=finetune.backend=transformers"
    )


def test_transformers_trains_on_it(plain: dict[str, Any]) -> None:
    assert plain["backend"] == "transformers"
    assert plain["validation_loss"] < 0.5 * plain["validation_loss_before"]


@needs_unsloth
@pytest.mark.parametrize("load_4bit", ["false", "true"])
def test_unsloth_trains_alike(
    desk: Path, plain: dict[str, Any], tmp_path: Path, load_4bit: str
) -> None:
    metrics = trained(desk, tmp_path / "desk", f"--set=finetune.load_in_4bit={load_4bit}")
    assert metrics["backend"] == "unsloth"  # which is what `auto` takes here
    # rounding weights that are random costs more than usual
    near = 0.3 if load_4bit == "true" else 0.1
    for loss in ("train_loss", "validation_loss", "validation_loss_before"):
        assert metrics[loss] == pytest.approx(plain[loss], rel=near), loss


def test_a_float32_run_on_the_processor_gives_nearly_the_same(
    desk: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    # packed attention by one kernel, mixed precision and the head in blocks, against the path that
    # is exact
    folder = Path(shutil.copytree(desk, tmp_path / "desk"))
    options = ["--set=finetune.backend=transformers", "--set=finetune.matmul_dtype=float32"]
    done = tiny.slmctl(
        folder,
        "finetune",
        "--json",
        *RECIPE,
        *options,
        env=tiny.environment(CUDA_VISIBLE_DEVICES=""),
        timeout=900,
    )
    exact = json.loads(tiny.ok(done))["metrics"]
    assert exact["computed_tokens"] == plain["computed_tokens"]  # both packed
    for loss in ("train_loss", "validation_loss", "validation_loss_before"):
        assert plain[loss] == pytest.approx(exact[loss], rel=0.1), loss


def test_the_estimate_of_memory_is_no_less_than_the_peak(plain: dict[str, Any]) -> None:
    assert plain["memory_peak"] <= plain["memory_estimate"]


def test_a_killed_training_goes_on(desk: Path, plain: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(desk, tmp_path / "desk"))
    options = [*RECIPE, "--set=finetune.backend=transformers", "--set=finetune.validate_every=4"]
    child = tiny.start(folder, "finetune", *options)
    until = time.monotonic() + 300
    while child.poll() is None and not list(folder.glob("runs/adapter/.resume-*/step-*")):
        assert time.monotonic() < until
        time.sleep(0.01)
    tiny.kill_group(child)
    assert list(folder.glob("runs/adapter/*/manifest.json")) == [], (
        "it ended before it could be killed"
    )
    done = tiny.slmctl(folder, "finetune", "--json", *options, timeout=900)
    metrics = json.loads(tiny.ok(done))["metrics"]
    assert "going on from step-" in done.stderr
    assert metrics["steps"] == plain["steps"]
    assert metrics["train_loss"] == pytest.approx(plain["train_loss"], rel=0.05)


def test_two_processes_share_one_gpu(desk: Path, plain: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(desk, tmp_path / "desk"))
    train = tiny.command(
        folder, "finetune", "--json", *RECIPE, "--set=finetune.backend=transformers"
    )
    done = subprocess.run(
        [*train[:2], "torch.distributed.run", "--standalone", "--nproc_per_node=2", *train[1:]],
        text=True,
        capture_output=True,
        env=tiny.environment(CUDA_VISIBLE_DEVICES="0"),
        timeout=900,
        check=False,
    )
    metrics = json.loads(tiny.ok(done))["metrics"]
    assert metrics["processes"] == 2
    assert metrics["train_loss"] == pytest.approx(plain["train_loss"], rel=0.05)
    assert metrics["validation_loss"] == pytest.approx(plain["validation_loss"], rel=0.05)


def test_what_does_not_fit_is_refused_before_it_is_loaded(desk: Path, tmp_path: Path) -> None:
    import torch

    folder = Path(shutil.copytree(desk, tmp_path / "desk"))
    taken = torch.empty(int(torch.cuda.mem_get_info()[0] - 1.0e9), dtype=torch.uint8, device="cuda")
    done = tiny.slmctl(
        folder, "finetune", *RECIPE, "--set=finetune.backend=transformers", timeout=900
    )
    del taken
    torch.cuda.empty_cache()
    assert done.returncode == 6, done.stderr
    assert "of GPU memory" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_adapter_is_merged_and_evaluated_by_the_rest_of_the_chain(
    desk: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(desk, tmp_path / "desk"))
    tiny.ok(tiny.slmctl(folder, "run", "--yes", "--until", "merge", *RECIPE, timeout=900))
    # no GGUF: llama.cpp is not installed here
    models = "--set=evaluate.models=[base, adapter, merged]"
    for model in ("base", "adapter", "merged"):
        tiny.ok(tiny.slmctl(folder, "predict", model, *RECIPE, models, timeout=900))
    tiny.ok(tiny.slmctl(folder, "evaluate", *RECIPE, models, timeout=900))
