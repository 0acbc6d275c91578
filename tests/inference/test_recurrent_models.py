"""The engine over models with a state in place of keys and values, or beside them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.forks import Forks, convert
from support.label_scores import label_probabilities

from benchmarks import architectures
from slmctl.inference.engine import Answer, Engine, Request
from slmctl.model_files import hf_folder, quantizer
from slmctl.model_files.quantizer import QuantizedFile

HEAD = "<|im_start|>system\nName the category.<|im_end|>\n<|im_start|>user\n"
TEXTS = (
    "refund my card please",
    "hello",
    "late truck doorstep carrier tracking shipped parcel",
    "\n",
)
LABELS = (
    "billing",
    "delivery late",
    "courier truck late",
    "courier truck",
    "courier truck lost",
    "account",
)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "topic": {"enum": ["billing", "delivery", None]},
            "note": {"type": "string", "maxLength": 8},
        },
        "required": ["topic", "note"],
        "additionalProperties": False,
    }
)


# states alone, and states beside attention
@pytest.fixture(scope="session", params=["mamba2", "bamba"])
def folder(
    request: pytest.FixtureRequest,
    tiny_base: Path,
    heavy_children: Forks,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = architectures.build(request.param, tmp_path_factory.mktemp(request.param), tiny_base)
    convert(heavy_children, out, out / "model.gguf", "f32")
    return out


def requests(*, shared: bool) -> list[Request]:
    """Requests of every kind, of prompts that begin alike."""
    asked = []
    for seed, text in enumerate(TEXTS):
        prompt = f"{HEAD}{text}<|im_end|>\n<|im_start|>assistant\n"
        plain = Request(prompt, prefix=HEAD if shared else "", max_tokens=12, seed=seed)
        asked += [
            plain,
            dataclasses.replace(plain, temperature=1.0),
            dataclasses.replace(plain, labels=LABELS, end="<|im_end|>"),
            dataclasses.replace(plain, schema=SCHEMA, max_tokens=60),
        ]
    return asked


@torch.inference_mode()
def logits(model: Any, tokens: list[int]) -> npt.NDArray[np.float64]:
    """The scores of transformers after each token, (tokens, n_vocab)."""
    rows: npt.NDArray[np.float64] = (
        model(torch.tensor([tokens]), use_cache=False).logits[0].double().numpy()
    )
    return rows


def test_answers_of_recurrent_models_do_not_depend_on_what_is_shared(folder: Path) -> None:
    with Engine(folder / "model.gguf", sequences=1, context=256, threads=1) as engine:
        alone = [engine.ask(one) for one in requests(shared=False)]
    asked = requests(shared=True)
    model = hf_folder.load_model(folder)
    with Engine(folder / "model.gguf", sequences=5, context=256, threads=1) as engine:
        # cancelled
        engine.submit(dataclasses.replace(asked[0], max_tokens=200), lambda event: None)()
        found = dict(engine.ask_all(asked))
        prompt = engine.tokenize(asked[0].prompt)
        tokens = {label: engine.tokenize(f"{label}<|im_end|>") for label in LABELS}
        likely = label_probabilities(
            tokens,
            lambda label: logits(model, [*prompt, *tokens[label]])[
                -len(tokens[label]) - 1 :
            ].tolist(),
        )
    assert len({answer.text for answer in alone}) > len(TEXTS)
    for k, wanted in enumerate(alone):
        answer = found[k]
        assert isinstance(answer, Answer)
        assert (answer.text, answer.finish) == (wanted.text, wanted.finish)
        assert answer.confidence == pytest.approx(wanted.confidence, rel=1e-3)
        if asked[k].prompt == asked[0].prompt:
            for label, probability in answer.labels.items():
                assert probability == pytest.approx(likely[label], rel=0.02)


def test_a_quantized_recurrent_model_answers_several_as_one(folder: Path) -> None:
    """llama.cpp's weights laid out for AMX gave all sequences of a
    batch but the first one garbage, or NaN.
    """
    list(
        quantizer.quantize_all(
            folder / "model.gguf", [QuantizedFile("Q8_0", folder / "model-Q8_0.gguf")]
        )
    )
    labels = [one for one in requests(shared=False) if one.labels]
    with Engine(folder / "model-Q8_0.gguf", sequences=1, context=256, threads=1) as engine:
        alone = [engine.ask(one) for one in labels]
    with Engine(folder / "model-Q8_0.gguf", sequences=5, context=256, threads=1) as engine:
        together = dict(engine.ask_all(labels))
    for k, wanted in enumerate(alone):
        answer = together[k]
        assert isinstance(answer, Answer)
        assert (answer.text, answer.confidence) == (
            wanted.text,
            pytest.approx(wanted.confidence, rel=0.05),
        )
