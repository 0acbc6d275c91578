"""pull: bases with the tokenizers and chat templates that people pick are
read by llama.cpp as by transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import tiny
from support.call_templates import task_of
from support.forks import Forks
from support.scale import FULL

pytest.importorskip("torch")

from benchmarks import architectures, real_tokenizers
from slmctl.artifacts import artifact
from slmctl.config import PullConfig, QuantizeConfig
from slmctl.model_files import hf_folder
from slmctl.model_files.base_model import Base
from slmctl.stages.pull import pull
from slmctl.stages.quantize import gguf_files, parity
from slmctl.task.contract import Task, end_of_turn
from slmctl.task.records import Record
from slmctl.task.tool_calls import OWN

# Texts that are special to llama.cpp or to the conversation, and that data must not spell; the
# normal form.
FAMILIES = {
    "qwen3": ("qwen3", {"</s>", "<|fim_pad|>", "<|im_end|>"}, "NFC"),
    "llama3_1": ("llama", {"<|eot_id|>", "<|begin_of_text|>"}, ""),
    "gemma3": ("gemma3-text", {"<end_of_turn>", "<eos>"}, ""),
    "deepseek_v3": ("llama", {"<｜User｜>", "<｜end▁of▁sentence｜>"}, ""),
    "llama2": ("mistral", {"</s>", "<s>"}, ""),
}


def fetched(name: str) -> Path:
    try:
        return real_tokenizers.fetch(name)
    except real_tokenizers.UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_chain_passes_with_a_real_tokenizer(stages: Forks, tmp_path: Path) -> None:
    architectures.build("qwen3", tmp_path / "base", fetched("qwen3"))
    (tmp_path / "slmctl.yaml").write_text("{project: desk, base: ./base}", encoding="utf-8")
    fresh = {"XDG_CACHE_HOME": str(tmp_path / "cache")}  # in which no rehearsal is kept
    base = Base.read(tmp_path / tiny.ok(stages.run(tmp_path, "pull", env=fresh)))
    assert base.rehearsal["passed"], json.dumps(base.rehearsal)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize("name", FAMILIES if FULL else ("llama3_1", "gemma3"))
def test_a_file_has_the_tokens_of_a_real_tokenizer(name: str, tmp_path: Path) -> None:
    architecture, special, form = FAMILIES[name]
    architectures.build(architecture, tmp_path / "base", fetched(name))
    out = tmp_path / "out"
    out.mkdir()
    pull.run(PullConfig(base=str(tmp_path / "base"), rehearse=False), out=out)
    base = Base.read(out)
    assert special <= set(base.special_tokens)
    assert base.normal_form == form
    marks = {"bos_token": base.bos_token, "eos_token": base.eos_token}
    task = Task(
        "generate",
        base.chat_template,
        end_of_turn(base.chat_template, **marks),
        special_tokens=base.special_tokens,
        normal_form=base.normal_form,
        **marks,
    )
    turns = (
        {"role": "user", "content": "where is my parcel"},
        {"role": "assistant", "content": "It is late."},
    )
    model, tokenizer = hf_folder.load_model(out), hf_folder.load_tokenizer(out)
    wanted = parity.reference(model, tokenizer, task, [Record("0" * 16, turns, {})])
    lossless = gguf_files.convert(
        QuantizeConfig(project=""), artifact.foreign(out, "base"), base, tmp_path
    )
    assert parity.check_lossless(lossless.path, wanted, scratch=tmp_path)["positions"] > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "end", "before"),
    [
        ("qwen3", "<|im_end|>", '<tool_call>\n{"name": "'),
        ("llama3_1", "<|eot_id|>", OWN.before),  # the package's template has no tools
        ("gemma3", "<end_of_turn>", OWN.before),
    ],
)
def test_the_form_of_a_call_is_found_in_a_real_template(name: str, end: str, before: str) -> None:
    settings = json.loads((fetched(name) / "tokenizer_config.json").read_text(encoding="utf-8"))
    form = task_of(settings["chat_template"], end=end).form
    assert form.before == before
    assert form.own == (before == OWN.before)
