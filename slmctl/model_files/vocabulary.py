"""A base's tokenizer as llama.cpp will read it: its control tokens, its normal form, and a
vocabulary that it can read.

transformers and llama.cpp take different texts for control tokens, and the converter reads
sentencepiece vocabularies from files that transformers no longer needs or writes.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from slmctl.model_files.base_model import NormalForm

SENTENCEPIECE_FILE = "tokenizer.model"
SETTINGS_FILE = "tokenizer_config.json"

# Texts that llama.cpp treats as control tokens in every vocabulary, whatever type the file gives
# them (llama-vocab.cpp of llama-cpp-python 0.3.36). A test reads them out of the installed library.
CONTROL_BY_NAME = frozenset(
    {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "</s>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<end_of_utterance>",
        "[e~[",
        "<｜end▁of▁sentence｜>",
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
        "<|file_sep|>",
    }
)
# texts that the converter takes for control tokens
_TURN = re.compile(r"<\|.*\|>|<｜.*｜>|<pad>|<mask>", re.DOTALL)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# types of a piece
_NORMAL = 1
_UNKNOWN = 2
_CONTROL = 3
_USER_DEFINED = 4
_BYTE_PIECE = 6


def control_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Texts that transformers or llama.cpp reads as control tokens in a prompt; they are never
    taken from data.

    Added tokens that look like turns of a conversation are among them (`<｜User｜>` of DeepSeek is
    not special to transformers). Marks of tool calls are not, unless they are special: a model
    learns to write them.
    """
    added = tokenizer.added_tokens_decoder.values()
    turns = (
        str(token) for token in added if _TURN.fullmatch(str(token)) and "tool" not in str(token)
    )
    special = {*turns, *(str(token) for token in added if token.special)}
    return (
        special | (CONTROL_BY_NAME & tokenizer.get_vocab().keys()) | _sentencepiece_control(folder)
    )


def _sentencepiece_control(folder: Path) -> set[str]:
    if not (folder / SENTENCEPIECE_FILE).exists():
        return set()
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE_FILE))
    return {
        pieces.id_to_piece(k)
        for k in range(len(pieces))
        if pieces.is_control(k) or pieces.is_unknown(k)
    }


def normal_form(tokenizer: PreTrainedTokenizerBase) -> NormalForm:
    """The Unicode normal form that a tokenizer applies to every text, such as `NFC`; empty for
    none.

    llama.cpp applies none, so texts must be normalised before.
    """
    left = [_backend(tokenizer).get("normalizer")]
    while left:
        part = left.pop() or {}
        form: NormalForm
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            if part.get("type") == form:
                return form
        left += part.get("normalizers") or []
    return ""


def save(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save a tokenizer into its folder, with files and settings that the converter reads and
    transformers leaves out.

    The converter recognises Phi's vocabulary, merges over bytes, by the name of its class alone.
    """
    path = folder / SETTINGS_FILE
    named = json.loads(path.read_bytes()).get("tokenizer_class") if path.exists() else None
    # writes tokenizer.json and the template where they were missing
    tokenizer.save_pretrained(folder)
    if str(named).removesuffix("Fast") == "GPT2Tokenizer":
        _write_json(path, json.loads(path.read_bytes()) | {"tokenizer_class": "GPT2Tokenizer"})
    _complete_sentencepiece(folder, tokenizer)


def _complete_sentencepiece(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the sentencepiece model and settings that the converter needs, if the vocabulary is of
    that kind.

    The blank that the tokenizer puts first becomes llama.cpp's: one before every text that follows
    a control token, or none.
    """
    path, backend = folder / SENTENCEPIECE_FILE, _backend(tokenizer)
    if not path.exists():
        if not _is_sentencepiece(backend):
            return
        path.write_bytes(sentencepiece_model(backend))
    settings = json.loads((folder / SETTINGS_FILE).read_bytes())
    scheme = (backend.get("pre_tokenizer") or {}).get("prepend_scheme", "never")
    if scheme != "never":
        backend["pre_tokenizer"], backend["normalizer"] = (
            None,
            _with_blanks(backend["normalizer"], scheme == "always"),
        )
        (folder / "tokenizer.json").write_text(
            json.dumps(backend, ensure_ascii=False), encoding="utf-8"
        )
        # the class of a family would build its own rules in place of those in the file
        settings |= {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": scheme == "always",
        }
    settings["added_tokens_decoder"] = {
        str(index): {
            "content": token.content,
            "special": token.special,
            "normalized": token.normalized,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
        }
        for index, token in tokenizer.added_tokens_decoder.items()
    }
    _write_json(folder / SETTINGS_FILE, settings)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def drop_tokens_without_weights(folder: Path, rows: int) -> list[str]:
    """Remove tokens for which the model has no weights from a tokenizer's files; returns their
    texts.

    Gemma 3's text models ship with a token for images after the last row of their embedding. A text
    that spelled it would be an index out of range, and llama.cpp loads no vocabulary that is longer
    than the weights.
    """
    path = folder / "tokenizer.json"
    backend = json.loads(path.read_bytes()) if path.exists() else {}
    dropped = [
        token["content"] for token in backend.get("added_tokens") or [] if token["id"] >= rows
    ]
    if not dropped:
        return []
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["id"] < rows]
    path.write_text(json.dumps(backend, ensure_ascii=False), encoding="utf-8")
    for name in (SETTINGS_FILE, "special_tokens_map.json", "added_tokens.json"):
        path = folder / name
        if path.exists():
            _write_json(path, _without(json.loads(path.read_bytes()), dropped))
    return dropped


def _without(value: Any, texts: Sequence[str]) -> Any:
    """A JSON value without these texts, tokens with such a content, and keys with such a name."""

    def stays(inner: Any) -> bool:
        content = inner.get("content") if isinstance(inner, Mapping) else inner
        return not (isinstance(content, str) and content in texts)

    if isinstance(value, Mapping):
        return {
            key: _without(inner, texts)
            for key, inner in value.items()
            if key not in texts and stays(inner)
        }
    return (
        [_without(inner, texts) for inner in value if stays(inner)]
        if isinstance(value, list)
        else value
    )


def _with_blanks(normalizer: Mapping[str, Any] | None, first: bool) -> dict[str, Any]:
    """A normalizer that also replaces blanks by U+2581, and puts
    one before every text if `first`.
    """
    before = [{"type": "Prepend", "prepend": "▁"}] if first else []
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return {
        "type": "Sequence",
        "normalizers": [*([normalizer] if normalizer else []), *before, blanks],
    }


def _backend(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as tokenizer.json describes it; empty for one without."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return json.loads(backend.to_str()) if backend is not None else {}


def _is_sentencepiece(backend: Mapping[str, Any]) -> bool:
    """True for BPE over characters with byte fallback that splits texts at blanks only."""
    model = backend.get("model") or {}
    cut = backend.get("pre_tokenizer") or {"type": ""}
    whole = cut["type"] in ("", "Metaspace") or (
        # after the normalizer there are no blanks
        cut["type"] == "Split" and cut.get("pattern") == {"String": " "}
    )
    return model.get("type") == "BPE" and bool(model.get("byte_fallback")) and whole


def sentencepiece_model(backend: Mapping[str, Any]) -> bytes:
    """A serialised sentencepiece model whose scores give the merges of a tokenizer.json."""
    model, added = backend["model"], {token["id"]: token for token in backend["added_tokens"]}
    rank: dict[str, int] = {}
    for place, merge in enumerate(model["merges"]):
        rank.setdefault(
            "".join(merge) if isinstance(merge, list) else merge.replace(" ", ""), place
        )
    pieces = {index: piece for piece, index in model["vocab"].items()}
    pieces |= {index: token["content"] for index, token in added.items()}
    unknown = model.get("unk_token") or "<unk>"
    parts = []
    for index in range(max(pieces) + 1):
        piece = pieces.get(index, f"<missing {index}>")
        kind, score = _NORMAL, -float(rank.get(piece, len(rank)))
        if piece == unknown:
            kind, score = _UNKNOWN, 0.0
        elif index in added:
            kind, score = _CONTROL if added[index]["special"] else _USER_DEFINED, 0.0
        elif _BYTE.fullmatch(piece):
            kind, score = _BYTE_PIECE, 0.0
        raw = piece.encode()
        body = (
            b"\x0a"
            + _varint(len(raw))
            + raw
            + b"\x15"
            + struct.pack("<f", score)
            + b"\x18"
            + _varint(kind)
        )
        parts += [b"\x0a", _varint(len(body)), body]
    byte_pieces = b"\x18\x02" + b"\x98\x02\x01"  # trainer_spec: model_type BPE, byte_fallback
    # no prefix, blanks stay, U+2581
    as_it_is = b"\x0a\x08identity" + b"\x18\x00" + b"\x20\x00" + b"\x28\x01"
    return b"".join(
        [
            *parts,
            b"\x12",
            _varint(len(byte_pieces)),
            byte_pieces,
            b"\x1a",
            _varint(len(as_it_is)),
            as_it_is,
        ]
    )


def _varint(number: int) -> bytes:
    """A number as protocol buffers write it."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
