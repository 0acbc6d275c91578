"""slmctl's training on a GPU beside unsloth's recipe and TRL's `SFTTrainer`: same data and LoRA,
three times each.

    python -m benchmarks.gpu PROJECT...

Each PROJECT is a folder in which `slmctl run --until prepare` has run. `unsloth` is the recipe of
its own notebooks (`FastLanguageModel`, its checkpointing, AdamW of 8 bits) with packing, `trl` is
TRL with bfloat16 and packing; slmctl runs with each of its backends that is installed. A peer packs
records into rows of `max_length` tokens, so its steps hold more of them: tokens a second are those
of the records, without padding, over the steps that are timed. Run it where `make test-gpu` runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import result

SIDES = ("slmctl", "slmctl-unsloth", "unsloth", "trl")
# of each side; so many of them before the clock starts, in which kernels are compiled
STEPS, WARM = 60, 20
BATCH, RATE = 16, 2e-4
REPEAT = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("projects", nargs="+", type=Path)
    parser.add_argument(
        "--one", choices=SIDES, help="run one side once, and print what was measured"
    )
    parser.add_argument("--batch", type=int, default=BATCH, help="records a step")
    parser.add_argument("--repeat", type=int, default=REPEAT)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(one(options.one, options.projects[0], options.batch)) + "\n")
        return
    sides = [side for side in SIDES if "unsloth" not in side or importlib.util.find_spec("unsloth")]
    rows, raw, gpu = [], {}, ""
    for project in options.projects:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(options.repeat):
            for side in sides:
                runs[side].append(measured(side, project, options.batch))
        gpu = runs["slmctl"][0]["gpu"]
        raw[project.name] = runs
        ours = max(
            (side for side in sides if side.startswith("slmctl")),
            key=lambda side: sum(run["tokens_per_s"] for run in runs[side]),
        )
        for peer in (side for side in sides if not side.startswith("slmctl")):
            for key, unit, digits in (
                ("tokens_per_s", "tokens/s", 0),
                ("gpu_gb", "peak GPU memory, GB", 3),
            ):
                mine, other = ([run[key] for run in runs[side]] for side in (ours, peer))
                rows.append(
                    result.compared(
                        f"{project.name} ({ours}): {unit}", mine, other, peer=peer, digits=digits
                    )
                )
    packages = (
        "torch",
        "transformers",
        "trl",
        "peft",
        *(["unsloth"] if "unsloth" in sides else []),
    )
    path = result.write(
        "gpu", "python -m benchmarks.gpu PROJECT...", rows, packages, gpu=gpu, runs=raw
    )
    sys.stdout.write(result.table("gpu") + f"\n\n{path}\n")


def measured(side: str, project: Path, batch: int) -> dict[str, Any]:
    """One side in a process of its own."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--one",
        side,
        "--batch",
        str(batch),
        str(project),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(
        f"{project.name} {side}: {found['tokens_per_s']:.0f} tokens/s, {found['gpu_gb']:.2f} GB\n"
    )
    return found


def one(side: str, project: Path, batch: int) -> dict[str, Any]:
    """Train for some steps, the clock started after the first."""
    from slmctl.stages.finetune import backend

    library = "unsloth" if "unsloth" in side else "transformers"
    backend.import_first(library)
    import torch

    if not torch.cuda.is_available():
        sys.exit("no GPU is here")
    from slmctl import config
    from slmctl.model_files import hf_folder
    from slmctl.pipeline.graph import Project
    from slmctl.stages.finetune import encoding
    from slmctl.task.contract import Task
    from slmctl.task.records import read_records

    settings = config.load(project / config.FILENAME)
    asked = Project(root=project, config=settings).request("finetune")
    base, prepared = asked.inputs["base"], asked.inputs["prepared"]
    assert not isinstance(base, list)
    assert not isinstance(prepared, list)
    recipe = settings.finetune.model_copy(
        update={
            "batch_size": batch,
            "learning_rate": RATE,
            "max_steps": STEPS,
            "validate_every": STEPS,
        }
    )
    tokenizer: Any = hf_folder.load_tokenizer(base.path)
    rows, _ = encoding.encode(
        read_records(prepared.file("train.jsonl")), Task.read(prepared.path), tokenizer, recipe
    )
    with backend.stdout_to_stderr():
        make = _ours if side.startswith("slmctl") else _unsloth if side == "unsloth" else _trl
        trainer, tokens = make(recipe, base.path, tokenizer, rows, project / "runs" / ".bench")
        seconds = _timed(trainer)
    timed = tokens(trainer)
    return {
        "gpu": torch.cuda.get_device_name(),
        "seconds": seconds,
        "tokens_per_s": timed / seconds,
        "gpu_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def _timed(trainer: Any) -> float:
    """Train; the seconds of the steps after the first WARM."""
    import torch
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (WARM, STEPS):
                torch.cuda.synchronize()
                times.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    return times[1] - times[0]


def _ours(
    recipe: Any, folder: Path, tokenizer: Any, rows: list[Any], bench: Path
) -> tuple[Any, Any]:
    """slmctl's trainer as `finetune` sets it up."""
    from slmctl.stages.finetune import device_plan, finetune

    gpu = device_plan.gpu_here()
    assert gpu is not None
    plan = device_plan.for_gpu(recipe, gpu, folder, rows)
    library = "unsloth" if "unsloth" in sys.modules else "transformers"
    model, packs, _ = finetune._load_model(recipe, folder, library, plan)
    held = rows[:1]  # the validation at the end is not timed
    trainer = finetune.make_trainer(
        recipe, model, tokenizer, rows, held, bench, packs=packs, plan=plan
    )
    trainer.checkpoints = None

    def timed(trainer: Any) -> float:
        return float(trainer.progress.real) / STEPS * (STEPS - WARM)

    return trainer, timed


def _sft(
    rows: list[Any], recipe: Any, bench: Path, *, packing: bool, **options: Any
) -> tuple[Any, Any, Any]:
    """TRL's settings and data, and a function that counts the tokens of the timed steps."""
    from datasets import Dataset
    from trl import SFTConfig

    from slmctl.stages.finetune.packing import IGNORED

    data = Dataset.from_list(
        [
            {
                "input_ids": row["input_ids"],
                "completion_mask": [int(label != IGNORED) for label in row["labels"]],
            }
            for row in rows
        ]
    )
    arguments = SFTConfig(
        output_dir=str(bench),
        max_steps=STEPS,
        learning_rate=RATE,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        lr_scheduler_type="linear",
        warmup_steps=5,
        weight_decay=0.001,
        seed=3407,
        bf16=True,
        packing=packing,
        max_length=recipe.max_length,
        completion_only_loss=True,
        save_strategy="no",
        report_to="none",
        **options,
    )

    def timed(trainer: Any) -> float:
        dataset = trainer.train_dataset
        mean = sum(len(ids) for ids in dataset["input_ids"]) / len(dataset)
        return float(mean * 2 * 4 * (STEPS - WARM))

    return arguments, data, timed


def _unsloth(
    recipe: Any, folder: Path, tokenizer: Any, rows: list[Any], bench: Path
) -> tuple[Any, Any]:
    """The recipe of unsloth's notebooks: batches of 2, 4 of them a
    step, AdamW of 8 bits, and packing.
    """
    from trl import SFTTrainer
    from unsloth import FastLanguageModel

    from slmctl.stages.finetune.finetune import LINEAR_MODULES

    model, own = FastLanguageModel.from_pretrained(
        model_name=str(folder),
        max_seq_length=recipe.max_length,
        load_in_4bit=False,
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=0,
        bias="none",
        target_modules=list(LINEAR_MODULES),
        use_gradient_checkpointing="unsloth",
        random_state=3407,
    )
    arguments, data, timed = _sft(rows, recipe, bench, packing=True, optim="adamw_8bit")
    return SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=own), timed


def _trl(
    recipe: Any, folder: Path, tokenizer: Any, rows: list[Any], bench: Path
) -> tuple[Any, Any]:
    """TRL alone; it packs where flash attention is installed, since
    otherwise its records would see each other.
    """
    import torch
    from peft import get_peft_model
    from trl import SFTTrainer

    from slmctl.model_files import hf_folder
    from slmctl.stages.finetune import lora_targets

    flash = importlib.util.find_spec("flash_attn") is not None
    attention = "flash_attention_2" if flash else "sdpa"
    plain = hf_folder.load_model(folder, dtype=torch.bfloat16, attn_implementation=attention)
    model = get_peft_model(plain, lora_targets.lora_config(recipe, plain))
    arguments, data, timed = _sft(rows, recipe, bench, packing=flash)
    return SFTTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=tokenizer
    ), timed


if __name__ == "__main__":
    main()
