"""Records of several turns and with tools reach training and every model as
the whole conversation that they are.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from slmctl.config import FinetuneConfig
from slmctl.model_files import hf_folder
from slmctl.models import prompts
from slmctl.stages.finetune import encoding
from slmctl.task.contract import Task
from slmctl.task.records import Record

TEMPLATE = (
    "{% if tools %}order {% for t in tools %}{{ t.name }} {% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"name": "letter"}
RECORD = Record(
    "1",
    (
        {"role": "system", "content": "Name the category."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "which order", "weight": 0},
        {"role": "user", "content": "the lamp"},
        {"role": "assistant", "content": "billing"},
    ),
    {"file": "a", "row": 1},
    tools=(TOOL,),
)
ASKED = (
    "order letter <|im_start|>system\nName the "
    "category.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
    "<|im_start|>assistant\nwhich order<|im_end|>\n<|im_start|>user\nthe "
    "lamp<|im_end|>\n<|im_start|>assistant\n"
)


def test_a_prompt_is_the_whole_conversation_with_its_tools() -> None:
    task = Task(
        "classify",
        TEMPLATE,
        "<|im_end|>",
        labels=("billing", "account"),
        system="Name the category.",
    )
    assert prompts.asked(task, RECORD).text == ASKED
    told = prompts.asked(task, RECORD, list_labels=True)
    assert "Name the category.\nAnswer with one of: billing, account.<|im_end|>" in told.text
    assert told.text.count("<|im_start|>system") == 1
    one_turn = Record(
        "2", (RECORD.messages[0], RECORD.messages[1], RECORD.messages[4]), {"file": "a", "row": 2}
    )
    plain = prompts.asked(task, one_turn)
    assert [plain] == [*prompts.of_texts(task, ["hello"])]
    assert plain.text.startswith(plain.prefix) and plain.prefix


def test_what_is_trained_is_what_is_asked(tiny_base: Path) -> None:
    tokenizer = hf_folder.load_tokenizer(tiny_base)
    task = Task("generate", TEMPLATE, "<|im_end|>")
    (row,), _ = encoding.encode([RECORD], task, tokenizer, FinetuneConfig())
    learned = [
        token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0
    ]
    assert learned == tokenizer("billing<|im_end|>", add_special_tokens=False).input_ids
    asked = row["input_ids"][: -len(learned)]
    assert tokenizer.decode(asked) == ASKED
