"""vocabulary: llama.cpp reads the texts that transformers reads, and
takes no other ones for control tokens.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from slmctl.model_files import vocabulary

LINES = [
    "the courier was late again",
    "refund   the invoice, please",
    "a parcel at the door\n\nthe door",
]
TEXTS = [*LINES, "", " ", "  two ", "a\u2581b", "ünknown 🙂", "<0x0A>", "the</s>door", "\n\n\n"]


def trained(
    pre_tokenizer: Any = None, normalizer: Any = None, *, added: tuple[str, ...] = ()
) -> Any:
    """A tokenizer as transformers makes it of a sentencepiece model:
    merges over characters, bytes beside them.
    """
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=330, special_tokens=special))
    document = json.loads(backend.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(document)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.add_tokens(list(added))
    return tokenizer


def saved(tokenizer: Any, folder: Path) -> Any:
    vocabulary.save(folder, tokenizer)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["ordinary", "added"])
def test_what_llama_cpp_takes_for_control_is_control(name: str, tmp_path: Path) -> None:
    words = {"a": 0, "</s>": 1, "<|fim_pad|>": 2, "<tool_call>": 3, "<b>": 4}
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(models.WordLevel(words)), eos_token="<end>"
    )
    tokenizer.add_tokens(
        ["<｜User｜>", "<｜tool▁call▁begin｜>", "<|user|>", "<think>"] if name == "added" else []
    )
    expected = {"<end>", "</s>", "<|fim_pad|>"} | (
        {"<｜User｜>", "<|user|>"} if name == "added" else set()
    )
    assert vocabulary.control_tokens(tmp_path, tokenizer) == expected


@pytest.mark.parametrize(
    ("normalizer", "form"),
    [
        (None, ""),
        (normalizers.NFC(), "NFC"),
        (normalizers.Sequence([normalizers.Replace("a", "b"), normalizers.NFKC()]), "NFKC"),
    ],
)
def test_the_normal_form_is_found(normalizer: Any, form: str) -> None:
    assert vocabulary.normal_form(trained(normalizer=normalizer)) == form


def test_a_sentencepiece_model_is_made_of_merges(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    tokenizer = trained(normalizer=normalizers.Replace(" ", "▁"), added=("\n\n", "<b>"))
    again = saved(tokenizer, tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert len(pieces) == len(tokenizer)
    assert [pieces.id_to_piece(k) for k in range(len(pieces))] == tokenizer.convert_ids_to_tokens(
        range(len(tokenizer))
    )
    assert (
        pieces.is_unknown(0),
        pieces.is_control(1),
        pieces.is_control(2),
        pieces.is_byte(3),
    ) == (True,) * 4
    for text in TEXTS:
        if "</s>" not in text:  # sentencepiece reads no control tokens
            assert pieces.encode(text) == tokenizer(text, add_special_tokens=False).input_ids, text
        assert again(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize(
    ("scheme", "first"), [("always", "▁the"), ("first", "the"), ("never", "the")]
)
def test_a_first_blank_is_as_llama_cpp_puts_it(scheme: str, first: str, tmp_path: Path) -> None:
    cut = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    again = saved(trained(cut), tmp_path)
    assert (tmp_path / "tokenizer.model").exists()
    assert "".join(again.tokenize("the door")) == f"{first}▁door"
    assert (
        "".join(again.tokenize("<s> the</s>the"))
        == f"<s>{first.removesuffix('the')}▁the</s>{first}"
    )
    settings = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert settings.get("add_prefix_space") == {"always": True, "first": False}.get(scheme)


def test_other_vocabularies_get_no_sentencepiece_model(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=300))
    saved(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>"), tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()


# llama.cpp's own list


def names_in_library(library: Path) -> Iterator[str]:
    """Texts in the library that look like control tokens."""
    for raw in re.findall(
        rb"\x00([<\[_\xe2][^\x00\s%]{1,40}[>\]\[])(?=\x00)", library.read_bytes()
    ):
        text = raw.decode(errors="replace")
        if "\ufffd" not in text:
            yield text


@pytest.fixture
def silent() -> Iterator[None]:
    """llama.cpp without its log, which is cut within letters here; the package's own afterwards."""
    lc = pytest.importorskip("llama_cpp")
    nothing = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(nothing, None)
    yield
    lc.llama_log_set(lc._logger.llama_log_callback, None)


def test_the_names_are_those_of_the_installed_llama_cpp(tmp_path: Path, silent: None) -> None:
    gguf = pytest.importorskip("gguf")
    lc = pytest.importorskip("llama_cpp")
    settings = lc.llama_model_default_params()
    settings.vocab_only = True
    path = tmp_path / "vocabulary.gguf"

    def is_control(name: str) -> bool:
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["a", "b", "ab", name])
        writer.add_token_types([1, 1, 1, 1])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(0)
        writer.add_bos_token_id(0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        model = lc.llama_model_load_from_file(str(path).encode(), settings)
        assert model
        found = (
            lc.llama_vocab_get_attr(lc.llama_model_get_vocab(model), 3)
            & lc.LLAMA_TOKEN_ATTR_CONTROL
        )
        lc.llama_model_free(model)
        return bool(found)

    library = next(Path(lc.__file__).parent.rglob("libllama.so*"))
    others = set(names_in_library(library)) - vocabulary.CONTROL_BY_NAME
    assert [name for name in sorted(vocabulary.CONTROL_BY_NAME) if not is_control(name)] == []
    assert len(others) > 10
    assert [name for name in sorted(others) if is_control(name)] == []


def test_tokens_without_weights_leave_every_file(tiny_base: Path, tmp_path: Path) -> None:
    """As Gemma 3's text models have it: a token for images after the last row of the embedding."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    before = AutoTokenizer.from_pretrained(folder)
    rows = len(before)
    before.add_tokens(["<image>"], special_tokens=True)
    before.save_pretrained(folder)
    assert vocabulary.drop_tokens_without_weights(folder, rows) == ["<image>"]
    after = AutoTokenizer.from_pretrained(folder)
    assert len(after) == rows
    assert max(after("see <image>").input_ids) < rows
    assert vocabulary.drop_tokens_without_weights(folder, rows) == []
