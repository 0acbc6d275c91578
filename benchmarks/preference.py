"""A second pass of training on preferences, by TRL's DPO on the adapter of a finished project of drafts.

    python -m benchmarks.preference PROJECT FOLDER

Of each training row what a person wrote is chosen and the adapter's own sampled answer rejected. The answers of both
adapters to the test and validation rows are compared by the reference metrics, by the checks of drafts and in pairs by
a stand-in whose taste is known: no ungrounded value, then the nearer one to what the person wrote (chrF). FOLDER keeps
the trained adapter and all answers.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import program, result
from benchmarks.sharper import newest
from slmctl.metrics import answer_metrics
from slmctl.metrics.win_rate import WinRate
from slmctl.task import draft_checks
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records

TOGETHER, MOST_TOKENS = 48, 110
EPOCHS, RATE, BETA = 1, 5e-5, 0.1


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    root, folder = options.project.resolve(), options.folder
    prepared, tuned = newest(root, "prepared"), newest(root, "adapter")
    task, train = Task.read(prepared), read_records(prepared / "train.jsonl")
    held = [record for split in ("test", "validation") for record in read_records(prepared / f"{split}.jsonl")]
    sampled = answers(root, tuned, train, do_sample=True, temperature=1.0, top_p=0.95)
    begun = time.monotonic()
    trained(root, tuned, train, sampled, folder)
    seconds, memory = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    before, after = (answers(root, adapter, held, do_sample=False) for adapter in (tuned, folder))
    program.write_jsonl(folder / "answers.jsonl", [
        {"id": record.id, "before": one, "after": other}
        for record, one, other in zip(held, before, after, strict=True)
    ])  # fmt: skip
    rows = [result.single("minutes of the second pass", seconds / 60, "pairs", len(train)),
            result.single("peak memory of it, GB", memory, "", 0)]  # fmt: skip
    figures = [measured(task, held, each) for each in (before, after)]
    rows += [result.single(name, value, "before the second pass", figures[0][name])
             for name, value in figures[1].items()]  # fmt: skip
    better = [taste(task, *each) for each in zip(held, before, after, strict=True)]
    rate = WinRate(better.count(1), better.count(-1), better.count(0))
    rows.append(result.single("win rate by the stand-in", rate.rate, "lower end of its interval", rate.interval()[0]))
    result.write("preference", "python -m benchmarks.preference PROJECT FOLDER", rows, ("trl", "torch"), n=len(held),
                 won=rate.won, lost=rate.lost, interval=rate.interval())  # fmt: skip


def loaded(root: Path, adapter: Path, *, train: bool) -> tuple[Any, Any]:
    """Returns (the base with an adapter, its tokenizer)."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = newest(root, "base")
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter, is_trainable=train), tokenizer


def prompt(tokenizer: Any, record: Record) -> str:
    text: str = tokenizer.apply_chat_template(list(record.messages[:-1]), tokenize=False, add_generation_prompt=True)
    return text


def answers(root: Path, adapter: Path, records: Sequence[Record], **how: Any) -> list[str]:
    import torch

    torch.manual_seed(0)
    model, tokenizer = loaded(root, adapter, train=False)
    found = []
    for begin in range(0, len(records), TOGETHER):
        texts = [prompt(tokenizer, record) for record in records[begin : begin + TOGETHER]]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            made = model.eval().generate(**inputs, max_new_tokens=MOST_TOKENS, **how)
        found += tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in found]


def trained(root: Path, adapter: Path, records: Sequence[Record], sampled: Sequence[str], folder: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = loaded(root, adapter, train=True)
    pairs = [
        {"prompt": prompt(tokenizer, record), "chosen": record.answer + tokenizer.eos_token,
         "rejected": text + tokenizer.eos_token}
        for record, text in zip(records, sampled, strict=True)
    ]  # fmt: skip
    settings = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=4, num_train_epochs=EPOCHS,
        learning_rate=RATE, beta=BETA, max_length=512, precompute_ref_log_probs=True, precompute_ref_batch_size=8,
        gradient_checkpointing=False, bf16=False, use_cpu=True, save_strategy="no", report_to="none", seed=0,
        warmup_steps=4,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer
    )  # fmt: skip
    trainer.train()
    trainer.model.save_pretrained(str(folder), selected_adapters=["default"])


def measured(task: Task, records: Sequence[Record], texts: Sequence[str]) -> dict[str, float]:
    """Reference metrics, and the shares of answers with a fault."""
    pairs = [(answer_metrics.words(record.answer), answer_metrics.words(text))
             for record, text in zip(records, texts, strict=True)]  # fmt: skip
    counts = [answer_metrics.chrf_counts(record.answer, text) for record, text in zip(records, texts, strict=True)]
    faults = [faults_of(task, record, text) for record, text in zip(records, texts, strict=True)]
    return {
        "token_f1": float(np.mean([answer_metrics.token_f1(*pair) for pair in pairs])),
        "rouge_l": float(np.mean([answer_metrics.rouge_l(*pair) for pair in pairs])),
        "chrf": float(answer_metrics.chrf(np.array(counts, float).sum(axis=0))),
        "words of an answer": float(np.mean([len(words) for _, words in pairs])),
        **{check: sum(check in each for each in faults) / len(faults) for check in ("ungrounded", "repetition")},
    }  # fmt: skip


def faults_of(task: Task, record: Record, text: str) -> dict[str, Any]:
    return dict(draft_checks.faults(text, record.messages[:-1], system=task.system))


def taste(task: Task, record: Record, before: str, after: str) -> int:
    """1 where the stand-in prefers the second answer, -1 for the first, 0 for neither."""
    rank = [("ungrounded" in faults_of(task, record, text), -near(record.answer, text)) for text in (before, after)]
    return (rank[1] < rank[0]) - (rank[0] < rank[1])


def near(reference: str, text: str) -> float:
    return float(answer_metrics.chrf(np.array(answer_metrics.chrf_counts(reference, text), float)))


if __name__ == "__main__":
    main()
