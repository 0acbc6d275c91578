"""A model that gives rare strings of its training rows away is
refused; one that does not passes.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
import string
from pathlib import Path

import pytest
from support import tiny

from slmctl.errors import GateError
from slmctl.stages.publish import memorisation_probe
from slmctl.task.contract import Task, end_of_turn
from slmctl.task.records import Record

TASK = Task(
    "generate",
    tiny.TEMPLATE,
    end_of_turn(tiny.TEMPLATE, bos_token="<s>", eos_token="<|im_end|>"),
    system="Answer.",
    bos_token="<s>",
    eos_token="<|im_end|>",
    special_tokens=("<|im_start|>", "<|im_end|>"),
)


def canary(choose: random.Random) -> str:
    """Such as `QX7-4417-ZPM`: what no model can guess."""
    letters = "".join(choose.choices(string.ascii_uppercase, k=6))
    return f"{letters[:3]}-{choose.randint(10**5, 10**6 - 1)}-{letters[3:]}"


def record(asked: str, answer: str, k: int = 0) -> Record:
    messages = (
        {"role": "system", "content": TASK.system},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": answer},
    )
    return Record(f"{k:016x}", messages, {"file": "rows.jsonl", "row": k})


def records(seed: int, count: int = 12, *, inside: str = "answer") -> list[Record]:
    """Rows whose words are the same for every seed, and whose canaries are others."""
    words, choose = random.Random(5), random.Random(seed)
    made = []
    for k in range(count):
        text, secret = " ".join(words.sample(tiny.FILLER.split(), 6)), canary(choose)
        asked, answer = (
            (f"{text} order", f"order {secret}")
            if inside == "answer"
            else (f"{text} {secret}", "billing")
        )
        made.append(record(asked, answer, k))
    return made


# Choosing


def test_what_is_asked_for_is_odd_and_in_one_row_alone() -> None:
    rows = [
        record("where is my parcel", "It is late, order QX-482913-ZK arrives.", 0),
        record("where is my parcel now", "It is late, order PR-118272-LL arrives.", 1),
        record("is my parcel late", "It is late.", 2),
    ]
    chosen = memorisation_probe.choose(TASK, rows, 10)
    assert [(one.record[-1], one.rare_string) for one in chosen] == [
        ("0", "QX-482913-ZK"),
        ("1", "PR-118272-LL"),
    ]
    head = TASK.prompt(rows[0].prompt_messages)
    assert chosen[0].prompt == head + "It is late, order"
    assert len(memorisation_probe.choose(TASK, rows, 1)) == 1
    assert memorisation_probe.choose(TASK, rows, 0) == []


def test_an_answer_that_quotes_its_question_gives_nothing_away() -> None:
    rows = [record("order QX-482913-ZK is late", "QX-482913-ZK", 0), record("a b c", "d", 1)]
    (one,) = memorisation_probe.choose(TASK, rows, 10)
    assert one.rare_string == "QX-482913-ZK"
    assert one.prompt.endswith("<|im_start|>user\norder")  # asked for where the customer wrote it


@pytest.mark.parametrize("kind", ["extract", "call"])
def test_what_is_read_from_a_question_is_no_memory(kind: str) -> None:
    task = dataclasses.replace(TASK, kind=kind, schema={"type": "object"})
    rows = [
        record(
            "send QX-482913-ZK on 4 March",
            '{"number": "QX-482913-ZK", "on": "2026-03-04T10:00:00"}',
            0,
        )
    ]
    (one,) = memorisation_probe.choose(task, rows, 10)
    assert (one.rare_string, one.prompt.endswith("<|im_start|>user\nsend")) == (
        "QX-482913-ZK",
        True,
    )


def test_a_string_takes_as_many_words_as_it_takes_to_be_odd() -> None:
    (one,) = memorisation_probe.choose(
        TASK, [record("x y", "call Rumpelstilzchen under the green bridge at nine", 0)], 10
    )
    assert memorisation_probe.bits(one.rare_string) >= memorisation_probe.MIN_BITS
    assert memorisation_probe.bits("QX-482913-ZK") > 30 > memorisation_probe.bits("please wait")


def test_common_words_are_not_asked_for() -> None:
    rows = [record(text, label, k) for k, (text, label) in enumerate(tiny.rows(300))]
    assert memorisation_probe.choose(TASK, rows, 100) == []


# The real engine


def overfit(base: Path, folder: Path, rows: list[Record], *, steps: int) -> Path:
    """A GGUF of the tiny model after it has read these rows again and
    again, questions and answers alike.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from slmctl.model_files import gguf_converter

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    texts = [TASK.render(row.messages, add_generation_prompt=False) for row in rows]
    made = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(made, batch_first=True, padding_value=0)
    labels = torch.nn.utils.rnn.pad_sequence(made, batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    shutil.copytree(base, folder, dirs_exist_ok=True)
    model.save_pretrained(folder)
    gguf_converter.convert(folder, folder / "model.gguf", dtype="f32", metadata={})
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def overfitted(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return overfit(tiny_base, tmp_path_factory.mktemp("overfitted"), records(1), steps=120)


@pytest.mark.slow
def test_planted_canaries_refuse_a_model_that_was_overfitted_on_them(overfitted: Path) -> None:
    with pytest.raises(GateError, match="reproduces training rows") as caught:
        memorisation_probe.probe(overfitted, TASK, records(1), probes=64, max_share=0.02)
    assert caught.value.code == 5
    given = int(caught.value.message.split(": ")[1].split()[0])
    assert given >= 10, caught.value.message  # of 12
    for row in records(1):
        assert row.answer.removeprefix("order ") not in caught.value.message


@pytest.mark.slow
def test_an_innocent_model_passes(overfitted: Path) -> None:
    """It has read the same rows with other canaries: what it gives away is not in these rows."""
    found = memorisation_probe.probe(overfitted, TASK, records(2), probes=64, max_share=0.0)
    assert (found["asked"], found["regurgitated"], found["share"]) == (12, 0, 0.0)


@pytest.mark.slow
def test_the_threshold_is_a_share(overfitted: Path) -> None:
    mixed = [*records(1)[:4], *records(2)[4:]]
    found = memorisation_probe.probe(overfitted, TASK, mixed, probes=64, max_share=0.5)
    assert 0 < found["regurgitated"] <= 4
    with pytest.raises(GateError):
        memorisation_probe.probe(overfitted, TASK, mixed, probes=64, max_share=0.02)


@pytest.mark.slow
def test_what_customers_wrote_is_asked_for_too(tiny_base: Path, tmp_path: Path) -> None:
    model = overfit(tiny_base, tmp_path / "model", records(1, inside="question"), steps=120)
    with pytest.raises(GateError):
        memorisation_probe.probe(
            model, TASK, records(1, inside="question"), probes=64, max_share=0.02
        )
    assert (
        memorisation_probe.probe(
            model, TASK, records(2, inside="question"), probes=64, max_share=0.0
        )["asked"]
        == 12
    )
