"""Sentence encoders as ONNX: every architecture gives the vectors of
transformers, and int8 ones nearly the same.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import numpy_helper
from support import tiny

from slmctl.errors import DataError, SlmctlError
from slmctl.inference.supervised_child import EngineError
from slmctl.model_files import encoder_onnx, encoder_source, hf_folder
from slmctl.models.onnx_encoder import Encoder

TEXTS = ["invoice parcel please", "a courier", "please " * 100, "today <s> </s>", ""]
SMALL: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 66,
}
DECODER = {"num_key_value_heads": 2, "head_dim": 32}
SPECIAL = {
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "cls_token_id": 0,
    "sep_token_id": 2,
}
DISTILLED = {"vocab_size": 160, "dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_encoder_folder(tmp_path_factory.mktemp("encoder") / "words")


@pytest.fixture(scope="module")
def converted(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    encoder_source.convert(words, out)
    return out


@pytest.mark.parametrize(
    ("name", "settings", "mode"),
    [
        ("Bert", SMALL, "mean"),
        ("MPNet", SMALL, "cls"),
        ("DistilBert", {**DISTILLED, "max_position_embeddings": 66}, "mean"),
        ("Roberta", SMALL, "mean"),
        ("ModernBert", {**SMALL, **SPECIAL}, "cls"),
        ("DebertaV2", SMALL, "mean"),
        ("Qwen3", {**SMALL, **DECODER}, "lasttoken"),
    ],
)
def test_vectors_are_those_of_transformers(
    words: Path, tmp_path: Path, name: str, settings: dict[str, Any], mode: str
) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(
        words, folder, ignore=shutil.ignore_patterns("config.json", "model.safetensors")
    )
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    out.mkdir()
    encoder_source.convert(folder, out)
    model, tokenizer = hf_folder.load_encoder(folder).eval(), hf_folder.load_tokenizer(folder)
    expected = []
    for text in TEXTS:  # each by itself, so that no padding is involved
        batch = tokenizer(
            text, truncation=True, max_length=64, return_tensors="pt", split_special_tokens=True
        )
        with torch.no_grad():
            states = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state[0]
        vector = {"mean": states.mean(0), "cls": states[0], "lasttoken": states[-1]}[mode]
        expected.append((vector / vector.norm()).numpy())
    with Encoder(out / "float32") as exact, Encoder(out) as small:
        assert np.abs(exact.encode(TEXTS) - np.array(expected)).max() < 1e-5
        assert (small.encode(TEXTS) * exact.encode(TEXTS)).sum(axis=1).min() > 0.99
    stored = {
        tensor.data_type
        for tensor in onnx.load(out / "encoder.onnx").graph.initializer
        if len(tensor.dims) == 2
    }
    assert onnx.TensorProto.INT8 in stored


def test_int8_vectors_do_not_depend_on_the_batch(converted: Path) -> None:
    texts = [text for text, _ in tiny.rows(200)] + TEXTS
    with Encoder(converted, threads=2) as encoder:
        together, alone = (
            encoder.encode(texts),
            np.concatenate([encoder.encode([text]) for text in texts]),
        )
    assert np.abs(together - alone).max() < 1e-6


def test_a_file_tells_no_path_of_where_it_was_made(converted: Path) -> None:
    raw = (converted / "encoder.onnx").read_bytes()
    assert b"site-packages" not in raw and b".py" not in raw and str(converted).encode() not in raw


def exported(folder: Path, name: str, **changes: Any) -> Path:
    """An encoder of another exporter, in an older version of the
    operators, with some names changed.
    """
    place = tiny.build_encoder(folder)
    model = onnx.load(place / "model.onnx")
    for value in [*model.graph.input, *model.graph.output]:
        value.name = changes.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [changes.get(each, each) for each in node.input]
        node.output[:] = [changes.get(each, each) for each in node.output]
    (place / "model.onnx").unlink()
    (place / name).parent.mkdir(exist_ok=True)
    onnx.save(model, place / name)
    return place


@pytest.mark.parametrize("name", ["model.onnx", "onnx/model.onnx", "encoder.onnx"])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_an_encoder_of_another_exporter_comes_in(tmp_path: Path, name: str, mode: str) -> None:
    place, out = exported(tmp_path / "words", name), tmp_path / "out"
    (place / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    out.mkdir()
    encoder_source.convert(place, out)
    (table,) = [
        numpy_helper.to_array(each)
        for each in onnx.load(place / name).graph.initializer
        if len(each.dims) > 1
    ]
    rows = (table - table.mean(1, keepdims=True)) / table.std(1, keepdims=True)
    with Encoder(out) as encoder:
        (vector,) = encoder.encode(["invoice"])
        ids = encoder._tokenizer.encode("invoice").ids
        again = Encoder(out).encode(["invoice"])
    expected = rows[ids].mean(0) if mode == "mean" else rows[ids[0]]
    assert vector @ expected / np.linalg.norm(expected) > 0.999 and np.array_equal(again[0], vector)
    encoder_source.convert(out, tmp_path)  # what the product has written comes in as it is
    with Encoder(tmp_path) as encoder:
        assert np.abs(encoder.encode(["invoice"])[0] - vector).max() < 1e-6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_ids": "pixels"}, "an input 'pixels'"),
        ({"last_hidden_state": "logits"}, "gives no vector of a text"),
    ],
)
def test_another_model_is_no_encoder(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    place = exported(tmp_path / "words", "model.onnx", **changes)
    with pytest.raises(DataError, match=said):
        encoder_source.convert(place, tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"\x08\x08\x3a\x03abc"], ids=["empty", "another", "cut"]
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    place = tiny.build_encoder(tmp_path / "words")
    (place / "model.onnx").write_bytes(content)
    with pytest.raises(SlmctlError, match=r"model\.onnx"):
        encoder_source.convert(place, tmp_path)


def test_a_damaged_graph_ends_in_an_error_and_never_in_the_end_of_the_process(
    converted: Path, tmp_path: Path
) -> None:
    whole = (converted / "encoder.onnx").read_bytes()
    weights = max(
        (each.raw_data for each in onnx.load(converted / "encoder.onnx").graph.initializer), key=len
    )
    start = whole.find(weights)
    draw, place, refused = (
        random.Random(0),
        Path(shutil.copytree(converted, tmp_path / "damaged")),
        0,
    )
    for _ in range(120):
        damaged = bytearray(whole)
        for at in draw.sample(
            [*range(start), *range(start + len(weights), len(whole))], draw.randint(1, 4)
        ):
            damaged[at] = draw.randrange(256)
        (place / "encoder.onnx").unlink()
        (place / "encoder.onnx").write_bytes(
            damaged[: draw.choice([len(whole), draw.randrange(len(whole))])]
        )
        try:
            with Encoder(place, threads=1) as encoder:
                assert encoder.encode(TEXTS).shape == (len(TEXTS), encoder.size)
        except EngineError as error:
            refused += len(error.message.splitlines()) == 1
    assert refused > 60


def test_an_encoder_that_does_not_say_how_it_pools_is_refused(words: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(words, tmp_path / "words"))
    (place / "1_Pooling" / "config.json").unlink()
    with pytest.raises(DataError, match="does not say how it pools"):
        encoder_source.convert(place, tmp_path)


def test_columns_of_zeros_stay_zeros() -> None:
    weights = np.array([[0.0, 1.0], [0.0, -2.0]], np.float32)
    whole, scales = encoder_onnx._scaled(weights, axis=1)
    assert np.allclose(whole * scales, weights, atol=0.01) and not whole[:, 0].any()
