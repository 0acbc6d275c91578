"""parity: a file that is not the merged model is caught, and the message names what differs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmctl.artifacts.artifact import Artifact
from slmctl.errors import StageError
from slmctl.model_files import hf_folder
from slmctl.task.contract import Task
from slmctl.task.records import read_records

gguf = pytest.importorskip("gguf")
pytest.importorskip("torch")

from slmctl.model_files import gguf_header  # noqa: E402
from slmctl.stages.quantize import parity  # noqa: E402

Change = Callable[[dict[str, Any], dict[str, Any]], None]


@pytest.fixture(scope="module")
def wanted(artifacts: dict[str, Artifact]) -> parity.MergedModelReference:
    """What the tiny merged model is."""
    merged = artifacts["merged"].path
    records = read_records(artifacts["prepared"].file("validation.jsonl"))
    return parity.reference(
        hf_folder.load_model(merged), hf_folder.load_tokenizer(merged), Task.read(merged), records
    )


@pytest.fixture
def planted(artifacts: dict[str, Artifact], tmp_path: Path) -> Callable[[Change], Path]:
    """The tiny F16 file, written anew with other metadata or weights."""

    def call(change: Change) -> Path:
        made = artifacts["gguf"]
        reader = gguf.GGUFReader(made.file(made.metrics["files"]["F16"]["file"]))
        fields = {
            field.name: field
            for field in reader.fields.values()
            if not field.name.startswith("GGUF.")
        }
        values = {name: field.contents() for name, field in fields.items()}
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
        change(values, tensors)
        path = tmp_path / "planted-F16.gguf"
        writer = gguf.GGUFWriter(path, values.pop("general.architecture"))
        for name, value in values.items():
            kinds = fields[name].types
            writer.add_key_value(name, value, kinds[0], kinds[-1] if len(kinds) > 1 else None)
        for name, data in tensors.items():
            writer.add_tensor(name, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return call


def check(path: Path, wanted: parity.MergedModelReference, scratch: Path) -> dict[str, Any]:
    return parity.check_lossless(path, wanted, scratch=scratch)


def other_template(values: dict[str, Any], tensors: dict[str, Any]) -> None:
    values["tokenizer.chat_template"] = values["tokenizer.chat_template"].replace(
        "assistant", "model"
    )


def other_end(values: dict[str, Any], tensors: dict[str, Any]) -> None:
    values["tokenizer.ggml.eos_token_id"] = 1


def shifted_tokens(values: dict[str, Any], tensors: dict[str, Any]) -> None:
    for name in ("tokens", "scores", "token_type"):
        listed = values[f"tokenizer.ggml.{name}"]
        listed[300:] = [*listed[301:], listed[300]]


def fewer_tokens(values: dict[str, Any], tensors: dict[str, Any]) -> None:
    for name in ("tokens", "scores", "token_type"):
        del values[f"tokenizer.ggml.{name}"][-8:]


def fewer_tokens_and_weights(values: dict[str, Any], tensors: dict[str, Any]) -> None:
    fewer_tokens(values, tensors)
    values["llama.vocab_size"] -= 8
    tensors["token_embd.weight"] = tensors["token_embd.weight"][:-8]


def other_rope(values: dict[str, Any], tensors: dict[str, Any]) -> None:
    values["llama.rope.freq_base"] = 1.5


def other_weights(values: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["blk.1.ffn_down.weight"] = -tensors["blk.1.ffn_down.weight"]


def no_numbers(values: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["output_norm.weight"][:] = math.nan


def unchanged(values: dict[str, Any], tensors: dict[str, Any]) -> None:
    pass


def test_the_right_file_passes(
    planted: Any, wanted: parity.MergedModelReference, tmp_path: Path
) -> None:
    found = check(planted(unchanged), wanted, tmp_path)
    assert found["kl_mean"] < 1e-4
    assert found["top1_agreement"] > 0.98
    assert found["positions"] >= len(wanted.rows) > 10
    assert found["texts"] == len(wanted.texts) > 2 * len(wanted.rows)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_template, "carries another chat template"),
        (other_end, "ends with token 1, the merged model's end token is"),
        (shifted_tokens, "the tokenizer of planted-F16.gguf reads"),
        (fewer_tokens, "the vocabulary of planted-F16.gguf has 632 tokens with weights for 640"),
        (
            fewer_tokens_and_weights,
            "the vocabulary of planted-F16.gguf has 632 tokens with weights for 632",
        ),
        (other_rope, "next-token distributions of planted-F16.gguf"),
        (other_weights, "next-token distributions of planted-F16.gguf"),
        (no_numbers, "not finite"),
    ],
)
def test_a_planted_fault_is_caught_by_name(
    planted: Any, wanted: parity.MergedModelReference, tmp_path: Path, change: Change, named: str
) -> None:
    with pytest.raises(StageError, match=named):
        check(planted(change), wanted, tmp_path)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("<|im_start|>", r"does not stop at '<\|im_start\|>'"),
        ("<|the_end|>", r"read '<\|the_end\|>' as one token"),
    ],
)
def test_an_end_of_turn_that_does_not_stop_generation_is_caught(
    planted: Any, wanted: parity.MergedModelReference, tmp_path: Path, end: str, said: str
) -> None:
    start = [wanted.tokens[0][wanted.texts[0].index("<|im_start|>")]]
    other = dataclasses.replace(
        wanted, task=dataclasses.replace(wanted.task, end=end), end_of_turn=start
    )
    with pytest.raises(StageError, match=said):
        check(planted(unchanged), other, tmp_path)


def test_a_template_that_transformers_renders_otherwise_is_caught(
    wanted: parity.MergedModelReference, planted: Any
) -> None:
    messages, tools, rendered = wanted.prompts[0]
    other = dataclasses.replace(wanted, prompts=[(messages, tools, rendered + " ")])
    with pytest.raises(StageError, match="renders otherwise than transformers does"):
        parity.check_head("x.gguf", gguf_header.read(planted(unchanged)), other)


def test_a_script_that_is_tokenized_otherwise_is_noted(
    planted: Any,
    wanted: parity.MergedModelReference,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at = next(k for k, text in enumerate(wanted.texts) if parity.MARKS in text)
    tokens = [ids[:-1] if k == at else ids for k, ids in enumerate(wanted.tokens)]
    check(planted(unchanged), dataclasses.replace(wanted, tokens=tokens), tmp_path)
    assert (
        "note: planted-F16.gguf tokenizes Hindi and scripts like it otherwise"
        in capsys.readouterr().err
    )


def test_every_nasty_text_is_among_those_compared(wanted: parity.MergedModelReference) -> None:
    # what spells a control token is broken up first, so it is looked for by its last word
    for text in parity.HARD_TEXTS:
        words = [word for word in text.split() if word not in wanted.task.special_tokens]
        assert not words or any(words[-1] in rendered for rendered in wanted.texts), text


def test_divergence_is_that_of_the_definition() -> None:
    choose = np.random.default_rng(0)
    a, b = (choose.normal(size=(5, 40)).astype(np.float32) for _ in range(2))
    p, q = (
        np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (a.astype(float), b.astype(float))
    )
    each = (p * np.log(p / q)).sum(axis=1)
    found = parity.compare_logits(a, b)
    assert found["kl_mean"] == pytest.approx(each.mean(), abs=1e-6)
    assert found["kl_max"] == pytest.approx(each.max(), abs=1e-6)
    assert found["top1_agreement"] == (a.argmax(axis=1) == b.argmax(axis=1)).mean()
    assert parity.compare_logits(a, a) == {
        "kl_mean": 0.0,
        "kl_max": 0.0,
        "top1_agreement": 1.0,
        "positions": 5,
    }


def test_a_head_is_that_of_the_library(artifacts: dict[str, Artifact]) -> None:
    made = artifacts["gguf"]
    for entry in made.metrics["files"].values():
        path = made.file(entry["file"])
        head, reader = gguf_header.read(path), gguf.GGUFReader(path)
        fields = {
            name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")
        }
        assert head.metadata == {name: field.contents() for name, field in fields.items()}
        assert [(t.name, t.shape, t.type, t.size) for t in head.tensors] == [
            (t.name, tuple(map(int, t.shape)), t.tensor_type.name, int(t.n_bytes))
            for t in reader.tensors
        ]
        assert path.stat().st_size - head.end < 32
