"""Answers of HF models of every kind of layer are those of the
whole text, computed without a cache.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.label_scores import label_probabilities, whole_label_probabilities
from transformers import PreTrainedTokenizerBase

from benchmarks import architectures
from slmctl.inference.engine import Answer, Request
from slmctl.model_files import hf_folder, transformers_answerer
from slmctl.model_files.transformers_answerer import HfAnswerer
from slmctl.models.prompts import Prompt

HEAD, TAIL = (
    "<|im_start|>system\nName it.<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
)
TEXTS = (
    "refund my card please",
    "hello",
    "x",
    "late truck doorstep carrier tracking shipped parcel",
    "hello",
)
LABELS = ("billing", "delivery late", "courier truck late", "courier truck", "account")
SCHEMA = (
    '{"type": "object", "properties": {"kind": {"enum": ["ab", "b", null]}}, '
    '"additionalProperties": false}'
)
PROMPTS = [Prompt(f"{HEAD}{text}{TAIL}", HEAD) for text in TEXTS]


# attention alone, convolutions, states alone, delta net, eager attention with windows, ALiBi
@pytest.fixture(scope="module", params=["llama", "lfm2", "mamba2", "qwen3.5-text", "gemma2", "mpt"])
def folder(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    # without the unused rows of Gemma's embedding, 262,144, whose logits took most of the time
    entry = dataclasses.replace(architectures.ARCHITECTURES[request.param], rows=0)
    with mock.patch.dict(architectures.ARCHITECTURES, {request.param: entry}):
        return architectures.build(request.param, tmp_path_factory.mktemp(request.param), tiny_base)


def answered(
    folder: Path,
    prompts: list[Prompt],
    *,
    labels: tuple[str, ...] = (),
    schema: str = "",
    matmul: str = "float32",
    whole: bool = False,
) -> list[Answer]:
    answerer = HfAnswerer(
        folder,
        labels=labels,
        end="<|im_end|>",
        max_tokens=8,
        matmul_dtype=matmul,
        whole_labels=whole,
    )
    # it allows no other
    assert answerer.matmul_dtype == ("float32" if "mamba" in folder.name else matmul)
    found = dict(
        answerer.ask_all(Request(each.text, each.prefix, schema=schema) for each in prompts)
    )
    answers = [found[k] for k in range(len(prompts))]
    assert all(isinstance(answer, Answer) for answer in answers)
    return answers  # type: ignore[return-value]  # none is an error


def read(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return tokens


def rows_of(model: Any, tokens: list[int], own: dict[str, list[int]], label: str) -> Any:
    """The logits of each token of a label, computed without a cache."""
    return (
        model(torch.tensor([tokens + own[label]]), use_cache=False)
        .logits[0, len(tokens) - 1 :]
        .numpy()
    )


@torch.inference_mode()
def test_answers_are_those_of_the_whole_text(folder: Path) -> None:
    model: Any = hf_folder.load_model(folder)
    tokenizer = hf_folder.load_tokenizer(folder)
    own = {label: read(tokenizer, f"{label}<|im_end|>") for label in LABELS}
    by_label, free = answered(folder, PROMPTS, labels=LABELS), answered(folder, PROMPTS)
    for prompt, labelled, spoken in zip(PROMPTS, by_label, free, strict=True):
        tokens = read(tokenizer, prompt.text)
        wanted = label_probabilities(own, functools.partial(rows_of, model, tokens, own))
        assert labelled.labels == pytest.approx(
            {label: wanted[label] for label in labelled.labels}, rel=1e-4
        )
        count = spoken.completion_tokens
        for _ in range(count):
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
            tokens.append(int(logits.argmax()))
        assert tokenizer.decode(tokens[-count:], skip_special_tokens=True) == spoken.text


@torch.inference_mode()
def test_an_untuned_base_takes_the_label_that_is_likeliest_as_a_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = hf_folder.load_model(folder)
    tokenizer = hf_folder.load_tokenizer(folder)
    own = {label: read(tokenizer, f"{label}<|im_end|>") for label in LABELS}
    together = answered(folder, PROMPTS, labels=LABELS, whole=True)
    monkeypatch.setattr(transformers_answerer, "LABEL_LOGITS", 1)
    alone = answered(folder, PROMPTS, labels=LABELS, whole=True)
    for prompt, *answers in zip(PROMPTS, together, alone, strict=True):
        wanted = whole_label_probabilities(
            own, functools.partial(rows_of, model, read(tokenizer, prompt.text), own)
        )
        for answer in answers:
            assert answer.labels == pytest.approx(wanted, rel=1e-4)
            assert (answer.text, answer.confidence) == next(iter(answer.labels.items()))
            assert answer.confidence == max(answer.labels.values())


def test_a_long_label_that_leaves_no_choice_does_not_mislead_an_untuned_base(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a walk from choice to choice forgets how unlikely the tokens are that leave no choice
    walked, whole = set[str](), set[str]()
    for long, short in (("late", "courier"), ("courier", "late")):
        labels = (
            f"{long} truck doorstep carrier tracking shipped parcel",
            f"{short} hello",
            f"{short} account",
        )
        walked |= {answer.text for answer in answered(folder, PROMPTS, labels=labels)}
        whole |= {answer.text for answer in answered(folder, PROMPTS, labels=labels, whole=True)}
    assert any("parcel" in text for text in walked)
    assert not any("parcel" in text for text in whole)
    # of many labels it walks all the same
    monkeypatch.setattr(transformers_answerer, "MOST_BEGINNINGS", 1)
    assert answered(folder, PROMPTS, labels=labels, whole=True) == answered(
        folder, PROMPTS, labels=labels
    )


def test_products_in_bfloat16_give_nearly_the_same_probabilities(folder: Path) -> None:
    exact = answered(folder, PROMPTS, labels=LABELS)
    for narrow, wide in zip(
        answered(folder, PROMPTS, labels=LABELS, matmul="bfloat16"), exact, strict=True
    ):
        for label in narrow.labels.keys() & wide.labels.keys():
            assert narrow.labels[label] == pytest.approx(wide.labels[label], abs=0.02)


def test_json_does_not_depend_on_company(folder: Path) -> None:
    alone = [
        answered(folder, [Prompt(prompt.text, "")], schema=SCHEMA)[0] for prompt in PROMPTS[:3]
    ]
    together = answered(folder, PROMPTS[:3], schema=SCHEMA)
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours.text, ours.finish, ours.completion_tokens) == (
            theirs.text,
            theirs.finish,
            theirs.completion_tokens,
        )
        assert ours.confidence == pytest.approx(theirs.confidence, rel=1e-4)
