"""Records become token ids with the loss on the answers, and a
preview shows which tokens those are.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.forks import Forks

from slmctl.artifacts.artifact import Artifact
from slmctl.config import FinetuneConfig
from slmctl.errors import DataError
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records

pytest.importorskip("torch")

from slmctl.model_files import hf_folder
from slmctl.stages.finetune import encoding
from slmctl.stages.finetune.packing import IGNORED


@pytest.fixture(scope="module")
def tokenizer(artifacts: dict[str, Artifact]) -> Any:
    return hf_folder.load_tokenizer(artifacts["base"].path)


@pytest.fixture(scope="module")
def task(artifacts: dict[str, Artifact]) -> Task:
    return Task.read(artifacts["prepared"].path)


@pytest.fixture(scope="module")
def records(artifacts: dict[str, Artifact]) -> list[Record]:
    return read_records(artifacts["prepared"].file("train.jsonl"))


@pytest.fixture(scope="module")
def encode(task: Task, tokenizer: Any) -> Any:
    """`encoding.encode` of the tiny task, with settings by name."""

    def call(*records: Record, **settings: Any) -> tuple[list[Any], dict[str, int]]:
        return encoding.encode(records, task, tokenizer, FinetuneConfig.model_validate(settings))

    return call


@pytest.fixture(scope="module")
def learned(tokenizer: Any) -> Any:
    """The text of the tokens that the loss is on."""
    return lambda row: str(tokenizer.decode([label for label in row["labels"] if label != IGNORED]))


def conversation(*turns: tuple[str, str] | tuple[str, str, float]) -> Record:
    messages = tuple(
        {"role": turn[0], "content": turn[1]} | ({"weight": turn[2]} if len(turn) > 2 else {})  # type: ignore[misc]
        for turn in turns
    )
    return Record(id="abc", messages=messages, source={"file": "chats.jsonl", "row": 7})


def test_the_loss_is_on_the_answer_only(
    records: list[Record], encode: Any, task: Task, tokenizer: Any
) -> None:
    (row,), _ = encode(records[0])
    answer = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.decode(answer) == records[0].answer + task.end
    assert row["labels"] == [IGNORED] * (len(row["input_ids"]) - len(answer)) + answer
    assert row["input_ids"][-len(answer) :] == answer
    assert tokenizer.decode(row["input_ids"][: -len(answer)]) == task.prompt(
        records[0].prompt_messages
    )


def test_a_control_token_in_an_answer_is_learned_as_text(
    encode: Any, learned: Any, task: Task, tokenizer: Any
) -> None:
    # it was once a real end of turn, though prompt, predict and serve would show it broken up
    answer = "Type <|im_end|> to stop"
    record = conversation(
        ("user", "card price"), ("assistant", answer), ("user", "and"), ("assistant", "billing")
    )
    (row,), _ = encode(record)
    end = tokenizer.convert_tokens_to_ids(task.end)
    assert [label for label in row["labels"] if label != IGNORED].count(end) == 2
    assert learned(row) == f"{task.defused(answer)}{task.end}billing{task.end}"


def test_every_answer_of_a_conversation_is_learned(
    encode: Any, learned: Any, task: Task, tokenizer: Any
) -> None:
    turns = [("system", "Name the category."), ("user", "card price"), ("assistant", "billing")]
    record = conversation(*turns, ("user", "parcel late"), ("assistant", "delivery"))
    (row,), _ = encode(record)
    assert learned(row) == f"billing{task.end}delivery{task.end}"
    whole = task.render(record.messages, add_generation_prompt=False)
    assert tokenizer.decode(row["input_ids"]) == whole.rstrip("\n")
    assert {
        w for w, label in zip(row["weights"], row["labels"], strict=True) if label != IGNORED
    } == {1.0}


def test_an_answer_counts_by_its_weight_and_one_of_weight_0_is_read_only(
    encode: Any, learned: Any, task: Task, tokenizer: Any
) -> None:
    record = conversation(
        ("user", "card price"),
        ("assistant", "billing", 0),
        ("user", "parcel late"),
        ("assistant", "delivery", 0.5),
    )
    (row,), _ = encode(record)
    assert learned(row) == f"delivery{task.end}"
    assert "billing" in tokenizer.decode(row["input_ids"])
    assert {
        w for w, label in zip(row["weights"], row["labels"], strict=True) if label != IGNORED
    } == {0.5}


@pytest.mark.parametrize(
    ("record", "settings", "message"),
    [
        (
            conversation(("user", "please help"), ("assistant", "billing " * 40)),
            {"max_length": 16},
            r"record abc \(chats\.jsonl line 7\) has \d+ tokens, max_length is 16",
        ),
        (
            conversation(("user", "please help"), ("assistant", "billing " * 40)),
            {"max_length": 16, "too_long": "truncate"},
            r"record abc \(chats\.jsonl line 7\) is longer than max_length 16 whatever",
        ),
        (
            conversation(("user", "please help"), ("assistant", "billing " * 40)),
            {"max_length": 16, "too_long": "drop"},
            "no record is left: all 5 are longer than max_length 16",
        ),
        (
            conversation(("user", "card price"), ("assistant", "billing", 0)),
            {},
            r"nothing to learn in chats\.jsonl line 7, .*, chats\.jsonl line 7 and 2 more",
        ),
    ],
)
def test_records_that_cannot_be_learned_are_named(
    encode: Any, record: Record, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        encode(*[record] * 5, **settings)


def test_too_long_records_are_dropped_or_truncated_and_counted(
    records: list[Record], encode: Any, learned: Any, task: Task, tokenizer: Any
) -> None:
    sizes = [len(row["input_ids"]) for row in encode(*records)[0]]
    limit = sorted(sizes)[len(sizes) // 2]
    long = sum(size > limit for size in sizes)
    assert 0 < long < len(records)
    rows, cut = encode(*records, max_length=limit, too_long="drop")
    assert (len(rows), cut) == (len(records) - long, {"dropped": long, "truncated": 0})
    rows, cut = encode(*records, max_length=limit, too_long="truncate")
    assert (len(rows), cut) == (len(records), {"dropped": 0, "truncated": long})
    assert max(len(row["input_ids"]) for row in rows) == limit
    for row, record in zip(rows, records, strict=True):
        assert learned(row) == record.answer + task.end  # never cut
        text = tokenizer.decode(row["input_ids"])
        before, question, after = task.prompt(record.prompt_messages).partition(record.input)
        assert text.startswith(before)
        assert text.endswith(after + record.answer + task.end)
        middle = text.removeprefix(before).removesuffix(after + record.answer + task.end)
        assert question.startswith(middle)


def test_a_cut_inside_a_character_takes_all_of_it(encode: Any, task: Task, tokenizer: Any) -> None:
    # the mark of half a character was once more tokens than had been cut off, and so for ever
    record = conversation(("user", "🙂" * 8), ("assistant", "billing"))
    for limit in range(16, 45):
        (row,), cut = encode(record, max_length=limit, too_long="truncate")
        assert cut["truncated"] == 1
        assert limit - 4 < len(row["input_ids"]) <= limit
        text = tokenizer.decode(row["input_ids"])
        assert (
            text
            == task.prompt([{"role": "user", "content": "🙂" * text.count("🙂")}])
            + f"billing{task.end}"
        )


def test_a_share_of_the_records_follows_from_their_content(records: list[Record]) -> None:
    shares = {share: encoding.share_of(records, share) for share in (1.0, 0.5, 0.25, 0.0001)}
    assert shares[1.0] == records
    assert 0.35 < len(shares[0.5]) / len(records) < 0.65
    assert all(record in shares[0.5] for record in shares[0.25])
    assert len(shares[0.0001]) == 1
    assert encoding.share_of(records[::-1], 0.25) == shares[0.25][::-1]


def test_a_preview_shows_what_the_model_sees(
    stages: Forks, tiny_run: Path, records: list[Record]
) -> None:
    lines = tiny.ok(stages.run(tiny_run, "finetune", "--preview", "2")).splitlines()
    heads = [
        k
        for k, line in enumerate(lines)
        if line.startswith(tuple(record.id for record in records[:2]))
    ]
    for head, record, end in zip(heads, records[:2], [heads[1], len(lines)], strict=True):
        body = lines[head + 1 : end]
        marked = [line for line in body if line.startswith("*")]
        place = f"{record.id} (tickets.csv line {record.source['row']})"
        assert lines[head] == f"{place}: {len(body)} tokens, {len(marked)} to learn"
        assert body[0].endswith("'<|im_start|>'")
        assert marked == body[-len(marked) :]
        assert marked[-1].endswith("'<|im_end|>'")
        assert (
            "".join(ast.literal_eval(line.split(maxsplit=2)[2]).strip() for line in marked[:-1])
            == record.answer
        )


def test_a_preview_says_what_becomes_of_a_long_record(artifacts: dict[str, Artifact]) -> None:
    def head(**settings: Any) -> str:
        config = FinetuneConfig.model_validate(settings)
        base, prepared = artifacts["base"], artifacts["prepared"]
        return encoding.preview(config, base=base, prepared=prepared, count=1).splitlines()[0]

    whole = head()
    size = int(re.findall(r"(\d+) tokens", whole)[0])
    assert whole.endswith(" to learn")
    assert head(max_length=size) == whole
    assert (
        head(max_length=size - 1)
        == f"{whole}; longer than max_length {size - 1}, which finetune refuses"
    )
    assert head(max_length=size - 1, too_long="drop").endswith(
        f"; longer than max_length {size - 1}, so it is dropped"
    )
    cut = head(max_length=size - 1, too_long="truncate")
    assert cut.endswith(f"; cut from {size} to fit max_length {size - 1}")
    assert int(re.findall(r"(\d+) tokens", cut)[0]) < size
