"""Soft targets: the loss of several answers of a record is the cross-entropy with the distribution over them."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from support import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from peft import LoraConfig, get_peft_model  # noqa: E402

from slmctl.artifacts.artifact import Artifact  # noqa: E402
from slmctl.config import FinetuneConfig, PrepareConfig  # noqa: E402
from slmctl.model_files import hf_folder  # noqa: E402
from slmctl.stages.finetune import answer_loss, batches, encoding, packing, packing_check, trainer  # noqa: E402
from slmctl.stages.finetune.packing import IGNORED, EncodedRecord, expanded  # noqa: E402
from slmctl.stages.prepare import prepare  # noqa: E402
from slmctl.task.contract import Task  # noqa: E402
from slmctl.task.records import read_records  # noqa: E402

SMALL = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
# labels as tokens, the end of the turn included: two open alike, and one is longer
LABELS = {"card lost": [5, 6, 9], "card late": [5, 7, 7, 9], "top up": [8, 9]}
PROMPTS = [[20, 21, 22, 30, 31], [20, 21, 22, 40, 41, 42, 43]]
TAUGHT = [{"card lost": 0.6, "card late": 0.3, "top up": 0.1}, {"top up": 0.7, "card late": 0.3}]


def record(prompt: list[int], taught: dict[str, float], weight: float = 1.0) -> EncodedRecord:
    """A record whose likeliest label is its answer."""
    (first, share), *others = taught.items()
    answer = LABELS[first]
    return EncodedRecord(
        input_ids=[*prompt, *answer], labels=[*[IGNORED] * len(prompt), *answer],
        weights=[*[0.0] * len(prompt), *[weight * share] * len(answer)],
        alternatives=[LABELS[name] for name, _ in others], shares=[weight * share for _, share in others],
    )  # fmt: skip


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    made = get_peft_model(made, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def next_log_probabilities(made: Any, prompt: list[int], path: tuple[int, ...]) -> Any:
    """Log probabilities of the token after a place of the labels' trie."""
    return made(input_ids=torch.tensor([[*prompt, *path]]), use_cache=False).logits[0, -1].log_softmax(-1)


def divergence(made: Any, prompt: list[int], taught: dict[str, float]) -> Any:
    """The KL divergence of the student's labels from the teacher's: summed over the nodes of the trie, each weighted by
    the teacher's chance to come there, of the next tokens that its distribution over labels induces."""
    total = torch.zeros((), dtype=torch.float64)
    nodes = {tuple(LABELS[name][:k]) for name in taught for k in range(len(LABELS[name]))}
    for node in sorted(nodes):
        below: dict[int, float] = {}
        for name, share in taught.items():
            if tuple(LABELS[name][: len(node)]) == node:
                token = LABELS[name][len(node)]
                below[token] = below.get(token, 0.0) + share
        reach = sum(below.values())
        student = next_log_probabilities(made, prompt, node)
        total = total + sum(share * (math.log(share / reach) - student[token]) for token, share in below.items())
    return total


def gradients(made: Any, loss: Any) -> Any:
    loss.backward()
    return torch.cat([p.grad.double().flatten() for p in made.parameters() if p.requires_grad])


@pytest.mark.parametrize("packed", [True, False])
def test_loss_and_gradient_are_those_of_the_divergence_in_float64(packed: bool) -> None:
    ours, exact = model(), copy.deepcopy(model()).double()
    records = [record(prompt, taught) for prompt, taught in zip(PROMPTS, TAUGHT, strict=True)]
    if packed:
        packing_check.core_model(ours).config._attn_implementation = packing.ATTENTION_NAME
    answer_loss.install(ours)
    made = (batches.PackedBatches() if packed else batches.PaddedBatches(0))(records)
    assert sum(len(batch["labels"]) for batch in made) == 3 + 4 + 2 + 2 + 4
    loss = sum(ours.train()(**batch).loss for batch in made)
    wanted = sum(divergence(exact, prompt, taught) for prompt, taught in zip(PROMPTS, TAUGHT, strict=True))
    entropy = -sum(share * math.log(share) for taught in TAUGHT for share in taught.values())
    assert loss.item() == pytest.approx(wanted.item() + entropy, rel=1e-5)
    found, expected = gradients(ours, loss), gradients(exact, wanted)
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_other_answers_follow_the_prompt_of_the_last_one_and_earlier_ones_count_once() -> None:
    turns = EncodedRecord(
        input_ids=[1, 2, 3, 4, 5, 6], labels=[IGNORED, 2, IGNORED, IGNORED, 5, 6], weights=[0, 1, 0, 0, 0.8, 0.8],
        alternatives=[[7], [8, 9, 9]], shares=[0.15, 0.05],
    )  # fmt: skip
    first, second, third = expanded([turns])
    assert first is turns
    assert second == {"input_ids": [1, 2, 3, 4, 7], "labels": [IGNORED] * 4 + [7], "weights": [0, 0, 0, 0, 0.15]}
    assert third["input_ids"] == [1, 2, 3, 4, 8, 9, 9]
    assert third["weights"] == [0.0] * 4 + [0.05] * 3
    plain = EncodedRecord(input_ids=[1, 2], labels=[IGNORED, 2], weights=[0, 1])
    assert expanded([plain]) == [plain]
    assert trainer.answer_tokens(turns) == 3  # a record counts as one, however many answers it may have
    assert trainer.answer_tokens(trainer.without_loss(turns)) == 0
    assert len(expanded([trainer.without_loss(turns)])) == 1


def test_the_memory_of_other_answers_is_counted() -> None:
    records = [record(PROMPTS[0], TAUGHT[0]), record(PROMPTS[1], TAUGHT[1])]
    packed = batches.PackedBatches(limit=10**6)
    (batch,) = packed(records)
    assert batches.largest_piece(records, 2, 10**6).tokens >= batch["input_ids"].numel()


# From a source to the tokens


SOFT = {"billing": 0.7, "account": 0.25, "delivery": 0.004, "unknown": 0.046}


@pytest.fixture(scope="module")
def soft_data(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in which the billing rows hold probabilities, and some that cannot be read."""
    place = tmp_path_factory.mktemp("soft")
    rows = [
        {"text": text, "category": label, "p": SOFT if label == "billing" else None, "w": 0.5}
        for text, label in tiny.rows(200, seed=5)
    ]
    rows += [{"text": f"bad {k} kettle", "category": "billing", "p": p, "w": 1} for k, p in enumerate([[1], {"a": 2}])]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = PrepareConfig.model_validate({
        "task": {"kind": "classify", "labels": {"map": {"accounts": "account"}}, "system": "Name the category."},
        "sources": [{"path": place / "rows.jsonl", "input": "text", "output": "category", "soft": "p", "weight": "w"}],
    })  # fmt: skip
    (place / "out").mkdir()
    prepare.run(config, base=artifacts["base"], out=place / "out")
    return place / "out"


def test_probabilities_travel_with_the_answer_and_bad_ones_are_rejected(soft_data: Path) -> None:
    records = read_records(soft_data / "train.jsonl")
    assert {record.label: record.messages[-1].get("soft") for record in records} == {
        "billing": dict(sorted(SOFT.items(), key=lambda item: -item[1])), "delivery": None, "account": None,
    }  # fmt: skip
    rejected = [json.loads(line) for line in (soft_data / "rejected.jsonl").read_text().splitlines()]
    assert [entry["reason"] for entry in rejected if entry["rule"] == "bad probabilities"] == [
        "'p' does not hold one object, {label: probability}", "'p' has the probability '2', not 0 to 1",
    ]  # fmt: skip


def test_training_learns_the_likely_labels_and_validation_the_one_answer(
    soft_data: Path, artifacts: dict[str, Artifact]
) -> None:
    task, tokenizer = Task.read(soft_data), hf_folder.load_tokenizer(artifacts["base"].path)
    records = read_records(soft_data / "train.jsonl")
    rows, _ = encoding.encode(records, task, tokenizer, FinetuneConfig(), soft=True)
    plain, _ = encoding.encode(records, task, tokenizer, FinetuneConfig())
    assert not any("alternatives" in row for row in plain)
    other = tokenizer("account" + task.end, add_special_tokens=False).input_ids
    for one, row, hard in zip(records, rows, plain, strict=True):
        assert row["input_ids"] == hard["input_ids"]
        assert row["labels"] == hard["labels"]
        if one.label != "billing":
            assert (row["alternatives"], row["shares"], row["weights"]) == ([], [], hard["weights"])
            continue
        assert row["alternatives"] == [other]  # what is unlikely, and what is no label, is not learned
        assert row["shares"] == [pytest.approx(0.5 * 0.25 / 0.95)]
        assert max(row["weights"]) == pytest.approx(0.5 * 0.7 / 0.95)
        assert max(row["weights"]) + row["shares"][0] == pytest.approx(max(hard["weights"]))


def test_a_record_that_its_labels_would_make_too_long_keeps_the_one_answer(
    soft_data: Path, artifacts: dict[str, Artifact]
) -> None:
    task, tokenizer = Task.read(soft_data), hf_folder.load_tokenizer(artifacts["base"].path)
    one = next(each for each in read_records(soft_data / "train.jsonl") if each.label == "billing")
    (whole,), _ = encoding.encode([one], task, tokenizer, FinetuneConfig(), soft=True)
    longest = max(len(row["input_ids"]) for row in expanded([whole]))
    (row,), _ = encoding.encode([one], task, tokenizer, FinetuneConfig(max_length=longest), soft=True)
    assert row["alternatives"]
    if longest > len(whole["input_ids"]):
        (row,), _ = encoding.encode([one], task, tokenizer, FinetuneConfig(max_length=longest - 1), soft=True)
        assert not row.get("alternatives")
